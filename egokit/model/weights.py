"""Load, save, export and initialise models.

Loading is strict; an initial model starts from a ViT and a RoBERTa. released_keys.py translates key names;
tensor_file.py opens files without executing anything in them.
"""
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from egokit.config.schema import RANDOM, Config, ModelConfig
from egokit.model import checkpoints, feature_model, recorded_head
from egokit.model.checkpoints import WeightsError
from egokit.model.class_head import ClassHead
from egokit.model.egovlp import EgoVLP
from egokit.model.feature_model import FeatureModel
from egokit.model.own_modules import attach, hold, named, split_own
from egokit.model.recorded_shape import check, read_record, shape_of, without_weights
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
    """Return a checkpoint's model: an `EgoVLP` on the CPU, in eval mode, in float32.

    The network's shape is read from the file. A model is loaded whole or not at all; nothing in a file is executed.

    Example:
        model = egokit.load("EgoVLPv2.pth", frames=16)
        model = egokit.load("EgoTaskQA_finetune_direct.tar", answers="qa/direct/answer_set.txt")

    Args:
        path: a released .pth or .tar, an egokit checkpoint, a .safetensors file, or a run folder (its best.pt, else
            its newest step).
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
        WeightsError: no such file, not a checkpoint of this model, keys that don't fit, or weights that are NaN or
            infinite; answers or a head that don't fit. The message names them.
    """
    if frames is not None and (not isinstance(frames, int) or frames < 1):
        raise WeightsError(f"frames={frames!r}: expected a whole number of at least 1")
    path = checkpoints.find(path)
    content = checkpoints.read(path, everything=False)
    state, second = unwrap(checkpoints.state_dict(content, path))
    state, own = split_own(state, path)
    state, unknown = our_keys(state)
    unknown += second
    if own and not state and not unknown:
        raise WeightsError(f"{path} holds a task's own modules alone ({checkpoints.named(sorted(own), 3)}), trained on "
                           "stored features: evaluate them with their task, whose task.head_init names the file, or "
                           "give a head of classes to the model that made the features, egokit.load(model, head=…)")
    record = read_record(content, path)
    if not record and not state:
        raise WeightsError(f"{path} is not an EgoVLPv2 checkpoint: "
                           f"its keys begin with {checkpoints.named(sorted(unknown), 5)}")
    config = shape_of(record, state, path)
    class_head = recorded_head.take(content, state, own, unknown, config.width, path)
    del content  # and with it what the file holds besides
    temporal = state.get("video.temporal_embed")
    if frames is not None and frames != config.frames:
        if temporal is not None and temporal.ndim == 3:
            state["video.temporal_embed"] = resize_temporal(temporal.float(), frames)
        config = dataclasses.replace(config, frames=frames)
    if tokenizer and not Path(tokenizer).is_dir():
        load_tokenizer(tokenizer, fetch=True)
    tokenizer = tokenizer or (record["tokenizer"] if record else "roberta-base")
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
    model.load_state_dict(checkpoints.own_memory(state), assign=True)
    try:
        hold(model, {key: value.clone() for key, value in own.items()})
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    if head is not None:
        _give_head(model, head, path)
    if answers is not None:
        recorded_head.name_classes(model.head, answers, path)
    if task:
        attach(model, task)
    model.eval()
    return (model, keys) if report else model


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
    checkpoints.write(path, {"format": checkpoints.FORMAT, **_shape(model), "state_dict": model.state_dict(), **extra})


def _shape(model: EgoVLP | FeatureModel) -> dict:
    """What a checkpoint records: the model's shape and tokenizer, unless it has no encoders; and its head."""
    head = recorded_head.record_of(model)
    if isinstance(model, FeatureModel):
        return head
    return {"model_config": dataclasses.asdict(model.config), "tokenizer": model.tokenizer_source, **head}


def export(model: EgoVLP, path: str | Path) -> None:
    """Write a checkpoint in the released layout, for the original code to load.

    Its key names are under 'module.', and it has the buffer of position ids that the original code expects. A head of
    EgoTaskQA's shape is written as the original's, with the model, in the layout of its EgoTaskQA checkpoints. Another
    head, and modules of a task's own, are left out, and named, because the original code refuses what it doesn't know.
    """
    has_head = recorded_head.is_released_kind(model)
    if left_out := [name for name in named(model) if name != HEAD or not has_head]:
        print(f"left out, as the original code doesn't know them: {', '.join(left_out)}", flush=True)
    state = {f"module.{rename(key, 'released')}": value for key, value in model.state_dict().items()
             if not key.startswith(PREFIX) and (has_head or not key.startswith(f"{HEAD}."))}
    state["module.text_model.embeddings.position_ids"] = torch.arange(model.config.max_positions, device="cpu")[None]
    record = {"egokit": {key: value for key, value in _shape(model).items() if key != HEAD or has_head}}
    checkpoints.write(path, {
        "model_state_dict": state, "optimizer_state_dict": {}, "scheduler_state_dict": {}, "loss": torch.zeros(()),
        "global_step": 0, "config": record} if has_head else {
        "arch": "DistributedDataParallel", "epoch": 0, "state_dict": state, "monitor_best": 0.0, "config": record})


