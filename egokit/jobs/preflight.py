"""What a job needs, looked for before it is started: its model, tokenizer and data, and what it starts from.

A mistake in a config is then one line for whoever submits, instead of every rank's traceback. Nothing large is read.
"""
import sys
from pathlib import Path

from egokit.config.access import exists
from egokit.config.build import ConfigError
from egokit.config.own_code import split_model_file
from egokit.config.schema import RANDOM, Config
from egokit.data.site_checks import how_to_get

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")  # any of them says that there is one
FOLDER_TOKENIZERS = (*TOKENIZER_FILES, "vocab.txt", "tokenizer.model", "spiece.model")  # of the hub's models
WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")


def tell_toy_site(config: Config, params: str) -> None:
    """Say on stderr that a recipe for other data takes the embedded data set, as it does where no site is named."""
    if config.site.toy and not params.startswith("toy/"):
        print(f"on the embedded data set in {config.site.root}; for other data name a site: --site", file=sys.stderr)


def expect_ready(config: Config, action: str) -> None:
    """Check that the tokenizer and the data that a job needs are there, and that its model can do it.

    Raises:
        ConfigError: something is missing; the message says what makes or provides it. Or `init` is of another family
            or size than the job needs.
        PermissionError: something may not be read.
    """
    from egokit import tasks
    site, task = config.site, tasks.find(config.task.name)
    if task.encodes(action) and config.init:
        expect_model(config, action, task)
    elif task.encodes(action):
        expect_tokenizer(config)
    if site.root and not exists(site.root):
        raise ConfigError(f"site.root of site {site.name!r} is {site.root}, which does not exist: " + (
            "notebook 01_data_prep or 'egokit prep' makes the embedded data set" if site.toy else
            "correct it in the site's file"))
    for name, provider in task.inputs(config, action).items():
        if not exists(Path(site.root, name)):
            raise ConfigError(f"{Path(site.root, name)} is missing (site {site.name!r}, task {config.task.name!r}): "
                              f"give site.root its place, or {how_to_get(provider, site)}")


def expect_model(config: Config, action: str, task: type) -> None:
    """Check that a job can do what it does with the model that `init` names, as far as its files tell.

    Raises:
        ConfigError: it trains, and the model is none of EgoVLPv2's; the image size is another than the recipe's; the
            tokenizer is missing; or the file of a user's model is wrong.
        FusionError: the job needs a fusion encoder, and the model has none.
        WeightsError: the model's file is damaged, or a peer's tokenizer is missing.
    """
    from egokit.model import own_model, sources
    described, size = sources.describe(config.init), None
    if described.family == "own":
        file, class_name, _ = split_model_file(config.init)
        kind = own_model.find_class(file, class_name)  # an error in the user's file is raised here, not in a job's log
        size = getattr(kind, "image_size", None)
    size = described.image_size or size
    if action == "train" and described.family != "egovlpv2":
        raise ConfigError(f"init {config.init!r} is {article(described.family)}, which egokit evaluates and extracts "
                          "features with, but does not train: train an EgoVLPv2 checkpoint, or give this model to an "
                          "evaluation or an extraction")
    if what := task.needs_fusion(config, action):
        expect_fusion(config.init, what)
    if isinstance(size, int) and size != config.model.image_size:
        raise ConfigError(f"init {config.init!r} takes frames of {size} px, but model.image_size is "
                          f"{config.model.image_size}: set model.image_size={size}")
    if described.tokenizer_key == "tokenizer":
        expect_tokenizer(config)
    elif described.tokenizer_key:
        from egokit.model.peers import tokenizers
        tokenizers.tokenizer_of(getattr(config.site, key := described.tokenizer_key), key, described.family)
    elif described.family != "own":
        folder = sources.find(config.init).path
        if not any(exists(folder / name) for name in FOLDER_TOKENIZERS):
            raise ConfigError(f"{folder} holds no tokenizer, by which init {config.init!r} reads texts: put its files "
                              f"there, expected one of {', '.join(FOLDER_TOKENIZERS)}")


def expect_fusion(init: str, what: str) -> None:
    """Raise FusionError if the model that `init` names has no fusion encoder, which `what` needs."""
    from egokit.model import own_model, sources
    from egokit.model.dual import FusionError
    if not init:  # fresh weights of EgoVLPv2
        return
    described = sources.describe(init)
    fuses = described.fuses if described.family != "own" else own_model.find_class(*split_model_file(init)[:2]).fuses
    if not fuses:
        raise FusionError(f"init {init!r} is {article(described.family)} and has no fusion encoder, which {what} "
                          f"needs: use an EgoVLPv2 checkpoint, or leave {what} out")


def article(family: str) -> str:
    """Return a family as messages name a model of it."""
    from egokit.model import sources
    return "a model of your own" if family == "own" else f"a model of another family ({sources.WRITTEN[family]})"


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
