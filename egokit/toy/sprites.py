"""The twelve objects as small pictures with distinct silhouettes, in any colour and size.

A sprite is drawn once, large, and scaled down; scaled sprites are cached. stage.py places them in a frame, and the hand
is in hand.py.
"""
import dataclasses
import functools

import numpy as np
from PIL import Image, ImageDraw

MASTER = 160  # px, the size at which shapes are drawn; the unit square is 100 x 100
RGB = {"red": (208, 42, 40), "blue": (44, 84, 205), "green": (46, 152, 62),
       "yellow": (240, 206, 50), "purple": (140, 62, 172), "white": (238, 238, 238)}

# A shape is a list of strokes (method of Pen, its arguments, its options), drawn one over the other, in units of a
# square of 100 x 100. A fill is an RGB tuple, or a factor of the object's own colour, which is the default.
DARK = 0.38  # of outlines
CONTRAST = "contrast"  # white, or dark grey on a light object
CREAM = (245, 240, 220)
SCREEN = (30, 36, 52)
SHAPES = {
    "cup": [("arc", (54, 32, 98, 76, -110, 110), {"width": 15, "fill": DARK}),
            ("arc", (57, 35, 95, 73, -110, 110), {"width": 9}),
            ("polygon", [(10, 14), (72, 14), (65, 92), (17, 92)], {}),
            ("ellipse", (10, 5, 72, 24), {"fill": 0.55})],
    "bowl": [("chord", (2, 2, 98, 86, 0, 180), {}),
             ("rounded", (34, 82, 66, 93, 3), {}),
             ("ellipse", (2, 28, 98, 58), {"fill": 0.55})],
    "ball": [("ellipse", (8, 8, 92, 92), {}),
             ("arc", (-44, 8, 40, 92, -50, 50), {"width": 8, "fill": CONTRAST}),
             ("arc", (60, 8, 144, 92, 130, 230), {"width": 8, "fill": CONTRAST}),
             ("arc", (8, 8, 92, 92, 0, 360), {"width": 4, "fill": DARK})],
    "box": [("polygon", [(50, 5), (95, 25), (50, 46), (5, 25)], {"fill": 1.25}),
            ("polygon", [(5, 25), (50, 46), (50, 96), (5, 72)], {}),
            ("polygon", [(95, 25), (50, 46), (50, 96), (95, 72)], {"fill": 0.65})],
    "bottle": [("rounded", (40, 2, 60, 16, 3), {"fill": DARK}),
               ("polygon", [(42, 14), (58, 14), (59, 32), (72, 48), (72, 96), (28, 96), (28, 48), (41, 32)], {}),
               ("rounded", (28, 56, 72, 80, 1), {"fill": CREAM, "outline": 2})],
    "plate": [("ellipse", (0, 22, 100, 80), {}),
              ("ellipse", (20, 34, 80, 66), {"fill": 0.72, "outline": 3})],
    "knife": [("polygon", [(38, 66), (92, 3), (97, 12), (94, 34), (56, 80)], {"fill": (205, 210, 218)}),
              ("line", [(46, 74), (12, 93)], {"width": 24, "fill": DARK}),
              ("line", [(46, 74), (12, 93)], {"width": 17})],
    "pan": [("line", [(60, 40), (94, 8)], {"width": 17, "fill": DARK}),
            ("line", [(60, 40), (94, 8)], {"width": 10}),
            ("ellipse", (2, 28, 72, 96), {}),
            ("ellipse", (13, 39, 61, 85), {"fill": (58, 56, 60), "outline": 0})],
    "book": [("polygon", [(10, 80), (84, 80), (96, 68), (96, 80), (84, 94), (10, 94)], {"fill": (245, 242, 228)}),
             ("polygon", [(22, 16), (96, 16), (84, 82), (10, 82)], {}),
             ("polygon", [(22, 16), (34, 16), (22, 82), (10, 82)], {"fill": 0.6, "outline": 0}),
             ("line", [(48, 34), (78, 34)], {"width": 7, "fill": CREAM}),
             ("line", [(46, 48), (68, 48)], {"width": 5, "fill": CREAM})],
    "phone": [("rounded", (27, 3, 73, 97, 10), {}),
              ("rounded", (34, 14, 66, 80, 2), {"fill": SCREEN, "outline": 0}),
              ("line", [(38, 66), (54, 22)], {"width": 4, "fill": (120, 140, 175)}),
              ("ellipse", (45, 84, 55, 93), {"fill": SCREEN, "outline": 0})],
    "hammer": [("rounded", (42, 30, 58, 97, 5), {"fill": (196, 150, 92)}),
               ("polygon", [(8, 8), (68, 8), (96, 20), (68, 34), (8, 34)], {}),
               ("rounded", (3, 4, 22, 38, 4), {"fill": 0.65})],
    "apple": [("ellipse", (6, 26, 62, 94), {}),
              ("ellipse", (38, 26, 94, 94), {}),
              ("ellipse", (14, 32, 86, 96), {"outline": 0}),
              ("line", [(50, 38), (54, 10)], {"width": 8, "fill": (92, 60, 30)}),
              ("polygon", [(56, 20), (70, 6), (88, 8), (78, 22)], {"fill": (90, 190, 70), "outline": 2})],
}


