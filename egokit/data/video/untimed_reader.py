"""The reader of files without timestamps, such as AVI and raw streams: it counts the decoded frames."""
import collections
import itertools
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from egokit.data.video.pyav_reader import PyAVReader
from egokit.data.video.timeline import Refused, VideoError, advice, usual_rate

MISSING = 0.01  # share of the frames promised by the packets that may be missing; above it, the file is damaged


class UntimedReader(PyAVReader):
    """A reader that numbers frames by counting them.

    Every read decodes from the start of the file, so late clips of long files are slow. If packets have decoding times,
    the frames are shown at these times, in order: AVI files skip one where the camera has dropped a frame.
    """

    def _number_frames(self) -> None:
        packets = [packet.dts for packet in self.packets() if packet.size]
        self.length, rate = len(packets), self.stream.average_rate or self.stream.guessed_rate
        timed = None not in packets and self.length > 1 and bool((np.diff(packets) > 0).all())
        if timed:
            rate = usual_rate(rate, (packets[-1] - packets[0]) * float(self.stream.time_base) / (self.length - 1))
        if not self.length or not rate:
            raise Refused("no frame in it, or no frame rate")
        self.rate = Fraction(rate)
        if timed:
            self.shown = (np.array(packets) - packets[0]) * float(self.stream.time_base)
            if self.constant:
                self.shown = None

    def _decoded(self) -> Iterator:
        """Yield every frame in order, None in place of a damaged one.

        Raises:
            Refused: a frame is damaged, and the reader is not tolerant.
        """
        self.rewind()
        context, damaged = self.stream.codec_context, False
        context.flush_buffers()
        for packet in itertools.chain((packet for packet in self.packets() if packet.size), [None]):
            damaged = damaged and not (packet and packet.is_keyframe)
            try:
                frames = context.decode(packet)
            except (av.error.FFmpegError, OSError) as error:
                if not self.tolerant:
                    raise Refused(getattr(error, "strerror", None) or str(error)) from None
                frames, damaged = [None], True
            for frame in frames:
                damaged = damaged or frame.is_corrupt
                if damaged and not self.tolerant:
                    raise Refused("damaged")
                yield None if damaged else frame

    def _stream(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, picture) of each of `wanted`, which is ascending."""
        waiting, number, last = collections.deque(wanted), -1, None
        try:
            for number, frame in enumerate(self._decoded()):
                last = frame or last
                if frame is None:
                    self.damaged_numbers.add(number)
                while last is not None and waiting and waiting[0] <= number:
                    yield waiting.popleft(), self.rgb(last).copy()
                if not waiting:
                    return
        except Refused as error:
            raise VideoError(f"{self.path}: frame {number + 1} (at {float(self.time_of(number + 1)):.2f} s) can't be "
                             f"decoded ({error}); {advice(self.path)}") from None
        if last is None or (number + 1 < (1 - MISSING) * self.length - 2 and not self.tolerant):
            raise VideoError(f"{self.path}: the stream ends after {number + 1} of {self.length} frames; "
                             f"{advice(self.path)}")
        for index in waiting:
            yield index, self.rgb(last).copy()  # packets without a picture of their own show the last one

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._read_straight(indices)
