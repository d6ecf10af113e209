"""Benchmarks: one file each, and the losses and metrics that they share.

base.py     Task: what a benchmark gives;  retrieval.py, windows.py  what several benchmarks share
egoclip.py  pre-training;  egomcq.py  ek100.py  charades.py  mq.py  the benchmarks
losses.py   EgoNCE, InfoNCE, max-margin, multi-similarity, masking and hard negatives;  metrics.py  accuracies, mAP, nDCG

A task of one's own needs one import: from egokit.tasks import Task, Samples, read_chunked, sample_frames, cosine, normalise
"""
from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

from egokit.config.build import ConfigError, did_you_mean, split_task_file

CLASSES = {
    "egoclip": "tasks.egoclip:EgoClip", "egomcq": "tasks.egomcq:EgoMCQ", "ek100": "tasks.ek100:EK100",
    "charades": "tasks.charades:CharadesEgo", "mq": "tasks.mq:EgoMQ", "search": "search.index_task:Search",
}

DOOR = {  # what a task of one's own is made of, imported when it is asked for: name: module
    "Task": "tasks.base", "cosine": "tasks.base", "Samples": "data.loader", "read_chunked": "data.video.clips",
    "sample_frames": "data.video.frame_sampling", "normalise": "data.video.transforms",
}


def __getattr__(name: str):
    if name not in DOOR:
        raise AttributeError(f"module 'egokit.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"egokit.{DOOR[name]}"), name)


def make(config, name: str | None = None, code: Path | None = None):
    """The task object of config.task (or `name`). code: a job's snapshot of egokit, which holds the file of a user's task, too."""
    return find(name or config.task, code)(config)


def find(name: str, code: Path | None = None) -> type:
    """A task's class: one of egokit's by its name, or a user's by 'file.py:Class', whose file is executed anew each time."""
    own = split_task_file(name)
    if not own:
        module, _, of_task = CLASSES[name].partition(":")
        return getattr(importlib.import_module(f"egokit.{module}"), of_task)
    from egokit.tasks.base import Task
    path = Path(own[0]) if code is None else code / "task" / Path(own[0]).name
    module = types.ModuleType(f"egokit_task_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pickles look for it
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    there = {key: one for key, one in vars(module).items() if isinstance(one, type) and issubclass(one, Task) and one is not Task}
    if own[1] not in there:
        raise ConfigError(f"{path} has no task {own[1]!r}, a class derived from egokit.tasks.base.Task: {did_you_mean(own[1], there)}")
    return there[own[1]]
