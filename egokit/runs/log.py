"""log.jsonl for those who look on: as columns that grow with the file, and as TensorBoard's event file. The log is the truth."""
from __future__ import annotations

import contextlib
import json
import math
import os
from array import array
from pathlib import Path

POSITION = {"kind", "step", "steps", "epoch", "best", "time"}
GROUPS = {"loss": "loss", "lr": "optimizer", "lr_heads": "optimizer", "grad_norm": "optimizer", "scale": "optimizer",
          "skipped": "optimizer", "bad": "data", "data_s": "speed", "step_s": "speed", "clips_per_s": "speed", "eta_s": "speed",
          "memory_gib": "speed"}


def scalars(event: dict) -> dict[str, float]:
    """{"group/name": number} of a line of the log; what a step's line has beyond GROUPS is a loss term, "loss/loss" their sum.

    Empty for lines of other kinds than step and validation. What is null (NaN, infinite) is left out.
    """
    if event["kind"] not in ("step", "validation"):
        return {}
    checked = event["kind"] == "validation"
    return {f"{'validation' if checked else GROUPS.get(name, 'loss')}/{name}": value for name, value in event.items()
            if name not in POSITION and isinstance(value, (int, float))}


class Columns:
    """Rows of numbers as columns: 8 bytes a number, whatever names turn up; NaN where a row has none."""

    def __init__(self):
        self.rows, self.columns = 0, {}

    def append(self, row: dict[str, float]) -> None:
        for name in row:
            if name not in self.columns:
                self.columns[name] = array("d", [math.nan]) * self.rows
        for name, column in self.columns.items():
            column.append(row.get(name, math.nan))
        self.rows += 1

    def names(self, group: str) -> list[str]:
        """Names of a group in the order of the log's keys."""
        return [name for name in self.columns if name.startswith(f"{group}/")]

    def __getitem__(self, name: str):
        """A column as a NumPy array; NaN for one that no row has."""
        import numpy as np
        return np.array(self.columns.get(name) or [math.nan] * self.rows)


class History:
    """What a run's log.jsonl says so far. Each `update` reads only what was added; of a log that was cut, everything."""

    def __init__(self, folder: Path):
        self.path = folder / "log.jsonl"
        self._clear()

    def _clear(self) -> None:
        self.training, self.validation, self.best = Columns(), Columns(), None  # best: the step of best.pt
        self.predictions = []  # (epoch, what was predicted of a few samples) of each validation
        self.step = self.steps = self.epoch = None  # where the last line stands
        self._offset, self._last = 0, b""

    def update(self) -> bool:
        """Read on; whether there was anything new. A torn last line is left for the next time."""
        if not self.path.exists():
            return False
        with open(self.path, "rb") as file:
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:  # a resumed run has cut the log
                self._clear()
                file.seek(0)
            before = self._offset
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset, self._last = self._offset + len(line), line
                with contextlib.suppress(json.JSONDecodeError):
                    self._add(json.loads(line))
        return self._offset != before

    def _add(self, event: dict) -> None:
        if "steps" in event:
            self.step, self.steps, self.epoch = event["step"], event["steps"], event.get("epoch")
        if row := scalars(event):
            if event.get("best"):
                self.best = event["step"]
            if event.get("predictions"):
                self.predictions.append((event["epoch"], event["predictions"]))
            (self.validation if event["kind"] == "validation" else self.training).append({"step": event["step"]} | row)

    def last(self, name: str) -> float:
        """The newest number of a training column; NaN before the first."""
        column = self.training.columns.get(name)
        return column[-1] if column else math.nan

    def waiting(self):
        """Share of the step time that was spent waiting for data, for every line of the log."""
        return self.training["speed/data_s"] / self.training["speed/step_s"]


class TensorBoardLog:
    """TensorBoard's copy of a log: one event file in the run's folder, which so is the run's name there.

    It is made anew from the log at every start: nothing that a killed process left can be in it, torn or twice.
    """

    def __init__(self, folder: Path, events: list[dict]):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        for old in folder.glob("events.out.tfevents.*"):
            os.truncate(old, 0)  # a TensorBoard that looks on would wait for ever for one that is gone
        self.writer = EventFileWriter(str(folder))
        self.writer.add_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))  # a TensorBoard that looks on forgets
        for event in events:
            self.add(event)
        self.writer.flush()

    def add(self, event: dict) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(event).items()]
        if values:
            self.writer.add_event(Event(step=event["step"], wall_time=event["time"], summary=Summary(value=values)))

    def flush(self) -> None:
        self.writer.flush()
