"""Load, save and export models, and the model that a config starts from.

Loading is strict. `load` finds a model's family in its file and leaves peers to peers/; released_keys.py translates
EgoVLPv2's key names; tensor_file.py opens files without executing anything in them.
"""
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from egokit.config.own_code import split_model_file
from egokit.config.schema import Config, ModelConfig
from egokit.model import checkpoints, feature_model, hub, own_model, peers, pretrained, recorded_head, sources
from egokit.model.backbones import initialise
from egokit.model.checkpoints import WeightsError
from egokit.model.class_head import ClassHead
from egokit.model.dual import Dual
from egokit.model.egovlp import EgoVLP
from egokit.model.feature_model import FeatureModel
from egokit.model.own_modules import attach, hold, named, split_own
from egokit.model.recorded_shape import check, own_memory, read_record, shape_of, without_weights
from egokit.model.released_keys import HEAD, PREFIX, our_keys, rename, unwrap
from egokit.model.text_encoder import load_tokenizer


def resize_temporal(embed_1TD: Tensor, frames: int) -> Tensor:
    """Return the temporal embedding for another number of frames, (1, frames, D).

    It is cut if it has more frames, and else interpolated linearly with aligned ends.
    """
    have = embed_1TD.shape[1]
    if have >= frames:
        return embed_1TD[:, :frames]
    resized = F.interpolate(embed_1TD.float()[None], (frames, embed_1TD.shape[2]), mode="bilinear", align_corners=True)
    return resized[0].to(embed_1TD.dtype)


def load(path: str | Path, frames: int | None = None, tokenizer: str | None = None, report: bool = False, task=None,
         answers: str | Path | Sequence[str] | None = None, head: str | Path | None = None):
    """Return a checkpoint's model on the CPU, in eval mode, in float32: an `EgoVLP`, or another `Dual`.

    Its family and the network's shape are read from the file. A model is loaded whole or not at all; nothing in a file
    of weights is executed.

    Example:
        model = egokit.load("EgoVLPv2.pth", frames=16)
        model = egokit.load("EgoTaskQA_finetune_direct.tar", answers="qa/direct/answer_set.txt")

    Args:
        path: a released .pth or .tar, an egokit checkpoint, a .safetensors file, or a run folder (its best.pt, else
            its newest step); a released file of EgoVLP, LaViLa or AVION; a folder in the Hugging Face hub's layout, or
            "hf:NAME"; "folder/file.py:Class", a user's own model, whose file is executed.
        frames: resize the temporal embedding, so that the model takes clips of up to so many frames.
        tokenizer: name or folder of the tokenizer; by default the checkpoint's own, else roberta-base. A name is
            fetched from its hub only if it is given here, or roberta-base.
        report: return (model, keys by kind: "loaded", "missing", "unexpected", "misshapen"). The model is None where
            the keys do not fit, instead of an error.
        task: a task whose head and own modules the checkpoint has: they are made by it. Without it, `model.own` only
            holds their tensors, and so does `model.head`, unless it is a `ClassHead`.
        answers: the words of the head's classes: a file with one a line, such as answer_set.txt, or the words.
        head: a checkpoint or run of a head that was trained on vectors of this model; the model has none.

    Raises:
        WeightsError: no such file, not a checkpoint of a known model, keys that don't fit, or weights that are NaN or
            infinite; answers or a head that don't fit. The message names them.
    """
    if frames is not None and (type(frames) is not int or frames < 1):
        raise WeightsError(f"frames={frames!r}: expected a whole number of at least 1")
    source, given = sources.find(path), {"report": report, "task": task, "answers": answers, "head": head}
    if source.kind == "own":
        _expect_none(given, path)
        return own_model.build(str(source.path), source.class_name, source.weights, frames)
    path = source.path
    if source.kind == "folder":
        config = hub.read_config(path)
        if config["model_type"] != pretrained.MODEL_TYPE:
            _expect_none(given, path)
            return peers.load_folder(path, tokenizer)
        path, content = pretrained.read(path, config)
    else:
        content = checkpoints.read(path, everything=False)
    state, second = unwrap(checkpoints.state_dict(content, path))
    if family := peers.family_of(state):
        if second:
            raise WeightsError(f"{path} names weights twice: {checkpoints.named(second, 5)}; expected each once")
        _expect_none(given | {"report": False}, path)
        content.clear()  # and with it what the file holds besides
        return peers.build(family, state, path, frames, tokenizer, report)
    model, keys = _egovlpv2(content, state, second, path, frames, tokenizer, report)
    if model is None:
        return None, keys
    if head is not None:
        _give_head(model, head, path)
    if answers is not None:
        recorded_head.name_classes(model.head, answers, path)
    if task:
        attach(model, task)
    model.eval()
    model.source = str(path)
    return (model, keys) if report else model


