"""A few training steps under PyTorch's profiler: a trace, a table of operations, and what bounds the speed.

The steps are those of a training: its batches, its loss, its optimizer. Nothing is validated and no checkpoint is
written. The times come from steps before the profiler starts, because it slows what it records.
"""
import csv
import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, record_function

from egokit.config.schema import Config
from egokit.data.loader import READ_AHEAD
from egokit.model.precision import deterministic
from egokit.runs.bottleneck import Recent, Verdict, percent, verdict
from egokit.runs.files import atomic_path, write_text
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.train import distributed, loop

WARM_UP = 2       # steps before the first one that counts, at least
STEPS = 8         # steps that are recorded, by default
SHOWN = 20        # operations in the table that is printed; the CSV file has all
PHASES = {"data_s": "data", "forward_s": "forward", "backward_s": "backward", "update_s": "update",
          "wait_s": "other ranks"}
NEVER = 10**9     # steps
IDLE = 0.3        # share of the time in which a GPU has nothing to do, above which it is told
FILES = TRACE, TABLE, OPERATIONS = "trace.json.gz", "profile.txt", "operations.csv"  # in the folder of the run


class Operation(NamedTuple):
    """What the profiler has recorded of one operation or kernel, in all steps."""
    kind: str           # "operation", which the CPU starts, or "kernel", which a GPU computes
    name: str
    calls: int
    self_cpu_ms: float  # without the operations that it calls
    self_gpu_ms: float  # of an operation: of the kernels that it starts itself


class Profiled(loop.Trainer):
    """A training that keeps nothing: no checkpoints, no validation."""

    def save(self) -> None:
        """Save nothing."""

    def validate(self) -> None:
        """Score nothing."""


def profile(config: Config, task, run: Run, device: torch.device, steps: int = STEPS, on_step=None) -> dict[str, str]:
    """Train for a few steps, record as many, and write the trace and the tables into the run's folder.

    Args:
        config: the recipe of a training.
        task: its task.
        run: a folder of the profile's own, which holds no training.
        device: where this rank computes.
        steps: number of steps that the profiler records, on rank 0.
        on_step: called with (step, steps) after each step.

    Returns:
        "verdict", "advice" and the path of the table, on rank 0; {} on others.
    """
    # the workers read ahead during the slow first steps; only then are they waited for as in a long training
    warm_up = max(WARM_UP, READ_AHEAD * config.data.workers)
    timed = max(steps, 2 * config.data.workers + 1)  # their batches may arrive together
    total = warm_up + timed + steps
    train = dataclasses.replace(config.train, epochs=total, log_steps=1, checkpoint_steps=NEVER)
    trainer = Profiled(dataclasses.replace(config, train=train), task, run, "profile", device)
    if distributed.rank() == 0:
        for name in ("log.jsonl", *FILES):
            (run.path / name).unlink(missing_ok=True)
    batches = trainer.loader()
    try:
        with deterministic(train.deterministic), trainer.clock.running():
            trainer.epoch(0, _counted(itertools.islice(batches, warm_up), on_step, 0, total))
            if distributed.rank() == 0:
                (run.path / "log.jsonl").unlink()  # the first steps wait for much
            trainer.log_machine()
            trainer.epoch(0, _counted(itertools.islice(batches, timed), on_step, warm_up, total))
            history = History(run.path)
            history.update()
            if distributed.rank() == 0:
                recorded = _record(trainer, _counted(itertools.islice(batches, steps), on_step, total - steps, total),
                                   run.path / TRACE)
            else:
                trainer.epoch(0, itertools.islice(batches, steps))
    finally:
        batches.close()  # ends its workers
    distributed.barrier()
    if distributed.rank():
        return {}
    operations, busy = recorded
    _write_csv(operations, run.path / OPERATIONS)
    found = verdict(history)
    write_text(run.path / TABLE, format_profile(history, found, operations, steps, busy))
    return {"verdict": found.title, "advice": found.advice, "table": str(run.path / TABLE)}


