"""The camera wearer's hand: fingers, a thumb, and a forearm in a sleeve, from below.

Each hand is one picture, anchored at the fingertips. motion.py decides where it reaches.
"""
import functools

from PIL import Image

from egokit.toy.sprites import Pen, Sprite, to_sprite

LENGTH = 125  # units from the fingertips to the far end of the forearm, more than a frame is high
UNIT = 0.88   # px per unit: large enough to be recognised, small enough to leave the object visible
DETAIL = 3    # the factor by which a hand is larger while it is drawn
TILT = 29     # degrees: the forearm comes from the lower corner, beside the object and not across it

EDGE = 0.55   # the brightness of the hand's outline, a factor of the skin's colour
FINGERS = [(-7.5, 2.5), (-2.2, -1), (3.2, -0.5), (8, 4)]  # x, y of the tips
THUMB = [(-9, 21), (-15, 14), (-14.5, 7)]
HAND = [
    ("line", THUMB, {"width": 7, "fill": EDGE}),
    *(("line", [(x, y), (x * 0.9, 18)], {"width": 6.6, "fill": EDGE}) for x, y in FINGERS),
    ("rounded", (-11.5, 11, 11.5, 32, 8), {"outline": 1.2}),
    ("polygon", [(-7, 28), (7, 28), (7.5, 42), (-7.5, 42)], {"outline": 1.2}),
    ("rounded", (-10.3, 13, 10.3, 31, 7), {"outline": 0}),
    ("line", THUMB, {"width": 5}),
    *(("line", [(x, y), (x * 0.9, 18)], {"width": 4.6}) for x, y in FINGERS),
]
FOREARM = [
    ("polygon", [(-9.5, 39), (9.5, 39), (15, 160), (-15, 160)], {"outline": 1.5}),
    ("polygon", [(-10, 39), (10, 39), (10.4, 45), (-10.4, 45)], {"fill": 0.75, "outline": 1.2}),
]


@functools.lru_cache(maxsize=512)
def hand_sprite(skin: tuple[int, int, int], sleeve: tuple[int, int, int], side: int, percent: int) -> Sprite:
    """Return the picture of a hand, anchored at its fingertips.

    Args:
        skin: RGB, 0..255.
        sleeve: RGB, 0..255.
        side: +1, a right hand from the lower right, or -1, its mirror image.
        percent: of the usual size.
    """
    image, tip = _large_hand(skin, sleeve, side)
    scale = percent / 100 / DETAIL
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    return to_sprite(small, (tip[0] * scale, tip[1] * scale))


@functools.lru_cache(maxsize=128)
def _large_hand(skin, sleeve, side: int):
    """Return an RGBA image that is DETAIL times too large, and the (x, y) of its fingertips."""
    scale = DETAIL * UNIT
    extent = round(LENGTH * scale)
    image = Image.new("RGBA", (2 * extent, 2 * extent))
    Pen(image, skin, scale, EDGE, LENGTH).strokes(HAND)  # upright, its fingertips around the image's middle
    Pen(image, sleeve, scale, 0.5, LENGTH).strokes(FOREARM)
    image = image.rotate(TILT, Image.Resampling.BILINEAR)  # around the middle, where the fingertips are
    if side < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top, right, bottom = image.getbbox()
    return image.crop((left, top, right, bottom)), (extent - left, extent - top)
