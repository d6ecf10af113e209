"""CLIP and SigLIP from a Hugging Face folder: the mean of a clip's frames, each embedded as an image.

Of a folder are read: config.json, of it the fields named here; preprocessor_config.json; model.safetensors or its
parts; and the tokenizer. No code of the folder is run, and nothing is fetched.

Shapes: B clips or texts, T frames, L tokens, E embedding.
"""
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from egokit.config.access import exists
from egokit.config.json_file import check_fields, read_json
from egokit.config.names import check_name
from egokit.model import checkpoints, hub
from egokit.model.checkpoints import WeightsError
from egokit.model.dual import Dual
from egokit.model.input_checks import clips_at_once, in_parts
from egokit.model.peers import tokenizers
from egokit.model.peers.peer import fill_positions
from egokit.model.recorded_shape import check, own_memory, without_weights
from egokit.model.released_keys import HARMLESS
from egokit.runs.shown_text import shown

NAMES = {"clip": "CLIP", "siglip": "SigLIP"}  # by model_type; SigLIP 2 of a fixed size has siglip's, too
KNOWN = {  # other models that people may try
    "siglip2": "a SigLIP 2 of variable size (NaFlex), which egokit doesn't read: use one of a fixed size, such as "
               "google/siglip2-base-patch16-224",
    "xclip": "an X-CLIP, whose score changes a text by the video: it is no dual encoder; use a CLIP",
}
SIZE, ACTIVATIONS = range(1, 1_000_000), ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh")
COMMON = {"hidden_size": (SIZE, ...), "intermediate_size": (SIZE, ...), "num_hidden_layers": (range(1, 257), ...),
          "num_attention_heads": (SIZE, ...), "hidden_act": (str, ...), "layer_norm_eps": (float, ...)}
FIELDS = {  # of config.json; all others are not looked at
    "text_config": COMMON | {"vocab_size": (SIZE, ...), "max_position_embeddings": (SIZE, ...),
                             "eos_token_id": (SIZE, None, ...), "projection_size": (SIZE, ...)},
    "vision_config": COMMON | {"image_size": (SIZE, ...), "patch_size": (SIZE, ...)},
}
FIX = "fetch the folder again, or correct it"
MEANS = {"clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
         "siglip": ((0.5,) * 3, (0.5,) * 3)}


@dataclasses.dataclass(frozen=True)
class FolderShape:
    """What the JSON files of a folder tell.

    Attributes:
        family: clip or siglip.
        settings: of transformers' config; image_size is there, too, as are the sizes of both encoders.
    """
    family: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: dict


def shape_of_folder(folder: Path) -> FolderShape:
    """Return what the JSON files of a folder tell of its model, quickly: no tensor is read.

    Raises:
        WeightsError: there is no config.json, it is damaged, or of a model that egokit doesn't read.
        PermissionError: this user may not read it.
    """
    path = Path(folder) / "config.json"
    try:
        content = hub.read_config(path.parent)
        family = content["model_type"]
        if family not in NAMES:
            what = KNOWN.get(family, f"a model of type {shown(family, 60)!r}")
            raise WeightsError(f"{path} is of {what}; expected 'clip' or 'siglip'")
        settings = {part: _fields(content, part) for part in FIELDS}
        if family == "clip":
            check_fields(content, {"projection_dim": (SIZE, ...)})
            settings["projection_dim"] = content.get("projection_dim", 512)
        image = read_json(path.with_name("preprocessor_config.json"),
                          {"image_mean": ([float], ...), "image_std": ([float], ...)}, FIX) or {}
        mean, std = (tuple(image.get(key, usual)) for key, usual in
                     zip(("image_mean", "image_std"), MEANS[family], strict=True))
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise ValueError(f"image_mean {mean} and image_std {std} of preprocessor_config.json: expected three "
                             "numbers each, and none of the second 0 or less")
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(str(error) if str(folder) in str(error) else f"{path}: {error}; {FIX}") from None
    return FolderShape(family, settings["vision_config"].get("image_size", 224), mean, std, settings)


def _fields(content: dict, part: str) -> dict:
    """Return the fields of one encoder that are known; those of `text_config_dict`, in older folders, come first."""
    older = f"{part}_dict"
    check_fields(content, {part: (dict, ..., None), older: (dict, ..., None)})
    fields = {**(content.get(part) or {}), **(content.get(older) or {})}
    fields = {key: value for key, value in fields.items() if key in FIELDS[part]}
    check_fields(fields, FIELDS[part], part)
    if not 0 < fields.get("layer_norm_eps", 1e-5) < 1:
        raise ValueError(f"{part}.layer_norm_eps is {fields['layer_norm_eps']}, expected a small number above 0")
    if fields.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise ValueError(f"{part}.hidden_act is {shown(fields['hidden_act'], 60)!r}, "
                         f"expected one of {', '.join(ACTIVATIONS)}")
    return fields


