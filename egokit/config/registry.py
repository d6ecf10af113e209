"""The registry of tasks: each one's name and its class, which says everything else about it.

The config is built here, because the keys of its section `task` are those of the task's class.
"""
import importlib
from pathlib import Path

from egokit.config.build import ConfigError, build, did_you_mean, flatten, nest
from egokit.config.names import shortened
from egokit.config.own_code import expect_known, run_file, split_task_file
from egokit.config.schema import Config, TaskConfig

TASKS = {  # to register a task, give it a line here
    "egoclip": "egokit.tasks.egoclip:EgoClip", "ek100": "egokit.tasks.ek100:EK100",
    "charades": "egokit.tasks.charades:CharadesEgo", "egomcq": "egokit.tasks.egomcq:EgoMCQ",
    "mq": "egokit.tasks.mq:EgoMQ", "nlq": "egokit.tasks.nlq:EgoNLQ",
    "egotaskqa": "egokit.tasks.egotaskqa:EgoTaskQA",
    "egotaskqa_head": "egokit.tasks.egotaskqa_head:EgoTaskQAHead",
    "search": "egokit.search.index_task:Search",
}


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
    module = run_file("task", file, code)
    classes = {key: value for key, value in vars(module).items()
               if isinstance(getattr(value, "Params", None), type) and value.__module__ != "egokit.tasks.base"}
    if class_name not in classes:
        raise ConfigError(f"{module.__file__} has no task {class_name!r}, a class derived from egokit.tasks.Task: "
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
        ConfigError: the config names a task's or a model's file that this user has run in no job; it is not executed.
    """
    flat = flatten(plain)
    name = flat.get("task.name")
    if not task and code is None:
        expect_known(name or "", flat.get("init", ""))
    if name and not task:
        task = find(name, code)
    own = {f"task.{key}" for key in (task.Params if task else TaskConfig).__pydantic_fields__}
    return build_config({name: value for name, value in flat.items() if not name.startswith("task.") or name in own},
                        task=task)
