"""The table of all runs: each job's state, its progress and its last score.

It is read from the run folders and from squeue, and includes jobs that run notebooks or profile a training.
"""
import time
from pathlib import Path
from typing import NamedTuple

from egokit.config.access import exists
from egokit.config.json_file import TIME, check_fields
from egokit.config.names import check_path_within, printable
from egokit.config.resolve import outputs_folder
from egokit.jobs import devices, status
from egokit.jobs.handle import Handle
from egokit.runs.explain import shortened
from egokit.runs.run_folder import DEVICES, FAILED_NOTEBOOK, NOTEBOOK, Run

SCORES = ("ensemble_intra", "mAP")  # in %; of runs that don't record which metric is their "score"


class JobRow(NamedTuple):
    """One job of the table."""
    notebook: str
    run: str
    section: str
    state: str              # as Handle.state(), or "unreadable"
    detail: str             # the reason, as Handle.status()
    step: int | None
    steps: int | None
    left_s: float | None    # seconds left, of a running job
    metric: str             # the name of a score of the last validation, or of the result
    value: float | None
    device: str             # what its ranks compute on, as in its plan; "" before they have started
    last_sign: float        # when it last wrote something, in seconds since the epoch


class NotebookHandle(Handle):
    """A job that runs notebooks, submitted by notebook/batch.py.

    Its files are in the run's folder `batch/`; its results are the executed notebooks.
    """

    def __init__(self, run: Run):
        super().__init__(run, "notebook")
        self.folder = run.path / "batch"

    def results(self) -> dict[Path, set[str]]:
        """Return the results that the job has written, by the notebook's run folder.

        A notebook has NOTEBOOK, FAILED_NOTEBOOK or nothing yet.
        """
        folders = {self.run.path.parents[1] / check_path_within(name): times
                   for name, times in self.spec("before")["before"].items()}
        return {folder: {name for name, written in result_times(folder).items() if written not in (0, before.get(name))}
                for folder, before in folders.items()}

    def status(self, statuses: dict[str, status.JobStatus] | None = None) -> tuple[str, str]:
        """Return the job's state and its reason, as Handle.status."""
        if job_status := status.job_status(self.folder, statuses):
            return job_status.state, job_status.detail
        results = self.results()
        missing = [folder for folder, names in results.items() if NOTEBOOK not in names]
        if not self.job() or not missing:
            return ("finished" if not missing else "new"), ""
        messages = [notebook_failure(folder) for folder in missing if FAILED_NOTEBOOK in results[folder]]
        return "failed", next(filter(None, messages), status.failure_reason(self.folder))

    def progress(self) -> dict:
        """Return "step" and "steps", counted in notebooks."""
        results = self.results()
        return {"step": sum(NOTEBOOK in names for names in results.values()), "steps": len(results)}


class ProfileHandle(Handle):
    """A job of `egokit profile`, which jobs/profiling.py submits.

    It writes to a run folder of its own, `profile/` in that of the run.
    """

    def __init__(self, profiled: Run):
        super().__init__(Run(profiled.path / "profile"), "profile")
        self.profiled = profiled


def result_times(folder: Path) -> dict[str, int]:
    """Return when each of a notebook's results was written, by the file system's clock.

    The keys are NOTEBOOK and FAILED_NOTEBOOK; the values are nanoseconds, 0 for a file that doesn't exist.
    """
    return {name: (folder / name).stat().st_mtime_ns if (folder / name).exists() else 0
            for name in (NOTEBOOK, FAILED_NOTEBOOK)}


def notebook_failure(folder: Path) -> str:
    """Return the line of a notebook's log that says why it failed.

    It is "" after a kill -9, which logs nothing.
    """
    lines = status.read_tail(folder / "notebook.log").splitlines()
    last = next((line for line in reversed(lines) if f" {folder.parent.name}.ipynb" in line), "")
    return shortened(last[last.index(folder.parent.name):]) if f"{folder.parent.name}.ipynb, " in last else ""


