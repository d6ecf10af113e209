"""Measure a video file by decoding all of it."""
import dataclasses
import threading
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from egokit.data.video import pictures as shown
from egokit.data.video.timeline import Refused, VideoError, check_gaps, continued
from egokit.data.video.untimed_reader import UntimedReader
from egokit.prep.decoding import Decoder, PrepError, shown_size
from egokit.prep.pictures import SIDE, UNSTATED, shrink

DAMAGED = 0.01  # a source with a larger share of damaged frames is refused; fewer are counted in the manifest
GLITCH = 15.0  # seconds that one glitch may cost
ROUNDING = 2e-3  # seconds by which a frame's time may be rounded


@dataclasses.dataclass
class Film:
    """What `scan` found in a file.

    Attributes:
        facts: its line in the manifest.
        rate: exact frames a second.
        times: seconds after the first frame at which each frame appears, (N,).
        damaged: (N,), whether a frame could not be decoded, or only in part.
        pictures: small pictures, uint8 (N, SIDE * SIDE); of a frame that was not decoded, the one before.
        numbers: the number of each frame in the order of decoding; -1 for one that is not shown.
        plain: whether the ffmpeg program reads it rightly by itself.
        stream: the film's number among the file's streams.
        canvas: width and height of the first frame as it is shown.
        aspect: width / height of a stored pixel, or None.
        colours: the first frame's matrix, primaries and transfer, as numbered in H.273.
    """
    facts: dict
    rate: Fraction
    times: np.ndarray
    damaged: np.ndarray
    pictures: np.ndarray
    numbers: np.ndarray
    plain: bool
    stream: int
    canvas: tuple[int, int]
    aspect: Fraction | None
    colours: tuple[int, int, int]

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the frame for each frame of the prepared video, (K,): the one that is shown at its time.

        The second array has the next frame where it begins at that time, so that roundings decide between the two.
        """
        if self.facts["constant_rate"]:
            return np.arange(len(self.times)), np.arange(len(self.times))
        step = 1 / float(self.rate)
        time_K, slack = np.arange(max(1, round(self.facts["seconds"] / step))) * step, min(ROUNDING, 0.1 * step)
        last = len(self.times) - 1
        return tuple(np.clip(self.times.searchsorted(time_K + more, "right") - 1, 0, last) for more in (-slack, slack))

    def count_damage(self, path: Path) -> None:
        """Put the damage into the facts, or raise PrepError if there is too much."""
        edges = np.append(self.times, self.facts["seconds"])
        self.facts["damaged"] = count = int(self.damaged.sum())
        if not count:
            return
        self.facts["damaged_times"] = times = np.round(edges[_runs(self.damaged)[:100]], 3).tolist()
        if _counted_damage(self.damaged, np.diff(edges)) > DAMAGED * self.facts["seconds"] + 1e-6:
            parts = ", ".join(f"{start:.2f}-{stop:.2f} s" for start, stop in times[:3])
            raise PrepError(f"{path}: {count} of {len(self.times)} frames are damaged ({parts}, ...), more than "
                            f"{DAMAGED:.0%} besides the longest stretch; fetch it again")

    def doubt(self, again: "Film", path: Path) -> bool:
        """Count frames that were decoded differently a second time as damaged; return whether there are any."""
        if self.pictures.shape != again.pictures.shape:
            return False
        unsure = (self.pictures != again.pictures).any(1)
        self.damaged = self.damaged | unsure
        self.count_damage(path)
        return bool(unsure.any())


class _Seen:
    """What is noted of each frame while a file is decoded."""

    def __init__(self, look: Callable[[np.ndarray, int], None] | None, matrix: int | None):
        self.look, self.matrix, self.reformatter = look, matrix, VideoReformatter()
        self.times: list[int | None] = []
        self.damaged: list[bool] = []
        self.pictures, self.kinds, self.first, self.last = bytearray(), set(), None, None

    def add(self, frame, decoder: Decoder) -> None:
        """Note a frame, or None in place of one that can't be decoded."""
        self.times.append(frame.pts if frame else None)
        self.damaged.append(frame is None or frame.is_corrupt)
        if frame is None:
            self.pictures += self.pictures[-SIDE * SIDE:] or bytes(SIDE * SIDE)
            return
        how = shown.orientation(frame)
        self.kinds.add((frame.width, frame.height, frame.format.name, frame.color_range, frame.colorspace, how))
        if self.first is None:
            self.canvas, self.upright = shown_size(frame, decoder.aspect), how == shown.UPRIGHT
            self.first = (UNSTATED if frame.format.is_rgb else int(frame.colorspace), int(frame.color_primaries),
                          int(frame.color_trc))
        self.last = frame
        picture = shrink(frame, self.reformatter, decoder.aspect, self.canvas,
                         self.first[0] if self.matrix is None else self.matrix)
        if self.look:
            self.look(picture, min(shown_size(frame, decoder.aspect)))
        else:
            self.pictures += picture.tobytes()


