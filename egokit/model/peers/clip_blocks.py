"""CLIP's transformer and text encoder, which LaViLa and AVION took over, and its activation QuickGELU.

Shapes: B texts or clips, L tokens, S tokens of any kind, D width.

Source: "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020), section 2.4.
"""
import torch
from torch import Tensor, nn

from egokit.config.schema import ModelConfig
from egokit.model.layers import LayerNorm, Linear, attend, merge_heads, split_heads

TEXT_EPS = 1e-5


class QuickGELULinear(Linear):
    """A linear layer whose GELU is CLIP's approximation, y · sigmoid(1.702 y)."""

    def forward(self, x: Tensor, rows: slice | None = None, gelu: bool = False) -> Tensor:
        """Return what `Linear` returns, with QuickGELU if GELU is asked."""
        y = super().forward(x, rows)
        return y * torch.sigmoid(1.702 * y) if gelu else y


class Block(nn.Module):
    """One pre-norm block: attention of all tokens with all, then an MLP."""

    def __init__(self, config: ModelConfig, eps: float, quick: bool):
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.ln_1, self.ln_2 = LayerNorm(width, eps=eps), LayerNorm(width, eps=eps)
        self.qkv, self.proj = Linear(width, 3 * width), Linear(width, width)
        self.fc1, self.fc2 = (QuickGELULinear if quick else Linear)(width, hidden), Linear(hidden, width)

    def forward(self, x_BSD: Tensor, mask_11SS: Tensor | None = None) -> Tensor:
        """Return the tokens after this block, (B, S, D); the mask is added to the scores."""
        query, key, value = (split_heads(y, self.heads) for y in self.qkv(self.ln_1(x_BSD)).chunk(3, dim=-1))
        x_BSD = x_BSD + self.proj(merge_heads(attend(query, key, value, mask_11SS)))
        return x_BSD + self.fc2(self.fc1(self.ln_2(x_BSD), gelu=True))


class ClipText(nn.Module):
    """CLIP's text encoder: a causal transformer, read at the end of the text."""

    def __init__(self, config: ModelConfig, quick: bool):
        """Build it without weights.

        Args:
            config: its width, heads, depth, mlp_ratio, vocab_size and max_positions.
            quick: the activation is QuickGELU (LaViLa), not GELU (AVION).
        """
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.max_positions, config.width))
        self.blocks = nn.ModuleList(Block(config, TEXT_EPS, quick) for _ in range(config.depth))
        self.ln_final = LayerNorm(config.width, eps=TEXT_EPS)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Return the states of the ends of texts, (B, D).

        The end has the largest id, and its first occurrence counts. No token reads a later one, so that padding behind
        the end changes nothing.
        """
        x_BLD = self.token_embedding(ids_BL) + self.positional_embedding[:ids_BL.shape[1]]
        later = x_BLD.new_full((ids_BL.shape[1],) * 2, float("-inf")).triu(1)[None, None]
        for block in self.blocks:
            x_BLD = block(x_BLD, later)
        return self.ln_final(x_BLD[torch.arange(len(ids_BL), device=ids_BL.device), ids_BL.argmax(dim=1)])