def _counted(batches: Iterator, on_step, done: int, total: int) -> Iterator[dict]:
    """Yield batches, the waiting for each marked as "data", and tell how many steps are done."""
    for number in itertools.count(done):
        if on_step:
            on_step(number, total)
        with record_function("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _record(trainer: Profiled, batches: Iterator[dict], path: Path) -> tuple[list[Operation], float | None]:
    """Train on the batches under PyTorch's profiler and write the trace.

    Returns:
        The operations; and the share of the time in which the GPU computes, None without one.
    """
    on_gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    trainer.clock.marks = True
    with torch.profiler.profile(activities=activities) as profiler:
        began = time.perf_counter()
        trainer.epoch(0, batches)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    trainer.clock.marks = False
    with atomic_path(path) as temporary:
        profiler.export_chrome_trace(str(temporary))
    events = [event for event in profiler.events() if is_kernel(event)] if on_gpu else []
    busy = covered([(event.time_range.start, event.time_range.end) for event in events]) / 1e6 / seconds
    return operations_of(profiler.key_averages()), busy if on_gpu else None


def is_kernel(event) -> bool:
    """Return whether a profiler's event is what a GPU computes, and no mark of a phase."""
    return (event.device_type == torch.autograd.DeviceType.CUDA and event.key not in PHASES.values()
            and not getattr(event, "is_user_annotation", False))


def covered(intervals: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals; streams of a GPU compute side by side."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def operations_of(averages) -> list[Operation]:
    """Return the operations and kernels of a profiler's `key_averages`, the longest first."""
    operations = [Operation("kernel" if is_kernel(each) else "operation", each.key, each.count,
                            each.self_cpu_time_total / 1000, each.self_device_time_total / 1000)
                  for each in averages if each.key not in PHASES.values() and
                  (is_kernel(each) or each.device_type == torch.autograd.DeviceType.CPU)]
    return sorted(operations, key=lambda each: (-each.self_gpu_ms, -each.self_cpu_ms))


def _write_csv(operations: list[Operation], path: Path) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Operation._fields)
        writer.writerows(each._replace(self_cpu_ms=round(each.self_cpu_ms, 4), self_gpu_ms=round(each.self_gpu_ms, 4))
                         for each in operations)


def format_profile(history: History, found: Verdict, operations: list[Operation], steps: int,
                   busy: float | None) -> str:
    """Return the table that `egokit profile` prints: verdict, where a step's time goes, and the longest operations.

    Args:
        history: the log of the steps before the profiler.
        found: the verdict on it.
        operations: what the profiler has recorded.
        steps: number of recorded steps.
        busy: share of the time in which the GPU computes; None without a GPU.
    """
    recent = Recent(history)
    lines = [found.title, *([f"  {found.advice}"] if found.advice else []), ""]
    if busy is not None:
        idle = ("; it waits for the CPU to start its work: train.compile=true, or more samples at once "
                "(train.micro_batch)") if 1 - busy > IDLE else ""
        lines += [f"the GPU computes {percent(busy)} of the time under the profiler{idle}", ""]
    lines += [f"a step takes {recent.median('speed/step_s'):.3f} s (of {history.training.rows} steps, on rank 0):"]
    for key, name in PHASES.items():
        lines.append(f"  {name:12}{recent.median(f'speed/{key}'):9.3f} s{100 * recent.share(key):6.0f} %")
    lines.append(f"  {'the rest':24}{100 * max(0.0, 1 - recent.share(*PHASES)):5.0f} %")
    shown = [each for each in operations if each.kind == "operation"]
    lines += ["", *_table(sorted(shown, key=lambda each: -each.self_cpu_ms), "self_cpu_ms", steps, "operations, CPU")]
    if busy is not None:
        lines += ["", *_table([each for each in operations if each.kind == "kernel"], "self_gpu_ms", steps,
                              "kernels, GPU")]
    return "\n".join(lines) + "\n"


def _table(operations: list[Operation], column: str, steps: int, title: str) -> list[str]:
    """Return the lines of a table of the longest operations, by one column of milliseconds."""
    total = sum(getattr(each, column) for each in operations) or 1.0
    lines = [f"{title + ' (the longest by their own time)':72}{'ms a step':>10}{'share':>8}{'calls a step':>14}"]
    for each in operations[:SHOWN]:
        value = getattr(each, column)
        name = each.name if len(each.name) <= 70 else f"{each.name[:69]}…"
        lines.append(f"  {name:70}{value / steps:10.2f}{100 * value / total:6.0f} %{each.calls / steps:14.1f}")
    return lines
