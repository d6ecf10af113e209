"""One interface over video decoders: exact frames, or an error that names the file.

    reader = open_video(path); reader.length, reader.fps; reader.read([3, 17, 40]) -> uint8 (3, height, width, 3)

frame_sampling.py decides which frames make a clip; clips.py finds the files that a clip spans.
"""
import collections
import errno
import importlib
import os
import stat
from pathlib import Path

from egokit.config import access
from egokit.data.video.decord_reader import DecordReader
from egokit.data.video.pyav_reader import PyAVReader
from egokit.data.video.timeline import Untimed, VideoError, advice, is_prepared
from egokit.data.video.untimed_reader import UntimedReader

# a video's suffix in any door, in lower case; upper case matches, too
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf",
            ".flv", ".3gp", ".ogv", ".vob")
READERS = {"pyav": PyAVReader, "decord": DecordReader}
_open: collections.OrderedDict = collections.OrderedDict()  # this process's open files, least recently used first
_of_parent: list[dict] = []  # what was open before a fork: decoders don't survive it, and closing one may hang
OPEN_FILES = 24
unreadable: set[str] = set()  # files whose decoder hung or crashed: not opened again
on_open = None              # called with each path before it is opened or read: tells the watchdog what a worker reads


def _leave_to_parent() -> None:
    _of_parent.append(dict(_open))
    _open.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def import_reader(reader: str) -> None:
    """Import a reader's library.

    The parent process calls it, or all forked workers would import the library at the same time.
    """
    importlib.import_module({"pyav": "av"}.get(reader, reader))


def open_video(path: str | os.PathLike, reader: str = "pyav", tolerant: bool = False):
    """Return a reader of the file, and keep it open for the next clip of the same file.

    The OPEN_FILES files used last stay open. A file that was replaced on disk is opened again.

    Args:
        path: a video file of any format.
        reader: "pyav" or "decord".
        tolerant: read what there is. A damaged frame is given as the readable one before it, and counted in the
            reader's `damaged_numbers`; otherwise it is a VideoError.

    Returns:
        A `Timeline` with `read(indices)`, which gives RGB frames, uint8 (len(indices), height, width, 3), and
        `stream_frames(indices)`, which yields ascending frames one by one. Frames are as players show them: upright,
        with square pixels, of the film and not of a cover.

    Raises:
        FileNotFoundError: `path` is not a file.
        VideoError: it can't be opened, or its decoder hung or crashed before.
    """
    opened = find_video(path, reader, tolerant)
    if opened is None:
        raise FileNotFoundError(f"video {path} is missing" + (
            "; notebook 01_data_prep (or 'egokit prep') makes the prepared videos" if is_prepared(path) else
            ": put it there, or correct the path"))
    return opened


def find_video(path: str | os.PathLike, reader: str = "pyav", tolerant: bool = False):
    """Return a reader of the file as `open_video` does, or None if `path` is not a file.

    The file system is asked for the file's facts once, and to open it once; for a file that is still open, only the
    former (benchmarks/opening.py counts). On a file system that many nodes share, each of them may be a message.

    Raises:
        VideoError: as `open_video`; also where a folder above the file, or above what it links to, may not be entered.
    """
    path = Path(path)
    key = (str(path), reader, tolerant)
    if key[0] in unreadable:
        raise VideoError(f"{path}: left out, as it did not answer before; {advice(path)}")
    if on_open:
        on_open(key[0])
    status = _status(path)
    if status is None:
        forget(path)
        return None
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns  # changes when the file is replaced
    if key in _open and _open[key].identity == identity:
        _open.move_to_end(key)
        return _open[key]
    forget(path)  # replaced since it was opened
    try:
        opened = READERS[reader](path, tolerant, status)
    except Untimed:
        opened = UntimedReader(path, tolerant, status)
    opened.identity = identity
    _open[key] = opened
    while len(_open) > OPEN_FILES:
        _open.popitem(last=False)[1].close()
    return opened


def _status(path: Path) -> os.stat_result | None:
    """Return the facts of a regular file; None if there is none."""
    try:
        status = os.stat(path)
    except ValueError:  # a name with a zero byte
        return None
    except PermissionError:  # what can't be seen is not absent: a clip would get other frames
        raise VideoError(access.explain(os.path.realpath(path))) from None  # it may be a link
    except OSError as error:
        if error.errno in (*access.ABSENT, errno.ENAMETOOLONG):
            return None
        raise  # a file system that doesn't answer is no missing file
    return status if stat.S_ISREG(status.st_mode) else None


def forget(path: str | os.PathLike) -> None:
    """Close a file's readers: after an error on it, or before the file is replaced."""
    for key in [key for key in _open if key[0] == str(path)]:
        _open.pop(key).close()
