"""Measure a video file by decoding all of it, and verify what was made of it."""
import threading
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

DAMAGED = 0.01  # a source with a larger share of damaged frames is refused; fewer are counted in the manifest


class PrepError(RuntimeError):
    """A video can't be prepared; the message names the file and gives ffmpeg's reason."""


def scan(path: Path, stop: threading.Event | None = None) -> tuple[dict, Fraction]:
    """Decode a whole file and return its facts and its exact frame rate.

    Nothing is taken from the header alone.

    Args:
        stop: the scan raises PrepError soon after this event is set.

    Returns:
        Facts: "file", "frames", "damaged" (frames that the decoder had to make up in part), "fps", "seconds" (from the
        first frame's start to the last frame's end), "constant_rate", "width", "height", "bytes". Frames a second.

    Raises:
        PrepError: the file can't be decoded to the end that its header promises, or more than `DAMAGED` of its frames
            are damaged.
    """
    import av
    if not path.is_file():  # opening a pipe would block forever
        raise PrepError(f"{path}: not a file, or a link to nothing")
    times, damaged, last = [], 0, None
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            if stream.codec_context is None or container.format.name.endswith("_pipe"):
                raise PrepError(f"{path}: a picture, or of a codec that no decoder knows")
            stream.thread_type = "AUTO"
            for last in container.decode(stream):
                times.append(last.pts)
                damaged += last.is_corrupt
                if stop and stop.is_set():
                    raise PrepError(f"{path}: interrupted")
            tick = stream.time_base
            header_rates, header_frames = (stream.base_rate, stream.average_rate), stream.frames
            promised = stream.duration * tick if stream.duration else 0
            # Matroska gives one duration for the file; it counts only without sound, which may be longer
            if not promised and len(container.streams) == 1:
                promised = (container.duration or 0) / av.time_base
    except (av.error.FFmpegError, IndexError, OSError) as error:
        reason = "no video stream" if isinstance(error, IndexError) else getattr(error, "strerror", None) or error
        raise PrepError(f"{path}: can't be decoded ({reason})") from None
    if not times or None in times:
        raise PrepError(f"{path}: {'has frames without a time' if times else 'no frame of it can be decoded'}")
    if damaged > DAMAGED * len(times):
        raise PrepError(f"{path}: {damaged} of {len(times)} frames are damaged; fetch it again")
    rate, constant = frame_rate(times, tick, header_rates)
    last_duration = 1 / rate if constant or not last.duration else last.duration * tick
    seconds = float((max(times) - min(times)) * tick + last_duration)
    # Both must fall short: a header may list frames that an edit list leaves out, and its duration may include how long
    # the file's last frame is to be shown.
    if seconds + max(1, 0.01 * promised) < promised and (not header_frames or len(times) < header_frames):
        raise PrepError(f"{path}: its header promises {float(promised):.1f} s, "
                        f"but only {seconds:.1f} s can be decoded; fetch it again")
    return {"file": path.name, "frames": len(times), "damaged": damaged, "fps": float(rate),
            "seconds": round(seconds, 4), "constant_rate": constant, "width": last.width, "height": last.height,
            "bytes": path.stat().st_size}, rate


def frame_rate(times: list[int], tick: Fraction, stated: Iterable[Fraction | None]) -> tuple[Fraction, bool]:
    """Return the frame rate (frames a second), and whether it is constant.

    A rate is constant if no frame is half a frame away from its place on the grid. Otherwise the usual rate is
    returned, without gaps and bursts: a camera that skips a frame now and then still runs at its own rate.

    Args:
        times: times of all frames, in units of `tick`.
        tick: seconds.
        stated: rates that the header states; they are tried first.
    """
    import numpy as np
    times_N, tick_s = np.sort(np.array(times, np.float64)), float(tick)
    stated = [Fraction(rate) for rate in stated if rate]
    for rate in stated:
        places_N = times_N[0] + np.arange(len(times_N)) / float(rate * tick)
        if np.abs(times_N - places_N).max() * tick_s * float(rate) < 0.5:
            return rate, True
    steps = np.diff(times_N)
    usual = steps[np.abs(steps - np.median(steps)) < 0.5 * np.median(steps)]
    return Fraction(1 / ((usual.mean() if len(usual) else steps.mean()) * tick_s)).limit_denominator(1001), False


def verify(source: dict, resized: dict, pieces: list[dict], chunk_seconds: float) -> None:
    """Give each output its "status", and a failed one its "reason".

    Source and outputs are facts of `scan`. The resized video must be as long as the source, to a frame; if the source
    has a constant rate, it must have the same number of frames. The pieces must end at multiples of `chunk_seconds`, to
    a frame, and together hold every frame.
    """
    def judge(output: dict, reason: str) -> None:
        output |= {"status": "failed", "reason": reason} if reason else {"status": "ok"}

    fps, count, reason = resized["fps"], resized["frames"], ""
    if source["constant_rate"] and count != source["frames"]:
        reason = f"{source['frames']} frames became {count}"
    elif abs(resized["seconds"] - source["seconds"]) > 1.01 / fps:
        reason = f"{source['seconds']:.3f} s became {resized['seconds']:.3f} s"
    elif not resized["constant_rate"]:
        reason = "its frame rate is not constant"
    judge(resized, reason)
    end = 0
    for number, piece in enumerate(pieces, 1):
        end += piece["frames"]
        due, reason = min(count, number * chunk_seconds * fps), ""
        tolerance = 0 if number == len(pieces) else 1  # frames
        if abs(end - due) > tolerance:
            reason = f"ends with frame {end} of the video, expected {due:.0f}"
        elif not piece["constant_rate"]:
            reason = "its frame rate is not constant"
        judge(piece, reason)
