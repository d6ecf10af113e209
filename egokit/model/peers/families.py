"""Models of the peers' files: sizes from shapes, and strict loading."""
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from egokit.config.build import check_shape
from egokit.config.names import shortened
from egokit.config.schema import ModelConfig
from egokit.model import checkpoints
from egokit.model.checkpoints import WeightsError
from egokit.model.peers import keys
from egokit.model.peers.peer import NAMES, Peer, PeerShape, fill_positions
from egokit.model.recorded_shape import own_memory, without_weights

HEAD = 64  # dimensions of an attention head, in every released file


def resize_time(embed_TD: Tensor, frames: int) -> Tensor:
    """Return a temporal embedding for another number of frames, (frames, D), by LaViLa's and AVION's rule.

    The first ones for fewer frames; for more they are interpolated linearly, ends not aligned.
    """
    if frames <= len(embed_TD):
        return embed_TD[:frames]
    return F.interpolate(embed_TD.float().T[None], size=frames, mode="linear", align_corners=False)[0].T


def shape_of(family: str, shapes: Mapping[str, tuple[int, ...]]) -> PeerShape:
    """Return the shape of a network as its file's tensors tell it.

    What no tensor tells, because it is missing or misshapen, is as in the base model; `build` then lists that key.

    Args:
        family: what `family_of` returned.
        shapes: of tensors by the file's keys, without the names of wrappers.

    Raises:
        WeightsError: no network can have these shapes; the message names no file.
    """
    try:
        return _shape_of(family, shapes)
    except (ValueError, ArithmeticError) as error:
        raise WeightsError(f"no {NAMES[family]} can have the shape that these weights tell "
                           f"({_why(error)}); expected a released file, or one of its layout") from error


def _why(error: Exception) -> str:
    """An error in one line; of a schema's, which have many lines, what is wrong with which key."""
    if callable(getattr(error, "errors", None)):
        return "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}, got {shortened(part['input'], 40)}"
                         for part in error.errors()[:3])
    return shortened(" ".join(str(error).split()), 400)


def _shape_of(family: str, shapes: Mapping[str, tuple[int, ...]]) -> PeerShape:
    ours = {name: tuple(shapes[key]) for name, key in keys.our_names(family, shapes)[0].items()}

    def size(name: str, axis: int, ndim: int, default: int) -> int:
        return ours[name][axis] if name in ours and len(ours[name]) == ndim else default

    def depth(prefix: str, default: int) -> int:
        """The number of blocks, the largest number in a key and one."""
        numbers = [name.removeprefix(prefix).partition(".")[0] for name in ours if name.startswith(prefix)]
        return 1 + max((int(number[:9]) for number in numbers if number.isdecimal()), default=default - 1)

    joint, distilbert = family == "avion", any(name.startswith("textual.transformer.layer.") for name in ours)
    width = (size("visual.ln_post.weight", 0, 1, 768) if joint else size("visual.norm.weight", 0, 1, 768))
    first = "visual.conv1.weight" if joint else "visual.patch_embed.weight"
    patch = size(first, 3, 4, 16)
    if len(ours.get(first, ())) == 2:  # AVION's fast patch embedding
        patch = round((ours[first][1] / 3) ** 0.5)
    positions = size("visual.positional_embedding", 0, 2, 197) if joint else size("visual.position_embed", 1, 3, 197)
    frames = size("visual.temporal_embedding", 0, 2, 4) if joint else size("visual.temporal_embed", 1, 3, 4)
    video = _config("visual", width, depth("visual.blocks.", 12), size("visual.blocks.0.fc1.weight", 0, 2, 4 * width),
                    image_size=max(1, round(max(0, positions - 1) ** 0.5)) * patch, patch_size=patch, frames=frames)
    if distilbert:
        width = size("textual.embeddings.LayerNorm.weight", 0, 1, 768)
        hidden = size("textual.transformer.layer.0.ffn.lin1.weight", 0, 2, 4 * width)
        text = _config("textual", width, depth("textual.transformer.layer.", 6), hidden,
                       vocab_size=size("textual.embeddings.word_embeddings.weight", 0, 2, 30522),
                       max_positions=size("textual.embeddings.position_embeddings.weight", 0, 2, 512))
    else:
        width = size("textual.ln_final.weight", 0, 1, 512)
        text = _config("textual", width, depth("textual.blocks.", 12),
                       size("textual.blocks.0.fc1.weight", 0, 2, 4 * width),
                       vocab_size=size("textual.token_embedding.weight", 0, 2, 49408),
                       max_positions=size("textual.positional_embedding", 0, 2, 77))
    layers = {name: any(key.startswith(f"{name}_projection.") for key in ours) for name in ("image", "text")}
    E = size("image_projection.0.weight", 0, 2, 256) if layers["image"] else size("image_projection", 1, 2, 256)
    return PeerShape(video, text, E, from_clip=joint or any(name.startswith("visual.ln_pre.") for name in ours),
                     distilbert=distilbert, image_matrix=not layers["image"], text_matrix=not layers["text"])


