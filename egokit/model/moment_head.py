"""The single-stage head: from a clip's features to moments, all at once, with or without a question.

Each position of each level of a pyramid is a point. A point gives a logit for each class and its distances to the
start and the stop of the moment in which it lies. Positions count features: the middle of feature i is position i.

Shapes: B clips, E features, T positions, H channels, P points of all levels (finest first), C classes, M moments,
L tokens of a text, N candidates.

Source: ActionFormer (arXiv 2202.07925), TemporalMaxer (arXiv 2303.09055), SnAG (arXiv 2404.02257).
"""
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egokit.model.moment_layers import Block, Conv, TextLayer, Tower, masked, pool

RADIUS = 1.5  # of the stretch around a moment's centre whose points are positive, in strides
SAME_LENGTH = 1e-3  # moments whose lengths differ by no more set their classes together
MOMENTUM = 0.9  # of the running mean of positives
TINY = 1e-8  # of a length, in a division


class Points(NamedTuple):
    """What the head says at each point: logits, offsets in strides, and whether the point is real."""

    logits_BPC: Tensor
    offsets_BP2: Tensor
    mask_BP: Tensor


class Losses(NamedTuple):
    """Sums over a batch: focal loss of real points, DIoU loss of positive points, and the number of those."""

    focal: Tensor
    diou: Tensor
    positives: Tensor


class MomentHead(nn.Module):
    """From features (B, E, T) to `Points` of all levels; with a text, to the points of what the text asks for.

    Args:
        features: E.
        classes: C; 1 for a question's moment.
        dim: H.
        levels: Levels of the pyramid; each has half as many points as the one before.
        stem: Transformer blocks before the pyramid.
        pyramid: "maxpool" or "attention", a transformer block for each further level.
        text: Features of a token; 0 for a head without a text.
        heads: Attention heads.
        window: Positions that a position sees, itself in the middle.
        dropout: Probability, for features and in blocks.
        ranges: Least and most distance of a point to its moment's farther end, in positions, for each level. The
            default is ActionFormer's: 0 to 4, 2 to 8, 4 to 16, …, the last without an end.

    Attributes:
        positives: Running mean of positive points in a batch, which divides the losses.

    Raises:
        ValueError: for sizes that don't fit together.
    """

    def __init__(self, features: int, classes: int, *, dim: int = 256, levels: int = 8, stem: int = 2,
                 pyramid: str = "maxpool", text: int = 0, heads: int = 4, window: int = 9, dropout: float = 0.1,
                 ranges: Sequence[tuple[float, float]] | None = None):
        super().__init__()
        if ranges is None:
            ranges = [(2**level if level else 0, 2**(level + 2)) for level in range(levels - 1)]
            ranges += [(2**(levels - 1) if levels > 1 else 0, math.inf)]
        for wrong, message in ((pyramid not in ("maxpool", "attention"), f"pyramid {pyramid!r}: expected maxpool or "
                                "attention"),
                               (window < 1 or window % 2 == 0, f"window {window}: expected an odd number, such as 9"),
                               (dim % heads, f"dim {dim}: expected a multiple of heads, {heads}"),
                               (levels < 1 or len(ranges) != levels, f"ranges {list(ranges)}: expected one for each "
                                f"of {levels} levels, at least one")):
            if wrong:
                raise ValueError(message)
        self.features, self.ranges, self.text = features, tuple(ranges), text
        self.dropout, self.embed = nn.Dropout(dropout), Tower(features, dim, bias=True)
        self.text_layer = TextLayer(text, dim, heads, dropout) if text else None
        self.stem = nn.ModuleList(Block(dim, heads, window, dropout, bool(text)) for _ in range(stem))
        self.pyramid = nn.ModuleList(Block(dim, heads, window, dropout, bool(text), 2) for _ in range(levels - 1)
                                     if pyramid == "attention")
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(levels))
        self.class_tower, self.offset_tower = Tower(dim, dim, bias=False), Tower(dim, dim, bias=False)
        self.class_layer, self.offset_layer = Conv(dim, classes), Conv(dim, 2)
        self.offset_scale = nn.Parameter(torch.ones(levels))
        self.register_buffer("positives", torch.tensor(100.0))
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.class_layer.bias, -math.log(99))  # every probability starts at 1 %

    def forward(self, features_BET: Tensor, mask_BT: Tensor, text_BLE: Tensor | None = None,
                text_mask_BL: Tensor | None = None) -> Points:
        """Return the points of all levels, finest first; level l has T / 2**l, rounded up.

        Args:
            features_BET: Features; what lies at padding has no influence, NaN included.
            mask_BT: bool, True at features that are real.
            text_BLE: Tokens of the text, for a head with one.
            text_mask_BL: bool, True at real tokens, of which each text has one at least.
        """
        if features_BET.shape[1] != self.features or (text_BLE is None) != (not self.text):
            given = None if text_BLE is None else tuple(text_BLE.shape)
            raise ValueError(f"features {tuple(features_BET.shape)} and text {given}: expected {self.features} "
                             f"features at each position and {self.text or 'no'} features of each token")
        text = (self.text_layer(text_BLE, text_mask_BL), text_mask_BL) if self.text else None
        x = self.embed(self.dropout(features_BET.masked_fill(~mask_BT[:, None], 0.0)).transpose(1, 2), mask_BT)
        for block in self.stem:
            x, mask_BT = block(x, mask_BT, text)
        levels, masks = [x], [mask_BT]
        for number in range(1, len(self.norms)):
            x, mask_BT = self.pyramid[number - 1](x, mask_BT, text) if self.pyramid else pool(x, mask_BT)
            levels.append(x)
            masks.append(mask_BT)
        # Levels lie in one row, with a masked position after each: the heads then run once, not once a level.
        sizes = [mask.shape[1] + 1 for mask in masks]
        row_mask = torch.cat([F.pad(mask, (0, 1)) for mask in masks], dim=1)
        row = torch.cat([F.pad(norm(x), (0, 0, 0, 1)) for norm, x in zip(self.norms, levels, strict=True)], dim=1)
        row = masked(row, row_mask)
        logits, offsets = (torch.cat([part[:, :-1] for part in layer(tower(row, row_mask)).split(sizes, 1)], 1)
                           for tower, layer in ((self.class_tower, self.class_layer),
                                                (self.offset_tower, self.offset_layer)))
        scale_P1 = torch.cat([scale.expand(size - 1, 1) for scale, size in zip(self.offset_scale, sizes, strict=True)])
        return Points(logits, F.relu(scale_P1 * offsets), torch.cat(masks, dim=1))

    def points(self, T: int, device: torch.device | str | None = None) -> Tensor:
        """Return (P, 4): each point's position, least and most distance of its level, and stride."""
        rows = []
        for level, limits in enumerate(self.ranges):
            position = torch.arange(0, T, 2**level, dtype=torch.float32, device=device)
            rows.append(torch.stack([position, *(torch.full_like(position, x) for x in (*limits, 2**level))], dim=1))
        return torch.cat(rows)

    @torch.no_grad()
    def normaliser(self, positives: Tensor) -> Tensor:
        """Return the running mean of positives, in training after `positives` (of all ranks) went into it."""
        if self.training:
            self.positives.lerp_(positives.to(self.positives).clamp(min=1), 1 - MOMENTUM)
        return self.positives.clone()


