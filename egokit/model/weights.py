"""Models from checkpoints: strict loading, temporal resizing, saving, export; starts from ViT and RoBERTa.

Names of keys are names.py's; how a file is opened without executing anything in it is tensor_file.py's.
"""
from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from egokit.config.build import build, new_names
from egokit.config.schema import RANDOM, ModelConfig
from egokit.model import checkpoints
from egokit.model.checkpoints import WeightsError
from egokit.model.egovlp import EgoVLP
from egokit.model.released_keys import our_keys, rename


def infer_config(state: dict[str, Tensor]) -> ModelConfig:
    """Shape of the network from our keys, where a file has no record of it: the base model's 12 blocks of which 6 are fused,
    with what differs between the released ones. What a key can't tell, for it is missing or misshapen, is as released; `check`
    then lists it.
    """
    base = ModelConfig()

    def size(key: str, axis: int, dimensions: int, otherwise: int) -> int:
        return state[key].shape[axis] if key in state and state[key].ndim == dimensions else otherwise
    width = size("video.norm.weight", 0, 1, base.width)
    if width % 64 or not width:
        raise WeightsError(f"a model of width {width} and no record of its number of heads: expected an egokit checkpoint, "
                           "or the base model's 768")
    patch = size("video.patch_embed.weight", 3, 4, base.patch_size)
    patches = size("video.position_embed", 1, 3, 197) - 1
    mlp = any(key.startswith(("text_projection.4.", "video_projection.4.")) for key in state)
    out = "text_projection.4.weight" if mlp else "text_projection.1.weight"
    return ModelConfig(image_size=max(1, round(patches ** 0.5)) * patch, patch_size=patch, width=width, heads=width // 64,
                       depth=base.depth, num_fused_layers=base.num_fused_layers, frames=size("video.temporal_embed", 1, 3, base.frames),
                       mlp_ratio=size("video.blocks.0.fc1.weight", 0, 2, 4 * width) / width,
                       vocab_size=size("text.word_embed.weight", 0, 2, base.vocab_size),
                       max_positions=size("text.position_embed.weight", 0, 2, base.max_positions),
                       projection=f"{'mlp' if mlp else 'linear'}{size(out, 0, 2, 4096 if mlp else 256)}")


def resize_temporal(embed_1TD: Tensor, frames: int) -> Tensor:
    """Cut when there are more than `frames`; linear interpolation with aligned ends when there are fewer."""
    have = embed_1TD.shape[1]
    if have >= frames:
        return embed_1TD[:, :frames]
    grown = F.interpolate(embed_1TD.float()[None], (frames, embed_1TD.shape[2]), mode="bilinear", align_corners=True)
    return grown[0].to(embed_1TD.dtype)


def compare(model: EgoVLP, state: dict[str, Tensor], unknown: list[str]) -> dict[str, list[str]]:
    """Keys by kind: loaded, missing, unexpected and misshapen."""
    wanted = model.state_dict()
    misshapen = [f"{key}: {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
                 for key in wanted if key in state and state[key].shape != wanted[key].shape]
    fits = sorted(key for key in wanted if key in state and state[key].shape == wanted[key].shape)
    return {"loaded": fits, "missing": sorted(wanted.keys() - state.keys()),
            "unexpected": sorted([*unknown, *(state.keys() - wanted.keys())]), "misshapen": misshapen}


def check(model: EgoVLP, state: dict[str, Tensor], unknown: list[str], path) -> dict[str, list[str]]:
    """`compare`; an error, whose `report` is what compare gave, if anything is missing, unexpected or misshapen."""
    report = compare(model, state, unknown)
    wrong = [f"  {kind} ({len(report[kind])}): " + ", ".join(report[kind][:12]) + (" …" if len(report[kind]) > 12 else "")
             for kind in ("missing", "unexpected", "misshapen") if report[kind]]
    if wrong:
        error = WeightsError(f"{path} does not fit this model (all keys: egokit.load(path, report=True)):\n" + "\n".join(wrong))
        error.report = report
        raise error
    return report


