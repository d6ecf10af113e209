"""One rank's part of a step among 8, 64 or 512 ranks, played by one process: before, and now.

This process is rank 0. What the other ranks would send is drawn, and the time that takes is left out; bytes are what a
rank receives from others by the plainest algorithm. "Before" is whole_batch.py, "now" is egokit's code.
"""
import contextlib
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import whole_batch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from egokit.data.egoclip_table import NOUNS, VERBS
from egokit.tasks import losses
from egokit.train import distributed, moving
from egokit.train.parts import Part, similarity_part

E, S, D = 4096, 785, 768  # size of an embedding; tokens of a clip of 4 frames, and their width
SHAPES = ((256, 8), (256, 64), (2048, 64), (16384, 512))  # samples of a batch, ranks; a sample is two rows
MEASURED_BEFORE = 4096    # most rows of a batch for which "before" is run here: at 32,768 it would need 31 GB


class Played:
    """Stands in for torch.distributed in rank 0 of `ranks`: what others would send is drawn.

    Attributes:
        rows: of the global batch.
        received: bytes that came from other ranks.
        partners: most ranks from which one exchange of rows brought something.
        seconds: CPU time that drawing took.
    """
    ReduceOp = dist.ReduceOp

    def __init__(self, ranks: int, rows: int):
        self.ranks, self.rows, self.received, self.partners, self.seconds = ranks, rows, 0, 0, 0.0

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return self.ranks

    def all_gather(self, parts: list[Tensor], x: Tensor) -> None:
        parts[0].copy_(x)
        for number, part in enumerate(parts[1:], 1):
            self.draw(part, number * len(x))

    def all_gather_into_tensor(self, out: Tensor, x: Tensor) -> None:
        out = out.view(self.ranks * len(x), *x.shape[1:])
        out[:len(x)].copy_(x)
        self.draw(out[len(x):], len(x))

    def all_to_all_single(self, out: Tensor, x: Tensor, output_split_sizes: list[int] | None = None,
                          input_split_sizes: list[int] | None = None) -> None:
        own = output_split_sizes[0] if output_split_sizes else len(out) // self.ranks
        out[:own].copy_(x[:own])
        self.draw(out[own:], own)
        if output_split_sizes:
            self.partners = max(self.partners, sum(count > 0 for count in output_split_sizes[1:]))

    def all_reduce(self, x: Tensor) -> None:
        self.received += 2 * x.nbytes * (self.ranks - 1) // self.ranks  # others' gradients count as 0

    def draw(self, out: Tensor, first: int) -> None:
        """Fill what comes from others; its first row is row `first` of all.

        Classes are rare, a quarter of the wanted rows is another than the own, and numbers are as those of unit vectors
        or their cosines.
        """
        self.received += out.nbytes
        began = time.process_time()
        if out.shape[-1] in (VERBS, NOUNS):
            out.bernoulli_(1 / out.shape[-1])
        elif out.dtype == torch.int64:
            own = torch.arange(first, first + len(out), device=out.device).view(-1, *[1] * (out.dim() - 1))
            other = torch.randint_like(out, self.rows)
            out.copy_(torch.where(torch.rand(out.shape, device=out.device) < 0.25, other, own))
        else:
            out.normal_(std=E ** -0.5)
        self.seconds += time.process_time() - began


@contextlib.contextmanager
def playing(ranks: int, rows: int):
    """Let both codes talk to drawn ranks in the block."""
    played = Played(ranks, rows)
    distributed.dist = whole_batch.dist = played
    try:
        yield played
    finally:
        distributed.dist = whole_batch.dist = dist


class Cost(NamedTuple):
    """What a computation costs one rank."""
    seconds: float   # of one CPU core
    received: float  # bytes
    peak: float      # bytes that it holds beside its inputs
    flop: float      # of its matrix products

    def __str__(self) -> str:
        return (f"{self.seconds:10.3f} s {self.received / 1e6:9.1f} MB received {self.peak / 1e6:9.1f} MB held "
                f"{self.flop / 1e12:8.4f} TFLOP")


def cost(played: Played, function, *arguments):
    """Return (result, Cost) of one call."""
    received, drawn = played.received, played.seconds
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, \
            FlopCounterMode(display=False) as counter:
        began = time.process_time()
        result = function(*arguments)
        seconds = time.process_time() - began - (played.seconds - drawn)
    total = peak = 0
    allocations = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return result, Cost(seconds, played.received - received, peak, counter.get_total_flops())


