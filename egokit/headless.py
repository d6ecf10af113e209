"""Notebooks without a browser: papermill with checked parameters, the executed notebook always saved."""
from __future__ import annotations

import ast
import json
import os
from pathlib import Path

from egokit.config import Config
from egokit.launch import comparable
from egokit.notebook import check_names
from egokit.resolve import ConfigError, differences, nearest, outputs_folder, project_root, resolve, to_dict, to_yaml
from egokit.runs import Run


class NotebookFailed(RuntimeError):
    """A cell raised; the message says which notebook and what, and where the executed notebook lies."""


def notebook_path(name: str) -> Path:
    """notebooks/<name>.ipynb; a number ('03') or any unambiguous beginning will do."""
    folder = project_root() / "notebooks"
    found = sorted(path for path in folder.glob("*.ipynb") if path.stem.startswith(Path(name).stem))
    if len(found) != 1:
        names = [path.stem for path in folder.glob("*.ipynb")]
        raise ConfigError(f"{'no' if not found else 'more than one'} notebook {name!r}: {nearest(name, names)}")
    return found[0]


def sources(path: Path) -> list[str]:
    """The cells' sources, without those that papermill adds."""
    import nbformat
    return [cell.source for cell in nbformat.read(path, as_version=4).cells
            if not {"injected-parameters", "papermill-error-cell-tag"} & set(cell.metadata.get("tags", []))]


def resolved(path: Path, parameters: dict) -> tuple[Config, Path]:
    """(config, run folder) of a notebook: its own four parameters with the given ones in their place, names checked."""
    check_names(parameters)
    import nbformat
    cells = nbformat.read(path, as_version=4).cells
    tagged = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged).body}
    values |= parameters
    config = resolve(values["params"], values["site"], values["overrides"], values["run"])
    return config, outputs_folder() / path.stem / values["run"]


def finished(name: str, parameters: dict) -> bool:
    """Whether this very notebook has been run to its end with these parameters and the checkpoint that is there now."""
    path = notebook_path(name)
    config, folder = resolved(path, parameters)
    if not (folder / "notebook.ipynb").is_file() or sources(path) != sources(folder / "notebook.ipynb"):
        return False
    used = {section.get("init_sha256") for section in Run(folder).metrics().values()} - {None, ""}
    if used:
        from egokit import checkpoints
        try:
            used -= {checkpoints.fingerprint(checkpoints.find(config.init))}
        except checkpoints.WeightsError:
            return False
    specs = [json.loads(path.read_text())["config"] for path in (folder / "jobs").glob("*/spec.json")]
    same = all(not differences(comparable(spec), comparable(to_dict(config))) for spec in specs)
    return not used and same and (folder / "params.yaml").read_text() == to_yaml(config)


def execute(name: str, parameters: dict, timeout: int | None = None) -> Path:
    """Run a notebook with papermill; returns the executed notebook in its run folder.

    parameters: some of params, site, overrides, run; names and values are checked before anything starts. A failure
    saves notebook.failed.ipynb and raises NotebookFailed. `timeout` bounds a cell, in seconds.
    """
    path = notebook_path(name)
    _, folder = resolved(path, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notebook.ipynb").unlink(missing_ok=True)  # it stands for a finished run with these very parameters
    part = folder / ".notebook.part.ipynb"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    import papermill
    from traitlets.config import Config
    transport = Config({"KernelManager": {"transport": "ipc"}})  # no TCP port that others on the machine could connect to
    try:
        papermill.execute_notebook(str(path), str(part), parameters=dict(parameters), kernel_name="python3", cwd=str(project_root()),
                                   progress_bar=False, log_output=False, execution_timeout=timeout, start_timeout=120,
                                   autosave_cell_every=0, config=transport)
    except papermill.PapermillExecutionError as error:
        os.replace(part, folder / "notebook.failed.ipynb")
        raise NotebookFailed(f"{path.name}, cell {error.exec_count}: {error.ename}: {error.evalue}\n"
                             f"the executed notebook: {folder / 'notebook.failed.ipynb'}") from None
    (folder / "notebook.failed.ipynb").unlink(missing_ok=True)
    os.replace(part, folder / "notebook.ipynb")
    return folder / "notebook.ipynb"
