"""Views of a run's log.jsonl: columns that grow with the file, and a TensorBoard file.

The log itself is the only source; both views can be made again from it.
"""
import contextlib
import math
import os
from array import array
from collections.abc import Container
from pathlib import Path

from egokit.config.access import exists
from egokit.config.json_file import COUNT, HUGE, TIME, check_fields, parse_json

POSITION = {"kind", "step", "steps", "epoch", "best", "time"}  # keys of a line that are no scalars
GROUPS = {"loss": "loss", "lr": "optimizer", "lr_heads": "optimizer", "grad_norm": "optimizer", "scale": "optimizer",
          "skipped": "optimizer", "bad": "data", "data_s": "speed", "step_s": "speed", "save_s": "speed",
          "clips_per_s": "speed", "eta_s": "speed", "memory_gib": "speed",
          **dict.fromkeys(("forward_s", "backward_s", "update_s", "wait_s"), "speed"),
          **dict.fromkeys(("longest_wait_s", "slowest_rank", "slowest_wait_s", "slowest_data_s", "slowest_compute_s",
                           "slowest_queued"), "ranks"),
          **dict.fromkeys(("cpu_share", "cpu_cores", "cpu_worker_cores", "cpu_other_cores", "cpu_available",
                           "host_memory_gib", "host_memory_used", "memory_stall", "faults_per_s", "gpu_memory_used",
                           "gpu_memory_retries"), "machine")}
LONGEST = 16 << 20  # bytes of a line
PREDICTIONS = [{"text": str, "clips": [COUNT], "scores": [float], "relevancy": [float], "rank": (COUNT, ...)}]
EVENT = {"kind": str, "step": (COUNT, ...), "steps": (COUNT, ...), "epoch": (COUNT, ...), "time": (TIME, ...),
         "eta_s": (TIME, None, ...), "best": (bool, ...), "score": (str, ...), "watched": ({...: (float, None)}, ...),
         "predictions": (PREDICTIONS, ...), "plan": (str, ...), "notebook": (str, ...), "seconds": (float, None, ...),
         "device": (str, ...), "workers": (COUNT, ...), "ranks_on_node": (COUNT, ...), "precision": (str, ...)}


def parse_event(line: bytes) -> dict:
    """Return the event in a line of the log; raise ValueError if the line is damaged."""
    event = parse_json(line)
    check_fields(event, EVENT)
    is_plan = event["kind"] == "plan"
    is_positioned = is_plan or "steps" in event or event["kind"] in ("step", "validation", "extract")
    for name, is_needed in (("step", is_positioned), ("epoch", "predictions" in event), ("plan", is_plan)):
        if is_needed and name not in event:
            raise ValueError(f"{name!r} is missing, which is expected here")
    return event


def read_events(folder: Path, kinds: Container[str] | None = None) -> tuple[list[dict], str]:
    """Return the events of a run's log.jsonl, and what is damaged in it: a sentence for a user, "" if nothing is.

    Damaged lines are left out. A torn last line, which a process may be writing, is left out and not mentioned.

    Args:
        folder: the run's folder.
        kinds: return one event alone, with the newest value of each field of the events of these kinds; None: all.

    Raises:
        PermissionError: this user may not read it.
    """
    path, events, damage, count = folder / "log.jsonl", [] if kinds is None else [{}], "", 0
    if not exists(path):
        return events, ""
    if not path.is_file():
        return events, f"{path} is not a regular file: move it away"
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            try:
                event = parse_event(line)
                if kinds is None:
                    events.append(event)
                elif event["kind"] in kinds:
                    events[0] |= event
            except ValueError as error:
                if line.endswith(b"\n") or len(line) == LONGEST:
                    count += 1
                    damage = damage or f"{path}: line {number} is damaged, {error}"
    more = f" (and {count - 1} more lines)" if count > 1 else ""
    return events, damage and f"{damage}{more}; it is left out: delete it"


def scalars(event: dict) -> dict[str, float]:
    """Return {"group/name": number} of one line of the log.

    Keys of a step's line that are not in GROUPS are loss terms; "loss/loss" is their sum. Nulls (NaN, infinite) are
    left out. Lines of other kinds than step and validation have no scalars: the result is empty.
    """
    if event["kind"] not in ("step", "validation"):
        return {}
    is_validation = event["kind"] == "validation"
    watched = {f"watched/{name}": value for name, value in event.get("watched", {}).items() if value is not None}
    return watched | {f"{'validation' if is_validation else GROUPS.get(name, 'loss')}/{name}": value
            for name, value in event.items()
            if name not in POSITION and isinstance(value, (int, float)) and abs(value) < HUGE}


