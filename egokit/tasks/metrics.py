"""Metrics: from arrays of scores and labels to numbers in %.

They know no paths, models or data sets.
Shapes: Q queries x I items, Q questions x C choices, V clips x T texts, V videos x K classes.

Source: EgoMCQ (EgoVLP, arXiv 2206.01670); EK-100 multi-instance retrieval (arXiv 2006.13256, JPoSE's code);
Charades-Ego (arXiv 1804.09627); dual softmax (CAMoE, arXiv 2109.04290).
"""
import concurrent.futures
import os

import numpy as np

BLOCK = 64  # queries ranked at once, so that their arrays stay in a core's cache


def require_finite(scores_QI, rows: str) -> np.ndarray:
    """Return the scores; NaN or Inf is an error, because a sort would hide it.

    Args:
        rows: what the rows are, for the message: "questions", "clips".

    Raises:
        ValueError: some scores are NaN or Inf.
    """
    scores_QI = np.asarray(scores_QI)
    bad = np.flatnonzero(~np.isfinite(scores_QI).all(axis=1))
    if len(bad):
        raise ValueError(f"the scores of {len(bad)} {rows} are not finite, such as of number {bad[0]}: "
                         "the model gave NaN or Inf")
    return scores_QI


def accuracy(scores_QC, answers_Q, chosen_Q=None) -> float:
    """Return the share of questions, in %, whose answer has the highest score.

    Args:
        answers_Q: number of the right choice.
        chosen_Q: bool, the questions that count; None counts all.

    Returns:
        NaN if no question counts.
    """
    right = np.argmax(require_finite(scores_QC, "questions"), axis=1) == np.asarray(answers_Q)
    if chosen_Q is not None:
        right = right[np.asarray(chosen_Q, dtype=bool)]
    return float(100 * right.mean()) if len(right) else float("nan")


def egomcq(scores_QC, answers_Q, types_Q) -> dict[str, float]:
    """Return EgoMCQ's accuracies: "inter" (inter-video, type 1) and "intra" (type 2).

    Source: EgoVLP (arXiv 2206.01670), section 5.
    """
    types_Q = np.asarray(types_Q)
    return {"inter": accuracy(scores_QC, answers_Q, types_Q == 1),
            "intra": accuracy(scores_QC, answers_Q, types_Q == 2)}


def _rank(similarity_QI: np.ndarray, relevancy_QI: np.ndarray, discount_I: np.ndarray) -> list[tuple[float, float]]:
    """Return each query's average precision and nDCG; NaN if nothing is relevant to it.

    Only relevant items need a rank, which is their place among the sorted scores. To sort scores alone is several times
    as fast as to sort indices, and little is reordered.
    """
    similarity_QI = np.ascontiguousarray(similarity_QI)
    sorted_QI, results = np.sort(similarity_QI, axis=1), []
    for scores, ascending, relevancy in zip(similarity_QI, sorted_QI, np.ascontiguousarray(relevancy_QI), strict=True):
        relevant = np.flatnonzero(relevancy > 0)
        if not len(relevant):
            results.append((np.nan, np.nan))
            continue
        grades, own = relevancy[relevant].astype(np.float64), scores[relevant]
        places = np.searchsorted(ascending, own, side="right")
        # the first of equal scores has this rank, the others follow in the order of their index
        ranks = len(ascending) - places
        for item in np.flatnonzero(ascending[places - 2] == own) if len(ascending) > 1 else ():
            ranks[item] += np.count_nonzero(scores[:relevant[item]] == own[item])
        ranked = np.zeros(len(ascending))
        ranked[ranks] = grades
        hits = ranks[grades == 1]
        # the benchmark's code, and so the published mAP, sums the GRADED relevancy up to each hit, not the hits
        ap = (np.cumsum(ranked)[hits] / (hits + 1)).mean() if len(hits) else np.nan
        discount = discount_I[:len(relevant)]  # DCG over the first k, k = number of relevant items
        results.append((ap, (ranked[:len(relevant)] @ discount) / (np.sort(grades)[::-1] @ discount)))
    return results


def each_query(similarity_QI, relevancy_QI) -> tuple[np.ndarray, np.ndarray]:
    """Return the average precision and the nDCG of queries that rank items by similarity.

    Hits of the average precision have a relevancy of exactly 1. The nDCG of a query with k relevant items (relevancy
    above 0) counts the first k places, place p with weight 1 / log2(p + 1).

    Returns:
        Two arrays (Q,) in 0..1; NaN for a query without hits, or without relevant items.
    """
    s, r = np.asarray(similarity_QI), np.asarray(relevancy_QI)
    discount = 1 / np.log2(np.arange(2, s.shape[1] + 2))
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # NumPy sorts without the GIL
        blocks = pool.map(lambda at: _rank(s[at:at + BLOCK], r[at:at + BLOCK], discount), range(0, len(s), BLOCK))
        ap, ndcg = np.array([result for block in blocks for result in block]).T
    return ap, ndcg


