"""Decide whether a SLURM job that has ended with an error is queued again.

The batch script runs `python -m egokit.jobs.requeue FOLDER` in its EXIT trap (slurm.options), with the job's folder.
- A lost rank or node is worth another try, from the newest checkpoint.
- If the program itself raised the error, or if ranks were lost twice at the same step, another try would end the same
  way: the job stays failed.
- A time limit or a preemption is not judged here: submitit answers its signal, SIGUSR2, by queueing the job again
  (worker.Work.checkpoint), after a training has saved a checkpoint (train/preemption.py).
- If SLURM notices that a node is lost, it queues the job again by itself; this module is not asked then.
"""
import contextlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from egokit.config.json_file import COUNT, read_json
from egokit.jobs.progress import read_progress
from egokit.runs.explain import FULL, full_disk
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run

# An error with one of these only says that another rank died first; the cause is in that rank's log.
LOST_PEER = ("Connection closed by peer", "Connection reset", "ConnectionError", "DistNetworkError", "Bypassing signal",
             "DistBackendError")
FAILURES = [{"attempt": str, "step": COUNT}]  # the shape of failures.json; SPEC: of what is read of spec.json
SPEC = {"run": (str, ...), "action": (str, ...), "config": ({"launch": ({"requeues": (COUNT, ...)}, ...)}, ...)}
TRACEBACK = "Traceback (most recent call last):"
# what Python prints between two tracebacks of one error; torch begins each line with "[rank1]: "
CHAINED = re.compile(r"(another exception occurred|direct cause of the following exception):\n"
                     r"(\[rank\d+\]: ?)?\n(\[rank\d+\]: ?)?$")


def lost_peer(text: str) -> bool:
    """Return whether an error says that the rank only lost its peer."""
    return any(mark in text for mark in LOST_PEER)


def last_error(log: str) -> str:
    """Return the last traceback in a log of one or more attempts, or "" if there is none.

    Its chained exceptions and all text after it are included.
    """
    pieces = log.split(TRACEBACK)
    first = len(pieces) - 1
    while first > 1 and CHAINED.search(pieces[first - 1]):
        first -= 1
    return TRACEBACK.join(["", *pieces[first:]]) if first else ""


def attempt_id() -> str:
    """Return the id of this start of the job, "<job id>-<number of restarts>".

    A job that is queued again keeps its job id.
    """
    job = os.environ.get("SLURM_JOB_ID") or os.environ["SUBMITIT_LOCAL_JOB_ID"]
    return f"{job}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"


STARTED = "egokit: start "  # begins the line of a rank's log that tells one attempt from the next; its id follows
RESERVE = "reserve"         # a file in the job's folder, whose room on a full disk is for the error's message
RESERVE_BYTES = 2**18


@contextlib.contextmanager
def record_failure(folder: Path, rank: int) -> Iterator[None]:
    """Write the error that ends the `with` block, a rank's work, to folder/failures.

    The log lies on the same disk. So that a full disk does not cut the message off, there is a reserve of room, which
    an error sets free.

    Raises:
        OSError: in place of one that says that the disk is full, and not which.
    """
    reserve = folder / RESERVE
    with contextlib.suppress(OSError):  # there may be no room already
        print(f"{STARTED}{attempt_id()}", file=sys.stderr, flush=True)
        if rank == 0:
            reserve.unlink(missing_ok=True)
            with open(reserve, "xb") as file:
                file.write(os.urandom(RESERVE_BYTES))  # zeros take no room on a file system that compresses
    try:
        with explain_full_disk(folder):
            yield
    except Exception:
        reserve.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the log may still have room
            write_text(folder / "failures" / f"{attempt_id()}-rank{rank}.txt", traceback.format_exc())
        raise
    finally:
        if rank == 0:
            reserve.unlink(missing_ok=True)


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn the OSError of a full disk or quota into one that says which, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full_disk(error, folder) from error


def decide(folder: Path, run: Run, action: str, limit: int) -> tuple[bool, str]:
    """Return (requeue?, reason), judged from each rank's last error and the last step reached.

    The attempt is recorded in folder/failures.json.

    Args:
        folder: the job's folder.
        run: the job's run.
        action: what the job does, as in its spec.
        limit: launch.requeues, after how many failures the job is queued again; after the next one it stays failed.
    """
    history = folder / "failures.json"
    earlier = read_json(history, FAILURES, "delete it") or []
    step = read_progress(run, folder, action).get("step", 0)
    write_text(history, json.dumps([*earlier, {"attempt": attempt_id(), "step": step}], indent=1))
    raised = {path: text for path in sorted((folder / "failures").glob(f"{attempt_id()}-rank*.txt"))
              if not lost_peer(text := path.read_text())}
    if raised:
        path, text = next(iter(raised.items()))
        return False, f"not requeued: {text.strip().splitlines()[-1]} ({path})"
    if earlier and earlier[-1]["step"] == step:
        return False, (f"not requeued: a rank was lost at step {step} for the second time, without a word of its own; "
                       "look for 'oom' in Slurm's records (sacct, dmesg), and at what is read at that step")
    if len(earlier) >= limit:
        return False, f"not requeued: {len(earlier) + 1} failures are more than launch.requeues={limit}"
    return True, f"a rank or node was lost at step {step}: requeued, attempt {len(earlier) + 2}"


def main(folder: str) -> None:
    """Queue this SLURM job again if `decide` says so; print the reason to the job's log."""
    job, owner = os.environ["SLURM_JOB_ID"], Path(folder, "owner")
    if owner.exists() and owner.read_text() != attempt_id():
        return  # Slurm has given up this attempt's node and queued the job again
    state = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout.strip()
    if state != "RUNNING":  # cancelled, at its time limit, or requeued already
        return
    spec = read_json(Path(folder, "spec.json"), SPEC, "submit the job again")
    if "run" not in spec:
        return  # a shard of data preparation, or notebooks: running the command again submits what is left
    requeue, reason = decide(Path(folder), Run(spec["run"]), spec["action"], spec["config"]["launch"]["requeues"])
    print(f"egokit: {reason}", file=sys.stderr, flush=True)
    if requeue:
        subprocess.run(["scontrol", "requeue", job], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
