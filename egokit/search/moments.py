"""The best moments of an index: clips of one video that overlap or adjoin are merged.

A moment grows from its best clip: a clip that overlaps or adjoins it belongs to it if its cosine is at least half way
from the background, the mean cosine of the query with the index, to the best clip's. So a moment is as long as what is
searched lasts, however many moments are asked for.
"""
from __future__ import annotations

import collections
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from egokit.search.vector_index import VectorIndex, unit

SAMPLE = 1000     # clips of the index, evenly spaced, that stand for all of it
FIRST = 1000      # clips asked of the index at first; AGAIN times as many while there are too few moments
AGAIN = 8
TOUCHING = 2e-3   # seconds between clips that adjoin: their times are rounded to milliseconds
NO_SPREAD = 1e-4  # of cosines, at least: those of an index with a single clip don't differ


class Moment(NamedTuple):
    """A stretch of a video that answers a query."""
    file: int     # number of the video in the index
    start: float  # seconds on the player's clock
    stop: float
    cosine: float                # the best clip's
    best: tuple[float, float]    # start and stop of the best clip


class Own(NamedTuple):
    """The moment of an index that is itself the example of a search, and is left out of its hits."""
    file: int
    start: float
    stop: float


def sample(vectors: VectorIndex) -> np.ndarray:
    """Return the vectors (n, E) of at most SAMPLE clips, evenly spaced over the index."""
    return vectors.vectors(np.linspace(0, len(vectors) - 1, min(SAMPLE, len(vectors))).round().astype(np.int64))


def combine(text_E: np.ndarray, example_E: np.ndarray, sample_NE: np.ndarray, weight: float) -> np.ndarray:
    """Return the query (E,) whose cosines rank clips by a text and an example together.

    How far cosines spread is another matter for texts than for clips, and for each model. So each vector is divided by
    the standard deviation of its cosines with the index: with a weight of 0.5, both have the same say in any model. As
    the result is one vector, one search of the index answers it.

    Args:
        text_E: The text's vector, of any length but zero.
        example_E: The example's vector.
        sample_NE: Unit vectors of clips of the index.
        weight: The example's share, from 0 (the text alone) to 1 (the example alone).
    """
    parts = [share * vector_E / max(float((sample_NE @ vector_E).std()), NO_SPREAD)
             for share, vector_E in ((1 - weight, unit(text_E)), (weight, unit(example_E)))]
    return parts[0] + parts[1]


def find_moments(vectors: VectorIndex, query_E: np.ndarray, count: int, sample_NE: np.ndarray | None = None,
                 own: Own | None = None) -> list[Moment]:
    """Return the best moments of an index, best first.

    Args:
        vectors: The index; the clips of a file are sorted by their times.
        query_E: The query, of any length but zero.
        count: At most so many moments.
        sample_NE: Unit vectors of clips of the index, from which the background is computed. None merges nothing: each
            moment is one clip, and clips that overlap a better one of their video are dropped.
        own: What is left out: the clips that overlap it and, if moments are merged, the moment that grows from it.
    """
    query_E = unit(query_E)
    files: dict[int, np.ndarray] = {}  # opened once for all clips of a file

    def rows(file: int) -> np.ndarray:
        if file not in files:
            files[file] = vectors.rows(file)
        return files[file]
    background = None if sample_NE is None else float((sample_NE @ query_E).mean())
    without = own and _own_moment(rows(own.file), query_E, own, background)
    size, number_N = FIRST, np.empty(0)
    while True:
        before = len(number_N)
        cosine_QN, number_QN = vectors.search(query_E, size)
        number_N = number_QN[0]
        moments = _moments(vectors, rows, query_E, cosine_QN[0], number_N, count, background, own, without)
        if len(moments) == count or len(number_N) in (before, len(vectors)):
            return moments
        size *= AGAIN


def _moments(vectors: VectorIndex, rows: Callable[[int], np.ndarray], query_E: np.ndarray, cosine_N: np.ndarray,
             number_N: np.ndarray, count: int, background: float | None, own: Own | None,
             without: tuple[float, float] | None) -> list[Moment]:
    """Return the moments that grow from the clips `number_N`, the best first."""
    moments, spans = [], collections.defaultdict(list)
    apart = 0.0 if background is None else TOUCHING  # merged moments of a video don't even adjoin
    for cosine, number in zip(cosine_N.tolist(), number_N.tolist(), strict=True):
        if len(moments) == count:
            break
        file, at = vectors.locate(number)
        row, here = rows(file)[at], spans[file]
        barred = [without] if own and file == own.file else []
        start, stop = float(row["start"]), float(row["stop"])

        def is_free(start: float, stop: float, here=here, barred=barred) -> bool:
            return all(stop + apart <= b or start - apart >= e for b, e in here) and not any(
                stop > b and start < e for b, e in barred)
        if is_free(start, stop):
            best = (start, stop)
            if background is not None:
                start, stop = grow(rows(file), query_E, at, (background + cosine) / 2, is_free)
            here.append((start, stop))
            moments.append(Moment(file, start, stop, cosine, best))
    return moments


def grow(rows: np.ndarray, query_E: np.ndarray, at: int, least: float,
         is_free: Callable[[float, float], bool]) -> tuple[float, float]:
    """Return start and stop of the moment that grows from a clip.

    Args:
        rows: The clips of its video, sorted by their times.
        query_E: The query, of length 1.
        at: Row of the clip.
        least: Cosine from which on a clip belongs to the moment that it overlaps or adjoins.
        is_free: Whether nothing else has a stretch (start, stop) of the video.
    """
    start, stop = float(rows["start"][at]), float(rows["stop"][at])
    for step in (-1, 1):
        i = at + step
        while 0 <= i < len(rows):
            begin, end = float(rows["start"][i]), float(rows["stop"][i])
            if begin > stop + TOUCHING or end < start - TOUCHING:
                break
            if rows["vector"][i].astype(np.float32) @ query_E >= least and is_free(begin, end):
                start, stop = min(start, begin), max(stop, end)
            i += step
    return start, stop


def _own_moment(rows: np.ndarray, query_E: np.ndarray, own: Own, background: float | None) -> tuple[float, float]:
    """Return what is left out for an example's own moment: that moment and, merged, what grows from its best clip."""
    at_N = np.flatnonzero((rows["start"] < own.stop) & (rows["stop"] > own.start))
    if background is None or not len(at_N):
        return own.start, own.stop
    cosine_N = rows["vector"][at_N].astype(np.float32) @ query_E
    start, stop = grow(rows, query_E, int(at_N[cosine_N.argmax()]), (background + cosine_N.max()) / 2,
                       lambda start, stop: True)
    return min(start, own.start), max(stop, own.stop)
