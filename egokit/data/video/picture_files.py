"""Frames of a video that are stored as pictures, one file each."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from egokit.config.access import exists
from egokit.data.video import open_video
from egokit.data.video.pictures import check_size, fit
from egokit.data.video.timeline import Refused, VideoError

FORMATS = ("JPEG", "PNG")


def read(paths: Sequence[Path]) -> np.ndarray:
    """Read pictures as the frames of a clip.

    Args:
        paths: JPEG or PNG files; one that stands several times is read once.

    Returns:
        uint8 (len(paths), H, W, 3), RGB, of the first picture's size.

    Raises:
        FileNotFoundError: one is missing; the message names it, and how many others are.
        VideoError: one can't be read; the message names it.
    """
    distinct = list(dict.fromkeys(map(Path, paths)))
    missing = [path for path in distinct if not _is_there(path)]
    if missing:
        raise FileNotFoundError(f"picture {missing[0]} is missing, and so are {len(missing) - 1} of the clip's other "
                                f"{len(distinct) - 1}: put them there, or correct the path")
    pixels = {path: _read(path) for path in distinct}
    height, width = pixels[distinct[0]].shape[:2]
    return np.stack([fit(pixels[Path(path)], height, width) for path in paths])


def _is_there(path: Path) -> bool:
    try:
        return exists(path) and path.is_file()
    except PermissionError as error:
        raise VideoError(str(error)) from None


def _read(path: Path) -> np.ndarray:
    """Return one picture as players show it, (H, W, 3)."""
    if str(path) in open_video.unreadable:
        raise VideoError(f"{path}: left out, as it did not answer before; make it anew from its video")
    if open_video.on_open:
        open_video.on_open(str(path))
    try:
        with Image.open(path, formats=FORMATS) as picture:
            check_size(*picture.size)
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except Refused as error:
        raise VideoError(f"{path}: {error}") from None
    except Exception as error:  # Pillow's decoders raise errors of a dozen kinds
        raise VideoError(f"{path}: no whole picture ({type(error).__name__}); make it anew from its video") from None
