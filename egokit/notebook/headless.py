"""One notebook without a browser, executed by papermill with checked parameters.

A log can be followed while it runs, and the executed notebook is saved however it ends. batch.py runs several of them.
"""
import ast
import asyncio
import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from egokit.config.build import ConfigError, did_you_mean
from egokit.config.registry import find
from egokit.config.resolve import as_submitted, outputs_folder, project_root, resolve
from egokit.config.schema import Config
from egokit.config.yaml_file import to_yaml
from egokit.jobs.launch import Handle, changed_keys, expect_same, sha256_of
from egokit.notebook.open_run import NOTEBOOK_NAME, PARAMETERS, check_names
from egokit.runs.files import locked, temporary_folder
from egokit.runs.run_folder import FAILED_NOTEBOOK, NOTEBOOK, Run


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end.

    The message names the cell, the reason and the executed notebook.
    """


def notebook_path(name: str) -> Path:
    """Return notebooks/<name>.ipynb; a number ('03') or an unambiguous beginning will do."""
    folder = project_root() / "notebooks"
    from_here, from_project = Path(name).resolve().parent, (project_root() / name).resolve().parent
    if Path(name).name != name and from_here != folder.resolve() != from_project:
        raise ConfigError(f"notebook {name!r} is not in {folder}: copy it there; its runs are kept in outputs under "
                          "its name")
    paths = {path.stem: path for path in as_submitted(folder).glob("*.ipynb")}
    stem = Path(name).name.removesuffix(".ipynb")
    matches = [stem] if stem in paths else [candidate for candidate in paths if candidate.startswith(stem)]
    if len(matches) != 1:
        raise ConfigError(f"{'no' if not matches else 'more than one'} notebook {name!r}: {did_you_mean(name, paths)}")
    return paths[matches[0]]


def read_cells(path: Path) -> list:
    """Return the cells of a notebook; raise ConfigError if the file is damaged."""
    import nbformat
    try:
        return nbformat.read(path, as_version=4).cells
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise ConfigError(f"{path}: not a notebook that can be read ({str(error).splitlines()[0][:80]}); restore it, "
                          "for example from version control") from None


def cell_sources(path: Path) -> list[str]:
    """Return the sources of a notebook's cells, without the cells that papermill adds."""
    return [cell.source for cell in read_cells(path)
            if not {"injected-parameters", "papermill-error-cell-tag"} & set(cell.metadata.get("tags", []))]


def read_parameters(path: Path, parameters: dict) -> dict:
    """Return a notebook's four parameters, replaced by those given.

    Raises:
        ConfigError: The notebook has no cell of parameters, or a name or value is wrong.
    """
    check_names(parameters)
    tagged = next((cell.source for cell in read_cells(path) if "parameters" in cell.metadata.get("tags", [])), None)
    if tagged is None:
        raise ConfigError(f"{path}: none of its cells has the tag 'parameters'; give it to the one with "
                          f"{', '.join(PARAMETERS)}")
    try:
        values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged).body}
    except (SyntaxError, ValueError, AttributeError):
        raise ConfigError(f"{path}: its cell of parameters has more than lines such as run_name = \"mine\"") from None
    if "run" in values:
        raise ConfigError(f"{path}: its parameter run is called run_name now: rename it, there and where it is used")
    values |= parameters
    if missing := [name for name in PARAMETERS if name not in values]:
        raise ConfigError(f"{path}: its cell of parameters lacks {', '.join(missing)}; write them as in the numbered "
                          "notebooks")
    for name, value in values.items():
        if not isinstance(value, str) and not (name == "overrides" and isinstance(value, (list, tuple, dict))):
            raise ConfigError(f"notebook parameter {name!r}: expected a text, got {value!r}")
    return values


def resolve_notebook(path: Path, parameters: dict) -> tuple[Config, Path]:
    """Return the config and the run folder of a notebook run with these parameters."""
    values = read_parameters(path, parameters)
    config = resolve(values["params"], values["site"], values["overrides"], values["run_name"])
    return config, outputs_folder() / path.stem / values["run_name"]


def finished(name: str, parameters: dict) -> bool:
    """Whether the notebook has run to its end with these parameters, and nothing has changed.

    The notebook's cells, the config, and the files that its jobs started from, such as `init`, are compared.
    """
    path = notebook_path(name)
    config, folder = resolve_notebook(path, parameters)
    if not (folder / NOTEBOOK).is_file() or cell_sources(path) != cell_sources(folder / NOTEBOOK):
        return False
    used = {(section["init_sha256"], find(config.task.name).encodes(section.get("action", "extract")))
            for section in Run(folder).metrics().values() if section.get("init_sha256")}
    if used:
        from egokit.model import checkpoints, sources
        try:
            for recorded, encodes in used:
                if recorded != (sources.fingerprint(config.init) if encodes else
                                sha256_of(find(config.task.name).input_files(config))):
                    return False
        except (checkpoints.WeightsError, FileNotFoundError):
            return False
    changed = any(changed_keys(spec.parent, config, "opened")
                  for spec in (folder / "jobs").glob("*/spec.json"))
    return not changed and (folder / "params.yaml").read_text() == to_yaml(config)


