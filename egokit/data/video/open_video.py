"""One interface over video decoders: frames of a file by number, exactly, or an error that names the file.

    reader = open_video(path); reader.length, reader.fps; reader.read([3, 17, 40]) -> uint8 (3, height, width, 3)

Which frames make a clip is sampling.py's; files that a clip spans are clips.py's.
"""
from __future__ import annotations

import collections
import contextlib
import importlib
import os
import stat
from pathlib import Path

import numpy as np

from egokit.data.video.decord_reader import DecordReader
from egokit.data.video.pyav_reader import PyAVReader, Untimed, VideoError
from egokit.data.video.untimed_reader import UntimedReader

READERS = {"pyav": PyAVReader, "decord": DecordReader, "counting": UntimedReader}
_open: collections.OrderedDict = collections.OrderedDict()  # this process's open files, oldest first
OPEN_FILES = 24
_owner = os.getpid()
unreadable: set[str] = set()  # files that did not answer: not tried again
on_open = None              # called with each path before it is opened or read: how a loader process says what it is at


def import_reader(reader: str) -> None:
    """Import a reader's library: in the process that forks the loader processes, or each of them does, all at once."""
    importlib.import_module({"pyav": "av"}.get(reader, reader))


def open_video(path: str | os.PathLike, reader: str = "pyav"):
    """A reader of the file, kept open for the next clip of the same file. Raises VideoError, or FileNotFoundError."""
    global _owner
    if _owner != os.getpid():  # a forked loader process: decoders don't survive a fork
        _open.clear()
        _owner = os.getpid()
    path = Path(path)
    key = (str(path), reader)
    if key[0] in unreadable:
        raise VideoError(f"{path}: left out, as it did not answer before; make it again from its source with 'egokit prep'")
    if on_open:
        on_open(key[0])
    identity = _identity(path)
    if key in _open and _open[key].identity == identity:
        _open.move_to_end(key)
        return _open[key]
    forget(path)  # replaced since it was opened
    if identity is None:
        raise FileNotFoundError(f"video {path} is missing; notebook 01_data_prep (or 'egokit prep') makes the prepared videos")
    opened = READERS[reader](path)
    opened.identity = identity
    _open[key] = opened
    while len(_open) > OPEN_FILES:
        _open.popitem(last=False)[1].close()
    return opened


def open_any(path: str | os.PathLike, reader: str = "pyav"):
    """`open_video` for files that nobody has prepared: where frames have no times of their own, they are counted."""
    try:
        return open_video(path, reader)
    except Untimed:
        return open_video(path, "counting")


def quarter_turns(video) -> int:
    """Quarter turns, counter-clockwise, in which a player shows a file's frames: a phone held upright films lying, and says so."""
    if not hasattr(video, "turns"):
        video.turns = 0
        if hasattr(video, "container"):
            import av
            with contextlib.suppress(av.error.FFmpegError, StopIteration):  # what can't be decoded is said where it is asked for
                video.rewind()
                video.turns = round(next(video.container.decode(video.stream)).rotation / 90) % 4
    return video.turns


def duration(video) -> float:
    """How long a video is shown, to its last frame's end."""
    times = getattr(video, "times", None)  # of a file whose frames have no constant rate
    return video.length / video.fps if times is None else float((times[-1] - times[0]) * video.stream.time_base) + 1 / video.fps


def frame_at(video, time: float) -> int:
    """The number of the frame that is shown at a time in seconds, whatever the frames' rate."""
    times = getattr(video, "times", None)
    if times is None:
        number = int(time * video.fps + 1e-3)  # a time that was computed may lie a moment before its frame, and files round to 1 ms
    else:
        number = int(times.searchsorted(times[0] + (time + 1e-3) / float(video.stream.time_base), "right")) - 1
    return max(0, min(number, video.length - 1))


def time_resolution(video) -> float:
    """Moments a second that a rule tells apart: a video's frames; where those come at no constant rate, milliseconds."""
    times = getattr(video, "times", None)
    gaps = np.empty(0) if times is None else np.diff(times)  # a Matroska's times are listed, too, and rounded to 1 ms
    return 1000.0 if len(gaps) and (gaps.max() - gaps.min()) * float(video.stream.time_base) > 2.5e-3 else video.fps


def _identity(path: Path) -> tuple | None:
    """What changes when a file is replaced; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def forget(path: str | os.PathLike) -> None:
    """Close what is open of a file, after an error on it or before it is replaced."""
    for key in [key for key in _open if key[0] == str(path)]:
        _open.pop(key).close()
