"""Where a rank's time goes in training steps: forward, backward, update, and waiting for other ranks.

On a CPU the times are the clock's. On a GPU they are those between CUDA events, which are read once the GPU has passed
them, so measuring never waits for the GPU. A phase's time on a GPU includes gaps in which the GPU waits for the CPU.

Waiting is the time in collectives: for ranks that are later, and for the transfer itself. It is no part of the phase in
which it happens. With DDP, gradients are sent during the backward pass; only what is left when the last gradient has
been computed counts as waiting.
"""
import collections
import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

_running: "StepClock | None" = None  # the clock of the training loop that runs in this process


class StepClock:
    """One rank's stopwatch for the phases of training steps; it measures inside its `running` block alone.

    Attributes:
        marks: whether phases are marked for PyTorch's profiler, too.
    """

    def __init__(self, device: torch.device):
        self.on_gpu, self.marks = device.type == "cuda", False
        self._phase, self._began = "", None
        self._spans: list[tuple[str, str, object, object]] = []  # of this step: phase, what was done in it, start, end
        self._ended: collections.deque = collections.deque()  # the spans of steps that a GPU may still compute
        self._totals, self._steps = collections.Counter(), 0
        self._gradients, self._arrived, self._last_gradient = 0, 0, None

    def _now(self):
        """Return the time, or an event at which the GPU will note it."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measure the steps of the block, which runs the training loop."""
        global _running
        _running = self
        try:
            yield
        finally:
            _running = None
            self.forget()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase of a step: "forward", "backward" or "update"."""
        if _running is not self:
            yield
            return
        self._phase, self._began, self._arrived, self._last_gradient = name, self._now(), 0, None
        with torch.profiler.record_function(name) if self.marks else contextlib.nullcontext():
            yield
        end = self._now()
        if name == "backward" and self._last_gradient is not None:
            self._spans.append((name, "wait", self._last_gradient, end))
        self._spans.append((name, name, self._began, end))
        self._phase = ""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure a collective, in a phase or between phases."""
        phase, began = self._phase, self._now()
        yield
        self._spans.append((phase, "wait", began, self._now()))

    def entered(self) -> None:
        """Count the phase's time so far as waiting: DDP has sent rank 0's buffers before it calls the loss."""
        if self._gradients and _running is self:
            self._spans.append((self._phase, "wait", self._began, self._now()))

    def expect_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Note when the last of these parameters has its gradient: DDP's backward pass then only waits for others."""
        for parameter in parameters:
            parameter.register_hook(self._count_gradient)
            self._gradients += 1

    def _count_gradient(self, grad: Tensor) -> None:
        self._arrived += 1
        if self._arrived == self._gradients and _running is self:
            self._last_gradient = self._now()

    def forget(self) -> None:
        """Drop what was measured of the present step."""
        self._spans = []

    def end_step(self) -> None:
        """End a step, and add up the steps that have been computed."""
        if _running is not self:  # a step that wasn't measured would count as one of no time
            return
        self._ended.append(self._spans)
        self._spans = []
        while self._ended and not (self.on_gpu and any(not end.query() for *_, end in self._ended[0])):
            for phase, kind, start, end in self._ended.popleft():
                seconds = start.elapsed_time(end) / 1000 if self.on_gpu else end - start
                self._totals[kind] += seconds
                if kind != phase:
                    self._totals[phase or "between"] -= seconds
            self._steps += 1

    def take(self) -> dict[str, float]:
        """Return the mean seconds of the steps since the last call; {} if a GPU has finished none of them.

        Returns:
            "forward_s", "backward_s", "update_s", "wait_s"; and "between_s", the part of wait_s between phases.
        """
        totals, steps = self._totals, self._steps
        self._totals, self._steps = collections.Counter(), 0
        if not steps:
            return {}
        names = "forward", "backward", "update", "wait"
        return {f"{name}_s": max(0.0, totals[name] / steps) for name in names} | {
            "between_s": max(0.0, -totals["between"] / steps)}


def waits(function: Callable) -> Callable:
    """Make a function that talks to other ranks count as waiting for them, in the training loop."""
    @functools.wraps(function)
    def measured(*args, **kwargs):
        if _running is None:
            return function(*args, **kwargs)
        with _running.waiting():
            return function(*args, **kwargs)
    return measured


def of_ranks(rows: list[dict]) -> dict[str, float]:
    """Return rank 0's times, and what the ranks' times say of all of them together, by the names of the log.

    Args:
        rows: for each rank its mean seconds of a step: "data_s", "step_s", and what `StepClock.take` returns. Ranks
            with "queue", the share of the time that their threads wait for a core, tell it, too.

    Returns:
        "forward_s", "backward_s", "update_s", "wait_s": rank 0's, if it has them. With several ranks that all have them
        "longest_wait_s": of the rank that waits longest; "slowest_rank": the rank for which the others wait, which
        itself waits least; "slowest_wait_s", "slowest_data_s", "slowest_compute_s" and "slowest_queued": its own.
    """
    first = {name: rows[0][name] for name in ("forward_s", "backward_s", "update_s", "wait_s") if name in rows[0]}
    if len(rows) < 2 or any("wait_s" not in row for row in rows):
        return first
    slowest = min(range(len(rows)), key=lambda number: rows[number]["wait_s"])
    row = rows[slowest]
    share = {"slowest_queued": row["queue"]} if "queue" in row else {}
    return first | {"longest_wait_s": max(row["wait_s"] for row in rows), "slowest_rank": slowest,
            "slowest_wait_s": row["wait_s"], "slowest_data_s": max(0.0, row["data_s"] - row["between_s"]),
            "slowest_compute_s": row["forward_s"] + row["backward_s"] + row["update_s"]} | share
