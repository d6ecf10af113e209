"""Moving rows of the global batch to the ranks that want them, with gradients.

The ranks tell each other the numbers of the rows that they want. Rows that stay on their rank are written once, into
the result; the others go from their owner to who wants them, and to nobody else.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egokit.train import distributed


@dataclass(frozen=True)
class Moves:
    """What this rank takes from the others, and gives to them, for the rows that each rank wants.

    Attributes:
        own_b: for each wanted row, which of this rank's b rows it is; b where it is another rank's.
        places: of the rows that come from other ranks, in the order in which they arrive: their places in the result.
        take: number of rows that come from each rank.
        rows: this rank's rows that go to others, in the order in which they are sent.
        give: number of rows that go to each rank.
    """
    own_b: Tensor
    places: Tensor | None = None
    take: tuple[int, ...] = ()
    rows: Tensor | None = None
    give: tuple[int, ...] = ()


def plan_moves(counts: list[int], *indices_b: Tensor) -> list[Moves]:
    """Exchange which rows each rank wants, once for several tensors or indices.

    Of a GPU's tensors this waits for the GPU, in several processes: how much each rank sends has to be known.

    Args:
        counts: every rank's b.
        indices_b: for each of this rank's b places, the global number of the wanted row; a row may be wanted often.

    Returns:
        For each index the moves, for `move_rows`.
    """
    if not distributed.is_on():
        return [Moves(index_b) for index_b in indices_b]
    device, rank, ranks = indices_b[0].device, distributed.rank(), len(counts)
    wanted = distributed.gather(torch.stack(indices_b, 1), counts).cpu()
    ends = torch.tensor(counts).cumsum(0)
    first, b = int(ends[rank]) - counts[rank], counts[rank]
    wanter_B = torch.repeat_interleave(torch.arange(ranks), torch.tensor(counts))
    moves = []
    for wanted_B in wanted.T.contiguous():
        owner_B = torch.searchsorted(ends, wanted_B, right=True)
        sent = (owner_B == rank) & (wanter_B != rank)
        wanted_b, owner_b = wanted_B[first:first + b], owner_B[first:first + b]
        foreign = (owner_b != rank).nonzero()[:, 0]
        places = foreign[torch.argsort(owner_b[foreign], stable=True)]  # rows arrive sorted by their owners
        moves.append(Moves(
            torch.where(owner_b == rank, wanted_b - first, b).to(device, non_blocking=True),
            places.to(device, non_blocking=True), _number_of_each(owner_b[places], ranks),
            (wanted_B[sent] - first).to(device, non_blocking=True), _number_of_each(wanter_B[sent], ranks)))
    return moves


def _number_of_each(numbers: Tensor, ranks: int) -> tuple[int, ...]:
    return tuple(torch.bincount(numbers, minlength=ranks).tolist())


def move_rows(x: Tensor, moves: Moves) -> Tensor:
    """Return the rows that this rank wants. In the backward pass, gradients go back to the owners of the rows.

    A row's gradients are summed in a fixed order: first those of its own rank, then by the number of the rank.

    Args:
        x: this rank's rows (b, …).

    Returns:
        (b, …): the wanted rows, in the order of the index from which the moves were planned.
    """
    return _Move.apply(x, moves) if distributed.is_on() else x[moves.own_b]


def gather_rows(x: Tensor, index_b: Tensor, counts: list[int]) -> Tensor:
    """Return the rows of the global tensor that `index_b` names; see `plan_moves` and `move_rows`.

    Args:
        x: this rank's rows (b, …) of the global tensor (B, …).
        index_b: for each of this rank's b places, the global number of the row that is wanted there.
        counts: every rank's b.

    Returns:
        (b, …)
    """
    return move_rows(x, plan_moves(counts, index_b)[0])


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, moves: Moves) -> Tensor:
        context.moves = moves
        arrived = distributed.exchange(x.index_select(0, moves.rows), moves.give, moves.take)
        # where another rank's row belongs some row is written first: one pass over the result instead of two
        out = x.index_select(0, moves.own_b.clamp_max(len(x) - 1))
        return out.index_copy_(0, moves.places, arrived)

    @staticmethod
    def backward(context, grad: Tensor):
        moves = context.moves
        returned = distributed.exchange(grad.index_select(0, moves.places), moves.take, moves.give)
        total = grad.new_zeros((len(grad) + 1, *grad.shape[1:]))  # the last row takes what belongs to other ranks
        _add_rows(total, moves.own_b, grad)
        _add_rows(total, moves.rows, returned)
        return total[:-1], None


def _add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """Add rows to those that the index names, in a fixed order."""
    if total.device.type == "cuda":
        total.index_put_((index,), rows, accumulate=True)  # it sorts; index_add_ adds in any order on GPUs
    else:
        total.index_add_(0, index, rows)
