"""What is wrong with EgoMQ's detections: each is right, or a false positive of one kind.

Source: Alwassel et al., Diagnosing Error in Temporal Action Detectors (DETAD), ECCV 2018.
"""
from collections.abc import Mapping, Sequence

import numpy as np

from egokit.tasks.moments import segments as overlaps
from egokit.tasks.moments.mq_annotations import Moment, MQClip
from egokit.tasks.moments.mq_results import Rows

KINDS = ("right", "double detection", "wrong label", "localisation", "confusion", "background")
TOUCHED = 0.1  # the least IoU with a moment; what overlaps all moments by less is background


def kinds_of_clip(rows: Rows, moments: Sequence[Moment], tiou: float = 0.5) -> np.ndarray:
    """Return the kind of each of a clip's detections, as numbers in KINDS (n,).

    A detection is, by the first of these that holds:
        right: it has an IoU of at least `tiou` with a moment of its class that none of a higher score has taken.
        double detection: its moments of this IoU are taken.
        wrong label: it has this IoU with a moment of another class.
        localisation, confusion: it has an IoU of at least TOUCHED with a moment of its class, or of another.
        background: none of these.
    """
    segments = overlaps.as_segments([(moment.start, moment.stop) for moment in moments])
    overlap = overlaps.iou(rows.segments, segments)  # (n, m)
    same = rows.labels[:, None] == np.array([moment.label for moment in moments], dtype=object)[None]
    of_class = np.where(same, overlap, 0)
    right, taken = np.zeros(len(overlap), dtype=bool), np.zeros(len(moments), dtype=bool)
    for row in np.argsort(-rows.scores, kind="stable"):
        free = np.where(taken, 0, of_class[row])
        if free.max(initial=0) >= tiou:
            right[row] = taken[free.argmax()] = True
    own, other = of_class.max(axis=1, initial=0), np.where(same, 0, overlap).max(axis=1, initial=0)
    return np.select([right, own >= tiou, other >= tiou, own >= TOUCHED, other >= TOUCHED], range(5), 5)


def kinds_by_score(results: Mapping[str, Rows], clips: Mapping[str, MQClip], tiou: float = 0.5) -> np.ndarray:
    """Return the kinds of all detections, as numbers in KINDS, by falling score.

    Clips without a moment, of which an evaluation here detects nothing, don't count.
    """
    pairs = [(rows, clips[uid].moments) for uid, rows in results.items() if uid in clips and clips[uid].moments]
    kinds = [kinds_of_clip(rows, moments, tiou) for rows, moments in pairs]
    order = np.argsort(-np.concatenate([np.zeros(0), *(rows.scores for rows, _ in pairs)]), kind="stable")
    return np.concatenate([np.zeros(0, dtype=np.int64), *kinds])[order]
