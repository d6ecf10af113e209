"""The grid of a sweep: which values of which keys are combined, and the config and the name of each run.

Everything is checked here, before a run folder is made or a job is submitted.
"""
import dataclasses
import hashlib
import itertools
import json
import re
from pathlib import Path

from egokit.config.build import ConfigError, comparable, differences, flatten, marked, to_dict
from egokit.config.names import shortened
from egokit.config.registry import find, notebook_of
from egokit.config.resolve import check_run_name, outputs_folder, parse_overrides, resolve
from egokit.config.schema import RENAMED, Config

MOST = 500     # runs of one sweep: each one's lock is an open file until the array is submitted
LONGEST = 24   # characters of a value in a run's name


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep."""
    run: str                    # the name of its folder
    values: dict[str, object]   # key: value, of the keys that the sweep varies
    config: Config


@dataclasses.dataclass(frozen=True)
class Grid:
    """A sweep's runs, checked as far as their configs tell."""
    name: str                       # first part of the runs' names
    notebook: str                   # folder of the runs under outputs/
    params: str
    site: str
    overrides: dict[str, object]    # what all runs have in common beside the recipe, flat
    over: dict[str, list]           # key: the values that are combined with all others'
    action: str
    section: str                    # of each run's metrics.json
    points: list[Point]

    @property
    def folder(self) -> Path:
        """The sweep's own folder, which holds sweep.json and, on SLURM, its arrays."""
        return outputs_folder() / self.notebook / self.name

    @property
    def on_slurm(self) -> bool:
        """Whether the runs are SLURM's jobs."""
        return self.points[0].config.launch.cluster == "slurm"

    def common(self) -> dict[str, object]:
        """Return what the runs' numbers depend on and all have alike, as a flat config that JSON can hold."""
        values = comparable(self.points[0].config)
        return json.loads(json.dumps({key: value for key, value in values.items() if key not in self.over}))


def read_over(over) -> dict[str, list]:
    """Return the values of each key that a sweep varies.

    Args:
        over: ["optim.lr=1e-5,3e-5", "seed=0,1,2"], as the command line has them, whose values are YAML; or a dict
            {"optim.lr": [1e-5, 3e-5]}.

    Raises:
        ConfigError: a part is no key=value,value, its values are no YAML, or a key or value is given twice.
    """
    axes: dict[str, list] = {}
    over = [over] if isinstance(over, str) else over
    if not isinstance(over, (dict, list, tuple)) or not all(isinstance(item, str) for item in over):
        raise ConfigError(f"over={shortened(repr(over), 60)}: expected {{'optim.lr': [1e-5, 3e-5]}} or "
                          "['optim.lr=1e-5,3e-5']")
    for item in over.items() if isinstance(over, dict) else over:
        key, values = item if isinstance(over, dict) else _parsed(item)
        if key in axes:
            raise ConfigError(f"--over {key} is given twice: write all its values in one, {key}=value,value")
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"--over {key}: expected a list of values, got {shortened(repr(values), 60)}")
        if twice := [value for place, value in enumerate(values) if value in values[:place]]:
            raise ConfigError(f"--over {key}: {shortened(twice[0], 60)} is given twice: remove one")
        axes[key] = list(values)
    if not axes:
        raise ConfigError("a sweep varies at least one key: give --over section.key=value,value, for example --over "
                          "seed=0,1,2")
    return axes


def _parsed(text: str) -> tuple[str, list]:
    """Return the key and the values of one --over."""
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key) or not values.strip():
        raise ConfigError(f"--over {shortened(text, 60)!r}: write section.key=value,value, for example "
                          "optim.lr=1e-5,3e-5")
    try:
        return key, parse_overrides([f"seed=[{values}]"])["seed"]  # any key: values are read as an override's are
    except ConfigError:
        raise ConfigError(f"--over {shortened(text, 60)!r}: expected values with commas between them, each YAML; put "
                          "a text with : # [ { , or * in quotes") from None


