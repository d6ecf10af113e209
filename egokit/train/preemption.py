"""The signal that comes before a time limit or a preemption, held back until a training step is over and saved.

submitit's handler requeues the job at once, wherever rank 0 happens to be, and everything since the last checkpoint is computed
again. Here the signal is noted; the ranks, which hear it at different moments or not at all, agree on the step after
which all of them stop; and submitit's handler gets it when the checkpoint is on disk.
"""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from egokit.train import distributed

SIGNAL = signal.SIGUSR2  # submitit's; NCCL takes USR1


class StopSignal:
    """Whether this job has been told to stop; what it was told is passed on by `obey`."""

    def __init__(self):
        self.heard = False
        self._before = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Around training steps. A signal that is heard here and not obeyed is delivered at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return
        self._before = signal.signal(SIGNAL, self._hear)
        try:
            yield
            if self.heard:
                self.obey()
        finally:
            self._release()

    def _hear(self, number, frame) -> None:
        self.heard = True

    def _release(self) -> None:
        if self._before is not None:
            signal.signal(SIGNAL, self._before)
            self._before = None

    def ask(self) -> Callable[[], bool]:
        """Ask all ranks, while they compute; gives a function that waits for the answer, which is the same on all ranks."""
        return distributed.start_any(self.heard)

    def obey(self) -> None:
        """After the checkpoint, on all ranks: rank 0 gets the signal as if it came now, and requeues the job; the processes end."""
        self.heard = False
        self._release()
        if distributed.rank() == 0:
            print(f"stopped by {SIGNAL.name}, after a checkpoint", flush=True)
            signal.raise_signal(SIGNAL)
        raise SystemExit(0)  # a rank that fails would have Slurm end rank 0 before it has requeued
