"""Users' code: files with a task or a model, which a recipe names by folder/file.py:Class.

Such a file is executed where its user names it. What a run that was received names is executed only if this user has
run it in a job before.
"""
import hashlib
import os
import re
import sys
import types
from pathlib import Path

from egokit.config import trust
from egokit.config.build import ConfigError
from egokit.config.names import shortened


def split_task_file(name: str) -> tuple[str, str] | None:
    """Return (file, class) of a user's task "folder/file.py:Class"; None for one of egokit's.

    Raises:
        ConfigError: the name, which may be out of a run's file, is no text.
    """
    if not isinstance(name, str):
        raise ConfigError(f"task.name: expected text, got {shortened(repr(name))}")
    match = re.fullmatch(r"(.+\.py):(\w+)", name)
    return (match[1], match[2]) if match else None


def split_model_file(init: str) -> tuple[str, str, str] | None:
    """Return (file, class, weights) of a user's model, "folder/file.py:Class" or "folder/file.py:Class:weights".

    Returns:
        The three, the weights as "" if there are none; None for another form of `init`.

    Raises:
        ConfigError: the name, which may be out of a run's file, is no text.
    """
    if not isinstance(init, str):
        raise ConfigError(f"init: expected text, got {shortened(repr(init))}")
    match = re.fullmatch(r"((?!hf:|run:).+?\.py):(\w+)(?::(.+))?", init)
    return (match[1], match[2], match[3] or "") if match else None


def files_of(task: str, init: str = "") -> dict[str, Path]:
    """Return a config's own files by the folder in which a job's copy of the code has them: task and model."""
    own = {"task": split_task_file(task), "model": split_model_file(init)}
    return {folder: Path(parts[0]) for folder, parts in own.items() if parts}


def run_file(kind: str, file: str, code: Path | None = None) -> types.ModuleType:
    """Execute a user's file anew, and return its module.

    Args:
        kind: "task" or "model".
        file: the file.
        code: a job's copy of egokit, whose folder `kind` holds the file, which is then executed in its place.

    Raises:
        ConfigError: the file is missing, or imports what isn't there.
    """
    path = Path(file) if code is None else code / kind / Path(file).name
    module = types.ModuleType(f"egokit_{kind}_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickles look for the module there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except FileNotFoundError as error:
        raise ConfigError(f"{kind} {file!r}: {error.filename} is missing; write folder/file.py:Class") from error
    except ImportError as error:
        raise ConfigError(f"{path} can't be imported: {error}. Install what is missing; if it is a name of egokit, use "
                          "the one that CHANGELOG.md gives for it") from error
    return module


def expect_known(task: str, init: str) -> None:
    """Raise ConfigError if a run's task or model is a file of unknown code: who made the run may have written it."""
    for kind, file in files_of(task, init).items():
        if os.path.isfile(file) and not trust.is_known(hashlib.sha256(file.read_bytes()).hexdigest()):
            raise ConfigError(f"the run names the {kind} {init if kind == 'model' else task!r}, whose file has been in "
                              "none of this user's jobs as it is now: it is not executed. Submit the job with the "
                              "config that names this file, or put back the file that the run was made with")