def scan(path: Path, stop: threading.Event | None = None, look: Callable[[np.ndarray, int], None] | None = None,
         matrix: int | None = None) -> Film:
    """Decode a whole file, past damage, and return what it is.

    Nothing is taken from the header alone.

    Args:
        stop: the scan raises PrepError soon after this event is set.
        look: called with the small picture and the shorter side of each frame; the pictures are then not kept.
        matrix: the small pictures' `frame.colorspace`; by default the first frame's.

    Returns:
        The film. Its facts are "file", "frames", "damaged" (frames that can't be decoded, or only in part),
        "damaged_times" (seconds, where there are any: the first 100 pairs of start and stop), "fps", "seconds" (from
        the first frame's start to the last frame's end), "constant_rate", "width", "height" (as it is shown), "bytes".

    Raises:
        PrepError: the file can't be decoded to the end that its header promises, or more than `DAMAGED` of its frames
            are damaged.
    """
    seen = _Seen(look, matrix)
    with Decoder(path, stop) as decoder:
        for frame in decoder:
            seen.add(frame, decoder)
        stream = decoder.stream
        header_rates, header_frames = (stream.base_rate, stream.average_rate), stream.frames
        indexed = len(stream.index_entries) if decoder.is_mov else 0  # AVI's: dropped ones, too
        promised = stream.duration * decoder.tick if stream.duration else 0
        # Matroska gives one duration for the file, which counts its time from 0, and only without sound, which may be
        # longer
        if not promised and len(decoder.container.streams) == 1:
            promised = (decoder.container.duration or 0) / Fraction(1_000_000)
            promised -= (stream.start_time or 0) * decoder.tick if "matroska" in decoder.container.format.name else 0
    if not seen.last:
        raise PrepError(f"{path}: no frame of it can be decoded; expected pictures of at most {shown.MAX_PIXELS:,} "
                        "pixels")
    times, numbers, damaged, rate, constant = _timeline(path, seen, decoder, header_rates)
    last_duration = 1 / rate if constant or not seen.last.duration else seen.last.duration * decoder.tick
    seconds = float(times[-1] + last_duration)
    # an edit list leaves frames out, of the index, too
    listed = indexed and (indexed if decoder.packets > len(decoder.packet_times) else header_frames)
    if decoder.packets + max(5, DAMAGED * listed) < listed:
        raise PrepError(f"{path}: its index lists {listed} frames, but only {decoder.packets} are there; "
                        "fetch it again")
    # Both must fall short: a header may list frames that an edit list leaves out, and its duration may include how long
    # the file's last frame is to be shown.
    # Where the clock restarts, a duration means nothing.
    short = seconds + max(1, 0.01 * promised) < promised and not decoder.restarts
    if short and (not header_frames or len(times) < header_frames):
        raise PrepError(f"{path}: its header promises {float(promised):.1f} s, "
                        f"but only {seconds:.1f} s can be decoded; fetch it again")
    width, height = seen.canvas
    facts = {"file": path.name, "frames": len(times), "damaged": 0, "fps": float(rate),
             "seconds": round(seconds, 4), "constant_rate": constant, "width": width, "height": height,
             "bytes": path.stat().st_size}
    pictures = np.zeros((0, SIDE * SIDE), np.uint8) if look else _by_number(seen.pictures, numbers, damaged)
    plain = (decoder.timed and constant and len(seen.kinds) == 1 and seen.upright and not damaged.any()
             and max(abs(seen.last.width - width), abs(seen.last.height - height)) <= 2)
    film = Film(facts, rate, times, damaged, pictures, numbers, plain, decoder.index, seen.canvas, decoder.aspect,
                seen.first)
    film.count_damage(path)
    return film


