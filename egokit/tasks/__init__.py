"""Benchmarks: one file each, and the losses and metrics that they share.

base.py     Task: what a benchmark gives;  retrieval.py, multiple_choice.py, windows.py  what several share
egoclip.py  pre-training;  egomcq.py  ek100.py  charades.py  mq.py  nlq.py  egotaskqa.py  the benchmarks
extraction.py  what encoders make of clips, stored for heads;  clip_features.py  features of clips, as EgoMQ's
egotaskqa_head.py  heads on stored vectors;  taskqa/, moments/, qfvs/  files and metrics;  score.py  `egokit score`
tools.py    what every task can use in its methods
losses.py   EgoNCE, InfoNCE, max-margin, multi-similarity, masking, hard negatives;  metrics.py  accuracies, mAP, nDCG

A task of your own is a class in a file of your own, which needs one import:
from egokit.tasks import Task, RetrievalTask, ChoiceTask, Samples, read_chunked, sample_frames, normalise, ClassHead
A recipe selects it by `task: folder/file.py:Class`, and `egokit submit RECIPE.yaml --wait` runs it (docs/extending.md).
"""
import importlib
from pathlib import Path

from egokit.config.registry import TASKS, find

PUBLIC_NAMES = {  # for a task of one's own: name -> module, imported on first use
    "Task": "tasks.base", "RetrievalTask": "tasks.retrieval", "ChoiceTask": "tasks.multiple_choice",
    "Result": "runs.ledger", "Finding": "data.site_checks", "cosine": "tasks.metrics", "Samples": "data.loader",
    "read_chunked": "data.video.clips", "sample_frames": "data.video.frame_sampling",
    "normalise": "data.video.transforms", "TaskConfig": "config.schema", "Count": "config.schema",
    "Positive": "config.schema", "NotNegative": "config.schema", "Share": "config.schema", "check_name": "config.names",
    "ClassHead": "model.class_head",
}
__all__ = ["TASKS", "find", "make", *PUBLIC_NAMES]


def __getattr__(name: str):
    if name not in PUBLIC_NAMES:
        raise AttributeError(f"module 'egokit.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"egokit.{PUBLIC_NAMES[name]}"), name)


def make(config, name: str | None = None, code: Path | None = None):
    """Return the task object of a config.

    Args:
        name: of the task; None takes config.task.name.
        code: a job's snapshot of egokit, which holds the file of a user's task, too.
    """
    task = find(name or config.task.name, code)(config)
    task.code = code
    return task
