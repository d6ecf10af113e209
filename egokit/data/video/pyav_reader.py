"""The decoders behind frames.py: frames of a file by number, exactly, or a VideoError that names the file."""
from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class VideoError(RuntimeError):
    """A video can't be read as asked; the message names the file, the frame or time, and the reason."""


class Untimed(VideoError):
    """The file doesn't say when each frame is shown."""


SKIPPING = {"h264", "hevc"}  # decoders that can leave out a frame when they meet it
DELAY = 16  # a frame may refer to one that is shown so many frames later, and be damaged where that is


class PyAVReader:
    """Decodes only what a wanted frame needs: from the keyframe before it, the frames that others refer to, and itself.

    A frame's number is its place in order of presentation. In a file of constant rate that is its presentation time times
    the rate; any other file is numbered from a table of its packets' times, which costs a pass over the file.
    """

    def __init__(self, path: Path):
        import av
        self.path, self.times = path, None
        try:
            self.container = av.open(str(path), metadata_errors="replace")
            self.stream = self.container.streams.video[0]
            if self.stream.codec_context is None:
                raise VideoError(f"{path}: no decoder knows its codec")
            if not self._timed():
                raise Untimed(f"{path}: {self.container.format.long_name} doesn't say when a frame is shown")
            self.stream.codec_context.thread_count = 1
            constant = self._constant()
            rate = self.stream.base_rate if constant else self.stream.average_rate or self.stream.guessed_rate
            if not rate:
                raise VideoError(f"{path}: the file states no frame rate")
            self.fps = float(rate)
            self.step = float(1 / (rate * self.stream.time_base))  # time stamps a frame
            self.origin = self.stream.start_time or 0
            self.length = self.stream.frames
            if not constant:
                self._list_packets()
        except (VideoError, av.error.FFmpegError, IndexError, OSError) as error:
            reason = "no video stream" if isinstance(error, IndexError) else getattr(error, "strerror", None) or str(error)
            kind = Untimed if isinstance(error, Untimed) else VideoError
            raise kind(f"{path}: not a video that can be opened ({reason.removeprefix(f'{path}: ')}); "
                       "make it again from its source with 'egokit prep', or replace it") from None
        self.to_rgb = av.video.reformatter.VideoReformatter()

    def _timed(self) -> bool:
        """Whether the container has presentation times: pictures, raw streams and AVI have none."""
        from av.format import Flags
        form = self.container.format
        return not (form.name == "avi" or form.name.endswith("_pipe") or form.flags & Flags.no_timestamps.value)

    def _constant(self) -> bool:
        """Whether all frames have one duration, by the header and by an index where there is one, of which some entries are looked at."""
        stream = self.stream
        if not (stream.frames and stream.base_rate and stream.duration):
            return False
        if abs(stream.duration * stream.time_base * stream.base_rate - stream.frames) >= 0.75:
            return False
        entries = stream.index_entries
        if len(entries) != stream.frames:
            return False
        end, size = entries[len(entries) - 1].pos + entries[len(entries) - 1].size, self.path.stat().st_size
        if end > size:
            raise VideoError(f"{self.path}: cut off: its frames would fill {end:,} bytes, the file has {size:,}")
        step, first = 1 / (stream.base_rate * stream.time_base), entries[0].timestamp
        return all(abs(entries[i].timestamp - first - i * step) < 0.2 * step for i in range(0, len(entries), len(entries) // 8 or 1))

    def rewind(self) -> None:
        """To the file's start."""
        import av
        try:
            self.container.seek(0)
        except av.error.FFmpegError:  # FLV whose pictures begin after its sound
            self.container.seek(self.stream.start_time or 0, stream=self.stream)

    def _list_packets(self) -> None:
        """Presentation times of all frames, sorted: the truth about a file whose times are not number / rate."""
        self.rewind()
        self.times = np.sort([packet.pts for packet in self.container.demux(self.stream)
                              if packet.pts is not None and not packet.is_discard])
        self.length = len(self.times)
        if not self.length or (np.diff(self.times) == 0).any():
            raise Untimed(f"{self.path}: frames without a time of their own")

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
        wanted, held = collections.deque(self._checked(sorted(counts))), collections.deque()
        while wanted:
            try:
                for index, frame in self._walk(list(wanted), leap=False):
                    pixels = np.empty((frame.height, frame.width, 3), np.uint8)
                    self._pixels(frame, pixels)
                    held.append((index, pixels))
                    wanted.popleft()
                    if len(held) > DELAY:
                        index, pixels = held.popleft()
                        yield from itertools.repeat(pixels, counts[index])
            except _Irregular:
                self._list_packets()
        for index, pixels in held:
            yield from itertools.repeat(pixels, counts[index])

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
        self.shown = float("-inf")
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
                self.rewind()
            packets = self.container.demux(self.stream)
            head = next(packets)
            if time - back <= self.origin or (head.is_keyframe and head.pts is not None and self._number(head.pts) <= index):
                return itertools.chain([head], packets)
            back = 2 * back or round(self.step)  # led beyond the frame: some containers seek by order of decoding

    def _found(self, decoded, unseen: collections.deque):
        for frame in decoded:
            number = self._number(frame.pts) if frame.pts is not None else -1
            # what refers to a corrupt frame is corrupt, too, and doesn't say so; decoders give frames in the order they are shown
            if frame.is_corrupt or number <= self.shown:
                raise VideoError(f"{self.path}: damaged {'' if frame.is_corrupt else 'times '}at {self._seconds(frame):.2f} s; "
                                 "make it again from its source with 'egokit prep', or replace it")
            self.shown = number
            if unseen and number == unseen[0]:
                unseen.popleft()
                yield number, frame

    def _seconds(self, frame) -> float:
        """The time of a frame, 0 if unknown; PyAV 17.0's frame.time divides by zero after the last packet."""
        return float((frame.pts or 0) * self.stream.time_base)

    def _where(self, unseen) -> str:
        index = unseen[0] if unseen else self.length - 1
        return f"frame {index} (at {index / self.fps:.2f} s)"

    def _pixels(self, frame, out_HWC: np.ndarray) -> None:
        height, width, _ = out_HWC.shape
        if (frame.height, frame.width) != (height, width):
            raise VideoError(f"{self.path}: its picture changes from {width} x {height} to {frame.width} x {frame.height} at "
                             f"{self._seconds(frame):.2f} s; prepare it with 'egokit prep'")
        # one thread: libswscale otherwise starts its threads anew for every frame (benchmarks/reader.py)
        plane = self.to_rgb.reformat(frame, format="rgb24", threads=1).planes[0]
        out_HWC[:] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :3 * width].reshape(height, width, 3)

    def close(self) -> None:
        self.container.close()


class _Irregular(Exception):
    """The file's times are not number / rate, although its header says so."""
