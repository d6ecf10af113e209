"""The default reader, on PyAV: exact frames by number, or an error that names the file."""
import collections
import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.format import Flags


class VideoError(RuntimeError):
    """A video can't be read; the message names the file, the frame or time, and the reason."""


class Untimed(VideoError):
    """The file has no timestamps: it doesn't say when each frame is shown."""


SKIPPING = {"h264", "hevc"}  # decoders that can skip a frame when its packet arrives
DELAY = 16  # a frame may refer to one that is shown up to 16 frames later, and is damaged if that one is


class PyAVReader:
    """Random access that decodes no more than a wanted frame needs.

    That is the keyframe before it, the frames that others refer to, and the frame itself.

    A frame's number is its place in presentation order. In a file of constant frame rate that is its presentation time
    times the rate; any other file is numbered from a table of its packets' times, which costs a pass over the file.

    Attributes:
        length: number of frames.
        fps: frames per second.
        times: None at a constant frame rate, else all frames' presentation times, sorted, in the stream's time base.
    """

    def __init__(self, path: Path):
        self.path, self.times = path, None
        try:
            self.container = av.open(str(path), metadata_errors="replace")
            self.stream = self.container.streams.video[0]
            if self.stream.codec_context is None:
                raise VideoError(f"{path}: no decoder knows its codec")
            self._number_frames()
        except (VideoError, av.error.FFmpegError, IndexError, OSError) as error:
            no_stream = isinstance(error, IndexError)
            reason = "no video stream" if no_stream else getattr(error, "strerror", None) or str(error)
            kind = Untimed if isinstance(error, Untimed) else VideoError
            raise kind(f"{path}: not a video that can be opened ({reason.removeprefix(f'{path}: ')}); "
                       "make it again from its source with 'egokit prep', or replace it") from None
        self.to_rgb = av.video.reformatter.VideoReformatter()

    def _number_frames(self) -> None:
        """Set `length` and `fps`, and what gives each presentation time its frame's number."""
        container = self.container.format
        if container.name == "avi" or container.name.endswith("_pipe") or container.flags & Flags.no_timestamps.value:
            raise Untimed(f"{self.path}: {container.long_name} doesn't say when a frame is shown")
        self.stream.codec_context.thread_count = 1
        constant = self._has_constant_rate()
        rate = self.stream.base_rate if constant else self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            raise VideoError(f"{self.path}: the file states no frame rate")
        self.fps = float(rate)
        self.step = float(1 / (rate * self.stream.time_base))  # time base units per frame
        self.origin = self.stream.start_time or 0
        self.length = self.stream.frames
        if not constant:
            self._list_times()

    def _has_constant_rate(self) -> bool:
        """Return whether all frames have the same duration.

        The header and some entries of the index decide; a file without an index counts as one of variable rate.
        """
        stream, entries = self.stream, self.stream.index_entries
        if not (stream.frames and stream.base_rate and stream.duration and len(entries) == stream.frames
                and abs(stream.duration * stream.time_base * stream.base_rate - stream.frames) < 0.75):
            return False
        end, size = entries[len(entries) - 1].pos + entries[len(entries) - 1].size, self.path.stat().st_size
        if end > size:
            raise VideoError(f"{self.path}: cut off: its frames would fill {end:,} bytes, the file has {size:,}")
        step, first = 1 / (stream.base_rate * stream.time_base), entries[0].timestamp
        return all(abs(entries[i].timestamp - first - i * step) < 0.2 * step
                   for i in range(0, len(entries), len(entries) // 8 or 1))

    def rewind(self) -> None:
        """Seek to the start of the file."""
        try:
            self.container.seek(0)
        except av.error.FFmpegError:  # FLV files whose pictures begin after their sound
            self.container.seek(self.stream.start_time or 0, stream=self.stream)

    @functools.cached_property
    def turns(self) -> int:
        """What `open_video.quarter_turns` returns."""
        # decoding errors are raised later, when the frame is requested
        with contextlib.suppress(av.error.FFmpegError, StopIteration):
            self.rewind()
            return round(next(self.container.decode(self.stream)).rotation / 90) % 4
        return 0

    def _list_times(self) -> None:
        """List the presentation times of all frames, for files whose times aren't number / rate."""
        self.rewind()
        self.times = np.sort([packet.pts for packet in self.container.demux(self.stream)
                              if packet.pts is not None and not packet.is_discard])
        self.length = len(self.times)
        if not self.length or (np.diff(self.times) == 0).any():
            raise Untimed(f"{self.path}: frames without a time of their own")

    def _number(self, pts: int) -> float:
        """Return the number of the frame shown at `pts`.

        A frame that is not shown (before the start of an edit list) has a place between two numbers.
        """
        if self.times is not None:
            place = int(np.searchsorted(self.times, pts))
            return place if place < self.length and self.times[place] == pts else place - 0.5
        exact = (pts - self.origin) / self.step
        number = round(exact)
        if abs(exact - number) > 0.2:
            raise _IrregularTimes
        return number

    def read(self, indices) -> np.ndarray:
        """Return RGB frames by number.

        Args:
            indices: frame numbers in any order; they may repeat.

        Returns:
            uint8 (len(indices), height, width, 3), in the order of `indices`.

        Raises:
            VideoError: a number is outside the file, or a frame is damaged.
        """
        indices = np.asarray(indices, int)
        try:
            return self._read(indices)
        except _IrregularTimes:
            self._list_times()
            return self._read(indices)

    def _read(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames as `read` does, or raise _IrregularTimes."""
        wanted, out = self._check_range(np.unique(indices).tolist()), None
        while wanted:
            seen = set()
            for index, frame in self._decode(wanted, leap=True):
                pixels = self._rgb(frame)
                out = np.empty((len(indices), *pixels.shape), np.uint8) if out is None else out
                if pixels.shape != out.shape[1:]:
                    raise VideoError(f"{self.path}: its picture changes from {out.shape[2]} x {out.shape[1]} to "
                                     f"{frame.width} x {frame.height} at {self._seconds(frame):.2f} s; "
                                     "prepare it with 'egokit prep'")
                for place in np.flatnonzero(indices == index):
                    out[place] = pixels
                seen.add(index)
            wanted = [index for index in wanted if index not in seen]
        return out

    def stream_frames(self, indices) -> Iterator[np.ndarray]:
        """Yield uint8 (height, width, 3) for every index, in ascending order.

        A long stretch of video is decoded once, in bounded memory. Nothing else may be read from this reader until the
        iterator has ended.
        """
        counts = collections.Counter(int(i) for i in indices)
        wanted, held = collections.deque(self._check_range(sorted(counts))), collections.deque()
        while wanted:
            try:
                for index, frame in self._decode(list(wanted), leap=False):
                    held.append((index, self._rgb(frame).copy()))
                    wanted.popleft()
                    if len(held) > DELAY:
                        index, pixels = held.popleft()
                        yield from itertools.repeat(pixels, counts[index])
            except _IrregularTimes:
                self._list_times()
        for index, pixels in held:
            yield from itertools.repeat(pixels, counts[index])

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
        self.shown = float("-inf")  # number of the last frame that was decoded
        context, unsent, unseen = self.stream.codec_context, set(wanted), collections.deque(wanted)
        try:
            keyframe = float("-inf")
            for packet in self._seek(wanted[0]):
                if packet.pts is None or not unsent:
                    break
                number = self._number(packet.pts)
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
                             f"({getattr(error, 'strerror', None) or error})") from None
        if not unseen or (leap and unseen[0] != wanted[0] and unseen[0] in unsent):
            return
        if packet.pts is None and self.times is None:
            raise VideoError(f"{self.path}: the stream ends before {self._describe(unseen)}, "
                             f"although the file promises {self.length} frames")
        if self.times is None:
            raise _IrregularTimes  # there are later frames, but none at its time
        raise VideoError(f"{self.path}: {self._describe(unseen)} can't be decoded (the decoder leaves it out)")

    def _seek(self, index: int):
        """Return an iterator of packets that begins with a keyframe at or before a frame."""
        time, back = self.origin + round(index * self.step) if self.times is None else int(self.times[index]), 0
        while True:
            if time - back > self.origin:
                self.container.seek(time - back, stream=self.stream, backward=True)
            else:
                self.rewind()
            packets = self.container.demux(self.stream)
            head = next(packets)
            if time - back <= self.origin or (head.is_keyframe and head.pts is not None
                                              and self._number(head.pts) <= index):
                return itertools.chain([head], packets)
            # the seek led beyond the frame, as some containers seek by decoding order: go further back
            back = 2 * back or round(self.step)

    def _found(self, decoded, unseen: collections.deque):
        """Yield (number, frame) of those that are next in `unseen`; raise VideoError at damage."""
        for frame in decoded:
            number = self._number(frame.pts) if frame.pts is not None else -1
            # a frame that refers to a corrupt one is corrupt but not marked, so this ends the read;
            # decoders give frames in presentation order, so a number that doesn't increase is damage, too
            if frame.is_corrupt or number <= self.shown:
                kind = "" if frame.is_corrupt else "times "
                raise VideoError(f"{self.path}: damaged {kind}at {self._seconds(frame):.2f} s; "
                                 "make it again from its source with 'egokit prep', or replace it")
            self.shown = number
            if unseen and number == unseen[0]:
                unseen.popleft()
                yield number, frame

    def _seconds(self, frame) -> float:
        """Return a frame's time in seconds, 0 if unknown."""
        # not frame.time: PyAV 17.0's divides by zero after the last packet
        return float((frame.pts or 0) * self.stream.time_base)

    def _describe(self, unseen) -> str:
        """Return the number and time of the first unseen frame, for a message."""
        index = unseen[0] if unseen else self.length - 1
        return f"frame {index} (at {index / self.fps:.2f} s)"

    def _rgb(self, frame) -> np.ndarray:
        """Return a decoded frame as RGB, uint8 (height, width, 3): a view, to be copied if it is kept."""
        # one thread: otherwise libswscale starts its threads anew for every frame (benchmarks/reader.py)
        plane = self.to_rgb.reformat(frame, format="rgb24", threads=1).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        return rows[:frame.height, :3 * frame.width].reshape(frame.height, frame.width, 3)

    def close(self) -> None:
        """Close the file."""
        self.container.close()


class _IrregularTimes(Exception):
    """The file's times are not number / rate, although its header says so."""