def _config(part: str, width: int, depth: int, hidden: int, **others) -> ModelConfig:
    if width % HEAD or not width:
        raise ValueError(f"{part} is {width} wide, expected a multiple of {HEAD}, the dimensions of a head")
    if not others.get("vocab_size", 1):
        raise ValueError(f"{part} knows no word, expected token embeddings")
    config = ModelConfig(width=width, heads=width // HEAD, depth=depth, num_fused_layers=1, mlp_ratio=hidden / width,
                         **others)
    check_shape(config)
    return config


def build(family: str, state: dict[str, Tensor], path: Path, frames: int | None = None,
          tokenizer: str | None = None, report: bool = False):
    """Return the model of a file, a `Peer` on the CPU, in eval mode, in float32.

    Args:
        family: what `family_of` returned.
        state: tensors by the file's keys, without the names of wrappers; they are finite (`checkpoints.read`).
        path: of the file, for messages.
        frames: make room for clips of so many frames; None leaves the file's.
        tokenizer: a folder or name; None for the one that the family was trained with.
        report: return (model, keys by kind), as `egokit.load`; the model is None where keys do not fit.

    Raises:
        WeightsError: the file is of no dual encoder, or keys are missing, unexpected or misshapen; they are named as
            the file spells them, and `report` has all of them.
    """
    keys.refuse(state, path)
    try:
        shape = shape_of(family, {key: tuple(value.shape) for key, value in state.items()})
        if frames is not None:
            shape = shape.with_frames(frames)
        with without_weights():
            model = Peer(family, shape, tokenizer)
        fill_positions(model)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise WeightsError(f"{path} can't be loaded: {_why(error)}") from error
    names, second = keys.our_names(family, state)
    ours = {name: state[key] for name, key in names.items() if key not in keys.UNUSED}
    checkpoints.expect_floats({names[name]: value for name, value in ours.items()}, path)
    _reshape(ours, shape)
    keys_by_kind = _compare(family, model, ours, names, second)
    if problems := [f"  {kind} ({len(found)}): {checkpoints.named(found, 12)}"
                    for kind, found in keys_by_kind.items() if found and kind != "loaded"]:
        if report:
            return None, keys_by_kind
        error = WeightsError(f"{path} has {NAMES[family]}'s keys, but does not fit it (all keys: "
                             "egokit.load(path, report=True)):\n" + "\n".join(problems))
        error.report = keys_by_kind
        raise error
    model.load_state_dict(own_memory(ours), assign=True)
    model.eval()
    return (model, keys_by_kind) if report else model


def _reshape(ours: dict[str, Tensor], shape: PeerShape) -> None:
    """Give AVION's patch embedding a convolution's shape, and the temporal embedding the frames that are asked."""
    patches, size = ours.get("visual.conv1.weight"), shape.video.patch_size
    if patches is not None and patches.ndim == 2 and patches.shape[1] == 3 * size * size:  # channel first
        ours["visual.conv1.weight"] = patches.unflatten(1, (3, size, size))
    for name in ("visual.temporal_embed", "visual.temporal_embedding"):
        embed = ours.get(name)
        if embed is not None and embed.ndim in (2, 3) and embed.numel() and embed.shape[-2] != shape.frames:
            ours[name] = resize_time(embed.reshape(-1, embed.shape[-1]), shape.frames).reshape(
                *embed.shape[:-2], shape.frames, embed.shape[-1])


def _compare(family: str, model: Peer, ours: dict[str, Tensor], names: dict[str, str],
             second: list[str]) -> dict[str, list[str]]:
    """Return a file's keys by kind, in the file's spelling."""
    expected, flash = model.state_dict(), any(".attn.Wqkv." in key for key in names.values())
    fits = {name: ours[name].shape == expected[name].shape for name in ours if name in expected}
    return {"loaded": sorted(names[name] for name in fits if fits[name]),
            "missing": sorted(keys.their_name(family, name, flash) for name in expected.keys() - ours.keys()),
            "unexpected": sorted([*second, *(names[name] for name in ours.keys() - expected.keys())]),
            "misshapen": [f"{names[name]}: {tuple(ours[name].shape)} instead of {tuple(expected[name].shape)}"
                          for name in fits if not fits[name]]}


def recommended(family: str, image_size: int, from_clip: bool = True) -> dict[str, object]:
    """Return the recipe's keys with which a family's own evaluation reads clips and texts.

    Args:
        family: egovlp, lavila, avion, clip or siglip.
        image_size: of the model, pixels.
        from_clip: False for EgoVLP in LaViLa's layout (`PeerShape.from_clip`), which is evaluated as EgoVLP.
    """
    as_egovlp = family == "egovlp" or (family == "lavila" and not from_clip)
    return {"data.eval_resize": 256 if as_egovlp else image_size,
            "model.image_size": image_size, "data.eval_max_tokens": 64 if family == "siglip" else 77}
