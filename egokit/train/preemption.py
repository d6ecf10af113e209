"""The signal before a time limit or preemption, deferred until the step is saved.

submitit's own handler requeues the job at once, wherever rank 0 happens to be, so that everything since the last
checkpoint is computed again. Here the signal is only noted. The ranks, which receive it at different moments or not at
all, agree on the step after which all of them stop. submitit's handler gets the signal when the checkpoint is on disk.
"""
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from egokit.train import distributed

SIGNAL = signal.SIGUSR2  # submitit's; NCCL takes USR1


class StopSignal:
    """Notes SIGNAL during training steps; `deliver` passes it on to the previous handler."""

    def __init__(self):
        self.received = False
        self._handler = contextlib.ExitStack()  # puts the previous handler back

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer the signal in the block, which runs training steps.

        A signal that was received in the block and not delivered there is delivered at its end.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return
        with self._handler:
            previous = signal.signal(SIGNAL, self._note) or signal.SIG_DFL  # None: a handler that Python doesn't know
            self._handler.callback(signal.signal, SIGNAL, previous)
            yield
            if self.received:
                self.deliver()

    @contextlib.contextmanager
    def after(self, wait: Callable[[], None]) -> Iterator[None]:
        """Call `wait` before the previous handler in the block, which runs training and validations."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pass_on(number, frame) -> None:
            wait()
            signal.signal(SIGNAL, previous)
            signal.raise_signal(SIGNAL)

        previous = signal.signal(SIGNAL, pass_on) or signal.SIG_DFL  # None: a handler that Python doesn't know
        try:
            yield
        finally:
            signal.signal(SIGNAL, previous)

    def _note(self, number, frame) -> None:
        self.received = True

    def ask_ranks(self) -> Callable[[], bool]:
        """Start to ask all ranks, while they compute, whether one of them has received the signal.

        Returns:
            A function that waits for the answer, which is the same on all ranks.
        """
        return distributed.start_any(self.received)

    def deliver(self) -> None:
        """End this process, after a checkpoint; call it on all ranks.

        Rank 0 gets the signal as if it came now, and its handler requeues the job.

        Raises:
            SystemExit: always.
        """
        self.received = False
        self._handler.close()
        if distributed.rank() == 0:
            print(f"stopped by {SIGNAL.name}, after a checkpoint", flush=True)
            signal.raise_signal(SIGNAL)
        raise SystemExit(0)  # after a rank that fails, Slurm would end rank 0 before it has requeued the job
