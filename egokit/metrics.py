"""Scores to numbers: NumPy in, dict of floats out, all in %. No paths, no models, no data sets.

Sources: EgoMCQ (EgoVLP, arXiv 2206.01670); EK-100 multi-instance retrieval (arXiv 2006.13256, JPoSE's code); Charades.
"""
from __future__ import annotations

import concurrent.futures
import os

import numpy as np

BLOCK = 64  # queries ranked at once: their arrays stay in a core's cache


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


def _order(scores_QI: np.ndarray) -> np.ndarray:
    """Items of each row from the highest score to the lowest, equal ones in order of index: a stable argsort of -scores.

    Scores that are float32 numbers, as cosines of a model's embeddings are, become one integer each with their index in the
    lower half: integers are sorted with SIMD instructions, several times as fast as an argsort.
    """
    single = scores_QI.astype(np.float32) + np.float32(0)  # -0 and 0 are equal
    if not np.array_equal(single, scores_QI):
        return np.argsort(-scores_QI, axis=1, kind="stable")
    bits = single.view(np.int32)
    keys = (~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).astype(np.int64) << 32  # falling scores are rising integers
    keys |= np.arange(scores_QI.shape[1])
    keys.sort(axis=1)
    return keys & 0xFFFFFFFF


def _ranked(similarity_QI: np.ndarray, relevancy_QI: np.ndarray, discount_I: np.ndarray) -> list[tuple[float, float]]:
    """Per query (row): mAP's average precision and nDCG; NaN where nothing is relevant."""
    relevancy_QI = np.ascontiguousarray(relevancy_QI, np.float64)
    ranked_QI = np.take_along_axis(relevancy_QI, _order(np.ascontiguousarray(similarity_QI)), axis=1)
    found = []
    for relevancy, ranked in zip(relevancy_QI, ranked_QI, strict=True):
        hits = np.flatnonzero(ranked == 1)
        # The benchmark's code sums the GRADED relevancy up to each hit, not the number of hits: the published mAP is this one
        ap = (np.cumsum(ranked)[hits] / (hits + 1)).mean() if len(hits) else np.nan
        ideal = -np.sort(-relevancy[relevancy > 0])
        discount = discount_I[:len(ideal)]  # DCG over the first k, k = number of relevant items
        found.append((ap, (ranked[:len(ideal)] @ discount) / (ideal @ discount) if len(ideal) else np.nan))
    return found


def retrieval(similarity_VT, relevancy_VT) -> dict[str, float]:
    """Multi-instance retrieval: mAP (hits have relevancy exactly 1) and nDCG (all relevancy above 0), both ways, averages.

    Queries without a relevant item do not count.
    """
    similarity_VT, relevancy_VT = np.asarray(similarity_VT), np.asarray(relevancy_VT)
    if similarity_VT.shape != relevancy_VT.shape:
        raise ValueError(f"similarity {similarity_VT.shape} and relevancy {relevancy_VT.shape} differ: both are clips x sentences")
    if not np.isfinite(similarity_VT).all():
        clips = np.flatnonzero(~np.isfinite(similarity_VT).all(axis=1))
        raise ValueError(f"the similarities of {len(clips)} clips are not finite, such as of clip {clips[0]}: the model gave NaN or Inf")
    out = {}
    for name, s, r in (("V2T", similarity_VT, relevancy_VT), ("T2V", similarity_VT.T, relevancy_VT.T)):
        discount = 1 / np.log2(np.arange(2, s.shape[1] + 2))
        blocks = range(0, len(s), BLOCK)
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # NumPy sorts without the interpreter's lock
            found = pool.map(lambda at, s=s, r=r, discount=discount: _ranked(s[at:at + BLOCK], r[at:at + BLOCK], discount), blocks)
            ap, ndcg = np.array([query for block in found for query in block]).T
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
