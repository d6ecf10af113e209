"""A file of QFVS results: a score for each shot, or the chosen shots, of every query. Read, and scored.

{"P01": {"Book_Street": {"scores": [0.1, …]}, "Book_Sun": {"shots": [4, 17, …]}, …}, …}: one score a shot, or the
numbers of the chosen shots from 1, as in the annotations.
"""
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from egokit.config.build import did_you_mean
from egokit.config.json_file import HUGE
from egokit.data.annotation_json import read_document
from egokit.tasks.qfvs.annotations import Video
from egokit.tasks.qfvs.matching import Score, best_shots, budget, summary_score

SHAPE = 'expected {"P01": {"Book_Street": {"scores": [one a shot]} or {"shots": [numbers from 1]}, …}, …}'
Chosen = dict[str, dict[str, np.ndarray]]


def read_results(path: Path, videos: Mapping[str, Video], share: float) -> Chosen:
    """Read a file of results, and choose the best-scored shots where it has scores.

    Args:
        path: the file; see the module.
        videos: the annotations, in which every video and query of the file must be.
        share: of a video's shots, how many scores choose.

    Returns:
        {video: {query: (n,) shots from 0, rising}}.

    Raises:
        ValueError: the file is damaged, or names an unknown video or query; the message says where.
    """
    document = read_document(path, f"write it anew, {SHAPE}")
    if not isinstance(document, dict) or not document or not all(isinstance(of, dict) for of in document.values()):
        raise ValueError(f"{path}: {SHAPE}, found {document!r:.80}")
    chosen: Chosen = {}
    for name, queries in document.items():
        if name not in videos:
            raise ValueError(f"{path}: video {name!r:.80} is not in the annotations; {did_you_mean(name, videos)}")
        video = videos[name]
        for query, entry in queries.items():
            try:
                if query not in video.queries:
                    raise ValueError(f"it is not in the annotations; {did_you_mean(query, video.queries)}")
                chosen.setdefault(name, {})[query] = _chosen(entry, len(video.tags), share)
            except ValueError as error:
                raise ValueError(f"{path}, video {name!r:.80}, query {query!r:.80}: {error}") from None
    if not chosen:
        raise ValueError(f"{path}: it has no query; {SHAPE}")
    return chosen


def _chosen(entry, shots: int, share: float) -> np.ndarray:
    """Return the shots that one query's entry chooses."""
    if not isinstance(entry, dict) or len(entry.keys() & {"scores", "shots"}) != 1:
        raise ValueError(f'{entry!r:.80}; expected either {{"scores": […]}} or {{"shots": […]}}')
    key, = entry.keys() & {"scores", "shots"}
    values = entry[key]
    if not isinstance(values, list):
        raise ValueError(f"{key!r} is {values!r:.80}; expected a list of numbers")
    whole = key == "shots"
    for place, value in enumerate(values, 1):
        number = type(value) is int or (not whole and type(value) is float)
        if not number or not (1 <= value <= shots if whole else abs(value) < HUGE):
            expected = f"the number of a shot, 1 to {shots}" if whole else "a number"
            raise ValueError(f"{key!r}, place {place}: {value!r:.40}; expected {expected}")
    if whole:
        if len(set(values)) < len(values):
            twice = next(value for place, value in enumerate(values) if value in values[:place])
            raise ValueError(f"'shots' names shot {twice} twice; leave one of the two out")
        return np.array(sorted(values), dtype=np.int64) - 1
    if len(values) != shots:
        raise ValueError(f"'scores' has {len(values)} numbers; expected {shots}, one a shot")
    return best_shots(np.array(values, dtype=np.float64), share)


def mean_score(scores: list[Score]) -> Score:
    """Return the mean of each number."""
    return Score(*np.mean(scores, axis=0).tolist()) if scores else Score(0.0, 0.0, 0.0)


def score_results(chosen: Mapping[str, Mapping[str, np.ndarray]], videos: Mapping[str, Video], share: float) -> dict:
    """Return the scores of results: the mean over a video's queries, then over the videos.

    A query without an answer counts as 0. "answered" has the original's way beside it: means over the queries that
    are answered, and over the videos that have one. In the original a query whose shots have no tag in common with the
    oracle's makes the mean NaN; here it counts as 0.

    Args:
        chosen: see `read_results`.
        videos: the annotations.
        share: for the number of shots that a summary should have.

    Returns:
        "videos" {name: Score} and "mean"; "answered", a dict of the same two; and the numbers of "queries", those
        "missing", those "without_shots", those with "nothing_common" (S = 0, but shots), and those with "more" shots
        than the budget.
    """
    every: dict[str, list[Score]] = {}
    answered: dict[str, list[Score]] = {}
    counts = dict.fromkeys(("queries", "missing", "without_shots", "nothing_common", "more"), 0)
    for name, video in videos.items():
        for query, (_, oracle, _) in video.queries.items():
            counts["queries"] += 1
            shots = chosen.get(name, {}).get(query)
            if shots is None:
                counts["missing"] += 1
                every.setdefault(name, []).append(Score(0.0, 0.0, 0.0))
                continue
            score = summary_score(video.tags, shots, oracle)
            every.setdefault(name, []).append(score)
            answered.setdefault(name, []).append(score)
            counts["without_shots"] += not len(shots)
            counts["nothing_common"] += bool(len(shots)) and not score.f1
            counts["more"] += len(shots) > budget(len(video.tags), share)

    def way(scores: dict[str, list[Score]]) -> dict:
        by_video = {name: mean_score(of) for name, of in scores.items()}
        return {"videos": by_video, "mean": mean_score(list(by_video.values()))}
    return way(every) | {"answered": way(answered)} | counts
