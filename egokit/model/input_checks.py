"""Checks of users' input to the model's public methods, and parts that fit in memory.

Shapes: B clips or texts, T frames, L tokens.
"""
import collections.abc
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from egokit.model.text_encoder import PADDING, load_tokenizer

# of one pass through the public methods: bounds their memory, and on a CPU keeps a layer's output within its caches
FRAMES_ON_CPU, FRAMES_ON_GPU, TEXTS_AT_ONCE = 8, 128, 256
FEW_SHAPES = 8  # on a GPU, lengths and numbers of texts are padded to its multiples: a new shape needs new kernel plans
LARGEST = 20.0  # normalised frames stay within 2.7 of zero; pixels of 0-255 don't


def checked_strings(text) -> list[str]:
    """Return a string or several as a list.

    Raises:
        ValueError: it is neither, or there are none.
    """
    if isinstance(text, str):
        return [text]
    if (not isinstance(text, collections.abc.Sequence) or not len(text)
            or not all(isinstance(entry, str) for entry in text)):
        raise ValueError(f"text: expected one string or several, or a dict of tokens; got {text!r:.80}")
    return list(text)


def checked_rows(tokens: collections.abc.Mapping) -> dict[str, Tensor]:
    """Return a dict of tokens as tensors that have a row for each text.

    Raises:
        ValueError: there are none, one has no rows, or they differ in number.
    """
    rows = {key: torch.as_tensor(value) for key, value in tokens.items()}
    if not rows or any(value.ndim < 1 for value in rows.values()) or len({len(value) for value in rows.values()}) > 1:
        raise ValueError(f"tokens: expected tensors (B, …) of the same number of texts, got "
                         f"{ {key: tuple(value.shape) for key, value in rows.items()} }; give strings, or what "
                         "model.tokens returns")
    return rows


def checked_tokens(text, positions: int, vocabulary: int, tokenizer: str, longest: int) -> dict[str, Tensor]:
    """Return checked tokens: {"input_ids": (B, L), "attention_mask": (B, L)}, int64.

    Args:
        text: a string, strings, or such tokens.
        positions: how many tokens of a text the model takes; `vocabulary` is how many words it knows.
        tokenizer: name or folder; it is loaded for strings only.
        longest: how many tokens of a string are kept.

    Raises:
        ValueError: `text` is nothing of these, or does not fit the model.
    """
    if not isinstance(text, collections.abc.Mapping):
        text = load_tokenizer(tokenizer)(checked_strings(text), longest)
    missing = {"input_ids", "attention_mask"} - set(text)
    if missing:
        raise ValueError(f"tokens: missing {sorted(missing)}; "
                         "give strings or input_ids and attention_mask, each (B, L)")
    ids, mask = (torch.as_tensor(text[key]) for key in ("input_ids", "attention_mask"))
    if (ids.ndim != 2 or ids.shape != mask.shape or ids.is_floating_point() or ids.dtype == torch.bool
            or not ids.shape[1]):
        raise ValueError(f"tokens: expected integers (B, L) twice, got input_ids {tuple(ids.shape)} {ids.dtype} and "
                         f"attention_mask {tuple(mask.shape)}" + ("; add the batch axis" if ids.ndim == 1 else ""))
    if ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"tokens: attention_mask has values from {mask.min()} to {mask.max()}; "
                         "expected 1 for words and 0 for padding")
    if ids.shape[1] > positions:
        raise ValueError(f"tokens: {ids.shape[1]} a text, but the model has {positions} positions; cut them")
    if ids.numel() and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise ValueError(f"tokens: ids from {ids.min()} to {ids.max()}, but the model knows {vocabulary} words: "
                         f"was another tokenizer used than its own, {tokenizer}?")
    return {"input_ids": ids.long(), "attention_mask": mask.long()}


