"""Queries against the index of a run: nearest clips by the dual encoder, the best of them read again by the fusion encoder."""
from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from egokit.config.build import ConfigError
from egokit.config.schema import Config
from egokit.data.video.transforms import normalise
from egokit.jobs import launch
from egokit.model.egovlp import autocast
from egokit.runs.run_folder import Run
from egokit.search import index_task as task
from egokit.search import vector_index
from egokit.train import loop

SECTION = "index"


@dataclasses.dataclass(frozen=True)
class Hit:
    """A moment of a video. match: the fusion encoder's probability, None if it was not asked."""
    video: str  # its path in the folder, to be shown
    start: float
    stop: float
    cosine: float
    match: float | None
    path: Path

    @property
    def time(self) -> str:
        return f"{timecode(self.start)}–{timecode(self.stop)}"


def timecode(seconds: float) -> str:
    """1:02:03.5"""
    tenths = round(10 * seconds)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")


def submit(config: Config, run: Run) -> launch.Handle:
    """The job that brings the run's index up to date with the folder, finished where nothing has changed; see launch.submit."""
    handle, current = launch.Handle(run, SECTION), task.current(config, run.path / "features")
    if handle.metrics() and not current:
        while handle.alive():
            time.sleep(0.5)  # the job has finished and is about to end; it must not be taken for the next one
        run.write_metrics(SECTION, {})  # finished, but of another day's videos
    return launch.submit(config, run, "extract", SECTION)


def open_index(config: Config, run: Run) -> Searcher:
    """The index in the run folder, ready for queries. Raises ConfigError if it is missing or was made otherwise."""
    return Searcher(task.Search(config), run)


class Searcher:
    """searcher("#C C opens the box", top=10, rerank=50) -> the best moments, one a place."""

    def __init__(self, task_: task.Search, run: Run):
        self.task, self.run, self.folder = task_, run, task.folder_of(task_.config)
        self.manifest = task_.check(run.path / "features")
        if not self.manifest.get("videos"):
            bad = self.manifest.get("unreadable")
            why = f"none of {len(bad)} can be read; {bad[0]['reason']}" if bad else "egokit.search.submit(config, run).wait() makes it"
            raise ConfigError(f"{run.path} has no index of any video: {why}")
        self.vectors = task.opened(run.path / "features", self.manifest)
        self.model = loop.initial_model(task_.config).eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def __repr__(self) -> str:
        videos = self.manifest["videos"]
        return (f"<{len(self.vectors):,} clips of {len(videos):,} videos, {sum(line['seconds'] for line in videos) / 3600:.1f} hours; "
                f"{len(self.manifest['unreadable'])} can't be read>")

    @torch.no_grad()
    def __call__(self, text: str, top: int = 10, rerank: int = 0) -> list[Hit]:
        """The `top` best moments, by cosine; the first `rerank` of them, even if these are more, are then ordered by match."""
        if not text.strip():
            raise ValueError("an empty query: write what is done, for example '#C C opens the box'")
        with autocast(self.model.device, self.task.config.evaluate.precision):
            query_1E = self.model.encode_text([text]).float().cpu().numpy()
        hits = self.moments(query_1E, max(top, rerank))
        if rerank:
            match = self.match(text, hits[:rerank])
            hits = sorted((dataclasses.replace(hit, match=one) for hit, one in zip(hits[:rerank], match, strict=True)),
                          key=lambda hit: -hit.match) + hits[rerank:]
        return hits[:top]

    def moments(self, query_1E: np.ndarray, count: int) -> list[Hit]:
        """The nearest clips, without those that overlap with a nearer one of the same video."""
        search, wanted = self.task.config.search, count
        while True:
            wanted = min(len(self.vectors), int(wanted * 2 * np.ceil(search.window / search.stride)))
            hits, kept = [], {}
            for cosine, number in zip(*(rows[0] for rows in self.vectors.nearest(query_1E, wanted)), strict=True):
                file, row = self.vectors.place(number)
                start, stop = float(row["start"]), float(row["stop"])
                others = kept.setdefault(file, [])
                if all(stop <= other.start or start >= other.stop for other in others):
                    video = self.manifest["videos"][file]["video"]
                    others.append(Hit(task.printable(video), start, stop, float(cosine), None, self.folder / video))
                    hits.append(others[-1])
                    if len(hits) == count:
                        return hits
            if wanted == len(self.vectors) or (self.vectors.approximate() and wanted > vector_index.CANDIDATES):
                return hits

    def match(self, text: str, hits: list[Hit]) -> list[float]:
        """The fusion encoder's probability that each moment shows what the text says; only these clips are read."""
        out, size, evaluate = [], self.task.config.evaluate.batch_size, self.task.config.evaluate
        for at in range(0, len(hits), size):
            video = torch.stack([self.clip(hit) for hit in hits[at:at + size]])
            with autocast(self.model.device, evaluate.precision):
                out += self.model.match(normalise(video.to(self.model.device)), [text]).float().cpu().tolist()
        return out

    def clip(self, hit: Hit) -> torch.Tensor:
        """A moment's frames, uint8 (T, 3, size, size)."""
        if not hit.path.is_file():
            raise FileNotFoundError(f"{hit.path} is gone since it was indexed; the same command, or cell, brings the index up to date")
        return self.task.clip(hit.path, hit.start, hit.stop)
