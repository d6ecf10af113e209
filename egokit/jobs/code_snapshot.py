"""Copies of what a job runs: egokit, a user's task, notebooks and their parameters; what is edited later reaches no queued job."""
from __future__ import annotations

import os
import shutil
from pathlib import Path

from egokit.config.build import split_task_file
from egokit.config.resolve import as_submitted


def snapshot_code(folder: Path, keep: bool, task: str = "") -> Path:
    """Copy this egokit, and the file of a user's `task`, to folder/code.

    keep: a run that resumes goes on with the code it began with. Otherwise a new start takes the code of now.
    """
    source, target = Path(__file__).parents[1], folder / "code"
    if target.is_dir() and not keep:
        shutil.rmtree(target)
    if not target.is_dir():
        part = folder / f".code-{os.getpid()}"
        shutil.copytree(source, part / "egokit", ignore=shutil.ignore_patterns("__pycache__"))
        if own := split_task_file(task):
            (part / "task").mkdir()  # not beside egokit: the job would import a file called json.py in place of Python's
            shutil.copy(own[0], part / "task")
        os.replace(part, target)
    return target


def snapshot_files(folder: Path, originals: list[Path]) -> Path:
    """Copy files and folders to folder/submitted, each under its whole path, for resolve.as_submitted to find."""
    target = folder / "submitted"
    shutil.rmtree(target, ignore_errors=True)
    for original in originals:
        copy, source = Path(f"{target}{os.path.abspath(original)}"), as_submitted(original)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        else:
            shutil.copy(source, copy)
    return target


def task_sha256(task: str) -> str:
    """The hash of a user's task file; empty for egokit's tasks. What is wrong with the file is said here, not in a job's log."""
    own = split_task_file(task)
    if not own:
        return ""
    from egokit import tasks
    from egokit.model import checkpoints
    tasks.find(task)
    return checkpoints.fingerprint(own[0])
