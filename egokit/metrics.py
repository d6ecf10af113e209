"""Scores to numbers: NumPy in, dict of floats out, all in %. No paths, no models, no data sets.

Sources: EgoMCQ (EgoVLP, arXiv 2206.01670); EK-100 multi-instance retrieval (arXiv 2006.13256, JPoSE's code); Charades.
"""
from __future__ import annotations

import numpy as np


def accuracy(scores_QC, answers_Q, chosen_Q=None) -> float:
    """Share of questions whose highest score is the answer's, among `chosen_Q` (all if absent); NaN if there are none."""
    right = np.argmax(np.asarray(scores_QC), axis=1) == np.asarray(answers_Q)
    if chosen_Q is not None:
        right = right[np.asarray(chosen_Q, dtype=bool)]
    return float(100 * right.mean()) if len(right) else float("nan")


def egomcq(scores_QC, answers_Q, types_Q) -> dict[str, float]:
    """{"inter", "intra"}: accuracy on inter-video (type 1) and intra-video (type 2) questions."""
    types_Q = np.asarray(types_Q)
    return {"inter": accuracy(scores_QC, answers_Q, types_Q == 1), "intra": accuracy(scores_QC, answers_Q, types_Q == 2)}


def _ranked(similarity_QI: np.ndarray, relevancy_QI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per query (row): mAP's average precision and nDCG."""
    order = np.argsort(-similarity_QI, axis=1, kind="stable")
    relevancy = np.take_along_axis(relevancy_QI, order, axis=1)
    ranks = np.arange(1, relevancy.shape[1] + 1)
    hit = relevancy == 1
    count = hit.sum(1)
    # The benchmark's code sums the GRADED relevancy up to each hit, not the number of hits: the published mAP is this one
    precision = np.cumsum(relevancy, axis=1) / ranks
    ap = np.where(count > 0, (precision * hit).sum(1) / np.maximum(count, 1), np.nan)

    discount = 1 / np.log2(ranks + 1)
    relevant = (relevancy > 0).sum(1)                        # DCG over the first k, k = number of relevant items
    first_k = ranks[None] <= relevant[:, None]
    dcg = (relevancy * discount * first_k).sum(1)
    ideal = (-np.sort(-relevancy, axis=1) * discount * first_k).sum(1)
    return ap, np.where(ideal > 0, dcg / np.where(ideal > 0, ideal, 1), np.nan)


def retrieval(similarity_VT, relevancy_VT) -> dict[str, float]:
    """Multi-instance retrieval: mAP (hits have relevancy exactly 1) and nDCG (all relevancy above 0), both ways, averages.

    Queries without a relevant item do not count.
    """
    similarity_VT, relevancy_VT = np.asarray(similarity_VT, np.float64), np.asarray(relevancy_VT, np.float64)
    if similarity_VT.shape != relevancy_VT.shape:
        raise ValueError(f"similarity {similarity_VT.shape} and relevancy {relevancy_VT.shape} differ: both are clips x sentences")
    out = {}
    for name, s, r in (("V2T", similarity_VT, relevancy_VT), ("T2V", similarity_VT.T, relevancy_VT.T)):
        ap, ndcg = _ranked(s, r)
        out[f"mAP_{name}"], out[f"nDCG_{name}"] = float(100 * np.nanmean(ap)), float(100 * np.nanmean(ndcg))
    for kind in ("mAP", "nDCG"):
        out[kind] = (out[f"{kind}_V2T"] + out[f"{kind}_T2V"]) / 2
    return out


def average_precision(scores_V, targets_V) -> float:
    """Average precision of one class: mean of the precision at each positive."""
    hits = np.asarray(targets_V)[np.argsort(-np.asarray(scores_V), kind="stable")] > 0
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()) if hits.any() else float("nan")


def charades(scores_VK, targets_VK) -> dict[str, float]:
    """{"mAP"}: mean average precision over the classes that occur. A video without any label scores -inf everywhere."""
    scores, targets = np.array(scores_VK, np.float64), np.asarray(targets_VK)
    scores[targets.sum(1) == 0] = -np.inf
    return {"mAP": float(100 * np.nanmean([average_precision(scores[:, k], targets[:, k]) for k in range(targets.shape[1])]))}


def chance(metric, scores_shape, *arguments, draws: int = 20, seed: int = 0) -> dict[str, float]:
    """What random scores give on these very labels: the mean of `metric` over `draws` of them."""
    rng = np.random.default_rng(seed)
    results = [metric(rng.standard_normal(scores_shape), *arguments) for _ in range(draws)]
    return {key: float(np.mean([result[key] for result in results])) for key in results[0]}
