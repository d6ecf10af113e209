"""From YAML files to one frozen Config; nothing else reads YAML.

    dataclass defaults  <-  params/sites/<site>.yaml  <-  params/<recipe>.yaml  <-  overrides

An unknown key, a wrong type or a missing file is an error that names the key or file and the nearest
right one. Nothing here imports torch or touches data.
"""
from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import yaml

from egokit.config.build import ConfigError, build, did_you_mean, merge, new_names, split_task_file, to_dict
from egokit.config.schema import CHOICES, Config


def project_root() -> Path:
    """The folder that holds params/ and notebooks/: $EGOKIT_HOME, or found upward from here, or the checkout."""
    home = os.environ.get("EGOKIT_HOME")
    candidates = [Path(home)] if home else [Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[2]]
    for folder in candidates:
        if (folder / "params" / "sites").is_dir():
            return folder.resolve()
    raise ConfigError(f"no folder with params/sites/ at {candidates[0]} or above it; "
                      "start from the project's folder or set EGOKIT_HOME to it")


def outputs_folder() -> Path:
    """Where runs go: outputs/ of the project, or $EGOKIT_OUTPUTS."""
    given = os.environ.get("EGOKIT_OUTPUTS")
    return Path(given).expanduser().resolve() if given else project_root() / "outputs"


def as_submitted(path: Path) -> Path:
    """What stands for `path` in a notebook's job: the copy that its submission made (snapshot.keep), or the path itself."""
    copies = os.environ.get("EGOKIT_SUBMITTED")
    copy = Path(copies + os.path.abspath(path)) if copies else path
    return copy if copy.exists() else path


def read_yaml(name: str, folder: Path, kind: str) -> dict:
    """The mapping in `name`: a file, or the name of one in `folder`."""
    path = as_submitted(Path(name).expanduser())
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        path = folder / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if not path.is_file() and path.is_relative_to(folder) and folder.name == "params":
        path = folder.parent / name if (folder.parent / name).is_file() else path  # params/toy/x.yaml from anywhere
    if not path.is_file():
        names = [str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml") if "sites" not in p.relative_to(folder).parts]
        raise ConfigError(f"no {kind} {name!r} ({path} is missing): {did_you_mean(name, names)}")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections and keys, got {type(values).__name__}")
    return values


def parse_overrides(overrides) -> dict:
    """'train.epochs=3 optim.lr=1e-4', a list of such pairs, or a (nested or dotted) dict, as a nested dict.

    A value may have spaces: a pair begins where a key and = do.
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
                pairs[key] = yaml.safe_load(value) if value else ""
            except yaml.YAMLError:
                raise ConfigError(f"override {item!r}: its value is not YAML; put a text with : # [ {{ or * in quotes") from None
        overrides = pairs
    nested: dict = {}
    for key, value in overrides.items():
        *sections, leaf = str(key).split(".")
        for section in reversed([*sections, leaf]):
            value = {section: value}
        nested = merge(nested, value)
    return nested


def resolve(params: str, site: str = "toy", overrides="", run: str = "demo") -> Config:
    """The Config of recipe `params` on `site`, for a run named `run` ({run} in `init` becomes that name).

    Relative paths of the site are taken from the project's folder; ~ and $VARIABLES are expanded.
    """
    check_run_name(run)
    root = project_root()
    folder, values = as_submitted(root / "params"), {}
    layers = ((f" (in site {site})", read_yaml(site, folder / "sites", "site")),
              (f" (in {params})", read_yaml(params, folder, "recipe")),
              (" (in overrides)", parse_overrides(overrides)))
    for source, layer in layers:
        layer = new_names(layer, source)
        build(Config, layer, source=source)  # strict on each alone, so that the error names its source
        values = merge(values, layer)
    config = build(Config, values)
    shape, name = config.model, Path(site).stem
    if shape.width % shape.heads or shape.image_size % shape.patch_size or shape.num_fused_layers > shape.depth:
        raise ConfigError(f"model: expected width ({shape.width}) a multiple of heads ({shape.heads}), image_size ({shape.image_size}) of "
                          f"patch_size ({shape.patch_size}), and num_fused_layers ({shape.num_fused_layers}) at most depth ({shape.depth})")
    places = {key: _absolute(getattr(config.site, key), root) for key in ("root", "weights")}
    for key in ("tokenizer", "vit", "roberta"):  # a name from a hub, or a folder or file
        value = getattr(config.site, key)
        here = value.startswith(("/", "~", ".", "$")) or (root / value.split("/")[0]).is_dir()
        places[key] = _absolute(value, root) if "/" in value and here else value
    site_config = dataclasses.replace(config.site, name=name, **places)
    launch = dataclasses.replace(config.launch, cpus_per_task=config.launch.cpus_per_task or 1 + config.data.workers)
    return dataclasses.replace(config, task=find_task(config.task, root, params), site=site_config, launch=launch,
                               init=find_init(config.init.replace("{run}", run), site_config))


def find_task(task: str, root: Path, params: str) -> str:
    """`task` with the path of its file, if it has one, made absolute."""
    if not task:
        raise ConfigError(f"recipe {params!r} names no task: expected one of {', '.join(CHOICES['task'])}, or folder/file.py:Class")
    own = split_task_file(task)
    if own and not Path(_absolute(own[0], root)).is_file():
        raise ConfigError(f"task {task!r}: {_absolute(own[0], root)} is missing; write folder/file.py:Class, from the project's folder")
    return f"{_absolute(own[0], root)}:{own[1]}" if own else task


def find_init(init: str, site) -> str:
    """`init` as a path: run:<notebook>/<run> under the outputs, a file of site.weights, or a path as it stands."""
    if init.startswith("run:"):
        return str(outputs_folder() / init.removeprefix("run:"))
    if init and site.weights and not Path(init).exists():
        return str(Path(site.weights) / init)
    return init


def _absolute(path: str, root: Path) -> str:
    if not path:
        return ""
    return str((root / Path(os.path.expandvars(path)).expanduser()).resolve())


def check_run_name(run: str) -> None:
    if not run or not all(character.isalnum() or character in "-_." for character in run) or run.startswith("."):
        raise ConfigError(f"run {run!r}: use letters, digits, '-', '_' and '.' (it names a folder)")


def to_yaml(config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)
