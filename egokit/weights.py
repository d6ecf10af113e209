"""Checkpoints: released keys <-> ours in one table, strict loading, temporal resizing, starts from ViT and RoBERTa.

How a file is opened without executing anything in it is checkpoints.py's.
"""
from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from egokit import checkpoints
from egokit.checkpoints import WeightsError
from egokit.config import ModelConfig
from egokit.model import EgoVLP
from egokit.resolve import build

# released name <-> ours, prefix by prefix; {i} is the number of a block or layer
TABLE = [
    ("video_model.patch_embed.proj.", "video.patch_embed."),
    ("video_model.cls_token", "video.cls_token"),
    ("video_model.pos_embed", "video.position_embed"),
    ("video_model.temporal_embed", "video.temporal_embed"),
    ("video_model.norm.", "video.norm."),
    ("video_model.blocks.{i}.norm1.", "video.blocks.{i}.norm_space."),
    ("video_model.blocks.{i}.norm2.", "video.blocks.{i}.norm_mlp."),
    ("video_model.blocks.{i}.norm3.", "video.blocks.{i}.norm_time."),
    ("video_model.blocks.{i}.timeattn.", "video.blocks.{i}.time."),
    ("video_model.blocks.{i}.attn.qkv.", "video.blocks.{i}.space.qkv."),
    ("video_model.blocks.{i}.attn.proj.", "video.blocks.{i}.space.proj."),
    ("video_model.blocks.{i}.attn.qkv_i2t.", "video.blocks.{i}.text.query."),
    ("video_model.blocks.{i}.attn.qkv_text_i2t.", "video.blocks.{i}.text.key_value."),
    ("video_model.blocks.{i}.attn.proj_i2t.", "video.blocks.{i}.text.proj."),
    ("video_model.blocks.{i}.attn.norm_i2t_i.", "video.blocks.{i}.text.norm."),
    ("video_model.blocks.{i}.attn.alpha_i2t", "video.blocks.{i}.text.gate"),
    ("video_model.blocks.{i}.mlp.", "video.blocks.{i}."),
    ("text_model.embeddings.word_embeddings.", "text.word_embed."),
    ("text_model.embeddings.position_embeddings.", "text.position_embed."),
    ("text_model.embeddings.token_type_embeddings.", "text.type_embed."),
    ("text_model.embeddings.LayerNorm.", "text.embed_norm."),
    ("text_model.encoder.layer.{i}.attention.output.dense.", "text.layers.{i}.attention.dense."),
    # specific before general: .dense is matched before the other projections
    ("text_model.encoder.layer.{i}.attention.output.LayerNorm.", "text.layers.{i}.attention_norm."),
    ("text_model.encoder.layer.{i}.crossattention_t2i.output.dense.", "text.layers.{i}.video.dense."),
    ("text_model.encoder.layer.{i}.attention.self.", "text.layers.{i}.attention."),
    ("text_model.encoder.layer.{i}.crossattention_t2i.self.", "text.layers.{i}.video."),
    ("text_model.encoder.layer.{i}.alpha_t2i", "text.layers.{i}.gate"),
    ("text_model.encoder.layer.{i}.intermediate.dense.", "text.layers.{i}.fc1."),
    ("text_model.encoder.layer.{i}.output.dense.", "text.layers.{i}.fc2."),
    ("text_model.encoder.layer.{i}.output.LayerNorm.", "text.layers.{i}.output_norm."),
    ("txt_proj.", "text_projection."),
    ("vid_proj.", "video_projection."),
    ("cls_token", "fusion_cls_token"),
    ("norm.", "fusion_norm."),
    ("cross_modal_text_transform.", "text_transform."),
    ("cross_modal_video_transform.", "video_transform."),
    ("cross_modal_text_pooler.", "text_pooler."),
    ("cross_modal_video_pooler.", "video_pooler."),
    ("itm_score.fc.", "itm_head."),
    ("mlm_score.transform.dense.", "word_head.dense."),
    ("mlm_score.transform.LayerNorm.", "word_head.norm."),
    ("mlm_score.decoder.", "word_head.decoder."),
    ("mlm_score.bias", "word_head.bias"),
]
HARMLESS = re.compile(r"(.*\.)?position_ids")  # a buffer that comes and goes between versions of transformers
LEAF = r"(weight|bias|(query|key|value|fc1|fc2|dense|qkv|proj|\d+)\.(weight|bias))"