def _timeline(path: Path, seen: _Seen, decoder: Decoder, header_rates) -> tuple:
    """Return the times and numbers of the frames, which are damaged, the frame rate, and whether it is constant."""
    if decoder.timed:
        decoder.timed = None not in [time for time, lost in zip(seen.times, seen.damaged, strict=True) if not lost]
    if decoder.timed:
        given = [time for time in seen.times if time is not None]
        added = None if decoder.is_mov else continued(given, float(decoder.tick), decoder.broadcast)
        decoder.restarts = added is not None
        if decoder.restarts:
            moved = iter((np.array(given) + added).tolist())
            seen.times, decoder.packet_times = [None if time is None else next(moved) for time in seen.times], []
        decoded = np.sort([time for time in seen.times if time is not None])
        # a packet that gave no frame has a time, too; some, of half a frame or of none, are not meant to give one
        step = np.median(np.diff(decoded)) if len(decoded) > 1 else np.inf
        packets = np.unique(decoder.packet_times)
        after = np.clip(decoded.searchsorted(packets), 1, len(decoded) - 1) if len(decoded) > 1 else 0
        apart = np.minimum(abs(packets - decoded[after - 1]), abs(packets - decoded[after]))
        ticks = np.union1d(decoded, packets[apart > 0.6 * step])
        numbers = np.array([-1 if time is None else ticks.searchsorted(time) for time in seen.times])
        numbers[numbers <= np.maximum.accumulate(np.append(-1, numbers[:-1]))] = -1  # given again, or late
        decoder.timed = bool((np.diff(decoded) > 0).all())
    if decoder.timed:
        rate, constant = frame_rate(ticks, decoder.tick, header_rates)
        times = (ticks - ticks[0]) * float(decoder.tick)
        try:
            check_gaps(times)
        except Refused as error:
            raise PrepError(f"{path}: {error}; make it anew with 'ffmpeg -i SOURCE -c:v libx264 NEW.mp4'") from None
    else:
        times, rate, constant = _counted(path, len(seen.times))
        numbers = np.arange(len(times))
    damaged = np.ones(len(times), bool)
    damaged[numbers[numbers >= 0]] = np.array(seen.damaged)[numbers >= 0]
    return times, numbers, damaged, rate, constant


def _counted_damage(damaged: np.ndarray, seconds: np.ndarray) -> float:
    """Return how many damaged seconds are held against a source.

    The longest stretch is not, up to `GLITCH`, nor is one at the start: after a single glitch, decoders may give
    nothing up to the next keyframe, and a recording may begin between keyframes.

    Args:
        damaged, seconds: of each frame, whether it is damaged, and for how long it is shown.
    """
    runs = [(first, float(seconds[first:end].sum())) for first, end in _runs(damaged)]
    excused = [lost for first, lost in runs if not first and lost <= GLITCH]
    longest = max((lost for first, lost in runs if first), default=0.0)
    return sum(lost for _, lost in runs) - sum(excused) - (longest if longest <= GLITCH else 0.0)


def _counted(path: Path, length: int) -> tuple[np.ndarray, Fraction, bool]:
    """Return times, rate and whether it is constant, for frames that have no times of their own."""
    try:
        reader = UntimedReader(path, tolerant=True)
    except VideoError as error:
        raise PrepError(str(error)) from None
    beyond = np.maximum(0, np.arange(length) - (reader.length - 1))
    times = reader.time_of(np.arange(length) - beyond) + beyond / reader.fps
    reader.close()
    rate = reader.rate if reader.constant else frame_rate(times, Fraction(1), [])[0]
    return times - times[0], rate, reader.constant


def _by_number(pictures: bytearray, numbers: np.ndarray, damaged: np.ndarray) -> np.ndarray:
    """Return the small picture of each frame; a missing one is the one before it."""
    decoded = np.frombuffer(pictures, np.uint8).reshape(-1, SIDE * SIDE)
    if np.array_equal(numbers, np.arange(len(damaged))):
        return decoded
    places = np.full(len(damaged), -1)
    places[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
    return decoded[np.maximum(0, np.maximum.accumulate(places))]


def _runs(damaged: np.ndarray) -> np.ndarray:
    """Return [first, one after the last] of each stretch of damaged frames, (R, 2)."""
    return np.flatnonzero(np.diff(np.concatenate([[False], damaged, [False]]))).reshape(-1, 2)


def frame_rate(times: np.ndarray, tick: Fraction, stated: Iterable[Fraction | None]) -> tuple[Fraction, bool]:
    """Return the frame rate (frames a second), and whether it is constant.

    A rate is constant if no frame is half a frame away from its place on the grid. Otherwise the usual rate is
    returned, without gaps and bursts: a camera that skips a frame now and then still runs at its own rate.

    Args:
        times: times of all frames, in units of `tick`.
        tick: seconds.
        stated: rates that the header states; they are tried first.
    """
    times_N, tick_s = np.sort(np.array(times, np.float64)), float(tick)
    stated = [Fraction(rate) for rate in stated if rate]
    for rate in stated:
        places_N = times_N[0] + np.arange(len(times_N)) / float(rate * tick)
        if np.abs(times_N - places_N).max() * tick_s * float(rate) < 0.5:
            return rate, True
    steps = np.diff(times_N)
    usual = steps[np.abs(steps - np.median(steps)) < 0.5 * np.median(steps)]
    rate = 1 / ((usual.mean() if len(usual) else steps.mean()) * tick_s)
    # times are rounded, often to milliseconds: the nearest rate that cameras have, if there is one
    whole = [Fraction(max(1, round(rate))), Fraction(max(1, round(rate * 1.001)) * 1000, 1001)]
    nearest = min(stated + whole, key=lambda known: abs(known - rate))
    return nearest if abs(nearest - rate) < 4e-4 * rate else Fraction(rate).limit_denominator(1001), False
