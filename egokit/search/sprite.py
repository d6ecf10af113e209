"""Many thumbnails as one image, of which a style sheet shows each at its place.

A browser decodes and uploads one image in the time of a few small ones.
"""
from __future__ import annotations

import base64
import hashlib
import io

from PIL import Image

COLUMNS = 10   # of thumbnails in the image
QUALITY = 75   # of the JPEG
CLIPS = (  # pictures in whose place a player opens
    ".egokit-clip>summary{display:block;position:relative;cursor:pointer;border-radius:4px}"
    ".egokit-clip>summary::after{content:'\\25B6  play';position:absolute;left:6px;bottom:6px;padding:0 8px;"
    "border-radius:4px;font-size:13px;line-height:22px;color:#fff;background:#000c}"
    ".egokit-clip[open]>summary{height:26px!important;background:none}"
    ".egokit-clip[open]>summary::after{content:'\\25B2  close the player'}")


class Sprite:
    """Thumbnails in one image.

    Args:
        pictures: The thumbnails, at most `width` pixels wide. Narrower ones stand in the middle of their place.
        width: Of a place.
        below: Black pixels below each thumbnail.

    Attributes:
        sheet: The image in a style sheet, as HTML.
        attributes: Of the elements that show a part of it.
    """

    def __init__(self, pictures: list[Image.Image], width: int, below: int):
        self.width, self.height = width, max(picture.height for picture in pictures) + below
        rows = -(-len(pictures) // COLUMNS)
        image = Image.new("RGB", (width * min(COLUMNS, len(pictures)), self.height * rows))
        for number, picture in enumerate(pictures):
            left, top = self._corner(number)
            image.paste(picture, (left + (width - picture.width) // 2, top))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        data = base64.b64encode(buffer.getvalue()).decode()
        name = f"egokit-sprite-{hashlib.sha256(data.encode()).hexdigest()[:12]}"  # a notebook may show several
        self.sheet = (f"<style>.{name}{{background:#000 url(data:image/jpeg;base64,{data}) no-repeat;"
                      f"print-color-adjust:exact}}{CLIPS}</style>")
        # without a poster of its own, Chromium covers a video that isn't loaded with grey
        self.attributes = f'class="{name}" poster="data:image/png;base64,{_transparent()}"'

    def _corner(self, number: int) -> tuple[int, int]:
        row, column = divmod(number, COLUMNS)
        return column * self.width, row * self.height

    def position(self, number: int) -> str:
        """Return the CSS that shows a thumbnail at the upper left of an element with `attributes`."""
        left, top = self._corner(number)
        return f"background-position:-{left}px -{top}px"


def _transparent() -> str:
    """Return a PNG that shows nothing, in base64."""
    buffer = io.BytesIO()
    Image.new("LA", (1, 1)).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
