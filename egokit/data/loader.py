"""From a dataset to batches: which samples in which order on which rank, and the processes that read them.

A dataset here is indexed by (epoch, index): everything random about a sample is drawn from (seed, epoch, index), so
batches don't depend on the number of ranks or loader processes, nor on where a run was interrupted.
"""
from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from egokit.data.video import open_video
from egokit.data.video.open_video import VideoError

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
        bad: list[str] = []
        one = index
        while True:
            try:
                item = self.read(one, np.random.default_rng((self.seed, epoch, one)))
                return item | {"bad": bad} if bad else item
            except (VideoError, FileNotFoundError) as error:
                if not self.tolerant or len(bad) == TRIES:
                    raise
                others = np.random.default_rng((self.seed, epoch, index, TRIES)).integers(self.length, size=TRIES)
                one = int(others[len(bad)])
                bad.append(str(error))


def steps_in_epoch(length: int, batch_size: int, world: int) -> int:
    """Global batches of an epoch. A last one that would leave a rank without samples is left out."""
    whole, rest = divmod(length, batch_size)
    return whole + (rest >= (max(2, world) if whole else world))


def training_batches(length: int, batch_size: int, epoch: int, seed: int, rank: int, world: int, first: int = 0) -> Iterator[list]:
    """This rank's batches of an epoch from batch `first` on: lists of (epoch, index).

    The global batches are the same for any number of ranks; a rank has a contiguous part of each, the last one smaller.
    """
    order = np.random.default_rng((seed, epoch)).permutation(length)
    for at in range(first, steps_in_epoch(length, batch_size, world)):
        batch = order[at * batch_size:(at + 1) * batch_size]
        yield [(epoch, index) for index in np.array_split(batch, world)[rank].tolist()]


def evaluation_batches(length: int, batch_size: int, rank: int, world: int) -> list:
    """Every sample once, over all ranks: no padding, no repeats."""
    mine = range(rank, length, world)
    return [[(0, i) for i in mine[at:at + batch_size]] for at in range(0, len(mine), batch_size)]


class _Collate:
    """A task's collate; what could not be read goes beside the batch, as its "bad"."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, items: list[dict]) -> dict:
        bad = [said for item in items for said in item.pop("bad", ())]
        batch = self.collate(items)
        return batch | {"bad": bad} if bad else batch


class _Watch:
    """What every loader process is reading, and since when, in memory shared with the process that waits for it.

    A decoder can hang in native code with the interpreter's lock held. Then its process answers nobody, and whoever waits
    for a batch of it may wait inside PyTorch, beyond any time-out: so a thread of the waiting process looks, and kills.
    """

    NAME = 1024  # bytes of a path

    def __init__(self, workers: int, limit: float):
        self.limit = limit
        self.since = multiprocessing.RawArray("d", workers)
        self.processes = multiprocessing.RawArray("i", workers)
        self.paths = multiprocessing.RawArray("c", workers * self.NAME)
        self.avoided = set(open_video.unreadable)
        self.lost, self.why = None, ""  # the file at which a loader process was lost, and how
        self.ended, self.turn, self.awaited = threading.Event(), threading.Lock(), False

    def start(self, worker: int) -> None:
        """Runs first in a loader process."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # inherited from the job, which alone may ask to be requeued
        open_video.unreadable |= self.avoided
        self.processes[worker] = os.getpid()
        open_video.on_open = functools.partial(self.notice, worker)

    def notice(self, worker: int, path: str) -> None:
        name = path.encode()[-self.NAME + 1:]
        self.paths[worker * self.NAME:worker * self.NAME + len(name) + 1] = name + b"\0"
        self.since[worker] = time.monotonic()

    def path(self, worker: int) -> str:
        return bytes(self.paths[worker * self.NAME:(worker + 1) * self.NAME]).split(b"\0", 1)[0].decode()

    def done(self) -> None:
        """Nothing is being read by this loader process."""
        self.since[torch.utils.data.get_worker_info().id] = 0.0

    def look(self) -> None:
        """A thread's work: kill the first loader process that reads one file for longer than the limit."""
        while not self.ended.wait(min(1.0, self.limit / 4)):
            with self.turn:
                for worker, since in enumerate(self.since):
                    if self.awaited and since and time.monotonic() - since > self.limit:
                        self.lost = self.path(worker)
                        self.why = f"no answer from its reader within {self.limit:g} s (data.read_timeout)"
                        os.kill(self.processes[worker], signal.SIGKILL)
                        with contextlib.suppress(ChildProcessError):  # PyTorch has seen it
                            os.waitid(os.P_PID, self.processes[worker], os.WEXITED | os.WNOWAIT)
                        return

    def look_for_dead(self, processes: list) -> None:
        """After an error of PyTorch: did a decoder end its own process? One that the kernel killed had no memory left."""
        deadline = time.monotonic() + 5
        while all(process.exitcode is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)  # its connection breaks before it is gone
        with self.turn:
            for worker, process in enumerate(processes):
                code = process.exitcode
                if self.lost is None and self.since[worker] and code not in (None, 0, -signal.SIGKILL):
                    self.lost = self.path(worker)
                    self.why = f"its reader ended the loader process ({signal.strsignal(-code) if code < 0 else f'exit code {code}'})"

    @contextlib.contextmanager
    def waiting(self):
        """Around the wait for a batch: only here may the death of a loader process raise."""
        before = signal.getsignal(signal.SIGCHLD)
        main = _raise_for_dead is not None and threading.current_thread() is threading.main_thread()
        self.awaited = True
        try:
            if main:
                signal.signal(signal.SIGCHLD, _raise_for_dead)
                _raise_for_dead(signal.SIGCHLD, None)  # one may have died since the last batch
            yield
        finally:
            if main:
                signal.signal(signal.SIGCHLD, before)
            with self.turn:
                self.awaited = False


