"""Copy what a job runs: egokit, a user's task and model, notebooks and their parameters.

What is edited after the submission reaches no queued job. A run that resumes goes on with its copy only if that is the
present code, if this user's egokit has made such a copy before, or if the user trusts it: the run folder may be
somebody else's work.
"""
import hashlib
import os
import shlex
import shutil
import stat
import tempfile
from pathlib import Path

from egokit.config import trust
from egokit.config.access import user_name
from egokit.config.build import ConfigError
from egokit.config.own_code import files_of, split_task_file
from egokit.config.resolve import as_submitted
from egokit.runs.files import atomic_folder
from egokit.runs.run_folder import Run

LARGEST = 64 * 2**20  # bytes,
MOST = 5000           # files and folders, and
DEEPEST = 20          # levels of a copy that is read: egokit's own has far less of each


def snapshot_code(folder: Path, keep: bool, task: str = "", init: str = "") -> Path:
    """Copy this egokit, and the files of a user's task and model, to folder/code.

    Args:
        folder: the job's folder.
        keep: go on with the code of a copy that is already there, because a run that resumes keeps the code it began
            with. Otherwise the present code replaces it.
        task: the config's task; "path/file.py:Class" for a user's.
        init: the config's init, which may name a user's model alike.

    Returns:
        The folder of the copy.

    Raises:
        ConfigError: the copy that is already there is not trusted, others could exchange it, or there is no room for
            one.
    """
    target = folder / "code"
    expect_own_folders(folder)
    if keep and os.path.lexists(target):
        write_code(expect_trusted(target, task, init), target)
        return target
    code = present_code(task, init)
    write_code(code, target)
    try:
        remember(code)
    except (OSError, RuntimeError) as error:
        print(f"no record of this job's code can be kept ({error}): if the job is interrupted and egokit is changed "
              "meanwhile, it does not go on with its copy of the code", flush=True)
    return target


def expect_own_folders(folder: Path) -> None:
    """Raise ConfigError if others than the folder's group could exchange a job's code before it runs.

    Whoever owns a folder, or may write in it, can rename what is in it.

    Args:
        folder: the job's folder, <run>/jobs/<section> or <run>/batch; it need not exist.
    """
    above = folder.parents[:2] if folder.parent.name == "jobs" else folder.parents[:1]
    for path in filter(Path.exists, [*reversed(above), folder]):
        facts = path.stat()
        if facts.st_mode & stat.S_IWOTH and not facts.st_mode & stat.S_ISVTX:
            content, mend = "may be written by everybody", f"give the command chmod o-w {shlex.quote(str(path))}"
        elif facts.st_uid not in (0, os.geteuid()) and facts.st_uid != _owner_of_new_files(path):
            content, mend = f"belongs to user {user_name(facts.st_uid)}", "choose another run name, or copy the run"
        else:
            continue
        raise ConfigError(f"{path} {content}, who could exchange the job's code before it runs: {mend}, or set "
                          "EGOKIT_OUTPUTS to a folder of your own")


def _owner_of_new_files(folder: Path) -> int:
    """Return whose a file is that this user makes in a folder; a share may give all files to one user."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:  # no room, or no right to write
        return os.geteuid()


def expect_trusted(copy: Path, task: str, init: str = "") -> dict[str, bytes]:
    """Return a copy's code if it may be executed.

    What is executed is written anew from the returned bytes: whoever has put compiled files there, or still has a file
    open, changes nothing after the check.

    Args:
        copy: the folder jobs/<section>/code.
        task: the config's task.
        init: the config's init.

    Raises:
        ConfigError: it is neither the present code nor any that this user has run or trusts.
    """
    code = read_copy(copy)
    sha256 = content_sha256(code)
    if not code or trust.is_known(sha256) or sha256 == content_sha256(present_code(task, init)):
        return code
    others = {path.lstat().st_uid for path in [copy, *copy.rglob("*")]} - {os.geteuid()}
    owner = f", in files of user {user_name(min(others))}" if others else ""
    run = shlex.quote(str(copy.parents[2]))
    raise ConfigError(f"{copy} holds code that this user's egokit has not made (hash {sha256[:12]}), or made before "
                      f"egokit kept a record of it, or with another home folder{owner}, and this unfinished run would "
                      f"execute it. To go on with the present egokit instead, delete {copy} alone; if you trust "
                      f"whoever wrote it, give the command: egokit trust {run}")


def trust_code(folder: Path) -> list[str]:
    """Let the jobs of a run go on with its copies of the code, whoever made them, and follow its links.

    The copies become this user's own.

    Args:
        folder: a run folder, or a job's.

    Returns:
        A line for each copy, with its hash, and for each link.

    Raises:
        ConfigError: there is neither, or one holds something else than files.
        OSError, RuntimeError: no record can be kept.
    """
    lines = []
    for copy in sorted([*folder.glob("code"), *folder.glob("jobs/*/code")]):
        code = read_copy(copy)
        remember(code)  # first: without a record, a rewritten copy would be refused as before
        write_code(code, copy)
        lines.append(f"{copy}: may be executed (hash {content_sha256(code)[:12]})")
    for link, sha256 in Run(folder).links().items() if folder.is_dir() else ():
        trust.remember(sha256)
        lines.append(f"{link}: may be followed, to {os.readlink(link)}")
    if not lines:
        raise ConfigError(f"{folder}: no job has left a copy of its code there, and it holds no link; give a run "
                          "folder, outputs/<notebook>/<run>")
    return lines


def remember(code: dict[str, bytes]) -> None:
    """Record that this code may be executed: all of it together, and a user's task and model by themselves."""
    trust.remember(content_sha256(code))
    for name, content in code.items():
        if name.startswith(("task/", "model/")):
            trust.remember(hashlib.sha256(content).hexdigest())


