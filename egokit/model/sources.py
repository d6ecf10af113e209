"""What `init` may name, and what is known of it before it is loaded: its files, their hash, its family and sizes.

`init` is a checkpoint or run folder, a folder in the Hugging Face hub's layout, "hf:NAME", or "file.py:Class" of a
user's (config/init_forms.py). Tensors stay in their files here.
"""
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Literal

from egokit.config.init_forms import split_hub
from egokit.config.own_code import split_model_file
from egokit.config.schema import ModelConfig
from egokit.model import checkpoints, hub
from egokit.model.checkpoints import WeightsError
from egokit.runs.files import file_sha256

WRITTEN = {"egovlpv2": "EgoVLPv2", "egovlp": "EgoVLP", "lavila": "LaViLa", "avion": "AVION", "clip": "CLIP",
           "siglip": "SigLIP", "own": "own"}  # families as people write them, for messages


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model is.

    Attributes:
        kind: "file": a checkpoint; "folder": in the hub's layout; "own": a class of a user's file.
        path: the file or folder.
        class_name: of a user's file.
        weights: what a user's class is called with; "" for nothing.
    """
    kind: Literal["file", "folder", "own"]
    path: Path
    class_name: str = ""
    weights: str = ""


@dataclasses.dataclass(frozen=True)
class Described:
    """What a model's files tell of it.

    Attributes:
        family: "egovlpv2", "egovlp", "lavila", "avion", "clip", "siglip", or "own" for a user's class.
        image_size: side of its frames in pixels; None: not known before it is loaded.
        frames: how many frames of a clip its file has places for; None: any number, or not known.
        recommended: keys of a recipe that the family's own evaluation has, with their values.
        tokenizer_key: the site's key that names its tokenizer; "" if it brings one.
        fuses: whether it has a fusion encoder; None: not known before it is loaded.
        shape: of an EgoVLPv2 network; None for other families.
    """
    family: str
    image_size: int | None = None
    frames: int | None = None
    recommended: dict[str, object] = dataclasses.field(default_factory=dict)
    tokenizer_key: str = ""
    fuses: bool | None = False
    shape: ModelConfig | None = None


def find(init: str | Path, fetch: bool = True) -> Source:
    """Return where the model is that `init` names; one of the hub is fetched if the cache lacks it.

    Args:
        init: one of the forms.
        fetch: whether the hub may be asked.

    Raises:
        WeightsError: it is not there, or can't be fetched; the message says what to give.
        ConfigError: it is no name of the hub.
        PermissionError: this user may not read it.
    """
    init = str(init)
    if named := split_hub(init):
        return Source("folder", hub.snapshot(*named, fetch=fetch))
    if own := split_model_file(init):
        file, class_name, weights = own
        file = os.path.expanduser(file)
        if not Path(file).is_file():
            raise WeightsError(f"init {init!r}: {file} is missing; write folder/file.py:Class")
        return Source("own", Path(file), class_name, weights)
    path = Path(init).expanduser() if init.startswith("~") else Path(init)
    if path.suffix == ".py" and path.is_file():
        raise WeightsError(f"init {init!r} is a file of code: name its class, too, {init}:Class")
    if path.name == hub.TENSORS and hub.is_folder(path.parent):
        path = path.parent  # without config.json, its shape is not known
    if hub.is_folder(path):
        return Source("folder", path)
    return Source("file", checkpoints.find(path))


def files(init: str | Path) -> list[Path]:
    """Return the files behind `init`; whoever changes one of them makes another model.

    Raises:
        WeightsError, ConfigError, PermissionError: as `find`.
    """
    source = find(init)
    if source.kind == "folder":
        return hub.hashed_files(source.path)
    if source.kind == "own":
        return [source.path, *(files(source.weights) if _is_place(source.weights) else [])]
    return [source.path]


def fingerprint(init: str | Path, code: Path | None = None) -> str:
    """Return 12 hex digits that name what `init` is of; "" for "".

    Those of a file are of its SHA-256, of a folder of its config.json, tokenizer and *.safetensors, of a user's class
    of its file and its weights.

    Args:
        init: one of the forms.
        code: a job's copy of egokit, with the file of a user's class that is executed.

    Raises:
        WeightsError, ConfigError, PermissionError: as `find`.
    """
    if not init:
        return ""
    source = find(init)
    if source.kind == "file":
        return checkpoints.fingerprint(source.path)
    if source.kind == "folder":
        return _digest(f"{path.name} {file_sha256(path)}" for path in hub.hashed_files(source.path))
    copy = source.path if code is None else code / "model" / source.path.name
    if not source.weights:
        return checkpoints.fingerprint(copy)
    weights = fingerprint(source.weights) if _is_place(source.weights) else source.weights
    return _digest([file_sha256(copy), weights])


def _digest(lines) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _is_place(weights: str) -> bool:
    """Whether a user's weights are files that are there, and not a name that their class alone understands."""
    return bool(weights) and (weights.startswith("hf:") or Path(weights).exists())


