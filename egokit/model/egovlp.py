"""EgoVLP: the dual encoder, the fusion encoder and their heads, with the public methods of `egokit.load`'s model.

Shapes: B pairs, T frames, S = 1 + T*N video tokens, L text tokens, D width, E embedding, V vocabulary.
Gradients follow PyTorch's habit: they are kept unless the caller is under `torch.no_grad()`.
"""
from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from egokit.config.schema import ModelConfig
from egokit.model.input_checks import (
    TEXTS_AT_ONCE,
    checked_frames,
    checked_tokens,
    clips_at_once,
    in_parts,
    of_few_lengths,
)
from egokit.model.layers import Linear, fresh_std
from egokit.model.precision import float32_products
from egokit.model.text_encoder import TextEncoder, additive_mask
from egokit.model.video_encoder import VideoEncoder

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in the precision of that name: mixed (fp16, bf16), or float32 with its products exact (fp32) or rounded (tf32)."""
    with float32_products(device, tf32=precision == "tf32"):
        if precision in HALF:
            with torch.autocast(device.type, dtype=HALF[precision]):
                yield
        else:
            yield


def projection(kind: str, width: int, text: bool) -> nn.Sequential:
    """mlp<E>: three linear layers, the first without bias. linear<E>: one, after a ReLU for text."""
    name, size = re.fullmatch(r"(mlp|linear)(\d+)", kind).groups() if re.fullmatch(r"(mlp|linear)\d+", kind) else ("", 0)
    E = int(size)
    if name == "mlp":
        return nn.Sequential(Linear(width, E, bias=False), nn.ReLU(), Linear(E, E), nn.ReLU(), Linear(E, E))
    if name == "linear":
        return nn.Sequential(nn.ReLU(), Linear(width, E)) if text else nn.Sequential(Linear(width, E))
    raise ValueError(f"model.projection {kind!r}: expected mlp<size> or linear<size>, for example mlp4096 or linear256")


class Pooler(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dense = Linear(width, width)

    def forward(self, x_BD: Tensor) -> Tensor:
        return torch.tanh(self.dense(x_BD))


class WordHead(nn.Module):
    """Masked language modelling: states (…, D) -> logits (…, V). The decoder is not tied to the embeddings."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.dense = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.dense(x, gelu=True))) + self.bias


