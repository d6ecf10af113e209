"""What all stages of the GPU day share: device, sizes, clock and the file of numbers.

A stage is a function without arguments. It prints each number as it is measured and appends it to results.jsonl, so
that a stage that is stopped half-way leaves what it has measured.
"""
from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / ".gpu_day/toy"  # prepare.sh makes it
REHEARSAL = bool(os.environ.get("GPU_DAY_REHEARSAL"))  # tiny sizes on a CPU
OUT = Path(os.environ.get("OUT", "gpu_day_out"))
SCRATCH = Path(os.environ.get("GPU_DAY_SCRATCH", "gpu_day_scratch"))  # the runner deletes it at the end
DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)
TINY = {"image_size": 32, "width": 128, "heads": 2, "depth": 2, "num_fused_layers": 1, "vocab_size": 99,
        "max_positions": 40, "projection": "mlp32"}
HALF = "bf16" if REHEARSAL else "fp16"  # the recipe's precision; a CPU trains in bf16 instead
SHAPE = TINY if REHEARSAL else {}  # of the model; {}: the base model
COMPILER = "aot_eager" if REHEARSAL else "inductor"  # of torch.compile; a rehearsal traces, but generates no code
COPIES = "Memory"  # title of the table of the speed of memory, which other stages look up

failures: list[str] = []  # of this stage


def note(table: str, **values) -> None:
    """Print one row of a table and append it to results.jsonl.

    Args:
        table: the table's title in the report.
        values: the row, by column.
    """
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    print(f"[{stage_name()}]", *(f"{key}={value}" for key, value in shown.items()), sep="  ", flush=True)
    with open(OUT / "results.jsonl", "a") as file:
        file.write(json.dumps({"stage": stage_name(), "table": table, **values}, default=str) + "\n")


def check(table: str, passed: bool, **values) -> None:
    """Note a row that has a right answer; a wrong one fails the stage at its end."""
    note(table, **values, passed=passed)
    if not passed:
        failures.append(f"{table}: {values}")


def stage_name() -> str:
    return sys.argv[1] if len(sys.argv) > 1 else "stage"


def run(*stages: Callable[[], None]) -> None:
    """Run the stage that the command line names.

    Raises:
        SystemExit: a check of the stage has failed.
    """
    # the runner stops a stage by SIGTERM: as after Ctrl-C, a job that it waits for is cancelled on the way out
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    {stage.__name__: stage for stage in stages}[stage_name()]()
    if failures:
        raise SystemExit(f"{len(failures)} check{'s' * (len(failures) > 1)} failed, first {failures[0]}")


def reason(error: Exception) -> str:
    """Shorten an error to its first line, for a table's cell."""
    return (str(error).splitlines() or [type(error).__name__])[0][:150]


def measured(table: str, column: str, **row) -> float | None:
    """Look up a number that an earlier stage has noted.

    Returns:
        `column` of the newest row of the table with these values, or None if there is none.
    """
    path = OUT / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    numbers = [noted[column] for noted in rows
               if noted["table"] == table and column in noted and row.items() <= noted.items()]
    return numbers[-1] if numbers else None


def wait() -> None:
    """Wait until the GPU has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def clock(function: Callable[[], object], repeats: int = 5, warm: int = 2) -> float:
    """Measure the median time of a call in milliseconds, after `warm` calls that don't count."""
    for _ in range(warm):
        function()
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        function()
        wait()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def peak_gib() -> float:
    """Return the most memory that was allocated since `forget`."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0


def forget() -> None:
    """Give back memory that nothing refers to, and begin to count the peak anew."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
