"""The registry of tasks: each one's name and its class, which says everything else about it.

The config is built here, because the keys of its section `task` are those of the task's class.
"""
import hashlib
import importlib
import os
import re
import sys
import types
from pathlib import Path

from egokit.config import trust
from egokit.config.build import ConfigError, build, did_you_mean, flatten, nest
from egokit.config.names import shortened
from egokit.config.schema import Config, TaskConfig

TASKS = {  # to register a task, give it a line here
    "egoclip": "egokit.tasks.egoclip:EgoClip", "ek100": "egokit.tasks.ek100:EK100",
    "charades": "egokit.tasks.charades:CharadesEgo", "egomcq": "egokit.tasks.egomcq:EgoMCQ",
    "mq": "egokit.tasks.mq:EgoMQ", "nlq": "egokit.tasks.nlq:EgoNLQ",
    "egotaskqa": "egokit.tasks.egotaskqa:EgoTaskQA",
    "egotaskqa_head": "egokit.tasks.egotaskqa_head:EgoTaskQAHead",
    "search": "egokit.search.index_task:Search",
}


def split_task_file(name: str) -> tuple[str, str] | None:
    """Return (file, class) of a user's task "folder/file.py:Class"; None for one of egokit's.

    Raises:
        ConfigError: the name, which may be out of a run's file, is no text.
    """
    if not isinstance(name, str):
        raise ConfigError(f"task.name: expected text, got {shortened(repr(name))}")
    match = re.fullmatch(r"(.+\.py):(\w+)", name)
    return (match[1], match[2]) if match else None


def find(name: str, code: Path | None = None) -> type:
    """Return a task's class.

    Args:
        name: a name in TASKS, or a user's "file.py:Class"; that file is executed anew each time.
        code: a job's snapshot of egokit, which holds the file of a user's task, too.

    Raises:
        ConfigError: there is no such task, or the user's file imports what isn't there.
    """
    user_task = split_task_file(name)
    if not user_task:
        if name not in TASKS:
            raise ConfigError(f"task: {shortened(name)!r}: {did_you_mean(name, TASKS)}, or folder/file.py:Class")
        module_name, _, class_name = TASKS[name].partition(":")
        return getattr(importlib.import_module(module_name), class_name)
    file, class_name = user_task
    path = Path(file) if code is None else code / "task" / Path(file).name
    module = types.ModuleType(f"egokit_task_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickles look for the module there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except FileNotFoundError as error:
        raise ConfigError(f"task {name!r}: {error.filename} is missing; write folder/file.py:Class") from error
    except ImportError as error:
        raise ConfigError(f"{path} can't be imported: {error}. Install what is missing; if it is a name of egokit, use "
                          "the one that CHANGELOG.md gives for it") from error
    classes = {key: value for key, value in vars(module).items()
               if isinstance(getattr(value, "Params", None), type) and value.__module__ != "egokit.tasks.base"}
    if class_name not in classes:
        raise ConfigError(f"{path} has no task {class_name!r}, a class derived from egokit.tasks.Task: "
                          f"{did_you_mean(class_name, classes)}")
    return classes[class_name]


def notebook_of(config: Config) -> str:
    """Return the folder of a config's runs under outputs/: its task's notebook, or the name of a user's file."""
    task, user_task = find(config.task.name), split_task_file(config.task.name)
    return vars(task).get("notebook") or Path(user_task[0]).stem if user_task else task.notebook


def build_config(plain: dict, source: str = "", task: type | None = None) -> Config:
    """Build a Config from a plain one; its section `task` has the keys of that task's `Params`.

    Args:
        plain: sections of keys; absent ones keep their defaults.
        source: as of `build`.
        task: the task's class; None finds it by its name.

    Raises:
        ConfigError: a key is unknown, or its value is wrong.
    """
    values = nest(flatten(plain, source))
    own = values.pop("task", {})
    params = task.Params if task else find(own["name"]).Params if own.get("name") else TaskConfig
    return build(Config, values | {"task": build(params, own, "task", source)}, source=source)


def restore(plain: dict, code: Path | None = None, task: type | None = None) -> Config:
    """Return the Config of an earlier run: keys have present names, and new keys their defaults.

    Before tasks had keys of their own, every config held those of all tasks; other tasks' are dropped.

    Args:
        plain: from the run's spec.json.
        code: as of `find`; in a job alone, which may run its copy.
        task: the task's class; None finds it by its name.

    Raises:
        ConfigError: the config names a task file that this user has run in no job; it is not executed.
    """
    flat = flatten(plain)
    name = flat.get("task.name")
    if name and not task:
        if code is None:
            _expect_known(name)
        task = find(name, code)
    own = {f"task.{key}" for key in (task.Params if task else TaskConfig).__pydantic_fields__}
    return build_config({name: value for name, value in flat.items() if not name.startswith("task.") or name in own},
                        task=task)


def _expect_known(name: str) -> None:
    """Raise ConfigError if a run's task is a file of unknown code, which whoever made the run may have written."""
    file, _ = split_task_file(name) or ("", "")
    if os.path.isfile(file) and not trust.is_known(hashlib.sha256(Path(file).read_bytes()).hexdigest()):
        raise ConfigError(f"the run names the task {name!r}, whose file has been in none of this user's jobs as it is "
                          "now: it is not executed. Submit the job with the config that names this file, or put back "
                          "the file that the run was made with")
