"""The text encoder: RoBERTa whose last layers can read a video; and the tokenizer.

Shapes: B texts, L tokens, D width, H heads, S video tokens. Sources: RoBERTa (arXiv 1907.11692) and the
EgoVLPv2 paper, section 3. There is no pooler: the dual encoder takes the first token's state.
"""
from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from egokit.config.schema import ModelConfig
from egokit.model.layers import NORM_EPS, Linear, attend, cpu_inference, heads_first, read_long

PADDING = 1  # RoBERTa's padding id; positions start right after it


class TextAttention(nn.Module):
    """Multi-head attention with separate projections, as RoBERTa names them; dropout on weights and output."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.dense = (Linear(width, width) for _ in range(4))

    def forward(self, x_BLD: Tensor, source_BSD: Tensor, mask_B11S: Tensor | None = None) -> Tensor:
        query = heads_first(self.query(x_BLD), self.heads)
        if cpu_inference(x_BLD, self.key, self.value) and not self.training and mask_B11S is None and x_BLD.shape[1] < query.shape[-1]:
            read = read_long(query, source_BSD, self.key, self.value)
        else:
            key, value = (heads_first(linear(source_BSD), self.heads) for linear in (self.key, self.value))
            read = attend(query, key, value, mask_B11S, self.dropout if self.training else 0.0)
        return F.dropout(self.dense(read.transpose(1, 2).flatten(2)), self.dropout, self.training)


class TextLayer(nn.Module):
    """One post-norm transformer layer; with `video`, cross-attention is added through a gate that starts at 0.

    The last layer of a pass may give the first token alone (B, 1, D), where nothing reads the others.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, fused: bool):
        super().__init__()
        self.dropout = dropout
        self.attention = TextAttention(width, heads, dropout)
        self.video = TextAttention(width, heads, dropout) if fused else None
        self.gate = nn.Parameter(torch.zeros(1)) if fused else None
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = Linear(width, int(width * mlp_ratio))
        self.fc2 = Linear(int(width * mlp_ratio), width)
        self.output_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor, video_BSD: Tensor | None = None, first_only: bool = False) -> Tensor:
        own = x_BLD[:, :1] if first_only else x_BLD
        read = self.attention(own, x_BLD, mask_B11L)
        if video_BSD is not None:
            read = read + self.gate * self.video(read, video_BSD)
        x_BLD = self.attention_norm(read + own)
        hidden = F.dropout(self.fc2(self.fc1(x_BLD, gelu=True)), self.dropout, self.training)
        return self.output_norm(hidden + x_BLD)


class TextEncoder(nn.Module):
    """Token ids to states. `layers[depth - fused:]` can take a video."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.word_embed = nn.Embedding(config.vocab_size, config.width, padding_idx=PADDING)
        self.position_embed = nn.Embedding(config.max_positions, config.width, padding_idx=PADDING)
        self.type_embed = nn.Embedding(1, config.width)
        self.embed_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.layers = nn.ModuleList(
            TextLayer(config.width, config.heads, config.mlp_ratio, config.dropout, index >= config.depth - config.num_fused_layers)
            for index in range(config.depth))

    def reset_parameters(self) -> None:
        """A start without RoBERTa weights; gates 0.

        Linear layers keep the size of what passes (1 / sqrt(width)): at RoBERTa's 0.02 the first token, whose own embedding
        all texts share, hardly hears the other words, and all texts have one embedding for the first epochs.
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features ** -0.5)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.word_embed.weight[PADDING].zero_()
            self.position_embed.weight[PADDING].zero_()

    def embed(self, input_ids_BL: Tensor) -> Tensor:
        """Ids (B, L) -> (B, L, D). Positions count from 2 and skip padding."""
        real = input_ids_BL.ne(PADDING).long()
        positions = real.cumsum(1) * real + PADDING
        x_BLD = self.word_embed(input_ids_BL) + self.position_embed(positions) + self.type_embed.weight[0]
        return F.dropout(self.embed_norm(x_BLD), self.config.dropout, self.training)

    def run(self, x_BLD: Tensor, mask_B11L: Tensor, start: int, stop: int) -> Tensor:
        """Layers start..stop without a video."""
        for layer in self.layers[start:stop]:
            x_BLD = self.step(layer, x_BLD, mask_B11L)
        return x_BLD

    def step(self, layer: TextLayer, x_BLD: Tensor, mask_B11L: Tensor, video_BSD: Tensor | None = None, first_only: bool = False) -> Tensor:
        """One layer; if the config says so it is recomputed in the backward pass, where it reads a video: words alone are few."""
        if video_BSD is not None and self.config.checkpointing and self.training:
            return checkpoint(layer, x_BLD, mask_B11L, video_BSD, first_only, use_reentrant=False,
                              preserve_rng_state=self.config.dropout > 0)
        return layer(x_BLD, mask_B11L, video_BSD, first_only)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Tokens -> state of the first token (B, D), unfused."""
        mask_B11L = additive_mask(tokens["attention_mask"])
        x_BLD = self.run(self.embed(tokens["input_ids"]), mask_B11L, 0, self.config.depth - 1)
        return self.step(self.layers[-1], x_BLD, mask_B11L, None, True)[:, 0]


def additive_mask(attention_mask_BL: Tensor) -> Tensor:
    """1/0 mask (B, L) -> 0 / very negative (B, 1, 1, L). Finite: a fully masked row must not become NaN."""
    return (1.0 - attention_mask_BL[:, None, None].float()) * -30000.0  # fits float16


class Tokenizer:
    """Strings to padded RoBERTa tokens; a thin hold on transformers' AutoTokenizer (name or folder)."""

    def __init__(self, source: str):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read at import; forked loaders warn without it
        from transformers import AutoTokenizer
        if Path(source).is_absolute() and not Path(source).is_dir():
            raise FileNotFoundError(f"no tokenizer folder {source}; the toy's is made by notebook 01_data_prep "
                                    "(or 'egokit toy'), the real one is named 'roberta-base'")
        try:
            self.inner = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(f"tokenizer {source!r} could not be loaded: give a folder with vocab.json and "
                                    f"merges.txt, or go online once for a name ({error})") from None
        self.vocab_size = len(self.inner)
        self.mask_id = self.inner.mask_token_id
        self.special_ids = sorted(self.inner.all_special_ids)

    def __call__(self, texts: list[str], longest: int, fixed: bool = False) -> dict[str, Tensor]:
        """Texts -> {"input_ids": (B, L), "attention_mask": (B, L)}, L <= longest, padded to the longest of them, or to `longest`."""
        out = self.inner(list(texts), padding="max_length" if fixed else True, truncation=True, max_length=longest, return_tensors="pt")
        return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}

    def words(self, input_ids) -> list[str]:
        """Readable pieces of one text, for pictures; a piece that goes on with a word is empty."""
        pieces = self.inner.convert_ids_to_tokens([int(i) for i in input_ids])
        return [piece.removeprefix("Ġ") if piece.startswith("Ġ") else "" for piece in pieces]


@functools.lru_cache(maxsize=4)
def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a name or folder, loaded once a process."""
    return Tokenizer(source)
