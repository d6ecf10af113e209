"""A run folder: what a run leaves behind, and how it is read back.

    outputs/<notebook>/<run>/{params.yaml, log.jsonl, events.out.tfevents.*, metrics.json, checkpoints/, figures/, notebook.ipynb}

Every whole file is written beside its place and renamed, so a reader never sees half of one, and a
kill leaves the previous version. What the numbers mean is the business of tasks/ and metrics.py.
"""
from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from egokit.runs.files import atomic_path, write_text

NOTEBOOK, FAILED_NOTEBOOK = "notebook.ipynb", "notebook.failed.ipynb"  # an executed notebook in its run folder
DEVICES = "devices.txt"  # in a job's folder: what its ranks compute on, a line for each
AGAIN = "delete it, and the run's notebook, or 'egokit submit', writes it again"  # metrics.json


def _plain(value):
    """JSON without surprises: NumPy and torch scalars become numbers, NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class RunTakenOver(RuntimeError):
    """A newer attempt of the same job has taken over."""


class Run:
    """One run folder. Opening it creates the folder and nothing else."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.opened = None  # notebook.open_run's Config: a job may be of another, such as one of a sweep's
        self.board = None  # TensorBoard's copy of log.jsonl, in the process that trains
        self._claim: tuple[Path, str] | None = None

    def claim(self, file: Path, owner: str) -> None:
        """From now on this program writes here; one that claimed the same file before, and lives on, may not."""
        write_text(file, owner)
        self._claim = file, owner

    def check_owner(self) -> None:
        """Raises LostRun in a program whose job was queued again while it lived on, on a node that Slurm had given up."""
        if self._claim and self._claim[0].read_text() != self._claim[1]:
            raise RunTakenOver(f"{self.path} now belongs to attempt {self._claim[0].read_text()} of its job; this is {self._claim[1]}, and ends")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def figure(self, name: str) -> Path:
        """Where the figure or page `name` (with its suffix) goes."""
        (self.path / "figures").mkdir(exist_ok=True)
        return self.path / "figures" / name

    # log.jsonl: one line an event; a torn last line (a kill in mid-write) is ignored on reading
    def log(self, event: dict) -> None:
        self.check_owner()
        event = _plain({**event, "time": round(time.time(), 3)})
        with open(self.path / "log.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")
        if self.board:
            self.board.add(event)
            self.board.flush()

    def read_log(self) -> list[dict]:
        path = self.path / "log.jsonl"
        events = []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    events.append(json.loads(line))
        return events

    def truncate_log(self, keep: Callable[[dict], bool]) -> None:
        """Drop the events that are not to be kept: a resumed run writes them again, once. From here on TensorBoard's copy follows."""
        from egokit.runs.log import TensorBoardLog
        kept = [event for event in self.read_log() if keep(event)]
        write_text(self.path / "log.jsonl", "".join(json.dumps(event) + "\n" for event in kept))
        self.board = TensorBoardLog(self.path, kept)

    # metrics.json: {section: {metric: number}}; the truth about results, never a cell's output
    def metrics(self) -> dict[str, dict]:
        """Of all sections. Raises ValueError, which names the file, if it is damaged."""
        path = self.path / "metrics.json"
        if not path.exists():
            return {}
        try:
            found = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error}); {AGAIN}") from None
        if not isinstance(found, dict) or not all(isinstance(section, dict) for section in found.values()):
            raise ValueError(f'{path}: expected sections of metrics {{"finetune": {{"mAP": …}}, …}}, found {repr(found)[:60]}; {AGAIN}')
        return found

    def write_metrics(self, section: str, values: dict) -> None:
        self.check_owner()
        metrics = self.metrics()
        metrics[section] = _plain(values)
        write_text(self.path / "metrics.json", json.dumps(metrics, indent=1))

    # rows-<section>.npz: the scores behind the metrics, for pictures and for other people's statistics
    def write_rows(self, section: str, rows: dict, prompts_KE=None) -> None:
        import numpy as np
        with atomic_path(self.path / f"rows-{section}.npz") as temporary:
            np.savez(temporary, **rows, **({} if prompts_KE is None else {"prompts": prompts_KE}))

    def read_rows(self, section: str) -> tuple[dict, object]:
        """(rows, prompt embeddings or None) of a section that has been evaluated."""
        import numpy as np
        path = self.path / f"rows-{section}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: section {section!r} of this run has not been evaluated")
        with np.load(path) as saved:
            rows = {key: saved[key] for key in saved.files}
        return rows, rows.pop("prompts", None)
