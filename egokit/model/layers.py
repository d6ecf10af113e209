"""What both encoders are built of: linear layers and attention, and how they start. No shape of the network lives here.

Shapes: B items, S tokens, D width, H heads, K = D/H.
"""
from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5
FEW = 17  # keys: those of time attention at up to 16 frames
MOST_ITEMS = 65_535  # of a CUDA grid's second dimension, which PyTorch's attention kernels give to the batch (pytorch#146704)


def fresh_std(width: int) -> float:
    """Start of a linear layer: ViT's 0.02 at width 768, and the same gain in narrower models.

    A constant 0.02 leaves a narrow model nearly blind: every clip has the same embedding, every gate lets nothing through.

    The weights are drawn by `normal_`. ViT's `trunc_normal_` cuts nothing here, as its bounds, ±2, are more than six
    standard deviations away; and in torch 2.11 it turns one weight in 2**24 into -2 (pytorch#155588), and one seed into
    another start than in later versions.
    """
    return 0.02 * (768 / width) ** 0.5


def cpu_inference(x: Tensor, *layers: nn.Module) -> bool:
    """Float32 on a CPU, and no gradient wanted: where arithmetic is what costs, and forms without a backward pass will do.

    `layers` are those whose weights would be used directly: they must be plain (no hooks, no adapter in their place).
    """
    return (x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
            and all(type(layer) is Linear and not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x · weightᵀ + bias, then GELU (exact) if asked.

    Inference in float32 on a CPU goes through oneDNN, which PyTorch itself uses there in half precision only: up to
    1.5 x as fast as its default, and GELU costs nothing more (benchmarks/model.py). It has no backward pass, and
    torch.compile has its own ways.
    """
    # is_compiling first: the other two can't be traced, and would cut a compiled block's graph at each of its linear layers
    onednn = not torch.compiler.is_compiling() and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if onednn and cpu_inference(x) and weight.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


class Linear(nn.Linear):
    """nn.Linear by `linear`; `rows` takes some of the outputs only, `gelu` is applied to them."""

    def forward(self, x: Tensor, rows: slice | None = None, gelu: bool = False) -> Tensor:
        if rows is None:  # the parameter itself, not a slice of it: autocast keeps the half-precision copy of a leaf alone
            return linear(x, self.weight, self.bias, gelu)
        return linear(x, self.weight[rows], None if self.bias is None else self.bias[rows], gelu)


def heads_first(x_BSD: Tensor, heads: int) -> Tensor:
    """(B, S, D) -> (B, H, S, K)"""
    return x_BSD.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(query · keyᵀ / √K + mask) · value; all (B, H, tokens, K). PyTorch's fused attention, but for two cases on a CPU

    (benchmarks/model.py, benchmarks/attention.py): its kernels are slower in half precision than in float32, which they are
    given instead; and for few keys two batched products take a quarter to a half of its time.
    """
    if query.device.type == "cpu":
        if query.dtype in (torch.float16, torch.bfloat16):
            with torch.autocast("cpu", enabled=False):
                return attend(query.float(), key.float(), value.float(), mask, dropout).to(query.dtype)
        if key.shape[2] <= FEW and mask is None and not dropout:
            return ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(-1) @ value
    elif len(query) > MOST_ITEMS:  # time attention has an item for each position of each clip: 335 clips are too many
        masks = itertools.repeat(None) if mask is None else mask.expand(len(query), -1, -1, -1).split(MOST_ITEMS)
        parts = zip(*(x.split(MOST_ITEMS) for x in (query, key, value)), masks, strict=False)
        return torch.cat([attend(*part, dropout) for part in parts])
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout,
                                          attn_mask=None if mask is None else mask.to(query.dtype))


# Cross-attention between a video's hundreds of tokens and a text's few. A projection of the long side costs S·D·D; put on the
# short side instead, by q · (W s + b) = (Wᵀ q) · s + q · b, it costs S·D·H·L, which is less for texts below K tokens.

def read_long(query_BHLK: Tensor, source_BSD: Tensor, key: Linear, value: Linear) -> Tensor:
    """attend(query, key(source), value(source)) of few queries, (B, H, L, K); q · b is one number a query, gone in softmax."""
    H, K = query_BHLK.shape[1], query_BHLK.shape[3]
    asked = (query_BHLK @ key.weight.unflatten(0, (H, K))).flatten(1, 2)                          # (B, H*L, D)
    read = F.scaled_dot_product_attention(asked[:, None], source_BSD[:, None], source_BSD[:, None], scale=K ** -0.5)
    return read[:, 0].unflatten(1, (H, -1)) @ value.weight.unflatten(0, (H, K)).mT + value.bias.unflatten(0, (H, 1, K))


def read_short(x_BSD: Tensor, query: Linear, key_BHLK: Tensor, value_BHLK: Tensor, mask_B11L: Tensor, proj: Linear) -> Tensor:
    """proj(attend(query(x), key, value, mask)) of many x and few keys, (B, S, D)."""
    H, L, K = key_BHLK.shape[1:]
    asked = (key_BHLK @ query.weight.unflatten(0, (H, K))).flatten(1, 2)                          # (B, H*L, D)
    offset = (key_BHLK @ query.bias.unflatten(0, (H, K, 1))).mT * K ** -0.5 + mask_B11L           # (B, H, 1, L)
    weights = ((x_BSD @ asked.mT).unflatten(-1, (H, L)) * K ** -0.5 + offset.transpose(1, 2)).softmax(-1)
    said = (value_BHLK @ proj.weight.mT.unflatten(0, (H, K))).flatten(1, 2)                       # (B, H*L, D)
    return weights.flatten(2) @ said + proj.bias
