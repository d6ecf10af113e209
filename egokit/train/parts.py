"""This rank's part of a matrix of all texts with all videos, with exact gradients.

A contrastive loss compares every text of the global batch with every video. Each rank computes the rows of its own
texts and the columns of its own videos: memory and arithmetic are in b x B, not in B x B.

Shapes: b pairs of this rank, B of all, W ranks, E embedding, M the longest share. N = W M: all pairs, where each rank's
are padded to M.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from egokit.model.dual import similarity, unit_vectors
from egokit.train import distributed

NO_MATRIX = ("a part of the global batch's matrix is no tensor; expected its tensors, .rows_bB (this rank's texts with "
             "all videos) or .columns_bB (this rank's videos with all texts), or .map(function): write a loss on a "
             "whole matrix anew with them (docs/extending.md)")


@dataclass(frozen=True)
class Part:
    """This rank's part of a matrix of all texts (rows) with all videos (columns).

    Attributes:
        rows_bB: this rank's texts with all videos.
        columns_bB: this rank's videos with all texts: its columns, transposed.
        first: global number of this rank's first pair; its pair i stands in column `first` + i of both.
        ranks: number of ranks; with one, columns_bB is rows_bB transposed.
    """
    rows_bB: Tensor
    columns_bB: Tensor
    first: int = 0
    ranks: int = 1

    @classmethod
    def whole(cls, matrix_TV: Tensor) -> Part:
        """Return the part of one process: all texts with all videos, T x V."""
        return cls(matrix_TV, matrix_TV.T)

    @classmethod
    def of(cls, matrix: Part | Tensor) -> Part:
        """Return a part as it is, and a whole matrix as the part of one process."""
        return matrix if isinstance(matrix, cls) else cls.whole(matrix)

    @property
    def device(self) -> torch.device:
        return self.rows_bB.device

    def map(self, function: Callable[..., Tensor], *others: Part) -> Part:
        """Return the part of function(matrix, *other matrices), which must compute each element by itself.

        In one process it is computed once, for rows and columns together.

        Raises:
            ValueError: another matrix is not a part of the same pairs, such as a whole matrix.
        """
        self.expect_same_pairs(*others)
        rows_bB = function(self.rows_bB, *(other.rows_bB for other in others))
        if self.ranks == 1:
            return Part.whole(rows_bB)
        return Part(rows_bB, function(self.columns_bB, *(other.columns_bB for other in others)), self.first, self.ranks)

    def _refuse(self, *_):
        """Raise TypeError: a loss made for a whole matrix calculates with the part itself."""
        raise TypeError(NO_MATRIX)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __neg__ = __invert__ = __matmul__ = __getitem__ = _refuse

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise TypeError(NO_MATRIX)

    def __getattr__(self, name: str):
        raise AttributeError(f"no attribute {name!r}: {NO_MATRIX}")

    def expect_same_pairs(self, *others: Part) -> None:
        """Raise ValueError if another part is not of the same pairs, such as a whole matrix beside a rank's part."""
        for other in others:
            if (other.first, other.ranks) != (self.first, self.ranks):
                raise ValueError(f"expected parts of the same pairs: one begins with pair {self.first} and is of "
                                 f"{self.ranks} ranks, one with pair {other.first} and is of {other.ranks}; a whole "
                                 "matrix counts as one rank's: give each loss parts alone, or whole matrices alone")

    def own_pairs(self) -> Tensor:
        """Return the elements (b,) of this rank's pairs: each text with its own video."""
        return self.rows_bB.diagonal(self.first)

    def is_own_pair(self) -> Part:
        """Return where a text meets its own video: a part of bool, true on the diagonal of the whole matrix."""
        own_bB = torch.zeros_like(self.rows_bB, dtype=torch.bool)
        own_bB.diagonal(self.first).fill_(True)
        return Part.whole(own_bB) if self.ranks == 1 else Part(own_bB, own_bB, self.first, self.ranks)

    def mean_of_texts(self, values_b: Tensor) -> Tensor:
        """Return this rank's share of the mean over all texts, times the number of ranks (see `Task.loss`).

        Args:
            values_b: a value for each of this rank's texts.
        """
        return values_b.mean() * (len(values_b) * self.ranks / self.columns_bB.shape[1])

    def mean_of_videos(self, values_b: Tensor) -> Tensor:
        """Return this rank's share of the mean over all videos, times the number of ranks, as `mean_of_texts`."""
        return values_b.mean() * (len(values_b) * self.ranks / self.rows_bB.shape[1])


