"""Code that lies where others may have put it: which of it this user's egokit has made, or the user trusts.

A run folder that was received can hold any hash, and its files belong to whoever unpacked it. So the hashes of the code
that this user's egokit has copied are kept elsewhere: as names of empty files in a folder of the user's own. The same
holds for faiss's files, whose content its reader follows.
"""
import os
import re
import stat
from pathlib import Path


def known_code() -> Path:
    """Return the folder of the hashes: $XDG_STATE_HOME/egokit/code, by default in ~/.local/state."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path("~/.local/state").expanduser()) / "egokit" / "code"


def is_private(folder: Path) -> bool:
    """Return whether this is a folder, and no link, of the effective user, in which nobody else may write."""
    facts = folder.lstat()
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022


def is_known(sha256: str) -> bool:
    """Return whether `remember` was called with this hash, by this user."""
    try:
        return bool(re.fullmatch("[0-9a-f]{64}", sha256)) and is_private(known_code()) and (
            known_code() / sha256).is_file()
    except (OSError, RuntimeError):  # no such folder, or no home
        return False


def remember(sha256: str) -> None:
    """Record the hash of code that this user's egokit has made, or that the user trusts.

    Raises:
        OSError, RuntimeError: there is no place for it; the message names the folder.
    """
    folder = known_code()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(folder):
        raise PermissionError(f"{folder}: expected a folder of this user's, in which nobody else may write: correct "
                              "its owner and mode, or set XDG_STATE_HOME to another place")
    (folder / sha256).touch(mode=0o600)
