"""Key names of the peers' files and ours, and which family a file is of.

Ours are LaViLa's and AVION's with three changes: the text encoder is under `textual.`, projections are at the top, and
blocks have egokit's names. EgoVLP's are LaViLa's with four prefixes renamed.
"""
import re
from collections.abc import Iterable

from egokit.model.checkpoints import WeightsError
from egokit.model.released_keys import HARMLESS, rename, unwrap

# (a file's, ours): the first that a key begins with
PREFIXES = {
    "egovlp": [("video_model.", "visual."), ("text_model.", "textual."), ("vid_proj.", "image_projection."),
               ("txt_proj.", "text_projection.")],
    "lavila": [("transformer.resblocks.", "textual.blocks."), ("token_embedding.", "textual.token_embedding."),
               ("positional_embedding", "textual.positional_embedding"), ("ln_final.", "textual.ln_final.")],
    "avion": [("visual.transformer.resblocks.", "visual.blocks."),
              ("textual.transformer.resblocks.", "textual.blocks."),
              ("visual.image_projection", "image_projection"), ("textual.text_projection", "text_projection")],
}
# of a block of CLIP: (OpenAI's, ours), then (flash attention's, ours), which AVION's visual blocks have
SPELLINGS = [("attn.in_proj_", "qkv."), ("attn.out_proj.", "proj."), ("mlp.c_fc.", "fc1."), ("mlp.c_proj.", "fc2.")]
FLASH = [("attn.Wqkv.", "qkv."), ("attn.out_proj.", "proj."), ("mlp.fc1.", "fc1."), ("mlp.fc2.", "fc2.")]
UNUSED = {"logit_scale"}  # of the training's loss

# what is known not to be a dual encoder: (pattern of a key, what it is, what to do)
REFUSED = [
    (r"fc_cls\.", "a classifier of AVION's or LaViLa's", "give a dual encoder, with keys under visual. and textual."),
    (r"text_decoder\.|img_attn_pool", "LaViLa's narrator, which writes texts and embeds none", "give one of LaViLa's "
     "dual encoders"),
    (r"(encoder|decoder)\.(blocks|patch_embed)\.|mask_token$", "a masked autoencoder such as VideoMAE", "give a dual "
     "encoder of videos and texts"),
    (r".*alpha_timeattn$", "a LaViLa with gates on its time attention, an option of its training that egokit doesn't "
     "have", "give one without alpha_timeattn, as the released ones are"),
]


def family_of(keys: Iterable[str]) -> str | None:
    """Return the family of a file, "egovlp", "lavila" or "avion", by its keys; None for all others.

    Args:
        keys: without the names of wrappers (`released_keys.unwrap`).
    """
    keys = set(keys)
    if {"visual.temporal_embedding", "textual.token_embedding.weight"} <= keys:
        return "avion"
    if "visual.temporal_embed" in keys:
        return "lavila"
    if {"video_model.temporal_embed", "text_model.transformer.layer.0.attention.q_lin.weight"} <= keys:
        return "egovlp"
    return None


def refuse(keys: Iterable[str], path) -> None:
    """Raise a WeightsError for a file that is known to be of another kind than a dual encoder.

    Args:
        keys: with or without the names of wrappers.
    """
    bare = list(unwrap(dict.fromkeys(keys))[0])
    for pattern, what, fix in REFUSED:
        if key := next((key for key in bare if re.match(pattern, key)), None):
            raise WeightsError(f"{path} is {what} (it has {key}), expected a dual encoder: {fix}")


def our_names(family: str, keys: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return {our name: key} of a file's keys, and the keys that name a weight for the second time.

    Buffers that no model needs are left out. A key that no table knows keeps its name.
    """
    names, second = {}, []
    for key in keys:
        if HARMLESS.fullmatch(key):
            continue
        name = _ours(family, key)
        if name in names:
            second.append(f"{key} (a second one)")
        else:
            names[name] = key
    return names, second


def _ours(family: str, key: str) -> str:
    name = next((ours + key.removeprefix(theirs) for theirs, ours in PREFIXES[family] if key.startswith(theirs)), key)
    if family != "avion" and name.startswith("visual."):
        return "visual." + (rename("video_model." + name.removeprefix("visual."), "ours")
                            or name.replace("visual.", "video.", 1)).removeprefix("video.")
    return _respelt(name, [*SPELLINGS, *FLASH])


def their_name(family: str, name: str, flash: bool) -> str:
    """Return a file's key for one of our names.

    Args:
        flash: visual blocks have the names of flash attention.
    """
    if family != "avion" and name.startswith("visual."):
        released = rename("video." + name.removeprefix("visual."), "released")
        name = released.replace("video_model.", "visual.", 1) if released else name
    else:
        spelling = FLASH if flash and name.startswith("visual.") else SPELLINGS
        name = _respelt(name, [(ours, theirs) for theirs, ours in spelling])
    return next((theirs + name.removeprefix(ours) for theirs, ours in PREFIXES[family] if name.startswith(ours)), name)


def _respelt(name: str, spellings: list[tuple[str, str]]) -> str:
    block = re.match(r"(visual|textual)\.blocks\.\d+\.", name)
    if not block:
        return name
    inner = name[block.end():]
    return block[0] + next((new + inner.removeprefix(old) for old, new in spellings if inner.startswith(old)), inner)