@torch.no_grad()
def targets(points_P4: Tensor, segments_BM2: Tensor, classes_BM: Tensor, C: int) -> tuple[Tensor, Tensor]:
    """Return what the points should say: classes (B, P, C), 0 or 1, and offsets (B, P, 2) in strides.

    A moment claims a point that lies within it, and within 1.5 strides of its centre, if the farther end is as far as
    the point's level looks. Of several the shortest gives the offsets, and the class with those as short. A moment of
    length 0 claims nothing. A point that nobody claims is background: all zero.

    Args:
        points_P4: as from `MomentHead.points`.
        segments_BM2: start and stop, in positions.
        classes_BM: Class of each moment, int; -1 marks padding.
        C: Number of classes.
    """
    segments_BM2 = F.pad(segments_BM2.float(), (0, 0, 0, 1))  # a moment of no class, so that there is a shortest one
    classes_BM = F.pad(classes_BM, (0, 1), value=-1)
    position_P1, least_P1, most_P1, stride_P1 = points_P4.float().T[..., None]
    start_B1M, stop_B1M = segments_BM2[:, None].unbind(-1)
    offsets_BPM2 = torch.stack([position_P1 - start_B1M, stop_B1M - position_P1], dim=-1)
    centre_B1M = (start_B1M + stop_B1M) / 2
    inside_BPM = torch.minimum(position_P1 - torch.maximum(centre_B1M - RADIUS * stride_P1, start_B1M),
                               torch.minimum(centre_B1M + RADIUS * stride_P1, stop_B1M) - position_P1) > 0
    farther_BPM = offsets_BPM2.amax(dim=-1)
    claimed_BPM = (inside_BPM & (farther_BPM >= least_P1) & (farther_BPM <= most_P1)
                   & (classes_BM >= 0)[:, None])
    length_BPM = (stop_B1M - start_B1M).expand_as(claimed_BPM).masked_fill(~claimed_BPM, math.inf)
    shortest_BP1, number_BP1 = length_BPM.min(dim=-1, keepdim=True)
    short_BPM = claimed_BPM & (length_BPM <= shortest_BP1 + SAME_LENGTH)
    class_BMC = F.one_hot(classes_BM.clamp(min=0).long(), C)
    with torch.autocast(points_P4.device.type, enabled=False):
        class_targets = (short_BPM.float() @ class_BMC.float()).clamp(max=1)
    number = number_BP1[..., None].expand(-1, -1, 1, 2)
    offset_targets = offsets_BPM2.gather(2, number).squeeze(2) / stride_P1
    return class_targets, offset_targets.masked_fill(~claimed_BPM.any(dim=-1, keepdim=True), 0.0)