def _egovlpv2(content: dict, state: dict[str, Tensor], second: list[str], path: Path, frames: int | None,
              tokenizer: str | None, report: bool) -> tuple[EgoVLP | None, dict[str, list[str]]]:
    """Return the model of an EgoVLPv2 checkpoint, with its own head and modules, and its keys by kind.

    Args:
        content: of the file; it and `state` are emptied, to save memory.
        state: its tensors, as `unwrap` leaves them; `second` are keys that name a weight again.
        report: return None for a model whose keys do not fit.
    """
    given = state
    state, own = split_own(given, path)
    state, unknown = our_keys(state)
    given.clear()
    unknown += second
    if own and not state and not unknown:
        raise WeightsError(f"{path} holds a task's own modules alone ({checkpoints.named(sorted(own), 3)}), trained on "
                           "stored features: evaluate them with their task, whose task.head_init names the file, or "
                           "give a head of classes to the model that made the features, egokit.load(model, head=…)")
    record = read_record(content, path)
    if not record and not state:
        sources.refuse(unknown, path)
    config = shape_of(record, state, path)
    class_head = recorded_head.take(content, state, own, unknown, config.width, path)
    tokenizer, named = tokenizer or (record["tokenizer"] if record else "roberta-base"), tokenizer
    content.clear()
    temporal = state.get("video.temporal_embed")
    if frames is not None and frames != config.frames:
        if temporal is not None and temporal.ndim == 3:
            state["video.temporal_embed"] = resize_temporal(temporal.float(), frames)
        config = dataclasses.replace(config, frames=frames)
    if named and not Path(named).is_dir():
        load_tokenizer(named, fetch=True)
    try:
        with without_weights():
            model = EgoVLP(config.computed_as(ModelConfig()), tokenizer)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise WeightsError(f"{path}: no model can have the shape that it tells ({str(error).splitlines()[0][:150]}); "
                           "expected an egokit or a released checkpoint") from error
    model.head = class_head
    try:
        keys = check(model, state, unknown, path)
    except WeightsError as error:
        if report:
            return None, error.report
        raise
    model.load_state_dict(own_memory(state), assign=True)
    try:
        hold(model, {key: value.clone() for key, value in own.items()})
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return model, keys


def _expect_none(given: dict, path) -> None:
    """Raise WeightsError for arguments of `load` that only EgoVLPv2 models have a use for."""
    if named := [f"{key}=" for key, value in given.items() if value not in (None, False)]:
        raise WeightsError(f"{path} is no EgoVLPv2 model, but {', '.join(named)} {'is' if len(named) == 1 else 'are'} "
                           "for those alone: leave it out, as another model is loaded whole, without heads, a task's "
                           "modules or a report")


def _give_head(model: EgoVLP, source: str | Path, path: Path) -> None:
    """Give a model a head that was trained on its stored vectors."""
    if model.head is not None:
        raise WeightsError(f"{path} has a head already, and head={source} would replace it: give the checkpoint from "
                           "which the vectors were extracted")
    stored = feature_model.load(source)
    if not isinstance(stored.head, ClassHead):
        raise WeightsError(f"{stored.source} has no head of classes that egokit can build, such as one of "
                           "egotaskqa_head: evaluate it with its task, whose task.head_init names the file")
    model.head = stored.head
    recorded_head.check_fits(model, stored.source)


def save(model: EgoVLP | FeatureModel, path: str | Path, **extra) -> None:
    """Write an egokit checkpoint: weights, shape, tokenizer, and `extra` plain content.

    Raises:
        WeightsError: it can't be written, such as on a full disk; what was there before is whole.
    """
    checkpoints.write(path, content_of(model, path, **extra))


