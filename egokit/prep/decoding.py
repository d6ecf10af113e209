"""Decode a source from end to end, past damage, and draw its frames as players show them."""
import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.format import Flags
from av.video.reformatter import VideoReformatter

from egokit.data.video import pictures as shown
from egokit.data.video.container import open_film
from egokit.data.video.media_file import demux
from egokit.data.video.timeline import Refused

MATRICES = {1: "ITU709", 4: "FCC", 7: "SMPTE240M", 9: "BT2020"}  # frame.colorspace; any other is ITU601


class PrepError(RuntimeError):
    """A video can't be prepared; the message names the file and gives ffmpeg's reason."""


def shown_size(frame, aspect) -> tuple[int, int]:
    """Return (width, height) of a frame when it is upright and its pixels are square; `aspect` as for `square_size`."""
    width, height = shown.square_size(frame.width, frame.height, aspect)
    return (height, width) if shown.orientation(frame)[0] else (width, height)


def whole(frame):
    """Return the frame, to be scaled as one picture; swscale takes an interlaced one for two."""
    if not frame.interlaced_frame:
        return frame
    copy = av.VideoFrame.from_ndarray(frame.to_ndarray(), frame.format.name)
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    return copy


def placed(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[float, float]:
    """Return (width, height) that a picture of this size gets in a canvas, by the rule of `pictures.fit`."""
    scale = min(canvas) / min(size)
    return size[0] * scale, size[1] * scale


class Decoder:
    """All frames of a file's film, in order; None in place of one that can't be decoded.

    Attributes:
        timed: whether the container says when each frame is shown.
        is_mov, broadcast: whether it is an MP4 or MOV, and whether the container's clock may jump.
        restarts: whether it does so; found when the times are known.
        index, tick, aspect: the film's number among the streams, its unit of time in seconds, a stored pixel's shape.
        packet_times: presentation times of the packets read so far, those without a decoded frame included.
        packets: how many packets were read so far, those that an edit list leaves out included.
    """

    def __init__(self, path: Path, stop: threading.Event | None = None):
        self.path, self.stop, self.packet_times, self.packets = path, stop, [], 0
        try:
            self.container, self.stream = open_film(path)
        except (Refused, av.error.FFmpegError, OSError) as error:
            raise self._failed(error) from None
        kind = self.container.format
        self.restarts = False
        self.is_mov = "mov" in kind.name
        self.broadcast = bool(kind.flags & Flags.ts_discont.value)
        self.timed = kind.name != "avi" and not kind.flags & Flags.no_timestamps.value
        self.stream.thread_type = "AUTO" if self.timed else "SLICE"  # frame threads report damage some frames early
        # read now: a stream of a closed container is freed memory
        self.index, self.tick, self.aspect = self.stream.index, self.stream.time_base, self.stream.sample_aspect_ratio

    def _failed(self, error: Exception) -> PrepError:
        return PrepError(f"{self.path}: can't be decoded ({getattr(error, 'strerror', None) or error})")

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_) -> None:
        self.container.close()

    def __iter__(self) -> Iterator:
        context = self.stream.codec_context
        try:
            for packet in itertools.chain((packet for packet in demux(self.container, self.stream, tolerant=True)
                                           if packet.size), [None]):
                if self.stop and self.stop.is_set():
                    raise PrepError(f"{self.path}: interrupted")
                self.packets += packet is not None
                if packet and packet.pts is not None and not packet.is_discard:
                    self.packet_times.append(packet.pts)
                frames = [None]
                with contextlib.suppress(av.error.FFmpegError):
                    frames = context.decode(packet)
                for frame in filter(None, frames):
                    shown.check_size(frame.width, frame.height)  # it may change in mid-file
                yield from frames
        except (Refused, av.error.FFmpegError, OSError) as error:
            raise self._failed(error) from None


def draw(path: Path, film, size: tuple[int, int], stop: threading.Event | None = None) -> Iterator[bytes]:
    """Yield the frames of a prepared video as raw yuv420p: upright, not squeezed, at a constant rate.

    A frame that can't be read is given as the readable one before it; at the start, as the one after it.

    Args:
        film: what `measure.scan` found.
        size: even width and height of the frames.
    """
    reformatter, plan = VideoReformatter(), film.plan()[1].tolist()
    readable, pixels, done = None, b"", 0

    def render() -> bytes:
        nonlocal pixels
        pixels = pixels or _draw(readable, film, size, reformatter)
        return pixels

    with Decoder(path, stop) as decoder:
        for frame, number in zip(decoder, film.numbers.tolist(), strict=False):
            if frame is None or number < 0 or film.damaged[number]:
                continue
            while readable and done < len(plan) and plan[done] < number:
                done += 1
                yield render()
            readable, pixels = frame, b""
            while done < len(plan) and plan[done] <= number:
                done += 1
                yield render()
    for _ in plan[done:]:
        yield render()


def _draw(frame, film, size: tuple[int, int], reformatter: VideoReformatter) -> bytes:
    """Return a frame as raw yuv420p of limited range, with the matrix of the film's first frame."""
    how, own = shown.orientation(frame), shown_size(frame, film.aspect)
    inner = size if own == film.canvas else [max(2, 2 * round(side / 2)) for side in placed(own, size)]
    frame = reformatter.reformat(whole(frame), *(inner[::-1] if how[0] else inner), "yuv420p", interpolation="BICUBIC",
                                 src_colorspace=MATRICES.get(int(frame.colorspace), "ITU601"),
                                 dst_colorspace=MATRICES.get(film.colours[0], "ITU601"), dst_color_range="MPEG",
                                 threads=1)
    out = []
    for plane, black, part in zip(frame.planes, (16, 128, 128), (1, 2, 2), strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:plane.height, :plane.width]
        width, height = size[0] // part, size[1] // part
        out.append(_centred(shown.upright(rows, how), width, height, black).tobytes())
    return b"".join(out)


def _centred(plane_HW: np.ndarray, width: int, height: int, black: int) -> np.ndarray:
    """Cut or fill a plane at both ends."""
    rows, columns = plane_HW.shape
    if (rows, columns) == (height, width):
        return plane_HW
    out, h, w = np.full((height, width), black, np.uint8), min(rows, height), min(columns, width)
    top, left, to, at = ((a - b) // 2 for a, b in ((rows, h), (columns, w), (height, h), (width, w)))
    out[to:to + h, at:at + w] = plane_HW[top:top + h, left:left + w]
    return out
