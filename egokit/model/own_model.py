"""A user's own model: a class derived from Dual in a file of its own, which `init` names by folder/file.py:Class."""
import inspect
import math
from pathlib import Path

import torch

from egokit.config.build import ConfigError, did_you_mean
from egokit.config.own_code import run_file
from egokit.model.dual import Dual

GIVEN = {"tokens": "tokens(self, texts, longest): a dict of tensors (B, …) on self.device",
         "embed_text": "embed_text(self, tokens): embeddings (B, E), float32",
         "embed_video": "embed_video(self, frames): embeddings (B, E), float32, of frames (B, T, 3, size, size)"}


def find_class(file: str, class_name: str, code: Path | None = None) -> type[Dual]:
    """Return the class of a user's model; its file is executed anew each time.

    Args:
        file: the file.
        class_name: the name after the colon.
        code: a job's copy of egokit, which holds the file, too.

    Raises:
        ConfigError: the file is missing, can't be imported, or has no such class; or the class is not derived from
            Dual, or lacks a method. The message says what to write.
    """
    module = run_file("model", file, code)
    found = vars(module).get(class_name)
    if not isinstance(found, type):
        known = {name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Dual)}
        hint = did_you_mean(class_name, known - {"Dual"}) if known - {"Dual"} else ""
        raise ConfigError(f"{module.__file__} has no model {class_name!r}, write class {class_name}(egokit.Dual) "
                          f"there, or name another; {hint or 'it has none'}")
    where = f"{module.__file__}: {class_name}"
    if not issubclass(found, Dual):
        raise ConfigError(f"{where} is not derived from egokit.Dual: write class {class_name}(egokit.Dual)")
    for name, expected in GIVEN.items():
        if getattr(found, name) is getattr(Dual, name):
            raise ConfigError(f"{where} has no method {name}: write def {expected}")
    return found


def build(file: str, class_name: str, weights: str = "", frames: int | None = None, code: Path | None = None) -> Dual:
    """Return a user's model, on the CPU and in eval mode, once what it says and gives of a blank clip is checked.

    Args:
        file: the file with its class.
        class_name: the class, which is called without arguments.
        weights: if not "", the argument with which it is called.
        frames: how many frames of a clip it will be given; None: not known.
        code: as of `find_class`.

    Raises:
        ConfigError: as of `find_class`; or the class is called otherwise, says something that can't be, or gives
            something else than embeddings. The message names file, class and attribute.
    """
    kind = find_class(file, class_name, code)
    where, arguments = f"{file}: {class_name}", [weights] if weights else []
    try:
        inspect.signature(kind).bind(*arguments)
    except TypeError as error:
        if weights:
            raise ConfigError(f"{where} can't be made with weights ({error}): leave them out, init: "
                              f"{file}:{class_name}, or write def __init__(self, weights)") from None
        raise ConfigError(f"{where} can't be made without weights ({error}): give them in init, "
                          f"{file}:{class_name}:weights, or write def __init__(self)") from None
    model = kind(*arguments)
    _check_attributes(model, where)
    if frames is not None and model.frames is not None and frames > model.frames:
        raise ConfigError(f"{where}.frames={model.frames}, the most frames of a clip, but it is to be given {frames}: "
                          "set data.eval_frames and model.frames, or correct the class (None: any number)")
    model.eval()
    with torch.no_grad():
        _check_outputs(model, frames, where)
    return model


def _check_attributes(model: Dual, where: str) -> None:
    """Raise ConfigError for an attribute that is missing, or of another kind."""
    def is_count(value) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    def is_colour(value) -> bool:
        return isinstance(value, (tuple, list)) and len(value) == 3 and all(
            isinstance(part, (int, float)) and math.isfinite(part) for part in value)
    for name, is_right, expected in (
            ("image_size", is_count, "the side of a frame in pixels, such as self.image_size = 224"),
            ("frames", lambda value: value is None or is_count(value), "the most frames of a clip; None: any number"),
            ("mean", is_colour, "three numbers, of red, green and blue in 0..1"),
            ("std", lambda value: is_colour(value) and min(value) > 0, "three numbers above 0")):
        value = getattr(model, name, "missing")
        if not is_right(value):
            raise ConfigError(f"{where}.{name} is {value!r:.80}: expected {expected}")


def _check_outputs(model: Dual, frames: int | None, where: str) -> None:
    """Raise ConfigError unless a blank clip and a text become embeddings of one dimension."""
    count, size = frames or model.frames or 1, model.image_size
    pixels = torch.zeros(1, count, 3, size, size, dtype=torch.uint8)
    tokens = model.tokens(["#C C opens the box"], 15)
    if not isinstance(tokens, dict) or not tokens or any(
            not isinstance(value, torch.Tensor) or value.ndim < 1 or len(value) != 1 for value in tokens.values()):
        raise ConfigError(f"{where}.tokens gives {shape_of(tokens)} for one text: expected {GIVEN['tokens']}")
    text, video = model.embed_text(tokens), model.embed_video(model.normalise(pixels))
    for name, value in (("embed_text", text), ("embed_video", video)):
        what = "a text" if name == "embed_text" else f"a clip of {count} frames"
        if not isinstance(value, torch.Tensor) or value.ndim != 2 or len(value) != 1 or value.dtype != torch.float32:
            raise ConfigError(f"{where}.{name} gives {shape_of(value)} for {what}: expected float32 (1, E), one "
                              "embedding for each; end it with .float(), and leave no axis of frames or tokens")
        if not value.isfinite().all():
            raise ConfigError(f"{where}.{name} gives numbers that are NaN or infinite for {what}: expected embeddings; "
                              "are its weights loaded, and its sums in float32?")
    if text.shape != video.shape:
        raise ConfigError(f"{where}: embed_text gives {text.shape[1]} numbers for a text, but embed_video "
                          f"{video.shape[1]} for a clip: expected as many, because their cosine is taken")


def shape_of(value) -> str:
    """Return what a value is, for a message: a tensor's type and shape, else its type."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {shape_of(inner)}" for key, inner in list(value.items())[:4]) + "}"
    return f"a {type(value).__name__}"
