"""All runs at a glance: the jobs of every run folder, notebooks' too: where they are, how far, and the last score.

Read from their files and squeue.
"""
from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from egokit.config.resolve import outputs_folder
from egokit.jobs import devices, status
from egokit.jobs.launch import Handle
from egokit.runs.run_folder import DEVICES, FAILED_NOTEBOOK, NOTEBOOK, Run

SCORES = ("ensemble_intra", "mAP")  # the metrics that choose a best checkpoint, in %


class JobRow(NamedTuple):
    notebook: str
    run: str
    section: str
    state: str              # as Handle.state(); or unreadable
    detail: str             # of a pending job: why, and its place in the queue
    step: int | None
    steps: int | None
    left_s: float | None    # of a running job
    metric: str             # of the last validation, or of the result
    value: float | None
    device: str             # of its ranks, as in its plan; empty before they have started
    when: float             # the last sign of it


class NotebookHandle(Handle):
    """A job that runs notebooks (batch.submit), told from its folder `batch/` and from what the notebooks have left."""

    def __init__(self, run: Run):
        super().__init__(run, "notebook")
        self.folder = run.path / "batch"

    def made(self) -> dict[Path, set[str]]:
        """The notebooks' run folders, and what the job has written there: NOTEBOOK, FAILED_NOTEBOOK or nothing yet."""
        folders = {self.run.path.parents[1] / name: before for name, before in self.spec()["before"].items()}
        return {folder: {name for name, at in result_times(folder).items() if at not in (0, before[name])} for folder, before in folders.items()}

    def status(self, known: dict[str, status.JobStatus] | None = None) -> tuple[str, str]:
        if place := status.job_status(self.folder, known):
            return place.state, place.detail
        made = self.made()
        missing = [folder for folder, names in made.items() if NOTEBOOK not in names]
        if not self.job() or not missing:
            return ("finished" if not missing else "new"), ""
        said = [notebook_failure(folder) for folder in missing if FAILED_NOTEBOOK in made[folder]]
        return "failed", next(filter(None, said), status.failure_reason(self.folder))

    def progress(self) -> dict:
        """step and steps are notebooks."""
        made = self.made()
        return {"step": sum(NOTEBOOK in names for names in made.values()), "steps": len(made)}


def result_times(folder: Path) -> dict[str, int]:
    """When a notebook's results, by name, were written, in the file system's nanoseconds; 0 for what isn't there."""
    return {name: (folder / name).stat().st_mtime_ns if (folder / name).exists() else 0 for name in (NOTEBOOK, FAILED_NOTEBOOK)}


def notebook_failure(folder: Path) -> str:
    """What ended a notebook, in its log's words; nothing is said of a kill -9."""
    lines = (folder / "notebook.log").read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if f" {folder.parent.name}.ipynb" in line), "")
    return last[last.index(folder.parent.name):][:100] if f"{folder.parent.name}.ipynb, " in last else ""


def job_rows(outputs: str | Path | None = None) -> list[JobRow]:
    """One for every job that a run under `outputs` has had, the newest first. SLURM is asked once for all of them."""
    outputs = outputs_folder() if outputs is None else Path(outputs)
    handles = [Handle(Run(spec.parents[2]), spec.parent.name) for spec in sorted(outputs.glob("*/*/jobs/*/spec.json"))]
    handles += [NotebookHandle(Run(spec.parents[1])) for spec in sorted(outputs.glob("*/*/batch/spec.json"))]
    asked = {}
    for handle in handles:
        try:
            job = handle.job()
            if job and job["cluster"] == "slurm" and not handle.metrics():
                asked[job["job_id"]] = handle
        except (OSError, ValueError):
            pass  # told below
    known = status.job_statuses(asked)
    return sorted((job_row(handle, known) for handle in handles), key=lambda one: -one.when)


def job_row(handle: Handle, known: dict[str, status.JobStatus]) -> JobRow:
    names = (handle.run.path.parent.name, handle.run.path.name, handle.section)
    began = (handle.folder / "spec.json").stat().st_mtime
    try:
        (state, detail), at = handle.status(known), handle.progress()
        ranks = (handle.folder / DEVICES).read_text().splitlines() if (handle.folder / DEVICES).exists() else []
        scored = handle.metrics() or at
    except (OSError, ValueError) as error:  # another user's, or damaged
        return JobRow(*names, "unreadable", str(error), None, None, None, "", None, "", began)
    metric = next((name for name in (*SCORES, *scored.get("published", ())) if scored.get(name) is not None), "")
    return JobRow(*names, state, detail, at.get("step"), at.get("steps"), at.get("eta_s") if state == "running" else None,
                 metric, scored.get(metric), devices.devices_text(ranks), max(began, at.get("time", 0)))


def cells(one: JobRow) -> list[str]:
    """An entry in words, a column each."""
    return [one.notebook, one.run, one.section, f"{one.state}: {one.detail}" if one.detail else one.state,
            f"{one.step}/{one.steps}" if one.steps else "", "" if one.left_s is None else status.duration(one.left_s),
            f"{one.metric} {one.value:.1f}" if one.metric else "", one.device, time.strftime("%Y-%m-%d %H:%M", time.localtime(one.when))]


COLUMNS = ("notebook", "run", "job", "state", "step", "time left", "last metric, %", "device", "last sign")


def format_table(found: list[JobRow]) -> str:
    """The overview as text."""
    if not found:
        return "no run has had a job: start one with a notebook or 'egokit submit'"
    rows = [COLUMNS, *map(cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def runs_table(outputs: str | Path | None = None):
    """The overview as a DataFrame, for a notebook."""
    import pandas as pd
    return pd.DataFrame(map(cells, job_rows(outputs)), columns=COLUMNS)
