"""The table of all runs: each job's state, its progress and its last score.

It is read from the run folders and from squeue, and includes jobs that run notebooks.
"""
import time
from pathlib import Path
from typing import NamedTuple

from egokit.config.names import check_path_within, printable
from egokit.config.resolve import outputs_folder
from egokit.jobs import devices, status
from egokit.jobs.handle import Handle
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
                   for name, times in self.spec()["before"].items()}
        return {folder: {name for name, written in result_times(folder).items() if written not in (0, before[name])}
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
    lines = (folder / "notebook.log").read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if f" {folder.parent.name}.ipynb" in line), "")
    return last[last.index(folder.parent.name):][:100] if f"{folder.parent.name}.ipynb, " in last else ""


def job_rows(outputs: str | Path | None = None) -> list[JobRow]:
    """Return a row for every job of the runs under a folder, the newest first.

    SLURM is asked once for all of them.

    Args:
        outputs: the folder of all runs; by default the project's outputs folder.
    """
    outputs = outputs_folder() if outputs is None else Path(outputs)
    handles = [Handle(Run(spec.parents[2]), spec.parent.name) for spec in sorted(outputs.glob("*/*/jobs/*/spec.json"))]
    handles += [NotebookHandle(Run(spec.parents[1])) for spec in sorted(outputs.glob("*/*/batch/spec.json"))]
    slurm_jobs = []
    for handle in handles:
        try:
            job = handle.job()
            if job and job["cluster"] == "slurm" and not handle.metrics():
                slurm_jobs.append(job["job_id"])
        except (OSError, ValueError):
            pass  # job_row reports it
    statuses = status.job_statuses(dict.fromkeys(slurm_jobs))  # each job once
    return sorted((job_row(handle, statuses) for handle in handles), key=lambda row: -row.last_sign)


def job_row(handle: Handle, statuses: dict[str, status.JobStatus]) -> JobRow:
    """Return a job's row; `statuses` are those of all SLURM jobs."""
    names = (handle.run.path.parent.name, handle.run.path.name, handle.section)
    began = (handle.folder / "spec.json").stat().st_mtime
    try:
        (state, detail), progress = handle.status(statuses), handle.progress()
        ranks = (handle.folder / DEVICES).read_text().splitlines() if (handle.folder / DEVICES).exists() else []
        scores = handle.metrics() or progress
    except (OSError, ValueError) as error:  # files of another user, or damaged ones
        return JobRow(*names, "unreadable", str(error), None, None, None, "", None, "", began)
    metric = next((name for name in (scores.get("score"), *SCORES) if scores.get(name) is not None), "")
    return JobRow(*names, state, detail, progress.get("step"), progress.get("steps"),
                  progress.get("eta_s") if state == "running" else None, metric, scores.get(metric),
                  devices.devices_text(ranks), max(began, progress.get("time", 0)))


def cells(row: JobRow) -> list[str]:
    """Return a row as text, one cell for each of COLUMNS."""
    return [row.notebook, row.run, row.section, f"{row.state}: {row.detail}" if row.detail else row.state,
            f"{row.step}/{row.steps}" if row.steps else "", "" if row.left_s is None else status.duration(row.left_s),
            f"{row.metric} {row.value:.1f}" if row.metric else "", row.device,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(row.last_sign))]


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
