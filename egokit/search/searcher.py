"""Queries against the index of a run.

The dual encoder finds the nearest clips; the fusion encoder then reads the best of them again.
"""
from __future__ import annotations

import collections
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch

from egokit.config.build import ConfigError
from egokit.config.schema import Config
from egokit.data.video.transforms import normalise
from egokit.jobs import launch
from egokit.model.egovlp import autocast
from egokit.runs.run_folder import Run
from egokit.search import index_task
from egokit.train import loop


@dataclasses.dataclass(frozen=True)
class Hit:
    """A moment of a video that answers a query."""
    video: str           # its path in the folder, for display
    start: float         # seconds
    stop: float
    cosine: float
    match: float | None  # the fusion encoder's matching probability; None where it was not used
    path: Path

    @property
    def time(self) -> str:
        """Start and stop for display: '1:02:03–1:02:07'."""
        return f"{timecode(self.start)}–{timecode(self.stop)}"


def timecode(seconds: float) -> str:
    """Return a time in tenths of a second as '1:02:03.5' or '2:03'."""
    tenths = round(10 * seconds)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + \
        f":{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")


def submit(config: Config, run: Run) -> launch.Handle:
    """Submit the job that brings the run's index up to date with the folder.

    Returns:
        The job's handle, as launch.submit returns it; of a finished job if the folder has not changed.
    """
    return launch.submit(config, run, "extract", index_task.Search.sections["extract"])


def open_index(config: Config, run: Run) -> Searcher:
    """Return the index in the run folder, ready for queries.

    Raises:
        ConfigError: The index is missing or was made with other settings.
    """
    return Searcher(index_task.Search(config), run)


class Searcher:
    """An open index with its model: searcher("#C C opens the box", top=10) -> best hits.

    Attributes:
        manifest: The index's manifest: settings, `videos` and `unreadable` ones.
        vectors: The VectorIndex.
        model: The model, on the GPU if there is one.
    """

    def __init__(self, task: index_task.Search, run: Run):
        self.task, self.run, self.folder = task, run, index_task.video_folder(task.config)
        self.manifest = task.check_settings(run.path / "features")
        if not self.manifest.get("videos"):
            unreadable = self.manifest.get("unreadable")
            why = f"none of {len(unreadable)} can be read; {unreadable[0]['reason']}" if unreadable else \
                "egokit.search.submit(config, run).wait() makes it"
            raise ConfigError(f"{run.path} has no index of any video: {why}")
        self.vectors = index_task.open_vectors(run.path / "features", self.manifest)
        self.model = loop.initial_model(task.config).eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def __repr__(self) -> str:
        videos = self.manifest["videos"]
        hours = sum(line["seconds"] for line in videos) / 3600
        return (f"<{len(self.vectors):,} clips of {len(videos):,} videos, {hours:.1f} hours; "
                f"{len(self.manifest['unreadable'])} can't be read>")

    @torch.no_grad()
    def __call__(self, text: str, top: int = 10, rerank: int = 0) -> list[Hit]:
        """Return the moments that answer a query best.

        Args:
            text: The query, written like a narration.
            top: How many moments to return.
            rerank: How many of the best by cosine the fusion encoder orders anew by match; may exceed `top`.

        Raises:
            ValueError: The query is empty.
        """
        if not text.strip():
            raise ValueError("an empty query: write what is done, for example '#C C opens the box'")
        with autocast(self.model.device, self.task.config.evaluate.precision):
            query_1E = self.model.encode_text([text]).float().cpu().numpy()
        hits = self.moments(query_1E, max(top, rerank))
        if rerank:
            matches = self.match(text, hits[:rerank])
            reranked = [dataclasses.replace(hit, match=match)
                        for hit, match in zip(hits[:rerank], matches, strict=True)]
            hits = sorted(reranked, key=lambda hit: -hit.match) + hits[rerank:]
        return hits[:top]

    def moments(self, query_1E: np.ndarray, count: int) -> list[Hit]:
        """Return the nearest clips, without those that overlap a nearer clip of the same video."""
        own, hits = self.task.config.task, []
        nearer = collections.defaultdict(list)  # the hits of each video
        # so many clips of a video overlap a clip, itself and the last one, which is between two strides, included
        overlapping = 2 * math.ceil(own.window / own.stride) + 1
        cosine_QN, number_QN = self.vectors.search(query_1E, count * overlapping)
        for cosine, number in zip(cosine_QN[0], number_QN[0], strict=True):
            file, row = self.vectors.locate(number)
            start, stop = float(row["start"]), float(row["stop"])
            if all(stop <= hit.start or start >= hit.stop for hit in nearer[file]):
                video = self.manifest["videos"][file]["video"]
                hits.append(Hit(index_task.printable(video), start, stop, float(cosine), None, self.folder / video))
                nearer[file].append(hits[-1])
                if len(hits) == count:
                    break
        return hits

    def match(self, text: str, hits: list[Hit]) -> list[float]:
        """Return the fusion encoder's probability that each moment matches the text.

        Only these clips are read from their videos.
        """
        probabilities, evaluate = [], self.task.config.evaluate
        for first in range(0, len(hits), evaluate.batch_size):
            video = torch.stack([self.clip(hit) for hit in hits[first:first + evaluate.batch_size]])
            with autocast(self.model.device, evaluate.precision):
                match = self.model.match(normalise(video.to(self.model.device)), [text])
            probabilities += match.float().cpu().tolist()
        return probabilities

    def clip(self, hit: Hit) -> torch.Tensor:
        """Return a moment's frames, uint8 (T, 3, size, size).

        Raises:
            FileNotFoundError: The video has been removed since it was indexed.
        """
        if not hit.path.is_file():
            raise FileNotFoundError(f"{hit.path} is gone since it was indexed; the same command, or cell, brings the "
                                    "index up to date")
        return self.task.clip(hit.path, hit.start, hit.stop)
