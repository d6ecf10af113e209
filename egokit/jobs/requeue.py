"""After a SLURM job has ended with an error: once more, or not?

The batch script runs `python -m egokit.jobs.requeue FOLDER` (job.executor's trap), where FOLDER is the job's, jobs/<section>. A rank or
a node that was lost is worth another try from the newest checkpoint; an error of the program's own comes again, and so does what
kills a rank twice at one step. Signals before time limits and preemption are submitit's to answer, node failures Slurm's.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from egokit.jobs.progress import read_progress
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run

# what a rank says that lost another one
LOST_PEER = ("Connection closed by peer", "Connection reset", "ConnectionError", "DistNetworkError", "Bypassing signal", "DistBackendError")
TRACEBACK = "Traceback (most recent call last):"
# Python's words between two tracebacks of one error; torch has each line begin with [rank1]:
CHAINED = re.compile(r"(another exception occurred|direct cause of the following exception):\n(\[rank\d+\]: ?)?\n(\[rank\d+\]: ?)?$")


def lost_peer(text: str) -> bool:
    return any(mark in text for mark in LOST_PEER)


def last_error(log: str) -> str:
    """The last traceback of a log, which may hold several attempts, with those it is chained to and all after it; empty without one."""
    pieces = log.split(TRACEBACK)
    first = len(pieces) - 1
    while first > 1 and CHAINED.search(pieces[first - 1]):
        first -= 1
    return TRACEBACK.join(["", *pieces[first:]]) if first else ""


def attempt() -> str:
    """Names this start of the job; a job that is queued again keeps its number."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ["SUBMITIT_LOCAL_JOB_ID"]
    return f"{job}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"


@contextlib.contextmanager
def record_failure(folder: Path, rank: int) -> Iterator[None]:
    """Around a rank's work: keeps the error that ends it, for `decide`."""
    try:
        yield
    except Exception:
        write_text(folder / "failures" / f"{attempt()}-rank{rank}.txt", traceback.format_exc())
        raise


def decide(folder: Path, run: Run, action: str, limit: int) -> tuple[bool, str]:
    """(whether to queue the job again, why), by the last words of this attempt's ranks and how far it got; keeps the attempt in mind."""
    history = folder / "failures.json"
    before = json.loads(history.read_text()) if history.exists() else []
    step = read_progress(run, folder, action).get("step", 0)
    write_text(history, json.dumps([*before, {"attempt": attempt(), "step": step}], indent=1))
    own = {path: text for path in sorted((folder / "failures").glob(f"{attempt()}-rank*.txt")) if not lost_peer(text := path.read_text())}
    if own:
        path, text = next(iter(own.items()))
        return False, f"not requeued: {text.strip().splitlines()[-1]} ({path})"
    if before and before[-1]["step"] == step:
        return False, (f"not requeued: a rank was lost at step {step} for the second time, without a word of its own; look for "
                       "'oom' in Slurm's records (sacct, dmesg), and at what is read at that step")
    if len(before) >= limit:
        return False, f"not requeued: {len(before) + 1} failures are more than launch.requeues={limit}"
    return True, f"a rank or node was lost at step {step}: requeued, attempt {len(before) + 2}"


def main(folder: str) -> None:
    job, owner = os.environ["SLURM_JOB_ID"], Path(folder, "owner")
    if owner.exists() and owner.read_text() != attempt():
        return  # Slurm took this one's node for lost, and has queued the job again
    state = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout.strip()
    if state != "RUNNING":  # cancelled, at its time limit, or requeued already
        return
    spec = json.loads(Path(folder, "spec.json").read_text())
    if "run" not in spec:
        return  # a shard of data preparation: what it left is submitted again by the same command
    again, why = decide(Path(folder), Run(spec["run"]), spec["action"], spec["config"]["launch"]["requeues"])
    print(f"egokit: {why}", file=sys.stderr, flush=True)
    if again:
        subprocess.run(["scontrol", "requeue", job], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
