"""From a data set to batches: the order of samples on each rank, read ahead by workers.

A data set is indexed by (epoch, index): all that is random about a sample is drawn from (seed, epoch, index), so
batches don't depend on the number of ranks or workers, nor on where a run was interrupted.
"""
import collections
import functools
import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from egokit.data.video import open_video
from egokit.data.video.timeline import VideoError, advice
from egokit.data.watchdog import Watchdog, iterate

worker_pids: set[int] = set()  # of the processes that read ahead for this one
READ_AHEAD = 4  # batches that each worker reads ahead
TRIES = 8  # replacement samples to try before an unreadable sample becomes an error


class Samples(Dataset):
    """Base class of the tasks' data sets, indexed by (epoch, index).

    A subclass implements `read`. If `tolerant` is set (training with data.max_bad_fraction above 0), a sample that
    can't be read is reported in the item's "bad", and another one, drawn from (seed, epoch, index), is read instead.

    Args:
        length: number of samples.
        seed: seed of everything that is random about a sample in training (config.seed).
        train: True if samples are random (training), False if they are always the same (evaluation).
    """
    tolerant = False

    def __init__(self, length: int, seed: int, train: bool):
        self.length, self.seed, self.train = length, seed, train

    def __len__(self) -> int:
        return self.length

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        """Return one sample: what the task's `collate` turns into a batch.

        Args:
            index: number of the sample, 0 to length - 1.
            rng: None in evaluation; in training, a Generator seeded with (seed, epoch, index).

        Raises:
            VideoError, FileNotFoundError: the sample can't be read; a tolerant data set replaces it.
        """
        raise NotImplementedError

    def check_files(self) -> None:
        """Look for the files that the samples need, once before training, on one rank for all.

        Every rank would otherwise ask the same of a file system that they share. A file that isn't there raises an
        error, which every rank then raises.
        """

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, index = key
        if not self.train:
            return self.read(index, None)
        bad: list[str] = []
        replacements = np.random.default_rng((self.seed, epoch, index, TRIES)).integers(self.length, size=TRIES)
        for candidate in (index, *replacements.tolist()):
            try:
                item = self.read(candidate, np.random.default_rng((self.seed, epoch, candidate)))
                return item | {"bad": bad} if bad else item
            except (VideoError, FileNotFoundError) as error:
                if not self.tolerant or len(bad) == TRIES:
                    raise
                bad.append(str(error))


def steps_in_epoch(length: int, batch_size: int, world: int) -> int:
    """Return the number of global batches in an epoch.

    The last, smaller batch is left out if it has fewer samples than ranks, or a single sample (unless it is the epoch's
    only batch).
    """
    whole, rest = divmod(length, batch_size)
    return whole + (rest >= (max(2, world) if whole else world))


def training_batches(length: int, batch_size: int, epoch: int, seed: int, rank: int, world: int,
                     first: int = 0) -> Iterator[list]:
    """Yield this rank's batches of an epoch, as lists of (epoch, index).

    The global batches are the same for any number of ranks, except for a last one that is left out. A rank gets a
    contiguous part of each; the last batch of an epoch may be smaller.

    Args:
        length: number of samples in the data set.
        batch_size: samples in a global batch, over all ranks.
        first: the global batch to begin with, when an interrupted epoch is resumed.
    """
    order = np.random.default_rng((seed, epoch)).permutation(length)
    for at in range(first, steps_in_epoch(length, batch_size, world)):
        batch = order[at * batch_size:(at + 1) * batch_size]
        yield [(epoch, index) for index in np.array_split(batch, world)[rank].tolist()]


def evaluation_batches(length: int, batch_size: int, rank: int, world: int) -> list:
    """Return this rank's batches; over all ranks, every sample comes once, without padding.

    Args:
        length: number of samples in the data set.
        batch_size: samples in a batch of one rank.

    Returns:
        A list of batches, each a list of (0, index).
    """
    indices = range(rank, length, world)
    return [[(0, i) for i in indices[at:at + batch_size]] for at in range(0, len(indices), batch_size)]


def _collated(collate, items: list[dict]) -> dict:
    """Return a task's batch; the messages about unreadable samples become its "bad"."""
    bad = [message for item in items for message in item.pop("bad", ())]
    batch = collate(items)
    return batch | {"bad": bad} if bad else batch


