"""From a dataset to batches: which samples in which order on which rank, and the processes that read them.

A dataset here is indexed by (epoch, index): everything random about a sample is drawn from (seed, epoch, index), so
batches don't depend on the number of ranks or loader processes, nor on where a run was interrupted.
"""
from __future__ import annotations

import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from egokit.frames import VideoError

TRIES = 8  # other samples, before one that can't be read is an error after all


class Samples(Dataset):
    """Base of the tasks' datasets: `read(index, rng)` with rng None at evaluation.

    Where `tolerant` is set (training with data.max_bad_fraction above 0), a sample that can't be read is reported in the
    item's "bad", and another one, drawn from (seed, epoch, index), is read in its place.
    """
    tolerant = False

    def __init__(self, length: int, seed: int, train: bool):
        self.length, self.seed, self.train = length, seed, train

    def __len__(self) -> int:
        return self.length

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        raise NotImplementedError

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        if not self.train:
            return self.read(index, None)
        others = np.random.default_rng((self.seed, epoch, index, TRIES)).integers(self.length, size=TRIES).tolist()
        bad: list[str] = []
        while True:
            one = others[len(bad) - 1] if bad else index
            try:
                item = self.read(one, np.random.default_rng((self.seed, epoch, one)))
                return item | {"bad": bad} if bad else item
            except (VideoError, FileNotFoundError) as error:
                if not self.tolerant or len(bad) == TRIES:
                    raise
                bad.append(str(error))


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


class _Collate:
    """A task's collate; what could not be read goes beside the batch, as its "bad"."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, items: list[dict]) -> dict:
        bad = [said for item in items for said in item.pop("bad", ())]
        batch = self.collate(items)
        return batch | {"bad": bad} if bad else batch


def loader(dataset: Samples, batches: list, collate, workers: int) -> DataLoader:
    """Batches in order, read ahead by `workers` processes (0: in this one)."""
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_Collate(collate), num_workers=workers,
                      pin_memory=torch.cuda.is_available(), worker_init_fn=_deaf, prefetch_factor=4 if workers else None)


def move(batch, device):
    """A batch's tensors on the device, copied while the device computes."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    return batch
