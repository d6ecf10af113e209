"""The shape of a checkpoint's network, as the file records it or as its tensors tell it; memory for its weights."""
import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from egokit.config.build import build, check_shape, flatten, nest
from egokit.config.schema import ModelConfig
from egokit.model import checkpoints
from egokit.model.checkpoints import WeightsError


def infer_config(state: dict[str, Tensor]) -> ModelConfig:
    """Return the network's shape as told by a state dict with our keys.

    It serves files without a record of the shape: the base model's 12 blocks of which 6 are fused, with what differs
    between the released models. What a key can't tell, because it is missing or misshapen, is as in the base model;
    `check` then lists that key.

    Raises:
        WeightsError: the width does not tell the number of heads.
    """
    base = ModelConfig()

    def size(key: str, axis: int, ndim: int, default: int) -> int:
        return state[key].shape[axis] if key in state and state[key].ndim == ndim else default
    width = size("video.norm.weight", 0, 1, base.width)
    if width % 64 or not width:
        raise WeightsError(f"a model of width {width} and no record of its number of heads: "
                           "expected an egokit checkpoint, or the base model's 768")
    patch = size("video.patch_embed.weight", 3, 4, base.patch_size)
    patches = size("video.position_embed", 1, 3, 197) - 1
    mlp = any(key.startswith(("text_projection.4.", "video_projection.4.")) for key in state)
    last_layer = "text_projection.4.weight" if mlp else "text_projection.1.weight"
    return ModelConfig(image_size=max(1, round(max(0, patches) ** 0.5)) * patch, patch_size=patch,
                       frames=size("video.temporal_embed", 1, 3, base.frames),
                       width=width, heads=width // 64, depth=base.depth, num_fused_layers=base.num_fused_layers,
                       mlp_ratio=size("video.blocks.0.fc1.weight", 0, 2, 4 * width) / width,
                       vocab_size=size("text.word_embed.weight", 0, 2, base.vocab_size),
                       max_positions=size("text.position_embed.weight", 0, 2, base.max_positions),
                       projection=f"{'mlp' if mlp else 'linear'}{size(last_layer, 0, 2, 4096 if mlp else 256)}")


def shape_of(record: dict | None, state: dict[str, Tensor], path) -> ModelConfig:
    """Return the network's shape as a file records it, else as its tensors tell it.

    Raises:
        WeightsError: the record is damaged or out of bounds, or the tensors can't tell it.
    """
    try:
        if not record:
            return infer_config(state)
        shape = build(ModelConfig, nest(flatten({"model": record["model_config"]})).get("model", {}), "model")
        check_shape(shape)
        return shape
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise WeightsError(f"{path}: the shape that it tells of the model is damaged or out of bounds ({reason}); "
                           "expected an egokit or a released checkpoint") from error


def record_of_egokit(content: dict):
    """Return what egokit recorded in a file, of its own or in the released layout; None for other files."""
    released = content.get("config")  # an inert object in the original's files
    exported = released.get("egokit") if isinstance(released, dict) else None
    return content if content.get("format") == checkpoints.FORMAT else exported


def read_record(content: dict, path) -> dict | None:
    """Return the model's shape and tokenizer in a file that egokit wrote; None for other files.

    Raises:
        WeightsError: the record is damaged.
    """
    record = record_of_egokit(content)
    if record is None:
        return None
    if not (isinstance(record, dict) and isinstance(record.get("model_config"), dict)
            and isinstance(record.get("tokenizer"), str)):
        raise WeightsError(f"{path}: its record of the model is damaged: expected model_config and tokenizer")
    return record


class _SkipInit(TorchFunctionMode):
    """Skips torch.nn.init, which imports sympy (150 MB) on the meta device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Make modules on the meta device within the block: they have shapes, but take no memory."""
    with torch.device("meta"), _SkipInit():
        yield


def compare(model, state: dict[str, Tensor], unknown: list[str]) -> dict[str, list[str]]:
    """Return keys by kind: loaded, missing, unexpected (`unknown` ones, too) and misshapen."""
    expected = model.state_dict()
    misshapen = [f"{key}: {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
                 for key in expected if key in state and state[key].shape != expected[key].shape]
    loaded = sorted(key for key in expected if key in state and state[key].shape == expected[key].shape)
    return {"loaded": loaded, "missing": sorted(expected.keys() - state.keys()),
            "unexpected": sorted([*unknown, *(state.keys() - expected.keys())]), "misshapen": misshapen}


def check(model, state: dict[str, Tensor], unknown: list[str], path) -> dict[str, list[str]]:
    """Return what `compare` returns, if all keys fit.

    Raises:
        WeightsError: keys are missing, unexpected or misshapen; its `report` is what `compare` returned.
    """
    report = compare(model, state, unknown)
    problems = [f"  {kind} ({len(report[kind])}): {checkpoints.named(report[kind], 12)}"
                for kind in ("missing", "unexpected", "misshapen") if report[kind]]
    if problems:
        error = WeightsError(f"{path} does not fit this model (all keys: egokit.load(path, report=True)):\n"
                             + "\n".join(problems))
        error.report = report
        raise error
    return report


def own_memory(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 tensors, each dense and in its own memory; `state` is emptied to save memory."""
    owned, seen = {}, set()
    for key in list(state):
        value = state.pop(key).float().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        owned[key] = value
    return owned