@dataclasses.dataclass(frozen=True, eq=False)
class Sprite:
    """A picture ready to be pasted on a frame; its anchor is the point put on a given pixel."""
    colour_HWC: np.ndarray        # uint16, already multiplied by alpha 0..256
    transparency_HW1: np.ndarray  # uint16, 256 - alpha
    anchor: tuple[float, float]   # x, y


def to_sprite(image, anchor: tuple[float, float]) -> Sprite:
    """Return the sprite of a PIL image; `anchor` is in the image's pixels."""
    pixels = np.asarray(image.convert("RGBA")).astype(np.uint16)
    alpha = pixels[..., 3:] + (pixels[..., 3:] >> 7)  # 0..255 -> 0..256, so that >> 8 divides exactly
    return Sprite(pixels[..., :3] * alpha, 256 - alpha, anchor)


def paste(frame_HWC: np.ndarray, sprite: Sprite, x: float, y: float) -> None:
    """Paste a sprite on a uint8 frame, in place, with its anchor on (x, y).

    Pixels outside the frame are cropped.
    """
    height, width = sprite.transparency_HW1.shape[:2]
    left, top = round(x - sprite.anchor[0]), round(y - sprite.anchor[1])
    x0, x1 = max(left, 0), min(left + width, frame_HWC.shape[1])
    y0, y1 = max(top, 0), min(top + height, frame_HWC.shape[0])
    if x0 < x1 and y0 < y1:
        inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        under = frame_HWC[y0:y1, x0:x1]
        under[:] = (under * sprite.transparency_HW1[inside] + sprite.colour_HWC[inside]) >> 8


def shade(rgb, factor: float) -> tuple[int, int, int]:
    """Return a colour made darker (factor below 1) or lighter."""
    return tuple(int(min(255, channel * factor)) for channel in rgb)


