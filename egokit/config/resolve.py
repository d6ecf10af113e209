"""Layering of YAML files and overrides into one frozen Config; nothing else reads YAML.

    dataclass defaults  <-  params/sites/<site>.yaml  <-  params/<recipe>.yaml  <-  overrides

An unknown key, a wrong type or a missing file is an error that names the key or file and its closest match.
This module imports no torch and touches no data.
"""
import dataclasses
import functools
import os
import re
import stat
import sys
from pathlib import Path

from egokit.config.access import exists, user_name
from egokit.config.build import (
    ConfigError,
    build,
    check_rate,
    check_shape,
    did_you_mean,
    flatten,
    merge,
    nest,
)
from egokit.config.init_forms import find_init
from egokit.config.json_file import DEEPEST
from egokit.config.names import LONGEST, shortened
from egokit.config.own_code import split_task_file
from egokit.config.registry import TASKS, build_config, find
from egokit.config.schema import RENAMED, Config
from egokit.config.yaml_file import parse_yaml, read_yaml_file


def project_root() -> Path:
    """Return the folder that holds params/ and notebooks/.

    It is $EGOKIT_HOME if that is set; otherwise the first of the working directory, its parents and the checkout that
    has params/sites/, and that nobody else may have put there: such a one is skipped with a notice.

    Raises:
        ConfigError: there is none.
    """
    home, checkout, skipped = os.environ.get("EGOKIT_HOME"), Path(__file__).resolve().parents[2], []
    candidates = [Path(home)] if home else [Path.cwd(), *Path.cwd().parents, checkout]
    for folder in candidates:
        if (folder / "params" / "sites").is_dir():
            # the checkout's code runs already
            reason = "" if home or folder.resolve() == checkout else _why_not_own(folder)
            if not reason:
                for notice in skipped:
                    _say_once(notice)
                return folder.resolve()
            skipped.append(reason)
    raise ConfigError(skipped[0] if skipped else f"no folder with params/sites/ at {candidates[0]} or above it; "
                      "start from the project's folder or set EGOKIT_HOME to it")


def _why_not_own(folder: Path) -> str:
    """Return why a project that was found, and not named, may be somebody else's, and what to do; or "".

    Its sites name shell lines, and its notebooks are executed.
    """
    for path in (folder, folder / "params", folder / "params" / "sites"):
        facts = path.stat()
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & stat.S_IWOTH:
            content = "is writable by everybody" if facts.st_mode & stat.S_IWOTH else \
                f"belongs to {user_name(facts.st_uid)}"
            return (f"{folder} holds params/sites/, but {path} {content}, so it is not used as the project: start from "
                    f"your own project's folder, or set EGOKIT_HOME={folder} if you trust what is in it")
    return ""


def outputs_folder() -> Path:
    """Return the folder of all runs: $EGOKIT_OUTPUTS, or outputs/ of the project."""
    given = os.environ.get("EGOKIT_OUTPUTS")
    return Path(given).expanduser().resolve() if given else project_root() / "outputs"


def as_submitted(path: Path) -> Path:
    """Return the copy of `path` that belongs to this notebook's job, or `path` if there is none.

    jobs.code_snapshot made the copy when the job was submitted; $EGOKIT_SUBMITTED is the folder of the copies.
    """
    copies = os.environ.get("EGOKIT_SUBMITTED")
    copy = Path((copies or "") + os.path.abspath(path))
    return copy if copies and copy.exists() else path


