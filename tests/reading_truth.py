"""What ffmpeg shows of a file, and whether two pictures are one."""
import re
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from egokit.prep.video import ffmpeg

CELL = 6                # pictures are compared by the means of cells of so many pixels: converters differ at edges
SAME = 2.5, 20.0        # levels of 255: what converters may differ by, on average and in one cell
SCALED = 5.0, 60.0      # the same where both have scaled the picture
TICK = 0.002            # seconds: containers round times to 1 ms


@dataclass
class Truth:
    """What ffmpeg shows.

    Attributes:
        times: (n,) seconds on the player's clock.
        pictures: uint8 (n, H, W, 3).
        aspect: width / height, as a player shows the first picture.
        limits: how far other converters' pictures may be from these.
        tick: how far other times may be from these; much where the file's own times go backwards.
    """
    times: np.ndarray
    pictures: np.ndarray
    aspect: float
    limits: tuple[float, float]
    tick: float

    def at(self, time: float) -> int:
        """Return the number of the picture shown at a time."""
        return int(np.clip(np.searchsorted(self.times, time, "right") - 1, 0, len(self.times) - 1))


def truth(path: Path, film: int, width: int, height: int, joined: bool = False) -> Truth:
    """Decode a film by ffmpeg: upright, with square pixels.

    A picture of another shape than the first is scaled until the short sides are the same, then cut or given bars.
    """
    scale = f"{min(width, height)}/min(iw*max(1,sar),ih/min(1,sar))"
    fit = (f"scale='round(iw*max(1,sar)*{scale})':'round(ih/min(1,sar)*{scale})',setsar=1,"
           f"crop='min(iw,{width})':'min(ih,{height})',pad={width}:{height}:-1:-1")
    command = [ffmpeg(), "-hide_banner", "-nostdin", *([] if joined else ["-copyts"]), "-i", str(path), "-map",
               f"0:v:{film}", "-vf", f"showinfo,setsar='if(sar,sar,1)',{fit}", "-fps_mode", "passthrough", "-f",
               "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    done = subprocess.run(command, capture_output=True)
    log = done.stderr.decode(errors="replace")
    start = re.search(r"Duration: .*?start: (-?[\d.]+)", log)
    start = float(start[1]) if start and not joined else 0.0
    base, times, aspect, sizes = Fraction(1), [], None, set()
    for line in log.splitlines():
        if "showinfo" in line and (said := re.search(r"config in time_base: (\d+)/(\d+)", line)):
            base = Fraction(int(said[1]), int(said[2]))
        elif "showinfo" in line and (said := re.search(r"pts: *(-?\d+).* sar:(\d+)/(\d+) s:(\d+)x(\d+)", line)):
            times.append(float(int(said[1]) * base) - start)
            above, below, w, h = map(int, said.groups()[1:])
            sizes.add((w, h))
            aspect = aspect or w * ((above / below if below else 0) or 1) / h
    pictures = np.frombuffer(done.stdout, np.uint8)
    count = len(pictures) // (width * height * 3)
    pictures = pictures[:count * width * height * 3].reshape(-1, height, width, 3).copy()
    if len(times) != count or not count:
        raise RuntimeError(f"{path.name}: ffmpeg gave {count} pictures, {len(times)} times\n{log[-1500:]}")
    steady = (np.diff(times) > 0).all()
    return Truth(np.maximum.accumulate(times), pictures, aspect, SAME if sizes == {(width, height)} else SCALED,
                 TICK if steady else 2.1 * float(np.median(np.diff(times))))


def cells(pictures: np.ndarray) -> np.ndarray:
    """Return the mean colours of cells of CELL x CELL pixels, float32 (..., rows, columns, 3)."""
    *more, height, width, _ = pictures.shape
    height, width = height // CELL * CELL, width // CELL * CELL
    parts = pictures[..., :height, :width, :].astype(np.float32)
    return parts.reshape(*more, height // CELL, CELL, width // CELL, CELL, 3).mean((-4, -2))


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the mean and the largest difference of two pictures' cells, in levels of 255."""
    if a.shape != b.shape:
        return 255.0, 255.0
    apart = np.abs(cells(a) - cells(b))
    return float(apart.mean()), float(apart.max())


def alike(a: np.ndarray, b: np.ndarray, limits: tuple[float, float] = SAME) -> bool:
    """Return whether two pictures are one, but for the rounding of converters."""
    return all(seen <= limit for seen, limit in zip(difference(a, b), limits, strict=True))
