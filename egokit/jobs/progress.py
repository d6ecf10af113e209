"""Job progress: where it is recorded, how it is read, and the progress bar.

Training and extraction write theirs to the run's log.jsonl, which all jobs of a run share. An evaluation writes a
file of its own, progress.json in its job's folder, because the log is to keep nothing of it.
"""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from egokit.runs.files import write_text
from egokit.runs.run_folder import Run

PROGRESS_FILE = "progress.json"
KINDS = {"train": ("step", "validation"), "extract": ("extract",)}  # the kinds of an action's events in log.jsonl


def read_progress(run: Run, folder: Path, action: str | None) -> dict:
    """Return the newest of everything that a job has recorded; {} before its first record.

    Other jobs of the run, whose events stand in the same log, don't count.

    Args:
        run: the job's run.
        folder: the job's folder.
        action: "train", "evaluate" or "extract"; None for a job that was never submitted.

    Returns:
        Among others "step", "steps", "eta_s" (seconds left) and the metrics of the last validation.
    """
    if action == "evaluate":
        return read_progress_file(folder)
    newest = {}
    for event in run.read_log():
        if event["kind"] in KINDS.get(action, ()):
            newest |= event
    return newest


class ProgressFile:
    """A callback that writes jobs/<section>/progress.json: {"step", "steps", "time", "eta_s"}.

    Args:
        folder: the job's folder.
        every: seconds between two writes, at least. The first and the last step are always written.
    """

    def __init__(self, folder: Path, every: float = 2.0):
        self.path, self.every, self.began, self.written = folder / PROGRESS_FILE, every, time.monotonic(), 0.0
        self(0, 0)  # replaces what an interrupted evaluation has left

    def __call__(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if 0 < step < steps and now - self.written < self.every:
            return
        if not step:
            self.began = now
        left = {"eta_s": (now - self.began) * (steps - step) / step} if step else {}
        write_text(self.path, json.dumps({"step": step, "steps": steps, "time": time.time()} | left))
        self.written = now


def read_progress_file(folder: Path) -> dict:
    """Return what the job in `folder` has written to its progress file, or {} before that."""
    path = folder / PROGRESS_FILE
    return json.loads(path.read_text()) if path.exists() else {}


class ProgressBar:
    """A job's state as one line of text, updated every ten seconds at most.

    It is not updated more often because each update is a line of a saved notebook. Nothing is shown of a job that had
    finished before anybody waited for it.
    """
    STEPS = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

    def __init__(self, section: str, every: float = 10.0):
        self.section, self.every, self.bar, self.shown = section, every, None, 0.0

    def show(self, state: str, step: int | None, steps: int | None, detail: str = "") -> None:
        """Show the job's state, or its steps once it runs, with `detail` behind the bar."""
        if self.bar is None and state == "finished":
            return
        if state.startswith(("pending", "unknown")):
            self._show_text(f"{self.section} {state}")
        elif not steps:
            self._show_text(f"{self.section} starts" if state == "running" else f"{self.section} {state}")
        else:
            self._show_steps(step, steps, detail)

    def _show_text(self, text: str) -> None:
        if self.bar is None:
            from tqdm import tqdm
            self.bar = tqdm(desc=text, unit="step", ncols=110, file=sys.stdout, bar_format="{desc}")
        elif (self.bar.desc, self.bar.bar_format) != (text, "{desc}"):
            self.bar.desc, self.bar.bar_format = text, "{desc}"
            self.bar.refresh()

    def _show_steps(self, step: int, steps: int, detail: str) -> None:
        if self.bar is None:
            self._show_text(f"{self.section} starts")
        elif (step, steps) == (self.bar.n, self.bar.total) or (
                step < steps and time.monotonic() - self.shown < self.every):
            return
        if self.bar.total is None:  # tqdm's rate counts from here on, not the steps of an earlier start
            self.bar.initial, self.bar.start_t = step, time.time()
        self.shown, self.bar.total, self.bar.n = time.monotonic(), steps, step
        self.bar.desc, self.bar.bar_format = self.section, self.STEPS
        self.bar.set_postfix_str(detail, refresh=False)
        self.bar.refresh()

    def close(self) -> None:
        """End the bar's line."""
        if self.bar is not None:
            self.bar.close()
