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
from egokit.config.names import printable
from egokit.config.resolve import outputs_folder
from egokit.config.schema import Config
from egokit.data.video.open_video import VideoError
from egokit.jobs import launch
from egokit.model import sources, weights
from egokit.model.precision import autocast
from egokit.runs.run_folder import Run
from egokit.search import index_task
from egokit.tasks.windows import reason
from egokit.toy.build import STAMP

RERANK = "re-ranking (rerank)"
NOT_THE_TOYS = ("the toy's model ranks videos that are not the toy's: expect no right hits. For your own videos take "
                "the released weights: egokit search FOLDER QUERY --params search --site local; in a notebook "
                'params = "search" and your site (docs/search.md)')


@dataclasses.dataclass(frozen=True)
class Hit:
    """A moment of a video that answers a query."""
    video: str           # its path in the folder, for display
    start: float         # seconds on the player's clock
    stop: float
    cosine: float
    match: float | None  # the fusion encoder's matching probability; None where it was not used
    path: Path
    damaged: bool = False  # whether a damaged part of the video lies in it
    error: str = ""      # why the fusion encoder could not read it

    @property
    def time(self) -> str:
        """Start and stop for display: '1:02:03–1:02:07'."""
        return f"{timecode(self.start)}–{timecode(self.stop)}"

    @property
    def scores(self) -> str:
        """Its scores for display."""
        return f"cosine {self.cosine:.2f}" + ("" if self.match is None else f" · match {self.match:.2f}")

    @property
    def note(self) -> str:
        """Mark for display: 'can't be read', 'damaged part' or ''."""
        return "can't be read" if self.error else "damaged part" if self.damaged else ""


class Answer(list):
    """The hits of a query, best first.

    Attributes:
        notes: Lines to show with them: what was searched, whose model ranks, and which hits could not be re-ranked.
    """

    def __init__(self, hits: list[Hit], notes: list[str]):
        super().__init__(hits)
        self.notes = notes


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
        ConfigError: The index is missing, or was made with other settings or by an earlier egokit.
    """
    return Searcher(index_task.Search(config), run)


def model_notes(config: Config) -> tuple[str, str]:
    """Return whose model ranks, and a warning if it is the toy's and the videos are not, else ""."""
    init, folder = Path(config.init), index_task.video_folder(config).resolve()
    name = f"run:{init.relative_to(outputs_folder())}" if init.is_relative_to(outputs_folder()) else config.init
    name = name or "random weights"
    has_its_words = (Path(config.site.tokenizer).parent / STAMP).is_file()  # the toy's model has the toy's vocabulary
    if not has_its_words or (config.init and sources.describe(config.init).family != "egovlpv2"):
        return f"ranked by {name}", ""
    is_toy = any((parent / STAMP).is_file() for parent in (folder, *folder.parents))
    return f"ranked by {name} (the toy's model: it knows only the toy's videos)", "" if is_toy else NOT_THE_TOYS


