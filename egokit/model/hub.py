"""Folders in the layout of the Hugging Face hub, and its cache on this machine: found, fetched, and checked.

Only config.json, tokenizers' files and *.safetensors are fetched or read; nothing in such a folder is executed.
"""
import os
import re
from pathlib import Path

from egokit.config.json_file import read_json
from egokit.config.names import shortened
from egokit.model.checkpoints import WeightsError
from egokit.runs.shown_text import shown

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
LARGEST = 1 << 20  # bytes of a config.json
# beside config.json and the tensors, what changes a model's numbers
HASHED = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")  # it has one of these
TOKENIZER_FILES = ("*.json", "vocab.txt", "merges.txt", "*.model")
FETCHED = (*TOKENIZER_FILES, "*.safetensors", "README.md")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder in the hub's layout: one with a config.json."""
    return path.is_dir() and (path / CONFIG).is_file()


def snapshot(name: str, revision: str = "", cache_dir: str | Path | None = None, token: str | bool | None = None,
             fetch: bool = True) -> Path:
    """Return the folder of a model of the hub: the cache's, which is filled from the hub if it lacks the model.

    Args:
        name: OWNER/NAME, or NAME.
        revision: a branch, tag or commit; "" is the main branch, as it was when the cache was filled.
        cache_dir: the cache; None takes huggingface_hub's ($HF_HUB_CACHE, else $HF_HOME/hub).
        token: as of huggingface_hub.
        fetch: whether the hub may be asked.

    Raises:
        WeightsError: it is not in the cache, and can't be fetched.
    """
    from huggingface_hub import constants
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    options = {"revision": revision or None, "cache_dir": cache, "token": token}
    reason = "no network was asked, as HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no network was asked"
    folder = _cached(name, options)
    if folder and not _lacking(folder) and _has_tokenizer(folder):
        return folder
    if fetch and not constants.HF_HUB_OFFLINE:
        if folder:  # the rest of what is there, and no newer model
            options["revision"] = folder.name
        fetched, reason = download(name, FETCHED, **options)
        folder = fetched or folder
    if folder and not _lacking(folder):  # if its tokenizer is missing, that is said at the first text
        return folder
    at = f" at revision {revision!r}" if revision else ""
    found = f"is in the cache {cache} without {_lacking(folder)}" if folder else f"is not in the cache {cache}"
    raise WeightsError(f"hf:{name}{at} {found} ({reason}): correct the name, go online once, or give a folder with "
                       f"{CONFIG} and *.safetensors in its place; another cache is named by HF_HOME")


def _cached(name: str, options: dict) -> Path | None:
    """Return the cache's folder of a model, whole or not, or None.

    Raises:
        WeightsError: this can't be a name of the hub.
    """
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(name, local_files_only=True, **options))
    except Exception as error:  # the library's own kinds: no such entry, a name that it refuses
        if "HFValidationError" in _kinds(error):
            raise WeightsError(f"hf:{name}: {shortened(str(error).splitlines()[0])}; expected hf:OWNER/NAME") from None
        # huggingface_hub 2 calls a folder incomplete that lacks any file of the hub's, such as a pickle
        return Path(error.snapshot_path) if getattr(error, "snapshot_path", None) else None


def download(name: str, patterns: tuple[str, ...], **options) -> tuple[Path | None, str]:
    """Fetch files of a model of the hub into the cache; the hub is asked once.

    transformers' loaders would ask six times within 24 s, and say so in a line each.

    Args:
        name: OWNER/NAME, or NAME.
        patterns: of the files that are fetched.
        options: of huggingface_hub's snapshot_download.

    Returns:
        The folder, and why it could not be filled: None and a sentence, or the folder and "".
    """
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), **options)), "the hub has nothing else of it"
    except Exception as error:  # it raises the kinds of several libraries for no network, no such name, no right
        return None, _reason(error)


REASONS = {  # by the kind of the library's exception; the first that fits
    "GatedRepoError": "its owner has to grant access: ask for it on its page, then give the command hf auth login",
    "RepositoryNotFoundError": "the hub shows no model of this name; a private one wants the command hf auth login",
    "RevisionNotFoundError": "the hub has no such revision of it",
    "LocalEntryNotFoundError": "the hub can't be reached", "IncompleteSnapshotError": "the hub can't be reached",
    "ConnectError": "the hub can't be reached", "ConnectionError": "the hub can't be reached",
    "TimeoutException": "the hub does not answer", "Timeout": "the hub does not answer"}


def _reason(error: Exception) -> str:
    """Why a fetch failed, in one line without addresses."""
    kinds = _kinds(error)
    if known := next((text for kind, text in REASONS.items() if kind in kinds), ""):
        return known
    lines = re.sub(r"https?://\S+", "…", str(error)).strip().splitlines() or ["no more is said"]
    return f"it could not be fetched, {type(error).__name__}: {shown(shortened(lines[0], 150), 160)}"


def _kinds(error: Exception) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def _lacking(folder: Path) -> str:
    """What a folder lacks of config.json and tensors, in words; parts that its index names are looked for, too."""
    lacking = [name for name in (CONFIG, "*.safetensors") if not any(folder.glob(name))]
    if not lacking and not (folder / TENSORS).exists():
        try:
            index = read_json(folder / INDEX, {"weight_map": {...: str}}, "fetch it again") or {"weight_map": {}}
        except (ValueError, OSError):
            return ""  # whoever reads it says what is wrong
        present = {path.name for path in folder.glob("*.safetensors")}
        lacking = sorted({shown(name, 100) for name in index["weight_map"].values()} - present)[:1]
    return " and ".join(lacking)


def _has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer, or is egokit's own, which may name one instead."""
    if any((folder / name).exists() for name in TOKENIZERS):
        return True
    try:
        return read_config(folder)["model_type"] == "egokit"
    except WeightsError:
        return True  # whoever reads it says what is wrong


def tensor_files(folder: Path) -> list[Path]:
    """Return the *.safetensors of a folder, by name.

    Raises:
        WeightsError: there are none; pickles in their place are not read.
    """
    if files := sorted(folder.glob("*.safetensors")):
        return files
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    has = f"has its weights in pickles alone ({shown(', '.join(pickles[:3]), 100)}), which may hold code and are not " \
          "read" if pickles else "holds no *.safetensors"
    raise WeightsError(f"{folder} {has}: give a folder with {CONFIG} and *.safetensors (transformers writes such a one "
                       "by save_pretrained), or a file that egokit.load knows")


def hashed_files(folder: Path) -> list[Path]:
    """Return the files of a folder that make a model's numbers: config.json first, then the rest by name.

    Raises:
        WeightsError: it has no *.safetensors.
    """
    others = [folder / name for name in HASHED if (folder / name).is_file()]
    return [folder / CONFIG, *others, *tensor_files(folder)]


def read_config(folder: Path) -> dict:
    """Return a folder's config.json.

    What it may say of code, such as auto_map, is ignored.

    Raises:
        WeightsError: it is damaged, enormous, or does not name the kind of model.
    """
    path, fix = folder / CONFIG, "expected what transformers or egokit has written"
    try:
        config = read_json(path, {"model_type": str}, fix, LARGEST)
    except (ValueError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise WeightsError(shortened(error, 400)) from None
    if config is None:
        raise WeightsError(f"{path} is missing: give a folder with it and *.safetensors")
    return config


def is_repository(path: str | os.PathLike) -> bool:
    """Return whether a text is no folder of this machine, so that `from_pretrained` takes it for a name of the hub."""
    return not os.path.exists(path) and not os.path.isabs(path)