def focal(logits: Tensor, classes: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the sigmoid focal loss, element by element, in float32.

    Args:
        classes: 0 or 1, of the logits' shape.

    Source: RetinaNet (arXiv 1708.02002), equation 5.
    """
    logits, classes = logits.float(), classes.float()
    with torch.autocast(logits.device.type, enabled=False):
        error = (torch.sigmoid(logits) - classes).abs()
        entropy = F.binary_cross_entropy_with_logits(logits, classes, reduction="none")
        return (alpha * classes + (1 - alpha) * (1 - classes)) * error**gamma * entropy


def diou(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1 - IoU + (distance of the centres / length of the hull)², element by element, in float32.

    Args:
        predicted: Distances from a point to start and stop, (…, 2), not negative.
        target: The true ones.

    Source: DIoU (arXiv 1911.08287), in one dimension.
    """
    predicted, target = predicted.float(), target.float()
    shared = torch.minimum(predicted, target).sum(-1)
    union = predicted.sum(-1) + target.sum(-1) - shared
    hull = torch.maximum(predicted, target).sum(-1)
    distance = (predicted.diff(dim=-1) - target.diff(dim=-1)).squeeze(-1) / 2
    return 1 - shared / union.clamp(min=TINY) + (distance / hull.clamp(min=TINY)) ** 2


def losses(outputs: Points, class_targets: Tensor, offset_targets: Tensor) -> Losses:
    """Return this rank's sums of both losses and its number of positives; padding counts nowhere.

    Divide both by `MomentHead.normaliser(positives of all ranks)` and add them, weight 1:1.
    """
    positive_BP = (class_targets > 0).any(dim=-1) & outputs.mask_BP
    of_classes = focal(outputs.logits_BPC, class_targets) * outputs.mask_BP[..., None]
    # elsewhere both segments are the same, so that no gradient is divided by nothing
    predicted, true = (x.float().masked_fill(~positive_BP[..., None], 1.0)
                       for x in (outputs.offsets_BP2, offset_targets))
    return Losses(of_classes.sum(), (diou(predicted, true) * positive_BP).sum(), positive_BP.sum())


@torch.no_grad()
def decode(logits_PC: Tensor, offsets_P2: Tensor, mask_P: Tensor, points_P4: Tensor, least_score: float = 0.001,
           most: int = 2000, shortest: float = 0.05) -> tuple[Tensor, Tensor, Tensor]:
    """Return one clip's candidates before suppression: segments (N, 2) in positions, scores (N,), classes (N,).

    Args:
        least_score: A candidate has more than this probability. What is NaN stays, so that it can be told.
        most: Candidates of a level, the best ones.
        shortest: A candidate is longer, in positions.
    """
    position_P, stride_P = points_P4[:, 0], points_P4[:, 3]
    reach_P2 = offsets_P2.float() * stride_P[:, None]
    segments_P2 = torch.stack([position_P - reach_P2[:, 0], position_P + reach_P2[:, 1]], dim=1)
    scores_PC = torch.sigmoid(logits_PC.float()).masked_fill(~mask_P[:, None], 0.0)
    found = []
    for stride in stride_P.unique():
        point, number = torch.nonzero(~(scores_PC <= least_score) & (stride_P == stride)[:, None], as_tuple=True)
        best = scores_PC[point, number].topk(min(most, len(point))).indices
        best = best[~(segments_P2[point[best]].diff(dim=1).squeeze(1) <= shortest)]
        found.append((segments_P2[point[best]], scores_PC[point[best], number[best]], number[best]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
