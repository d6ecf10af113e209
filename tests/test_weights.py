"""Checkpoints: strict, safe, both ways; errors that name the file and the keys."""
import pickle

import pytest
import torch
from conftest import MODEL

import egokit
from egokit import checkpoints, train, weights
from egokit.checkpoints import WeightsError


@pytest.fixture
def model(resolve):
    return train.initial_model(resolve(overrides=MODEL))


def test_every_key_has_a_name_on_both_sides(model):
    names = {name: weights.rename(name, "released") for name in model.state_dict()}
    assert None not in names.values() and len(set(names.values())) == len(names)
    assert all(weights.rename(released, "ours") == name for name, released in names.items())


def test_released_keys_are_all_known():
    from golden_inputs import KEYS
    for path in KEYS.values():
        keys = [line.split("\t")[0] for line in path.read_text().splitlines()]
        assert [key for key in keys if not weights.rename(key, "ours")] == ["text_model.embeddings.position_ids"]
        assert all(weights.rename(weights.rename(key, "ours"), "released") == key for key in keys if "position_ids" not in key)


def test_round_trip(model, tmp_path):
    weights.save(model, tmp_path / "ours.pt", step=3)
    loaded, report = egokit.load(tmp_path / "ours.pt", report=True)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert report["missing"] == report["unexpected"] == report["misshapen"] == [] and not loaded.training
    assert loaded.config == model.config.__class__(**{**vars(model.config), "checkpointing": False})


def test_frames_are_resized(model, tmp_path):
    weights.save(model, tmp_path / "ours.pt")
    four = model.video.temporal_embed.detach()
    longer, shorter = (egokit.load(tmp_path / "ours.pt", frames=n).video.temporal_embed for n in (7, 2))
    assert torch.equal(shorter, four[:, :2]) and longer.shape[1] == 7
    assert torch.allclose(longer[:, ::2], four, atol=1e-6) and torch.allclose(longer[:, 1], four[:, :2].mean(1), atol=1e-6)


def test_missing_unexpected_and_misshapen_keys_are_listed(model, tmp_path):
    state = model.state_dict()
    state["surplus.weight"] = state.pop("itm_head.bias")
    state["fusion_norm.weight"] = torch.zeros(3)
    content = {"format": checkpoints.FORMAT, "model_config": vars(model.config), "tokenizer": "", "state_dict": state}
    checkpoints.write(tmp_path / "bad.pt", content)
    with pytest.raises(WeightsError, match=r"(?s)bad\.pt.*missing \(1\): itm_head.*unexpected \(1\): surplus.*fusion_norm.weight: \(3,"):
        egokit.load(tmp_path / "bad.pt")


@pytest.mark.parametrize("content, said", [(b"<html>not found</html>", "not a checkpoint"), (b"", "not a checkpoint"),
                                           (b"PK\x03\x04 cut", "not a checkpoint")])
def test_files_that_are_no_checkpoints(tmp_path, content, said):
    path = tmp_path / "EgoVLPv2.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"EgoVLPv2\.pth.*{said}"):
        egokit.load(path)


def test_a_folder_a_missing_file_and_another_model(tmp_path):
    with pytest.raises(WeightsError, match="holds no checkpoint"):
        egokit.load(tmp_path)
    with pytest.raises(WeightsError, match="does not exist"):
        egokit.load(tmp_path / "none.pth")
    torch.save({"state_dict": {"layer1.conv.weight": torch.zeros(3)}}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"resnet\.pth is not an EgoVLPv2 checkpoint.*layer1"):
        egokit.load(tmp_path / "resnet.pth")


class Evil:
    def __reduce__(self):
        return (exec, ("open('made', 'w')",))


def test_a_pickle_that_executes_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "config": Evil()}, "evil.pth")
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps({"config": Evil()}))
    for name in ("evil.pth", "legacy.pth"):
        with pytest.raises(WeightsError, match=name):
            egokit.load(tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_public_methods_check_their_input(model):
    frames = torch.zeros(2, 4, 3, 64, 64)
    with pytest.raises(ValueError, match=r"add the batch axis"):
        model.encode_video(frames[0])
    with pytest.raises(ValueError, match=r"expected \(B, T, 3, 64, 64\)"):
        model.encode_video(frames[..., :32])
    with pytest.raises(ValueError, match=r"temporal embedding holds 4.*frames=6"):
        model.encode_video(torch.zeros(1, 6, 3, 64, 64))
    with pytest.raises(ValueError, match="expected normalised floats"):
        model.encode_video(torch.full((1, 4, 3, 64, 64), 255.0))
    with pytest.raises(ValueError, match="expected normalised floats"):
        model.encode_video(torch.zeros(1, 4, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="2 clips but 3 texts"):
        model.match(frames, ["#C C opens the box"] * 3)
    with pytest.raises(ValueError, match="missing \\['attention_mask'\\]"):
        model.encode_text({"input_ids": torch.zeros(1, 3).long()})
    assert model.encode_text("#C C opens the box").shape == (1, 16) and model.match(frames, ["a", "b"]).shape == (2,)


def test_released_start_of_time_attention_gets_no_gradient(resolve):
    """The original's start: q and k of time attention never move. zero_output is free of it, and both start as the identity."""
    for start, learns in (("released", False), ("zero_output", True)):
        model = train.initial_model(resolve(overrides=f"{MODEL} model.time_init={start}"))
        frames = torch.randn(2, 4, 3, 64, 64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):  # zero_output's projection moves first
            model.encode_video(frames).square().sum().backward()
            optimizer.step()
        width = model.config.width
        for block in model.video.blocks[:1]:
            assert (block.time.qkv.weight.grad[:2 * width].abs().max() > 0) == learns
