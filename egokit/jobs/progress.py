"""How far a job is: what it has told, the file in which an evaluation tells it, and the bar that shows it.

Training and extraction tell theirs in the run's log.jsonl, which all jobs of a run share; of an evaluation nothing is to stay there.
"""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from egokit.runs.files import write_text
from egokit.runs.run_folder import Run

FILE = "progress.json"
KINDS = {"train": ("step", "validation"), "extract": ("extract",)}  # an action's events in log.jsonl


def read_progress(run: Run, folder: Path, action: str | None) -> dict:
    """The newest of everything that the job in `folder` has told: step, steps, eta_s, metrics of the last validation, …

    Empty before that. Other jobs of the run, whose events stand in the same log, don't count.
    """
    if action == "evaluate":
        return report_progress(folder)
    newest = {}
    for event in run.read_log():
        if event["kind"] in KINDS.get(action, ()):
            newest |= event
    return newest


class ProgressFile:
    """Writes jobs/<section>/progress.json: {"step", "steps", "time", "eta_s"}, every two seconds at most."""

    def __init__(self, folder: Path, every: float = 2.0):
        self.path, self.every, self.began, self.told = folder / FILE, every, time.monotonic(), 0.0
        self(0, 0)  # what an interrupted evaluation told holds no longer

    def __call__(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if 0 < step < steps and now - self.told < self.every:
            return
        if not step:
            self.began = now
        left = {"eta_s": (now - self.began) * (steps - step) / step} if step else {}
        write_text(self.path, json.dumps({"step": step, "steps": steps, "time": time.time()} | left))
        self.told = now


def report_progress(folder: Path) -> dict:
    """What the job has written so far; empty before that."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else {}


class Bar:
    """A job's state as one line of text; brought up to date every ten seconds at most: each time is a line of a saved notebook.

    Nothing is shown of a job that had finished before anybody waited for it.
    """
    STEPS = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

    def __init__(self, section: str, every: float = 10.0):
        self.section, self.every, self.bar, self.shown = section, every, None, 0.0

    def show(self, state: str, step: int | None, steps: int | None, detail: str = "") -> None:
        """detail: what stands behind the bar."""
        if self.bar is None and state == "finished":
            return
        if state.startswith(("pending", "unknown")):
            self._say(f"{self.section} {state}")
        elif not steps:
            self._say(f"{self.section} starts" if state == "running" else f"{self.section} {state}")
        else:
            self._draw(step, steps, detail)

    def _say(self, text: str) -> None:
        if self.bar is None:
            from tqdm import tqdm
            self.bar = tqdm(desc=text, unit="step", ncols=110, file=sys.stdout, bar_format="{desc}")
        elif (self.bar.desc, self.bar.bar_format) != (text, "{desc}"):
            self.bar.desc, self.bar.bar_format = text, "{desc}"
            self.bar.refresh()

    def _draw(self, step: int, steps: int, detail: str) -> None:
        if self.bar is None:
            self._say(f"{self.section} starts")
        elif (step, steps) == (self.bar.n, self.bar.total) or (step < steps and time.monotonic() - self.shown < self.every):
            return
        if self.bar.total is None:  # the rate is of what comes from now on
            self.bar.initial, self.bar.start_t = step, time.time()
        self.shown, self.bar.total, self.bar.n = time.monotonic(), steps, step
        self.bar.desc, self.bar.bar_format = self.section, self.STEPS
        self.bar.set_postfix_str(detail, refresh=False)
        self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
