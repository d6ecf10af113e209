"""The peers' tokenizers, loaded at the first text: a model that embeds videos alone needs none."""
import functools
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from egokit.config.access import exists
from egokit.config.build import ConfigError
from egokit.config.json_file import read_json
from egokit.config.schema import SiteConfig
from egokit.model import hub
from egokit.model.checkpoints import WeightsError
from egokit.model.input_checks import checked_tokens, rounded_up
from egokit.runs.shown_text import shown

KINDS = {  # key of the section `site`: (the tokenizer's name for messages, files of its folder)
    "clip_tokenizer": ("CLIP's tokenizer", "vocab.json and merges.txt"),
    "bert_tokenizer": ("DistilBERT's tokenizer", "vocab.txt"),
}
FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # a folder has one of these


def tokenizer_of(source: str | None, key: str, owner: str):
    """Return transformers' tokenizer of a peer; a process loads it once.

    Args:
        source: a folder or a name, which is fetched if it is not on this machine; None for the one by default.
        key: of KINDS.
        owner: the model, for messages.

    Raises:
        WeightsError: it can't be had; the message says which, of which model, where it was looked for, and what to do.
    """
    (what, files), name = KINDS[key], getattr(SiteConfig, key)  # the default
    fix = (f"set site.{key}, or tokenizer= of egokit.load, to a folder with tokenizer.json or with {files}; "
           f"or go online once, to fetch {name!r}")
    return load(source or name, f"{owner} reads texts by {what}", fix)


def expect(source: str, setting: str) -> None:
    """Raise a ConfigError if a site's tokenizer is missing; one of the hub is loaded once if it is not in the cache.

    Args:
        source: a folder or name; `setting` is the key that gives it, for the message.
    """
    folder, where = Path(source), f"{setting} is {shown(source, 300)!r}"
    files = ", ".join(FILES)
    if folder.is_absolute() or folder.is_dir():
        if not exists(folder):
            raise ConfigError(f"{where}, which does not exist: give a folder with one of {files}, or a name")
        if not any(exists(folder / name) for name in FILES):
            raise ConfigError(f"{where}, which holds no tokenizer: give a folder with one of {files}")
        return
    from huggingface_hub import try_to_load_from_cache
    if any(isinstance(try_to_load_from_cache(source, name), str) for name in FILES):
        return
    try:
        load(source, where, f"give a folder with one of {files}")
    except WeightsError as error:
        raise ConfigError(f"{error}; or give it another name, or go online once") from None


@functools.lru_cache(maxsize=8)
def load(source: str, purpose: str, fix: str, fetch: bool = True):
    """Return transformers' tokenizer of a folder or name.

    Args:
        purpose: whose it is and `fix` what to do, for the message.
        fetch: fetch a name that is not on this machine.

    Raises:
        WeightsError: it can't be had.
        PermissionError: this user may not read the folder or one of its files.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read at import; forked loaders warn without it
    from huggingface_hub import constants
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    is_folder = exists(source) and Path(source).is_dir()
    if is_folder:
        for file in Path(source).iterdir():
            exists(file)  # raises PermissionError
    elif Path(source).is_absolute():
        raise WeightsError(f"{purpose}: there is no folder {shown(source, 300)}; {fix}")
    where = "in this folder" if is_folder else "in this machine's cache of the hub"
    loaders, reasons = [AutoTokenizer], []
    if is_folder and not any(exists(Path(source, name)) for name in hub.TOKENIZERS):
        loaders, reasons = [], ["it has no file of a tokenizer"]  # transformers 5.0 would make an empty one
    elif is_folder and exists(Path(source, "tokenizer.json")) and not _is_first_siglips(Path(source)):
        loaders.append(PreTrainedTokenizerFast)  # without sentencepiece, transformers 5.0 finds no class for SigLIP 2
    for loader in loaders:
        try:
            return loader.from_pretrained(source, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # tokenizers raises bare Exceptions for damaged files
            reasons.append(f"{type(error).__name__}: {_in_brief(error)}")
    if not is_folder and constants.HF_HUB_OFFLINE:
        reasons = ["the hub was not asked, as HF_HUB_OFFLINE is set"]
    elif not is_folder and fetch:
        where += ", then on the hub"
        folder, reason = hub.download(source, hub.TOKENIZER_FILES)
        try:
            if folder:
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            reasons = [reason]
        except Exception as error:
            reasons = [f"what is there is no tokenizer, {type(error).__name__}: {_in_brief(error)}"]
    elif not is_folder:
        reasons = ["the hub was not asked"]
    raise WeightsError(f"{purpose}, but {shown(source, 300)!r} could not be loaded, looked for {where} "
                       f"({shown(reasons[0], 300)}); {fix}")


def _in_brief(error: Exception) -> str:
    """Return an exception's text in one line, cut at a word, without addresses."""
    text = re.sub(r"'?https?://\S+", "…", " ".join(str(error).split()))
    return textwrap.shorten(text, 200, placeholder=" …")