def name(init: str | Path) -> str:
    """Return a short name of the model that `init` names, for tables and legends; "" for ""."""
    init = str(init)
    if named := split_hub(init):
        return "@".join(part for part in named if part)
    if own := split_model_file(init):
        file, class_name, weights = own
        return ":".join([f"{Path(file).name}:{class_name}", *([name(weights)] if weights else [])])
    path = Path(init)
    if path.parent.name == "checkpoints":
        path = path.parents[1]
    is_run = path.suffix not in (".pth", ".pt", ".tar", ".safetensors") and (path / "checkpoints").is_dir()
    return f"{path.parent.name}/{path.name}" if is_run else path.name


def origin(init: str | Path) -> str:
    """Return what metrics.json names as a result's checkpoint: the file or folder, or the class or name of the hub."""
    init = str(init)
    return init if not init or split_hub(init) or split_model_file(init) else str(find(init).path)


def describe(init: str | Path) -> Described:
    """Return what the files of a model tell of it, without reading its tensors or executing a user's file.

    Raises:
        WeightsError: it can't be found or read, or is of no known kind.
        ConfigError, PermissionError: as `find`.
    """
    from egokit.model import peers, recorded_shape
    from egokit.model.released_keys import our_keys, unwrap
    source = find(init)
    if source.kind == "own":
        return Described("own", fuses=None)
    if source.kind == "folder":
        return _describe_folder(source.path)
    content = checkpoints.outline(source.path)
    state, _ = unwrap(checkpoints.state_dict(content, source.path))
    if family := peers.family_of(state):
        peers.refuse(state, source.path)
        try:
            shape = peers.shape_of(family, {key: tuple(value.shape) for key, value in state.items()})
        except WeightsError as error:
            raise WeightsError(f"{source.path}: {error}") from None
        recommended = peers.recommended(family, shape.image_size, shape.from_clip)
        return Described(family, shape.image_size, shape.frames, recommended, shape.tokenizer_key)
    state, unknown = our_keys(state)
    record = recorded_shape.read_record(content, source.path)
    if not record and not state:
        refuse(unknown, source.path)
    config = recorded_shape.shape_of(record, state, source.path)
    return Described("egovlpv2", config.image_size, config.frames, tokenizer_key="tokenizer", fuses=True, shape=config)


def refuse(keys: list[str], path: Path) -> None:
    """Raise WeightsError for a file of no known family, with a sentence for those that are known to be something else.

    Args:
        keys: of its tensors, without the names of wrappers.
    """
    from egokit.model import peers
    peers.refuse(keys, path)
    raise WeightsError(f"{path} is not an EgoVLPv2 checkpoint, nor one of EgoVLP, LaViLa or AVION: its keys begin with "
                       f"{checkpoints.named(sorted(keys), 5)}")


def _describe_folder(folder: Path) -> Described:
    """What the config.json of a folder in the hub's layout tells."""
    from egokit.model import peers, pretrained, recorded_shape
    from egokit.model.peers import hugging_face
    config = hub.read_config(folder)
    hub.tensor_files(folder)
    if config["model_type"] == pretrained.MODEL_TYPE:
        shape = recorded_shape.shape_of(pretrained.record_of(config, folder), {}, folder)
        return Described("egovlpv2", shape.image_size, shape.frames, tokenizer_key="tokenizer", fuses=True, shape=shape)
    shape = hugging_face.shape_of_folder(folder)
    return Described(shape.family, shape.image_size, None, peers.recommended(shape.family, shape.image_size))
