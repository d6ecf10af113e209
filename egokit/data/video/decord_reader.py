"""The decord reader, single-threaded, for users who compare with the original code."""
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from egokit.data.video import pictures
from egokit.data.video.pyav_reader import PyAVReader
from egokit.data.video.timeline import Timeline, VideoError, advice


class DecordReader(Timeline):
    """Frames as decord decodes and numbers them; the same interface as PyAVReader, which tells their times."""

    def __init__(self, path: Path, tolerant: bool = False, status: os.stat_result | None = None):
        import decord
        self.path, file = path, PyAVReader(path, status=status)  # first, because it refuses what is no film
        try:
            self.reader = decord.VideoReader(str(path.absolute()), num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(f"{path}: decord can't open it ({str(error).splitlines()[-1][:120]}); "
                             f"{advice(path)}") from None
        self.length, self.rate, self.start, self.shown, self.last = (
            len(self.reader), file.rate, file.start, file.shown, file.last)
        changed = file.how != pictures.UPRIGHT or pictures.square_size(90, 90, file.aspect) != (90, 90)
        file.close()
        if changed or self.length != file.length:
            wrong = "turned, mirrored or squeezed" if changed else f"as {self.length} frames instead of {file.length}"
            raise VideoError(f"{path}: decord would show it {wrong}; set data.reader=pyav")

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
