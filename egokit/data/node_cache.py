"""Copies of indexes on each node's own disk (site.node_cache), so that its processes map a near file.

An index is read at random places all through a job. On a file system that all nodes share, each page that a node lacks
is a message to its server. One process of a node copies; the others wait for it. A copy is named by the original's
path and facts (size, times, inode), and has a checksum beside it. If it can't be made, the original is used, and a line
says why.
"""
import functools
import hashlib
import os
import shutil
import stat
import zlib
from pathlib import Path

from egokit.runs.files import atomic_path, lock_file, write_text

BLOCK = 1 << 22   # bytes that are copied at once
SPARE = 1 << 28   # bytes that a copy leaves free on the disk


@functools.cache
def _say(line: str) -> None:
    """Print a line, once in a process."""
    print(line, flush=True)


def near(path: Path, folder: str) -> Path:
    """Return this node's copy of a file, which is made if needed; without one, the file itself.

    Args:
        path: a file on a file system that nodes share; it is not changed.
        folder: site.node_cache, a folder on the node's own disk, with ~ and $NAME; "" for no copy.
    """
    if not folder:
        return path
    try:
        return _copy_of(path.absolute(), _own_folder(folder))
    except (OSError, ValueError) as error:
        _say(f"{path} is used where it is, without a copy in site.node_cache={folder}: {error}")
        return path


def _own_folder(folder: str) -> Path:
    """Return this user's folder in site.node_cache, which others may neither write nor prepare.

    Raises:
        ValueError, OSError: there can be none.
    """
    expanded = Path(os.path.expandvars(os.path.expanduser(folder)))
    if "$" in str(expanded) or not expanded.is_absolute():
        raise ValueError(f"expected an absolute path, with variables that are set on the node; it gives {expanded}")
    own = expanded / f"egokit-{os.geteuid()}"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = own.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise ValueError(f"{own} is another user's, a link, or may be written by others; remove it, or choose another "
                         "folder")
    return own


def _copy_of(path: Path, own: Path) -> Path:
    """Return the sound copy of a file in `own`; make it if there is none."""
    facts = path.stat()
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    # archives and cp -p give other content the same time of change; the file's own facts then differ still
    state = f"{facts.st_size:x}-{facts.st_mtime_ns:x}-{facts.st_ctime_ns:x}-{facts.st_ino:x}"
    copy = own / f"{key}-{state}-{path.name.lstrip('.')}"
    if _is_sound(copy, facts.st_size):
        return copy
    with lock_file(own / f"{key}.lock"):
        if _is_sound(copy, facts.st_size):  # another process has made it meanwhile
            return copy
        for old in own.glob(f"{key}-*"):  # of an earlier state; who has mapped it keeps it
            old.unlink(missing_ok=True)
        free = shutil.disk_usage(own).free
        if free < facts.st_size + SPARE:
            raise OSError(f"it would need {facts.st_size / 1e6:,.0f} MB and leave {SPARE / 1e6:,.0f}; "
                          f"{free / 1e6:,.0f} MB are free")
        with atomic_path(copy) as temporary:
            checksum = _transfer(path, temporary)
            if _checksum(temporary) != checksum or path.stat().st_mtime_ns != facts.st_mtime_ns:
                raise OSError("what was written is not what was read; is the disk sound, and does nothing write the "
                              "original?")
        write_text(_sum_of(copy), f"{checksum:08x}")
    return copy


def _sum_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.crc32")


def _is_sound(copy: Path, size: int) -> bool:
    """Return whether a copy is there and has the checksum beside it."""
    try:
        return copy.stat().st_size == size and b"%08x" % _checksum(copy) == _sum_of(copy).read_bytes()
    except FileNotFoundError:
        return False


def _transfer(source: Path, target: Path) -> int:
    """Copy a file's content to the disk, and return the checksum of what was read."""
    checksum = 0
    with open(source, "rb") as reading, open(target, "xb") as writing:
        while block := reading.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
            writing.write(block)
        writing.flush()
        os.fsync(writing.fileno())
        os.posix_fadvise(writing.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the disk is read back, not memory
    return checksum


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
