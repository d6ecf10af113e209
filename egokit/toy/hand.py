"""The camera wearer's hand: fingers, a thumb, and a forearm in a sleeve, from below.

Each hand is one picture, anchored at the fingertips. motion.py decides where it reaches.
"""
from __future__ import annotations

import functools

from egokit.toy.sprites import Pen, Sprite, shade, to_sprite

LENGTH = 125  # units from the fingertips to the far end of the forearm, more than a frame is high
UNIT = 0.88   # px per unit: large enough to be recognised, small enough to leave the object visible
DETAIL = 3    # the factor by which a hand is larger while it is drawn
TILT = 29     # degrees: the forearm comes from the lower corner, beside the object and not across it


@functools.lru_cache(maxsize=512)
def hand_sprite(skin: tuple[int, int, int], sleeve: tuple[int, int, int], side: int, percent: int) -> Sprite:
    """Return the picture of a hand, anchored at its fingertips.

    Args:
        skin: RGB, 0..255.
        sleeve: RGB, 0..255.
        side: +1, a right hand from the lower right, or -1, its mirror image.
        percent: of the usual size.
    """
    from PIL import Image
    image, tip = _large_hand(skin, sleeve, side)
    scale = percent / 100 / DETAIL
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    return to_sprite(small, (tip[0] * scale, tip[1] * scale))


@functools.lru_cache(maxsize=128)
def _large_hand(skin, sleeve, side: int):
    """Return an RGBA image that is DETAIL times too large, and the (x, y) of its fingertips."""
    from PIL import Image
    scale = DETAIL * UNIT
    extent = round(LENGTH * scale)
    image = Image.new("RGBA", (2 * extent, 2 * extent))
    _draw_hand(Pen(image, skin, scale), Pen(image, sleeve, scale), LENGTH)
    image = image.rotate(TILT, Image.Resampling.BILINEAR)  # around the middle, where the fingertips are
    if side < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top, right, bottom = image.getbbox()
    return image.crop((left, top, right, bottom)), (extent - left, extent - top)


def _draw_hand(pen: Pen, cuff: Pen, middle: float) -> None:
    """Draw the hand upright: the fingers point up, and their tips are around (middle, middle)."""
    def at(x: float, y: float) -> tuple[float, float]:
        return middle + x, middle + y

    edge = shade(pen.colour, 0.55)
    cuff.dark = shade(cuff.colour, 0.5)
    fingers = [(-7.5, 2.5), (-2.2, -1), (3.2, -0.5), (8, 4)]
    thumb = (at(-9, 21), at(-15, 14), at(-14.5, 7))
    pen.line(*thumb, width=7, fill=edge)
    for x, y in fingers:
        pen.line(at(x, y), at(x * 0.9, 18), width=6.6, fill=edge)
    pen.dark = edge
    pen.rounded(middle - 11.5, middle + 11, middle + 11.5, middle + 32, 8, outline=1.2)
    pen.polygon(at(-7, 28), at(7, 28), at(7.5, 42), at(-7.5, 42), outline=1.2)
    pen.rounded(middle - 10.3, middle + 13, middle + 10.3, middle + 31, 7, outline=0)
    pen.line(*thumb, width=5)
    for x, y in fingers:
        pen.line(at(x, y), at(x * 0.9, 18), width=4.6)
    cuff.polygon(at(-9.5, 39), at(9.5, 39), at(15, 160), at(-15, 160), outline=1.5)
    hem = (at(-10, 39), at(10, 39), at(10.4, 45), at(-10.4, 45))
    cuff.polygon(*hem, fill=shade(cuff.colour, 0.75), outline=1.2)
