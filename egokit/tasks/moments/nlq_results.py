"""EgoNLQ's submission: made, read and scored.

Source: Ego4D's episodic-memory, VSLNet's main.py (file) and utils/evaluate_ego4d_nlq.py (recalls).
"""
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from egokit.data.annotation_json import field
from egokit.runs.files import write_text
from egokit.tasks.moments import segments as overlaps
from egokit.tasks.moments.mq_results import FIX, read_result_file, segment_of
from egokit.tasks.moments.nlq_annotations import Question

Key = tuple[str, str, int]  # clip_uid, annotation_uid, query_idx: Question.key
KS = (1, 3, 5)
IOUS = (0.3, 0.5, 0.01)
RECALLS = {f"R@{k}_{iou}": (k, iou) for iou in (0.3, 0.5) for k in (1, 3, 5)}


def submission(predictions: Mapping[Key, Iterable[Sequence[float]]]) -> dict:
    """Return the submission of predictions: for each question [start, end] in seconds of its clip, the best first."""
    return {"version": "1.0", "challenge": "ego4d_nlq_challenge", "results": [
        {"clip_uid": clip, "annotation_uid": annotation, "query_idx": index,
         "predicted_times": [[float(start), float(stop)] for start, stop in times]}
        for (clip, annotation, index), times in predictions.items()]}


def write(path: str | Path, document: dict) -> None:
    """Write a submission, whole or not at all."""
    write_text(path, json.dumps(document))


def read_predictions(path: str | Path) -> dict[Key, np.ndarray]:
    """Read a submission, whoever made it.

    Returns:
        The question's key -> predicted segments (n, 2) in seconds, the best first.

    Raises:
        ValueError: it is of another form, a prediction is damaged, or a question is answered twice; the message names
            it.
    """
    path, predictions = Path(path), {}
    document = read_result_file(path)
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, list):
        raise ValueError(f"{path}: expected {{\"results\": [{{\"clip_uid\": …, \"annotation_uid\": …, "
                         "\"query_idx\": …, \"predicted_times\": [[start, end], …]}, …]}, "
                         f"found {document!r:.80}; {FIX}")
    for number, entry in enumerate(results):
        where = f"{path}, result {number}"
        try:
            if not isinstance(entry, dict):
                raise ValueError(f"it is {entry!r:.80}; expected clip_uid, annotation_uid, query_idx, predicted_times")
            key = (field(entry, "clip_uid", str, "its name"), field(entry, "annotation_uid", str, "its name"),
                   entry.get("query_idx"))
            where = f"{path}, result {number}, clip {key[0]}, annotation {key[1]}, query {key[2]!r:.20}"
            if type(key[2]) is not int:
                raise ValueError(f"'query_idx' is {key[2]!r:.80}; expected the question's place in the annotation")
            if key in predictions:
                raise ValueError("the question is answered twice; leave one of the two out")
            times = field(entry, "predicted_times", list, "[[start, end], …]")
            predictions[key] = overlaps.as_segments([segment_of(segment) for segment in times])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return predictions


def recalls(predictions: Mapping[Key, np.ndarray], questions: Sequence[Question], ks: Sequence[int] = KS,
            ious: Sequence[float] = IOUS) -> dict:
    """Return the recalls of predictions: the share of questions one of whose first k segments has more than this IoU.

    The union is the stretch that holds both segments, and the answer is the exact one. Unanswered questions, and those
    without a predicted segment, find nothing: this is how the challenge counts. Beside it stands the original's way,
    the mean over the questions that are answered.

    Args:
        predictions: see `read_predictions`.
        questions: the ground truth.

    Returns:
        "recall" (ious, ks) and "mean_iou" of the first segments, as shares of 1; "original", a dict of the same two;
        the numbers of "questions", and of those "answered", "unanswered" and "empty", whose answer has length 0 and
        can never be found; and the number of predictions for "unknown" questions.

    Raises:
        ValueError: a question has no times, there are no questions, or no prediction is for one of them.
    """
    if not questions or any(question.start is None for question in questions):
        raise ValueError("there are no answers to compare with; expected the questions of train or val")
    unknown = predictions.keys() - {question.key for question in questions}
    if len(unknown) == len(predictions):
        raise ValueError(f"none of the {len(predictions)} predictions is for a question of the annotations, such as "
                         f"{next(iter(predictions), None)!r:.160}; expected such as {questions[0].key}: another split?")
    return _recalls(predictions, questions, ks, ious) | {"unknown": len(unknown)}


def recalls_by_template(predictions: Mapping[Key, np.ndarray], questions: Sequence[Question], ks: Sequence[int] = KS,
                        ious: Sequence[float] = IOUS) -> dict[str, dict]:
    """Return the recalls of each kind of question, most frequent first; questions without a template are "none".

    Args:
        predictions: see `recalls`, of which each value has all but "unknown".
        questions: the ground truth.
    """
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.template or "none", []).append(question)
    ordered = sorted(groups, key=lambda name: -len(groups[name]))
    return {name: _recalls(predictions, groups[name], ks, ious) for name in ordered}


def _recalls(predictions: Mapping[Key, np.ndarray], questions: Sequence[Question], ks, ious) -> dict:
    """Return the recalls and counts of `recalls` for questions that have times."""
    answered = [question for question in questions if len(predictions.get(question.key, ()))]
    found, first = np.zeros((len(ious), len(ks))), 0.0
    for question in answered:
        overlap = overlaps.hull_iou(predictions[question.key], [(question.start, question.stop)])[:, 0]
        best = np.array([overlap[:k].max() for k in ks])
        found += best > np.array(ious)[:, None]
        first += overlap[0]
    ways = [{"recall": found / max(count, 1), "mean_iou": float(first / max(count, 1))}
            for count in (len(questions), len(answered))]
    return ways[0] | {"original": ways[1], "questions": len(questions), "answered": len(answered),
                      "unanswered": len(questions) - len(answered),
                      "empty": sum(question.start == question.stop for question in questions)}


def percentages(predictions: Mapping[Key, np.ndarray], questions: Sequence[Question]) -> dict[str, float]:
    """Return what `recalls` returns under flat names, as metrics: in %, and counts."""
    found = recalls(predictions, questions)
    out = {"R@1_mean": 0.0}  # the first that is shown
    for prefix, values in (("", found), ("original_", found["original"])):
        out |= {prefix + name: 100 * float(values["recall"][IOUS.index(iou)][KS.index(k)])
                for name, (k, iou) in RECALLS.items()}
        out |= {f"{prefix}R@1_mean": (out[f"{prefix}R@1_0.3"] + out[f"{prefix}R@1_0.5"]) / 2,
                f"{prefix}mean_iou": 100 * float(values["mean_iou"])}
    return out | {"questions": found["questions"], "unanswered": found["unanswered"],
                  "zero_length_answers": found["empty"]}
