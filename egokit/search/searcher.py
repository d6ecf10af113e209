"""Queries against the index of a run.

The dual encoder finds the nearest clips; the fusion encoder then reads the best of them again.
"""
from __future__ import annotations

import collections
import dataclasses
import functools
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
from egokit.search import index_task, moments
from egokit.search.examples import read_example
from egokit.search.hits import Answer, Hit, timecode
from egokit.tasks.windows import reason
from egokit.toy.build import STAMP

RERANK = "re-ranking (rerank)"
NOT_THE_TOYS = ("the toy's model ranks videos that are not the toy's: expect no right hits. For your own videos take "
                "the released weights: egokit search FOLDER QUERY --params search --site local; in a notebook "
                'params = "search" and your site (docs/search.md)')


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

    def __call__(self, text: str = "", top: int = 10, rerank: int = 0, like=None, weight: float = 0.5,
                 merge: bool = True) -> Answer:
        """Return the moments that answer a query best: a text, an example, or both.

        Args:
            text: The query, written like a narration.
            top: How many moments to return.
            rerank: How many of the best by cosine the fusion encoder orders anew by match; may exceed `top`. It reads
                the text alone.
            like: An example, see `examples.read_example`: 'VIDEO@1:23', a clip's or picture's file, a hit, or frames.
                Its own moment is left out.
            weight: The example's share beside a text, from 0 to 1, see `moments.combine`.
            merge: Whether clips of one video that overlap or adjoin become one moment, see `moments`. Without, a hit is
                one clip of the index, and clips that overlap a better one are dropped.

        Returns:
            An Answer, which is a list. Of the re-ranked moments, those that can't be read come after the others, by
            cosine; their match is None, and the answer's notes say why.

        Raises:
            ValueError: There is neither text nor example, or one that can't be taken; or `rerank` is asked without a
                text, or of a model without fusion encoder, see `reranks`.
            VideoError: The example can't be read.
        """
        if rerank:
            self.model.require_fusion(RERANK)
        text = text.strip() and text
        if not text and like is None:
            raise ValueError("an empty query: write what is done, for example '#C C opens the box', or give an example "
                             "(like), for example a video's name and time, 'VIDEO@1:23'")
        if rerank and not text:
            raise ConfigError(f"{RERANK} without a text: the fusion encoder reads the clips again with a text; write "
                              "one beside the example, or leave re-ranking out")
        if not 0 <= weight <= 1:
            raise ConfigError(f"weight={weight!r}: expected the example's share beside the text, from 0 to 1")
        query_E, own, notes = self._query(text, like, weight)
        hits = self.moments(query_E, max(top, rerank), merge, own)
        hits = self.rerank(text, hits[:rerank]) + hits[rerank:]
        errors = collections.Counter((hit.video, hit.error) for hit in hits if hit.error)
        return Answer(hits[:top], [*notes, *self.notes, *(
            f"not re-ranked: {count} clip{'s' * (count > 1)} of {video}: {error}"
            for (video, error), count in errors.items())])

    @torch.no_grad()
    def _query(self, text: str, like, weight: float) -> tuple[np.ndarray, moments.Own | None, list[str]]:
        """Return a query's vector (E,), the example's own moment, and lines that say what was asked."""
        if text:
            with autocast(self.model.device, self.task.config.evaluate.precision):
                text_E = self.model.embed_text(self.tokens(text)).float().cpu().numpy()[0]
        if like is None:
            return text_E, None, []
        name, example_E, own = read_example(self, like)
        left_out = " (left out of the hits)" if own else ""
        if not text:
            return example_E, own, [f"like {name}{left_out}"]
        return (moments.combine(text_E, example_E, self.sample_NE, weight), own,
                [f"like {name}{left_out}, which counts {100 * weight:.0f} %, the text {100 - 100 * weight:.0f} %"])

    @functools.cached_property
    def sample_NE(self) -> np.ndarray:
        """Unit vectors of some clips, which stand for the whole index."""
        return moments.sample(self.vectors)

    def reranks(self, count: int) -> int:
        """Return how many moments can be re-ranked: `count`, or 0 of a model without fusion encoder, and print why."""
        if self.model.fuses:
            return count
        print(f"not re-ranked: {self.model.family} has no fusion encoder; its hits are ordered by cosine")
        return 0

    def moments(self, query_E: np.ndarray, count: int, merge: bool = True, own: moments.Own | None = None
                ) -> list[Hit]:
        """Return the best moments for a query's vector, see `moments.find_moments`."""
        hits = []
        for file, start, stop, cosine, best in moments.find_moments(
                self.vectors, query_E, count, self.sample_NE if merge else None, own):
            line = self.manifest["videos"][file]
            damaged = any(begin < stop and end > start for begin, end in line.get("damaged", {}).get("times", ()))
            hits.append(Hit(printable(line["video"]), start, stop, cosine, None, self.folder / line["video"], damaged,
                            best=None if best == (start, stop) else best))
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
        """Return the frames of a hit's best clip, uint8 (T, 3, size, size), as the index was made from.

        Raises:
            FileNotFoundError: The video has been removed since it was indexed.
        """
        if not hit.path.is_file():
            raise FileNotFoundError(f"{hit.path} is gone since it was indexed; the same command, or cell, brings the "
                                    "index up to date")
        return self.task.clip(hit.path, *hit.scored)
