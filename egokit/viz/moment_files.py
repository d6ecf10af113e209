"""Reads what the evaluation of EgoMQ or EgoNLQ leaves in the run folder: predictions, and the ground truth.

    ground_truth.json         {"task": "mq", "clips": {clip_uid: {"video_uid", "start", "stop", "moments":
                              [[start, stop, label], …]}}}, or {"task": "nlq", "questions": [{"clip_uid",
                              "annotation_uid", "query_idx", "query", "template", "start", "stop", "duration"}]}
    detections_postNMS.json   EgoMQ's detections
    nlq_predictions.json      EgoNLQ's answers

Moments and answers are in seconds from the clip's start.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egokit.config.json_file import LARGEST_LIST, check_fields, read_json
from egokit.runs.run_folder import Run
from egokit.tasks.moments.mq_annotations import Moment, MQClip
from egokit.tasks.moments.mq_results import DETECTION_FILE, Rows, read_results
from egokit.tasks.moments.nlq_results import read_predictions
from egokit.tasks.moments.segments import as_segments

TRUTH, ANSWERS = "ground_truth.json", "nlq_predictions.json"
NAMES = {"mq": "EgoMQ", "nlq": "EgoNLQ"}
MQ_SHAPE = {"task": str, "clips": {...: {"video_uid": str, "start": float, "stop": float, "moments": [list]}}}
QUESTION = {"clip_uid": str, "annotation_uid": str, "query_idx": int, "query": str, "template": (str, None),
            "start": float, "stop": float, "duration": float}
NLQ_SHAPE = {"task": str, "questions": [QUESTION]}


class Answered(NamedTuple):
    """A question, and the spans that were predicted for it."""
    question: dict         # as ground_truth.json has it
    spans: np.ndarray      # (k, 2), seconds, the best first; (0, 2) if it has no answer

    @property
    def truth(self) -> np.ndarray:
        """The right answer (1, 2), in seconds."""
        return as_segments([(self.question["start"], self.question["stop"])])


def _fix(task: str) -> str:
    return f"evaluate {NAMES[task]} again"


def _missing(path: Path, task: str) -> str:
    return f"{path} is missing: the run's job that evaluates {NAMES[task]} writes it; run that job first"


def _truth(run: Run, task: str, shape) -> dict:
    """Return ground_truth.json, which must be of this task."""
    path = run.path / TRUTH
    content = read_json(path, {"task": str}, _fix(task), LARGEST_LIST)
    if content is None:
        raise FileNotFoundError(_missing(path, task))
    if (found := content["task"]) != task:
        functions = "viz.answers and viz.recalls_by_template" if found == "nlq" else \
            "viz.detections, viz.detections_per_class and viz.false_positives"
        raise ValueError(f"{path}: 'task' is {found!r:.80}, expected {task!r}: this is no run of "
                         f"{NAMES[task]}" + (f"; draw it with {functions}" if found in NAMES else ""))
    try:
        check_fields(content, shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {_fix(task)}") from None
    return content


def _check_order(start: float, stop: float, shortest: float = 0) -> None:
    """Raise ValueError unless `stop` is at least `shortest` seconds after `start`."""
    if stop - start < shortest:
        raise ValueError(f"it stops at {stop:g} s and starts at {start:g} s")


def detected(run: Run) -> tuple[dict[str, MQClip], dict[str, Rows]]:
    """Return the clips with their moments, and the detections, of an evaluation of EgoMQ.

    Raises:
        FileNotFoundError: a file is missing; the message says which job writes it.
        ValueError: a file is damaged or of another task, or no clip has a moment; the message names it.
    """
    clips, path = {}, run.path / TRUTH
    for uid, clip in _truth(run, "mq", MQ_SHAPE)["clips"].items():
        try:
            for start, stop, label in clip["moments"]:
                check_fields({"start": start, "stop": stop, "label": label},
                             {"start": float, "stop": float, "label": str})
                _check_order(start, stop)
            _check_order(clip["start"], clip["stop"], 1e-3)
        except ValueError as error:
            raise ValueError(f"{path}: clip {uid!r:.80}: {error}; expected moments [start, stop, label] within a clip "
                             f"from start to stop; {_fix('mq')}") from None
        clips[uid] = MQClip(uid, clip["video_uid"], clip["start"], clip["stop"], "",
                            tuple(Moment(*moment) for moment in clip["moments"]))
    if not any(clip.moments for clip in clips.values()):
        raise ValueError(f"{path}: no clip has a moment, expected a split with annotations; {_fix('mq')}")
    path = run.path / DETECTION_FILE
    if not path.is_file():
        raise FileNotFoundError(_missing(path, "mq"))
    return clips, read_results(path).detections or {}


def answered(run: Run) -> list[Answered]:
    """Return the questions with the predicted spans, of an evaluation of EgoNLQ.

    Raises:
        FileNotFoundError: a file is missing; the message says which job writes it.
        ValueError: a file is damaged or of another task, or there are no questions; the message names it.
    """
    questions = _truth(run, "nlq", NLQ_SHAPE)["questions"]
    if not questions:
        raise ValueError(f"{run.path / TRUTH}: 'questions' is empty, expected at least one; {_fix('nlq')}")
    for number, question in enumerate(questions):
        try:
            _check_order(question["start"], question["stop"])
            _check_order(0, question["duration"], 1e-3)
        except ValueError as error:
            raise ValueError(f"{run.path / TRUTH}: question {number}: {error}; {_fix('nlq')}") from None
    path = run.path / ANSWERS
    if not path.is_file():
        raise FileNotFoundError(_missing(path, "nlq"))
    spans = read_predictions(path)
    return [Answered(question, spans.get((question["clip_uid"], question["annotation_uid"], question["query_idx"]),
                                         as_segments([]))) for question in questions]
