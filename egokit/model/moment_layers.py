"""Layers of the single-stage head: masked convolutions, banded attention, blocks and towers.

Whatever lies at padding has no influence on what is real, so that clips of any lengths go into one batch.

Shapes: B clips, E features, T positions, H channels, L tokens of a text, S keys, K channels of an attention head.

Source: ActionFormer (arXiv 2202.07925).
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egokit.model.layers import Linear

BLOCK = 16  # positions whose banded attention is computed together


class Conv(nn.Conv1d):
    """A convolution (B, T, E) -> (B, T / stride, H) that keeps the length at stride 1."""

    def __init__(self, inputs: int, outputs: int, **options):
        super().__init__(inputs, outputs, 3, padding=1, **options)

    def forward(self, x_BTE: Tensor) -> Tensor:
        return super().forward(x_BTE.transpose(1, 2)).transpose(1, 2)


def masked(x_BTH: Tensor, mask_BT: Tensor, value: float = 0.0) -> Tensor:
    """Return x with `value`, 0 by default, at padding."""
    return x_BTH.masked_fill(~mask_BT[..., None], value)


def pool(x_BTH: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the greatest of each two positions' neighbourhoods (3 wide) and the mask, both (B, T/2, …)."""
    pooled = F.max_pool1d(masked(x_BTH, mask_BT, -math.inf).transpose(1, 2), 3, 2, 1).transpose(1, 2)
    return masked(pooled, mask_BT[:, ::2]), mask_BT[:, ::2]


def banded_attention(query: Tensor, key: Tensor, value: Tensor, mask_BT: Tensor, window: int,
                     dropout: float = 0.0) -> Tensor:
    """Return the attention of each position to the `window` positions around it, (B, heads, T, K).

    Memory grows with T · window: a block of queries meets its own positions and half a window on each side.
    """
    (B, heads, T, _), half = query.shape, window // 2
    block = max(BLOCK, half)
    blocks, S = math.ceil(T / block), block + 2 * half
    rest = blocks * block - T
    query = F.pad(query, (0, 0, 0, rest)).unflatten(2, (blocks, block)).transpose(1, 2).flatten(0, 1)
    key, value = (F.pad(x, (0, 0, half, half + rest)).unfold(2, S, block).permute(0, 2, 1, 4, 3).flatten(0, 1)
                  for x in (key, value))
    distance = torch.arange(S, device=query.device) - torch.arange(block, device=query.device)[:, None] - half
    real = F.pad(mask_BT, (half, half + rest)).unfold(1, S, block).flatten(0, 1)
    # padding sees itself: a query without any key would give NaN
    allowed = (distance.abs() <= half) & real[:, None] | (distance == 0)
    read = F.scaled_dot_product_attention(query, key, value, allowed[:, None], dropout)
    return read.unflatten(0, (B, blocks)).transpose(1, 2).reshape(B, heads, blocks * block, -1)[:, :, :T]


class Attention(nn.Module):
    """Multi-head attention to a source's tokens; with a window, to the positions around each one."""

    def __init__(self, dim: int, heads: int, dropout: float, window: int = 0):
        super().__init__()
        self.heads, self.window, self.dropout = heads, window, dropout
        self.query, self.key_value, self.out = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)

    def forward(self, x_BTH: Tensor, source_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for x in (self.query(x_BTH), *self.key_value(source_BSH).chunk(2, dim=-1)))
        dropout = self.dropout if self.training else 0.0
        if self.window:
            read = banded_attention(query, key, value, mask_BS, self.window, dropout)
        else:
            read = F.scaled_dot_product_attention(query, key, value, mask_BS[:, None, None], dropout)
        return self.out(read.transpose(1, 2).flatten(2))


def feed_forward(dim: int, dropout: float) -> nn.Sequential:
    """Return a pre-norm MLP, four times as wide inside."""
    return nn.Sequential(nn.LayerNorm(dim), Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout),
                         Linear(4 * dim, dim), nn.Dropout(dropout))


class TextLayer(nn.Module):
    """Tokens (B, L, E) to H channels, then one transformer layer in which the tokens of a text see each other."""

    def __init__(self, inputs: int, dim: int, heads: int, dropout: float):
        super().__init__()
        self.embed = nn.Sequential(Linear(inputs, dim), nn.LayerNorm(dim))
        self.norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads, dropout)
        self.dropout, self.mlp = nn.Dropout(dropout), feed_forward(dim, dropout)

    def forward(self, text_BLE: Tensor, mask_BL: Tensor) -> Tensor:
        x = self.embed(masked(text_BLE, mask_BL))
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, normed, mask_BL))
        return masked(x + self.mlp(x), mask_BL)


class Block(nn.Module):
    """A transformer block with banded attention after a depthwise convolution; stride 2 halves the length."""

    def __init__(self, dim: int, heads: int, window: int, dropout: float, text: bool, stride: int = 1):
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(dim), Conv(dim, dim, stride=stride, groups=dim)
        self.attention, self.scale = Attention(dim, heads, dropout, window), nn.Parameter(torch.full((dim,), 1e-4))
        if text:
            self.text_norm, self.text_attention = nn.LayerNorm(dim), Attention(dim, heads, dropout)
            self.text_scale = nn.Parameter(torch.full((dim,), 0.1))
        self.mlp, self.mlp_scale = feed_forward(dim, dropout), nn.Parameter(torch.full((dim,), 1e-4))
        self.dropout, self.stride = nn.Dropout(dropout), stride

    def forward(self, x_BTH: Tensor, mask_BT: Tensor, text: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        near = self.conv(masked(self.norm(x_BTH), mask_BT))
        if self.stride == 2:
            x_BTH, mask_BT = pool(x_BTH, mask_BT)
        near = masked(near, mask_BT)
        x = x_BTH + self.scale * self.dropout(self.attention(near, near, mask_BT))
        if text is not None:
            x = x + self.text_scale * self.dropout(self.text_attention(self.text_norm(x), *text))
        return masked(x + self.mlp_scale * self.mlp(x), mask_BT), mask_BT


class Tower(nn.ModuleList):
    """Two convolutions, each followed by layer normalisation, ReLU and the mask; (B, T, E) -> (B, T, H)."""

    def __init__(self, inputs: int, dim: int, bias: bool):
        super().__init__(nn.Sequential(Conv(size, dim, bias=bias), nn.LayerNorm(dim), nn.ReLU())
                         for size in (inputs, dim))

    def forward(self, x_BTE: Tensor, mask_BT: Tensor) -> Tensor:
        for layer in self:
            x_BTE = masked(layer(x_BTE), mask_BT)
        return x_BTE