class ImageModel(Dual):
    """A CLIP or SigLIP, which knows no egocentric video: the row "no egocentric training" of a table.

    Attributes:
        tokenizer_source: folder or name of the tokenizer, which is loaded at the first text.
    """
    frames = None

    def __init__(self, shape: FolderShape, tokenizer: str, given: bool):
        """Build the network without weights.

        Args:
            tokenizer: the model's folder; or a folder or name, if it is `given`, which is fetched then.
        """
        super().__init__()
        import transformers
        config, model = ((transformers.CLIPConfig, transformers.CLIPModel) if shape.family == "clip" else
                         (transformers.SiglipConfig, transformers.SiglipModel))
        self.inner = model(config(**shape.settings))
        self.family, self.image_size = NAMES[shape.family], shape.image_size
        self.mean, self.std = shape.mean, shape.std
        self.tokenizer_source, self.tokenizer_given = tokenizer, given
        self.is_siglip, self.text_config = shape.family == "siglip", self.inner.config.text_config

    def tokens(self, texts: list[str], longest: int) -> dict[str, Tensor]:
        """Return the tokens of B texts on the model's device.

        CLIP's are (B, L) with a mask. SigLIP's have no mask, are in lower case, and always fill all positions, because
        the last position is read.

        Raises:
            WeightsError: the tokenizer can't be had, or is not the model's.
        """
        fix = "give a folder or a name as tokenizer= of egokit.load, or fetch the whole folder again"
        if self.is_siglip:
            fix += "; that of the first SigLIP wants the packages sentencepiece and protobuf: pip install them"
        tokenizer = tokenizers.load(self.tokenizer_source, f"{self.family} reads texts by a tokenizer of its own", fix,
                                    fetch=self.tokenizer_given)
        words, limit = self.text_config.vocab_size, self.text_config.max_position_embeddings
        if self.is_siglip:
            tokens = tokenizers.padded(tokenizer, [text.lower() for text in texts], min(longest, limit), self.device,
                                       words, self.family, length=limit)
            return {"input_ids": tokens["input_ids"]}
        end = self.text_config.eos_token_id
        return tokenizers.padded(tokenizer, texts, min(longest, limit), self.device, words, self.family,
                                 end=words - 1 if end in (None, 2) else end)  # 2: transformers takes the largest id

    def prepared_tokens(self, text, longest: int | None = None) -> dict[str, Tensor]:
        if isinstance(text, Mapping):
            words, limit = self.text_config.vocab_size, self.text_config.max_position_embeddings
            text = tokenizers.checked(text, limit, words, self.tokenizer_source, padding=None)
        return super().prepared_tokens(text, longest)

    def embed_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """Return embeddings of texts, (B, E) float32.

        Raises:
            ValueError: SigLIP's texts do not fill all positions: their embeddings would be others.
        """
        limit = self.text_config.max_position_embeddings
        if self.is_siglip and tokens["input_ids"].shape[1] != limit:
            raise ValueError(f"tokens: {tokens['input_ids'].shape[1]} a text, but {self.family} reads the last of "
                             f"{limit} positions: pad the texts on the right to {limit} tokens, or give strings")
        kept = ("input_ids",) if self.is_siglip else ("input_ids", "attention_mask")
        return _pooled(self.inner.get_text_features(**{key: tokens[key] for key in kept if key in tokens}))

    def embed_video(self, frames_BTCHW: Tensor) -> Tensor:
        """Return the means over time of frames' embeddings, (B, E) float32; a few clips at a time."""
        def embed(rows: slice) -> Tensor:
            part = frames_BTCHW[rows]
            images_XE = _pooled(self.inner.get_image_features(pixel_values=part.flatten(0, 1)))
            return images_XE.unflatten(0, part.shape[:2]).mean(dim=1)
        return in_parts(embed, *clips_at_once(frames_BTCHW, self.image_size, self.frames, self.device))


def _pooled(features) -> Tensor:
    """transformers 4 gives a tensor, 5 an object that has it."""
    return getattr(features, "pooler_output", features).float()


def load_folder(folder: str | Path, tokenizer: str | None = None) -> ImageModel:
    """Return the CLIP or SigLIP of a folder, on the CPU, in eval mode, in float32.

    Args:
        tokenizer: a folder or name; None for the folder's own.

    Raises:
        WeightsError: the folder is of another model, or damaged; keys don't fit; or weights are NaN or infinite.
        PermissionError: this user may not read a file of it.
    """
    folder = Path(folder)
    shape = shape_of_folder(folder)
    try:
        with without_weights():
            model = ImageModel(shape, tokenizer or str(folder), given=bool(tokenizer))
        fill_positions(model)
    except Exception as error:  # transformers and its checks of configs raise kinds of their own
        raise WeightsError(f"{folder / 'config.json'}: no {NAMES[shape.family]} can have this shape "
                           f"({shown(' '.join(str(error).split()), 200)}); {FIX}") from error
    state = {}
    for path in _files(folder):
        state |= checkpoints.state_dict(checkpoints.read(path, everything=False), path)
    state = {key: value for key, value in state.items() if not HARMLESS.fullmatch(key)}
    if broken := [key for key, value in state.items() if not checkpoints.is_finite(value)]:
        raise WeightsError(f"{folder} has weights that are NaN or infinite, such as "
                           f"{checkpoints.named(broken, 6)}; {FIX}")  # `read` lets EgoVLPv2's heads be infinite
    checkpoints.expect_floats(state, folder)
    check(model.inner, state, [], folder)
    model.inner.load_state_dict(own_memory(state), assign=True)
    return model.eval()


def _files(folder: Path) -> list[Path]:
    """The files of a folder's weights: model.safetensors, or the parts that its index names."""
    if exists(folder / "model.safetensors"):
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    try:
        content = read_json(index, {"weight_map": {...: str}}, FIX)
        names = sorted({check_name(name) for name in content["weight_map"].values()}) if content else []
    except ValueError as error:
        raise WeightsError(str(error) if str(index) in str(error) else f"{index}: {error}; {FIX}") from None
    missing = [name for name in names if not exists(folder / name)]
    if missing or not names:
        raise WeightsError(f"{folder} has no {missing[0] if missing else 'model.safetensors'}, in which its weights are"
                           " expected: fetch the folder again; egokit reads weights of the Hub's models from "
                           ".safetensors files alone, as others may hold code")
    return [folder / name for name in names]
