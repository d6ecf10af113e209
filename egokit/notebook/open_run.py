"""What every notebook calls first: its config and run folder, from four parameters."""
from __future__ import annotations

import ast
import os
import sys

from egokit.config.build import ConfigError, did_you_mean, to_dict
from egokit.config.resolve import outputs_folder, resolve, to_yaml
from egokit.config.schema import TRAINED, Config
from egokit.runs.files import explain_permission, write_text
from egokit.runs.run_folder import Run
from egokit.train.batch_plan import plan_batch

PARAMETERS = ("params", "site", "overrides", "run")


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
            raise ConfigError(f"unknown notebook parameter {name!r}: {did_you_mean(name, PARAMETERS)}")


def open_run(notebook: str, params: str, site: str, overrides, run: str) -> tuple[Config, Run]:
    """Return the resolved config and the run folder for a notebook's four parameters.

    The config is written to params.yaml in the folder. As soon as the run has a job, only launch.submit writes it,
    after checking that the job was made with these parameters.

    Args:
        notebook: The notebook's name, the first part of outputs/<notebook>/<run>.
        params: The recipe: a file under params/, or a path.
        site: The site: a file under params/sites/, or a path.
        overrides: Changes to the recipe, as "train.epochs=1 optim.lr=1e-4", a list or a dict.
        run: The run's name, the second part of the folder.

    Raises:
        ConfigError: A parameter, key, site or recipe is unknown; the message names the nearest right one.
    """
    check_injected()
    config = resolve(params, site, overrides, run)
    with explain_permission():
        run_folder = Run(outputs_folder() / notebook / run)
        if not any(run_folder.path.glob("jobs/*/spec.json")):
            write_text(run_folder.path / "params.yaml", to_yaml(config))
        run_folder.opened = config
    return config, run_folder


def describe(config) -> str:
    """Return the config for reading, one line a section, and how training spreads its batch."""
    plain = to_dict(config)
    lines = [f"{key}: {value}" for key, value in plain.items() if not isinstance(value, dict)]
    for section, values in plain.items():
        if isinstance(values, dict):
            lines.append(f"{section}: " + ", ".join(f"{key}={value}" for key, value in values.items()
                                                    if value not in ("", {}, [])))
    if config.task in TRAINED:
        lines.append(f"plan: {plan_batch(config)}")
    return "\n".join(lines)
