"""Segments of time: overlaps, suppression of neighbours, voting.

Segments are float64 (n, 2), start and stop in one unit of time; scores are (n,). Equal scores keep the order in which
they are given.

Source: EgoVLPv2's EgoMQ (NMS, soft-NMS over all classes); ActionFormer (arXiv 2202.07925) for the rest.
"""
import numpy as np

ORIGINAL_SIGMA = 0.46  # of EgoMQ's soft-NMS over all classes


def as_segments(values) -> np.ndarray:
    """Return segments as float64 (n, 2); an empty list is (0, 2)."""
    return np.asarray(values, dtype=np.float64).reshape(-1, 2)


def _parts(first_A2, second_B2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the segments, shaped to be compared in pairs, and the length (A, B) of what two have in common."""
    first, second = as_segments(first_A2)[:, None, :], as_segments(second_B2)[None, :, :]
    shared = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    return first, second, np.maximum(shared, 0)


def _ratio(shared_AB: np.ndarray, union_AB: np.ndarray) -> np.ndarray:
    """Return shared / union; two empty segments, whose union is 0, overlap by 0."""
    return np.divide(shared_AB, union_AB, out=np.zeros_like(shared_AB), where=union_AB > 0)


def iou(first_A2, second_B2) -> np.ndarray:
    """Return the IoU (A, B) of every pair of segments; 0 where both are empty."""
    first, second, shared = _parts(first_A2, second_B2)
    lengths = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0])
    return _ratio(shared, lengths - shared)


def hull_iou(first_A2, second_B2) -> np.ndarray:
    """Return the IoU (A, B) of every pair, with the stretch that holds both segments as their union.

    It equals `iou` where two segments meet, and is 0 where they don't.
    """
    first, second, shared = _parts(first_A2, second_B2)
    return _ratio(shared, np.maximum(first[..., 1], second[..., 1]) - np.minimum(first[..., 0], second[..., 0]))


def nms(segments, scores, threshold: float) -> np.ndarray:
    """Suppress segments that overlap one of a higher score.

    Args:
        threshold: a segment whose IoU with a kept one is above it is dropped.

    Returns:
        The indices of those kept, by falling score.
    """
    segments, order, kept = as_segments(segments), np.argsort(-np.asarray(scores), kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[iou(segments[best], segments[order])[0] <= threshold]
    return np.array(kept, dtype=np.int64)


def _decay(segments, scores, sigma: float, least: float, keep: int, classes=None) -> tuple[np.ndarray, np.ndarray]:
    """Take the highest score again and again; each lowers the scores of what it overlaps by exp(-IoU² / sigma).

    Scores only fall, so what is taken is sorted, and per class it is the same as one loop for each class.

    Args:
        least: the loop ends when the highest score is below it.
        keep: the most segments to take.
        classes: (n,) the class of each; segments of two classes leave each other alone. None: all are of one class.

    Returns:
        The indices of those taken, by falling score, and their lowered scores.
    """
    segments, left = as_segments(segments), np.array(scores, dtype=np.float64)
    classes = None if classes is None else np.asarray(classes)
    order, taken = [], []
    while len(order) < min(keep, len(left)):
        best = int(np.argmax(left))
        if left[best] < least or left[best] == -np.inf:
            break
        order.append(best)
        taken.append(left[best])
        overlap = iou(segments[best], segments)[0]
        if classes is not None:
            overlap[classes != classes[best]] = 0
        left *= np.exp(-overlap ** 2 / sigma)
        left[order] = -np.inf
    return np.array(order, dtype=np.int64), np.array(taken, dtype=np.float64)


def soft_nms_all(segments, scores, keep: int = 200, sigma: float = ORIGINAL_SIGMA) -> tuple[np.ndarray, np.ndarray]:
    """Lower the scores of overlapping segments by EgoMQ's original rule: over all classes together.

    As in the original, the last segment that is left is never given, nor is one whose score is 0.

    Returns:
        The indices of those given, by falling score, and their lowered scores.
    """
    return _decay(segments, scores, sigma, np.nextafter(0, 1), min(keep, len(as_segments(segments)) - 1))


def soft_nms(segments, scores, sigma: float, least_score: float, keep: int, classes=None) \
        -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower the scores of overlapping segments by a Gaussian of their IoU.

    Args:
        least_score: segments whose score is or falls below it are dropped.
        keep: the most segments to return.
        classes: (n,) the class of each, for a suppression per class; None: all together.

    Returns:
        segments (k, 2), scores (k,) and classes (k,), by falling score; classes are 0 if none were given.
    """
    order, lowered = _decay(segments, scores, sigma, least_score, keep, classes)
    classes = np.zeros(len(as_segments(segments)), dtype=np.int64) if classes is None else np.asarray(classes)
    return as_segments(segments)[order], lowered, classes[order]


def vote(kept, raw_segments, raw_scores, least_iou: float) -> np.ndarray:
    """Return each kept segment (k, 2) as the mean of all raw ones with at least this IoU, weighted by score · IoU.

    A segment that no raw one with a weight overlaps enough stays as it is.
    """
    kept, raw = as_segments(kept), as_segments(raw_segments)
    overlap = iou(kept, raw)
    weights = np.where(overlap >= least_iou, overlap, 0) * np.asarray(raw_scores, dtype=np.float64)
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total > 0, weights @ raw / np.where(total > 0, total, 1), kept)