def read_yaml(name: str, folder: Path, kind: str) -> dict:
    """Read the mapping of a recipe or site.

    Args:
        name: a YAML file, or the name of one in `folder` (with or without its suffix).
        folder: params/, or params/sites/.
        kind: "recipe" or "site", for messages.

    Raises:
        ConfigError: there is no such file, or it is not a YAML mapping.
        PermissionError: this user may not read it.
    """
    path = as_submitted(Path(name).expanduser())
    if path.suffix not in (".yaml", ".yml") or not (exists(path) and path.is_file()):
        path = folder / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if not path.is_file() and path.is_relative_to(folder) and folder.name == "params":
        path = folder.parent / name if (folder.parent / name).is_file() else path  # params/toy/x.yaml from anywhere
    if not (exists(path) and path.is_file()):
        names = [str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")
                 if "sites" not in file.relative_to(folder).parts]
        raise ConfigError(f"no {kind} {name!r} ({path} is missing): {did_you_mean(name, names)}")
    try:
        values = read_yaml_file(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: expected sections and keys, got {type(values).__name__}")
    return values or {}


def parse_overrides(overrides) -> dict:
    """Parse overrides into a nested dict.

    Args:
        overrides: "train.epochs=3 optim.lr=1e-4", a list of such pairs, or a nested or dotted dict. A value may contain
            spaces: a new pair begins only at a key followed by "=".

    Raises:
        ConfigError: a pair is not section.key=value, or its value is not YAML.
    """
    if isinstance(overrides, str):
        overrides = re.split(r"\s+(?=[A-Za-z_][\w.]*=)", overrides.strip()) if overrides.strip() else []
    if not isinstance(overrides, dict):
        pairs = {}
        for item in overrides or ():
            key, equals, value = str(item).partition("=")
            if not equals or not key:
                raise ConfigError(f"override {item!r}: write section.key=value, for example train.epochs=3")
            try:
                pairs[key] = parse_yaml(value) if value else ""
            except ValueError:
                raise ConfigError(f"override {item!r}: its value is not YAML; "
                                  "put a text with : # [ { or * in quotes") from None
        overrides = pairs
    nested: dict = {}
    for key, value in overrides.items():
        if str(key).count(".") > DEEPEST:
            raise ConfigError(f"override {str(key)[:60]!r}…: write section.key=value, for example train.epochs=3")
        *sections, leaf = ("task.name" if key == "task" and isinstance(value, str) else str(key)).split(".")
        for section in reversed([*sections, leaf]):
            value = {section: value}
        nested = merge(nested, value)
    return nested


def resolve(params: str, site: str = "toy", overrides="", run: str = "demo") -> Config:
    """Resolve a recipe, a site and overrides into a Config.

    Relative paths of the site are relative to the project's folder; ~ and $VARIABLES are expanded.

    Args:
        params: the recipe: a name under params/, or a YAML file.
        site: a name under params/sites/, or a YAML file.
        overrides: see `parse_overrides`.
        run: name of the run; it replaces {run} in `init`, and in the task's keys that name a run (run:…).

    Raises:
        ConfigError: a file, key, value or run name is wrong.
    """
    check_run_name(run)
    root = project_root()
    folder, values = as_submitted(root / "params"), {}
    layers = ((f" (in site {site})", read_yaml(site, folder / "sites", "site")),
              (f" (in {params})", read_yaml(params, folder, "recipe")),
              (" (in overrides)", parse_overrides(overrides)))
    # keys by earlier names, which stood in every config: those of other tasks than this one's are left out
    renamed = {source: {RENAMED[key] for key in flatten(layer, rename=False) if key in RENAMED}
               for source, layer in layers}
    layers = [(source, nest(flatten(layer, source))) for source, layer in layers]
    _leave_toy(layers, site, root)
    for _, layer in layers:
        values = merge(values, layer)
    name = values.get("task", {}).get("name", "")
    task_name = find_task(name, root, params)
    task, values = find(task_name), {}
    for source, layer in layers:  # each layer is checked alone, so that the error names its source
        own, known = layer.get("task", {}), task.Params.__pydantic_fields__
        if own.get("name", name) != name:  # a later layer names another task, with other keys
            own = {key: value for key, value in own.items() if key in known}
        own = {key: value for key, value in own.items() if key in known or f"task.{key}" not in renamed[source]}
        build(task.Params, own, "task", source, partial=True)
        build(Config, layer | {"task": {}}, source=source)
        values = merge(values, layer | {"task": own | {"name": task_name}})
    config = build_config(values, f" (in {params})", task)
    check_shape(config.model)
    check_rate(config.optim)
    paths = {key: absolute(getattr(config.site, key), root) for key in ("root", "weights")}
    for key in ("tokenizer", "vit", "roberta"):  # a name from a hub, or a folder or file
        value = getattr(config.site, key)
        is_path = value.startswith(("/", "~", ".", "$")) or (root / value.split("/")[0]).is_dir()
        paths[key] = absolute(value, root) if "/" in value and is_path else value
    site_config = dataclasses.replace(config.site, name=Path(site).stem, **paths)
    launch = dataclasses.replace(config.launch, cpus_per_task=config.launch.cpus_per_task or 1 + config.data.workers)

    def found(value: str) -> str:
        return find_init(value.replace("{run}", run), site_config, root, outputs_folder())
    runs = {key: found(value) for key, value in vars(config.task).items()
            if isinstance(value, str) and value.startswith("run:")}
    return dataclasses.replace(config, site=site_config, launch=launch, task=dataclasses.replace(config.task, **runs),
                               init=found(config.init))


TOY_STAMP = "toy.json"  # in every root that holds an embedded data set


def _leave_toy(layers: list[tuple[str, dict]], site: str, root: Path) -> None:
    """Drop what a site says of the embedded data set if another data root is given, and say so.

    Its size of videos, length of pieces, tokenizer and random encoders would otherwise stand silently for one's own.

    Args:
        layers: (source, values) of the site, the recipe and the overrides; the site's are changed in place.
        site: the site's name.
        root: the project's folder.
    """
    sites = [part if isinstance(part := layer.get("site"), dict) else {} for _, layer in layers]
    own, roots = sites[0], [site.get("root", "") for site in sites]
    given = next((str(path) for path in (roots[2], roots[1]) if path), "")
    if own.get("toy") is not True or not given or absolute(given, root) == absolute(str(roots[0]), root):
        return
    own["toy"] = False
    if not (Path(absolute(given, root)) / TOY_STAMP).is_file():
        left_out = ", ".join(f"site.{key}" for key in own if key not in ("root", "toy"))
        layers[0][1]["site"] = {}
        _say_once(f"site {site} is for the embedded data set alone: site.root is {given}, so its {left_out} are not "
                  "used. Name a site of your own (params/sites/example.yaml is one to copy), or give these keys")


def expect_own_site(site, given: dict, source: str | None) -> None:
    """Raise ConfigError if videos of one's own would be prepared by the toy's site, which nobody may have named.

    Args:
        site: the site's config, without the overrides.
        given: what the overrides say of the site.
        source: another folder of full videos.
    """
    root = given.get("root")
    is_toys_own = not source and (not root or Path(root, TOY_STAMP).is_file())
    if site.toy and not is_toys_own and not (root and {"short_side", "chunk_seconds"} <= given.keys()):
        raise ConfigError("the site toy is for the embedded data set alone. For other videos name a site of your own "
                          "(--site; copy params/sites/example.yaml), or give --root and, for example, --overrides "
                          "\"site.short_side=256 site.chunk_seconds=600\"")


@functools.cache
def _say_once(text: str) -> None:
    """Print a notice once in a process, however often a config is resolved."""
    print(text, file=sys.stderr, flush=True)


def find_task(task: str, root: Path, params: str) -> str:
    """Return `task` with the path of a user's task file made absolute.

    Args:
        task: the key task.name: one of egokit's names, or folder/file.py:Class.
        root: the folder to which the file is relative.
        params: name of the recipe, for the message.

    Raises:
        ConfigError: `task` is empty, or the file is missing.
    """
    if not task or not isinstance(task, str):
        what = "names no task" if task == "" else f"names no task, but {task!r}"
        raise ConfigError(f"recipe {params!r} {what}: expected one of {', '.join(TASKS)}, or folder/file.py:Class")
    own_task = split_task_file(task)
    if not own_task:
        return task
    file, class_name = absolute(own_task[0], root), own_task[1]
    if not Path(file).is_file():
        raise ConfigError(f"task {task!r}: {file} is missing; write folder/file.py:Class, from the project's folder")
    return f"{file}:{class_name}"


def absolute(path: str, root: Path) -> str:
    """Return `path`, expanded and made absolute from `root`; "" stays ""."""
    if not path:
        return ""
    return str((root / Path(os.path.expandvars(path)).expanduser()).resolve())


def check_run_name(run: str) -> None:
    """Raise ConfigError unless `run` can be the name of a folder."""
    if not run or not all(character.isalnum() or character in "-_." for character in run) or run.startswith("."):
        raise ConfigError(f"run {shortened(run)!r}: use letters, digits, '-', '_' and '.' (it names a folder)")
    if (size := len(run.encode())) > LONGEST:
        raise ConfigError(f"run {shortened(run, 60)!r}: {size} bytes, expected {LONGEST} at most (it names a folder)")
