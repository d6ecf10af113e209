"""The default reader, on PyAV: exact frames by number, or an error that names the file.

A tolerant reader gives what there is: past_damage.py decodes past damage, which a strict reader refuses.
"""
import collections
import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from egokit.data.video import past_damage, pictures
from egokit.data.video.media_file import IrregularTimes, MediaFile
from egokit.data.video.past_damage import DELAY, SKIPPING
from egokit.data.video.timeline import Refused, VideoError, advice


class PyAVReader(MediaFile):
    """Random access that decodes no more than a wanted frame needs.

    That is the keyframe before it, the frames that others refer to, and the frame itself.

    Attributes:
        width, height: of the first picture as it is shown.
        damaged_numbers: the frames that a tolerant reader has found damaged so far (see past_damage.py).
    """

    def __init__(self, path: Path, tolerant: bool = False):
        super().__init__(path, tolerant)
        self.damaged_numbers: set[int] = set()
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
        found = [pixels for _, pixels in self._stream(self._check_range(wanted.tolist()))]
        return np.stack([pictures.fit(pixels, *found[0].shape[:2]) for pixels in found])[places]

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
        """Yield (number, picture) of each of `wanted`, held back until no later damage can concern it."""
        if self.tolerant:
            yield from past_damage.filled(self, wanted)
            return
        held: collections.deque = collections.deque()
        while wanted:
            count = 0
            for index, frame in self._decode(wanted, leap=False):
                held.append((index, self.rgb(frame).copy()))
                count += 1
                if len(held) > DELAY:
                    yield held.popleft()
            wanted = wanted[count:]
        yield from held

    def _renumbered(self, indices: np.ndarray) -> np.ndarray:
        """List the times of a file that is not of constant rate, and return the frames shown at these times.

        Raises:
            VideoError: the file has fewer frames than it promises.
        """
        promised, moments = self.length, self.time_of(indices)
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

    def _decode(self, wanted: list[int], leap: bool):
        """Yield (index, frame) for each of `wanted`, which is ascending.

        Decoding begins at the keyframe before the first of them.
        leap: stop where a seek is the shorter way to the remaining frames; the caller requests these again.
        """
        self.latest = float("-inf")  # number of the last frame that was decoded
        context, unsent, unseen = self.stream.codec_context, set(wanted), collections.deque(wanted)
        try:
            keyframe = float("-inf")
            for packet in self.seek(wanted[0]):
                if packet.pts is None or not unsent:
                    break
                number = self.number_of(packet.pts)
                if packet.is_keyframe:
                    # a wanted frame was not in its own stretch between keyframes, or a seek is the shorter way
                    if min(unsent) < keyframe or (leap and len(unsent) < len(wanted) and min(unsent) >= number):
                        break
                    keyframe = number
                # a frame that no other refers to is decoded only if wanted; the decoder's state doesn't depend on it
                if context.name in SKIPPING:
                    context.skip_frame = "DEFAULT" if number in unsent else "NONREF"
                unsent.discard(number)
                yield from self._found(context.decode(packet), unseen)
            context.skip_frame = "DEFAULT"
            yield from self._found(context.decode(None), unseen)
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: {self._describe(unseen)} can't be decoded "
                             f"({getattr(error, 'strerror', None) or error}); {advice(self.path)}") from None
        if not unseen or (leap and unseen[0] != wanted[0] and unseen[0] in unsent):
            return
        if self.times is None:
            raise IrregularTimes  # there is no frame at its time
        raise VideoError(f"{self.path}: {self._describe(unseen)} can't be decoded (the decoder leaves it out); "
                         f"{advice(self.path)}")

    def seek(self, index: int):
        """Return an iterator of packets that begins with a keyframe at or before a frame."""
        time, back = self.origin + round(index * self.step) if self.times is None else int(self.times[index]), 0
        while True:
            if time - back > self.origin:
                self.container.seek(time - back, stream=self.stream, backward=True)
            else:
                self.rewind()
            packets = self.packets()
            head = next(packets, None)
            if head is None:
                raise VideoError(f"{self.path}: frame {index} can't be found; {advice(self.path)}")
            if time - back <= self.origin or (head.is_keyframe and head.pts is not None
                                              and self.number_of(head.pts) <= index):
                return itertools.chain([head], packets)
            # the seek led beyond the frame, as some containers seek by decoding order: go further back
            back = 2 * back or round(self.step)

    def _found(self, decoded, unseen: collections.deque):
        """Yield (number, frame) of those that are next in `unseen`; raise VideoError at damage."""
        for frame in decoded:
            number = self.number_of(frame.pts) if frame.pts is not None else -1
            # a frame that refers to a corrupt one is corrupt but not marked, so this ends the read;
            # decoders give frames in presentation order, so a number that doesn't increase is damage, too
            if frame.is_corrupt or number <= self.latest:
                kind = "" if frame.is_corrupt else "times "
                raise VideoError(f"{self.path}: damaged {kind}at {self._seconds(frame):.2f} s; "
                                 f"{advice(self.path)}")
            self.latest = number
            if unseen and number == unseen[0]:
                unseen.popleft()
                yield number, frame

    def _seconds(self, frame) -> float:
        """Return a frame's time in seconds, 0 if unknown."""
        # not frame.time: PyAV 17.0's divides by zero after the last packet
        return float((frame.pts or 0) * self.stream.time_base) - self.zero()

    def _describe(self, unseen) -> str:
        """Return the number and time of the first unseen frame, for a message."""
        index = unseen[0] if unseen else self.length - 1
        return f"frame {index} (at {float(self.time_of(index)):.2f} s)"

    def rgb(self, frame) -> np.ndarray:
        """Return a decoded frame as players show it, RGB, uint8 (height, width, 3): a view, to be copied if kept."""
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
