"""SLURM's queue, as squeue shows it: which jobs are pending, why, and which run."""
import contextlib
import contextvars
import subprocess
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# in any other state that squeue lists, a job has a node
PENDING_STATES = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}


class JobStatus(NamedTuple):
    """The status of a job that is queued or runs."""
    state: str              # "pending", "running", or "unknown" where the job can't be seen from here
    detail: str = ""        # pending: SLURM's reason, the place in the queue, the expected start; unknown: the reason


_ASKED: contextvars.ContextVar[dict[str, JobStatus | None] | None] = contextvars.ContextVar("asked", default=None)


@contextlib.contextmanager
def asked_once(jobs: Iterable[str]) -> Iterator[None]:
    """Ask SLURM once about jobs; `job_statuses` answers from that in the `with` block.

    Of a sweep, each run's job is looked at several times. Other jobs, such as those that are submitted meanwhile, are
    asked about anew.

    Args:
        jobs: job ids, as for `job_statuses`.
    """
    jobs = list(dict.fromkeys(jobs))
    statuses = job_statuses(jobs)
    token = _ASKED.set({job: statuses.get(job) for job in jobs})
    try:
        yield
    finally:
        _ASKED.reset(token)


def job_statuses(jobs: Iterable[str]) -> dict[str, JobStatus]:
    """Return the status of each of SLURM's jobs, by job id, that is queued or runs.

    SLURM is asked once for all jobs, and once more for the whole queue if any is pending, because its controller serves
    many users.

    Args:
        jobs: job ids. "42" may be an array, which counts as running if one of its jobs does; "42_3" is one of its jobs.
    """
    jobs, asked = list(jobs), _ASKED.get() or {}
    if all(job in asked for job in jobs):
        return {job: status for job in jobs if (status := asked[job])}
    try:
        rows = squeue("-r", "-j", ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))) if jobs else []
        pending = {row["job"]: row for row in rows if row["state"] in PENDING_STATES}
        partitions = sorted({row["partition"] for row in pending.values()})
        queue = squeue("-t", "PENDING", "-p", ",".join(partitions)) if pending else []
    except QueueError as error:  # the controller is away for a moment, or this is no login node
        return {job: JobStatus("unknown", str(error)) for job in jobs}
    waiting = {job: JobStatus("pending", pending_reason(row, queue)) for job, row in pending.items()}
    found: dict[str, JobStatus] = {}
    for row in rows:
        for job in (row["job"], f"{row['job']}_{row['task']}"):
            if row["state"] not in PENDING_STATES:
                found[job] = JobStatus("running")
            else:
                found.setdefault(job, waiting[row["job"]])
    return {job: found[job] for job in jobs if job in found}


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


class QueueError(RuntimeError):
    """SLURM's queue can't be asked; the message says why."""


def squeue(*arguments: str) -> list[dict[str, str]]:
    """Run squeue and return a dict for each job that it lists.

    Raises:
        QueueError: squeue doesn't answer.
    """
    # %F is the job's id, or the array's for one of an array's jobs, whose place in the array is %K
    columns = {"job": "%F", "state": "%T", "partition": "%P", "priority": "%Q", "start": "%S", "task": "%K",
               "reason": "%r"}
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