class Searcher:
    """An open index with its model: searcher("#C C opens the box", top=10) -> best hits.

    Attributes:
        manifest: The index's manifest: settings, `videos` and `unreadable` ones.
        vectors: The VectorIndex.
        model: The model, on the GPU if there is one.
        notes: Lines that stand in every answer: what was searched, whose model ranks, and a warning where there is one.
    """

    def __init__(self, task: index_task.Search, run: Run):
        self.task, self.run, self.folder = task, run, index_task.video_folder(task.config)
        self.manifest = task.check_settings(run.path / "features")
        if not self.manifest.get("videos"):
            unreadable = self.manifest.get("unreadable")
            why = f"none of {len(unreadable)} can be read, such as {unreadable[0]['reason']}" if unreadable else \
                "egokit.search.submit(config, run).wait() makes it"
            raise ConfigError(f"{run.path} has no index of any video: {why}")
        if self.manifest.get("reading") != index_task.READING:  # the job that wrote it went on with an earlier egokit
            raise ConfigError(f"the index in {run.path} is by an earlier egokit: the same command, or "
                              "egokit.search.submit(config, run).wait(), once more brings it up to date")
        self.vectors = index_task.open_vectors(run.path / "features", self.manifest)
        self.model = weights.initial_model(task.config).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.notes = [self._contents(), *(note for note in model_notes(task.config) if note)]

    def _contents(self) -> str:
        videos, unreadable = self.manifest["videos"], len(self.manifest["unreadable"])
        hours, damaged = sum(line["seconds"] for line in videos) / 3600, sum("damaged" in line for line in videos)
        listed = f" (listed in {self.run.path / 'features/manifest.json'})" if damaged or unreadable else ""
        parts = f"; {damaged} {'have' if damaged > 1 else 'has'} damaged parts" if damaged else ""
        return (f"{len(self.vectors):,} clips of {len(videos):,} videos, {hours:.1f} hours; {unreadable} can't be read"
                f"{parts}{listed}")

    def __repr__(self) -> str:
        return f"<{'; '.join(self.notes[:2])}>"

    def problems(self) -> list[str]:
        """Return a line for each video that can't be read, and for each with damaged parts."""
        lines = [f"can't be read: {line['reason']}" for line in self.manifest["unreadable"]]
        for line in self.manifest["videos"]:
            if damage := line.get("damaged"):
                times = [f"{timecode(start)}–{timecode(stop)}" for start, stop in damage["times"]]
                more = f" and {len(times) - 5} more" if len(times) > 5 else ""
                share = f"{100 * damage['share']:.1f} %" if damage["share"] >= 0.0005 else "less than 0.1 %"
                lines.append(f"damaged: {printable(line['video'])}: {share}, {', '.join(times[:5])}{more}")
        return lines

    @torch.no_grad()
    def __call__(self, text: str, top: int = 10, rerank: int = 0) -> Answer:
        """Return the moments that answer a query best.

        Args:
            text: The query, written like a narration.
            top: How many moments to return.
            rerank: How many of the best by cosine the fusion encoder orders anew by match; may exceed `top`.

        Returns:
            An Answer, which is a list. Of the re-ranked moments, those that can't be read come after the others, by
            cosine; their match is None, and the answer's notes say why.

        Raises:
            ValueError: The query is empty; or `rerank` is asked of a model without fusion encoder, see `reranks`.
        """
        if rerank:
            self.model.require_fusion(RERANK)
        if not text.strip():
            raise ValueError("an empty query: write what is done, for example '#C C opens the box'")
        with autocast(self.model.device, self.task.config.evaluate.precision):
            query_1E = self.model.embed_text(self.tokens(text)).cpu().numpy()
        hits = self.moments(query_1E, max(top, rerank))
        hits = self.rerank(text, hits[:rerank]) + hits[rerank:]
        errors = collections.Counter((hit.video, hit.error) for hit in hits if hit.error)
        return Answer(hits[:top], [*self.notes, *(
            f"not re-ranked: {count} clip{'s' * (count > 1)} of {video}: {error}"
            for (video, error), count in errors.items())])

    def reranks(self, count: int) -> int:
        """Return how many moments can be re-ranked: `count`, or 0 of a model without fusion encoder, and print why."""
        if self.model.fuses:
            return count
        print(f"not re-ranked: {self.model.family} has no fusion encoder; its hits are ordered by cosine")
        return 0

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
                line = self.manifest["videos"][file]
                damaged = any(begin < stop and end > start for begin, end in line.get("damaged", {}).get("times", ()))
                hits.append(Hit(printable(line["video"]), start, stop, float(cosine), None,
                                self.folder / line["video"], damaged))
                nearer[file].append(hits[-1])
                if len(hits) == count:
                    break
        return hits

    def rerank(self, text: str, hits: list[Hit]) -> list[Hit]:
        """Return the hits by the fusion encoder's probability that each matches the text.

        Only these clips are read from their videos. Those that can't be read follow in their order, with the error.
        """
        ranked, failed, evaluate, tokens = [], [], self.task.config.evaluate, self.tokens(text)
        for first in range(0, len(hits), evaluate.batch_size):
            read = []
            for hit in hits[first:first + evaluate.batch_size]:
                try:
                    read.append((hit, self.clip(hit)))
                except (VideoError, OSError) as error:
                    failed.append(dataclasses.replace(hit, error=printable(reason(error))))
            if read:
                video = torch.stack([clip for _, clip in read])
                with autocast(self.model.device, evaluate.precision):
                    match = self.model.match(self.model.normalise(video.to(self.model.device)), tokens).cpu().tolist()
                ranked += [dataclasses.replace(hit, match=value) for (hit, _), value in zip(read, match, strict=True)]
        return sorted(ranked, key=lambda hit: -hit.match) + failed

    def tokens(self, text: str) -> dict[str, torch.Tensor]:
        """Return a query's tokens, each (1, …), on a GPU of few lengths; a longer query is cut."""
        return self.model.tokens([text], self.model.max_tokens)

    def clip(self, hit: Hit) -> torch.Tensor:
        """Return a moment's frames, uint8 (T, 3, size, size).

        Raises:
            FileNotFoundError: The video has been removed since it was indexed.
        """
        if not hit.path.is_file():
            raise FileNotFoundError(f"{hit.path} is gone since it was indexed; the same command, or cell, brings the "
                                    "index up to date")
        return self.task.clip(hit.path, hit.start, hit.stop)
