"""The run folder: what a run leaves behind, and how it is read back.

    outputs/<notebook>/<run>/
        params.yaml  log.jsonl  events.out.tfevents.*  metrics.json  rows-<section>.npz  notebook.ipynb
        checkpoints/  figures/  jobs/

Whole files are written atomically: a reader never sees half of one, and a kill leaves the previous version. What the
numbers mean is defined in tasks/.
"""
import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from egokit.config import trust
from egokit.config.build import ConfigError
from egokit.config.json_file import check_fields, read_json
from egokit.runs.array_file import read_arrays
from egokit.runs.files import atomic_path, write_text
from egokit.runs.log import read_events

NOTEBOOK, FAILED_NOTEBOOK = "notebook.ipynb", "notebook.failed.ipynb"  # the executed notebook in its run folder
DEVICES = "devices.txt"  # in a job's folder: the device of each rank, one per line
AGAIN = "delete it, and the run's notebook, or 'egokit submit', writes it again"  # the fix for a bad metrics.json
SECTION = {"finished": (bool, ...), "score": (str, ...), "init_sha256": (str, ...)}  # fields of one of its sections


def _plain(value):
    """Return `value` for JSON: NumPy and torch scalars become numbers, NaN and inf null."""
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
    """A newer attempt of the same job has taken over its run folder."""


class Run:
    """One run folder. Opening it creates the folder and nothing else.

    Attributes:
        path: the folder, outputs/<notebook>/<run>.
        config: the Config with which notebook.open_run opened it, or None; the job of a sweep may have another.
        board: TensorBoard's copy of log.jsonl, in the process that trains; None elsewhere.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.config = None
        self.board = None
        self._claim: tuple[Path, str] | None = None

    def claim(self, file: Path, owner: str) -> None:
        """Become the only writer of this folder; an earlier process that is still alive stops.

        Args:
            file: the file that names the owner; every attempt of a job claims the same file.
            owner: unique name of this attempt.
        """
        write_text(file, owner)
        self._claim = file, owner

    def check_owner(self) -> None:
        """Raise RunTakenOver if another attempt of this job has claimed the folder.

        That happens when Slurm gives a node up and requeues the job, while the process on the node lives on.
        """
        if self._claim and self._claim[0].read_text() != self._claim[1]:
            raise RunTakenOver(f"{self.path} now belongs to attempt {self._claim[0].read_text()} of its job; "
                               f"this is {self._claim[1]}, and ends")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def links(self) -> dict[Path, str]:
        """Return the links in the folder that the user has not trusted, each with the hash to remember it by.

        submitit leaves links in its folder of a job, which are removed before the next job starts.
        """
        found = {}
        for folder, folders, files in os.walk(self.path):
            for link in filter(os.path.islink, map(Path(folder).joinpath, (*folders, *files))
                               if Path(folder).name != "submitit" else ()):
                leads = os.fsencode(link.absolute()) + b"\0" + os.fsencode(os.readlink(link))
                found[link] = hashlib.sha256(leads).hexdigest()
        return {link: sha256 for link, sha256 in found.items() if not trust.is_known(sha256)}

    def expect_no_links(self) -> None:
        """Raise ConfigError if something in the folder is a link: what the run writes would go elsewhere.

        The folder itself may be one, and those that `egokit trust` was called for.
        """
        if link := next(iter(self.links()), None):
            raise ConfigError(f"{link} is a link, and this run would write where it leads, to {os.readlink(link)}. If "
                              f"that is what you want, give the command: egokit trust {shlex.quote(str(self.path))}. "
                              "Otherwise delete it")

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.path / "checkpoints"

    def figure(self, name: str) -> Path:
        """Return the path of the figure or page `name` (with its suffix); its folder is created."""
        (self.path / "figures").mkdir(exist_ok=True)
        return self.path / "figures" / name

    # log.jsonl has one line per event; a torn last line (the process was killed while writing) is ignored on reading
    def log(self, event: dict) -> None:
        """Append an event and its time to log.jsonl, and to TensorBoard's copy if there is one."""
        self.check_owner()
        event = _plain({**event, "time": round(time.time(), 3)})
        with open(self.path / "log.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")
        if self.board:
            self.board.add(event)
            self.board.flush()

    def read_log(self) -> list[dict]:
        """Return the events of log.jsonl, without damaged lines; none if there is no log."""
        return read_events(self.path)[0]

    def truncate_log(self, keep: Callable[[dict], bool]) -> None:
        """Keep only the events for which `keep` is true, and begin TensorBoard's copy of the log.

        A resumed run drops the events after its checkpoint, because it writes them again.
        """
        from egokit.runs.log import TensorBoardLog
        kept = [event for event in self.read_log() if keep(event)]
        write_text(self.path / "log.jsonl", "".join(json.dumps(event) + "\n" for event in kept))
        self.board = TensorBoardLog(self.path, kept)

    # metrics.json holds {section: {metric: number}}; results are always read from it, never from a cell's output
    def metrics(self) -> dict[str, dict]:
        """Return metrics.json: {section: {metric: number}}; {} if there is none.

        Raises:
            ValueError: the file is damaged; the message names it.
        """
        path = self.path / "metrics.json"
        if (sections := read_json(path, object, AGAIN)) is None:
            return {}
        if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
            raise ValueError(f'{path}: expected sections of metrics {{"finetune": {{"mAP": …}}, …}}, '
                             f'found {repr(sections)[:60]}; {AGAIN}')
        try:
            check_fields(sections, {...: SECTION})
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {AGAIN}") from None
        return sections

    def write_metrics(self, section: str, values: dict) -> None:
        """Write one section of metrics.json; the others stay."""
        self.check_owner()
        metrics = self.metrics()
        metrics[section] = _plain(values)
        write_text(self.path / "metrics.json", json.dumps(metrics, indent=1))

    def write_rows(self, section: str, rows: dict, prompts_KE=None) -> None:
        """Write rows-<section>.npz: the scores behind the metrics, for figures and statistics.

        Args:
            section: section of metrics.json.
            rows: name -> array with one row per sample.
            prompts_KE: embeddings (K, E) of the K texts that the task scores against, if it has any.
        """
        import numpy as np
        with atomic_path(self.path / f"rows-{section}.npz") as temporary:
            np.savez(temporary, **rows, **({} if prompts_KE is None else {"prompts": prompts_KE}))

    def read_rows(self, section: str) -> tuple[dict, object]:
        """Read what `write_rows` wrote: (rows, prompts_KE or None).

        Raises:
            FileNotFoundError: the section has not been evaluated.
            ValueError: the file is damaged; the message names it.
        """
        path = self.path / f"rows-{section}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: section {section!r} of this run has not been evaluated")
        rows = read_arrays(path, AGAIN)
        return rows, rows.pop("prompts", None)
