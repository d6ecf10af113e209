"""The reader of files without timestamps, such as AVI: it counts the decoded frames."""
import collections
import itertools
from collections.abc import Iterator

import av
import numpy as np

from egokit.data.video.pyav_reader import PyAVReader, VideoError

MISSING = 0.01  # share of the frames promised by the packets that may be missing; above it, the file is damaged


class UntimedReader(PyAVReader):
    """A reader that numbers frames by counting them.

    Every read decodes from the start of the file, so late clips of long files are slow.
    """

    def _number_frames(self) -> None:
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.length = sum(packet.size > 0 for packet in self.container.demux(self.stream))
        if not self.length or not rate:
            raise VideoError(f"{self.path}: no frame in it, or no frame rate")
        self.fps = float(rate)

    def stream_frames(self, indices) -> Iterator[np.ndarray]:
        """Yield uint8 (height, width, 3) for every index, in ascending order."""
        counts, number, pixels = collections.Counter(np.asarray(indices, int).tolist()), -1, None
        self._check_range(sorted(counts))
        try:
            self.rewind()
            self.stream.codec_context.flush_buffers()
            for number, frame in enumerate(self.container.decode(self.stream)):
                if number in counts:
                    pixels = self._rgb(frame).copy()
                    yield from itertools.repeat(pixels, counts.pop(number))
                if not counts:
                    return
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: frame {number + 1} can't be decoded "
                             f"({getattr(error, 'strerror', None) or error})") from None
        if pixels is None or number + 1 < (1 - MISSING) * self.length - 2:
            raise VideoError(f"{self.path}: the stream ends after {number + 1} of {self.length} frames")
        yield from itertools.repeat(pixels, counts.total())  # packets without a picture of their own show the last one

    def read(self, indices) -> np.ndarray:
        """Return uint8 (len(indices), height, width, 3), in the order of `indices`."""
        wanted, places = np.unique(np.asarray(indices, int), return_inverse=True)
        return np.stack(list(self.stream_frames(wanted)))[places]
