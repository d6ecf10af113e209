"""Files that are whole or not there: written beside their place and renamed; folders, locks, and whose they are."""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from egokit.config.build import ConfigError


def temporary_path(path: Path) -> Path:
    """A new hidden name beside `path`, suffix kept: no other thread, process or machine that shares the folder picks it."""
    return path.with_name(f".{path.stem}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")


def is_abandoned(part: Path) -> bool:
    """Whether what `beside` named is nobody's: its process, of this machine, is gone; another machine's is a day old."""
    made_by, process, _ = part.name.rpartition(".part")[0].rsplit("-", 2)
    if made_by.endswith(f".{socket.gethostname()}"):
        return not Path("/proc", process).exists()
    return time.time() - part.stat().st_mtime > 86400


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds.

    The suffix is kept (encoders choose the container by it). On an error the temporary is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new empty folder beside `path`; put it into the place of `path` if the block succeeds. It holds files only."""
    path = Path(path)
    temporary = temporary_path(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            _to_disk(file)
        while not _take_place(temporary, path):
            pass  # another process put its own there in between
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, path: Path) -> bool:
    """Rename the folder `new` to `path`. What is there steps aside first, as no rename replaces a folder that holds files."""
    old = temporary_path(path)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, old)
    try:
        os.rename(new, path)
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def locked(folder: Path, busy: str = "") -> Iterator[None]:
    """Hold a folder, which is made: two that submit the same at once start one job. busy: printed if another process holds it."""
    with explain_permission():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(end=busy, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def explain_permission() -> Iterator[None]:
    """Around the first writing to a run folder: another user's is a ConfigError that says what to do."""
    try:
        yield
    except PermissionError as error:
        raise ConfigError(f"{error.filename} can't be written: is the run another user's? Choose another run name, or set "
                          "EGOKIT_OUTPUTS to a folder of your own") from None
