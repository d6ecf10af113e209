"""The heads of the two encoders: projections, poolers and masked language modelling.

Shapes: B items, D width, E embedding, V vocabulary.
"""
import re

import torch
from torch import Tensor, nn

from egokit.model.layers import Linear


def build_projection(kind: str, width: int, text: bool) -> nn.Sequential:
    """Return the projection from states (B, D) to embeddings (B, E).

    Args:
        kind: mlp<E>, three linear layers of which the first has no bias; or linear<E>, one, after a ReLU for text.
        width: D.
        text: build the text encoder's projection, not the video encoder's.

    Raises:
        ValueError: for another kind.
    """
    family = re.fullmatch(r"(mlp|linear)(\d+)", kind)
    if family is None:
        raise ValueError(f"model.projection {kind!r}: expected mlp<size> or linear<size>, "
                         "for example mlp4096 or linear256")
    E = int(family[2])
    if family[1] == "mlp":
        return nn.Sequential(Linear(width, E, bias=False), nn.ReLU(), Linear(E, E), nn.ReLU(), Linear(E, E))
    return nn.Sequential(nn.ReLU(), Linear(width, E)) if text else nn.Sequential(Linear(width, E))


class Pooler(nn.Module):
    """A linear layer and tanh, (B, D) -> (B, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = Linear(width, width)

    def forward(self, x_BD: Tensor) -> Tensor:
        return torch.tanh(self.dense(x_BD))


class MLMHead(nn.Module):
    """Masked language modelling, (…, D) -> (…, V); no weights are tied to the embeddings."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.dense = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.dense(x, gelu=True))) + self.bias
