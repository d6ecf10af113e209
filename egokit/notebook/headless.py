"""One notebook without a browser: papermill with checked parameters, a log to follow, the executed notebook always saved.

Several of them, and notebooks as jobs, are batch.py's.
"""
from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from egokit.config.build import ConfigError, did_you_mean
from egokit.config.resolve import as_submitted, outputs_folder, project_root, resolve, to_yaml
from egokit.config.schema import Config
from egokit.jobs.launch import Handle, changed_keys, expect_same
from egokit.notebook.open_run import PARAMETERS, check_names
from egokit.runs.files import locked
from egokit.runs.run_folder import FAILED_NOTEBOOK, NOTEBOOK, Run


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; the message says in which cell and why, and where the executed notebook lies."""


def notebook_path(name: str) -> Path:
    """notebooks/<name>.ipynb; a number ('03') or any unambiguous beginning will do."""
    folder = project_root() / "notebooks"
    if Path(name).name != name and Path(name).resolve().parent != folder.resolve() != (project_root() / name).resolve().parent:
        raise ConfigError(f"notebook {name!r} is not in {folder}: copy it there; its runs are kept in outputs under its name")
    known = {path.stem: path for path in as_submitted(folder).glob("*.ipynb")}
    stem = Path(name).name.removesuffix(".ipynb")
    found = [stem] if stem in known else [one for one in known if one.startswith(stem)]
    if len(found) != 1:
        raise ConfigError(f"{'no' if not found else 'more than one'} notebook {name!r}: {did_you_mean(name, known)}")
    return known[found[0]]


def read_cells(path: Path) -> list:
    """The cells of a notebook."""
    import nbformat
    try:
        return nbformat.read(path, as_version=4).cells
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise ConfigError(f"{path}: not a notebook that can be read ({str(error).splitlines()[0][:80]}); restore it, for example from "
                          "version control") from None


def sources(path: Path) -> list[str]:
    """The cells' sources, without those that papermill adds."""
    return [cell.source for cell in read_cells(path)
            if not {"injected-parameters", "papermill-error-cell-tag"} & set(cell.metadata.get("tags", []))]


def parameters_of(path: Path, parameters: dict) -> dict:
    """A notebook's own four parameters with the given ones in their place, names checked."""
    check_names(parameters)
    tagged = next((cell.source for cell in read_cells(path) if "parameters" in cell.metadata.get("tags", [])), None)
    if tagged is None:
        raise ConfigError(f"{path}: none of its cells has the tag 'parameters'; give it to the one with {', '.join(PARAMETERS)}")
    try:
        values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged).body}
    except (SyntaxError, ValueError, AttributeError):
        raise ConfigError(f"{path}: its cell of parameters has more than lines such as run = \"mine\"") from None
    values |= parameters
    if missing := [name for name in PARAMETERS if name not in values]:
        raise ConfigError(f"{path}: its cell of parameters lacks {', '.join(missing)}; write them as in the numbered notebooks")
    for name, value in values.items():
        if not isinstance(value, str) and not (name == "overrides" and isinstance(value, (list, tuple, dict))):
            raise ConfigError(f"notebook parameter {name!r}: expected a text, got {value!r}")
    return values


def resolved(path: Path, parameters: dict) -> tuple[Config, Path]:
    """(config, run folder) of a notebook with these parameters in place of its own."""
    values = parameters_of(path, parameters)
    config = resolve(values["params"], values["site"], values["overrides"], values["run"])
    return config, outputs_folder() / path.stem / values["run"]


def finished(name: str, parameters: dict) -> bool:
    """Whether this very notebook has been run to its end with these parameters and the checkpoint that is there now."""
    path = notebook_path(name)
    config, folder = resolved(path, parameters)
    if not (folder / NOTEBOOK).is_file() or sources(path) != sources(folder / NOTEBOOK):
        return False
    used = {section.get("init_sha256") for section in Run(folder).metrics().values()} - {None, ""}
    if used:
        from egokit.model import checkpoints
        try:
            used -= {checkpoints.fingerprint(checkpoints.find(config.init))}
        except checkpoints.WeightsError:
            return False
    same = not any(changed_keys(json.loads(path.read_text()), config, "opened") for path in (folder / "jobs").glob("*/spec.json"))
    return not used and same and (folder / "params.yaml").read_text() == to_yaml(config)


