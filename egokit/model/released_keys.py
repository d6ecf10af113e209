"""Key names of the released checkpoints and ours, in one table."""
import re

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
    # specific before general: .dense matches before the other projections
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
    ("projector_1.", "head.fc1."),  # EgoTaskQA's
    ("projector_2.", "head.fc2."),
]
HARMLESS = re.compile(r"(.*\.)?position_ids")  # a buffer that some versions of transformers save
# names that DistributedDataParallel, torch.compile, checkpointing and FSDP put into keys
WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
PREFIX, HEAD = "own.", "head"  # where a model has its task's modules, and its task's head
LEAF = r"(weight|bias|(query|key|value|fc1|fc2|dense|qkv|proj|\d+)\.(weight|bias))"


def _rules(source: int) -> list[tuple[re.Pattern, str]]:
    """(Pattern, new name) of each row; names of column `source` (0 released, 1 ours) match."""
    rules = []
    for row in TABLE:
        pattern = re.escape(row[source]).replace(r"\{i\}", r"(?P<i>\d+)")
        is_parameter = not row[source].endswith(".")
        rules.append((re.compile(pattern + ("" if is_parameter else f"(?P<leaf>{LEAF})") + "$"), row[1 - source]))
    return rules


def rename(key: str, to: str) -> str | None:
    """Return the other name of a key, or None for a key that the table does not know.

    Args:
        to: "ours" or "released": whose name is returned.
    """
    for pattern, target in _RULES[to]:
        match = pattern.match(key)
        if match:
            groups = match.groupdict()
            return target.replace("{i}", groups.get("i") or "") + (groups.get("leaf") or "")
    return None


_RULES = {"ours": _rules(0), "released": _rules(1)}


def unwrap(state: dict) -> tuple[dict, list[str]]:
    """Return a state dict without the names that wrappers put into its keys, and the keys that then are second ones.

    Args:
        state: keys with or without names of WRAPPERS, in any place, order and number. A task's modules, under PREFIX
            and HEAD, may have parts that are called so; of theirs only those before these and torch.compile's go.
    """
    bare, second = {}, []
    for key, value in state.items():
        parts = key.split(".")
        start = next((i for i, part in enumerate(parts) if part not in WRAPPERS), 0)
        inner = WRAPPERS[1:] if parts[start] in (PREFIX.removesuffix("."), HEAD) else WRAPPERS
        name = ".".join(part for part in parts[start:] if part not in inner)
        if name in bare:
            second.append(f"{key} (a second one for {name})")
        else:
            bare[name] = value
    return bare, second


def our_keys(state: dict) -> tuple[dict, list[str]]:
    """Return a state dict under our names, and the keys that have no place in it.

    Those are unknown, or name a weight for the second time.

    Args:
        state: keys are released names or ours, as `unwrap` leaves them.
    """
    ours, unknown = {}, []
    for key, value in state.items():
        if HARMLESS.fullmatch(key):
            continue
        name = rename(key, "ours") or (key if rename(key, "released") else None)
        if name is None:
            unknown.append(key)
        elif name in ours:
            unknown.append(f"{key} (a second one for {name})")
        else:
            ours[name] = value
    return ours, unknown
