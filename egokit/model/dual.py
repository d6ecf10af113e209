"""Dual, the base of every model that embeds clips and texts: what tasks, search and pictures ask of a model.

EgoVLPv2, the peers and a user's own model derive from it. A subclass says what its frames look like, and gives
`tokens`, `embed_text` and `embed_video`; their checks and their parts that fit in memory are written here, once.

Shapes: B clips or texts, T frames, E embedding.
"""
import collections.abc
import itertools

import numpy as np
import torch
from torch import Tensor, nn

from egokit.data.video import transforms
from egokit.model.input_checks import (
    TEXTS_AT_ONCE,
    checked_frames,
    checked_rows,
    checked_strings,
    clips_at_once,
    in_few_numbers,
    in_parts,
)

ONLY_EGOVLPV2 = frozenset(
    {"answer", "compute_as", "config", "fuse", "fused_video", "fusion_norm", "fusion_trunk", "head", "itm_from_states",
     "itm_logits", "match", "mlm_from_states", "mlm_logits", "num_unfused", "own", "parameters_by_role", "text_trunk",
     "unused_parameters"})  # attributes


class FusionError(AttributeError, ValueError):
    """Fusion is asked of a model that has no fusion encoder; the message names the model and says what to do."""


class Dual(nn.Module):
    """A dual encoder on egokit's data path: one vector for a clip, one for a text, compared by their cosine.

    Example:
        class Mine(egokit.Dual):
            def __init__(self):
                super().__init__()
                self.image_size, self.frames = 224, None

            def tokens(self, texts, longest): ...     # {name: (B, ...)}
            def embed_text(self, tokens): ...         # (B, E) float32
            def embed_video(self, frames_BTCHW): ...  # (B, E) float32

    Attributes:
        image_size: side of a frame in pixels; a subclass gives it.
        frames: most frames of a clip; None: any number.
        mean: of red, green and blue in 0..1, for `normalise`; `std` are the standard deviations. By default ImageNet's.
        fuses: whether it has EgoVLPv2's fusion encoder, too.
        family: the name that messages show; by default the class's.
        max_tokens: how many tokens of a text `encode_text` and search keep, unless the model takes fewer.
    """

    image_size: int
    frames: int | None = None
    mean: tuple[float, float, float] = transforms.MEAN
    std: tuple[float, float, float] = transforms.STD
    fuses: bool = False
    family: str = "Dual"
    max_tokens: int = 77

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "family" not in cls.__dict__:
            cls.family = cls.__name__

    # What a subclass gives: prepared input on the model's device, computed in one piece

    def tokens(self, texts: list[str], longest: int) -> dict[str, Tensor]:
        """Return the tokens of B texts, tensors (B, …) on the model's device.

        Args:
            longest: how many tokens of a text are kept, or fewer, if the model takes fewer.
        """
        raise NotImplementedError(f"{self.family} has no method tokens(texts, longest): give the tokens of B texts, "
                                  "a dict of tensors (B, …) on self.device")

    def embed_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """Return embeddings (B, E) float32, not normalised, of what `tokens` gave."""
        raise NotImplementedError(f"{self.family} has no method embed_text(tokens): give embeddings (B, E), float32")

    def embed_video(self, frames_BTCHW: Tensor) -> Tensor:
        """Return embeddings (B, E) float32, not normalised, of frames that `normalise` gave."""
        raise NotImplementedError(f"{self.family} has no method embed_video(frames): give embeddings (B, E), float32, "
                                  "of normalised frames (B, T, 3, size, size)")

    # What every model has from here

    def _anchor(self) -> Tensor:
        """A tensor on the model's device and in its data type."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(0, device="cpu"))

    @property
    def device(self) -> torch.device:
        return self._anchor().device

    @property
    def embed_dim(self) -> int:
        """E, the dimension of the embeddings; here it is asked of one blank clip, once."""
        known = self.__dict__.get("_embed_dim")
        if known is None:
            size, training = self.image_size, self.training
            with torch.no_grad():
                blank = self._anchor().new_zeros(1, self.frames or 1, 3, size, size)
                known = self.__dict__["_embed_dim"] = self.eval().embed_video(blank).shape[-1]
            self.train(training)
        return known

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels, uint8 (…, 3, H, W) on any device, as float32 by the model's mean and standard deviation."""
        return transforms.normalise(pixels, self.mean, self.std)

    def require_fusion(self, what: str) -> None:
        """Raise a FusionError if the model has no fusion encoder.

        Args:
            what: what needs one, the subject of the message's second part.
        """
        if not self.fuses:
            raise FusionError(f"{self.family} has no fusion encoder, which {what} needs: use an EgoVLPv2 checkpoint, "
                              f"or leave {what} out")

    def prepared_frames(self, frames_BTCHW: Tensor) -> Tensor:
        """Return checked frames on the model's device and in its data type."""
        return checked_frames(frames_BTCHW, self.image_size, self.frames).to(self._anchor())

    def clips_at_once(self, frames_BTCHW: Tensor) -> tuple[int, int]:
        """Return the number of clips, and how many of them the public methods take through the model at once."""
        return clips_at_once(frames_BTCHW, self.image_size, self.frames, self.device)

    def prepared_tokens(self, text, longest: int | None = None) -> dict[str, Tensor]:
        """Return checked tokens of B texts, each (B, …), on the model's device.

        Args:
            text: a string, strings, or a dict of tokens.
            longest: how many tokens of a string are kept; None takes `max_tokens`.

        Raises:
            ValueError: `text` is nothing of these, or does not fit the model.
        """
        if isinstance(text, collections.abc.Mapping):
            tokens = checked_rows(text)
        else:
            tokens = self.tokens(checked_strings(text), longest or self.max_tokens)
        return {key: value.to(self.device) for key, value in tokens.items()}

    def encode_text(self, text) -> Tensor:
        """Return embeddings of texts, (B, E) float32, not normalised.

        Their cosine with those of `encode_video` says how well text and clip fit (`egokit.similarity`).

        Example:
            text_BE = model.encode_text(["#C C cuts the onion", "#C C opens the fridge"])

        Args:
            text: a string, B strings, or a dict of tokens, each (B, …), such as {"input_ids": …, "attention_mask": …}.
                Strings are cut after the model's `max_tokens` tokens: EgoVLPv2's 30, others' 77 or what they take.

        Raises:
            ValueError: `text` is nothing of these, or does not fit the model; the message says what to change.
        """
        tokens = self.prepared_tokens(text)
        if not len(next(iter(tokens.values()))):
            return self._none()
        return in_parts(lambda rows: self.embed_text({key: value[rows] for key, value in tokens.items()}),
                        len(next(iter(tokens.values()))), TEXTS_AT_ONCE)

    def encode_video(self, frames_BTCHW: Tensor) -> Tensor:
        """Return embeddings of clips, (B, E) float32, not normalised.

        Example:
            video_BE = model.encode_video(torch.stack([egokit.read_clip("video.mp4", 3.0, 5.0, model=model)]))

        Args:
            frames_BTCHW: B clips of T frames, (B, T, 3, size, size), normalised as `model.normalise` and
                `egokit.read_clip(…, model=model)` do; EgoVLPv2's by ImageNet's mean and standard deviation. T is at
                most `model.frames`; `egokit.load(path, frames=T)` makes room for more.

        Raises:
            ValueError: shape, number of frames or values are not as expected; the message says what to change.
        """
        count, size = self.clips_at_once(frames_BTCHW)
        if not count:
            self.prepared_frames(frames_BTCHW)  # checks them
            return self._none()
        return in_parts(lambda rows: self.embed_video(self.prepared_frames(frames_BTCHW[rows])), count, size)

    def _none(self) -> Tensor:
        """Embeddings of no clip or text, (0, E): not every network takes an empty batch."""
        return torch.zeros(0, self.embed_dim, device=self.device)

    def __getattr__(self, name: str):
        """Say of what only EgoVLPv2 models have, such as `match`, that this one has no fusion encoder."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in ONLY_EGOVLPV2 or self.fuses:
                raise
        raise FusionError(f"{self.family} has no fusion encoder, and no .{name} as EgoVLPv2 models have: use an "
                          "EgoVLPv2 checkpoint, or leave out what needs it")


def similarity(one_BE: Tensor, other_BE: Tensor) -> Tensor:
    """Return the cosine of every row with every row, (B, B') float32, between -1 and 1.

    Example:
        egokit.similarity(model.encode_text(texts), model.encode_video(frames))  # (texts, clips)

    It is computed in float32 under autocast, too: half precision has steps of 0.004 near 1, which a temperature of 0.05
    makes a difference of 0.08 in the logits. Norms count as at least 1e-8.

    Args:
        one_BE: embeddings (B, E); `other_BE` are (B', E).
    """
    with torch.autocast(one_BE.device.type, enabled=False):
        one_unit, other_unit = (unit_vectors(x) for x in (one_BE, other_BE))
        return one_unit @ other_unit.T


def unit_vectors(x_BE: Tensor) -> Tensor:
    """Return each row divided by its norm, (B, E) float32; norms count as at least 1e-8."""
    return x_BE.float() / x_BE.float().norm(dim=-1, keepdim=True).clamp_min(1e-8)


def dot_product(one_BE: Tensor, other_BE: Tensor) -> Tensor:
    """Return the dot product of every row with every row, (B, B') float32, also under autocast: LaViLa's score.

    Source: LaViLa (arXiv 2212.04501), its code for EgoMCQ.
    """
    with torch.autocast(one_BE.device.type, enabled=False):
        return one_BE.float() @ other_BE.float().T


def embed_texts(model: Dual, texts: list[str], longest: int, batch_size: int = 256) -> np.ndarray:
    """Return embeddings (K, E) float32 of K texts, each cut after `longest` tokens."""
    batches, parts = [texts[start:start + batch_size] for start in range(0, len(texts), batch_size)], []
    for batch in batches:
        tokens = model.tokens(in_few_numbers(batch, model.device), longest)
        parts.append(model.embed_text(tokens)[:len(batch)].cpu())
    return torch.cat(parts).numpy()
