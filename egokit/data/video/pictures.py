"""From a decoded frame to the picture that players show: upright, with square pixels, and of the film.

Phones store portrait video sideways, front cameras store it mirrored, and DV and DVD cameras store pixels that are not
square; the file says so. Some files contain a cover beside the film.
"""
import math
import struct

import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition

from egokit.data.video.timeline import Refused

STILL = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
MAX_PIXELS = 2**26  # of a picture: 8192 x 8192, above 8K footage of all directions for both eyes
MAX_SHAPE = 64  # times that a picture may be as long as it is high, or the reverse
LARGEST = 4096  # pixels of a side beyond which no pixel is stretched
SQUARE = 0.02  # even sides, to which scalers round, make pixels so much wider or narrower than square
SQUEEZED = 8  # pixels that are said to be more than so many times as wide as high, or the reverse, are taken as square
UPRIGHT = (False, False, False)


def film(container):
    """Return the video stream that players show: no cover, the default one, the largest.

    Raises:
        Refused: the file has no video stream, or a cover only.
    """
    def rank(stream) -> tuple:
        coded = stream.codec_context
        return (bool(stream.disposition & Disposition.default), stream.frames != 1,
                coded.width * coded.height if coded else 0)
    streams = [stream for stream in container.streams.video if not stream.disposition & STILL]
    if not streams:
        raise Refused("no video stream" + (" but a cover picture" if container.streams.video else ""))
    return streams[0] if len(streams) == 1 else max(streams, key=rank)


def check_size(width: int, height: int) -> None:
    """Raise Refused if a picture is so large, or so long, that memory would not hold what is made of it."""
    if not width or width * height > MAX_PIXELS or max(width, height) > MAX_SHAPE * min(width, height):
        stated = f"{width} x {height} pixels" if width else "no size, or too many pixels"
        raise Refused(f"its pictures have {stated}; expected at most {MAX_PIXELS:,} pixels, and no side more than "
                      f"{MAX_SHAPE} times the other: scale it down")


def orientation(frame) -> tuple[bool, bool, bool]:
    """Return how a stored frame becomes upright: (swap rows and columns, then mirror left to right, then upside down).

    A display matrix maps the stored place (x, y) to (a x + c y, b x + d y); it is one of eight, or the nearest of them.
    """
    for data in frame.side_data:
        if data.type == Type.DISPLAYMATRIX and data.buffer_size >= 36:
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            swapped = abs(b) + abs(c) > abs(a) + abs(d)
            return swapped, (c if swapped else a) < 0, (b if swapped else d) < 0
    return UPRIGHT


def upright(pixels_HW3: np.ndarray, how: tuple[bool, bool, bool]) -> np.ndarray:
    """Return a view of a stored picture as players show it; `how` is what `orientation` returns."""
    swapped, mirrored, upside_down = how
    if swapped:
        pixels_HW3 = pixels_HW3.swapaxes(0, 1)
    return pixels_HW3[::-1 if upside_down else 1, ::-1 if mirrored else 1]


def square_size(width: int, height: int, aspect) -> tuple[int, int]:
    """Return (width, height) with square pixels; the shorter side of pixels is stretched, so nothing is lost.

    Args:
        aspect: width / height of a stored pixel, a fraction; None or 0 if it isn't stated.
    """
    if not aspect or abs(aspect - 1) < SQUARE or not 1 / SQUEEZED <= aspect <= SQUEEZED:
        return width, height
    wider = aspect > 1
    if max(width * aspect if wider else width, height if wider else height / aspect) > LARGEST:
        wider = not wider  # the other side is shrunk
    return (round(width * aspect), height) if wider else (width, round(height / aspect))


def _middle(pixels_HW3: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the middle of a picture, at most so large."""
    top, left = (max(0, side - kept) // 2 for side, kept in zip(pixels_HW3.shape[:2], (height, width), strict=True))
    return pixels_HW3[top:top + height, left:left + width]


def fit(pixels_HW3: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a picture of another size in a canvas: its short side fills the canvas's, its aspect ratio is kept.

    Its longer side is cut, or filled with black, in equal parts at both ends; so a square crop from the middle is the
    same as the picture's own.
    """
    if pixels_HW3.shape[:2] == (height, width):
        return pixels_HW3
    import torch  # here, as few files need it, and it takes seconds
    scale = min(height, width) / min(pixels_HW3.shape[:2])
    if pixels_HW3.size * scale ** 2 > 12 * height * width:  # so long that most of it would be made, and cut off
        pixels_HW3 = _middle(pixels_HW3, *(math.ceil(2 * side / scale) for side in (height, width)))
    rows, columns = (max(1, round(side * scale)) for side in pixels_HW3.shape[:2])
    pixels = torch.from_numpy(np.ascontiguousarray(pixels_HW3)).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(pixels, (rows, columns), mode="bilinear", antialias=True)[0]
    out = np.zeros((height, width, 3), np.uint8)
    h, w = min(rows, height), min(columns, width)
    top, left = (rows - h) // 2, (columns - w) // 2
    part = pixels[:, top:top + h, left:left + w].permute(1, 2, 0).numpy()
    out[(height - h) // 2:(height - h) // 2 + h, (width - w) // 2:(width - w) // 2 + w] = part
    return out
