"""Scores to numbers: NumPy in, dict of floats out, all in %. No paths, no models, no data sets.

Sources: EgoMCQ (EgoVLP, arXiv 2206.01670); EK-100 multi-instance retrieval (arXiv 2006.13256, JPoSE's code); Charades;
dual softmax (CAMoE, arXiv 2109.04290).
"""
from __future__ import annotations

import concurrent.futures
import os

import numpy as np

BLOCK = 64  # queries ranked at once: their arrays stay in a core's cache


def finite(scores_QI, queries: str) -> np.ndarray:
    """The scores, or a ValueError: a sort puts NaN first or last, and nobody would see it. queries: what the rows are."""
    scores_QI = np.asarray(scores_QI)
    bad = np.flatnonzero(~np.isfinite(scores_QI).all(axis=1))
    if len(bad):
        raise ValueError(f"the scores of {len(bad)} {queries} are not finite, such as of number {bad[0]}: the model gave NaN or Inf")
    return scores_QI


def accuracy(scores_QC, answers_Q, chosen_Q=None) -> float:
    """Share of questions whose highest score is the answer's, among `chosen_Q` (all if absent); NaN if there are none."""
    right = np.argmax(finite(scores_QC, "questions"), axis=1) == np.asarray(answers_Q)
    if chosen_Q is not None:
        right = right[np.asarray(chosen_Q, dtype=bool)]
    return float(100 * right.mean()) if len(right) else float("nan")


def egomcq(scores_QC, answers_Q, types_Q) -> dict[str, float]:
    """{"inter", "intra"}: accuracy on inter-video (type 1) and intra-video (type 2) questions."""
    types_Q = np.asarray(types_Q)
    return {"inter": accuracy(scores_QC, answers_Q, types_Q == 1), "intra": accuracy(scores_QC, answers_Q, types_Q == 2)}


def _ranked(similarity_QI: np.ndarray, relevancy_QI: np.ndarray, discount_I: np.ndarray) -> list[tuple[float, float]]:
    """Per query (row): mAP's average precision and nDCG; NaN where nothing is relevant.

    Only relevant items need a rank, and a rank is a place among the sorted scores: scores alone are sorted several times as
    fast as indices, and little is reordered.
    """
    similarity_QI = np.ascontiguousarray(similarity_QI)
    sorted_QI, found = np.sort(similarity_QI, axis=1), []
    for scores, rising, relevancy in zip(similarity_QI, sorted_QI, np.ascontiguousarray(relevancy_QI), strict=True):
        relevant = np.flatnonzero(relevancy > 0)
        if not len(relevant):
            found.append((np.nan, np.nan))
            continue
        grades, own = relevancy[relevant].astype(np.float64), scores[relevant]
        places = np.searchsorted(rising, own, side="right")
        ranks = len(rising) - places  # of equal scores, the first has this rank, and the others follow in order of index
        for item in np.flatnonzero(rising[places - 2] == own) if len(rising) > 1 else ():
            ranks[item] += np.count_nonzero(scores[:relevant[item]] == own[item])
        ranked = np.zeros(len(rising))
        ranked[ranks] = grades
        hits = ranks[grades == 1]
        # The benchmark's code sums the GRADED relevancy up to each hit, not the number of hits: the published mAP is this one
        ap = (np.cumsum(ranked)[hits] / (hits + 1)).mean() if len(hits) else np.nan
        discount = discount_I[:len(relevant)]  # DCG over the first k, k = number of relevant items
        found.append((ap, (ranked[:len(relevant)] @ discount) / (np.sort(grades)[::-1] @ discount)))
    return found


def each_query(similarity_QI, relevancy_QI) -> tuple[np.ndarray, np.ndarray]:
    """(average precision, nDCG), each (Q,) in 0..1, of queries that rank items; NaN where nothing is relevant."""
    s, r = np.asarray(similarity_QI), np.asarray(relevancy_QI)
    discount = 1 / np.log2(np.arange(2, s.shape[1] + 2))
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # NumPy sorts without the interpreter's lock
        found = pool.map(lambda at: _ranked(s[at:at + BLOCK], r[at:at + BLOCK], discount), range(0, len(s), BLOCK))
        ap, ndcg = np.array([query for block in found for query in block]).T
    return ap, ndcg


def dual_softmax(similarity_QI, temperature: float) -> np.ndarray:
    """s * softmax(s / temperature) over the QUERIES of each item: an item that suits many queries counts less for each.

    It asks what the other queries of the test set are, which a plain ranking doesn't know.
    """
    s = np.asarray(similarity_QI, np.float64)  # float32's exp gives 0 for all but the best
    weight = np.exp((s - s.max(axis=0)) / temperature)
    return s * weight / weight.sum(axis=0)


def retrieval(similarity_VT, relevancy_VT, dual_softmax_temperature: float = 0) -> dict[str, float]:
    """Multi-instance retrieval: mAP (hits have relevancy exactly 1) and nDCG (all relevancy above 0), both ways, averages.

    Queries without a relevant item do not count. A temperature above 0 ranks by `dual_softmax`, for similarities from 0 on.
    """
    similarity_VT, relevancy_VT = np.asarray(similarity_VT), np.asarray(relevancy_VT)
    if similarity_VT.shape != relevancy_VT.shape:
        raise ValueError(f"similarity {similarity_VT.shape} and relevancy {relevancy_VT.shape} differ: both are clips x sentences")
    finite(similarity_VT, "clips")
    out = {}
    for name, s, r in (("V2T", similarity_VT, relevancy_VT), ("T2V", similarity_VT.T, relevancy_VT.T)):
        ap, ndcg = each_query(dual_softmax(s, dual_softmax_temperature) if dual_softmax_temperature else s, r)
        out[f"mAP_{name}"], out[f"nDCG_{name}"] = float(100 * np.nanmean(ap)), float(100 * np.nanmean(ndcg))
    for kind in ("mAP", "nDCG"):
        out[kind] = (out[f"{kind}_V2T"] + out[f"{kind}_T2V"]) / 2
    return out


def average_precision(scores_V, targets_V) -> float:
    """Average precision of one class: mean of the precision at each positive."""
    hits = np.asarray(targets_V)[np.argsort(-np.asarray(scores_V), kind="stable")] > 0
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()) if hits.any() else float("nan")


def each_class(scores_VK, targets_VK) -> np.ndarray:
    """(K,) average precision of Charades' classes in 0..1; NaN of one that doesn't occur. A video without any label scores -inf."""
    scores, targets = finite(scores_VK, "videos").astype(np.float64), np.asarray(targets_VK)
    scores[targets.sum(1) == 0] = -np.inf
    return np.array([average_precision(scores[:, k], targets[:, k]) for k in range(targets.shape[1])])


def charades(scores_VK, targets_VK) -> dict[str, float]:
    """{"mAP"}: mean average precision over the classes that occur."""
    return {"mAP": float(100 * np.nanmean(each_class(scores_VK, targets_VK)))}


def chance(metric, scores_shape, *arguments, draws: int = 20, seed: int = 0) -> dict[str, float]:
    """What random scores give on these very labels: the mean of `metric` over `draws` of them."""
    rng = np.random.default_rng(seed)
    results = [metric(rng.standard_normal(scores_shape), *arguments) for _ in range(draws)]
    return {key: float(np.mean([result[key] for result in results])) for key in results[0]}
