"""The reader of files without timestamps, such as AVI: it counts the decoded frames."""
from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egokit.data.video.pyav_reader import PyAVReader, VideoError

MISSING = 0.01  # share of the frames promised by the packets that may be missing; above it, the file is damaged


class UntimedReader(PyAVReader):
    """A reader that numbers frames by counting them.

    Every read decodes from the start of the file, so late clips of long files are slow.
    """

    def __init__(self, path: Path):
        import av
        self.path, self.times = path, None
        try:
            self.container = av.open(str(path), metadata_errors="replace")
            self.stream = self.container.streams.video[0]
            if self.stream.codec_context is None:
                raise VideoError(f"{path}: no decoder knows its codec")
            rate = self.stream.average_rate or self.stream.guessed_rate
            self.length = sum(packet.size > 0 for packet in self.container.demux(self.stream))
        except (av.error.FFmpegError, IndexError, OSError) as error:
            raise VideoError(f"{path}: not a video that can be opened ({error})") from None
        if not self.length or not rate:
            raise VideoError(f"{path}: no frame in it, or no frame rate")
        self.fps = float(rate)
        self.to_rgb = av.video.reformatter.VideoReformatter()

    def stream_frames(self, indices) -> Iterator[np.ndarray]:
        """Yield uint8 (height, width, 3) for every index, in ascending order."""
        import av
        wanted, number, pixels = sorted(int(index) for index in indices), -1, None
        self._check_range(wanted)
        try:
            self.rewind()
            self.stream.codec_context.flush_buffers()
            for number, frame in enumerate(self.container.decode(self.stream)):
                count = sum(1 for _ in itertools.takewhile(lambda index, number=number: index == number, wanted))
                if count:
                    pixels = np.empty((frame.height, frame.width, 3), np.uint8)
                    self._copy_rgb(frame, pixels)
                    yield from itertools.repeat(pixels, count)
                    del wanted[:count]
                if not wanted:
                    return
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.path}: frame {number + 1} can't be decoded "
                             f"({getattr(error, 'strerror', None) or error})") from None
        if pixels is None or number + 1 < (1 - MISSING) * self.length - 2:
            raise VideoError(f"{self.path}: the stream ends after {number + 1} of {self.length} frames")
        yield from itertools.repeat(pixels, len(wanted))  # packets without a picture of their own show the last one

    def read(self, indices) -> np.ndarray:
        """Return uint8 (len(indices), height, width, 3), in the order of `indices`."""
        indices = [int(index) for index in indices]
        order = sorted(range(len(indices)), key=indices.__getitem__)
        pixels = list(self.stream_frames(indices))
        return np.stack([pixels[order.index(place)] for place in range(len(indices))])