def build_loader(dataset: Samples, batches: Iterable[list], collate, workers: int, timeout: float = 120.0):
    """Yield collated batches in order, read ahead by worker processes.

    If a worker hangs or crashes on a file, a VideoError names the file. If the data set is tolerant, the file is marked
    unreadable instead, and new workers start again at the batch that was due.

    Args:
        dataset: the samples.
        batches: lists of keys (epoch, index), as from `training_batches` or `evaluation_batches`.
        collate: turns a list of samples into a batch (a dict).
        workers: number of worker processes; 0 reads in this process, without a timeout.
        timeout: seconds that a worker may take to open and read one file (data.read_timeout).

    Yields:
        What `collate` returns, with "bad", a list of messages, added if samples were replaced. With a GPU, tensors are
        in pinned memory.

    Raises:
        VideoError, FileNotFoundError: a sample can't be read and may not be replaced.
    """
    options = {"collate_fn": functools.partial(_collated, collate), "pin_memory": torch.cuda.is_available()}
    if not workers:
        yield from DataLoader(dataset, batch_sampler=batches, **options)
        return
    batches, pending = iter(batches), collections.deque()  # pending: handed to the workers, and not yet yielded

    def handed_out(again: list):
        for batch in itertools.chain(again, batches):
            pending.append(batch)
            yield batch
    while True:
        watchdog, again = Watchdog(dataset, workers, timeout), list(pending)
        pending.clear()
        iterator = iterate(watchdog, batch_sampler=handed_out(again), num_workers=workers,
                            worker_init_fn=watchdog.start, prefetch_factor=READ_AHEAD, **options)
        pids = {worker.pid for worker in iterator._workers}
        worker_pids.update(pids)
        threading.Thread(target=watchdog.watch, name="egokit reader watch", daemon=True).start()
        try:
            while watchdog.lost is None:
                with watchdog.waiting():
                    batch = next(iterator, None)
                if watchdog.lost is None:
                    if batch is None:
                        return
                    pending.popleft()
                    yield batch
        except VideoError:
            raise
        except (RuntimeError, OSError, EOFError) as error:  # what PyTorch raises for a worker that is gone
            watchdog.find_crashed(iterator._workers)
            codes = {worker.exitcode for worker in iterator._workers}  # None of one that PyTorch has reaped
            if watchdog.lost is None and (-signal.SIGKILL in codes or "signal: Killed" in str(error)):
                raise RuntimeError("loader worker Killed: its process ended without a word (signal 9: out of memory?). "
                                   "Set data.workers lower, or launch.mem_gb_per_task higher") from None
            if watchdog.lost is None:
                raise
        finally:
            watchdog.ended.set()
            worker_pids.difference_update(pids)
        if not dataset.tolerant:
            raise VideoError(f"{watchdog.lost}: {watchdog.reason}; {advice(watchdog.lost)}, "
                             "or allow bad files with data.max_bad_fraction")
        open_video.unreadable.add(watchdog.lost)
        del iterator  # ends its workers


def stack(items: list[dict], tokenize: Callable[[list[str]], dict]) -> dict:
    """Return a batch of samples: what a task's `collate` says of it."""
    batch: dict = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if key == "text":
            batch |= {"tokens": tokenize(values), "text": values}
        elif isinstance(values[0], (torch.Tensor, np.ndarray)):
            batch[key] = torch.stack([torch.as_tensor(value) for value in values])
        else:
            batch[key] = torch.tensor(values) if isinstance(values[0], (int, float)) else values
    return batch


def move_to_device(batch, device):
    """Return a batch with its tensors on the device, copied while the device computes."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move_to_device(value, device) for key, value in batch.items()}
    return batch


def padded(parts: list[np.ndarray], value: float = 0.0, least: int = 0) -> torch.Tensor:
    """Return arrays of different lengths as one tensor, (B, longest, …), which is `least` long at least."""
    more = [torch.empty((least, *parts[0].shape[1:]), dtype=torch.from_numpy(parts[0]).dtype)] if least else []
    parts_and_more = [*map(torch.from_numpy, parts), *more]
    whole = torch.nn.utils.rnn.pad_sequence(parts_and_more, batch_first=True, padding_value=value)
    return whole[:len(parts)]


def mask_of(lengths: list[int], longest: int) -> torch.Tensor:
    """Return (B, longest), True where a row is real."""
    return torch.arange(longest) < torch.tensor(lengths)[:, None]
