"""QFVS's metric: shots of two summaries are paired so that the sum of their tags' overlaps is largest.

Source: Sharghi et al. 2017; EgoVLPv2's QFVS/semantic_evaluation.py. The sum is unique, whatever finds the pairs.
"""
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """Precision, recall and their harmonic mean, as shares of 1."""
    precision: float
    recall: float
    f1: float


def overlaps(first_NC: np.ndarray, second_MC: np.ndarray) -> np.ndarray:
    """Return the IoU of the concepts of every pair of shots; 0 where neither has any.

    Args:
        first_NC, second_MC: bool, shots and concepts.

    Returns:
        (N, M) float64.
    """
    first, second = first_NC.astype(np.float64), second_MC.astype(np.float64)
    common = first @ second.T
    union = first.sum(axis=1)[:, None] + second.sum(axis=1) - common
    return common / np.maximum(union, 1)


def match(weights_NM: np.ndarray) -> np.ndarray:
    """Return the pairing of rows and columns whose sum of weights is largest: each row and column at most once.

    The Hungarian algorithm, by shortest augmenting paths: prices of rows and columns start at the largest weight of
    each row, rows take a free column that costs nothing beyond the prices, and every other row then gets a column
    along the path that raises the prices least.

    Args:
        weights_NM: finite numbers of any sign. All rows are paired if there are no more than columns, else all columns.

    Returns:
        (pairs, 2) int64, rows and columns, in the order of the rows.
    """
    weights = np.asarray(weights_NM, dtype=np.float64)
    if weights.shape[0] > weights.shape[1]:
        pairs = match(weights.T)[:, ::-1]
        return pairs[np.argsort(pairs[:, 0], kind="stable")]
    rows, columns = weights.shape
    if not rows:
        return np.zeros((0, 2), dtype=np.int64)
    costs = weights.max() - weights
    row_prices, column_prices = costs.min(axis=1), np.zeros(columns)
    row_of, column_of = np.full(columns, -1), np.full(rows, -1)
    for row, free in enumerate(costs == row_prices[:, None]):
        candidates = np.flatnonzero(free & (row_of < 0))
        if len(candidates):
            row_of[candidates[0]], column_of[row] = row, candidates[0]
    for start in np.flatnonzero(column_of < 0):
        distances, before = np.full(columns, np.inf), np.full(columns, -1)  # `before`: the row that each is reached by
        reached, row, distance, path = np.zeros(columns, dtype=bool), start, 0.0, []
        while row >= 0:
            through = distance + costs[row] - row_prices[row] - column_prices
            closer = ~reached & (through < distances)
            distances[closer], before[closer] = through[closer], row
            open_distances = np.where(reached, np.inf, distances)
            distance = open_distances.min()
            nearest = np.flatnonzero(open_distances == distance)
            unpaired = nearest[row_of[nearest] < 0]  # of equally near columns, one that ends the path
            column = unpaired[0] if len(unpaired) else nearest[0]
            reached[column] = True
            path.append(column)
            row = row_of[column]
        row_prices[start] += distance
        for passed in path[:-1]:
            row_prices[row_of[passed]] += distance - distances[passed]
            column_prices[passed] -= distance - distances[passed]
        while True:
            row = before[column]
            row_of[column], column_of[row], column = row, column, column_of[row]
            if row == start:
                break
    return np.stack([np.arange(rows), column_of], axis=1)


def summary_score(tags: np.ndarray, chosen: np.ndarray, truth: np.ndarray) -> Score:
    """Return how well chosen shots match the shots of a summary.

    S is the largest sum of overlaps; precision is S / chosen, recall S / truth. Where S is 0, F1 is 0, too; the
    original gives NaN there. So do summaries without a shot.

    Args:
        tags: (shots, concepts) bool, of the whole video.
        chosen, truth: numbers of shots, from 0.
    """
    chosen, truth = np.asarray(chosen, dtype=np.int64), np.asarray(truth, dtype=np.int64)
    if not len(chosen) or not len(truth):
        return Score(0.0, 0.0, 0.0)
    tags = np.asarray(tags, dtype=bool)
    weights = overlaps(tags[chosen], tags[truth])
    pairs = match(weights)
    total = float(weights[pairs[:, 0], pairs[:, 1]].sum())
    if not total:
        return Score(0.0, 0.0, 0.0)
    precision, recall = total / len(chosen), total / len(truth)
    return Score(precision, recall, 2 * precision * recall / (precision + recall))


def budget(shots: int, share: float) -> int:
    """Return how many shots a summary has: the share of all, rounded down."""
    return int(share * shots)


def best_shots(scores: np.ndarray, share: float) -> np.ndarray:
    """Return the shots, from 0 and rising, that have the largest scores; of equal ones the earlier.

    Args:
        scores: (shots,) one a shot.
        share: of all shots.
    """
    return np.sort(np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[:budget(len(scores), share)])