def content_of(model: EgoVLP | FeatureModel, path: str | Path, **extra) -> dict:
    """Return what `save` writes to a path; the model's tensors themselves, not copies.

    Raises:
        WeightsError: checkpoints have no place for such a model.
    """
    _expect_egovlpv2(model, path)
    return record_of(model) | {"state_dict": model.state_dict(), **extra}


def _expect_egovlpv2(model, path) -> None:
    """Raise WeightsError for a model of another family, for which checkpoints have no place."""
    if isinstance(model, Dual) and not isinstance(model, EgoVLP):
        raise WeightsError(f"{path} was not written: checkpoints of egokit and of the original code hold EgoVLPv2 "
                           f"models, and this is a {model.family}: keep the file that it was loaded from")


def record_of(model: EgoVLP | FeatureModel) -> dict:
    """Return what a checkpoint records: the model's shape and tokenizer, unless it has no encoders; and its head."""
    head = {"format": checkpoints.FORMAT} | recorded_head.record_of(model)
    if isinstance(model, FeatureModel):
        return head
    return head | {"model_config": dataclasses.asdict(model.config), "tokenizer": model.tokenizer_source}


def export(model: EgoVLP, path: str | Path) -> None:
    """Write a checkpoint in the released layout, for the original code to load.

    Its key names are under 'module.', and it has the buffer of position ids that the original code expects. A head of
    EgoTaskQA's shape is written as the original's, with the model, in the layout of its EgoTaskQA checkpoints. Another
    head, and modules of a task's own, are left out, and named, because the original code refuses what it doesn't know.
    """
    _expect_egovlpv2(model, path)
    has_head = recorded_head.is_released_kind(model)
    if left_out := [name for name in named(model) if name != HEAD or not has_head]:
        print(f"left out, as the original code doesn't know them: {', '.join(left_out)}", flush=True)
    state = {f"module.{rename(key, 'released')}": value for key, value in model.state_dict().items()
             if not key.startswith(PREFIX) and (has_head or not key.startswith(f"{HEAD}."))}
    state["module.text_model.embeddings.position_ids"] = torch.arange(model.config.max_positions, device="cpu")[None]
    record = {"egokit": {key: value for key, value in record_of(model).items()
                         if key != "format" and (key != HEAD or has_head)}}
    checkpoints.write(path, {
        "model_state_dict": state, "optimizer_state_dict": {}, "scheduler_state_dict": {}, "loss": torch.zeros(()),
        "global_step": 0, "config": record} if has_head else {
        "arch": "DistributedDataParallel", "epoch": 0, "state_dict": state, "monitor_best": 0.0, "config": record})


def initial_model(config: Config, frames: int | None = None, code: Path | None = None) -> Dual:
    """Return the model to start from: that of `init`, or fresh weights.

    Args:
        frames: capacity of the temporal embedding, to which a checkpoint's is resized; None takes model.frames.
        code: a job's copy of egokit, which holds the file of a user's model.

    Raises:
        ValueError: the model takes frames of another size than model.image_size.
    """
    if not config.init:
        tokenizer = load_tokenizer(config.site.tokenizer, fetch=True)
        shape = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or tokenizer.vocab_size)
        return initialise(shape, config.site.tokenizer, config.seed, config.site.vit, config.site.roberta)
    frames = frames or config.model.frames
    if own := split_model_file(config.init):
        model = own_model.build(*own, frames, code)
    else:
        tokenizer = tokenizer_of(config, sources.describe(config.init))
        model = load(config.init, frames=frames, tokenizer=tokenizer)
    if model.image_size != config.model.image_size:
        raise ValueError(f"{config.init} takes frames of {model.image_size} px, but model.image_size is "
                         f"{config.model.image_size}: set it to {model.image_size}")
    if isinstance(model, EgoVLP):
        model.compute_as(config.model)
    return model


def tokenizer_of(config: Config, described: sources.Described) -> str | None:
    """Return the site's tokenizer for a model, a name or folder; None for a model that brings its own."""
    return getattr(config.site, described.tokenizer_key) if described.tokenizer_key else None
