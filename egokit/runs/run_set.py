"""Several runs together: which ones a name or a sweep stands for, and in what their recipes differ."""
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from egokit.config.build import ConfigError, did_you_mean, flatten
from egokit.config.json_file import read_json
from egokit.config.names import shortened
from egokit.config.resolve import outputs_folder
from egokit.runs.recipe_differences import checkpoint_name
from egokit.runs.run_folder import Run

SWEEP_FILE = "sweep.json"  # in the folder of a sweep: what it is, and its runs
SWEEP = {"sweep": str, "params": str, "site": str, "overrides": dict, "action": str, "section": str, "recipe": dict,
         "runs": {...: dict}}
DAMAGED = "delete it, and 'egokit sweep' writes it again"


class Setting(NamedTuple):
    """Runs that differ in their seed alone."""
    values: dict[str, object]   # of the keys in which the settings differ
    runs: list[Run]


def read_sweep(folder: Path) -> dict:
    """Return folder/sweep.json, or {} if there is none.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    sweep = read_json(folder / SWEEP_FILE, SWEEP, DAMAGED) or {}
    for name in (sweep["section"], *sweep["runs"]) if sweep else ():
        if name in ("", "..") or Path(name).name != name:  # it may be anybody's file, and these become paths
            raise ValueError(f"{folder / SWEEP_FILE}: {shortened(name, 60)!r}, expected a folder's name; {DAMAGED}")
    return sweep


def find_runs(*names: str | Path | Run) -> list[Run]:
    """Return the runs that names stand for, each once.

    Args:
        names: "notebook/run" under outputs/, in which *, ? and [ab] are patterns; the path of a run folder; or a Run.
            The name of a sweep stands for its runs.

    Raises:
        FileNotFoundError: there is no such run.
        ConfigError: nothing is named.
    """
    if not names:
        raise ConfigError("find_runs: expected the names of runs, such as '03_ek100/seed*', or of a sweep")
    runs: dict[Path, Run] = {}
    for name in names:
        for folder in [name.path] if isinstance(name, Run) else _folders(str(name)):
            sweep = {} if isinstance(name, Run) else read_sweep(folder)
            both = sweep and (folder / "metrics.json").is_file()  # a run and a sweep of one name
            own = [folder] if not sweep or (both and set("*?[") & set(str(name))) else []
            if both and not own:
                print(f"{name} names the {len(sweep['runs'])} runs of a sweep; for the run of the same name, pass the "
                      "run that egokit.open_run returned")
            for path in [*own, *(folder.parent / run for run in sweep.get("runs", ()))]:
                if path.is_dir():  # a sweep's run may not have begun
                    runs.setdefault(path.resolve(), Run(path))
    if not runs:
        raise FileNotFoundError(f"none of the runs of {', '.join(map(str, names))} has begun")
    return list(runs.values())


def _folders(name: str) -> list[Path]:
    """Return the folders that a name stands for, in the order of their names."""
    outputs, path = outputs_folder(), Path(name).expanduser()
    if path.is_dir():
        return [path]
    if path.is_absolute():
        raise FileNotFoundError(f"there is no run folder {path}")
    folders = [folder for folder in sorted(outputs.glob(name)) if folder.is_dir()]
    if not folders:
        known = [str(folder.relative_to(outputs)) for folder in outputs.glob("*/*") if folder.is_dir()]
        raise FileNotFoundError(f"there is no run {name!r} in {outputs}: {did_you_mean(name, known)}")
    return folders


def common_section(runs: Iterable[Run]) -> str:
    """Return the section of metrics.json that all finished runs have: that of a training before an evaluation's.

    Raises:
        ValueError: there is none.
    """
    found: dict[str, list] = {}
    runs = list(runs)
    for run in runs:
        for name, section in run.metrics().items():
            if section.get("finished") and section.get("score") and section.get("action") in ("train", "evaluate"):
                found.setdefault(name, []).append(section["action"])
    most = max(map(len, found.values()), default=0)
    sections = [name for name, actions in found.items() if len(actions) == most]
    if not sections:
        raise ValueError(f"none of the {len(runs)} runs has finished: expected runs that were trained or evaluated")
    return min(sections, key=lambda name: found[name][0] != "train")


def recipe_of(run: Run, section: str) -> dict:
    """Return the values that a run's numbers depend on, {"section.key": value}; {} if it has no result.

    Beside the recipe these are its `init`, the file of a user's task, and its annotations, each with digits of its
    content's hash: a file that was written again gives other numbers under the same name.

    Args:
        run: the run.
        section: section of its metrics.json.
    """
    values = run.metrics().get(section, {})
    recipe = values.get("recipe")
    if not isinstance(recipe, dict):
        return {}
    # a training counts how its checkpoint was selected among the recipe; that follows from other keys
    kept = {key: value for key, value in flatten(recipe).items() if key != "selection.validations"}
    kept["init"] = _with_hash(checkpoint_name(str(values.get("init", ""))), values.get("init_sha256"))
    if values.get("task_sha256"):
        kept["task.name"] = _with_hash(checkpoint_name(str(kept.get("task.name", ""))), values["task_sha256"])
    if values.get("data"):
        kept["annotations"] = _with_hash("", json.dumps(values["data"], sort_keys=True))
    return kept


def _with_hash(name: str, content: object) -> str:
    """Return a name with digits of what its content is known by, if that is known."""
    return f"{name} ({hashlib.sha256(str(content).encode()).hexdigest()[:6]})".strip() if content else name


def varied(recipes: list[dict]) -> list[str]:
    """Return the keys at which recipes differ, in the order of the recipes' keys.

    A key that a recipe does not have, because it was recorded by another version of egokit, counts as no difference.
    """
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    return [key for key in keys if len({repr(recipe[key]) for recipe in recipes if key in recipe}) > 1]


def settings(runs: Iterable[Run], section: str = "", spread_over: str = "seed") -> list[Setting]:
    """Return runs in groups that differ in nothing but their seed.

    Args:
        runs: the runs. Those without a result are left out.
        section: section of metrics.json; "" for the one that they share.
        spread_over: the key whose values belong to one setting.

    Raises:
        ValueError: none of them has a result.
    """
    runs = list(runs)
    section = section or common_section(runs)
    recipes = {place: recipe for place, run in enumerate(runs) if (recipe := recipe_of(run, section))}
    if not recipes:
        raise ValueError(f"none of the {len(runs)} runs has a section {section!r} in its metrics.json")
    keys = [key for key in varied(list(recipes.values())) if key != spread_over]
    groups: dict[str, Setting] = {}
    for place, recipe in recipes.items():
        values = {key: recipe.get(key) for key in keys}
        groups.setdefault(repr(values), Setting(values, [])).runs.append(runs[place])
    return list(groups.values())


def scores(runs: Iterable[Run], section: str, metric: str) -> list[float]:
    """Return a metric of each run that has it, in the runs' order."""
    values = [run.metrics().get(section, {}).get(metric) for run in runs]
    return [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]


def mean_and_spread(values_RP: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of R runs' values and their standard deviation (of a sample, by n - 1).

    Args:
        values_RP: A value of each run, (R,), or one at each of P steps, (R, P). A run that is NaN doesn't count there.

    Returns:
        Both () or (P,). The mean of no run is NaN, and so is the spread of fewer than two.
    """
    values = np.asarray(values_RP, float)
    there = np.isfinite(values)
    count = there.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, values, 0).sum(0) / count
        squares = (np.where(there, values - mean, 0) ** 2).sum(0)
        return mean, np.sqrt(np.where(count > 1, squares, np.nan) / (count - 1))
