"""Hugging Face folders of tiny CLIPs and SigLIPs, with weights drawn from a seed."""
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_peers import bert_tokenizer, clip_tokenizer, fake_peers

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
TEXT = SIZES | {"max_position_embeddings": 64, "vocab_size": 400}
IMAGE = SIZES | {"image_size": 64, "patch_size": 16}
CONFIGS = {
    "clip": {"model_type": "clip", "projection_dim": 16, "text_config": TEXT | {"eos_token_id": 399},
             "vision_config": IMAGE},
    "siglip": {"model_type": "siglip", "text_config": TEXT | {"projection_size": 32}, "vision_config": IMAGE},
}


def tiny_folder(folder, config: dict | str, seed: str = "tiny", tokenizer: bool = True, parts: int = 1) -> Path:
    """Write a folder as `save_pretrained` does, and return it.

    Args:
        config: its config.json, or a key of CONFIGS.
        tokenizer: write a tokenizer, too: of CLIP's kind, or one that has a padding token of its own.
        parts: how many files share the weights.
    """
    import transformers
    config = CONFIGS[config] if isinstance(config, str) else config
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    kinds = {"clip": (transformers.CLIPConfig, transformers.CLIPModel),
             "siglip": (transformers.SiglipConfig, transformers.SiglipModel)}
    make_config, make_model = kinds[config["model_type"]]
    settings = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version")}
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in make_model(make_config(**settings)).state_dict().items()}
    state = {key: torch.tensor(fake_peers.weight(seed, key, shape)).reshape(shape) for key, shape in shapes.items()}
    if parts == 1:
        save_file(state, folder / "model.safetensors")
    else:
        names = {key: f"model-{1 + i % parts:05}-of-{parts:05}.safetensors" for i, key in enumerate(state)}
        for name in set(names.values()):
            save_file({key: value for key, value in state.items() if names[key] == name}, folder / name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    if tokenizer:
        (clip_tokenizer if config["model_type"] == "clip" else bert_tokenizer)(folder)
    return folder