def present_code(task: str, init: str = "") -> dict[str, bytes]:
    """Return what a new copy holds: this egokit, and the files of a user's task and model."""
    code = {f"egokit/{name}": content for name, content in read_folder(Path(__file__).parents[1]).items()}
    # not beside egokit: the job would import a file called json.py in place of Python's
    return code | {f"{folder}/{file.name}": file.read_bytes() for folder, file in files_of(task, init).items()}


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, by name, without hidden and compiled ones."""
    names = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items()
            if not any(part.startswith((".", "__pycache__")) for part in Path(name).parts)}


def read_copy(copy: Path) -> dict[str, bytes]:
    """Return the files of a job's copy of the code; raise ConfigError if it is something else.

    Nothing is followed or read that isn't a plain file in that folder: no link, no pipe, nothing enormous.
    """
    entries, size = [copy], 0
    for entry in entries:  # the list grows meanwhile
        facts = entry.lstat()
        size += facts.st_size
        plain = stat.S_ISDIR(facts.st_mode) or stat.S_ISREG(facts.st_mode)
        deep = len(entry.relative_to(copy).parts) > DEEPEST
        if not plain or deep or len(entries) > MOST or size > LARGEST:
            raise ConfigError(f"{entry}: expected a copy of egokit's code, at most {MOST} files and folders in "
                              f"{DEEPEST} levels, {LARGEST / 2**20:.0f} MiB, and no links: delete {copy} to go on with "
                              "the present code")
        if stat.S_ISDIR(facts.st_mode):
            entries += entry.iterdir()
    return read_folder(copy)


def write_code(code: dict[str, bytes], target: Path) -> None:
    """Write code to a folder in which nobody but its owner may write; it replaces an earlier one.

    Raises:
        ConfigError: it can't be written; the message says how much room is needed.
    """
    try:
        with atomic_folder(target) as part:
            for name, content in code.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).write_bytes(content)
            for path in [part, *part.rglob("*")]:
                path.chmod(path.stat().st_mode & ~0o022)
    except PermissionError:
        raise  # the run is another user's
    except OSError as error:
        raise ConfigError(f"{target} could not be written ({error.strerror}): at least "
                          f"{sum(map(len, code.values())) / 2**20:,.1f} MiB are needed for the job's copy of egokit, "
                          f"{shutil.disk_usage(target.parent).free / 2**20:,.1f} MiB are free (and your quota may be "
                          "smaller). Make room, or set EGOKIT_OUTPUTS to a folder with room") from error


def content_sha256(code: dict[str, bytes]) -> str:
    """Return the hash of files, their names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(code, key=lambda name: Path(name).parts):
        digest.update(os.fsencode(name) + f"\0{len(code[name])}\0".encode())
        digest.update(code[name])
    return digest.hexdigest()


def code_sha256(package: Path | None = None) -> str:
    """Return the first 12 digits of the hash of the files of `package`, by default this egokit."""
    return content_sha256(read_copy(package) if package else read_folder(Path(__file__).parents[1]))[:12]


def task_sha256(task: str) -> str:
    """Return the hash of a user's task file, or "" for one of egokit's tasks."""
    from egokit.model import checkpoints
    task_file = split_task_file(task)
    return checkpoints.fingerprint(task_file[0]) if task_file else ""


def snapshot_files(folder: Path, originals: list[Path]) -> Path:
    """Copy files and folders to folder/submitted, and return that folder.

    Each copy keeps its original's whole path below it, where config.resolve.as_submitted finds it.
    """
    target = folder / "submitted"
    with atomic_folder(target) as part:
        for original in originals:
            copy, source = Path(f"{part}{os.path.abspath(original)}"), as_submitted(original)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
            else:
                shutil.copy(source, copy)
    return target
