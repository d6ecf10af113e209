"""Table tops, and the composition of one frame: background, objects, hand, light.

A background is painted once per scene. The three data sets differ in tables, sleeves and light, so that going from one
to another is a small domain shift. Motion and timing are decided in motion.py and schedule.py.
"""
import dataclasses
import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from egokit.toy import sprites
from egokit.toy.hand import hand_sprite
from egokit.toy.motion import Pose
from egokit.toy.schedule import Thing
from egokit.toy.words import COLOURS, NOUNS

HEIGHT, WIDTH = 96, 128
NOISE = {  # of each texture: rows, columns and depth of coarse noises, which are added
    "wood": [(48, 5, 0.06), (12, 3, 0.05)], "speckle": [(48, 64, 0.06)], "tiles": [(4, 5, 0.03)],
    "plain": [(4, 5, 0.04)]}
CLUTTER = [  # small things that are never narrated: a coaster, a napkin, a pencil, a sponge
    ("ellipse", (8, 20, 92, 80), {}), ("polygon", [(20, 15), (92, 25), (80, 85), (8, 75)], {}),
    ("line", [(10, 80), (90, 20)], {"width": 12}), ("rounded", (10, 30, 90, 72, 12), {})]
SKINS = ((236, 188, 156), (222, 165, 128), (190, 132, 96), (141, 92, 64))


@dataclasses.dataclass(frozen=True)
class Appearance:
    """What the pictures of a data set have in common; colours are RGB, 0..255."""
    tables: tuple[tuple[int, int, int], ...]
    textures: tuple[str, ...]
    walls: tuple[tuple[int, int, int], ...]
    sleeves: tuple[tuple[int, int, int], ...]
    gain: tuple[float, float]         # the range of the light's brightness
    tint: tuple[float, float, float]  # the light's colour


APPEARANCES = {
    "ego4d": Appearance(
        tables=((150, 106, 66), (203, 168, 120), (132, 134, 140), (220, 208, 186),
                (66, 92, 78), (88, 104, 134)),
        textures=("wood", "wood", "speckle", "plain"),
        walls=((196, 190, 180), (120, 130, 140), (170, 150, 130)),
        sleeves=((48, 70, 142), (122, 32, 44), (62, 62, 64), (40, 110, 74)),
        gain=(0.85, 1.08), tint=(1.0, 1.0, 1.0)),
    "ek100": Appearance(
        tables=((214, 218, 222), (70, 70, 76), (96, 152, 150), (172, 100, 74)),
        textures=("tiles", "speckle", "tiles"),
        walls=((232, 226, 208), (150, 176, 184)),
        sleeves=((226, 136, 46), (236, 160, 186), (150, 190, 226), (240, 236, 226)),
        gain=(0.75, 0.95), tint=(1.06, 1.0, 0.88)),
    "charades": Appearance(
        tables=((202, 166, 76), (166, 152, 192), (214, 172, 168), (92, 62, 48)),
        textures=("plain", "wood", "tiles"),
        walls=((140, 110, 90), (90, 96, 120), (205, 205, 195)),
        sleeves=((30, 30, 34), (200, 200, 204), (96, 60, 130), (170, 140, 60)),
        gain=(0.7, 1.15), tint=(0.92, 0.99, 1.08)),
}