def _is_first_siglips(folder: Path) -> bool:
    """Whether a folder's tokenizer is of the class that wants sentencepiece, which tokenizer.json does not replace."""
    try:
        config = read_json(folder / "tokenizer_config.json", {"tokenizer_class": (str, None, ...)}, "fetch it again")
    except ValueError:
        return False
    return bool(config) and (config.get("tokenizer_class") or "").startswith("Siglip")


def checked(tokens: Mapping, positions: int, words: int, source: str, padding: int | None) -> dict[str, Tensor]:
    """Return a user's tokens, {"input_ids": (B, L), "attention_mask": (B, L)}.

    Args:
        tokens: with or without a mask.
        positions: how many tokens of a text the model takes; `words` is how many it knows.
        source: the tokenizer's name, for messages.
        padding: id that has no mask where none is given; None masks nothing.

    Raises:
        ValueError: they don't fit the model.
    """
    if "input_ids" in tokens and "attention_mask" not in tokens:
        ids = torch.as_tensor(tokens["input_ids"])
        tokens = {**tokens, "attention_mask": torch.ones_like(ids) if padding is None else (ids != padding).long()}
    return checked_tokens(tokens, positions, words, source, positions)


def padded(tokenizer, texts: list[str], longest: int, device: torch.device, words: int, owner: str,
           end: int | None = None, length: int | None = None) -> dict[str, Tensor]:
    """Return {"input_ids": (B, L), "attention_mask": (B, L)} of B texts on a device, on a GPU of few lengths L.

    A text that is too long is cut before its end token. A model that is given `end` reads no token behind it, so that
    any id will do as padding; others are given the tokenizer's own.

    Args:
        words: how many token embeddings the model has; `owner` is the model, for messages.
        end: id of the end of a text, by which the model finds it.
        length: L; None takes the longest text's.

    Raises:
        WeightsError: this is another tokenizer than the model's.
    """
    rows = [torch.tensor(ids, dtype=torch.long)
            for ids in tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]]
    padding = 0 if end is not None else tokenizer.pad_token_id
    largest = max((int(ids.max()) for ids in rows if len(ids)), default=0)
    if (largest >= words or not all(map(len, rows)) or padding is None
            or (end is not None and {int(ids[-1]) for ids in rows} != {end})):
        raise WeightsError(
            f"tokenizer {shown(tokenizer.name_or_path, 300)!r} is not that of {owner}: it gives ids up to {largest}, "
            f"expected fewer than {words}" + ("" if end is None else f", and {end} at the end of each text")
            + (", and a padding token" if padding is None else "")
            + "; give the model's own as tokenizer= of egokit.load, or in the section site")
    length = length or min(longest, rounded_up(max(map(len, rows), default=1), device))
    ids_BL = torch.stack([F.pad(ids, (0, length - len(ids)), value=padding) for ids in rows])
    mask_BL = torch.stack([F.pad(torch.ones_like(ids), (0, length - len(ids))) for ids in rows])
    return {"input_ids": ids_BL.to(device), "attention_mask": mask_BL.to(device)}
