"""EgoMQ's metrics: detection mAP and recall.

As in the original, detections of clips without a moment, or outside the ground truth, are wrong ones of their class;
retrievals of these, and predictions of classes outside the ground truth, don't count. `coverage` counts them all.

Source: EgoVLPv2's EgoMQ, eval_detection.py (ActivityNet's) and get_retrieval_performance.py.
"""
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from egokit.tasks.moments import segments as overlaps
from egokit.tasks.moments.mq_annotations import MQClip
from egokit.tasks.moments.mq_results import Rows

TIOUS = (0.1, 0.2, 0.3, 0.4, 0.5)
RECALL_TIOUS = (0.3, 0.5, 0.7)
KS = (1, 2, 3, 4, 5)


def _truth(clips: Mapping[str, MQClip]) -> dict[str, dict[str, np.ndarray]]:
    """Return class -> clip_uid -> moments (m, 2)."""
    truth: dict[str, dict[str, list]] = {}
    for uid, clip in clips.items():
        for moment in clip.moments:
            truth.setdefault(moment.label, {}).setdefault(uid, []).append((moment.start, moment.stop))
    return {label: {uid: overlaps.as_segments(moments) for uid, moments in of_clip.items()}
            for label, of_clip in truth.items()}


def mean_average_precision(results: Mapping[str, Rows], clips: Mapping[str, MQClip],
                           classes: Iterable[str] | None = None, tious: Sequence[float] = TIOUS) -> dict:
    """Return the mean average precision of detections.

    For each class, all clips together and by falling score, a prediction is right if a moment of its clip that no
    other has taken has this IoU or more; moments are tried by falling IoU. Equal scores keep the order of clips
    and rows (in the original it is undefined). A class without predictions has an AP of 0.

    Args:
        results: clip_uid -> detections.
        clips: the ground truth.
        classes: None: those that occur in the ground truth.
        tious: the IoUs that are asked for.

    Returns:
        "classes" (C names), "ap" float64 (C, tious), "map" (tious,) and "average_map", as shares of 1.

    Raises:
        ValueError: there is no class.
    """
    truth = _truth(clips)
    classes = sorted(truth) if classes is None else list(classes)
    if not classes:
        raise ValueError("there are no moments to be found; expected a split with annotations")
    predicted = {label: [] for label in classes}
    for uid, rows in results.items():
        for label in predicted.keys() & set(rows.labels):
            predicted[label].append((uid, rows.take(np.flatnonzero(rows.labels == label))))
    ap = np.array([_average_precision(predicted[label], truth.get(label, {}), tious) for label in classes])
    return {"classes": classes, "ap": ap, "map": ap.mean(axis=0), "average_map": float(ap.mean())}


def _average_precision(predicted: list[tuple[str, Rows]], truth: dict[str, np.ndarray], tious) -> np.ndarray:
    """Return one class's AP (tious,): the area under the interpolated precision (VOC 2011).

    Args:
        predicted: (clip_uid, rows) of the clips with predictions of this class.
        truth: clip_uid -> moments (m, 2).
    """
    total = sum(map(len, truth.values()))
    if not (predicted and total):
        return np.zeros(len(tious))
    right = np.concatenate([_right(rows, truth.get(uid), tious) for uid, rows in predicted])
    order = np.argsort(-np.concatenate([rows.scores for _, rows in predicted]), kind="stable")
    found = np.cumsum(right[order], axis=0)
    precision = found / np.arange(1, len(found) + 1)[:, None]
    best_beyond = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (np.diff(found, axis=0, prepend=0) * best_beyond).sum(axis=0) / total


def _right(rows: Rows, moments: np.ndarray | None, tious) -> np.ndarray:
    """Return which of a clip's predictions of one class are right: bool (n, tious)."""
    right = np.zeros((len(rows.scores), len(tious)), dtype=bool)
    if moments is None:
        return right
    overlap = overlaps.iou(rows.segments, moments)
    order = np.argsort(-overlap, axis=1, kind="stable")
    falling = np.argsort(-rows.scores, kind="stable")
    for column, tiou in enumerate(tious):
        taken = np.zeros(len(moments), dtype=bool)
        for row in falling[overlap[falling].max(axis=1) >= tiou]:
            free = [moment for moment in order[row] if overlap[row, moment] >= tiou and not taken[moment]]
            if free:
                taken[free[0]] = right[row, column] = True
    return right


def recall(retrievals: Mapping[str, Rows], clips: Mapping[str, MQClip], ks: Sequence[int] = KS,
           tious: Sequence[float] = RECALL_TIOUS) -> np.ndarray:
    """Return the share (tious, ks) of all moments that are found: the recall at k×.

    A moment of a class with m moments in its clip is found if one of the first k·m rows of the class, in the file's
    order, has more than this IoU with it. A clip without an entry finds nothing (the original stops there).

    Raises:
        ValueError: there are no moments.
    """
    found = []
    for label, of_clip in _truth(clips).items():
        for uid, moments in of_clip.items():
            rows = retrievals.get(uid)
            own = overlaps.as_segments([]) if rows is None else rows.segments[rows.labels == label]
            overlap = overlaps.hull_iou(own[:max(ks) * len(moments)], moments)
            best = [overlap[:k * len(moments)].max(axis=0, initial=0) for k in ks]  # (ks, m)
            found.append(np.array(best)[None] > np.array(tious)[:, None, None])
    if not found:
        raise ValueError("there are no moments to be found; expected a split with annotations")
    return np.concatenate(found, axis=2).mean(axis=2)


def coverage(results: Mapping[str, Rows], clips: Mapping[str, MQClip], whose: str) -> dict[str, int]:
    """Count what of a result file counts.

    Args:
        whose: what holds the results, for the message.

    Returns:
        "clips" of the ground truth with a moment, those "without_entry"; the file's clips that are "unlabelled"
        (listed, but without a moment) and "unknown" (not listed); the "rows" of clips with a moment, and those
        "of_other_classes".

    Raises:
        ValueError: no clip of the file is known.
    """
    labelled = {uid for uid, clip in clips.items() if clip.moments}
    classes = {moment.label for clip in clips.values() for moment in clip.moments}
    if not results.keys() & clips.keys():
        raise ValueError(f"{whose}: none of its {len(results)} clips is in the annotations, such as "
                         f"{next(iter(results), None)!r:.80}; expected such as {next(iter(clips))!r}: another split?")
    counted, given = [rows for uid, rows in results.items() if uid in labelled], set(results)
    return {"clips": len(labelled), "without_entry": len(labelled - given),
            "unlabelled": len(given & set(clips) - labelled), "unknown": len(given - set(clips)),
            "rows": sum(len(rows.scores) for rows in counted),
            "of_other_classes": sum(label not in classes for rows in counted for label in rows.labels)}
