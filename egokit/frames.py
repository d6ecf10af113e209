"""One interface over video decoders: frames of a file by number, exactly, or an error that names the file.

    reader = open_video(path); reader.length, reader.fps; reader.read([3, 17, 40]) -> uint8 (3, height, width, 3)

Which frames make a clip is sampling.py's; files that a clip spans are clips.py's.
"""
from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class VideoError(RuntimeError):
    """A video can't be read as asked; the message names the file, the frame or time, and the reason."""


SKIPPING = {"h264", "hevc"}  # decoders that can leave out a frame when they meet it


class PyAVReader:
    """Decodes only what a wanted frame needs: from the keyframe before it, the frames that others refer to, and itself.

    A frame's number is its place in order of presentation. In a file of constant rate that is its presentation time times
    the rate; any other file is numbered from a table of its packets' times, which costs a pass over the file.
    """

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
        if self.container.format.name == "avi":
            raise VideoError(f"{path}: AVI files don't say when a frame is shown; make an MP4 of it with 'egokit prep ego4d'")
        self.stream.codec_context.thread_count = 1
        self.to_rgb = av.video.reformatter.VideoReformatter()
        rate = self.stream.base_rate if self._constant() else self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            raise VideoError(f"{path}: the file states no frame rate; prepare it with 'egokit prep'")
        self.fps = float(rate)
        self.step = float(1 / (rate * self.stream.time_base))  # time stamps a frame
        self.origin = self.stream.start_time or 0
        self.times: np.ndarray | None = None
        self.length = self.stream.frames
        if not self._constant():
            self._list_packets()

    def _constant(self) -> bool:
        """Whether the header says that all frames have one duration: their number times it is then the whole duration."""
        stream = self.stream
        if not (stream.frames and stream.base_rate and stream.duration):
            return False
        return abs(stream.duration * stream.time_base * stream.base_rate - stream.frames) < 0.75

    def _list_packets(self) -> None:
        """Presentation times of all frames, sorted: the truth about a file whose times are not number / rate."""
        self.container.seek(0)
        self.times = np.sort([packet.pts for packet in self.container.demux(self.stream)
                              if packet.pts is not None and not packet.is_discard])
        self.length = len(self.times)
        if not self.length:
            raise VideoError(f"{self.path}: its frames carry no times; prepare it with 'egokit prep'")

    def _number(self, pts: int) -> float:
        """The number of the frame of a time; between two numbers for a frame that isn't shown (before an edit list's start)."""
        if self.times is not None:
            place = int(np.searchsorted(self.times, pts))
            return place if place < self.length and self.times[place] == pts else place - 0.5
        exact = (pts - self.origin) / self.step
        number = round(exact)
        if abs(exact - number) > 0.2:
            raise _Irregular
        return number

    def read(self, indices) -> np.ndarray:
        """uint8 (len(indices), height, width, 3), in the order asked for; indices may repeat."""
        indices = [int(i) for i in indices]
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(index, []).append(place)
        try:
            return self._read(places, len(indices))
        except _Irregular:
            self._list_packets()
            return self._read(places, len(indices))

    def _read(self, places: dict[int, list[int]], count: int) -> np.ndarray:
        wanted = self._checked(sorted(places))
        out = None
        while wanted:
            seen = set()
            for index, frame in self._walk(wanted, leap=True):
                if out is None:
                    out = np.empty((count, frame.height, frame.width, 3), np.uint8)
                first, *others = places[index]
                self._pixels(frame, out[first])
                out[others] = out[first]
                seen.add(index)
            wanted = [index for index in wanted if index not in seen]
        return out

    def stream_frames(self, indices) -> Iterator[np.ndarray]:
        """uint8 (height, width, 3) for every index, in ascending order: a long stretch, decoded once, in bounded memory.

        Nothing else may be read from this reader until it has ended.
        """
        counts = collections.Counter(int(i) for i in indices)
        wanted = collections.deque(self._checked(sorted(counts)))
        while wanted:
            try:
                for index, frame in self._walk(list(wanted), leap=False):
                    pixels = np.empty((frame.height, frame.width, 3), np.uint8)
                    self._pixels(frame, pixels)
                    yield from itertools.repeat(pixels, counts[index])
                    wanted.popleft()
            except _Irregular:
                self._list_packets()

    def _checked(self, wanted: list[int]) -> list[int]:
        for index in wanted[:1] + wanted[-1:]:
            if not 0 <= index < self.length:
                raise VideoError(f"{self.path}: frame {index} asked for, but the file has {self.length} ({self.fps:.2f} a second)")
        return wanted

    def _walk(self, wanted: list[int], leap: bool):
        """(index, frame) of `wanted`, ascending, from the keyframe before the first on.

        leap: stop where a seek is the shorter way to those that remain; the caller asks for them again.
        """
        import av
        context, unsent, unseen = self.stream.codec_context, set(wanted), collections.deque(wanted)
        try:
            keyframe = None
            for packet in self._seek(wanted[0]):
                if packet.pts is None or not unsent:
                    break
                number = self._number(packet.pts)
                if packet.is_keyframe:
                    if keyframe is not None and min(unsent) < keyframe:
                        break  # not in the stretch that holds it
                    if leap and len(unsent) < len(wanted) and min(unsent) >= number:
                        break
                    keyframe = number
                # what nothing refers to is decoded only if wanted; the rest of the decoder's state does not depend on it
                if context.name in SKIPPING:
                    context.skip_frame = "DEFAULT" if number in unsent else "NONREF"
                unsent.discard(number)
                yield from self._found(context.decode(packet), unseen)
            context.skip_frame = "DEFAULT"
            yield from self._found(context.decode(None), unseen)
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: {self._where(unseen)} can't be decoded ({getattr(error, 'strerror', None) or error})") from None
        if not unseen or (leap and unseen[0] != wanted[0] and unseen[0] in unsent):
            return
        if packet.pts is None and self.times is None:
            raise VideoError(f"{self.path}: the stream ends before {self._where(unseen)}, although the file promises {self.length} frames")
        if self.times is None:
            raise _Irregular  # there are frames beyond it, but none of its time
        raise VideoError(f"{self.path}: {self._where(unseen)} can't be decoded (the decoder leaves it out)")

    def _seek(self, index: int):
        """Packets from a keyframe at or before a frame on."""
        time, back = self.origin + round(index * self.step) if self.times is None else int(self.times[index]), 0
        while True:
            if time - back > self.origin:
                self.container.seek(time - back, stream=self.stream, backward=True)
            else:
                self.container.seek(0)
            packets = self.container.demux(self.stream)
            head = next(packets)
            if time - back <= self.origin or (head.is_keyframe and head.pts is not None and self._number(head.pts) <= index):
                return itertools.chain([head], packets)
            back = 2 * back or round(self.step)  # led beyond the frame: some containers seek by order of decoding

    def _found(self, decoded, unseen: collections.deque):
        for frame in decoded:
            if frame.is_corrupt:  # what refers to it would be, too, and not say so
                raise VideoError(f"{self.path}: {self._where(unseen)} can't be decoded (damaged data at "
                                 f"{frame.time or 0:.2f} s); make it again from its source with 'egokit prep', or replace it")
            number = self._number(frame.pts) if frame.pts is not None else -1
            if unseen and number == unseen[0]:
                unseen.popleft()
                yield number, frame

    def _where(self, unseen) -> str:
        index = unseen[0] if unseen else self.length - 1
        return f"frame {index} (at {index / self.fps:.2f} s)"

    def _pixels(self, frame, out_HWC: np.ndarray) -> None:
        # one thread: libswscale otherwise starts its threads anew for every frame (benchmarks/reader.py)
        plane = self.to_rgb.reformat(frame, format="rgb24", threads=1).planes[0]
        height, width, _ = out_HWC.shape
        out_HWC[:] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :3 * width].reshape(height, width, 3)

    def close(self) -> None:
        self.container.close()


class _Irregular(Exception):
    """The file's times are not number / rate, although its header says so."""


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

    def stream_frames(self, indices) -> Iterator[np.ndarray]:
        for at in range(0, len(indices), 32):
            yield from self.read(indices[at:at + 32])

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
