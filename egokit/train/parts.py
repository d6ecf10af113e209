"""This rank's part of a matrix of all texts with all videos, with exact gradients.

A contrastive loss compares every text of the global batch with every video. Each rank computes the rows of its own
texts and the columns of its own videos: b x B numbers of B x B, for b pairs of this rank and B of all.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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
        """Return function(matrix, *other matrices), which must compute each element by itself.

        In one process it is computed once, not for rows and columns.
        """
        rows_bB = function(self.rows_bB, *(other.rows_bB for other in others))
        if self.ranks == 1:
            return Part.whole(rows_bB)
        return Part(rows_bB, function(self.columns_bB, *(other.columns_bB for other in others)), self.first, self.ranks)