def make(params: str, site: str, overrides, over, name: str, action: str | None = None) -> Grid:
    """Return a sweep's runs, each with its config.

    Args:
        params, site, overrides: as for `egokit.open_run`; what all runs have in common.
        over: see `read_over`.
        name: first part of the runs' names. It takes the place of {run} in the recipe.
        action: what each job does; by default "train" where the task trains, and else its main action.

    Raises:
        ConfigError: a key or value is wrong, two runs would be the same, or the name can't be a folder's.
    """
    axes, common = read_over(over), flatten(parse_overrides(overrides))
    check_run_name(name)
    check_keys(axes, common)
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST:
        raise ConfigError(f"the sweep has {count:,} runs, expected {MOST:,} at most: sweep fewer values at once")
    points = []
    for values in itertools.product(*axes.values()):
        own = dict(zip(axes, values, strict=True))
        try:
            config = resolve(params, site, common | own, name)
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text.replace("(in overrides)", "(in --over)") if any(key in text for key in axes)
                              else text) from None
        # YAML takes 3e-3 for text, and the config for the number 0.003, which may be written in other ways, too
        flat = flatten(to_dict(config))
        own |= {key: flat[key] for key in own if isinstance(flat.get(key), (int, float))}
        points.append(Point(run_name(name, own), own, config))
    for key in axes:
        if key in marked("local", type(points[0].config.task)):
            raise ConfigError(f"--over {key}: this key changes where or how fast a job runs, and no result: give one "
                              f"value, as --overrides {key}=value")
    expect_different(points)
    for point in points:
        check_run_name(point.run)
    actions = find(points[0].config.task.name).actions()
    action = action or ("train" if "train" in actions else next(iter(actions)))
    if action not in actions:
        raise ConfigError(f"task {points[0].config.task.name!r} has no action {action!r}: expected "
                          f"{' or '.join(actions)}")
    return Grid(name, notebook_of(points[0].config), params, site, common, axes, action, actions[action], points)


def check_keys(axes: dict[str, list], common: dict[str, object]) -> None:
    """Raise ConfigError for a key that can't be varied, or is given a single value as well."""
    for key in axes:
        if key in common:
            raise ConfigError(f"{key} stands in --over and in --overrides: remove it from one of them")
        if key in RENAMED:
            raise ConfigError(f"--over {key}: this key is called {RENAMED[key]} now: write that name")
        if key in Config.__pydantic_fields__ and key not in ("task", "init", "seed"):
            raise ConfigError(f"--over {key}: a section of keys; expected one of its keys, as in {key}.key=value,value")
        if key in ("task", "task.name"):
            raise ConfigError(f"--over {key}: expected another key, as the runs of a sweep are of one task: sweep each "
                              "task by itself")


def expect_different(points: list[Point]) -> None:
    """Raise ConfigError if two runs would have the same config, or the same name."""
    configs: dict[str, Point] = {}
    names: dict[str, Point] = {}
    for point in points:
        text = json.dumps(comparable(point.config), sort_keys=True, default=str)
        for seen, what in ((configs.get(text), "are the same run"), (names.get(point.run.casefold()), "get one name")):
            if seen:
                raise ConfigError(f"--over: {in_words(seen.values)} and {in_words(point.values)} {what}: remove one")
        configs[text] = names[point.run.casefold()] = point


def in_words(values: dict[str, object]) -> str:
    """Return a run's own values as "optim.lr=1e-05 seed=0"."""
    return shortened(" ".join(f"{key}={value}" for key, value in values.items()))


def run_name(sweep: str, values: dict[str, object]) -> str:
    """Return the name of a run: the sweep's, and each key with its value, as in "lr-lr1e-05-seed0".

    It depends on the run's own values alone, so a sweep that grows finds its runs again.
    """
    last = [key.rpartition(".")[2] for key in values]
    parts = []
    for key, short, value in zip(values, last, values.values(), strict=True):
        short, text = short if last.count(short) == 1 else key, _value_text(value)
        parts.append(f"{short}{text}" if text[0].isdigit() and not short[-1].isdigit() else f"{short}_{text}")
    return "-".join([sweep, *parts])


def _value_text(value) -> str:
    """Return a value as a part of a folder's name; what is cut or replaced in it gives it the digits of a hash."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value).replace("+", "")
    items = value if isinstance(value, (list, tuple)) else [value]
    whole = "-".join(str(item).lower() if isinstance(item, bool) else str(item) for item in items)
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", whole).strip("-.")[-LONGEST:].lstrip("-.")
    digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]
    return plain if plain and plain == whole else "-".join(filter(None, (plain, digest)))


def expect_same_sweep(grid: Grid, earlier: dict, has_run: bool) -> None:
    """Raise ConfigError if a sweep of this name is another one.

    Args:
        grid: the sweep.
        earlier: the content of its sweep.json; {} if there is none.
        has_run: whether any run of the earlier one has left or is making something.
    """
    if not earlier or not has_run:
        return
    known = set(next(iter(earlier["runs"].values()), {}))
    changes = [f"it varies {', '.join(sorted(known))}, this one {', '.join(sorted(grid.over))}"] \
        if known != set(grid.over) else []
    if grid.section != earlier["section"]:
        changes.append(f"its job is {earlier['section']}, this one's {grid.section}")
    before, now = earlier["recipe"], grid.common()
    both = (before.keys() & now.keys()) - known
    changes += differences({key: before[key] for key in both}, {key: now[key] for key in both})
    if changes:
        raise ConfigError(f"the sweep in {grid.folder} was made with another recipe ({'; '.join(changes[:6])}): choose "
                          "another name (--run), or give the old values. More values of the same keys may be added")
