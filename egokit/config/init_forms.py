"""The forms of `init`, which names the model that a recipe starts from; read here without loading anything.

    EgoVLPv2.pth             a checkpoint: any path, or a file or folder in site.weights
    run:02_pretrain/mine     the checkpoint of a run, relative to the outputs folder
    hf:openai/clip-vit-base-patch16, hf:NAME@revision   a model of the Hugging Face hub, or of its cache
    mine/model.py:Class, mine/model.py:Class:weights    a class of a user's own file
"""
import os
import re
from pathlib import Path

from egokit.config.build import ConfigError
from egokit.config.names import shortened
from egokit.config.own_code import split_model_file

HUB_NAME = re.compile(r"hf:((?:[\w-][\w.-]*/)?[\w-][\w.-]*)(?:@([\w-][\w./-]*))?")
WEIGHTS = (".pth", ".pt", ".tar", ".bin", ".safetensors", ".ckpt", ".npz")  # suffixes of files of weights


def split_hub(init: str) -> tuple[str, str] | None:
    """Return (name, revision) of "hf:NAME" or "hf:NAME@revision", the revision as "" if there is none.

    Returns:
        None for another form of `init`.

    Raises:
        ConfigError: the name can't be one of the hub's.
    """
    if not init.startswith("hf:"):
        return None
    match = HUB_NAME.fullmatch(init)
    if not match or ".." in init or "--" in init or len(init) > 200:
        raise ConfigError(f"init {shortened(init)!r}: expected hf:OWNER/NAME or hf:OWNER/NAME@revision, a model of the "
                          "Hugging Face hub")
    return match[1], match[2] or ""


def find_init(init: str, site, root: Path, outputs: Path) -> str:
    """Return `init` with its path made absolute, where its form has one.

    Args:
        init: one of the forms; see the module.
        site: the SiteConfig.
        root: the project's folder, to which a file of code is relative.
        outputs: the folder of all runs.

    Raises:
        ConfigError: the file of a class, or its weights, are missing; or it is no name of the hub.
    """
    if split_hub(init):
        return init
    if own := split_model_file(init):
        file, class_name, weights = own
        path = (root / Path(os.path.expandvars(file)).expanduser()).resolve()
        if not path.is_file():
            raise ConfigError(f"init {init!r}: {path} is missing; write folder/file.py:Class, from the project's "
                              "folder, and weights after a second colon if the class wants some")
        return ":".join([str(path), class_name, *([_weights(weights, site, root, outputs)] if weights else [])])
    if init.startswith("run:"):
        return str(outputs / init.removeprefix("run:"))
    if init.startswith("~"):
        return str(Path(init).expanduser())
    if init and site.weights and not Path(init).exists():
        return str(Path(site.weights) / init)
    return init


def _weights(weights: str, site, root: Path, outputs: Path) -> str:
    """Return the weights of a user's class: a path made absolute, or a text that the class itself understands.

    Raises:
        ConfigError: it is the name of a file, and the file is missing.
    """
    if split_hub(weights):
        return weights
    if weights.startswith("run:"):
        return str(outputs / weights.removeprefix("run:"))
    given = Path(os.path.expandvars(weights)).expanduser()
    places = [root / given, *([Path(site.weights) / given] if site.weights else [])]
    for path in places:
        if path.exists():
            return str(path.resolve())
    if given.suffix in WEIGHTS or given.is_absolute():
        raise ConfigError(f"init: the weights {weights!r} are missing, looked for {' and '.join(map(str, places))}: "
                          "put them there, or correct the path")
    return weights
