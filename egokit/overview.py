"""All runs at a glance: the jobs of every run folder, where they are, how far, and the last score. Read from their files and squeue."""
from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from egokit import attach
from egokit.launch import Handle
from egokit.resolve import outputs_folder
from egokit.runs import Run

SCORES = ("ensemble_intra", "mAP")  # the metrics that choose a best checkpoint, in %


class Entry(NamedTuple):
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
    when: float             # the last sign of it


def entries(outputs: str | Path | None = None) -> list[Entry]:
    """One for every job that a run under `outputs` has had, the newest first. SLURM is asked once for all of them."""
    outputs = outputs_folder() if outputs is None else Path(outputs)
    specs = sorted(outputs.glob("*/*/jobs/*/spec.json"))
    handles = [Handle(Run(spec.parents[2]), spec.parent.name) for spec in specs]
    asked = {}
    for handle in handles:
        try:
            job = handle.job()
            if job and job["cluster"] == "slurm" and not handle.metrics():
                asked[job["job_id"]] = handle
        except (OSError, ValueError):
            pass  # told below
    known = attach.places(asked)
    return sorted((entry(handle, known) for handle in handles), key=lambda one: -one.when)


def entry(handle: Handle, known: dict[str, attach.Place]) -> Entry:
    names = (handle.run.path.parent.name, handle.run.path.name, handle.section)
    began = (handle.folder / "spec.json").stat().st_mtime
    try:
        (state, detail), at = handle.status(known), handle.progress()
        scored = handle.metrics() or at
    except (OSError, ValueError) as error:  # another user's, or damaged
        return Entry(*names, "unreadable", str(error), None, None, None, "", None, began)
    metric = next((name for name in (*SCORES, *scored.get("published", ())) if scored.get(name) is not None), "")
    return Entry(*names, state, detail, at.get("step"), at.get("steps"), at.get("eta_s") if state == "running" else None,
                 metric, scored.get(metric), max(began, at.get("time", 0)))


def cells(one: Entry) -> list[str]:
    """An entry in words, a column each."""
    return [one.notebook, one.run, one.section, f"{one.state}: {one.detail}" if one.detail else one.state,
            f"{one.step}/{one.steps}" if one.steps else "", "" if one.left_s is None else attach.duration(one.left_s),
            f"{one.metric} {one.value:.1f}" if one.metric else "", time.strftime("%Y-%m-%d %H:%M", time.localtime(one.when))]


COLUMNS = ("notebook", "run", "job", "state", "step", "time left", "last metric, %", "last sign")


def lines(found: list[Entry]) -> str:
    """The overview as text."""
    if not found:
        return "no run has had a job: start one with a notebook or 'egokit submit'"
    rows = [COLUMNS, *map(cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def runs_table(outputs: str | Path | None = None):
    """The overview as a DataFrame, for a notebook."""
    import pandas as pd
    return pd.DataFrame(map(cells, entries(outputs)), columns=COLUMNS)
