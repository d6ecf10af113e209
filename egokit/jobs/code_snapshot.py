"""Copy what a job runs: egokit, a user's task, notebooks and their parameters.

What is edited after the submission reaches no queued job.
"""
import hashlib
import os
import shutil
from pathlib import Path

from egokit.config.registry import split_task_file
from egokit.config.resolve import as_submitted
from egokit.runs.files import atomic_folder


def snapshot_code(folder: Path, keep: bool, task: str = "") -> Path:
    """Copy this egokit, and the file of a user's task, to folder/code.

    Args:
        folder: the job's folder.
        keep: leave a copy that is already there, because a run that resumes goes on with the code it began with.
            Otherwise the present code replaces it.
        task: the config's task; "path/file.py:Class" for a user's.

    Returns:
        The folder of the copy.
    """
    source, target = Path(__file__).parents[1], folder / "code"
    if keep and target.is_dir():
        return target
    with atomic_folder(target) as part:
        shutil.copytree(source, part / "egokit", ignore=shutil.ignore_patterns("__pycache__"))
        if task_file := split_task_file(task):
            # not beside egokit: the job would import a file called json.py in place of Python's
            (part / "task").mkdir()
            shutil.copy(task_file[0], part / "task")
    return target


def snapshot_files(folder: Path, originals: list[Path]) -> Path:
    """Copy files and folders to folder/submitted, and return that folder.

    Each copy keeps its original's whole path below it, where config.resolve.as_submitted finds it.
    """
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


def code_sha256(package: Path | None = None) -> str:
    """Return the first 12 digits of a hash of the files of `package`, their names and bytes.

    Hidden files, such as an editor's, don't count. By default the package is this egokit.
    """
    package, digest = package or Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file()):
        name = path.relative_to(package)
        if not any(part.startswith((".", "__pycache__")) for part in name.parts):
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def task_sha256(task: str) -> str:
    """Return the hash of a user's task file, or "" for one of egokit's tasks."""
    from egokit.model import checkpoints
    task_file = split_task_file(task)
    return checkpoints.fingerprint(task_file[0]) if task_file else ""