class EgoVLP(nn.Module):
    """Dual encoder (retrieval) and fusion encoder (matching, masked words) over one pair of backbones."""

    def __init__(self, config: ModelConfig, tokenizer: str = "roberta-base"):
        super().__init__()
        width = config.width
        self.config, self.tokenizer_source = config, tokenizer
        self.video = VideoEncoder(config)
        self.text = TextEncoder(config)
        self.text_projection = projection(config.projection, width, text=True)
        self.video_projection = projection(config.projection, width, text=False)
        self.fusion_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.fusion_norm = nn.LayerNorm(width, eps=1e-6)
        self.text_transform, self.video_transform = Linear(width, width), Linear(width, width)
        self.text_pooler, self.video_pooler = Pooler(width), Pooler(width)
        self.itm_head = Linear(2 * width, 2)
        self.word_head = WordHead(width, config.vocab_size)

    def reset_parameters(self) -> None:
        """A fresh start; call it under the seed you want. Loading weights afterwards replaces what they hold."""
        for head in (self.text_projection, self.video_projection, self.text_transform, self.video_transform,
                     self.text_pooler, self.video_pooler, self.itm_head, self.word_head):
            for module in head.modules():
                if isinstance(module, Linear):
                    nn.init.normal_(module.weight, std=fresh_std(module.in_features))
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        self.text.reset_parameters()
        self.video.reset_parameters()

    @property
    def device(self) -> torch.device:
        return self.itm_head.weight.device

    @property
    def unfused(self) -> int:
        """Blocks that run before the first fused one."""
        return self.config.depth - self.config.num_fused_layers

    def parameters_by_role(self) -> dict[str, list[str]]:
        """Names by role: 'fusion' (used by ITM and MLM alone), 'projection' and 'backbone'."""
        roles: dict[str, list[str]] = {"fusion": [], "projection": [], "backbone": []}
        fusion = re.compile(r"fusion_|itm_head|word_head|(text|video)_(transform|pooler)|video\.blocks\.\d+\.text\.|"
                            r"text\.layers\.\d+\.(video\.|gate)")
        for name, _ in self.named_parameters():
            role = "fusion" if fusion.match(name) else "projection" if "_projection." in name else "backbone"
            roles[role].append(name)
        return roles

    # Parts, used by training and evaluation

    def fusion_trunk(self, frames_BTCHW: Tensor) -> Tensor:
        """The unfused half of the fusion encoder's video side (B, S, D): depends on the video alone."""
        x_BSD = self.video.embed(frames_BTCHW, self.fusion_cls_token)
        return self.video.run(x_BSD, frames_BTCHW.shape[1], 0, self.unfused)

    def text_trunk(self, tokens: dict[str, Tensor]) -> Tensor:
        """The unfused half of the text side (B, L, D)."""
        return self.text.run(self.text.embed(tokens["input_ids"]), additive_mask(tokens["attention_mask"]),
                             0, self.unfused)

    def embed_video(self, frames_BTCHW: Tensor) -> Tensor:
        """Normalised frames on the model's device -> (B, E) float32."""
        return self.video_projection(self.video(frames_BTCHW)).float()

    def embed_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """Tokens on the model's device -> (B, E) float32."""
        return self.text_projection(self.text(tokens)).float()

    def fuse(self, video_BSD: Tensor, text_BLD: Tensor, attention_mask_BL: Tensor, frames: int,
             read: str = "all") -> tuple[Tensor | None, Tensor]:
        """Both trunks through the fused layers: each reads the other's state from before the step.

        read: what of the last states is wanted, as the rest need not be computed. "all": (B, S, D) and (B, L, D).
        "itm": CLS and the first token, each (B, 1, D). "mlm": the text alone, (None, (B, L, D)).
        """
        mask_B11L = additive_mask(attention_mask_BL)
        *early, last = zip(self.video.blocks[self.unfused:], self.text.layers[self.unfused:], strict=True)
        for block, layer in early:
            video_BSD, text_BLD = (self.video.step(block, video_BSD, frames, text_BLD, mask_B11L),
                                   self.text.step(layer, text_BLD, mask_B11L, video_BSD))
        first = read == "itm"
        return (None if read == "mlm" else self.video.step(last[0], video_BSD, frames, text_BLD, mask_B11L, first),
                self.text.step(last[1], text_BLD, mask_B11L, video_BSD, first))

    def itm_from_states(self, video_BSD: Tensor, text_BLD: Tensor) -> Tensor:
        """Fused states -> matching logits (B, 2); class 1 is 'match'."""
        video = self.video_pooler(self.video_transform(self.fusion_norm(video_BSD)[:, 0]))
        text = self.text_pooler(self.text_transform(text_BLD[:, 0]))
        return self.itm_head(torch.cat([text, video], dim=-1))

    def words_from_states(self, text_XD: Tensor) -> Tensor:
        """Fused text states (…, D) -> vocabulary logits (…, V)."""
        return self.word_head(self.text_transform(text_XD))

    # Public methods: anything checked, on any device, in batches of any size

    def tokens(self, text, longest: int = 30) -> dict[str, Tensor]:
        """A string, strings, or tokens {"input_ids": (B, L), "attention_mask": (B, L)} -> tokens on the model's device."""
        tokens = checked_tokens(text, self.config, self.tokenizer_source, longest)
        return {key: value.to(self.device) for key, value in tokens.items()}

    def frames(self, frames_BTCHW: Tensor) -> Tensor:
        """Checked frames on the model's device, in its precision."""
        return checked_frames(frames_BTCHW, self.config).to(self.itm_head.weight)

    def encode_text(self, text) -> Tensor:
        """Strings or tokens (B, L) -> (B, E) float32, not normalised."""
        tokens = self.tokens(text)
        return in_parts(lambda rows: self.embed_text({key: value[rows] for key, value in tokens.items()}),
                        len(tokens["input_ids"]), TEXTS_AT_ONCE)

    def encode_video(self, frames_BTCHW: Tensor) -> Tensor:
        """Normalised frames (B, T, 3, size, size) -> (B, E) float32, not normalised."""
        parts = clips_at_once(frames_BTCHW, self.config, self.device)
        return in_parts(lambda rows: self.embed_video(self.frames(frames_BTCHW[rows])), *parts)

    def itm_logits(self, frames_BTCHW: Tensor, text) -> Tensor:
        """Matching logits (B, 2) of each pair; class 1 is 'match'. One clip or one text goes with all of the others."""
        return self.pairs(frames_BTCHW, text, "itm", lambda video, words: self.itm_from_states(video, words).float())

    def mlm_logits(self, frames_BTCHW: Tensor, text) -> Tensor:
        """Vocabulary logits (B, L, V) at every text position, given the video. One clip or text goes with all of the others."""
        return self.pairs(frames_BTCHW, text, "mlm", lambda video, words: self.words_from_states(words).float())

    def match(self, frames_BTCHW: Tensor, text) -> Tensor:
        """Probability (B,) that each pair matches, by the fusion encoder. One clip or one text goes with all of the others."""
        return self.itm_logits(frames_BTCHW, text).softmax(dim=-1)[:, 1]

    def pairs(self, frames_BTCHW: Tensor, text, read: str, head) -> Tensor:
        """`head` of the fused states of clips and texts, pair by pair; what depends on the clip alone is computed once a clip."""
        tokens, (clips, size) = self.tokens(text), clips_at_once(frames_BTCHW, self.config, self.device)
        texts, T = len(tokens["input_ids"]), frames_BTCHW.shape[1]
        if clips != texts and 1 not in (clips, texts):
            raise ValueError(f"{clips} clips but {texts} texts: give one text for each clip, or one clip or text for all")
        trunk = self.fusion_trunk(self.frames(frames_BTCHW)) if clips == 1 else None
        words = self.text_trunk(tokens) if texts == 1 else None

        def part(rows: slice) -> Tensor:
            n = rows.stop - rows.start
            some = {key: value.expand(n, -1) if texts == 1 else value[rows] for key, value in tokens.items()}
            video = self.fusion_trunk(self.frames(frames_BTCHW[rows])) if trunk is None else trunk.expand(n, -1, -1)
            return head(*self.fuse(video, self.text_trunk(some) if words is None else words.expand(n, -1, -1),
                                   some["attention_mask"], T, read))
        return in_parts(part, max(clips, texts) if clips and texts else 0, size)


def similarity(one_BE: Tensor, other_BE: Tensor) -> Tensor:
    """Cosine of every row with every row, (B, E) x (B', E) -> (B, B'); norms are at least 1e-8. In float32 always:

    half precision has steps of 0.004 near 1, which a temperature of 0.05 makes a difference of 0.08 in the logits.
    """
    with torch.autocast(one_BE.device.type, enabled=False):
        unit = [x.float() / x.float().norm(dim=-1, keepdim=True).clamp_min(1e-8) for x in (one_BE, other_BE)]
        return unit[0] @ unit[1].T


def embed_texts(model, texts: list[str], longest: int, batch_size: int = 256) -> np.ndarray:
    """Texts -> (K, E) float32 embeddings, batch by batch."""
    parts = [model.embed_text(of_few_lengths(model.tokens(texts[at:at + batch_size], longest), longest)).cpu()
             for at in range(0, len(texts), batch_size)]
    return torch.cat(parts).numpy()
