"""Where a job is, asked from outside: in SLURM's queue and why it waits there, or among this machine's processes; why it ended."""
from __future__ import annotations

import contextlib
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

from egokit.jobs.requeue import last_error, lost_peer

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}  # any other state squeue lists has a node


class JobStatus(NamedTuple):
    state: str              # pending, running, or unknown: it can't be told from here
    detail: str = ""        # pending: SLURM's reason, the place in the queue and when it may start; unknown: why


def job_status(folder: Path, known: dict[str, JobStatus] | None = None) -> JobStatus | None:
    """Where the job, or one of the array's jobs, that folder/job.json names is; None if it is neither queued nor runs.

    known: what `places` said of several jobs, for a caller that has asked already.
    """
    job = read_job(folder)
    if not job:
        return None
    if job["cluster"] == "slurm":
        return (job_statuses([job["job_id"]]) if known is None else known).get(job["job_id"])
    if processes(folder):
        return JobStatus("running")
    host = job.get("host", socket.gethostname())
    return None if host == socket.gethostname() else JobStatus("unknown", f"was started on {host}: ask there")


def job_statuses(jobs: Iterable[str]) -> dict[str, JobStatus]:
    """SLURM's jobs that are queued or run. One call for all, and one more for the queue if any waits: the controller serves many."""
    jobs = list(jobs)
    try:
        listed = squeue("-j", ",".join(jobs)) if jobs else []
        waiting = {line["job"]: line for line in listed if line["state"] in WAITING}
        partitions = sorted({line["partition"] for line in waiting.values()})
        queue = squeue("-t", "PENDING", "-p", ",".join(partitions)) if waiting else []
    except QueueError as error:  # the controller is away for a moment, or this is no login node
        return {job: JobStatus("unknown", str(error)) for job in jobs}
    found = {line["job"]: JobStatus("running") for line in listed if line["state"] not in WAITING}  # of an array: any
    return {job: JobStatus("pending", pending_reason(line, queue)) for job, line in waiting.items()} | found


def pending_reason(job: dict, queue: list[dict]) -> str:
    """Why a job waits, its place by priority among those that wait for the same partitions, and SLURM's guess of its start."""
    rivals = [line for line in queue if set(line["partition"].split(",")) & set(job["partition"].split(","))]
    order = [line["job"] for line in sorted(rivals, key=lambda line: (-int(line["priority"]), int(line["job"])))]
    said = [job["reason"]] if job["reason"] != "None" else []  # SLURM hasn't looked at it yet
    if job["job"] in order:  # it may have started since
        said.append(f"{ordinal(order.index(job['job']) + 1)} of {len(order)}")
    if job["start"] != "N/A":
        said.append(f"may start {job['start'].replace('T', ' ')}")
    return ", ".join(said)


def ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{ending}"


def duration(seconds: float) -> str:
    """Seconds in words, as precise as a glance needs."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 1440 else f"{minutes // 1440} d {minutes // 60 % 24} h"


class QueueError(RuntimeError):
    """squeue gave no answer."""


def squeue(*arguments: str) -> list[dict[str, str]]:
    """One dict a line of `squeue`; raises QueueError if it doesn't answer."""
    columns = {"job": "%F", "state": "%T", "partition": "%P", "priority": "%Q", "start": "%S", "reason": "%r"}  # %F: an array's, too
    try:
        listed = subprocess.run(["squeue", "-h", "-o", "|".join(columns.values()), *arguments], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise QueueError("this machine has no squeue") from None
    except subprocess.TimeoutExpired:
        raise QueueError("squeue gave no answer in a minute") from None
    if listed.returncode and "Invalid job id" not in listed.stderr:  # said of one that ended a while ago
        raise QueueError((listed.stderr.strip().splitlines() or ["squeue failed"])[-1])
    return [dict(zip(columns, line.split("|", len(columns) - 1), strict=True)) for line in listed.stdout.splitlines()]


def read_job(folder: Path) -> dict | None:
    path = folder / "job.json"
    return json.loads(path.read_text()) if path.exists() else None


def alive(folder: Path) -> bool:
    """Whether the job is queued or runs. Not knowing must not start a second copy: a queue without an answer counts as yes.

    Local processes of another machine count as ended, as a folder that was moved here would never be taken up again.
    """
    found, job = job_status(folder), read_job(folder)
    return found is not None and (found.state != "unknown" or job["cluster"] == "slurm")


def processes(folder: Path) -> list[int]:
    """Processes of this machine that work for the job in `folder`: its controller and its ranks.

    Found by their command lines: a process number may have gone to another program since, and ranks may outlive a
    controller that was killed. Two copies of a job must not write to one run.
    """
    wanted, found = str(folder.resolve() / "submitit").encode(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""  # empty for a zombie
            if b"-m\0submitit." in command and wanted in command:  # not a pager that shows the job's log
                found.append(int(entry.name))
    return found


def log_tail(folder: Path, lines: int = 25) -> str:
    """The end of the log that tells most: of the rank that failed by itself, not of those that lost a peer."""
    job = read_job(folder)
    files = sorted((folder / "submitit").glob(f"{job['job_id']}_*_log.err")) if job else []
    texts = {file: file.read_text(errors="replace").strip() for file in files}
    last = {file: last_error(text) for file, text in texts.items()}  # of the last attempt: they all write to one file
    own = {file: texts[file] for file, error in last.items() if error and not lost_peer(error)}
    for file, text in (own or texts).items():
        if text:
            return f"{file}:\n" + "\n".join(text.splitlines()[-lines:])
    return f"no log in {folder / 'submitit'}"


def failure_reason(folder: Path) -> str:
    """The line of its log that says best why a job ended."""
    lines = log_tail(folder).splitlines()
    raised = [line for line in lines if re.match(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Failed)\b", line)]
    ended = [line for line in lines if "*** " in line]  # slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT …
    return (raised or ended or lines)[-1][:100]


def cancel(folder: Path) -> None:
    """End the job, if it is queued or runs."""
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


def progress_text(progress: dict) -> str:
    said = [f"step {progress['step']} of {progress['steps']}"] if progress else []
    return ", ".join([*said, f"{duration(progress['eta_s'])} left"] if "eta_s" in progress else said)
