"""The decord reader, single-threaded, for users who compare with the original code."""
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egokit.data.video.pyav_reader import VideoError


class DecordReader:
    """Frames as decord decodes and numbers them; the same interface as PyAVReader."""

    times, turns = None, 0  # decord tells neither

    def __init__(self, path: Path):
        import decord
        self.path = path
        try:
            self.reader = decord.VideoReader(str(path), num_threads=1)
            self.fps, self.length = float(self.reader.get_avg_fps()), len(self.reader)
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(f"{path}: decord can't open it ({str(error).splitlines()[-1][:120]})") from None

    def read(self, indices) -> np.ndarray:
        """Return RGB frames, uint8 (len(indices), height, width, 3), in the order of `indices`."""
        import decord
        try:
            return self.reader.get_batch([int(i) for i in indices]).asnumpy()
        except (decord.DECORDError, IndexError, RuntimeError) as error:
            raise VideoError(f"{self.path}: frames {list(map(int, indices))} can't be read by decord "
                             f"({str(error).splitlines()[-1][:120]}; the file has {self.length})") from None

    def stream_frames(self, indices) -> Iterator[np.ndarray]:
        """Yield uint8 (height, width, 3) for every index, read 32 at a time to bound the memory."""
        for at in range(0, len(indices), 32):
            yield from self.read(indices[at:at + 32])

    def close(self) -> None:
        """Release the file."""
        self.reader = None