def execute(name: str, parameters: dict, timeout: float | None = None) -> Path:
    """Run a notebook with papermill; returns the executed notebook.ipynb in its run folder. notebook.log tells what it does.

    parameters: some of params, site, overrides, run; names and values are checked before anything starts. timeout: seconds
    for the whole notebook. Raises NotebookFailed; until a notebook has run to its end it is notebook.failed.ipynb, whatever
    ends it: an error, the time-out, Ctrl-C, SIGTERM or kill -9. The kernel ends too; jobs that it submitted go on. Two processes
    that run it under one name do so one after the other. Raises ConfigError if the run was made with other parameters.
    """
    path = notebook_path(name)
    config, folder = resolved(path, parameters)
    with locked(folder, f"{path.stem}: waits for another process that runs it as {folder.name}\n"):
        expect_same_jobs(config, folder)
        return _execute(path, folder, parameters, timeout)


def expect_same_jobs(config: Config, folder: Path) -> None:
    """Raises ConfigError if the run has jobs of other parameters: its notebook is not to be replaced by one that can't go on."""
    for spec in sorted(folder.glob("jobs/*/spec.json")):
        expect_same(Handle(Run(folder), spec.parent.name), config, of="opened")


def _execute(path: Path, folder: Path, parameters: dict, timeout: float | None) -> Path:
    whole, unfinished = folder / NOTEBOOK, folder / FAILED_NOTEBOOK
    whole.unlink(missing_ok=True)  # it stands for a finished run with these very parameters
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config
    watch = _Watch(timeout)
    with _log(folder / "notebook.log") as log, tempfile.TemporaryDirectory(prefix="egokit-") as sockets:
        # no TCP port that others on the machine could connect to; in the working folder kernels would take each other's sockets
        transport = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        log.info(f"{path.name} begins with {parameters}")
        try:
            papermill.execute_notebook(str(path), str(unfinished), parameters=dict(parameters), kernel_name="python3",
                                       cwd=str(project_root()), progress_bar=False, log_output=True, start_timeout=120,
                                       autosave_cell_every=30, config=transport, on_cell_start=watch.cell_starts,
                                       timeout_func=watch.left, iopub_timeout=60)
        except papermill.PapermillExecutionError as error:
            why = f"{error.ename}: {error.evalue}"
            log.info("\n".join(error.traceback or ()))
        except CellTimeoutError:
            why = f"not finished within {timeout / 60:.3g} minutes, the notebook's time-out"
        except RuntimeError as error:
            why = "its kernel died: was it killed, or out of memory?" if isinstance(error, DeadKernelError) else str(error)
        except BaseException as error:
            log.info(f"{path.name}, {watch.where()}: ended by {watch.told or repr(error)}")
            raise
        else:
            os.replace(unfinished, whole)
            log.info(f"{path.name} has run to its end")
            return whole
        failed = NotebookFailed(f"{path.name}, {watch.where()}: {why}\nthe executed notebook: {unfinished}")
        log.info(str(failed))
        raise failed


class _Watch:
    """Which cell runs, how long it may, and what ends it. Its methods are nbclient's hooks."""

    def __init__(self, timeout: float | None):
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.number, self.source, self.told = 0, "", ""

    def where(self) -> str:
        return f"cell In[{self.number}] ({self.source[:60]})" if self.number else "before the first cell"

    def cell_starts(self, cell, cell_index: int) -> None:
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if line.strip()]
            self.number, self.source = self.number + 1, lines[0] if lines else ""
        # in place of nbclient's, which end the kernel and forget why; SIGUSR2 comes before a job's time limit
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            with contextlib.suppress(RuntimeError):  # only the main thread may handle signals
                loop.add_signal_handler(sign, self.stop, sign)

    def stop(self, sign: signal.Signals) -> None:
        """Raised in the event loop, so it never cuts a notebook's saving in two; papermill then saves and ends the kernel."""
        if self.told:
            return  # it is ending
        self.told = sign.name
        raise KeyboardInterrupt if sign == signal.SIGINT else SystemExit(128 + sign)

    def left(self, cell) -> float | None:
        """Seconds for this cell; nbclient takes 0 for no limit."""
        return None if self.deadline is None else max(0.1, self.deadline - time.monotonic())


class _Plain(logging.Formatter):
    """No colours; a progress bar's states are lines."""

    def format(self, record: logging.LogRecord) -> str:
        text = re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()).replace("\r", "\n").strip("\n")
        return f"{self.formatTime(record)} {text}"


@contextlib.contextmanager
def _log(path: Path) -> Iterator[logging.Logger]:
    """papermill's logger (cells and what they print) writes to a file, and nowhere else."""
    logger, handler = logging.getLogger("papermill"), logging.FileHandler(path)
    handler.setFormatter(_Plain())
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield logger
    finally:
        logger.level, logger.propagate = before
        logger.removeHandler(handler)
        handler.close()