def rounded_up(size: int, device: torch.device, step: int = FEW_SHAPES) -> int:
    """Return a length or number of rows, on a GPU rounded up to a multiple of `step`, so that few sizes occur.

    On a CPU it stays as it is: padding only costs there.
    """
    return -(-size // step) * step if device.type == "cuda" else size


def in_few_numbers(texts: list[str], device: torch.device, step: int = FEW_SHAPES) -> list[str]:
    """Return the texts, on a GPU with the last one repeated up to a multiple of `step`."""
    return texts + texts[-1:] * (rounded_up(len(texts), device, step) - len(texts))


def of_few_lengths(tokens: dict[str, Tensor], longest: int) -> dict[str, Tensor]:
    """Return tokens (B, L), on a GPU padded to one of few lengths, at most to `longest`."""
    ids = tokens["input_ids"]
    padding = (0, max(0, min(longest, rounded_up(ids.shape[1], ids.device)) - ids.shape[1]))
    return {"input_ids": F.pad(ids, padding, value=PADDING), "attention_mask": F.pad(tokens["attention_mask"], padding)}


def checked_frames(frames_BTCHW, size: int, max_frames: int | None) -> Tensor:
    """Return normalised frames (B, T, 3, size, size), a tensor or an array, as a tensor.

    Args:
        max_frames: most frames of a clip; None: any number.

    Raises:
        ValueError: shape, number of frames or values are not as expected; the message hints at the usual mistakes.
    """
    x = torch.as_tensor(frames_BTCHW)
    shape = tuple(x.shape)
    if len(shape) != 5 or shape[2:] != (3, size, size):
        hint = ("add the batch axis: frames[None]" if len(shape) == 4
                else "channels come before height: frames.movedim(-1, 2)" if shape[-1:] == (3,)
                else "frames come before channels: frames.transpose(1, 2)" if shape[1:2] == (3,) else "")
        raise ValueError(f"frames: expected (B, T, 3, {size}, {size}), got {shape}" + (f"; {hint}" if hint else ""))
    if not 1 <= shape[1] <= (max_frames or shape[1]):
        holds = f"the temporal embedding holds {max_frames}" if max_frames else "the model takes at least one"
        raise ValueError(f"frames: {shape[1]} a clip, but {holds}"
                         + (f"; load with egokit.load(path, frames={shape[1]})" if shape[1] else ""))
    low, high = (x.aminmax() if x.numel() else (0.0, 0.0))
    if not x.is_floating_point() or not (low >= -LARGEST and high <= LARGEST):
        raise ValueError("frames: expected normalised floats (by the model's mean and standard deviation), got "
                         f"{x.dtype} from {float(low):.4g} to {float(high):.4g}; use egokit.read_clip "
                         "or, for pixels of 0-255, model.normalise")
    if low >= 0 and 0 < high <= 1:
        warnings.warn(f"frames lie between {float(low):.2f} and {float(high):.2f}, which looks like pixels of 0-1 "
                      "before normalisation: model.normalise takes pixels of 0-255", stacklevel=3)
    return x


def clips_at_once(frames_BTCHW, size: int, max_frames: int | None, device: torch.device) -> tuple[int, int]:
    """Return the number of clips, and how many of them go through the model at once.

    Raises:
        ValueError: these are not five-dimensional frames.
    """
    shape = getattr(frames_BTCHW, "shape", ())
    if len(shape) != 5:
        if not hasattr(frames_BTCHW, "shape"):
            raise ValueError(f"frames: expected a tensor (B, T, 3, height, width), got {type(frames_BTCHW).__name__}; "
                             "torch.stack puts clips of read_clip together")
        checked_frames(frames_BTCHW, size, max_frames)  # raises, saying what is expected
    return shape[0], max(1, (FRAMES_ON_CPU if device.type == "cpu" else FRAMES_ON_GPU) // max(1, shape[1]))


def in_parts(function: collections.abc.Callable[[slice], Tensor], count: int, size: int) -> Tensor:
    """Return `function(slice)` of `count` rows, computed at most `size` rows at a time.

    Where gradients are kept, all rows are computed at once, as parts would not save memory.
    """
    if torch.is_grad_enabled():
        size = max(count, 1)
    parts = [function(slice(start, min(start + size, count))) for start in range(0, max(count, 1), size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