def job_rows(outputs: str | Path | None = None) -> list[JobRow]:
    """Return a row for every job of the runs under a folder, the newest first.

    SLURM is asked once for all of them.

    Args:
        outputs: the folder of all runs; by default the project's outputs folder.
    """
    outputs = outputs_folder() if outputs is None else Path(outputs)
    exists(outputs)  # a folder that this user may not read has no runs to show, and isn't empty
    handles = [Handle(Run(spec.parents[2]), spec.parent.name) for spec in sorted(outputs.glob("*/*/jobs/*/spec.json"))]
    handles += [NotebookHandle(Run(spec.parents[1])) for spec in sorted(outputs.glob("*/*/batch/spec.json"))]
    handles += [ProfileHandle(Run(spec.parents[3]))
                for spec in sorted(outputs.glob("*/*/profile/jobs/profile/spec.json"))]
    slurm_jobs = []
    for handle in handles:
        try:
            job = handle.job()
            if job and job["cluster"] == "slurm" and not handle.metrics():
                slurm_jobs.append(job["job_id"])
        except (OSError, ValueError):
            pass  # job_row reports it
    statuses = status.job_statuses(dict.fromkeys(slurm_jobs))  # each job once
    rows = [*(job_row(handle, statuses) for handle in handles), *closed_rows(outputs)]
    return sorted(rows, key=lambda row: -row.last_sign)


def closed_rows(outputs: Path) -> list[JobRow]:
    """Return a row for every folder of runs, and every run, into which this user may not look."""
    rows = []
    for path in sorted(path for pattern in ("*", "*/*") for path in outputs.glob(pattern) if path.is_dir()):
        try:
            exists(path)
        except PermissionError as error:
            notebook, run = (*path.relative_to(outputs).parts, "")[:2]
            rows.append(unreadable_row(notebook, run, "", error, path.stat().st_mtime))
    return rows


def unreadable_row(notebook: str, run: str, section: str, error: Exception, last_sign: float) -> JobRow:
    """Return the row of what can't be read."""
    return JobRow(notebook, run, section, "unreadable", str(error), None, None, None, "", None, "", last_sign)


def job_row(handle: Handle, statuses: dict[str, status.JobStatus]) -> JobRow:
    """Return a job's row; `statuses` are those of all SLURM jobs."""
    folder = (handle.profiled if isinstance(handle, ProfileHandle) else handle.run).path
    names, began = (folder.parent.name, folder.name, handle.section), 0.0
    try:
        began = (handle.folder / "spec.json").stat().st_mtime
        (state, detail), progress = handle.status(statuses), handle.progress()
        ranks = (handle.folder / DEVICES).read_text(errors="replace").splitlines() \
            if (handle.folder / DEVICES).is_file() else []
        scores = handle.metrics() or progress
        metric = next((name for name in (scores.get("score"), *SCORES) if scores.get(name) is not None), "")
        if metric:
            check_fields(scores[metric], float, f"{metric} in metrics.json or log.jsonl of {handle.run.path}")
    except (OSError, ValueError) as error:  # files of another user, or damaged ones
        return unreadable_row(*names, error, began)
    detail = "; ".join(filter(None, (detail, progress.get("damage"))))
    return JobRow(*names, state, detail, progress.get("step"), progress.get("steps"),
                  progress.get("eta_s") if state == "running" else None, metric, scores.get(metric),
                  devices.devices_text(ranks), max(began, progress.get("time", 0)))


def cells(row: JobRow) -> list[str]:
    """Return a row as text, one cell for each of COLUMNS."""
    return [row.notebook, row.run, row.section, f"{row.state}: {row.detail}" if row.detail else row.state,
            f"{row.step}/{row.steps}" if row.steps else "", "" if row.left_s is None else status.duration(row.left_s),
            f"{row.metric} {row.value:.1f}" if row.metric else "", row.device,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(min(row.last_sign, TIME.stop - 1)))]


COLUMNS = ("notebook", "run", "job", "state", "step", "time left", "last metric, %", "device", "last sign")


def format_table(rows: list[JobRow]) -> str:
    """Return the table as text, as `egokit runs` prints it."""
    if not rows:
        return "no run has had a job: start one with a notebook or 'egokit submit'"
    lines = [COLUMNS, *([printable(cell) for cell in cells(row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def runs_table(outputs: str | Path | None = None):
    """Return the table of all runs as a pandas DataFrame, for a notebook.

    Args:
        outputs: the folder of all runs; by default the project's outputs folder.

    Returns:
        One row for every job, the newest first, and a text column for each of COLUMNS.
    """
    import pandas as pd
    return pd.DataFrame(map(cells, job_rows(outputs)), columns=COLUMNS)