def quickest(repeats: int, function, *arguments) -> float:
    """Return the CPU seconds of the quickest of several calls, without the first."""
    taken = []
    for _ in range(repeats + 1):
        began = time.process_time()
        function(*arguments)
        taken.append(time.process_time() - began)
    return min(taken[1:])


def rows_of(b: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw texts and videos (b, E) that need gradients, and classes (b, C) of bytes."""
    generator = torch.Generator().manual_seed(seed)
    text, video = (torch.randn(b, E, generator=generator).requires_grad_(True) for _ in range(2))
    verbs, nouns = (torch.rand(b, n, generator=generator).lt(1 / n).byte() for n in (VERBS, NOUNS))
    return text, video, verbs, nouns


def loss_before(text, video, verbs, nouns, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Compute EgoNCE and its gradient with the whole matrix; return similarity and positives."""
    loss, similarity, positives = whole_batch.loss(text, video, verbs.float(), nouns.float(), counts)
    loss.backward()
    return similarity.detach(), positives


def loss_now(text, video, verbs, nouns, counts: list[int]) -> tuple[Part, Part]:
    """Compute this rank's share of EgoNCE and its gradient; return the parts."""
    similarity = similarity_part(text, video, counts)
    first = sum(counts[:distributed.rank()])
    rows = losses.positives(verbs, nouns, *(distributed.gather(x, counts) for x in (verbs, nouns)), first)
    positives = Part(rows, rows, first, len(counts))
    losses.egonce(similarity, positives).backward()
    return similarity.map(Tensor.detach), positives


def draw_before(similarity: Tensor, positives: Tensor) -> None:
    whole_batch.draw_pairs(similarity, positives, 0.05, torch.Generator().manual_seed(0))


def draw_now(similarity: Part, positives: Part) -> None:
    losses.draw_pairs(similarity, positives, 0.05, 0, 0)


def move_before(x: Tensor, index_B: Tensor, counts: list[int]) -> None:
    whole_batch.gather_rows(x, index_B, counts).sum().backward()


def move_now(x: Tensor, index_b: Tensor, counts: list[int]) -> None:
    moving.gather_rows(x, index_b, counts).sum().backward()


def wanted_rows(B: int) -> Tensor:
    """Draw the global rows that all ranks want: a quarter of them another than the own."""
    index, generator = torch.arange(B), torch.Generator().manual_seed(0)
    moved = torch.randperm(B, generator=generator)[:B // 4]
    index[moved] = torch.randint(B, (len(moved),), generator=generator)
    return index


def one_rank() -> None:
    """Print what rank 0's part of a step costs, before and now, and the draw's seconds."""
    torch.manual_seed(0)
    print("one rank's part on one core, the quickest of several draws, one call of the others")
    before = {}
    for samples, ranks in SHAPES:
        B, b, counts = 2 * samples, 2 * samples // ranks, [2 * samples // ranks] * ranks
        print(f" {samples:,} samples on {ranks} ranks: {B:,} rows, {b} of a rank")
        with playing(ranks, B) as played:
            if B <= MEASURED_BEFORE:
                whole, before[B] = cost(played, loss_before, *rows_of(b), counts)
                print(f"  EgoNCE before {before[B]}")
                print(f"  draw before   {quickest(2, draw_before, *whole):10.4f} s", flush=True)
            else:
                print(f"  EgoNCE before {extrapolated(before, B)} (extrapolated)")
            parts, now = cost(played, loss_now, *rows_of(b), counts)
            print(f"  EgoNCE now    {now}\n  draw now      {quickest(5, draw_now, *parts):10.4f} s", flush=True)
            x, index_B = torch.zeros(b, S, D, requires_grad=True), wanted_rows(B)
            print(f"  rows before   {cost(played, move_before, x, index_B, counts)[1]}")
            x.grad = None
            now = cost(played, move_now, x, index_B[:b], counts)[1]
            print(f"  rows now      {now} from {played.partners} ranks at most", flush=True)


def extrapolated(measured: dict[int, Cost], B: int) -> Cost:
    """Extrapolate what grows with B x B and with B from the smallest and the largest measured batch."""
    small, large = min(measured), max(measured)
    columns = np.array([[small ** 2, small], [large ** 2, large]], float)
    return Cost(*(float(np.linalg.solve(columns, [one, other]) @ [B ** 2, B])
                  for one, other in zip(measured[small], measured[large], strict=True)))
