"""One interface over video decoders: exact frames, or an error that names the file.

    reader = open_video(path); reader.length, reader.fps; reader.read([3, 17, 40]) -> uint8 (3, height, width, 3)

frame_sampling.py decides which frames make a clip; clips.py finds the files that a clip spans.
"""
import collections
import importlib
import os
from pathlib import Path

import numpy as np

from egokit.data.video.decord_reader import DecordReader
from egokit.data.video.pyav_reader import PyAVReader, Untimed, VideoError
from egokit.data.video.untimed_reader import UntimedReader

READERS = {"pyav": PyAVReader, "decord": DecordReader, "counting": UntimedReader}
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


def open_video(path: str | os.PathLike, reader: str = "pyav"):
    """Return a reader of the file, and keep it open for the next clip of the same file.

    The OPEN_FILES files used last stay open. A file that was replaced on disk is opened again.

    Args:
        path: a video file.
        reader: "pyav", "decord", or "counting" for files without timestamps.

    Returns:
        A reader with `length` (number of frames), `fps` (frames per second), `read(indices)`, which gives RGB frames,
        uint8 (len(indices), height, width, 3), and `stream_frames(indices)`, which yields ascending frames one by one.

    Raises:
        FileNotFoundError: `path` is not a file.
        VideoError: it can't be opened, or its decoder hung or crashed before.
        Untimed: the file has no timestamps, which "pyav" needs; `open_any` reads it. Untimed is a VideoError.
    """
    path = Path(path)
    key = (str(path), reader)
    if key[0] in unreadable:
        raise VideoError(f"{path}: left out, as it did not answer before; "
                         "make it again from its source with 'egokit prep'")
    if on_open:
        on_open(key[0])
    if not os.path.isfile(path):
        forget(path)
        raise FileNotFoundError(f"video {path} is missing; notebook 01_data_prep (or 'egokit prep') "
                                "makes the prepared videos")
    status = path.stat()
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns  # changes when the file is replaced
    if key in _open and _open[key].identity == identity:
        _open.move_to_end(key)
        return _open[key]
    forget(path)  # replaced since it was opened
    opened = READERS[reader](path)
    opened.identity = identity
    _open[key] = opened
    while len(_open) > OPEN_FILES:
        _open.popitem(last=False)[1].close()
    return opened


def open_any(path: str | os.PathLike, reader: str = "pyav"):
    """Open any video; if its container has no timestamps, fall back to counting frames.

    `open_video` is enough for prepared files, which all have timestamps. Arguments, reader and errors are the same.
    """
    try:
        return open_video(path, reader)
    except Untimed:
        return open_video(path, "counting")


def quarter_turns(video) -> int:
    """Return the number of 90° counter-clockwise rotations that a player applies, 0 to 3.

    Phones record portrait video sideways and store a rotation flag. Readers give frames as they are stored.
    """
    return video.turns


def duration(video) -> float:
    """Return a video's duration in seconds, up to the end of its last frame."""
    if video.times is None:
        return video.length / video.fps
    return float((video.times[-1] - video.times[0]) * video.stream.time_base) + 1 / video.fps


def frame_at(video, time: float) -> int:
    """Return the number of the frame that is shown at `time` seconds.

    The frame rate may be constant or variable. A time outside the video gives its first or last frame.
    """
    if video.times is None:
        number = int(time * video.fps + 1e-3)  # a computed time may lie just before its frame, and files round to 1 ms
    else:
        moment = video.times[0] + (time + 1e-3) / float(video.stream.time_base)
        number = int(video.times.searchsorted(moment, "right")) - 1
    return max(0, min(number, video.length - 1))


def time_resolution(video) -> float:
    """Return a sampling rule's time resolution in steps per second.

    It is the frame rate, or 1000 for variable-rate video.
    """
    gaps = np.empty(0) if video.times is None else np.diff(video.times)
    # Matroska files of a constant rate also have a list of times, rounded to 1 ms
    variable = len(gaps) and (gaps.max() - gaps.min()) * float(video.stream.time_base) > 2.5e-3
    return 1000.0 if variable else video.fps


def forget(path: str | os.PathLike) -> None:
    """Close a file's readers: after an error on it, or before the file is replaced."""
    for key in [key for key in _open if key[0] == str(path)]:
        _open.pop(key).close()