def dual_softmax(similarity_QI, temperature: float) -> np.ndarray:
    """Return s * softmax(s / temperature), the softmax over the QUERIES of each item.

    So an item that suits many queries counts less for each of them. This uses the other queries of the test set, which
    a plain ranking does not know.

    Source: CAMoE (arXiv 2109.04290).
    """
    s = np.asarray(similarity_QI, np.float64)  # in float32, exp gives 0 for all but the best
    weight = np.exp((s - s.max(axis=0)) / temperature)
    return s * weight / weight.sum(axis=0)


def retrieval(similarity_VT, relevancy_VT, dual_softmax_temperature: float = 0) -> dict[str, float]:
    """Return the metrics of multi-instance retrieval, as in EK-100.

    Args:
        similarity_VT: clips x sentences; 0 or more with a dual softmax.
        relevancy_VT: of the same shape, in [0, 1].
        dual_softmax_temperature: above 0, rank by `dual_softmax`.

    Returns:
        "mAP" and "nDCG" in %, each as "_V2T", as "_T2V" and as the mean of both. Queries without a hit, or without a
        relevant item, do not count; see `each_query`.

    Source: EPIC-KITCHENS-100 (arXiv 2006.13256), section 4.5, and JPoSE's code.
    """
    similarity_VT, relevancy_VT = np.asarray(similarity_VT), np.asarray(relevancy_VT)
    if similarity_VT.shape != relevancy_VT.shape:
        raise ValueError(f"similarity {similarity_VT.shape} and relevancy {relevancy_VT.shape} differ: "
                         "both are clips x sentences")
    require_finite(similarity_VT, "clips")
    out = {name: float(100 * np.nanmean(each)) for name, each in _both_ways(
        similarity_VT, relevancy_VT, dual_softmax_temperature).items()}
    for kind in ("mAP", "nDCG"):
        out[kind] = (out[f"{kind}_V2T"] + out[f"{kind}_T2V"]) / 2
    return out


def _both_ways(similarity_VT: np.ndarray, relevancy_VT: np.ndarray, temperature: float) -> dict[str, np.ndarray]:
    """Return the average precisions and nDCGs of clips that rank sentences, "_V2T", and the other way, "_T2V"."""
    out = {}
    for name, s, r in (("V2T", similarity_VT, relevancy_VT), ("T2V", similarity_VT.T, relevancy_VT.T)):
        out[f"mAP_{name}"], out[f"nDCG_{name}"] = each_query(dual_softmax(s, temperature) if temperature else s, r)
    return out


def retrieval_per_query(similarity_VT, relevancy_VT,
                        dual_softmax_temperature: float = 0) -> dict[str, list[np.ndarray]]:
    """Return what each query contributes to the metrics of `retrieval`, in %; those that do not count are left out.

    Args:
        similarity_VT, relevancy_VT, dual_softmax_temperature: as for `retrieval`.

    Returns:
        {metric: groups}, as `Task.per_query` returns it: "mAP" has the group of clips and that of sentences.
    """
    require_finite(similarity_VT, "clips")
    each = {name: 100 * values[~np.isnan(values)] for name, values in _both_ways(
        np.asarray(similarity_VT), np.asarray(relevancy_VT), dual_softmax_temperature).items()}
    return {name: [values] for name, values in each.items()} | {
        kind: [each[f"{kind}_V2T"], each[f"{kind}_T2V"]] for kind in ("mAP", "nDCG")}


def average_precision(scores_V, targets_V) -> float:
    """Return one class's average precision, the mean precision at each positive, in 0..1."""
    hits = np.asarray(targets_V)[np.argsort(-np.asarray(scores_V), kind="stable")] > 0
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()) if hits.any() else float("nan")


def each_class(scores_VK, targets_VK) -> np.ndarray:
    """Return the average precision of each Charades class, (K,) in 0..1.

    It is NaN for a class that does not occur.
    As in the original code, a video without any label comes last: its scores are -inf.
    """
    scores, targets = require_finite(scores_VK, "videos").astype(np.float64), np.asarray(targets_VK)
    scores[targets.sum(1) == 0] = -np.inf
    return np.array([average_precision(scores[:, k], targets[:, k]) for k in range(targets.shape[1])])


def charades(scores_VK, targets_VK) -> dict[str, float]:
    """Return Charades' "mAP" in %: the mean average precision of the classes that occur."""
    return {"mAP": float(100 * np.nanmean(each_class(scores_VK, targets_VK)))}


def chance(metric, scores_shape, *arguments, draws: int = 20, seed: int = 0) -> dict[str, float]:
    """Return the metrics of random scores on the given labels: the mean of `draws` draws.

    Args:
        metric: called as metric(scores, *arguments).
        scores_shape: of the normally distributed scores.
    """
    rng = np.random.default_rng(seed)
    results = [metric(rng.standard_normal(scores_shape), *arguments) for _ in range(draws)]
    return {key: float(np.mean([result[key] for result in results])) for key in results[0]}


def cosine(a_BE: np.ndarray, b_KE: np.ndarray) -> np.ndarray:
    """Return the cosine of every row with every row: (B, E) x (K, E) -> (B, K)."""
    a_BE, b_KE = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8) for x in (a_BE, b_KE))
    return a_BE @ b_KE.T
