"""A job's status from outside: why it is pending, whether it runs, and why it ended.

SLURM is asked with squeue; local jobs are found among this machine's processes.
"""
import contextlib
import glob
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from egokit.config.names import printable
from egokit.jobs.requeue import last_error, lost_peer

# in any other state that squeue lists, a job has a node
PENDING_STATES = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}


class JobStatus(NamedTuple):
    """The status of a job that is queued or runs."""
    state: str              # "pending", "running", or "unknown" where the job can't be seen from here
    detail: str = ""        # pending: SLURM's reason, the place in the queue, the expected start; unknown: the reason


def job_status(folder: Path, statuses: dict[str, JobStatus] | None = None) -> JobStatus | None:
    """Return the status of the job in a folder, or None if it is neither queued nor runs.

    Args:
        folder: the job's folder, whose job.json names the job. An array counts as running if one of its jobs does.
        statuses: what `job_statuses` has returned, for a caller that has asked SLURM about many jobs at once.
    """
    job = read_job(folder)
    if not job:
        return None
    if job["cluster"] == "slurm":
        return (job_statuses([job["job_id"]]) if statuses is None else statuses).get(job["job_id"])
    if processes(folder):
        return JobStatus("running")
    host = job.get("host", socket.gethostname())
    return None if host == socket.gethostname() else JobStatus("unknown", f"was started on {host}: ask there")


def job_statuses(jobs: Iterable[str]) -> dict[str, JobStatus]:
    """Return the status of each of SLURM's jobs, by job id, that is queued or runs.

    SLURM is asked once for all jobs, and once more for the whole queue if any is pending, because its controller serves
    many users.
    """
    jobs = list(jobs)
    try:
        rows = squeue("-j", ",".join(jobs)) if jobs else []
        pending = {row["job"]: row for row in rows if row["state"] in PENDING_STATES}
        partitions = sorted({row["partition"] for row in pending.values()})
        queue = squeue("-t", "PENDING", "-p", ",".join(partitions)) if pending else []
    except QueueError as error:  # the controller is away for a moment, or this is no login node
        return {job: JobStatus("unknown", str(error)) for job in jobs}
    # an array is running if any of its jobs is
    running = {row["job"]: JobStatus("running") for row in rows if row["state"] not in PENDING_STATES}
    return {job: JobStatus("pending", pending_reason(row, queue)) for job, row in pending.items()} | running


