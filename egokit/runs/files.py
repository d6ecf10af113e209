"""Atomic files and folders (written under a temporary name, then renamed), and file locks.

What is renamed is on the disk first, and its name afterwards: a power cut leaves the old file or the new one. What a
killed process has left is removed by the next that writes to the same folder.
"""
import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from egokit.config.build import ConfigError

TEMPORARY = re.compile(r"\..+-\d+-[0-9a-f]{8}\.part.*", re.DOTALL)  # the names that `temporary_path` gives
QUICK = 0.002  # seconds of a look into a folder that are worth no thrift
REMEMBERED = 64 << 20  # bytes of a file whose hash is worth remembering: some tenths of a second
NO_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM)  # of folders


def temporary_path(path: Path) -> Path:
    """Return a hidden name beside `path`, with its suffix, that nobody else picks.

    The name is unique among the threads, processes and machines that share the folder.
    """
    return path.with_name(f".{path.stem}.{processes()}-{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")


@functools.cache
def processes() -> str:
    """Return a name of the processes that are seen from here: of the machine, and in a container of the container."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}+{os.stat('/proc/self/ns/pid').st_ino:x}"
    return socket.gethostname()


def is_abandoned(part: Path) -> bool:
    """Return whether the process that made the temporary file or folder `part` is gone.

    For a `temporary_path` of another machine, container or user, whose processes may not be seen from here, it must be
    a day old.
    """
    made_by, process, _ = part.name.rpartition(".part")[0].rsplit("-", 2)
    if made_by.endswith(f".{processes()}") and part.lstat().st_uid == os.geteuid():
        return not Path("/proc", process).exists()
    return time.time() - part.lstat().st_mtime > 86400


def remove_abandoned(folder: Path, stem: str = "*") -> None:
    """Remove what killed processes left in a folder: the temporary files and folders of the paths called `stem`."""
    for part in folder.glob(f".{stem}.*-*-*.part*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if TEMPORARY.fullmatch(part.name) and is_abandoned(part):
                shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink()


@functools.lru_cache(maxsize=1000)
def _next_look(folder: Path) -> list[float]:
    """Return the time before which `_tidy` doesn't look into a folder again, in a list to be changed."""
    return [0.0]


def _tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder; in a large one not at every call, so that it costs a hundredth."""
    began, due = time.monotonic(), _next_look(folder)
    if began >= due[0]:
        remove_abandoned(folder)
        now = time.monotonic()
        due[0] = now + 100 * (now - began - QUICK)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a private folder among the system's temporary files, which is removed after the block, or later.

    Those of killed processes are removed first.
    """
    place = Path(tempfile.gettempdir(), "egokit")
    remove_abandoned(place.parent, place.name)
    folder = temporary_path(place)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    Readers see the old or the new file, never a part. The temporary path keeps the suffix, by which encoders choose the
    container. On an error the temporary file is removed. Parent folders are created. The file has the rights that the
    umask gives, whatever wrote it.
    """
    path = Path(path)
    _make_folder(path.parent)
    temporary = temporary_path(path)
    try:
        yield temporary
        _to_disk(temporary)
        _restore_rights(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failing write names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside `path`; it replaces `path` if the block succeeds.

    On an error the new folder is removed. Files in sub-folders are not flushed to the disk, which would take
    long for many.
    """
    path = Path(path)
    _make_folder(path.parent)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.iterdir()):
            _to_disk(file)
            _restore_rights(file)
        _to_disk(temporary)
        while not _take_place(temporary, path):
            pass  # another process put its own folder there in between
        _to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, path: Path) -> bool:
    """Rename the folder `new` to `path`; return False if another process was faster.

    An existing folder is renamed first, because no rename replaces a folder that holds files.
    """
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


def _make_folder(folder: Path) -> None:
    """Create a folder and those above it, if they are missing, and remove what killed processes left in it."""
    missing = [folder, *folder.parents]
    missing = missing[:next((number for number, path in enumerate(missing) if path.exists()), 0)]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _to_disk(path.parent)
    _tidy(folder)


def _to_disk(path: Path) -> None:
    """Flush a file, or a folder's names, to the disk; some file systems can't do the latter, or need not."""
    is_folder = path.is_dir()
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if not is_folder or error.errno not in NO_FLUSH:
            raise


def _restore_rights(path: Path) -> None:
    """Give a file the rights of any new file; some libraries, such as safetensors, make theirs private."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return
    probe = temporary_path(path)  # the umask can't be read without changing it for other threads
    probe.touch()
    path.chmod(stat.S_IMODE(probe.stat().st_mode))
    probe.unlink()


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def large_file_sha256(path: str | os.PathLike) -> str:
    """Return a file's SHA-256, too, but read a file of REMEMBERED bytes or more once, unless it is written again.

    Every run of a sweep names its checkpoint so, several times.
    """
    facts = os.stat(path)
    if facts.st_size < REMEMBERED:
        return file_sha256(path)
    return _remembered_sha256(os.path.abspath(path), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns,
                              facts.st_ctime_ns)


@functools.lru_cache(maxsize=64)
def _remembered_sha256(path: str, *identity: int) -> str:
    return file_sha256(path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def locked(folder: Path, busy: str = "") -> Iterator[None]:
    """Hold the lock of `folder`, so that two simultaneous submissions start one job.

    Args:
        folder: created if it is missing; its file "lock" is what is locked.
        busy: printed before waiting, if another process holds the lock.

    Raises:
        ConfigError: the folder belongs to another user.
    """
    with explain_permission():
        folder.mkdir(parents=True, exist_ok=True)
        os.close(_open_lock(folder / "lock"))
    with lock_file(folder / "lock", busy):
        yield


def _open_lock(path: Path) -> int:
    """Open a lock file, which is created if it is missing, and neither emptied nor followed if it is something else.

    Raises:
        ConfigError: it is a link.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ConfigError(f"{path} is a link, and expected is a lock file: delete it") from None


@contextlib.contextmanager
def lock_file(path: Path, busy: str = "", stop: threading.Event | None = None) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process or thread holds it.

    A killed process's lock is free at once. On a file system without locks nothing is held.

    Args:
        busy: printed once before waiting.
        stop: when set, the wait ends without the lock.
    """
    stop = stop or threading.Event()
    with open(_open_lock(path), "rb", buffering=0) as lock:
        while not stop.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                print(end=busy, flush=True)
                busy = ""
                stop.wait(0.2)
            except OSError:
                break
        yield


@contextlib.contextmanager
def explain_permission() -> Iterator[None]:
    """Turn PermissionError into a ConfigError: the run folder belongs to another user."""
    try:
        yield
    except PermissionError as error:
        if not error.filename:  # it explains itself already
            raise
        raise ConfigError(f"{error.filename} can't be written: is the run another user's? Choose another run name, "
                          "or set EGOKIT_OUTPUTS to a folder of your own") from None
