"""Job progress: where it is recorded, how it is read, and the progress bar.

Training and extraction write theirs to the run's log.jsonl, which all jobs of a run share. An evaluation and a
profile write a file of their own, progress.json in the job's folder, because the log is to keep nothing of it.
"""
import json
import sys
import time
from pathlib import Path

from egokit.config.json_file import COUNT, TIME, read_json
from egokit.runs.files import write_text
from egokit.runs.log import read_events
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown

PROGRESS_FILE = "progress.json"
KINDS = {"train": ("step", "validation"), "extract": ("extract",)}  # the kinds of an action's events in log.jsonl
PROGRESS = {"step": COUNT, "steps": COUNT, "time": TIME, "eta_s": (TIME, ...)}  # the fields of progress.json


def read_progress(run: Run, folder: Path, action: str | None) -> dict:
    """Return the newest of everything that a job has recorded; {} before its first record.

    Other jobs of the run, whose events stand in the same log, don't count.

    Args:
        run: the job's run.
        folder: the job's folder.
        action: "train", "evaluate", "extract" or "profile"; None for a job that was never submitted.

    Returns:
        Among others "step", "steps", "eta_s" (seconds left) and the metrics of the last validation; and "damage", what
        is damaged in the log, if anything is.

    Raises:
        ValueError: the progress file is damaged; the message names it.
    """
    if action in ("evaluate", "profile"):
        return read_progress_file(folder)
    (newest,), damage = read_events(run.path, KINDS.get(action, ()))
    return newest | ({"damage": damage} if damage else {})


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
    return read_json(folder / PROGRESS_FILE, PROGRESS, "delete it: the job writes it again") or {}


class ProgressBar:
    """A job's state as a line of text, and a bar of its steps once it runs.

    The bar is updated every ten seconds at most, because each update is a line of a saved notebook. Nothing is shown of
    a job that had finished before anybody waited for it.
    """

    def __init__(self, section: str):
        self.section, self.bar = shown(section), None

    def show(self, state: str, step: int | None, steps: int | None, detail: str = "") -> None:
        """Show the job's state, or its steps once it runs, with `detail` behind the bar."""
        from tqdm import tqdm
        if self.bar is None and state == "finished":
            return
        has_steps = bool(steps) and not state.startswith(("pending", "unknown"))
        text = self.section if has_steps else f"{self.section} {'starts' if state == 'running' else shown(state)}"
        if self.bar is None or has_steps != bool(self.bar.total):
            self.close()
            options = {"total": steps, "initial": step, "postfix": detail} if has_steps else {"bar_format": "{desc}"}
            self.bar = tqdm(desc=text, unit="step", ncols=110, file=sys.stdout, mininterval=10, **options)
        if has_steps:
            self.bar.set_postfix_str(detail, refresh=False)
            self.bar.update(step - self.bar.n)
        elif text != self.bar.desc:
            self.bar.set_description_str(text)

    def close(self) -> None:
        """End the line."""
        if self.bar is not None:
            self.bar.close()
