"""What a job needs, looked for before it is started: its tokenizer, data, and what it starts from.

A mistake in a config is then one line for whoever submits, instead of every rank's traceback. Nothing large is read.
"""
from pathlib import Path

from egokit.config.access import exists
from egokit.config.build import ConfigError
from egokit.config.schema import RANDOM, Config
from egokit.data.site_checks import how_to_get

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")  # any of them says that there is one
WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")


def expect_ready(config: Config, action: str) -> None:
    """Check that the tokenizer and the data that a job needs are there.

    Raises:
        ConfigError: something is missing; the message says what makes or provides it.
        PermissionError: something may not be read.
    """
    from egokit import tasks
    site, task = config.site, tasks.find(config.task.name)
    if task.encodes(action):
        if what := task.needs_fusion(config, action):
            expect_fusion(config.init, what)
        expect_tokenizer(config)
    if site.root and not exists(site.root):
        raise ConfigError(f"site.root of site {site.name!r} is {site.root}, which does not exist: " + (
            "notebook 01_data_prep or 'egokit prep' makes the embedded data set" if site.toy else
            "correct it in the site's file"))
    for name, provider in task.inputs(config, action).items():
        if not exists(Path(site.root, name)):
            raise ConfigError(f"{Path(site.root, name)} is missing (site {site.name!r}, task {config.task.name!r}): "
                              f"give site.root its place, or {how_to_get(provider, site)}")


def expect_fusion(init: str, what: str) -> None:
    """Raise FusionError if the model that `init` names has no fusion encoder, which `what` needs."""
    from egokit.config.own_code import split_model_file
    from egokit.model import own_model, sources
    from egokit.model.dual import FusionError
    if not init:
        return
    known = sources.describe(init)
    fuses = own_model.find_class(*split_model_file(init)[:2]).fuses if known.fuses is None else known.fuses
    if not fuses:
        raise FusionError(f"{sources.name(init)} ({known.family}) has no fusion encoder, which {what} needs: use an "
                          f"EgoVLPv2 checkpoint as init, or leave {what} out")


def expect_tokenizer(config: Config) -> None:
    """Raise ConfigError if the site's tokenizer is missing; one of a hub is loaded once if it is not in the cache."""
    source = config.site.tokenizer
    folder, where = Path(source), f"site.tokenizer of site {config.site.name!r} is {source!r}"
    if folder.is_absolute():
        if not exists(folder):
            made = "notebook 01_data_prep makes the toy's" if config.site.toy else "give a folder or a name"
            raise ConfigError(f"{where}, which does not exist: {made}, or correct the site's file")
        if not any(exists(folder / name) for name in TOKENIZER_FILES):
            raise ConfigError(f"{where}, which holds no tokenizer: expected one of {', '.join(TOKENIZER_FILES)}")
    elif not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        from egokit.model.text_encoder import load_tokenizer
        if any(isinstance(try_to_load_from_cache(source, name), str) for name in TOKENIZER_FILES):
            return
        try:
            load_tokenizer(source, fetch=True)
        except FileNotFoundError:
            raise ConfigError(f"{where}, which is neither cached here nor can be fetched: give a folder with "
                              "vocab.json and merges.txt, or go online once") from None


def starting_point(config: Config) -> str:
    """Return the hash of the checkpoint `init`, or "" without one.

    Raises:
        ConfigError: the ViT or the RoBERTa that a recipe without `init` starts from is missing.
    """
    if config.init:
        from egokit.model import sources
        return sources.fingerprint(config.init)
    for key, meaning in (("vit", "a ViT-B/16: a timm name or a file"), ("roberta", "a RoBERTa: a name or a folder")):
        source = getattr(config.site, key)
        is_path = Path(source).is_absolute() or Path(source).suffix in WEIGHTS
        if not source or (is_path and not exists(source)):
            absent = ", which does not exist" if source else ""
            raise ConfigError(f"site.{key} of site {config.site.name!r} is {source!r}{absent}: this recipe has no init "
                              f"and starts from {meaning}. Name it in the site's file, or write {RANDOM} to start from "
                              "random weights")
    return ""
