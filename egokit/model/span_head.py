"""VSLNet: the span head, an option for questions; it says where an answer starts and where it stops.

It is the original's network, for comparison with published numbers. Its convolutions are not masked, so that padding of
the video changes a clip's last positions a little: as in the original, zeros are expected there.

Shapes: B questions, P positions, E features, L tokens, D channels, k spans.

Source: VSLNet (arXiv 2004.13931), as EgoVLPv2 and Ego4D's episodic-memory use it.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egokit.model.layers import Linear

MASKED = -1e30  # a logit at padding
NORM_EPS = 1e-6
LAYERS = 4  # convolutions of an encoder


def masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Return float32 logits, about -1e30 where the mask, which broadcasts, is False."""
    return logits.float().masked_fill(~mask, MASKED)


class Separable(nn.Sequential):
    """A depthwise convolution over 7 positions, a pointwise one and ReLU; (B, P, D) -> (B, P, D)."""

    def __init__(self, dim: int):
        super().__init__(nn.Conv1d(dim, dim, 7, padding=3, groups=dim, bias=False), nn.Conv1d(dim, dim, 1), nn.ReLU())

    def forward(self, x_BPD: Tensor) -> Tensor:
        return super().forward(x_BPD.transpose(1, 2)).transpose(1, 2)


