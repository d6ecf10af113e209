"""EgoMQ's result files: the detection file, the retrieval file, and the submission that holds both.

Source: EgoVLPv2's EgoMQ, Infer.py, generate_detection.py, generate_retrieval.py and Merge_detection_retrieval.py.
"""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egokit.config.access import file_exists
from egokit.config.json_file import HUGE
from egokit.data.annotation_json import field, read_document
from egokit.runs.files import write_text
from egokit.tasks.moments import segments as overlaps
from egokit.tasks.moments.mq_annotations import MQClip

KEPT = 200                # rows of a clip
LEAST_PROBABILITY = 5e-9  # of a proposal's class
NMS_THRESHOLD = 0.4       # IoU, within a class
DETECTION_FILE, RETRIEVAL_FILE = "detections_postNMS.json", "retreival_postNMS.json"  # the original's spelling
FIX = "make it again"  # what to do about a damaged file


class Rows(NamedTuple):
    """Scored and labelled segments of one clip."""
    segments: np.ndarray  # (n, 2), seconds of the clip
    scores: np.ndarray    # (n,)
    labels: np.ndarray    # (n,): names of activities

    @classmethod
    def of(cls, segments, scores, labels) -> "Rows":
        """Return rows of any sequences."""
        return cls(overlaps.as_segments(segments), np.array(scores, dtype=np.float64), np.array(labels, dtype=object))

    def take(self, indices) -> "Rows":
        """Return some of the rows, in the order of the indices."""
        return Rows(self.segments[indices], self.scores[indices], self.labels[indices])


def propose(segments, probabilities, names: list[str], start=None, end=None,
            least_probability: float = LEAST_PROBABILITY) -> Rows:
    """Score every segment as every class (the original's step 1).

    Args:
        segments: (n, 2), in seconds.
        probabilities: (n, C) of the classes, without background.
        names: the C classes' names.
        start: (n,) factor of each segment's score for its start; None: 1. See `boundary_scores`.
        end: the same for its end.
        least_probability: pairs of a lower or equal probability are left out.

    Returns:
        The proposals, class by class.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1, len(names))
    scores = probabilities.copy()
    for factor in (start, end):
        scores *= 1 if factor is None else np.asarray(factor, dtype=np.float64)[:, None]
    classes, rows = np.nonzero((probabilities > least_probability).T)
    return Rows(overlaps.as_segments(segments)[rows], scores[rows, classes], np.array(names, dtype=object)[classes])


def boundary_scores(positions, scores_T) -> np.ndarray:
    """Return the scores (n,) at positions (n,) between frames: the mean of the two frames' around each."""
    positions, scores_T = np.asarray(positions, dtype=np.float64), np.asarray(scores_T, dtype=np.float64)
    return (scores_T[np.floor(positions).astype(int)] + scores_T[np.ceil(positions).astype(int)]) / 2


def suppress(proposals: Rows, threshold: float = NMS_THRESHOLD) -> Rows:
    """Drop neighbours of a higher score within each class (the original's step 2): NMS above this IoU.

    Returns:
        The rows that stay, class by class, by falling score.
    """
    members: dict[str, list[int]] = {}
    for row, label in enumerate(proposals.labels):
        members.setdefault(label, []).append(row)
    kept = [np.array(rows)[overlaps.nms(proposals.segments[rows], proposals.scores[rows], threshold)]
            for rows in members.values()]
    return proposals.take(np.concatenate([np.zeros(0, dtype=np.int64), *kept]))


def detections(proposals: Mapping[str, Rows], clips: Mapping[str, MQClip],
               sigma: float | None = overlaps.ORIGINAL_SIGMA) -> dict:
    """Return the detection file of each clip's proposals (the original's step 3).

    Args:
        proposals: clip_uid -> rows in seconds, without neighbours (`suppress`, or `segments.soft_nms`).
        clips: all clips that may occur.
        sigma: of the soft-NMS over all classes; None: the rows have gone through a soft-NMS, and stay as they are.
    """
    results = {}
    for uid, rows in proposals.items():
        if sigma is None:
            rows = rows.take(_by_score(rows)[:KEPT])
        else:
            order, scores = overlaps.soft_nms_all(rows.segments, rows.scores, KEPT, sigma)
            rows = rows.take(order)._replace(scores=scores)
        results[uid] = _entries(rows, _clip(clips, uid))
    return _document(results)


def retrievals(proposals: Mapping[str, Rows], clips: Mapping[str, MQClip]) -> dict:
    """Return the retrieval file: each clip's proposals of the classes that are annotated in it (step 4).

    A clip without annotations, as of the test split, keeps all classes.
    """
    results = {}
    for uid, rows in proposals.items():
        clip = _clip(clips, uid)
        annotated = {moment.label for moment in clip.moments}
        order = [row for row in _by_score(rows) if not annotated or rows.labels[row] in annotated]
        results[uid] = _entries(rows.take(order[:KEPT]), clip)
    return _document(results)


