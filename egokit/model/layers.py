"""Linear layers and attention of both encoders, and the scale of initial weights.

Sizes of the network are given by the encoders. What only makes a CPU faster is in cpu_fast_paths.py.

Shapes: B items, Q queries, S tokens, D width, H heads, K = D/H.
"""
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egokit.model import cpu_fast_paths as cpu
from egokit.model.precision import half_precision

NORM_EPS = 1e-5
MOST_ITEMS = 65_535  # of a CUDA grid's second dimension, which PyTorch's kernels give to the batch (pytorch#146704)


def init_std(width: int) -> float:
    """Return the standard deviation of a linear layer's initial weights, 0.02 at width 768.

    That is ViT's; narrower layers get the same gain. A constant 0.02 leaves a narrow model nearly blind: every clip has
    the same embedding, and every gate lets nothing through.

    The weights are drawn by `normal_`. ViT's `trunc_normal_` cuts nothing here, as its bounds, ±2, are more than six
    standard deviations away; and in torch 2.11 it turns one weight in 2**24 into -2 (pytorch#155588), so that a seed
    gives other weights than in later versions.
    """
    return 0.02 * (768 / width) ** 0.5


class Linear(nn.Linear):
    """A linear layer that can compute some of its outputs only, and apply GELU to them."""

    def forward(self, x: Tensor, rows: slice | None = None, gelu: bool = False) -> Tensor:
        """Return x · weightᵀ + bias, then GELU (exact) if asked.

        Args:
            x: (…, inputs).
            rows: which outputs to compute, as rows of the weight matrix; all by default.
        """
        weight, bias = self.weight, self.bias
        if rows is not None:  # else no slice: autocast caches the half-precision copy of a parameter, not of a slice
            weight, bias = weight[rows], None if bias is None else bias[rows]
        if cpu.linear_applies(x, weight, bias):
            return cpu.linear(x, weight, bias, gelu)
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that can stay in half precision under autocast, which would make it float32."""

    def forward(self, x: Tensor, half: bool = False) -> Tensor:
        """Return the normalised tokens; with `half` in x's data type, statistics being float32 either way."""
        if not half:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def split_heads(x_BSD: Tensor, heads: int) -> Tensor:
    """Return (B, H, S, K)."""
    return x_BSD.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x_BHSK: Tensor) -> Tensor:
    """Return (B, S, D)."""
    return x_BHSK.transpose(1, 2).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Return softmax(query · keyᵀ / √K + mask) · value, (B, H, Q, K).

    Args:
        query: (B, H, Q, K); `key` and `value` are (B, H, S, K).
        mask: added to the scores, (B, 1, 1, S) or (1, 1, 1, S).
        dropout: probability with which an attention weight is dropped.
    """
    if query.device.type == "cpu":
        return cpu.attend(query, key, value, mask, dropout)
    if len(query) > MOST_ITEMS:  # time attention has an item for each position of each clip: 335 clips are too many
        masks = itertools.repeat(None) if mask is None else mask.expand(len(query), -1, -1, -1).split(MOST_ITEMS)
        parts = zip(*(x.split(MOST_ITEMS) for x in (query, key, value)), masks, strict=False)
        return torch.cat([attend(*part, dropout) for part in parts])
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout,
                                          attn_mask=None if mask is None else mask.to(query.dtype))


def multi_head_attention(x_BQD: Tensor, source_BSD: Tensor, query: Linear, key_value: tuple[Linear, ...], proj: Linear,
                         heads: int, mask_B11S: Tensor | None = None, dropout: float = 0.0,
                         training: bool = False) -> Tensor:
    """Return proj(attend(query(x), key(source), value(source))), (B, Q, D).

    It is cross-attention from x to the source; self-attention if the source is x.

    Args:
        key_value: the layers of keys and values: one for each, or a joint one with twice the width.
        mask_B11S: added to the scores.
        dropout: probability with which an attention weight is dropped while training.
    """
    if (cpu.cross_attention_applies(x_BQD, source_BSD, key_value, heads, mask_B11S, training)
            and all(_is_plain(layer) for layer in (query, *key_value, proj))):
        return cpu.cross_attention(x_BQD, source_BSD, query, key_value, proj, heads, mask_B11S)
    half = half_precision(source_BSD.device) if source_BSD.device.type == "cuda" else None
    if len(key_value) == 2 and half:  # once for both layers; both gradients are then added in half precision
        source_BSD = source_BSD.to(half)
    query_BHQK = split_heads(query(x_BQD), heads)
    projected = [layer(source_BSD) for layer in key_value]
    key_BSD, value_BSD = projected if len(projected) == 2 else projected[0].chunk(2, dim=-1)
    read_BHQK = attend(query_BHQK, split_heads(key_BSD, heads), split_heads(value_BSD, heads), mask_B11S,
                       dropout if training else 0.0)
    return proj(merge_heads(read_BHQK))


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer's weights may be used without calling it: it has no hooks or adapter."""
    return type(layer) is Linear and not layer._forward_hooks and not layer._forward_pre_hooks
