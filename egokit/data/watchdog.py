"""The watchdog of DataLoader workers: it names the file at which one hangs or crashes."""
import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import threading
import time

import torch
from torch.utils.data import DataLoader, Dataset

from egokit.data.video import open_video


class _Reading(ctypes.Structure):
    """What a worker reads, and since when (0: nothing now)."""
    _fields_ = [("pid", ctypes.c_int), ("path", ctypes.c_char * 1024), ("since", ctypes.c_double)]


class Watchdog(Dataset):
    """A data set that records what each worker reads, and a thread that kills a worker that hangs.

    The record is in memory shared with the consumer, the process that waits for batches.

    A decoder can hang in native code while it holds the GIL. The worker then stops responding, and the consumer may
    block inside PyTorch, where no timeout applies. A watchdog thread in the consumer kills the worker.
    """

    def __init__(self, dataset: Dataset, workers: int, timeout: float):
        self.dataset, self.timeout, self.unreadable = dataset, timeout, set(open_video.unreadable)
        self.readings = multiprocessing.RawArray(_Reading, workers)
        self.lost, self.reason = None, ""  # the file at which a worker hung or crashed, and how
        self.ended, self.lock, self.awaited = threading.Event(), threading.Lock(), False

    def start(self, worker: int) -> None:
        """Set up a worker; runs first in it."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # inherited from the job, which alone may ask for a requeue
        open_video.unreadable |= self.unreadable
        self.readings[worker].pid = os.getpid()
        open_video.on_open = functools.partial(self.record, worker)

    def record(self, worker: int, path: str) -> None:
        """Record the file that a worker begins to read."""
        self.readings[worker].path = path.encode()[-_Reading.path.size + 1:]
        self.readings[worker].since = time.monotonic()

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        finally:
            self.readings[torch.utils.data.get_worker_info().id].since = 0.0

    def watch(self) -> None:
        """Kill the first worker that reads one file for longer than the timeout; runs in a thread."""
        while not self.ended.wait(min(1.0, self.timeout / 4)):
            with self.lock:
                for reading in self.readings:
                    if self.awaited and reading.since and time.monotonic() - reading.since > self.timeout:
                        self.lost = reading.path.decode()
                        self.reason = f"no answer from its reader within {self.timeout:g} s (data.read_timeout)"
                        os.kill(reading.pid, signal.SIGKILL)
                        with contextlib.suppress(ChildProcessError):  # PyTorch has already reaped it
                            os.waitid(os.P_PID, reading.pid, os.WEXITED | os.WNOWAIT)
                        return

    def find_crashed(self, processes: list) -> None:
        """After PyTorch reports a dead worker, find the one whose decoder crashed.

        SIGKILL is not counted: that was the OOM killer.
        """
        deadline = time.monotonic() + 5
        while all(process.exitcode is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)  # a worker's connection breaks before its process has ended
        with self.lock:
            for reading, process in zip(self.readings, processes, strict=True):
                code = process.exitcode
                if self.lost is None and reading.since and code not in (None, 0, -signal.SIGKILL):
                    self.lost = reading.path.decode()
                    cause = signal.strsignal(-code) if code < 0 else f"exit code {code}"
                    self.reason = f"its reader ended the loader process ({cause})"

    @contextlib.contextmanager
    def waiting(self):
        """Enclose the wait for a batch: only here may the death of a worker raise."""
        before = signal.getsignal(signal.SIGCHLD)
        main = _raise_for_dead is not None and threading.current_thread() is threading.main_thread()
        self.awaited = True
        try:
            if main:
                signal.signal(signal.SIGCHLD, _raise_for_dead)
                _raise_for_dead(signal.SIGCHLD, None)  # a worker may have died since the last batch
            yield
        finally:
            if main:
                signal.signal(signal.SIGCHLD, before)
            with self.lock:
                self.awaited = False


_raise_for_dead = None  # PyTorch's SIGCHLD handler: raises in the main thread when a worker dies, even in mid-step


def iterate(*args, **options):
    """Return a DataLoader's iterator, without leaving PyTorch's SIGCHLD handler installed.

    The handler would raise in the middle of a training step; `Watchdog.waiting` calls it where that is expected.
    """
    global _raise_for_dead
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(DataLoader(*args, **options))
    if signal.getsignal(signal.SIGCHLD) is not before:
        _raise_for_dead = signal.signal(signal.SIGCHLD, before)
    return iterator