class _NoStart(TorchFunctionMode):
    """Modules without their random start: drawing one on the meta device imports 150 MB of symbolic algebra."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def load(path: str | Path, frames: int | None = None, tokenizer: str | None = None, report: bool = False):
    """A model in eval mode from a released file, an egokit checkpoint, a .safetensors file or a run folder.

    The family of projections, the sizes and the number of frames are found in the file. `frames` resizes the temporal
    embedding; `tokenizer` names the tokenizer (default: the checkpoint's own, else roberta-base). Weights are float32.
    Raises WeightsError naming file and keys: a model is loaded whole or not at all. With `report=True` returns
    (model, {"loaded", "missing", "unexpected", "misshapen"}), where a file that does not fit gives None for the model.
    """
    if frames is not None and (not isinstance(frames, int) or frames < 1):
        raise WeightsError(f"frames={frames!r}: expected a whole number of at least 1")
    path = checkpoints.find(path)
    content = checkpoints.read(path, everything=False)
    state, unknown = our_keys(checkpoints.state_dict(content, path))
    own = _record(content, path)
    del content  # and with it what the file holds besides
    if not own and not state:
        raise WeightsError(f"{path} is not an EgoVLPv2 checkpoint: its keys begin with {', '.join(sorted(unknown)[:5])}")
    config = build(ModelConfig, new_names({"model": own["model_config"]})["model"]) if own else infer_config(state)
    temporal = state.get("video.temporal_embed")
    if frames is not None and frames != config.frames:
        if temporal is not None and temporal.ndim == 3:
            state["video.temporal_embed"] = resize_temporal(temporal.float(), frames)
        config = dataclasses.replace(config, frames=frames)
    with torch.device("meta"), _NoStart():
        model = EgoVLP(dataclasses.replace(config, checkpointing=False), tokenizer or (own["tokenizer"] if own else "roberta-base"))
    try:
        found = check(model, state, unknown, path)
    except WeightsError as error:
        if report:
            return None, error.report
        raise
    model.load_state_dict(_own_memory(state), assign=True)
    model.eval()
    return (model, found) if report else model


def _record(content: dict, path) -> dict | None:
    """What an egokit checkpoint, or a file exported by egokit, says of its model; None in other files."""
    released = content.get("config")  # an inert object in the original's files
    own = content if content.get("format") == checkpoints.FORMAT else released.get("egokit") if isinstance(released, dict) else None
    if own is None:
        return None
    if not (isinstance(own, dict) and isinstance(own.get("model_config"), dict) and isinstance(own.get("tokenizer"), str)):
        raise WeightsError(f"{path}: its record of the model is damaged: expected model_config and tokenizer")
    return own


def _own_memory(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float32, each tensor dense and in memory of its own, though a file may share it; `state` is emptied on the way."""
    out, seen = {}, set()
    for key in list(state):
        value = state.pop(key).float().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        out[key] = value
    return out


def save(model: EgoVLP, path: str | Path, **extra) -> None:
    """Write an egokit checkpoint: weights, shape and tokenizer, and whatever plain `extra` there is."""
    checkpoints.write(path, {"format": checkpoints.FORMAT, **_shape(model), "state_dict": model.state_dict(), **extra})


def _shape(model: EgoVLP) -> dict:
    """What a checkpoint says of a model beside its weights."""
    return {"model_config": dataclasses.asdict(model.config), "tokenizer": model.tokenizer_source}


def export(model: EgoVLP, path: str | Path) -> None:
    """Write the released layout, for the original code to load: its key names under 'module.', and the buffer it expects."""
    state = {f"module.{rename(key, 'released')}": value for key, value in model.state_dict().items()}
    state["module.text_model.embeddings.position_ids"] = torch.arange(model.config.max_positions, device="cpu")[None]
    checkpoints.write(path, {"arch": "DistributedDataParallel", "epoch": 0, "state_dict": state, "monitor_best": 0.0,
                             "config": {"egokit": _shape(model)}})


def fresh(config: ModelConfig, tokenizer: str, seed: int, vit: str = "", roberta: str = "") -> EgoVLP:
    """A model at the start of pre-training: seeded, then ViT-B/16 and RoBERTa weights where named ("random": none)."""
    vit, roberta = ("" if source == RANDOM else source for source in (vit, roberta))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EgoVLP(config, tokenizer)
        model.reset_parameters()
    for source, prefix, ours in ((vit, "video_model.", "video."), (roberta, "text_model.", "text.")):
        if source:
            start(model, source, prefix, ours)
    if vit:
        torch.nn.init.zeros_(model.video.temporal_embed)
        model.video.reset_time()  # zero_output copies the space attention that has just been loaded
    return model


# what neither a ViT nor a RoBERTa has: these keep their fresh start
NEW_PARTS = re.compile(r"video\.(temporal_embed|blocks\.\d+\.(time|norm_time|text)\.)|text\.layers\.\d+\.(video\.|gate)|"
                       r"(?!video\.|text\.)")


# of other tasks: not wanted here
OTHER_HEADS = re.compile(r"(head|head_dist|pre_logits|fc_norm|lm_head|classifier|pooler|roberta\.pooler)\.|(.*\.)?position_ids$")


def start(model: EgoVLP, source: str, prefix: str, ours: str) -> None:
    """Copy a ViT-B/16 (timm name or file) or a RoBERTa (name, folder or file) into the backbone; strict on what it has."""
    if Path(source).is_file():
        state = checkpoints.state_dict(checkpoints.read(source, everything=False), source)
    else:
        state = _download(source, vit=prefix == "video_model.")
    wanted, given, surplus = model.state_dict(), {}, []
    for key, value in state.items():
        name = rename(prefix + key.removeprefix("roberta."), "ours")
        if name in wanted:
            given[name] = value
        elif not OTHER_HEADS.match(key):
            surplus.append(key)
    if surplus:
        raise WeightsError(f"{source}: {len(surplus)} keys that this model has no place for, such as {', '.join(surplus[:6])}; "
                           "expected a plain ViT or RoBERTa of the model's size")
    wrong = [key for key in wanted if key.startswith(ours) and not NEW_PARTS.match(key)
             and (key not in given or given[key].shape != wanted[key].shape)]
    if wrong:
        raise WeightsError(f"{source}: {len(wrong)} keys are missing or of another shape, such as {', '.join(wrong[:6])}; "
                           "expected a ViT or RoBERTa of the model's size")
    model.load_state_dict(given, strict=False)


def _download(source: str, vit: bool) -> dict[str, Tensor]:
    """Weights by timm's name, or transformers' name or folder; both keep what they have downloaded once."""
    setting, file = ("site.vit", "jx_vit_base_p16_224-80ecf9dd.pth") if vit else ("site.roberta", "a folder with config.json and weights")
    try:
        if vit:
            import timm  # only for a ViT by name
            return timm.create_model(source, pretrained=True).state_dict()
        from transformers import AutoModel  # only for a RoBERTa by name or folder
        return AutoModel.from_pretrained(source).state_dict()
    except Exception as error:  # each library raises its own kinds for an unknown name, no network and a bad file
        raise WeightsError(f"{setting}: {source!r} is no file, and could not be had by name ({type(error).__name__}: "
                           f"{str(error).splitlines()[0][:150]}); give a local path ({file}), or go online once") from error