def submission(detect: dict, retrieve: dict) -> dict:
    """Return the submission of a detection and a retrieval file."""
    return {"version": "1.0", "challenge": "ego4d_moment_queries", "detect_results": detect["results"],
            "retrieve_results": retrieve["results"]}


def write(path: str | Path, document: dict) -> None:
    """Write a result file, whole or not at all."""
    write_text(path, json.dumps(document))


def _by_score(rows: Rows) -> np.ndarray:
    """Return the order of rows by falling score; equal ones keep their order."""
    return np.argsort(-rows.scores, kind="stable")


def _clip(clips: Mapping[str, MQClip], uid: str) -> MQClip:
    """Return a clip, or raise ValueError that names it."""
    if uid not in clips:
        raise ValueError(f"clip {uid!r} has proposals, but is in none of the annotations; leave it out, or give the "
                         "annotations that list it")
    return clips[uid]


def _entries(rows: Rows, clip: MQClip) -> list[dict]:
    """Return rows as a file has them: held in the clip and rounded to 0.1 s, scores to 6 places."""
    return [{"label": str(label), "score": round(float(score), 6),
             "segment": [round(max(0.0, float(start)), 1), round(min(clip.seconds, float(stop)), 1)]}
            for (start, stop), score, label in zip(*rows, strict=True)]


def _document(results: dict) -> dict:
    """Return a detection or retrieval file of its results."""
    return {"version": "EGO4D", "external_data": {}, "results": results}


def read_result_file(path: Path):
    """Return the content of a result file of either task; raise what `read_document` raises."""
    if not file_exists(path):
        raise FileNotFoundError(f"{path} is missing; name a result file that is there")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a result file in it")
    return read_document(path, FIX)


class Results(NamedTuple):
    """A result file: clip_uid -> rows. A file has detections, retrievals, or both."""
    detections: dict[str, Rows] | None
    retrievals: dict[str, Rows] | None


def read_results(path: str | Path) -> Results:
    """Read a detection file, a retrieval file or a submission, whoever made it.

    Detection and retrieval files have one form; a file is a retrieval file if its name holds "retr". An empty part of a
    submission counts as absent.

    Raises:
        ValueError: it is of another form, or a row is damaged; the message names the clip and the row.
    """
    path = Path(path)
    document = read_result_file(path)
    keys = ("detect_results", "retrieve_results")
    if isinstance(document, dict) and not any(key in document for key in keys) and "results" in document:
        read = _read_clips(path, document["results"], "results")
        return Results(None, read) if "retr" in path.name.lower() else Results(read, None)
    if not isinstance(document, dict) or not any(document.get(key) for key in keys):
        raise ValueError(f"{path}: expected {{\"results\": {{clip_uid: [{{\"label\": …, \"score\": …, \"segment\": "
                         "[start, end]}, …]}}, or a submission with detect_results and retrieve_results, "
                         f"found {document!r:.80}; {FIX}")
    return Results(*(_read_clips(path, document[key], key) if document.get(key) else None for key in keys))


def _read_clips(path: Path, results, key: str) -> dict[str, Rows]:
    """Check the results of every clip."""
    if not isinstance(results, dict):
        raise ValueError(f"{path}: {key!r} is {results!r:.80}; expected {{clip_uid: [rows]}}")
    return {uid: _read_rows(f"{path}, {key}, clip {uid}", rows) for uid, rows in results.items()}


def _read_rows(where: str, rows) -> Rows:
    """Check the rows of one clip."""
    if not isinstance(rows, list):
        raise ValueError(f"{where}: it is {rows!r:.80}; expected a list of rows")
    segments, scores, labels = [], [], []
    for number, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"it is {row!r:.80}; expected label, score and segment")
            labels.append(field(row, "label", str, "the name of an activity"))
            scores.append(number_of(row, "score"))
            segments.append(segment_of(row.get("segment")))
        except ValueError as error:
            raise ValueError(f"{where}, row {number}: {error}") from None
    return Rows.of(segments, scores, labels)


def number_of(row: dict, name: str) -> float:
    """Return a field that is a finite number, or raise ValueError."""
    value = row.get(name)
    if type(value) not in (int, float) or not abs(value) < HUGE:
        raise ValueError(f"{name!r} is {value!r:.80}; expected a finite number")
    return float(value)


def segment_of(value) -> tuple[float, float]:
    """Return a row's start and end in seconds, or raise ValueError."""
    if not (isinstance(value, list) and len(value) == 2 and all(type(time) in (int, float) for time in value)
            and all(abs(time) < HUGE for time in value) and value[0] <= value[1]):
        raise ValueError(f"the segment is {value!r:.80}; expected [start, end] in seconds, the start first")
    return float(value[0]), float(value[1])
