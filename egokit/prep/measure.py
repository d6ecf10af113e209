"""Measure a video file by decoding all of it, and verify what was made of it."""
import dataclasses
import threading
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from egokit.data.video import pictures as shown
from egokit.data.video.timeline import VideoError
from egokit.data.video.untimed_reader import UntimedReader
from egokit.prep.decoding import Decoder, PrepError, shown_size
from egokit.prep.pictures import SIDE, UNSTATED, Comparison, shrink

DAMAGED = 0.01  # a source with a larger share of damaged frames is refused; fewer are counted in the manifest
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


class _Seen:
    """What is noted of each frame while a file is decoded."""

    def __init__(self, look: Callable[[np.ndarray], None] | None, matrix: int | None):
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
            self.look(picture)
        else:
            self.pictures += picture.tobytes()


def scan(path: Path, stop: threading.Event | None = None, look: Callable[[np.ndarray], None] | None = None,
         matrix: int | None = None) -> Film:
    """Decode a whole file, past damage, and return what it is.

    Nothing is taken from the header alone.

    Args:
        stop: the scan raises PrepError soon after this event is set.
        look: called with the small picture of each frame, which is then not kept.
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
        promised = stream.duration * decoder.tick if stream.duration else 0
        # Matroska gives one duration for the file; it counts only without sound, which may be longer
        if not promised and len(decoder.container.streams) == 1:
            promised = (decoder.container.duration or 0) / 1_000_000
    if not seen.last:
        raise PrepError(f"{path}: no frame of it can be decoded")
    times, numbers, damaged, rate, constant = _timeline(path, seen, decoder, header_rates)
    last_duration = 1 / rate if constant or not seen.last.duration else seen.last.duration * decoder.tick
    seconds = float(times[-1] + last_duration)
    # Both must fall short: a header may list frames that an edit list leaves out, and its duration may include how long
    # the file's last frame is to be shown.
    if seconds + max(1, 0.01 * promised) < promised and (not header_frames or len(times) < header_frames):
        raise PrepError(f"{path}: its header promises {float(promised):.1f} s, "
                        f"but only {seconds:.1f} s can be decoded; fetch it again")
    width, height = seen.canvas
    facts = {"file": path.name, "frames": len(times), "damaged": int(damaged.sum()), "fps": float(rate),
             "seconds": round(seconds, 4), "constant_rate": constant, "width": width, "height": height,
             "bytes": path.stat().st_size}
    if damaged.any():
        facts["damaged_times"] = _spans(damaged, np.append(times, seconds))
        # A recording that begins between keyframes has lost nothing: what can't be decoded there is not held against it
        within = damaged[int(damaged.argmin()):].sum()
        if within > DAMAGED * len(times):
            parts = ", ".join(f"{start:.2f}-{end:.2f} s" for start, end in facts["damaged_times"][:3])
            raise PrepError(f"{path}: {within} of {len(times)} frames are damaged ({parts}, ...), more than "
                            f"{DAMAGED:.0%}; fetch it again")
    pictures = np.zeros((0, SIDE * SIDE), np.uint8) if look else _by_number(seen.pictures, numbers, damaged)
    plain = (decoder.timed and constant and len(seen.kinds) == 1 and seen.upright and not damaged.any()
             and max(abs(seen.last.width - width), abs(seen.last.height - height)) <= 2)
    return Film(facts, rate, times, damaged, pictures, numbers, plain, decoder.index, seen.canvas, decoder.aspect,
                seen.first)


def _timeline(path: Path, seen: _Seen, decoder: Decoder, header_rates) -> tuple:
    """Return the times and numbers of the frames, which are damaged, the frame rate, and whether it is constant."""
    if decoder.timed:
        shown_ticks = np.array([time for time in seen.times if time is not None])
        decoder.timed = None not in [time for time, lost in zip(seen.times, seen.damaged, strict=True) if not lost]
    if decoder.timed:
        if any(seen.damaged):  # the packets that gave no frame have a time as well
            ticks = np.union1d(shown_ticks, decoder.packet_times)
            numbers = np.array([-1 if time is None else np.searchsorted(ticks, time) for time in seen.times])
            numbers[numbers <= np.maximum.accumulate(np.append(-1, numbers[:-1]))] = -1  # given again, or late
        else:
            ticks, numbers = np.sort(shown_ticks), np.argsort(np.argsort(shown_ticks, kind="stable"))
        decoder.timed = bool((np.diff(ticks) > 0).all())
    if decoder.timed:
        rate, constant = frame_rate(ticks, decoder.tick, header_rates)
        times = (ticks - ticks[0]) * float(decoder.tick)
    else:
        times, rate, constant = _counted(path, len(seen.times))
        numbers = np.arange(len(times))
    damaged = np.ones(len(times), bool)
    damaged[numbers[numbers >= 0]] = np.array(seen.damaged)[numbers >= 0]
    return times, numbers, damaged, rate, constant


def _counted(path: Path, length: int) -> tuple[np.ndarray, Fraction, bool]:
    """Return times, rate and whether it is constant, for frames that have no times of their own."""
    try:
        reader = UntimedReader(path, tolerant=True)
    except VideoError as error:
        raise PrepError(str(error)) from None
    beyond = np.maximum(0, np.arange(length) - (reader.length - 1))
    times = reader.time_of(np.arange(length) - beyond) + beyond / reader.fps
    reader.close()
    return times - times[0], reader.rate, reader.constant


def _by_number(pictures: bytearray, numbers: np.ndarray, damaged: np.ndarray) -> np.ndarray:
    """Return the small picture of each frame; a missing one is the one before it."""
    decoded = np.frombuffer(pictures, np.uint8).reshape(-1, SIDE * SIDE)
    if np.array_equal(numbers, np.arange(len(decoded))):
        return decoded
    places = np.full(len(damaged), -1)
    places[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
    return decoded[np.maximum(0, np.maximum.accumulate(places))]


def _spans(damaged: np.ndarray, edges: np.ndarray) -> list[list[float]]:
    """Return the first 100 stretches of damaged frames as [start, stop] in seconds."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], damaged, [False]])))
    return np.round(edges[changes].reshape(-1, 2)[:100], 3).tolist()


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
    return Fraction(1 / ((usual.mean() if len(usual) else steps.mean()) * tick_s)).limit_denominator(1001), False