def _rules(source: int) -> list[tuple[re.Pattern, str]]:
    rules = []
    for row in TABLE:
        pattern = re.escape(row[source]).replace(r"\{i\}", r"(?P<i>\d+)")
        whole = not row[source].endswith(".")
        rules.append((re.compile(pattern + ("" if whole else f"(?P<leaf>{LEAF})") + "$"), row[1 - source]))
    return rules


def rename(key: str, to: str) -> str | None:
    """The other side's name of a key (to='ours' or 'released'), or None for a key the table does not know."""
    for pattern, target in _RULES[to]:
        found = pattern.match(key)
        if found:
            groups = found.groupdict()
            return target.replace("{i}", groups.get("i") or "") + (groups.get("leaf") or "")
    return None


_RULES = {"ours": _rules(0), "released": _rules(1)}


def our_keys(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict with any of the known namings -> ours, and the keys that nothing knows."""
    ours, unknown = {}, []
    for key, value in state.items():
        bare = key.removeprefix("module.")
        if HARMLESS.fullmatch(bare):
            continue
        name = rename(bare, "ours") or (bare if rename(bare, "released") else None)
        if name is None:
            unknown.append(key)
        else:
            ours[name] = value
    return ours, unknown


def infer_config(state: dict[str, Tensor]) -> ModelConfig:
    """Shape of the network from our keys. Heads are of 64 channels in the base model (12), as released."""
    depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("video.blocks."))
    width = state["video.norm.weight"].shape[0]
    patch = state["video.patch_embed.weight"].shape[-1]
    patches = state["video.position_embed"].shape[1] - 1
    mlp = "text_projection.4.weight" in state
    size = state["text_projection.4.weight" if mlp else "text_projection.1.weight"].shape[0]
    return ModelConfig(image_size=round(patches ** 0.5) * patch, patch_size=patch, width=width, heads=width // 64,
                       depth=depth, fused=sum(key.endswith(".text.gate") for key in state),
                       frames=state["video.temporal_embed"].shape[1],
                       mlp_ratio=state["video.blocks.0.fc1.weight"].shape[0] / width,
                       vocabulary=state["text.word_embed.weight"].shape[0],
                       positions=state["text.position_embed.weight"].shape[0],
                       projection=f"{'mlp' if mlp else 'linear'}{size}")


def resize_temporal(embed_1TD: Tensor, frames: int) -> Tensor:
    """Cut when there are more than `frames`; linear interpolation with aligned ends when there are fewer."""
    have = embed_1TD.shape[1]
    if have >= frames:
        return embed_1TD[:, :frames]
    grown = F.interpolate(embed_1TD.float()[None], (frames, embed_1TD.shape[2]), mode="bilinear", align_corners=True)
    return grown[0].to(embed_1TD.dtype)


def check(model: EgoVLP, state: dict[str, Tensor], unknown: list[str], path) -> dict[str, list[str]]:
    """Compare keys and shapes; an error lists every missing, unexpected and misshapen key."""
    wanted = model.state_dict()
    misshapen = [f"{key}: {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
                 for key in wanted if key in state and state[key].shape != wanted[key].shape]
    report = {"loaded": sorted(wanted.keys() & state.keys()), "missing": sorted(wanted.keys() - state.keys()),
              "unexpected": sorted([*unknown, *(state.keys() - wanted.keys())]), "misshapen": misshapen}
    wrong = [f"  {kind} ({len(report[kind])}): " + ", ".join(report[kind][:12]) + (" …" if len(report[kind]) > 12 else "")
             for kind in ("missing", "unexpected", "misshapen") if report[kind]]
    if wrong:
        raise WeightsError(f"{path} does not fit this model:\n" + "\n".join(wrong))
    return report


def load(path: str | Path, frames: int | None = None, tokenizer: str | None = None, report: bool = False):
    """A model in eval mode from a released file, an egokit checkpoint, a .safetensors file or a run folder.

    The family of projections, the sizes and the number of frames are found in the file. `frames` resizes the temporal
    embedding; `tokenizer` names the tokenizer (default: the checkpoint's own, else roberta-base). With `report=True`
    returns (model, {"loaded", "missing", "unexpected", "misshapen"}). Raises WeightsError naming file and keys.
    """
    path = checkpoints.find(path)
    content = checkpoints.read(path)
    state, unknown = our_keys(checkpoints.state_dict(content, path))
    if content.get("format") == checkpoints.FORMAT:
        config, tokenizer = build(ModelConfig, content["model_config"]), tokenizer or content["tokenizer"]
    elif "video.norm.weight" in state and "text.word_embed.weight" in state:
        config = infer_config(state)
    else:
        raise WeightsError(f"{path} is not an EgoVLPv2 checkpoint: its keys begin with "
                           + ", ".join(sorted(state | dict.fromkeys(unknown))[:5]))
    if frames is not None and frames != config.frames:
        state["video.temporal_embed"] = resize_temporal(state["video.temporal_embed"], frames)
        config = dataclasses.replace(config, frames=frames)
    with torch.device("meta"):
        model = EgoVLP(dataclasses.replace(config, checkpointing=False), tokenizer or "roberta-base")
    found = check(model, state, unknown, path)
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():  # a copy of its own: the file may change under a memory map
        parameter.data = parameter.data.float().clone()
        parameter.requires_grad_(True)
    model.eval()
    return (model, found) if report else model


def save(model: EgoVLP, path: str | Path, **extra) -> None:
    """Write an egokit checkpoint: weights, shape and tokenizer, and whatever plain `extra` there is."""
    checkpoints.write(path, {"format": checkpoints.FORMAT, "model_config": dataclasses.asdict(model.config),
                             "tokenizer": model.tokenizer_source, "state_dict": model.state_dict(), **extra})


def fresh(config: ModelConfig, tokenizer: str, seed: int, vit: str = "", roberta: str = "") -> EgoVLP:
    """A model at the start of pre-training: seeded, then ViT-B/16 and RoBERTa weights where named."""
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


def start(model: EgoVLP, source: str, prefix: str, ours: str) -> None:
    """Copy a ViT-B/16 (timm name or file) or a RoBERTa (name, folder or file) into the backbone; strict on what it has."""
    if Path(source).is_file():
        content = checkpoints.read(source)
        state = checkpoints.state_dict(content.get("model", content), source)
    elif prefix == "video_model.":
        import timm  # only for a ViT by name
        state = timm.create_model(source, pretrained=True).state_dict()
    else:
        from transformers import AutoModel  # only for a RoBERTa by name or folder
        state = AutoModel.from_pretrained(source).state_dict()
    given = {rename(prefix + key.removeprefix("roberta."), "ours"): value for key, value in state.items()}
    given.pop(None, None)  # the classifier, the pooler, the language head: heads of other tasks
    wanted = model.state_dict()
    wrong = [key for key in wanted if key.startswith(ours) and not NEW_PARTS.match(key)
             and (key not in given or given[key].shape != wanted[key].shape)]
    if wrong:
        raise WeightsError(f"{source}: {len(wrong)} keys are missing or of another shape, such as {', '.join(wrong[:6])}; "
                           "expected a ViT or RoBERTa of the model's size")
    model.load_state_dict(given, strict=False)
