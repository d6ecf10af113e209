"""Why the reader converts frames to RGB with one thread: clips per second of both ways.

    python benchmarks/reader.py          # after make demo; its output is at the end of this file

Both ways read prepared toy videos, by turns.
"""
import statistics
import time
from pathlib import Path

import av
import numpy as np

from egokit.data.video import open_video

FILES = sorted((Path(__file__).parents[1] / "outputs/toy/Ego4D_Chunked").glob("*/0.mp4"))[:20]


class ManyThreads:
    """PyAV's default: libswscale chooses its number of threads, and starts them each time."""

    def __init__(self, reformatter):
        self.reformatter = reformatter

    def reformat(self, frame, format, threads):
        """Convert a frame, ignoring the number of threads."""
        return self.reformatter.reformat(frame, format=format)


def clips_per_second(many: bool) -> float:
    """Measure the reader with PyAV's default threads (many) or with one thread."""
    rng = np.random.default_rng(0)
    began, count = time.perf_counter(), 0
    for path in FILES:
        reader = open_video.PyAVReader(path)
        if many:
            reader.to_rgb = ManyThreads(av.video.reformatter.VideoReformatter())
        for _ in range(10):
            start = rng.integers(0, reader.length - 20)
            reader.read(np.sort(rng.integers(start, start + 20, 4)))
            count += 1
        reader.close()
    return count / (time.perf_counter() - began)


runs = [(clips_per_second(True), clips_per_second(False)) for _ in range(5)]
default, one = (statistics.median(column) for column in zip(*runs, strict=True))
print("four frames of a 2 s clip, 96 x 72 px     clips/s (median of 5)")
print(f"PyAV's default threads for conversion     {default:7.0f}")
print(f"one thread (egokit)                       {one:7.0f}   {statistics.median(b / a for a, b in runs):.1f} x")

# Printed on a shared machine of 2 cores (AMD EPYC with AVX-512), PyAV 18.1:
#
# four frames of a 2 s clip, 96 x 72 px     clips/s (median of 5)
# PyAV's default threads for conversion         964
# one thread (egokit)                          1381   1.4 x