class Encoder(nn.Module):
    """Learned positions, four separable convolutions and self-attention; (B, P, D) -> (B, P, D)."""

    def __init__(self, dim: int, heads: int, positions: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.positions = nn.Embedding(positions, dim)
        self.convolutions = nn.ModuleList(Separable(dim) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(dim, NORM_EPS) for _ in range(LAYERS))
        self.query, self.key, self.value = Linear(dim, dim), Linear(dim, dim), Linear(dim, dim)
        self.attention_norm, self.out_norm = nn.LayerNorm(dim, NORM_EPS), nn.LayerNorm(dim, NORM_EPS)
        self.out = Linear(dim, dim)

    def forward(self, x_BPD: Tensor, mask_BP: Tensor) -> Tensor:
        if x_BPD.shape[1] > len(self.positions.weight):
            raise ValueError(f"{x_BPD.shape[1]} positions: expected at most {len(self.positions.weight)}, the head's "
                             "positions; resample the features, or make the head with more")
        x = x_BPD + self.positions.weight[:x_BPD.shape[1]]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = x + self.dropout(convolution(norm(x)))
        normed = self.dropout(self.attention_norm(x))
        query, key, value = (layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for layer in (self.query, self.key, self.value))
        read = F.scaled_dot_product_attention(query, key, value, mask_BP[:, None, None],
                                              self.dropout.p if self.training else 0.0)
        x = x + self.dropout(read.transpose(1, 2).flatten(2))
        return x + self.dropout(self.out(self.dropout(self.out_norm(x))))


class Matching(nn.Module):
    """Attention both ways between positions (B, P, D) and tokens (B, L, D); (B, P, D) with both in it."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.of_video, self.of_text = nn.Parameter(torch.empty(dim, 1)), nn.Parameter(torch.empty(dim, 1))
        self.of_both = nn.Parameter(torch.empty(1, 1, dim))
        self.join, self.dropout = Linear(4 * dim, dim), nn.Dropout(dropout)

    def forward(self, video_BPD: Tensor, text_BLD: Tensor, mask_BP: Tensor, text_mask_BL: Tensor) -> Tensor:
        video, text = self.dropout(video_BPD), self.dropout(text_BLD)
        scores_BPL = video @ self.of_video + (text @ self.of_text).mT + (video * self.of_both) @ text.mT
        over_words = masked(scores_BPL, text_mask_BL[:, None]).softmax(dim=2)
        over_positions = masked(scores_BPL, mask_BP[..., None]).softmax(dim=1)
        read_text = over_words @ text_BLD
        read_video = over_words @ (over_positions.mT @ video_BPD)  # not (P, P) in between
        return self.join(torch.cat([video_BPD, read_text, video_BPD * read_text, video_BPD * read_video], dim=-1))


class Pooling(nn.Module):
    """The tokens' weighted mean joined to each position; (B, P, D) -> (B, P, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.join = nn.Parameter(torch.empty(dim, 1)), Linear(2 * dim, dim)

    def forward(self, x_BPD: Tensor, text_BLD: Tensor, text_mask_BL: Tensor) -> Tensor:
        weights_BL1 = masked(text_BLD @ self.weight, text_mask_BL[..., None]).softmax(dim=1)
        pooled_B1D = (weights_BL1 * text_BLD).sum(dim=1, keepdim=True)
        return self.join(torch.cat([x_BPD, pooled_B1D.to(x_BPD.dtype).expand_as(x_BPD)], dim=-1))


class Predictor(nn.Module):
    """Start logits, and end logits from the start's features; (B, P, D) -> 2 × (B, P)."""

    def __init__(self, dim: int, heads: int, positions: int, dropout: float):
        super().__init__()
        self.encoder = Encoder(dim, heads, positions, dropout)
        self.start_norm, self.end_norm = nn.LayerNorm(dim, NORM_EPS), nn.LayerNorm(dim, NORM_EPS)
        self.start, self.end = (nn.Sequential(Linear(2 * dim, dim), nn.ReLU(), Linear(dim, 1)) for _ in range(2))

    def forward(self, x_BPD: Tensor, mask_BP: Tensor) -> tuple[Tensor, Tensor]:
        start = self.encoder(x_BPD, mask_BP)
        end = self.encoder(start, mask_BP)
        joined = (torch.cat([norm(part), x_BPD], dim=-1)
                  for norm, part in ((self.start_norm, start), (self.end_norm, end)))
        return tuple(masked(layer(part).squeeze(-1), mask_BP)
                     for layer, part in zip((self.start, self.end), joined, strict=True))


class SpanHead(nn.Module):
    """VSLNet: from features and a question's tokens to start logits, end logits and highlights, each (B, P).

    Args:
        features: E of the video.
        text: E of a token.
        dim: D.
        heads: Attention heads.
        positions: The most P and the most L.
        dropout: Probability, everywhere.
    """

    def __init__(self, features: int = 768, text: int = 768, dim: int = 128, heads: int = 8, positions: int = 256,
                 dropout: float = 0.2):
        super().__init__()
        self.dropout, self.video_layer = nn.Dropout(dropout), Linear(features, dim)
        self.encoder = Encoder(dim, heads, positions, dropout)
        self.matching, self.pooling = Matching(dim, dropout), Pooling(dim)
        self.highlight = Linear(dim, 1)
        self.predictor = Predictor(dim, heads, positions, dropout)
        self.text_layer = Linear(text, dim)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.endswith("positions.weight"):  # those are drawn from N(0, 1)
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, features_BPE: Tensor, mask_BP: Tensor, text_BLE: Tensor,
                text_mask_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return start logits, end logits (-1e30 at padding) and highlight probabilities (0 at padding), float32.

        Args:
            features_BPE: Features of at most `positions` positions, zero at padding.
            mask_BP: bool, True at real features.
            text_mask_BL: bool, True at real tokens, of which each question has one at least.
        """
        video = self.encoder(self.video_layer(self.dropout(features_BPE)), mask_BP)
        text = self.encoder(self.text_layer(text_BLE), text_mask_BL)
        x = self.pooling(self.matching(video, text, mask_BP, text_mask_BL), text, text_mask_BL)
        highlight_BP = masked(self.highlight(x).squeeze(-1), mask_BP).sigmoid()
        return *self.predictor(x * highlight_BP[..., None].to(x.dtype), mask_BP), highlight_BP


def span_loss(start_logits_BP: Tensor, end_logits_BP: Tensor, starts_B: Tensor, ends_B: Tensor) -> Tensor:
    """Return the cross-entropy of starts plus that of ends, each the mean over questions."""
    return F.cross_entropy(start_logits_BP.float(), starts_B) + F.cross_entropy(end_logits_BP.float(), ends_B)


def highlight_loss(highlight_BP: Tensor, labels_BP: Tensor, mask_BP: Tensor) -> Tensor:
    """Return the mean over real positions of the binary cross-entropy, twice as much where the label is 1."""
    labels = labels_BP.to(highlight_BP.dtype)
    with torch.autocast(highlight_BP.device.type, enabled=False):  # of probabilities, which autocast refuses
        loss = F.binary_cross_entropy(highlight_BP, labels, weight=1 + labels, reduction="none")
    return (loss * mask_BP).sum() / mask_BP.sum().clamp(min=1)


@torch.no_grad()
def best_spans(start_logits_BP: Tensor, end_logits_BP: Tensor, mask_BP: Tensor,
               k: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k most probable spans of each question, best first: starts, ends and probabilities, each (B, k).

    A span starts no later than it ends; both ends are inclusive. A clip of P positions has P (P + 1) / 2 spans: where
    there are fewer than k, start and end are -1 and the probability is 0.
    """
    start_BP, end_BP = (masked(logits, mask_BP).softmax(dim=1) for logits in (start_logits_BP, end_logits_BP))
    P = mask_BP.shape[1]
    spans_BPP = start_BP[..., None] * end_BP[:, None]
    possible = (mask_BP[..., None] & mask_BP[:, None]).triu()
    chances, numbers = F.pad(spans_BPP.masked_fill(~possible, -1.0).flatten(1), (0, k), value=-1.0).topk(k)
    missing = chances < 0
    starts, ends = numbers // P, numbers % P
    return starts.masked_fill(missing, -1), ends.masked_fill(missing, -1), chances.clamp(min=0)