def wearer(corpus: str, seed: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Draw the skin and sleeve colour of the person behind a video's camera."""
    random = np.random.default_rng(seed)
    sleeves = APPEARANCES[corpus].sleeves
    return SKINS[random.integers(len(SKINS))], sleeves[random.integers(len(sleeves))]


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """The background of a scene, and the light that falls on everything."""
    background_HWC: np.ndarray  # uint8, unlit
    light_C256: np.ndarray      # uint8, a curve per channel

    def frame(self, pose: Pose | None, thing: Thing, wearing, neighbour=None) -> np.ndarray:
        """Compose one frame, without its number.

        Args:
            pose: of the object and the hand; None leaves both out.
            thing: the object.
            wearing: skin and sleeve colour, the result of `wearer`.
            neighbour: a second object and its side, as in `Action`.

        Returns:
            uint8 (96, 128, 3).
        """
        frame_HWC = self.background_HWC.copy()
        if neighbour is not None:
            second, side = neighbour
            _paste_shadow(frame_HWC, 64 + side * 32, 50 + 0.4 * second.size, 0.95 * second.size)
            sprites.paste(frame_HWC, _sprite(second, second.size), 64 + side * 32, 50)
        if pose is not None:
            _paste_shadow(frame_HWC, *pose.shadow)
            if pose.opens:
                lower, upper, mouth = _sprite(thing, pose.size, sprites.opened_sprites)
                sprites.paste(frame_HWC, lower, pose.x, pose.y)
                if pose.lid[1] < -1:
                    sprites.paste(frame_HWC, mouth, pose.x, pose.y)
                sprites.paste(frame_HWC, upper, pose.x + pose.lid[0], pose.y + pose.lid[1])
            else:
                sprites.paste(frame_HWC, _sprite(thing, pose.size), pose.x, pose.y)
            if pose.hand is not None:
                percent = 5 * round(20 * pose.hand_scale ** 0.5)
                sprites.paste(frame_HWC, hand_sprite(*wearing, pose.side, percent), *pose.hand)
        return self.light_C256.take(frame_HWC + np.uint16([0, 256, 512]))  # places in the three curves, end to end


def _sprite(thing: Thing, size: float, form=sprites.object_sprite):
    return form(NOUNS[thing.noun], COLOURS[thing.colour], round(size))


@functools.lru_cache(maxsize=128)
def _shadow_sprite(width: int) -> sprites.Sprite:
    image, high = Image.new("RGBA", (4 * width + 32, 2 * width + 32)), 4 * round(width * 0.36)
    ImageDraw.Draw(image).ellipse((16, 16, 4 * width + 16, high + 16), fill=(0, 0, 0, 120))
    image = image.filter(ImageFilter.GaussianBlur(4))
    image = image.resize((width + 8, width // 2 + 8), Image.Resampling.BOX)
    return sprites.to_sprite(image, (4 + width / 2, 4 + width * 0.18))


def _paste_shadow(frame_HWC, x: float, y: float, width: float) -> None:
    sprites.paste(frame_HWC, _shadow_sprite(round(width)), x, y)


def build_stage(corpus: str, seed: int) -> Stage:
    """Draw a table top from `seed`, in the appearance of `corpus`."""
    style, random = APPEARANCES[corpus], np.random.default_rng(seed)
    table = np.array(style.tables[random.integers(len(style.tables))]) * random.uniform(0.9, 1.1)
    texture = style.textures[random.integers(len(style.textures))]
    picture = np.clip(table, 0, 245) * np.ones((HEIGHT, WIDTH, 1)) * _grain(random, texture)[..., None]
    edge = int(random.integers(7, 13))  # where the table ends
    picture[:edge] = np.array(style.walls[random.integers(len(style.walls))])
    picture[edge - 1:edge + 1] *= 0.6
    down, across = np.mgrid[0:1:HEIGHT * 1j, 0:1:WIDTH * 1j]
    slope_x, slope_y = random.uniform(-0.15, 0.15), random.uniform(-0.1, 0.2)
    picture *= (1 + slope_x * (across - 0.5) + slope_y * (down - 0.5))[..., None]
    background = np.clip(picture, 0, 255).astype(np.uint8)
    corners = [(12, 26), (116, 26), (12, 78), (116, 78)]
    for i in random.permutation(4)[:int(random.integers(1, 3))]:
        x, y = np.array(corners[i]) + random.integers(-4, 5, 2)
        sprites.paste(background, _clutter(random), x, y)
    gain = random.uniform(*style.gain) * np.array(style.tint) * random.uniform(0.97, 1.03, 3)
    light = np.clip(np.arange(256) * gain[:, None], 0, 255).astype(np.uint8)
    return Stage(background, light)


def _grain(random: np.random.Generator, texture: str) -> np.ndarray:
    """Draw a texture (96, 128) around 1: wood has long streaks, speckle dots, tiles joints."""
    grain = np.ones((HEIGHT, WIDTH), np.float32)
    for rows, columns, depth in NOISE[texture]:
        coarse = Image.fromarray(random.normal(0, depth, (rows, columns)).astype(np.float32))
        grain += np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    if texture == "tiles":
        pitch = int(random.integers(22, 32))
        grain[int(random.integers(pitch))::pitch] *= 0.82
        grain[:, int(random.integers(pitch))::pitch] *= 0.82
    return grain


def _clutter(random: np.random.Generator) -> sprites.Sprite:
    """Draw one of CLUTTER in any colour."""
    image = Image.new("RGBA", (64, 64))
    pen = sprites.Pen(image, tuple(int(c) for c in random.integers(70, 230, 3)), 0.64)
    pen.strokes([CLUTTER[random.integers(4)]])
    size = int(random.integers(14, 20))
    return sprites.to_sprite(image.resize((size, size), Image.Resampling.BOX), (size / 2, size / 2))
