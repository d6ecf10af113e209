"""What a video file really holds, found by decoding all of it, and whether what was made of it is right."""
from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path

DAMAGED = 0.01  # of a source's frames: more, and it is not prepared; fewer are counted in its line of the manifest


class PrepError(RuntimeError):
    """A video can't be prepared; the message names it and gives ffmpeg's reason."""


def scan(path: Path, stop: threading.Event | None = None) -> tuple[dict, Fraction]:
    """What decoding all of a file shows, and its exact frame rate. Nothing is taken from the header alone.

    {"file", "frames", "damaged" (of them, those that the decoder had to make up in part), "fps", "seconds" (first frame's
    start to last frame's end), "constant_rate", "width", "height", "bytes"}. Raises PrepError for a file that can't be
    decoded to the end that its header promises, or of which more than `DAMAGED` is damaged.
    """
    import av
    if not path.is_file():  # opening a pipe would wait for ever
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
            tick, rates, listed = stream.time_base, (stream.base_rate, stream.average_rate), stream.frames
            promised = stream.duration * tick if stream.duration else 0
            if not promised and len(container.streams) == 1:  # Matroska states it for the file, whose sound may be longer
                promised = (container.duration or 0) / av.time_base
    except (av.error.FFmpegError, IndexError, OSError) as error:
        reason = "no video stream" if isinstance(error, IndexError) else getattr(error, "strerror", None) or error
        raise PrepError(f"{path}: can't be decoded ({reason})") from None
    if not times or None in times:
        raise PrepError(f"{path}: {'has frames without a time' if times else 'no frame of it can be decoded'}")
    if damaged > DAMAGED * len(times):
        raise PrepError(f"{path}: {damaged} of {len(times)} frames are damaged; fetch it again")
    rate, constant = frame_rate(times, tick, rates)
    shown = 1 / rate if constant or not last.duration else last.duration * tick
    seconds = float((max(times) - min(times)) * tick + shown)
    # both: a header may list frames that an edit list leaves out, and may count how long a file's last frame is to be shown
    if seconds + max(1, 0.01 * promised) < promised and (not listed or len(times) < listed):
        raise PrepError(f"{path}: its header promises {float(promised):.1f} s, but only {seconds:.1f} s can be decoded; fetch it again")
    return {"file": path.name, "frames": len(times), "damaged": damaged, "fps": float(rate), "seconds": round(seconds, 4),
            "constant_rate": constant, "width": last.width, "height": last.height, "bytes": path.stat().st_size}, rate


def frame_rate(times: list[int], tick: Fraction, stated) -> tuple[Fraction, bool]:
    """(frames a second, whether it is constant). times: of all frames, in `tick`s of a second; stated: rates to try first.

    Constant: no frame is half a frame away from its place on the grid. Otherwise the usual rate: gaps (and bursts) left out,
    as a camera that skips a frame now and then still runs at its own rate.
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
    """Give each output its status, and failed ones their reason. Of a constant rate: the same frames. Of any: as long, to a frame."""
    def judge(output: dict, reason: str) -> None:
        output |= {"status": "failed", "reason": reason} if reason else {"status": "ok"}
    fps, count = resized["fps"], resized["frames"]
    judge(resized, f"{source['frames']} frames became {count}" if source["constant_rate"] and count != source["frames"] else
          f"{source['seconds']:.3f} s became {resized['seconds']:.3f} s" if abs(resized["seconds"] - source["seconds"]) > 1.01 / fps else
          "its frame rate is not constant" if not resized["constant_rate"] else "")
    end = 0
    for number, piece in enumerate(pieces, 1):
        end += piece["frames"]
        due = min(count, number * chunk_seconds * fps)
        exact = number == len(pieces)
        judge(piece, f"ends with frame {end} of the video, expected {due:.0f}" if abs(end - due) > (0 if exact else 1) else
              "its frame rate is not constant" if not piece["constant_rate"] else "")
