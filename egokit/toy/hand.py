"""The camera wearer's hand: skin, fingers, a thumb, and a forearm in a sleeve coming from below.

One picture a hand, anchored at the fingertips. Where it reaches is motion.py's affair.
"""
from __future__ import annotations

import functools

from egokit.toy.sprites import Pen, Sprite, shade, to_sprite

REACH = 150   # px from the fingertips to the far end of the forearm, more than a frame is high
DETAIL = 3    # times larger while it is drawn
TILT = 27     # degrees: the forearm comes from the lower corner, beside the object and not across it


@functools.lru_cache(maxsize=512)
def hand_sprite(skin: tuple[int, int, int], sleeve: tuple[int, int, int], side: int, percent: int) -> Sprite:
    """side +1: a right hand, from the lower right; -1 its mirror image. percent: of the usual size."""
    from PIL import Image
    scale = DETAIL * percent / 100
    extent = round(REACH * scale)
    image = Image.new("RGBA", (2 * extent, 2 * extent))
    _draw(Pen(image, skin, scale), sleeve, REACH)
    image = image.rotate(TILT, Image.Resampling.BILINEAR)  # about the middle, where the fingertips are
    image = image.resize((2 * extent // DETAIL, 2 * extent // DETAIL), Image.Resampling.BOX)
    if side < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top, right, bottom = image.getbbox()
    return to_sprite(image.crop((left, top, right, bottom)), (image.width / 2 - left, image.height / 2 - top))


def _draw(pen: Pen, sleeve, middle: float) -> None:
    """Upright, the fingertips pointing up and their tips around (middle, middle)."""
    def at(x: float, y: float) -> tuple[float, float]:
        return middle + x, middle + y

    edge = shade(pen.colour, 0.55)
    cuff = Pen.__new__(Pen)
    cuff.__dict__.update(pen.__dict__)
    cuff.colour, cuff.dark = sleeve, shade(sleeve, 0.5)
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
    cuff.polygon(at(-10, 39), at(10, 39), at(10.4, 45), at(-10.4, 45), fill=shade(sleeve, 0.75), outline=1.2)