class Columns:
    """Rows of numbers stored as columns, 8 bytes per number.

    Rows may have different names; a column holds NaN for a row without its name.
    """

    def __init__(self):
        self.rows, self.columns = 0, {}

    def append(self, row: dict[str, float]) -> None:
        """Add a row; new names become new columns."""
        for name in row:
            if name not in self.columns:
                self.columns[name] = array("d", [math.nan]) * self.rows
        for name, column in self.columns.items():
            column.append(row.get(name, math.nan))
        self.rows += 1

    def names(self, group: str) -> list[str]:
        """Return the names of a group, in the order of the log's keys."""
        return [name for name in self.columns if name.startswith(f"{group}/")]

    def __getitem__(self, name: str):
        """Return a column as a float64 array (rows,); all NaN if no row has the name."""
        import numpy as np
        return np.array(self.columns.get(name) or [math.nan] * self.rows)


class History:
    """The contents of a run's log.jsonl so far.

    Each `update` reads only the lines that were added; after a resumed run has truncated the log, it reads all again.

    Attributes:
        training, validation: Columns; one row for each step's or validation's line, with its "step".
        best: the step of best.pt, or None.
        predictions: (epoch, predictions for a few samples) of each validation.
        machine: what the newest start computes on and with (the event of kind "machine"); {} in an older log.
        machine_row: the first row of `training` that was computed there.
        step, steps, epoch: the position of the last line, or None.
    """

    def __init__(self, folder: Path):
        self.path = folder / "log.jsonl"
        self._clear()

    def _clear(self) -> None:
        self.training, self.validation, self.best = Columns(), Columns(), None
        self.predictions, self.machine, self.machine_row = [], {}, 0
        self.step = self.steps = self.epoch = None
        self._offset, self._last = 0, b""

    def update(self) -> bool:
        """Read the new lines and return whether there were any.

        A torn last line waits for the next call.
        """
        if not self.path.is_file():
            return False
        with open(self.path, "rb") as file:
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:  # a resumed run has truncated the log
                self._clear()
                file.seek(0)
            before = self._offset
            for line in iter(lambda: file.readline(LONGEST), b""):
                if not line.endswith(b"\n") and len(line) < LONGEST:
                    break
                self._offset, self._last = self._offset + len(line), line
                with contextlib.suppress(ValueError):  # jobs.runs_table says which line is damaged
                    self._add(parse_event(line))
        return self._offset != before

    def _add(self, event: dict) -> None:
        if "steps" in event:
            self.step, self.steps, self.epoch = event["step"], event["steps"], event.get("epoch")
        if event["kind"] == "machine":
            self.machine, self.machine_row = event, self.training.rows
        if row := scalars(event):
            if event.get("best"):
                self.best = event["step"]
            if event.get("predictions"):
                self.predictions.append((event["epoch"], event["predictions"]))
            (self.validation if event["kind"] == "validation" else self.training).append({"step": event["step"]} | row)

    def last(self, name: str) -> float:
        """Return the newest number of a training column; NaN before the first."""
        column = self.training.columns.get(name)
        return column[-1] if column else math.nan

    def waiting(self):
        """Return the share of step time spent waiting for data, (rows,) of `training`."""
        return self.training["speed/data_s"] / self.training["speed/step_s"]


class TensorBoardLog:
    """TensorBoard's copy of a log: one event file in the run's folder.

    The folder gives the run its name in TensorBoard. The file is written anew from the log at every start,
    so it contains no torn or repeated event of a killed process.
    """

    def __init__(self, folder: Path, events: list[dict]):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        for old in folder.glob("events.out.tfevents.*"):
            os.truncate(old, 0)  # not deleted: a running TensorBoard would wait forever for the missing file
        self.writer = EventFileWriter(str(folder))
        # makes a running TensorBoard drop the points that it has read
        self.writer.add_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        for event in events:
            self.add(event)
        self.writer.flush()

    def add(self, event: dict) -> None:
        """Add the scalars of one line of the log."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(event).items()]
        if values:
            at = {"step": event["step"], "wall_time": event.get("time", 0)}
            self.writer.add_event(Event(**at, summary=Summary(value=values)))

    def flush(self) -> None:
        """Write buffered events to the file, for a running TensorBoard."""
        self.writer.flush()