def initialise(config: ModelConfig, tokenizer: str, seed: int, vit: str = "", roberta: str = "") -> EgoVLP:
    """Return a model for the start of pre-training.

    Args:
        tokenizer: name or folder.
        seed: of the random weights; PyTorch's own random state stays as it is.
        vit: a ViT-B/16 for the video encoder, by timm's name or as a file; "" or "random": none.
        roberta: a RoBERTa for the text encoder, by name, or as a folder or file; "" or "random": none.

    Raises:
        WeightsError: a ViT or RoBERTa can't be had or does not fit.
    """
    vit, roberta = ("" if source == RANDOM else source for source in (vit, roberta))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EgoVLP(config, tokenizer)
        model.reset_parameters()
    for source, released_prefix, prefix in ((vit, "video_model.", "video."), (roberta, "text_model.", "text.")):
        if source:
            load_backbone(model, source, released_prefix, prefix)
    if vit:
        torch.nn.init.zeros_(model.video.temporal_embed)
        model.video.reset_time()  # zero_output copies the space attention that has just been loaded
    return model


def initial_model(config: Config, frames: int | None = None):
    """Return the model to start from: the checkpoint `init`, or fresh weights.

    Args:
        frames: capacity of the temporal embedding, to which a checkpoint's is resized; None takes model.frames.
    """
    tokenizer = load_tokenizer(config.site.tokenizer, fetch=True)
    if config.init:
        model = load(config.init, frames=frames or config.model.frames, tokenizer=config.site.tokenizer)
        if model.config.image_size != config.model.image_size:
            raise ValueError(f"{config.init} takes frames of {model.config.image_size} px, but model.image_size is "
                             f"{config.model.image_size}: set it to {model.config.image_size}")
        model.compute_as(config.model)
        return model
    shape = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or tokenizer.vocab_size)
    return initialise(shape, config.site.tokenizer, config.seed, config.site.vit, config.site.roberta)


# parts of the encoders that neither a ViT nor a RoBERTa has: these keep their random weights
NEW_PARTS = re.compile(r"video\.(temporal_embed|blocks\.\d+\.(time|norm_time|text)\.)|"
                       r"text\.layers\.\d+\.(video\.|gate)|(?!video\.|text\.)")

# heads of other tasks in a ViT or a RoBERTa: they are left out
OTHER_HEADS = re.compile(r"(head|head_dist|pre_logits|fc_norm|lm_head|classifier|pooler|roberta\.pooler)\.|"
                         r"(.*\.)?position_ids$")


def load_backbone(model: EgoVLP, source: str, released_prefix: str, prefix: str) -> None:
    """Copy all weights of a ViT-B/16 or a RoBERTa into one of the model's encoders.

    Args:
        source: a file; else a name for timm (ViT), or a name or folder for transformers (RoBERTa).
        released_prefix: of the encoder's keys in released files: video_model. or text_model.
        prefix: of our keys: video. or text.

    Raises:
        WeightsError: the weights can't be had, have keys without a place, or lack keys of the encoder.
    """
    if Path(source).is_file():
        state = checkpoints.state_dict(checkpoints.read(source, everything=False), source)
    else:
        state = _download(source, vit=prefix == "video.")
    state, surplus = unwrap(state)
    expected, backbone = model.state_dict(), {}
    for key, value in state.items():
        name = rename(released_prefix + key.removeprefix("roberta."), "ours")
        if name in expected and name not in backbone:
            backbone[name] = value
        elif not OTHER_HEADS.match(key):
            surplus.append(key)
    if surplus:
        raise WeightsError(f"{source}: {len(surplus)} keys that this model has no place for, such as "
                           f"{checkpoints.named(surplus, 6)}; expected a plain ViT or RoBERTa of the model's size")
    unfit = [key for key in expected if key.startswith(prefix) and not NEW_PARTS.match(key)
             and (key not in backbone or backbone[key].shape != expected[key].shape)]
    if unfit:
        raise WeightsError(f"{source}: {len(unfit)} keys are missing or of another shape, such as "
                           f"{', '.join(unfit[:6])}; expected a ViT or RoBERTa of the model's size")
    model.load_state_dict(backbone, strict=False)


def _download(source: str, vit: bool) -> dict[str, Tensor]:
    """Weights by timm's or transformers' name or folder; both cache what they download."""
    setting, file = (("site.vit", "jx_vit_base_p16_224-80ecf9dd.pth") if vit
                     else ("site.roberta", "a folder with config.json and weights"))
    try:
        if vit:
            import timm  # only for a ViT by name
            return timm.create_model(source, pretrained=True).state_dict()
        from transformers import AutoModel  # only for a RoBERTa by name or folder
        return AutoModel.from_pretrained(source).state_dict()
    except Exception as error:  # each library raises its own kinds for an unknown name, no network and a bad file
        raise WeightsError(f"{setting}: {source!r} is no file, and could not be downloaded by that name "
                           f"({type(error).__name__}: {str(error).splitlines()[0][:150]}); give a local path ({file}), "
                           "or go online once") from error
