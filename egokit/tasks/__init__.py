"""Benchmarks: one file each, and the losses and metrics that they share.

base.py     Task: what a benchmark gives;  retrieval.py, windows.py  what several benchmarks share
egoclip.py  pre-training;  egomcq.py  ek100.py  charades.py  mq.py  the benchmarks
losses.py   EgoNCE, InfoNCE, max-margin, multi-similarity, masking, hard negatives;  metrics.py  accuracies, mAP, nDCG

A task of your own is a class in a file of your own, which needs one import:
from egokit.tasks import Task, Samples, read_chunked, sample_frames, cosine, normalise
A recipe selects it by `task: folder/file.py:Class`, and `egokit submit RECIPE.yaml --wait` runs it (docs/extending.md).
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

PUBLIC_NAMES = {  # for a task of one's own: name -> module, imported on first use
    "Task": "tasks.base", "cosine": "tasks.base", "Samples": "data.loader", "read_chunked": "data.video.clips",
    "sample_frames": "data.video.frame_sampling", "normalise": "data.video.transforms",
    "Finding": "data.site_checks",
}


def __getattr__(name: str):
    if name not in PUBLIC_NAMES:
        raise AttributeError(f"module 'egokit.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"egokit.{PUBLIC_NAMES[name]}"), name)


def make(config, name: str | None = None, code: Path | None = None):
    """Return the task object of a config.

    Args:
        name: of the task; None takes config.task.
        code: a job's snapshot of egokit, which holds the file of a user's task, too.
    """
    return find(name or config.task, code)(config)


def find(name: str, code: Path | None = None) -> type:
    """Return a task's class.

    Args:
        name: one of CLASSES, or a user's "file.py:Class"; that file is executed anew each time.
        code: see `make`.

    Raises:
        ConfigError: the user's file has no such class derived from Task, or imports what isn't there.
    """
    user_task = split_task_file(name)
    if not user_task:
        module_name, _, class_name = CLASSES[name].partition(":")
        return getattr(importlib.import_module(f"egokit.{module_name}"), class_name)
    from egokit.tasks.base import Task
    file, class_name = user_task
    path = Path(file) if code is None else code / "task" / Path(file).name
    module = types.ModuleType(f"egokit_task_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickles look for the module there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except ImportError as error:
        raise ConfigError(f"{path} can't be imported: {error}. Install what is missing; if it is a name of egokit, use "
                          "the one that CHANGELOG.md gives for it") from error
    classes = {key: value for key, value in vars(module).items()
               if isinstance(value, type) and issubclass(value, Task) and value is not Task}
    if class_name not in classes:
        raise ConfigError(f"{path} has no task {class_name!r}, a class derived from egokit.tasks.base.Task: "
                          f"{did_you_mean(class_name, classes)}")
    return classes[class_name]