def execute(name: str, parameters: dict, timeout: float | None = None) -> Path:
    """Run a notebook with papermill and return the executed notebook.ipynb in its run folder.

    While it runs, notebook.log says what it does. Until it has run to its end, the executed notebook is named
    notebook.failed.ipynb, whatever ends it: an error, the timeout, Ctrl-C, SIGTERM or kill -9. The kernel ends, too;
    jobs that it submitted go on. A second process that runs the same notebook and run waits for the first one.

    Args:
        name: The notebook, as `notebook_path` takes it.
        parameters: Some of params, site, overrides and run_name; checked before anything starts.
        timeout: Seconds for the whole notebook; None is no limit.

    Raises:
        NotebookFailed: The notebook did not run to its end.
        ConfigError: A parameter is wrong, or the run was made with other parameters.
    """
    path = notebook_path(name)
    config, folder = resolve_notebook(path, parameters)
    Run(folder).expect_no_links()
    with locked(folder, f"{path.stem}: waits for another process that runs it as {folder.name}\n"):
        expect_same_jobs(config, folder)
        return _execute(path, folder, parameters, timeout)


def expect_same_jobs(config: Config, folder: Path) -> None:
    """Raise ConfigError if the run has jobs with other parameters.

    Otherwise its notebook would be replaced by one that fails at its first job.
    """
    for spec in sorted(folder.glob("jobs/*/spec.json")):
        expect_same(Handle(Run(folder), spec.parent.name), config, of="opened")


def _execute(path: Path, folder: Path, parameters: dict, timeout: float | None) -> Path:
    finished_path, unfinished_path = folder / NOTEBOOK, folder / FAILED_NOTEBOOK
    finished_path.unlink(missing_ok=True)  # its presence means: finished with these parameters
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config
    monitor = _CellMonitor(timeout)
    with (_named(path.stem), _log(folder / "notebook.log") as log,
          temporary_folder() as sockets):
        # ipc: no TCP port that other users of the machine could connect to; a temporary folder: in the working folder,
        # kernels would take each other's sockets
        transport = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel",
                                              "connection_file": f"{sockets}/kernel.json"}})
        log.info(f"{path.name} begins with {parameters}")
        try:
            papermill.execute_notebook(str(path), str(unfinished_path), parameters=dict(parameters),
                                       kernel_name="python3", cwd=str(project_root()), progress_bar=False,
                                       log_output=True, start_timeout=120, autosave_cell_every=30, config=transport,
                                       on_cell_start=monitor.on_cell_start, timeout_func=monitor.seconds_left,
                                       iopub_timeout=60)
        except papermill.PapermillExecutionError as error:
            why = f"{error.ename}: {error.evalue}"
            log.info("\n".join(error.traceback or ()))
        except CellTimeoutError:
            why = f"not finished within {timeout / 60:.3g} minutes, the notebook's time-out"
        except RuntimeError as error:
            why = "its kernel died: was it killed, or out of memory?" if isinstance(error, DeadKernelError) else \
                str(error)
        except BaseException as error:
            log.info(f"{path.name}, {monitor.position()}: ended by {monitor.ended_by or repr(error)}")
            raise
        else:
            os.replace(unfinished_path, finished_path)
            log.info(f"{path.name} has run to its end")
            return finished_path
        failure = NotebookFailed(f"{path.name}, {monitor.position()}: {why}\nthe executed notebook: {unfinished_path}")
        log.info(str(failure))
        raise failure


@contextlib.contextmanager
def _named(notebook: str) -> Iterator[None]:
    """Tell the kernel that is started in the block which notebook it runs."""
    before = os.environ.get(NOTEBOOK_NAME)
    os.environ[NOTEBOOK_NAME] = notebook
    try:
        yield
    finally:
        os.environ.pop(NOTEBOOK_NAME)
        os.environ.update({} if before is None else {NOTEBOOK_NAME: before})


class _CellMonitor:
    """Which cell runs, how long it may run, and what ended it.

    Its methods are hooks of nbclient.
    """

    def __init__(self, timeout: float | None):
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.number, self.source = 0, ""  # the running cell, counted from 1, and its first line
        self.ended_by = ""  # the name of a signal

    def position(self) -> str:
        return f"cell In[{self.number}] ({self.source[:60]})" if self.number else "before the first cell"

    def on_cell_start(self, cell, cell_index: int) -> None:
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if line.strip()]
            self.number, self.source = self.number + 1, lines[0] if lines else ""
        # these replace nbclient's handlers, which end the kernel without keeping the reason; Slurm sends SIGUSR2 before
        # a job's time limit
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            with contextlib.suppress(RuntimeError):  # only the main thread may handle signals
                loop.add_signal_handler(sign, self.stop, sign)

    def stop(self, sign: signal.Signals) -> None:
        """Raise the exception that ends the notebook; papermill then saves it and ends the kernel.

        It is raised in the event loop, so it never interrupts the saving of the notebook.
        """
        if self.ended_by:
            return  # already ending
        self.ended_by = sign.name
        raise KeyboardInterrupt if sign == signal.SIGINT else SystemExit(128 + sign)

    def seconds_left(self, cell) -> float | None:
        """Return the seconds left for this cell; never 0, which nbclient takes for no limit."""
        return None if self.deadline is None else max(0.1, self.deadline - time.monotonic())


class _PlainFormatter(logging.Formatter):
    """Log lines without colours; each state of a progress bar becomes a line."""

    def format(self, record: logging.LogRecord) -> str:
        text = re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()).replace("\r", "\n").strip("\n")
        return f"{self.formatTime(record)} {text}"


@contextlib.contextmanager
def _log(path: Path) -> Iterator[logging.Logger]:
    """Make papermill's logger (cells and what they print) write to a file, and nowhere else."""
    logger, handler = logging.getLogger("papermill"), logging.FileHandler(path)
    handler.setFormatter(_PlainFormatter())
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