def pending_reason(job: dict, queue: list[dict]) -> str:
    """Return why a job is pending, its place in the queue and its expected start, if known.

    Args:
        job: the job's row of squeue.
        queue: the rows of all pending jobs. The place is counted by priority among those that want one of the job's
            partitions.
    """
    rivals = [row for row in queue if set(row["partition"].split(",")) & set(job["partition"].split(","))]
    order = [row["job"] for row in sorted(rivals, key=lambda row: (-int(row["priority"]), int(row["job"])))]
    parts = [job["reason"]] if job["reason"] != "None" else []  # "None": the scheduler hasn't looked at the job yet
    if job["job"] in order:  # not if it has started since
        parts.append(f"place {order.index(job['job']) + 1} of {len(order)}")
    if job["start"] != "N/A":
        parts.append(f"may start {job['start'].replace('T', ' ')}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as "2 h 1 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 1440 else f"{minutes // 1440} d {minutes // 60 % 24} h"


class QueueError(RuntimeError):
    """SLURM's queue can't be asked; the message says why."""


def squeue(*arguments: str) -> list[dict[str, str]]:
    """Run squeue and return a dict for each job that it lists.

    Raises:
        QueueError: squeue doesn't answer.
    """
    # %F is the job's id, or the array's for one of an array's jobs
    columns = {"job": "%F", "state": "%T", "partition": "%P", "priority": "%Q", "start": "%S", "reason": "%r"}
    command = ["squeue", "-h", "-o", "|".join(columns.values()), *arguments]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise QueueError("this machine has no squeue") from None
    except subprocess.TimeoutExpired:
        raise QueueError("squeue gave no answer in a minute") from None
    if listing.returncode and "Invalid job id" not in listing.stderr:  # of a job that ended a while ago
        raise QueueError((listing.stderr.strip().splitlines() or ["squeue failed"])[-1])
    return [dict(zip(columns, line.split("|", len(columns) - 1), strict=True)) for line in listing.stdout.splitlines()]


def read_job(folder: Path) -> dict | None:
    """Return folder/job.json ("cluster", "job_id", "host"), or None if no job was started."""
    path = folder / "job.json"
    return json.loads(path.read_text()) if path.exists() else None


def alive(folder: Path) -> bool:
    """Return whether the job is queued or runs.

    A queue that gives no answer counts as yes, because a second copy of the job must not be started. Local processes of
    another machine count as ended; otherwise a run folder that was moved here could never be resumed.
    """
    current, job = job_status(folder), read_job(folder)
    return current is not None and (current.state != "unknown" or job["cluster"] == "slurm")


def processes(folder: Path) -> list[int]:
    """Return the ids of this machine's processes of the job in a folder: its controller and its ranks."""
    return local_jobs().get(folder.resolve(), [])


def local_jobs() -> dict[Path, list[int]]:
    """Return the processes of all jobs on this machine, by the job's folder.

    They are found by their command lines, because a process id may have been reused since, and ranks may outlive a
    controller that was killed. Two copies of a job must not write to one run.
    """
    jobs: dict[Path, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = os.fsdecode((entry / "cmdline").read_bytes()) if entry.name.isdigit() else ""  # "" for a zombie
            if match := re.search(r"\0-m\0submitit\..*\0(.*)/submitit\0$", command):  # not a pager of the job's log
                jobs.setdefault(Path(match[1]), []).append(int(entry.name))
    return jobs


def log_tail(folder: Path, lines: int = 25) -> str:
    """Return the tail of the most useful log, below its path.

    That is the log of a rank that failed by itself, not of those that only lost their peer.
    """
    job = read_job(folder)
    files = sorted((folder / "submitit").glob(f"{glob.escape(Path(job['job_id']).name)}_*_log.err")) if job else []
    texts = {file: file.read_text(errors="replace").strip() for file in files}
    errors = {file: last_error(text) for file, text in texts.items()}  # all attempts of a rank write to one file
    failed = {file: texts[file] for file, error in errors.items() if error and not lost_peer(error)}
    for file, text in (failed or texts).items():
        if text:
            return f"{file}:\n" + "\n".join(map(printable, text.splitlines()[-lines:]))
    return f"no log in {folder / 'submitit'}"


RAISED = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Failed)\b")  # the line of a traceback that names the error
# what may follow an error's message in a log
FOLLOWING = re.compile(r"(\[rank\d+\]: )?(Traceback|srun|slurmstepd|submitit|egokit: |[WEI]\d{4} |\s*$)")


def error_message(folder: Path, lines: int = 6) -> str:
    """Return the message of the error that ended a job, once and without its traceback, and the log that has it."""
    log, *tail = log_tail(folder, 200).splitlines()
    raised = [number for number, line in enumerate(tail) if RAISED.match(line)]
    notices = [line for line in tail if line.startswith("egokit: not requeued: a rank was lost")]
    if notices or not raised:  # a rank that was killed, and left no error
        message = notices[-1:] or tail[-lines:]
    else:
        rest = tail[raised[-1] + 1:]
        length = next((number for number, line in enumerate(rest) if FOLLOWING.match(line)), len(rest))
        message = [tail[raised[-1]], *rest[:min(length, lines - 1)]]
    prefix = re.compile(r"^\[rank\d+\]: ?")
    text = "\n".join(prefix.sub("", line) for line in message)
    return f"{text}\nThe whole log: {log.removesuffix(':')}" if tail else log


def failure_reason(folder: Path) -> str:
    """Return the line of the job's log that says best why it ended, cut at 100 characters."""
    lines = log_tail(folder).splitlines()
    raised = [line for line in lines if RAISED.match(line)]
    cancelled = [line for line in lines if "*** " in line]  # slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT …
    return (raised or cancelled or lines)[-1][:100]


def cancel(folder: Path) -> None:
    """End the job if it is queued or runs."""
    if not alive(folder):
        return
    job = read_job(folder)
    if job["cluster"] == "slurm":
        subprocess.run(["scancel", job["job_id"]], check=True)
        return
    for sign in (signal.SIGINT, signal.SIGKILL):  # submitit's processes ignore SIGTERM
        for process in processes(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, sign)
        deadline = time.monotonic() + 5
        while alive(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
