"""From a dataset to batches: which samples in which order on which rank, and the processes that read them.

A dataset here is indexed by (epoch, index): everything random about a sample is drawn from (seed, epoch, index), so
batches don't depend on the number of ranks or loader processes, nor on where a run was interrupted.
"""
from __future__ import annotations

import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class Samples(Dataset):
    """Base of the tasks' datasets: `read(index, rng)` with rng None at evaluation."""

    def __init__(self, length: int, seed: int, train: bool):
        self.length, self.seed, self.train = length, seed, train

    def __len__(self) -> int:
        return self.length

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        raise NotImplementedError

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        return self.read(index, np.random.default_rng((self.seed, epoch, index)) if self.train else None)


def training_batches(length: int, batch_size: int, epoch: int, seed: int, rank: int, world: int, first: int = 0) -> list:
    """This rank's batches of an epoch from batch `first` on: lists of (epoch, index).

    The global batches are the same for any number of ranks; a rank has a contiguous part of each, the last one smaller.
    """
    order = np.random.default_rng((seed, epoch)).permutation(length)
    batches = [order[at:at + batch_size] for at in range(0, length, batch_size)]
    if len(batches) > 1 and len(batches[-1]) < max(2, world):
        batches.pop()  # a rank without samples can't take part
    return [[(epoch, int(i)) for i in np.array_split(batch, world)[rank]] for batch in batches[first:]]


def evaluation_batches(length: int, batch_size: int, rank: int, world: int) -> list:
    """Every sample once, over all ranks: no padding, no repeats."""
    mine = range(rank, length, world)
    return [[(0, i) for i in mine[at:at + batch_size]] for at in range(0, len(mine), batch_size)]


def _deaf(worker: int) -> None:
    """A loader process inherits the job's signal handlers; only the job itself may ask to be requeued."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def loader(dataset: Samples, batches: list, collate, workers: int) -> DataLoader:
    """Batches in order, read ahead by `workers` processes (0: in this one)."""
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers,
                      pin_memory=torch.cuda.is_available(), worker_init_fn=_deaf, prefetch_factor=4 if workers else None)


def move(batch, device):
    """A batch's tensors on the device, copied while the device computes."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    return batch
