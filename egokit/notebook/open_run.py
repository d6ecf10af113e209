"""What every notebook calls first: its config and run folder, from four parameters."""
import ast
import os
import sys
from pathlib import Path

from egokit.config.build import ConfigError, did_you_mean
from egokit.config.registry import notebook_of
from egokit.config.resolve import outputs_folder, project_root, resolve
from egokit.config.yaml_file import to_yaml
from egokit.runs.files import explain_permission, write_text
from egokit.runs.run_folder import Run

PARAMETERS = ("params", "site", "overrides", "run_name")
NOTEBOOK_NAME = "EGOKIT_NOTEBOOK"  # variable by which headless.py tells a notebook its name


def injected_cells() -> list[str]:
    """Return the cells that papermill injected into the running notebook, if any."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return [cell for cell in (shell.user_ns.get("In", []) if shell else []) if cell.startswith("# Parameters\n")]


def is_live() -> bool:
    """Whether a person uses the notebook, as opposed to papermill or nbconvert.

    Neither sets JPY_SESSION_NAME, except inside a live session; there papermill is known by its injected cell.
    """
    return bool(os.environ.get("JPY_SESSION_NAME")) and not injected_cells()


def check_injected() -> None:
    """Raise ConfigError for unknown parameters from papermill, which only warns of them."""
    for cell in injected_cells():
        for statement in ast.parse(cell).body:
            for target in getattr(statement, "targets", []):
                check_names([target.id])


def check_names(names) -> None:
    """Raise ConfigError for a notebook parameter that doesn't exist."""
    for name in names:
        if name not in PARAMETERS:
            known = "run_name" if name == "run" else name  # its earlier name
            raise ConfigError(f"unknown notebook parameter {name!r}: {did_you_mean(known, PARAMETERS)}")


def running_notebook() -> str:
    """Return the name of the notebook that runs this code, where that is known, or ""."""
    live = Path(os.environ.get("JPY_SESSION_NAME", "")) if is_live() else Path()
    return os.environ.get(NOTEBOOK_NAME) or (live.stem if live.suffix == ".ipynb" else "")


def open_run(params: str, site: str = "toy", overrides="", run_name: str = "demo", notebook: str = "") -> Run:
    """Open a run: resolve its config from a notebook's four parameters, and create its folder.

    The config is written to params.yaml in the folder. As soon as the run has a job, only launch.submit writes it,
    after checking that the job was made with these parameters.

    Args:
        params: the recipe: a file under params/, or a path.
        site: the site: a file under params/sites/, or a path.
        overrides: changes to the recipe, as "train.epochs=1 optim.lr=1e-4", a list or a dict.
        run_name: the second part of the folder outputs/<notebook>/<run_name>.
        notebook: the first part; by default the notebook that runs this, or that of the recipe's task.

    Returns:
        The Run; its `config` is the resolved config.

    Raises:
        ConfigError: a parameter, key, site or recipe is unknown; the message names the nearest right one.
    """
    check_injected()
    if params in [path.stem for path in (project_root() / "notebooks").glob("*.ipynb")]:
        raise ConfigError(f"open_run takes no notebook first, as {params!r}: write "
                          "run = egokit.open_run(params, site, overrides, run_name), and run.config")
    config = resolve(params, site, overrides, run_name)
    with explain_permission():
        run = Run(outputs_folder() / (notebook or running_notebook() or notebook_of(config)) / run_name)
        run.expect_no_links()
        if not any(run.path.glob("jobs/*/spec.json")):
            write_text(run.path / "params.yaml", to_yaml(config))
    run.config = config
    return run