_raise_for_dead = None  # PyTorch's handler: raises in the main thread when a loader process dies, in the middle of a step, too


def _started(*args, **options):
    """Iterator of a DataLoader whose handler is not left in place."""
    global _raise_for_dead
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(DataLoader(*args, **options))
    if signal.getsignal(signal.SIGCHLD) is not before:
        _raise_for_dead = signal.signal(signal.SIGCHLD, before)
    return iterator


class _Watched(Dataset):
    """A dataset that says when it has finished with a sample."""

    def __init__(self, dataset: Samples, watch: _Watch):
        self.dataset, self.watch = dataset, watch

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        finally:
            self.watch.done()


def build_loader(dataset: Samples, batches: Iterable[list], collate, workers: int, timeout: float = 120.0):
    """Batches in order, read ahead by `workers` processes (0: in this one), which live as long as there are batches.

    A file that takes longer than `timeout` seconds in a loader process, or ends it, is an error that names the file, or,
    where the dataset is tolerant, a bad sample: the processes are replaced and go on with the batch that was due.
    """
    options = {"collate_fn": _Collate(collate), "pin_memory": torch.cuda.is_available()}
    if not workers:
        yield from DataLoader(dataset, batch_sampler=batches, **options)
        return
    batches, ahead = iter(batches), collections.deque()  # ahead: handed to the processes, and not yet given

    def handed(again: list):
        for batch in itertools.chain(again, batches):
            ahead.append(batch)
            yield batch
    while True:
        watch, again = _Watch(workers, timeout), list(ahead)
        ahead.clear()
        iterator = _started(_Watched(dataset, watch), batch_sampler=handed(again), num_workers=workers,
                            worker_init_fn=watch.start, prefetch_factor=4, **options)
        threading.Thread(target=watch.look, name="egokit reader watch", daemon=True).start()
        try:
            while watch.lost is None:
                with watch.waiting():
                    batch = next(iterator, None)
                if watch.lost is None:
                    if batch is None:
                        return
                    ahead.popleft()
                    yield batch
        except VideoError:
            raise
        except (RuntimeError, OSError, EOFError):  # what PyTorch makes of a process that is gone
            watch.look_for_dead(iterator._workers)
            if watch.lost is None:
                raise
        finally:
            watch.ended.set()
        if not dataset.tolerant:
            raise VideoError(f"{watch.lost}: {watch.why}; make it again from its source with 'egokit prep', or allow bad files with "
                             "data.max_bad_fraction")
        open_video.unreadable.add(watch.lost)
        del iterator  # ends its processes


def move_to_device(batch, device):
    """A batch's tensors on the device, copied while the device computes."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move_to_device(value, device) for key, value in batch.items()}
    return batch
