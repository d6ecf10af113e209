"""What every notebook calls first and last. Nothing here draws or trains."""
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
    """The cells that papermill put into the notebook that is running; none outside a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return [cell for cell in (shell.user_ns.get("In", []) if shell else []) if cell.startswith("# Parameters\n")]


def is_live() -> bool:
    """Whether someone sits before the notebook: papermill and nbconvert set no JPY_SESSION_NAME, and papermill injects its cell."""
    return bool(os.environ.get("JPY_SESSION_NAME")) and not injected_cells()


def check_injected() -> None:
    """papermill only warns of an unknown parameter and goes on: here it is an error."""
    for cell in injected_cells():
        for statement in ast.parse(cell).body:
            for target in getattr(statement, "targets", []):
                check_names([target.id])


def check_names(names) -> None:
    """Raises ConfigError for a notebook parameter that doesn't exist."""
    for name in names:
        if name not in PARAMETERS:
            raise ConfigError(f"unknown notebook parameter {name!r}: {did_you_mean(name, PARAMETERS)}")


def open_run(notebook: str, params: str, site: str, overrides, run: str) -> tuple[Config, Run]:
    """(resolved config, run folder outputs/<notebook>/<run>) for a notebook's four parameters.

    The config is written to params.yaml in the folder; once a job of the run has been submitted, launch.submit does so, if it accepts
    these parameters. Raises ConfigError for an unknown parameter, key, site or recipe, naming the nearest right one.
    """
    check_injected()
    config = resolve(params, site, overrides, run)
    with explain_permission():
        folder = Run(outputs_folder() / notebook / run)
        if not any(folder.path.glob("jobs/*/spec.json")):
            write_text(folder.path / "params.yaml", to_yaml(config))
        folder.opened = config
    return config, folder


def describe(config) -> str:
    """The config in few lines, one a section, for reading; and how training spreads its batch."""
    plain = to_dict(config)
    lines = [f"{key}: {value}" for key, value in plain.items() if not isinstance(value, dict)]
    for section, values in plain.items():
        if isinstance(values, dict):
            lines.append(f"{section}: " + ", ".join(f"{key}={value}" for key, value in values.items() if value not in ("", {}, [])))
    if config.task in TRAINED:
        lines.append(f"plan: {plan_batch(config)}")
    return "\n".join(lines)
