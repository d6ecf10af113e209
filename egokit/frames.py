"""One interface over video decoders: frames of a file by number, exactly, or an error that names the file.

    reader = open_video(path); reader.length, reader.fps; reader.read([3, 17, 40]) -> uint8 (3, height, width, 3)

Which frames make a clip is sampling.py's; files that a clip spans are clips.py's.
"""
from __future__ import annotations

import collections
import os
from pathlib import Path

import numpy as np


class VideoError(RuntimeError):
    """A video can't be read as asked; the message names the file, the frame or time, and the reason."""


class PyAVReader:
    """Seeks once to the keyframe before a wanted frame and decodes straight on; seeks again over long gaps.

    A frame's number is its presentation time times the rate; the first frame read in each stretch is checked against
    that, and a file whose times don't fall on a regular grid is numbered from a table of all its packets' times.
    """

    GAP = 48  # frames: beyond this, another seek beats decoding what lies between

    def __init__(self, path: Path):
        import av
        self.path = path
        try:
            self.container = av.open(str(path))
            self.stream = self.container.streams.video[0]
        except (av.error.FFmpegError, IndexError, OSError) as error:
            reason = "no video stream" if isinstance(error, IndexError) else getattr(error, "strerror", None) or error
            raise VideoError(f"{path}: not a video that can be opened ({reason}); "
                             "make it again from its source with 'egokit prep', or replace it") from None
        self.stream.codec_context.thread_count = 1
        self.to_rgb = av.video.reformatter.VideoReformatter()
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            raise VideoError(f"{path}: the file states no frame rate; prepare it with 'egokit prep'")
        self.fps = float(rate)
        self.step = 1 / (rate * self.stream.time_base)      # time stamps a frame
        self.origin = self.stream.start_time or 0
        self.times: list[int] | None = None
        self.decoder, self.position, self.last = None, None, None  # where the decoder stands, and the frame it gave last
        self.length = self.stream.frames or len(self._packet_times())

    def _packet_times(self) -> list[int]:
        """Presentation times of all frames, sorted: the truth about an irregular file. Costs a pass over the file."""
        if self.times is None:
            self.container.seek(0)
            self.times = sorted(packet.pts for packet in self.container.demux(self.stream) if packet.pts is not None)
        return self.times

    def _time(self, index: int) -> int:
        if self.times is not None:
            return self.times[min(index, len(self.times) - 1)]
        return self.origin + round(index * self.step)

    def _number(self, pts: int) -> int:
        if self.times is not None:
            return int(np.searchsorted(self.times, pts))
        exact = (pts - self.origin) / self.step
        number = round(exact)
        if abs(float(exact) - number) > 0.2:
            raise _Irregular
        return number

    def read(self, indices) -> np.ndarray:
        """uint8 (len(indices), height, width, 3), in the order asked for; indices may repeat.

        A read that follows on the last one goes on decoding where that stopped, so a long video streams in pieces.
        """
        wanted = sorted({int(i) for i in indices})
        try:
            found = {index: self._frame(index) for index in wanted}
        except _Irregular:
            self._packet_times()
            self.position = None
            found = {index: self._frame(index) for index in wanted}
        return np.stack([found[int(i)] for i in indices])

    def _frame(self, index: int) -> np.ndarray:
        import av
        if not 0 <= index < self.length:
            raise VideoError(f"{self.path}: frame {index} asked for, but the file has {self.length} ({self.fps:.2f} a second)")
        if self.position == index:
            return self.last
        where = f"frame {index} (at {index / self.fps:.2f} s)"
        try:
            if self.position is None or not 0 < index - self.position <= self.GAP:
                self.container.seek(self._time(index), stream=self.stream, backward=True)
                self.decoder, self.position = self.container.decode(self.stream), None
            for frame in self.decoder:
                if frame.pts is None:
                    continue
                number = self._number(frame.pts)
                if number >= index:
                    break
            else:
                self.position = None
                raise VideoError(f"{self.path}: the stream ends before {where}, although the file promises {self.length} frames")
            if number > index:
                self.position = None
                raise _Irregular if self.times is None else VideoError(f"{self.path}: {where} is missing in the stream")
            # one thread: libswscale otherwise starts its threads anew for every frame (benchmarks/reader.py)
            self.position, self.last = index, self.to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
            return self.last
        except (av.error.FFmpegError, OSError) as error:
            self.position = None
            raise VideoError(f"{self.path}: {where} can't be decoded ({getattr(error, 'strerror', None) or error})") from None

    def close(self) -> None:
        self.container.close()


class _Irregular(Exception):
    """The file's times are not index / rate."""


class DecordReader:
    """decord, one thread: the reader that the original's users know."""

    def __init__(self, path: Path):
        import decord
        self.path = path
        try:
            self.reader = decord.VideoReader(str(path), num_threads=1)
            self.fps, self.length = float(self.reader.get_avg_fps()), len(self.reader)
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(f"{path}: decord can't open it ({str(error).splitlines()[-1][:120]})") from None

    def read(self, indices) -> np.ndarray:
        import decord
        try:
            return self.reader.get_batch([int(i) for i in indices]).asnumpy()
        except (decord.DECORDError, IndexError, RuntimeError) as error:
            raise VideoError(f"{self.path}: frames {list(map(int, indices))} can't be read by decord "
                             f"({str(error).splitlines()[-1][:120]}; the file has {self.length})") from None

    def close(self) -> None:
        self.reader = None


READERS = {"pyav": PyAVReader, "decord": DecordReader}
_open: collections.OrderedDict = collections.OrderedDict()  # this process's open files, oldest first
OPEN_FILES = 24
_owner = os.getpid()
avoided: set[str] = set()  # files that did not answer: not tried again
notice = None              # called with each path before it is opened or read: how a loader process says what it is at


def open_video(path: str | os.PathLike, reader: str = "pyav"):
    """A reader of the file, kept open for the next clip of the same file. Raises VideoError, or FileNotFoundError."""
    global _owner
    if _owner != os.getpid():  # a forked loader process: decoders don't survive a fork
        _open.clear()
        _owner = os.getpid()
    path = Path(path)
    key = (str(path), reader)
    if key[0] in avoided:
        raise VideoError(f"{path}: left out, as it did not answer before; make it again from its source with 'egokit prep'")
    if notice:
        notice(key[0])
    if key in _open:
        _open.move_to_end(key)
        return _open[key]
    if not path.is_file():
        raise FileNotFoundError(f"video {path} is missing; notebook 01_data_prep (or 'egokit prep') makes the prepared videos")
    opened = READERS[reader](path)
    _open[key] = opened
    while len(_open) > OPEN_FILES:
        _open.popitem(last=False)[1].close()
    return opened


def forget(path: str | os.PathLike) -> None:
    """Close what is open of a file, after an error on it or before it is replaced."""
    for key in [key for key in _open if key[0] == str(path)]:
        _open.pop(key).close()
