"""A run folder: what a run leaves behind, and how it is read back.

    outputs/<notebook>/<run>/{params.yaml, log.jsonl, events.out.tfevents.*, metrics.json, checkpoints/, figures/, notebook.ipynb}

Every whole file is written beside its place and renamed, so a reader never sees half of one, and a
kill leaves the previous version. What the numbers mean is the business of tasks/ and metrics.py.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from egokit.config.build import ConfigError

WHOLE, UNFINISHED = "notebook.ipynb", "notebook.failed.ipynb"  # an executed notebook in its run folder
DEVICES = "devices.txt"  # in a job's folder: what its ranks compute on, a line for each
AGAIN = "delete it, and the run's notebook, or 'egokit submit', writes it again"  # metrics.json


def beside(path: Path) -> Path:
    """A new hidden name beside `path`, suffix kept: no other thread, process or machine that shares the folder picks it."""
    return path.with_name(f".{path.stem}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")


def abandoned(part: Path) -> bool:
    """Whether what `beside` named is nobody's: its process, of this machine, is gone; another machine's is a day old."""
    made_by, process, _ = part.name.rpartition(".part")[0].rsplit("-", 2)
    if made_by.endswith(f".{socket.gethostname()}"):
        return not Path("/proc", process).exists()
    return time.time() - part.stat().st_mtime > 86400


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds.

    The suffix is kept (encoders choose the container by it). On an error the temporary is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new empty folder beside `path`; put it into the place of `path` if the block succeeds. It holds files only."""
    path = Path(path)
    temporary = beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            _to_disk(file)
        while not _take_place(temporary, path):
            pass  # another process put its own there in between
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, path: Path) -> bool:
    """Rename the folder `new` to `path`. What is there steps aside first, as no rename replaces a folder that holds files."""
    old = beside(path)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, old)
    try:
        os.rename(new, path)
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def locked(folder: Path, busy: str = "") -> Iterator[None]:
    """Hold a folder, which is made: two that submit the same at once start one job. busy: printed if another process holds it."""
    with ours():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(end=busy, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Around the first writing to a run folder: another user's is a ConfigError that says what to do."""
    try:
        yield
    except PermissionError as error:
        raise ConfigError(f"{error.filename} can't be written: is the run another user's? Choose another run name, or set "
                          "EGOKIT_OUTPUTS to a folder of your own") from None


class LostRun(RuntimeError):
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
            raise LostRun(f"{self.path} now belongs to attempt {self._claim[0].read_text()} of its job; this is {self._claim[1]}, and ends")

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
        from egokit.history import Board
        kept = [event for event in self.read_log() if keep(event)]
        write_text(self.path / "log.jsonl", "".join(json.dumps(event) + "\n" for event in kept))
        self.board = Board(self.path, kept)

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
