"""What it costs that preparation looks at the pictures, and how far honest encodings are from its limits.

    .venv/bin/python benchmarks/verification.py VIDEO...   # a few minutes a video; prints docs/data.md's table

Each video is prepared twice in one run, with and without looking; the CPU time of this process and of ffmpeg counts.
"""
import contextlib
import resource
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np

from egokit.prep import measure, pictures
from egokit.prep.video import PrepSettings, SourceVideo, prepare_video


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextlib.contextmanager
def blind():
    """Prepare without small pictures."""
    nothing = np.zeros((pictures.SIDE, pictures.SIDE), np.uint8)
    with (mock.patch.object(measure, "shrink", lambda *_: nothing),
          mock.patch.object(pictures.Comparison, "_judge", lambda comparison: comparison.waiting.clear())):
        yield


def prepare(path: Path) -> tuple[float, dict]:
    """Return the CPU seconds of a preparation at 256 lines in pieces of 600 s, and its receipt."""
    with tempfile.TemporaryDirectory() as folder:
        began = cpu_seconds()
        line = prepare_video(SourceVideo("v", path, path.stat().st_size), PrepSettings(Path(folder)), threading.Event())
        return cpu_seconds() - began, line


def main(paths: list[Path]) -> None:
    """Print the table."""
    print("| source | frames | blind, CPU s | looking | more | of the limits: cell, picture, shift, still, contrast |")
    print("|---|---|---|---|---|---|")
    for path in paths:
        reached, real = [], pictures.Comparison.finish

        def finish(comparison, reached=reached, real=real) -> str:
            reached.append(comparison.largest)
            return real(comparison)
        with blind():
            before, _ = prepare(path)
        with mock.patch.object(pictures.Comparison, "finish", finish):
            after, line = prepare(path)
        assert line["status"] == "ok", line
        shares = [max(one["cell"] for one in reached) / pictures.CELL,
                  max(one["picture"] for one in reached) / pictures.PICTURE,
                  max(one["shift"] for one in reached) / pictures.SHIFTED,
                  pictures.STILL / min(one["still"] for one in reached),
                  max(one["contrast"] for one in reached) / pictures.CONTRAST]
        facts = line["source"]
        print(f"| {facts['width']} x {facts['height']} | {facts['frames']:,} | {before:.1f} | {after:.1f} | "
              f"{after / before - 1:+.1%} | {', '.join(f'{share:.0%}' for share in shares)} |")
    tracemalloc.start()
    frames = 3 * 3600 * 30
    kept = bytearray()
    for _ in range(frames):
        kept += bytes(pictures.SIDE ** 2)
    print(f"\nkept of a source of three hours at 30 a second: {tracemalloc.get_traced_memory()[1] / 1e6:.0f} MB")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
