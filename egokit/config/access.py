"""Tell files that may not be read from files that are missing."""
import errno
import os
import pwd
import stat
from pathlib import Path

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def exists(path: str | os.PathLike) -> bool:
    """Return whether a file or folder exists and may be read.

    Raises:
        PermissionError: it exists, but this user may not read it, or not look into a folder above it. The message says
            whose it is and how that is changed.
    """
    path = Path(path).absolute()
    try:
        mode = path.stat().st_mode
    except PermissionError:
        raise PermissionError(explain(path)) from None
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    if not _allowed(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)):
        raise PermissionError(explain(path))
    return True


def file_exists(path: str | os.PathLike) -> bool:
    """Return whether a file exists and may be read.

    Raises:
        PermissionError: as `exists`.
        ValueError: it is a pipe or a device, whose reader may wait for ever.
    """
    if not exists(path):
        return False
    if not (Path(path).is_file() or Path(path).is_dir()):  # what opens a folder says that it is one
        raise ValueError(f"{path}: expected a regular file; put one in its place")
    return True


def is_there(path: str | os.PathLike) -> bool:
    """Return whether a file or folder exists, or may exist where this user may not look: what reads it then says so."""
    try:
        return exists(path)
    except PermissionError:
        return True


def is_plain(file: Path) -> bool:
    """Return whether a file is a regular file in its folder: links lead elsewhere, and a named pipe never ends."""
    return file.is_file() and not file.is_symlink() and not file.parent.is_symlink()


def explain(path: str | os.PathLike) -> str:
    """Return why a path may not be read: what stands in the way, its mode and owner, and the command that helps."""
    path = Path(path).absolute()
    closed = next((folder for folder in reversed(path.parents) if not _allowed(folder, os.X_OK)), path)
    facts = closed.stat()
    within = "" if closed == path else f", because of its folder {closed}"
    rights = "a+rx" if closed.is_dir() else "a+r"
    return (f"{path} may not be read by this user{within} (mode {stat.S_IMODE(facts.st_mode):04o}, owner "
            f"{user_name(facts.st_uid)}): the owner can change that by chmod {rights} {closed}")


def user_name(uid: int) -> str:
    """Return a user's name, or the number of one whom this machine doesn't know."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _allowed(path: Path, access: int) -> bool:
    """Return what `os.access` says for the user whose rights count when a file is opened."""
    return os.access(path, access, effective_ids=os.access in os.supports_effective_ids)