def verify(source: Film, resized: Path, pieces: list[Path], chunk_seconds: float,
           stop: threading.Event | None = None) -> tuple[dict, list[dict]]:
    """Decode the outputs, look at them, and return their facts, with "status", and "reason" for a failed one.

    The resized video must be as long as the source, to a frame; if the source has a constant rate, it must have the
    same number of frames. The pieces must end at multiples of `chunk_seconds`, to a frame, and together hold every
    frame. All must show what the source shows at the same time, in the same shape.
    """
    early, late = source.plan()

    def look(path: Path, first: int) -> tuple[dict, str]:
        comparison = Comparison(source.pictures, early[first:], late[first:],
                                source.damaged[early[first:]] | source.damaged[late[first:]], float(source.rate))
        facts = scan(path, stop, comparison.add).facts
        return facts, comparison.finish() or squeezed(source.facts, facts)

    facts, seen = look(resized, 0)
    judge(facts, check_length(source.facts, facts) or seen)
    lines, end = [], 0
    for number, path in enumerate(pieces, 1):
        line, seen = look(path, end)
        end += line["frames"]
        due = min(facts["frames"], number * chunk_seconds * facts["fps"])
        judge(line, check_cut(line, end, due, number == len(pieces)) or seen)
        lines.append(line)
    return facts, lines


def judge(output: dict, reason: str) -> None:
    """Give an output its "status", and its "reason" if it has failed."""
    output |= {"status": "failed", "reason": reason} if reason else {"status": "ok"}


def check_length(source: dict, resized: dict) -> str:
    """Return what is wrong with the resized video's length or rate, or ""."""
    if source["constant_rate"] and resized["frames"] != source["frames"]:
        return f"{source['frames']} frames became {resized['frames']}"
    if abs(resized["seconds"] - source["seconds"]) > 1.01 / resized["fps"]:
        return f"{source['seconds']:.3f} s became {resized['seconds']:.3f} s"
    return "" if resized["constant_rate"] else "its frame rate is not constant"


def check_cut(piece: dict, end: int, due: float, is_last: bool) -> str:
    """Return what is wrong with a piece that ends with frame `end` of the video, or ""."""
    if abs(end - due) > (0 if is_last else 1):
        return f"ends with frame {end} of the video, expected {due:.0f}"
    return "" if piece["constant_rate"] else "its frame rate is not constant"


def squeezed(source: dict, output: dict) -> str:
    """Return that the output's picture has another shape than the source's, or ""; even sides round it."""
    due = output["height"] * source["width"] / source["height"]
    if abs(output["width"] - due) <= 2 * max(1, source["width"] / source["height"]):
        return ""
    return (f"it is shown {output['width']} x {output['height']}, which squeezes the source's "
            f"{source['width']} x {source['height']}")
