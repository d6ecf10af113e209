"""A job's status from outside: why it is pending, whether it runs, and why it ended.

SLURM is asked with squeue; local jobs are found among this machine's processes.
"""
import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from egokit.config.access import is_plain
from egokit.config.build import ConfigError
from egokit.config.json_file import COUNT, read_json
from egokit.config.names import printable
from egokit.jobs.queue import JobStatus, job_statuses
from egokit.jobs.requeue import STARTED, TRACEBACK, last_error, lost_peer
from egokit.runs.explain import shortened

JOB = {"cluster": str, "job_id": str, "host": (str, ...), "job_ids": ([str], ...)}  # the fields of job.json
SPEC = {name: (str, ...) for name in ("function", "name", "run", "action", "section", "version", "init_sha256",
                                      "task_sha256")}  # the fields of spec.json; an older version's lacks some
SPEC |= {name: (dict, ...) for name in ("config", "opened", "notebooks")}
SPEC |= {"gpus": ([str], ...), "before": ({...: {...: COUNT}}, ...), "environment": ({...: str}, ...)}
TAIL, MOST_READ = 1 << 20, 8 << 20  # bytes: of one log, of the logs of all ranks


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


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as "2 h 1 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 1440 else f"{minutes // 1440} d {minutes // 60 % 24} h"


def read_job(folder: Path) -> dict | None:
    """Return folder/job.json ("cluster", "job_id", "host"), or None if no job was started.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    job = read_json(folder / "job.json", JOB, "delete it once the job has ended, and submit again")
    if job and not re.fullmatch(r"\w+", job["job_id"]):  # it becomes an argument of squeue, and part of a file's name
        raise ValueError(f"{folder / 'job.json'}: 'job_id' is {job['job_id'][:60]!r}, expected a job's number; "
                         "delete it once the job has ended, and submit again")
    return job


def read_spec(folder: Path, *required: str) -> dict | None:
    """Return folder/spec.json, what a job was submitted with (config, action, …), or None if it never was.

    Args:
        folder: the job's folder.
        required: fields that the caller reads.

    Raises:
        ValueError: the file is damaged, or lacks a required field; the message names both.
    """
    shape = SPEC | {name: SPEC[name][0] for name in required}
    return read_json(folder / "spec.json", shape, f"move {folder} away, and submit the job again")


@contextlib.contextmanager
def naming_spec(folder: Path) -> Iterator[None]:
    """Name folder/spec.json in the error of a config that the `with` block takes out of it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{folder / 'spec.json'}: {error}; or move {folder} away, and submit the job again") from None


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


def rank_logs(folder: Path) -> dict[Path, str]:
    """Return the log of each rank, of the job's newest attempt alone.

    All attempts write to one file, of which the end is read: of many ranks, less of each. If the disk was full, a log
    may lack the error that record_failure has written elsewhere; it is added.
    """
    job, texts = read_job(folder), {}
    files = sorted((folder / "submitit").glob(f"{job['job_id']}_*_log.err")) if job else []
    for file in filter(is_plain, files):
        *earlier, text = STARTS.split(read_tail(file, MOST_READ // len(files)))
        error = folder / "failures" / f"{earlier[-1] if earlier else ''}-rank{file.name.split('_')[-2]}.txt"
        recorded = read_tail(error, MOST_READ // len(files)).strip()
        texts[file] = text.strip() if recorded[-500:] in text else f"{text.strip()}\n{recorded}"
    return texts


def read_tail(file: Path, most: int = TAIL) -> str:
    """Return the end of a log as printable lines, at most TAIL bytes; "" if it is missing or not plain."""
    if not is_plain(file):
        return ""
    with open(file, "rb") as log:
        log.seek(-min(file.stat().st_size, most, TAIL), os.SEEK_END)
        text = log.read(TAIL).decode(errors="replace")
    return printable(text.replace("\r\n", "\n").replace("\r", "\n"), "\n")


def ended_by(texts: dict[Path, str]) -> Path | None:
    """Return the most useful log: of a rank that failed by itself or fell silent, not of one that lost its peer."""
    errors = {file: last_error(text) for file, text in texts.items()}
    failed = [file for file, error in errors.items() if error and not lost_peer(error)]
    silent = [file for file, error in errors.items() if not error]
    return next(iter(failed or silent or texts), None)


def log_tail(folder: Path, lines: int = 25) -> str:
    """Return the tail of the most useful log, below its path; see `ended_by`."""
    texts = rank_logs(folder)
    log = ended_by(texts)
    if not log or not any(texts.values()):
        return f"no log in {folder / 'submitit'}"
    return f"{log}:\n" + "\n".join(texts[log].splitlines()[-lines:])


SILENT = "its process ended without a word (signal 9: out of memory?)"
STARTS = re.compile(rf"^{STARTED}([\w.-]{{1,100}})\n", re.MULTILINE)
RANK = re.compile(r"^\[rank\d+\]: ?")  # torch begins the lines of a traceback with it
RAISED = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Failed)\b")  # the line of a traceback that names the error
# what may follow an error's message in a log
FOLLOWING = re.compile(r"(\[rank\d+\]: )?(Traceback|srun|slurmstepd|submitit|egokit: |[WEI]\d{4} |\s*$)")
# what is said of a process that could say nothing itself: slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT …
OBITUARY = re.compile(r"\*\*\* |Fatal Python error: |slurmstepd: .* oom|srun: .*(Out Of Memory|fault|Aborted)")


def ending(folder: Path, lines: int) -> tuple[list[str], Path | None]:
    """Return the message of what ended a job, and the log that has it, or None without a log.

    Args:
        lines: the most lines of the message.
    """
    texts = rank_logs(folder)
    log, spoken = ended_by(texts), [line for text in texts.values() for line in text.splitlines()]
    if not log:
        return [f"no log in {folder / 'submitit'}"], None
    if notices := [line for line in spoken if line.startswith("egokit: not requeued: a rank was lost")]:
        return notices[-1:], log
    tail = texts[log].splitlines()
    raised = [number for number, line in enumerate(tail) if RAISED.match(line)]
    if not raised and TRACEBACK in texts[log]:  # an exception by another kind of name, such as KeyboardInterrupt
        begins = max(number for number, line in enumerate(tail) if TRACEBACK in line)
        raised = [number for number, line in enumerate(tail) if number > begins and RANK.sub("", line)[:1].strip()][:1]
    if raised:
        rest = tail[raised[-1] + 1:]
        length = next((number for number, line in enumerate(rest) if FOLLOWING.match(line)), len(rest))
        return [tail[raised[-1]], *rest[:min(length, lines - 1)]], log
    said = [line for line in spoken if OBITUARY.search(line)]
    return said[-1:] or [SILENT, *(f"> {line}" for line in tail[1 - lines:])], log


def error_message(folder: Path, lines: int = 6) -> str:
    """Return the message of the error that ended a job, once and without its traceback, and the log that has it."""
    message, log = ending(folder, lines)
    return "\n".join([*(RANK.sub("", line) for line in message), *([f"The whole log: {log}"] if log else [])])


def failure_reason(folder: Path) -> str:
    """Return the line that says best why a job ended, short; of a silent end, with the log's name."""
    message, log = ending(folder, 6)
    return f"{SILENT}: {Path(*log.parts[-4:])}" if message[0] == SILENT else shortened(RANK.sub("", message[0]))


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
