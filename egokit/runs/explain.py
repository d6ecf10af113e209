"""What an error of the file system says to a user: which file, why, and what to do."""
import errno
import os
import re
import shutil
from pathlib import Path

from egokit.config import access
from egokit.runs.files import TEMPORARY, processes

FULL = (errno.ENOSPC, errno.EDQUOT)


def explained(error: Exception) -> Exception:
    """Return the error; of a full disk, or a file that may not be read, one that says which and what to do."""
    if isinstance(error, OSError) and error.errno in FULL:
        return full_disk(error)
    try:
        access.exists(getattr(error, "filename", None) or os.curdir)
    except PermissionError as explanation:
        return explanation
    except (OSError, ValueError, TypeError):  # its file can't be looked at: a name that is too long, or a descriptor
        return error
    return error


def full_disk(error: OSError, folder: Path | None = None) -> OSError:
    """Return the error of a full disk or quota with the file's name, the room that is left, and what to do.

    Args:
        folder: where it was written, in case the error doesn't say.
    """
    file, room = written(Path(error.filename)) if isinstance(error.filename, str) else folder, ""
    if file:
        place = next(path for path in [file.absolute(), *file.absolute().parents] if path.exists())
        room = f"{shutil.disk_usage(place).free / 2**20:,.1f} MiB are free (and your quota may be smaller). "
    return OSError(f"{file or 'a file'} could not be written ({error.strerror}): {room}Make room and run again: "
                   "training goes on from its newest checkpoint")


def written(path: Path) -> Path:
    """Return the file that this process writes by way of a path with a temporary name (files.temporary_path)."""
    return Path(*(part[1:].rpartition(f".{processes()}-")[0] + part.rpartition(".part")[2]
                  if TEMPORARY.fullmatch(part) else part for part in path.parts))


def shortened(line: str) -> str:
    """Return an error's line cut at 100 characters, without what is before its reason: folders and modules."""
    return re.sub(r"(?<![^\s'\"(=])/\S*/(?=[^\s/])", "", re.sub(r"^(\w+\.)+(?=\w+: )", "", line))[:100]
