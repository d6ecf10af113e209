"""Starts from ViT and RoBERTa: each encoder alone is timm's or transformers' own.

The video encoder is compared at one frame; neither encoder reads the other modality.
"""
import functools

import pytest
import timm
import torch
import transformers
from torch import nn

from egokit.config.schema import ModelConfig
from egokit.model import backbones
from egokit.model.checkpoints import WeightsError


def with_random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw seeded weights about as large as trained ones.

    Nothing is zero, and norms are not the identity.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.05 if parameter.ndim < 2 or "embed" in name else parameter[0].numel() ** -0.5)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
    return module.eval()


@pytest.fixture(scope="module")
def vit():
    return with_random_weights(timm.create_model("vit_base_patch16_224", pretrained=False))


@pytest.fixture(scope="module")
def roberta():
    config = transformers.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1,
                                        layer_norm_eps=1e-5)
    return with_random_weights(transformers.RobertaModel(config), seed=1)


@pytest.fixture(scope="module")
def files(vit, roberta, tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    torch.save(vit.state_dict(), folder / "jx_vit_base_p16_224-80ecf9dd.pth", _use_new_zipfile_serialization=False)
    roberta.save_pretrained(folder / "roberta-base")
    return folder


@pytest.mark.parametrize("time_init", ["released", "zero_output"])
def test_one_frame_is_the_vit(vit, files, time_init):
    config = ModelConfig(time_init=time_init, projection="linear256")
    model = backbones.initialise(config, "", seed=0, vit=str(files / "jx_vit_base_p16_224-80ecf9dd.pth")).eval()
    frames = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        ours = model.video(frames[:, None])
        # timm's norms have eps 1e-6, ours 1e-5
        assert torch.allclose(ours, vit.forward_features(frames)[:, 0], rtol=0, atol=5e-3)
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5
        theirs = vit.forward_features(frames)[:, 0]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def test_text_alone_is_roberta(roberta, files):
    model = backbones.initialise(ModelConfig(projection="linear256"), "", seed=0, roberta=str(files / "roberta-base"))
    model.eval()
    ids = torch.randint(3, 50000, (3, 12))
    mask = torch.ones_like(ids)
    ids[0, 7:], mask[0, 7:] = 1, 0
    ids[1, 3:], mask[1, 3:] = 1, 0
    with torch.no_grad():
        ours = model.text({"input_ids": ids, "attention_mask": mask})
        theirs = roberta(ids, mask).last_hidden_state
    assert (ours - theirs[:, 0]).abs().max() <= 1e-5 * theirs[:, 0].abs().max()


def test_a_vit_as_a_wrapper_saved_it(vit, tmp_path):
    state = {f"module._orig_mod.{key.replace('blocks.', 'blocks._orig_mod.')}": value
             for key, value in vit.state_dict().items()}
    torch.save(state, tmp_path / "vit.pth")
    model = backbones.initialise(ModelConfig(projection="linear256"), "", seed=0, vit=str(tmp_path / "vit.pth"))
    assert torch.equal(model.video.blocks[3].space.qkv.weight, vit.blocks[3].attn.qkv.weight)
    state["module.norm.weight"] = vit.norm.weight + 1
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"1 keys that this model has no place for, such as module\.norm\.weight"):
        backbones.initialise(ModelConfig(projection="linear256"), "", seed=0, vit=str(tmp_path / "vit.pth"))
    del state["module.norm.weight"]
    state["module._orig_mod.norm.weight"] = torch.full_like(vit.norm.weight, torch.nan)
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"vit\.pth has weights that are NaN .*: module\._orig_mod\.norm\.weight;"):
        backbones.initialise(ModelConfig(projection="linear256"), "", seed=0, vit=str(tmp_path / "vit.pth"))


def test_a_vit_by_name(vit, monkeypatch):
    """The name goes to timm, which would download it; only other tasks' heads are left over."""
    calls = []
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: calls.append((name, pretrained)) or vit)
    model = backbones.initialise(ModelConfig(projection="linear256"), "", seed=0, vit="vit_base_patch16_224")
    assert calls == [("vit_base_patch16_224", True)]
    assert torch.equal(model.video.blocks[3].space.qkv.weight, vit.blocks[3].attn.qkv.weight)
    assert not model.video.temporal_embed.any()


def test_errors_name_what_to_give(tmp_path, monkeypatch):
    config = ModelConfig(width=64, heads=1, depth=2, num_fused_layers=1, vocab_size=20, projection="linear8")
    tiny = functools.partial(backbones.initialise, config, "", 0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"site\.vit: 'vit_of_nobody' is no file.*local path \(jx_vit"):
        tiny(vit="vit_of_nobody")
    with pytest.raises(WeightsError, match=r"site\.roberta: '.*nowhere' is no file.*"
                                           r"local path \(a folder with config\.json"):
        tiny(roberta=str(tmp_path / "nowhere"))
    torch.save(timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(WeightsError, match=r"tiny\.pth: 120 keys that this model has no place for, "
                                           r"such as blocks\.2\.norm1"):
        tiny(vit=str(tmp_path / "tiny.pth"))
    state = torch.load(tmp_path / "tiny.pth")
    kept = {key: value for key, value in state.items() if not key.startswith("blocks.") or key.startswith("blocks.0.")}
    torch.save(kept, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"cut\.pth: \d+ keys are missing or of another shape, such as video\."):
        tiny(vit=str(tmp_path / "cut.pth"))
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"list\.pth holds no state_dict"):
        tiny(vit=str(tmp_path / "list.pth"))