def similarity_part(text_bE: Tensor, video_bE: Tensor, counts: list[int] | None = None) -> Part:
    """Return this rank's part of the cosines of all texts with all videos, in float32 under autocast, too.

    Gradients are exact: those of rows and of columns are exchanged between ranks, so that each rank knows all that is
    asked of its own texts and videos. Embeddings are gathered twice, videos in the forward pass and texts in the
    backward pass; gradients of embeddings are not sent.

    Args:
        text_bE, video_bE: embeddings of this rank's pairs; b may differ between ranks.
        counts: every rank's b, if known; else the ranks exchange it.
    """
    if not distributed.is_on():
        return Part.whole(similarity(text_bE, video_bE))
    counts = counts or distributed.sizes(len(text_bE), text_bE.device)
    with torch.autocast(text_bE.device.type, enabled=False):
        parts = _DotProducts.apply(unit_vectors(text_bE), unit_vectors(video_bE), counts)
    return Part(*parts, sum(counts[:distributed.rank()]), len(counts))


class _DotProducts(torch.autograd.Function):
    """Rows and columns, (b, B) each, of the dot products of all ranks' texts with all ranks' videos."""

    @staticmethod
    def forward(context, text_bE: Tensor, video_bE: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        video_NE = distributed.gather_padded(video_bE, counts).flatten(0, 1)
        context.counts = counts
        context.save_for_backward(text_bE, video_NE)
        rows_bN = text_bE @ video_NE.T
        columns_bN, = _transposed(counts, rows_bN)
        return _unpad(rows_bN, counts), _unpad(columns_bN, counts)

    @staticmethod
    @once_differentiable
    def backward(context, rows_grad_bB: Tensor, columns_grad_bB: Tensor):
        counts, (text_bE, video_NE) = context.counts, context.saved_tensors
        rows_grad_bN, columns_grad_bN = _pad(rows_grad_bB, counts), _pad(columns_grad_bB, counts)
        # what the ranks of the other side ask of the same elements
        more_columns_bN, more_rows_bN = _transposed(counts, rows_grad_bN, columns_grad_bN)
        text_grad_bE = video_grad_bE = None
        with torch.autocast(text_bE.device.type, enabled=False):
            if context.needs_input_grad[0]:
                text_grad_bE = (rows_grad_bN + more_rows_bN) @ video_NE
            if context.needs_input_grad[1]:
                text_NE = distributed.gather_padded(text_bE, counts).flatten(0, 1)
                video_grad_bE = (columns_grad_bN + more_columns_bN) @ text_NE
        return text_grad_bE, video_grad_bE, None


def _transposed(counts: list[int], *rows_bN: Tensor) -> Tensor:
    """Return, for rows of several matrices, this rank's rows of the transposed matrices, (K, b, N).

    From columns it makes rows, too. Each rank sends each other rank the block of M x M numbers that both know of.
    """
    b, W, M = len(rows_bN[0]), len(counts), max(counts)
    blocks_WKMM = F.pad(torch.stack(rows_bN).unflatten(2, (W, M)).permute(2, 0, 3, 1), (0, M - b))
    return distributed.swap(blocks_WKMM)[:, :, :b].permute(1, 2, 0, 3).flatten(2)


def _valid(counts: list[int], device: torch.device) -> Tensor:
    """Return which of N padded columns are those of B pairs, (B,)."""
    M = max(counts)
    return torch.cat([torch.arange(r * M, r * M + count) for r, count in enumerate(counts)]).to(device)


def _unpad(x_bN: Tensor, counts: list[int]) -> Tensor:
    return x_bN if min(counts) == max(counts) else x_bN[:, _valid(counts, x_bN.device)]


def _pad(x_bB: Tensor, counts: list[int]) -> Tensor:
    if min(counts) == max(counts):
        return x_bB
    return x_bB.new_zeros(len(x_bB), len(counts) * max(counts)).index_copy_(1, _valid(counts, x_bB.device), x_bB)
