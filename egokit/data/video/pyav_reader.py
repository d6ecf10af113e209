"""The default reader, on PyAV: exact frames by number, or an error that names the file.

A tolerant reader gives what there is: a damaged frame is shown as the one before, where a strict reader raises.
"""
import collections
import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from egokit.data.video import decoding, pictures
from egokit.data.video.media_file import IrregularTimes, MediaFile
from egokit.data.video.timeline import Refused, VideoError, advice


class PyAVReader(MediaFile):
    """Random access that decodes no more than a wanted frame needs.

    That is the keyframe before it, the frames that others refer to, and the frame itself.

    Attributes:
        width, height: of the first picture as it is shown.
        damaged_numbers: the frames that a tolerant reader has found damaged so far (see decoding.py).
    """

    def __init__(self, path: Path, tolerant: bool = False, status: os.stat_result | None = None):
        super().__init__(path, tolerant, status)
        self.damaged_numbers: set[int] = set()
        self.reasons: dict[float, str] = {}
        self.to_rgb = av.video.reformatter.VideoReformatter()

    def read(self, indices) -> np.ndarray:
        """Return RGB frames by number.

        Args:
            indices: frame numbers in any order; they may repeat.

        Returns:
            uint8 (len(indices), height, width, 3), in the order of `indices`, as players show them. If the picture's
            size changes, the others are fitted to the first (see `pictures.fit`).

        Raises:
            VideoError: a number is outside the file, or a frame is damaged; in a tolerant reader, all are.
        """
        indices = np.asarray(indices, int)
        try:
            return self._read_straight(indices) if self.tolerant else self._read(indices)
        except IrregularTimes:
            return self.read(self._renumbered(indices))

    def _read(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames as `read` does, or raise IrregularTimes."""
        wanted, out = self._check_range(np.unique(indices).tolist()), None
        while wanted:
            seen = set()
            for index, frame in self._decode(wanted, leap=True):
                pixels = self.rgb(frame)
                out = np.empty((len(indices), *pixels.shape), np.uint8) if out is None else out
                out[indices == index] = pictures.fit(pixels, *out.shape[1:3])
                seen.add(index)
            wanted = [index for index in wanted if index not in seen]
        return out

    def _read_straight(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames as `read` does, without seeks between them."""
        wanted, places = np.unique(indices, return_inverse=True)
        out = None
        for place, (_, pixels) in enumerate(self._stream(self._check_range(wanted.tolist()))):
            out = np.empty((len(indices), *pixels.shape), np.uint8) if out is None else out
            out[places == place] = pictures.fit(pixels, *out.shape[1:3])
        return out

    def stream_frames(self, indices) -> Iterator[np.ndarray]:
        """Yield uint8 (height, width, 3) for every index, in ascending order, each of its own size.

        A long stretch of video is decoded once, in bounded memory. Nothing else may be read from this reader until the
        iterator has ended.
        """
        todo = collections.deque(self._check_range(sorted(int(i) for i in indices)))
        while todo:
            wanted = list(dict.fromkeys(todo))
            try:
                for index, pixels in self._stream(wanted):
                    while todo and todo[0] == index:
                        yield pixels
                        todo.popleft()
            except IrregularTimes:
                todo = collections.deque(self._renumbered(np.array(todo)).tolist())

    def _stream(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, picture) of each of `wanted`, which is ascending.

        A tolerant reader gives a damaged picture as the readable one before it.
        """
        latest, before = None, []
        for index, frame in self._decode(wanted, leap=False):
            latest = latest if frame is None else self.rgb(frame).copy()
            before.append(index)
            if latest is not None:
                yield from ((number, latest) for number in before)
                before = []
        if before:
            reason = next(iter(self.reasons.values()), decoding.LEFT_OUT)
            raise VideoError(f"{self.path}: nothing can be read between {float(self.time_of(wanted[0])):.2f} and "
                             f"{float(self.time_of(wanted[-1])):.2f} s ({reason}); {advice(self.path)}")

    def _decode(self, wanted: list[int], leap: bool) -> Iterator:
        """Yield (number, frame) as `decoding.decode` does; a strict reader raises VideoError at a damaged one."""
        try:
            for index, frame in decoding.decode(self, wanted, leap):
                if frame is None and not self.tolerant:
                    raise self._damaged(index)
                yield index, frame
        except (av.error.FFmpegError, OSError) as error:  # of the container
            raise self._damaged(wanted[0], getattr(error, "strerror", None) or str(error)) from None

    def _damaged(self, index: int, reason: str = "") -> VideoError:
        """Return the error that says why a frame can't be decoded."""
        if not reason:
            number, reason = index, self.reasons.get(index) or decoding.LEFT_OUT
            if index not in self.reasons and self.reasons:
                number, reason = next(reversed(self.reasons.items()))
                reason = f"damage at {float(self.time_of(int(number))):.2f} s: {reason}"
        at = float(self.time_of(index))
        return VideoError(f"{self.path}: frame {index} (at {at:.2f} s) can't be decoded ({reason}); "
                          f"{advice(self.path)}")

    def _renumbered(self, indices: np.ndarray) -> np.ndarray:
        """List the times of a file that is not of constant rate, and return the frames shown at these times.

        Raises:
            VideoError: the file has fewer frames than it promises.
        """
        promised, moments = self.length, self.time_of(indices)
        self.damaged_numbers.clear()  # they were numbered otherwise
        try:
            self.list_times(self.rate)
        except Refused as error:
            raise VideoError(f"{self.path}: {error}; {advice(self.path)}") from None
        if self.length < promised and not self.tolerant:
            raise VideoError(f"{self.path}: the stream ends at {self.seconds:.2f} s, after {self.length} frames, "
                             f"although the file promises {promised}; {advice(self.path)}")
        return self.frame_at(moments)

    def _check_range(self, wanted: list[int]) -> list[int]:
        """Return the sorted frame numbers if the file has them, else raise VideoError."""
        for index in wanted[:1] + wanted[-1:]:
            if not 0 <= index < self.length:
                raise VideoError(f"{self.path}: frame {index} asked for, but the file has {self.length} "
                                 f"({self.fps:.2f} a second)")
        return wanted

    def rgb(self, frame) -> np.ndarray:
        """Return a decoded frame as players show it, RGB, uint8 (height, width, 3): a view, to be copied if kept."""
        try:
            pictures.check_size(frame.width, frame.height)  # it may change in mid-file
        except Refused as error:
            raise VideoError(f"{self.path}: {error}") from None
        width, height = pictures.square_size(frame.width, frame.height, self.aspect)
        # one thread: otherwise libswscale starts its threads anew for every frame (benchmarks/reader.py)
        plane = self.to_rgb.reformat(frame, width, height, "rgb24", threads=1).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        return pictures.upright(rows[:height, :3 * width].reshape(height, width, 3), pictures.orientation(frame))

    @functools.cached_property
    def _first(self) -> tuple:
        """The first frame that can be decoded: how it becomes upright, its width and its height when it is."""
        with contextlib.suppress(av.error.FFmpegError):  # raised later, when the frame is requested
            self.rewind()
            for packet in self.packets():
                with contextlib.suppress(av.error.FFmpegError):
                    for frame in self.stream.codec_context.decode(packet):
                        return pictures.orientation(frame), *self.rgb(frame).shape[1::-1]
        raise VideoError(f"{self.path}: no frame of it can be decoded; {advice(self.path)}")

    @property
    def how(self) -> tuple[bool, bool, bool]:
        """How the first picture becomes upright (see `pictures.orientation`)."""
        return self._first[0]

    @property
    def width(self) -> int:
        return self._first[1]

    @property
    def height(self) -> int:
        return self._first[2]
