"""What QFVS's F1 is worth: the scores of shots that nobody chose for the query, of people, and of the oracle itself.

Every row is computed from the annotations that the result is scored with. Most read no video, and some no query.
"""
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from egokit.tasks.qfvs.annotations import Query, Video
from egokit.tasks.qfvs.matching import Score, budget, summary_score
from egokit.tasks.qfvs.results import mean_score

DRAWS = 10  # of random shots, and of other queries, for each query
Summaries = Iterator[np.ndarray]


def random_numbers(video: str, query: str) -> np.random.Generator:
    """Return random numbers of a query, which are the same whatever else is scored."""
    return np.random.default_rng(zlib.crc32(f"{video}/{query}".encode()))


def spread(shots: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the shots, evenly spaced; all of them if there are no more."""
    if count >= len(shots):
        return shots
    return shots[((np.arange(count) + 0.5) * len(shots) / max(count, 1)).astype(np.int64)]


def drawn(name: str, video: Video, query: str, count: int) -> Summaries:
    """Yield DRAWS summaries of random shots."""
    numbers = random_numbers(name, query)
    for _ in range(DRAWS):
        yield numbers.choice(len(video.tags), count, replace=False)


def evenly_spaced(name: str, video: Video, query: str, count: int) -> Summaries:
    """Yield the same shots for every query: evenly spaced ones."""
    yield spread(np.arange(len(video.tags)), count)


def tagged(name: str, video: Video, query: str, count: int) -> Summaries:
    """Yield shots with both concepts of the query, then with one, then others; evenly spaced among equals."""
    carried = video.tags[:, list(video.queries[query].concepts)].sum(axis=1)
    chosen = np.zeros(0, dtype=np.int64)
    for number in (2, 1, 0):
        chosen = np.concatenate([chosen, spread(np.flatnonzero(carried == number), count - len(chosen))])
    yield chosen


def most_common(name: str, video: Video, query: str, count: int) -> Summaries:
    """Yield the same shots for every query: those that most oracles of the video have. It peeks at the truth."""
    votes = np.zeros(len(video.tags), dtype=np.int64)
    for other in video.queries.values():
        votes[other.oracle] += 1
    yield np.argsort(-votes, kind="stable")[:count]


def of_another_query(name: str, video: Video, query: str, count: int) -> Summaries:
    """Yield the oracles of DRAWS random other queries of the video."""
    others = [other for other in video.queries if other != query]
    for place in random_numbers(name, query).integers(len(others), size=DRAWS) if others else ():
        yield video.queries[others[place]].oracle


def of_people(name: str, video: Video, query: str, count: int) -> Summaries:
    """Yield the summary of each person."""
    yield from video.queries[query].users


def cut_oracle(name: str, video: Video, query: str, count: int) -> Summaries:
    """Yield the oracle's first shots, as many as a summary has."""
    yield video.queries[query].oracle[:count]


ROWS: dict[str, Callable[[str, Video, str, int], Summaries]] = {
    "random shots": drawn, "evenly spaced shots": evenly_spaced, "shots with the query's tags": tagged,
    "the same shots for all queries": most_common, "another query's oracle": of_another_query,
    "one person": of_people, "the oracle, cut to the budget": cut_oracle}


def scores(videos: Mapping[str, Video], share: float) -> dict[str, dict[str, Score]]:
    """Return the scores of every row: {row: {video: Score}}.

    Args:
        videos: the annotations.
        share: of a video's shots, for the rows that choose as many as a summary has.

    Returns:
        Each row's mean over draws and queries of a video. A row has no video in which none of its summaries is there:
        no person's summary, or no other query.
    """
    rows: dict[str, dict[str, Score]] = {title: {} for title in ROWS}
    for title, summaries in ROWS.items():
        for name, video in videos.items():
            count = budget(len(video.tags), share)
            of_queries = [_mean(summaries(name, video, query, count), video, asked)
                          for query, asked in video.queries.items()]
            if found := [score for score in of_queries if score is not None]:
                rows[title][name] = mean_score(found)
    return rows


def _mean(summaries: Summaries, video: Video, query: Query) -> Score | None:
    """Return the mean score of a query's summaries against its oracle; None if there are none."""
    found = [summary_score(video.tags, shots, query.oracle) for shots in summaries]
    return mean_score(found) if found else None
