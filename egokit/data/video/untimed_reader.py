"""The reader of files without timestamps (AVI, raw streams) or of mixed ones (edit lists of several parts, clocks
that restart).

It counts the decoded frames.
"""
import bisect
import collections
import contextlib
import itertools
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.format import Flags

from egokit.data.video.decoding import NEVER_ZEROS, SKIPPING, ZEROS
from egokit.data.video.pyav_reader import PyAVReader
from egokit.data.video.timeline import Refused, VideoError, advice, continued, usual_rate

CHUNK_HEADER = 8  # bytes between the place that an AVI index states and the packet
MISSING = 0.01  # share of the frames promised by the packets that may be missing; above it, the file is damaged


class UntimedReader(PyAVReader):
    """A reader that numbers frames by counting them.

    Every read decodes from the start of the file, so late clips of long files are slow. If packets have decoding times,
    the frames are shown at these times, in order: AVI files skip one where the camera has dropped a frame.
    """

    def _number_frames(self) -> None:
        packets = [(packet.dts, packet.pos, packet.pts) for packet in self.packets()
                   if packet.size and not packet.is_discard]
        self.dts = [packet[0] for packet in packets]
        self.length, rate = len(self.dts), self.stream.average_rate or self.stream.guessed_rate
        if self.container.format.flags & Flags.no_timestamps.value:
            rate = self.stream.codec_context.framerate or rate  # the stream's own; the other is a default
        timed = self.length > 1 and None not in self.dts and bool((np.diff(self.dts) > 0).all())
        if timed:
            # after a gap, the index knows the place of a packet that the container's reader has counted wrongly
            listed = {entry.pos: entry.timestamp for entry in self.stream.index_entries}
            places = [listed.get(pos - CHUNK_HEADER, listed.get(pos)) for _, pos, _ in packets]
            places = self.dts if None in places or (np.diff(places) <= 0).any() else places
            self.shown = (np.array(places) - min(listed.values(), default=places[0])) * float(self.stream.time_base)
            self.rate = rate = usual_rate(rate, self.shown)
            if rate and self.constant and not self.shown[0]:
                self.shown = None
            self.start = 0.0 if self.shown is None else float(self.shown[0])
        tick, parts = float(self.stream.time_base), [packet[2] for packet in packets]
        added = None if None in self.dts else continued(self.dts, tick, self.is_broadcast())
        if parts and None not in parts and ("mov" in self.container.format.name or added is not None):
            parts = np.sort(np.array(parts) + (0 if added is None else added))
            if (np.diff(parts) > 0).all():  # an edit list, or a clock that restarts
                self.shown = parts * tick - self.zero()
                self.start, rate = float(self.shown[0]), usual_rate(rate, self.shown)
        if not self.length or not rate:
            raise Refused("no frame in it, or no frame rate")
        self.rate = Fraction(rate)
        if timed and self.container.format.name == "avi":
            self._delay()
        if self.container.format.name == "avi":
            self.missing = max(0, sum(entry.size > 0 for entry in self.stream.index_entries) - self.length)
        if self.missing and not self.tolerant:
            raise Refused(f"its index lists {self.length + self.missing} frames, but only {self.length} are there")
        # these decoders' delay is not known from the start
        self.counts = not timed or self.stream.codec_context.name in SKIPPING

    def _delay(self) -> None:
        """Show the frames as much later as the decoder needs to put them in order, as players do."""
        with contextlib.suppress(av.error.FFmpegError):
            self.rewind()
            frame = next(self.container.decode(self.stream), None)
            if frame is not None and frame.dts is not None:
                delay = bisect.bisect_left(self.dts, frame.dts) if self.stream.codec_context.name in SKIPPING else \
                    int(self.stream.codec_context.has_b_frames)
                later = delay / self.fps
                self.start += later
                if self.shown is not None:  # a frame is shown when the packet comes with which the decoder gives it
                    end = self.shown[-1] + np.arange(1, delay + 1) / self.fps
                    self.shown = np.concatenate([self.shown[delay:], end])
                    self.start = float(self.shown[0])

    def _decoded(self) -> Iterator[tuple[int, object]]:
        """Yield (number, frame) of every frame in order, None in place of a damaged one.

        A packet that gives no picture keeps its place, where the decoder's delay is known.
        """
        self.rewind()
        context = self.stream.codec_context
        context.flush_buffers()
        number, broken = -1, -1
        for sent, packet in enumerate(itertools.chain((packet for packet in self.packets() if packet.size), [None])):
            try:
                frames = context.decode(packet)
            except (av.error.FFmpegError, OSError):
                broken = sent
                if self.counts:
                    number += 1
                    yield number, None
                continue
            if packet is not None and ((packet.is_corrupt and not self.counts)  # cut off
                                       or (context.name in NEVER_ZEROS and ZEROS in bytes(packet))):
                broken = sent
            for frame in frames:
                place = number + 1
                if not self.counts and frame.dts is not None:
                    # the place of the packet with which the decoder gave the frame
                    place = max(place, bisect.bisect_left(self.dts, frame.dts) - context.has_b_frames)
                for lost in range(number + 1, place):
                    broken = max(broken, lost)
                    yield lost, None
                number = place
                if frame.is_corrupt:
                    broken = max(broken, number)
                elif frame.key_frame and number > broken:
                    broken = -1
                yield number, None if broken >= 0 else frame
        if broken >= 0:  # the last packets give no picture because of damage
            yield from ((lost, None) for lost in range(number + 1, self.length))

    def _stream(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, picture) of each of `wanted`, which is ascending."""
        waiting, number, last = collections.deque(wanted), -1, None
        for number, frame in self._decoded():
            if frame is None:
                self.damaged_numbers.add(number)
                if not self.tolerant and number == waiting[0]:
                    raise self._damaged(number, "damaged")
            else:
                last = frame
            while last is not None and waiting and waiting[0] <= number:
                yield waiting.popleft(), self.rgb(last).copy()
            if not waiting:
                return
        if last is None or (number + 1 < (1 - MISSING) * self.length - 2 and not self.tolerant):
            raise VideoError(f"{self.path}: the stream ends after {number + 1} of {self.length} frames; "
                             f"{advice(self.path)}")
        for index in waiting:
            yield index, self.rgb(last).copy()  # packets without a picture of their own show the last one

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._read_straight(indices)
