"""When each frame of a video is shown, and the errors that readers raise."""
from fractions import Fraction
from pathlib import Path

import numpy as np

ROUNDING = 1e-3      # containers round times to a millisecond
OFF_GRID = 0.2       # of a frame's time: a frame further from number / rate makes the rate a variable one
TIME_STEPS = 1000.0  # steps a second in which a file of variable rate is sampled
BACK, FORTH = 0.1, 10.0  # seconds by which a clock that goes on doesn't jump back; nor forth, in a broadcast
GAP = 86400.0        # seconds between two frames that no recording has: the clock is wrong
PREPARED = {"Ego4D_256", "Ego4D_Chunked"}  # folders of what 'egokit prep' makes


class VideoError(RuntimeError):
    """A video can't be read; the message names the file, the frame or time, and the reason."""


class Refused(Exception):
    """The reason why a file can't be read; the reader puts the file before it, and raises a VideoError."""


class Untimed(Refused):
    """The file doesn't say when each frame is shown."""


def is_prepared(path: str | Path) -> bool:
    """Whether a path is of a video that 'egokit prep' makes."""
    return bool(PREPARED & set(Path(path).parts))


def advice(path: str | Path) -> str:
    """Return what to do about a file that can't be read, by its role."""
    if is_prepared(path):
        return "make it again from its source with 'egokit prep'"
    return "fetch it again, or make it anew with 'ffmpeg -i SOURCE -c:v libx264 NEW.mp4'"


def continued(times: list[int], tick: float, broadcast: bool) -> np.ndarray | None:
    """Return what to add to each of a stream's times so that they go on where its clock restarts; None if it doesn't.

    A clock restarts where streams were joined, or where a camera's clock was set. Players go on in the order of the
    file.

    Args:
        times: ascending but for restarts, in ticks.
        tick: seconds.
        broadcast: whether the container's clock may jump forth, too (MPEG-TS and MPEG-PS).
    """
    times_N = np.array(times, np.int64)
    gaps = np.diff(times_N)
    highest = np.maximum.accumulate(times_N)[:-1]
    restarts = np.flatnonzero(((times_N[1:] - highest) * tick < -BACK) & (gaps < 0))
    if broadcast:
        restarts = np.union1d(restarts, np.flatnonzero(np.abs(gaps) * tick > FORTH))
    if not len(restarts):
        return None
    usual = round(float(np.median(gaps[gaps > 0]))) if (gaps > 0).any() else 1
    added = np.zeros(len(times_N), np.int64)
    added[restarts + 1] = usual - gaps[restarts]
    return np.cumsum(added)


def check_gaps(shown: np.ndarray) -> None:
    """Raise Refused if a clock jumps so far that times mean nothing."""
    gaps = np.diff(shown)
    if len(gaps) and gaps.max() > GAP:
        raise Refused(f"its clock jumps by {gaps.max():,.0f} s at {shown[gaps.argmax()] - shown[0]:.2f} s")


def usual_rate(stated: Fraction | None, shown: np.ndarray) -> Fraction | None:
    """Return the frame rate that a header states, or the measured one where the header's is of something else.

    Args:
        shown: when each frame appears, seconds, ascending.
    """
    if len(shown) < 2 or shown[-1] <= shown[0]:
        return stated
    mean = Fraction((len(shown) - 1) / float(shown[-1] - shown[0]))
    for rate in (stated, mean.limit_denominator(1001), mean):
        if rate and is_constant(shown, rate):
            return Fraction(rate)
    usual = float(np.median(np.diff(shown)))
    return stated if usual <= 0 or (stated and abs(float(stated) * usual - 1) <= 0.01) else \
        Fraction(1 / usual).limit_denominator(1001)


def is_constant(shown: np.ndarray, rate: Fraction | float) -> bool:
    """Whether frame n appears n / rate after the first, but for rounding."""
    grid = shown[0] + np.arange(len(shown)) / float(rate)
    return float(np.abs(shown - grid).max()) < max(OFF_GRID / float(rate), 1.5 * ROUNDING)


class Timeline:
    """The times of a file's frames, in seconds on the player's clock.

    The player's clock is 0 where the file starts: at the earliest of its streams, which may be the sound.

    Attributes:
        length: number of frames.
        rate, fps: usual number of frames a second, as a fraction and as a float.
        start: when the first frame appears.
        shown: when each frame appears, (length,); None if frame n is shown at start + n / fps.
        last: for how long the last frame is shown.
        damaged_numbers: numbers of frames that were found damaged so far, by a tolerant reader.
        missing: number of frames that the file promises after its end, found by a tolerant reader.
    """
    length: int
    rate: Fraction
    start: float = 0.0
    shown: np.ndarray | None = None
    last: float = 0.0
    damaged_numbers: set | frozenset = frozenset()
    missing: int = 0
    _judged: tuple = (None, True)  # the times of which `constant` was found, and what was found

    @property
    def fps(self) -> float:
        return float(self.rate)

    @property
    def constant(self) -> bool:
        """Whether all frames are shown equally long, but for rounding."""
        if self.shown is None:
            return True
        if self._judged[0] is not self.shown:
            self._judged = self.shown, is_constant(self.shown, self.rate)
        return self._judged[1]

    @property
    def seconds(self) -> float:
        """The end of the last frame."""
        return float(self.time_of(self.length - 1)) + (self.last or 1 / self.fps)

    def time_of(self, number):
        """Return when a frame appears; of an array of numbers, an array."""
        return self.start + np.asarray(number) / self.fps if self.shown is None else self.shown[number]

    def frame_at(self, seconds):
        """Return the number of the frame that is shown at a time; of an array of times, an array.

        A time outside the video gives its first or last frame.
        """
        if self.shown is None:
            number = np.floor((np.asarray(seconds) - self.start) * self.fps + ROUNDING).astype(int)
        else:
            number = self.shown.searchsorted(np.asarray(seconds) + ROUNDING, "right") - 1
        number = np.clip(number, 0, self.length - 1)
        return number if np.ndim(seconds) else int(number)

    # Sampling rules pick steps. At a constant rate a step is a frame; at a variable rate, a millisecond.

    @property
    def resolution(self) -> float:
        """Steps a second."""
        return self.fps if self.constant else TIME_STEPS

    @property
    def steps(self) -> int:
        """Number of steps from the start of the player's clock to the end of the video."""
        before = self.start * self.fps - ROUNDING
        return self.length + max(0, int(np.ceil(before))) if self.constant else round(self.seconds * TIME_STEPS)

    def frames_of(self, steps: np.ndarray) -> np.ndarray:
        """Return the numbers of the frames that are shown at some steps."""
        if not self.constant:
            return self.frame_at(np.asarray(steps) / TIME_STEPS)
        return np.clip(np.floor(np.asarray(steps) - self.start * self.fps + ROUNDING).astype(int), 0, self.length - 1)

    @property
    def damaged_frames(self) -> int:
        """Number of frames found damaged or missing so far."""
        return len(self.damaged_numbers) + self.missing

    @property
    def damaged(self) -> list[tuple[float, float]]:
        """Parts of the video found damaged or missing so far: (start, stop) in seconds."""
        numbers = np.array(sorted(self.damaged_numbers), int)
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else []
        ends = [self.seconds if run[-1] + 1 >= self.length else float(self.time_of(run[-1] + 1)) for run in runs]
        parts = [(float(self.time_of(run[0])), end) for run, end in zip(runs, ends, strict=True)]
        return parts + ([(self.seconds, self.seconds + self.missing / self.fps)] if self.missing else [])
