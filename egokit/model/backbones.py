"""The weights that pre-training starts from: a ViT for the video encoder, a RoBERTa for the text encoder."""
import re
from pathlib import Path

import torch
from torch import Tensor

from egokit.config.schema import RANDOM, ModelConfig
from egokit.model import checkpoints
from egokit.model.checkpoints import WeightsError
from egokit.model.egovlp import EgoVLP
from egokit.model.released_keys import rename, unwrap

# parts of the encoders that neither a ViT nor a RoBERTa has: these keep their random weights
NEW_PARTS = re.compile(r"video\.(temporal_embed|blocks\.\d+\.(time|norm_time|text)\.)|"
                       r"text\.layers\.\d+\.(video\.|gate)|(?!video\.|text\.)")

# heads of other tasks in a ViT or a RoBERTa: they are left out
OTHER_HEADS = re.compile(r"(head|head_dist|pre_logits|fc_norm|lm_head|classifier|pooler|roberta\.pooler)\.|"
                         r"(.*\.)?position_ids$")


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