class Pen:
    """PIL's drawing calls in other units, with a dark outline.

    Args:
        image: drawn on.
        colour: RGB, of the object.
        scale: pixels of a unit.
        dark: the outline's brightness, a factor of the colour.
        origin: the unit that is called 0, of both axes.
    """

    def __init__(self, image, colour, scale: float = MASTER / 100, dark: float = DARK, origin: float = 0):
        self.draw, self.colour, self.scale, self.origin = ImageDraw.Draw(image), colour, scale, origin
        self.dark = shade(colour, dark)

    def strokes(self, shape) -> None:
        """Draw a shape."""
        for method, places, options in shape:
            getattr(self, method)(*places, **options)

    def _points(self, *points):
        return [((self.origin + x) * self.scale, (self.origin + y) * self.scale) for x, y in points]

    def _width(self, width: float) -> int:
        return round(width * self.scale)

    def _fill(self, fill) -> tuple[int, int, int]:
        if fill == CONTRAST:
            return (250, 250, 250) if sum(self.colour) < 600 else (60, 60, 60)
        return shade(self.colour, fill) if isinstance(fill, float) else fill

    def polygon(self, *points, fill=1.0, outline: float = 4):
        path = self._points(*points)
        self.draw.polygon(path, fill=self._fill(fill))
        if outline:
            closed = [*path, path[0], path[1]]
            self.draw.line(closed, fill=self.dark, width=self._width(outline), joint="curve")

    def ellipse(self, x0, y0, x1, y1, fill=1.0, outline: float = 4):
        self.draw.ellipse(self._points((x0, y0), (x1, y1)), fill=self._fill(fill),
                          outline=self.dark if outline else None, width=self._width(outline))

    def rounded(self, x0, y0, x1, y1, radius, fill=1.0, outline: float = 4):
        self.draw.rounded_rectangle(self._points((x0, y0), (x1, y1)), self._width(radius), fill=self._fill(fill),
                                    outline=self.dark if outline else None, width=self._width(outline))

    def line(self, *points, width: float, fill=1.0):
        path, radius = self._points(*points), width * self.scale / 2
        self.draw.line(path, fill=self._fill(fill), width=self._width(width), joint="curve")
        for x, y in (path[0], path[-1]):  # round ends
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=self._fill(fill))

    def arc(self, x0, y0, x1, y1, start, end, width: float, fill=1.0):
        self.draw.arc(self._points((x0, y0), (x1, y1)), start, end, fill=self._fill(fill), width=self._width(width))

    def chord(self, x0, y0, x1, y1, start, end):
        self.draw.chord(self._points((x0, y0), (x1, y1)), start, end, fill=self.colour, outline=self.dark,
                        width=self._width(4))


@functools.lru_cache(maxsize=128)
def _master(noun: str, colour: str):
    image = Image.new("RGBA", (MASTER, MASTER))
    Pen(image, RGB[colour]).strokes(SHAPES[noun])
    return image


@functools.lru_cache(maxsize=4096)
def object_sprite(noun: str, colour: str, size: int) -> Sprite:
    """Return the object `size` px across, anchored at its centre."""
    return to_sprite(_master(noun, colour).resize((size, size), Image.Resampling.BOX), (size / 2, size / 2))


@functools.lru_cache(maxsize=2048)
def opened_sprites(noun: str, colour: str, size: int) -> tuple[Sprite, Sprite, Sprite]:
    """Return an object's lower half, upper half, and the dark mouth between them.

    Each is anchored where the whole object is.
    """
    whole = object_sprite(noun, colour, size)
    rows = np.flatnonzero((whole.transparency_HW1 < 128).any(axis=(1, 2)))
    cut = int(rows[0] + 0.48 * (rows[-1] - rows[0]))
    columns = np.flatnonzero(whole.transparency_HW1[cut, :, 0] < 128)
    half = max((columns[-1] - columns[0]) / 2, size * 0.18)
    halves = [Sprite(whole.colour_HWC[part], whole.transparency_HW1[part], (size / 2, size / 2 - part.start))
              for part in (slice(cut, size), slice(0, cut))]
    depth, scale = max(4, round(size * 0.16)), 4
    image = Image.new("RGBA", (round(2 * half) * scale, 2 * depth * scale))
    ImageDraw.Draw(image).ellipse((0, 0, image.width - 1, image.height - 1), fill=(18, 14, 14, 255))
    image = image.resize((image.width // scale, image.height // scale), Image.Resampling.BOX)
    centre = (columns[0] + columns[-1]) / 2
    mouth = to_sprite(image, (half - (centre - size / 2), depth - (cut - size / 2)))
    return halves[0], halves[1], mouth
