"""The model's public methods check their input, take empty batches, and pass by no hook."""
import pytest
import torch
from conftest import MODEL

from egokit.model import weights


@pytest.fixture
def model(resolve):
    return weights.initial_model(resolve(overrides=MODEL))


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
    for clips, message in (([frames[0]], "torch.stack"), (frames.movedim(2, -1), "movedim"),
                           (frames.transpose(1, 2), "transpose"), (frames * float("nan"), "nan")):
        with pytest.raises(ValueError, match=message):
            model.encode_video(clips)
    ids = torch.full((1, 3), 5)
    for text, message in ((None, "one string or several"), ([], "one string or several"),
                          ({"input_ids": ids, "attention_mask": ids * -1e4}, "expected 1 for"),
                          ({"input_ids": ids + 10**6, "attention_mask": ids * 0 + 1}, "another tokenizer"),
                          ({"input_ids": ids[0], "attention_mask": ids[0]}, "batch axis")):
        with pytest.raises(ValueError, match=message):
            model.encode_text(text)
    with pytest.warns(UserWarning, match="pixels of 0-1 before normalisation"):
        model.encode_video(torch.rand(1, 4, 3, 64, 64))
    assert model.encode_text("#C C opens the box").shape == (1, 16) and model.match(frames, ["a", "b"]).shape == (2,)


def test_empty_batches(model):
    frames, ids = torch.zeros(3, 4, 3, 64, 64), torch.zeros(0, 3).long()
    none = {"input_ids": ids, "attention_mask": ids}
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert model.encode_video(frames[:0]).shape == (0, 16) and model.encode_text(none).shape == (0, 16)
            assert model.itm_logits(frames[:0], none).shape == (0, 2) and model.match(frames[:1], none).shape == (0,)


def test_adapters_and_hooks_are_not_passed_by(model):
    """Fast paths of cross-attention use weights directly, but not of layers with hooks."""
    seen = []
    model.text.layers[-1].video.key.register_forward_hook(lambda *_: seen.append("key"))
    model.video.blocks[-1].text.query.register_forward_hook(lambda *_: seen.append("query"))
    with torch.no_grad():
        model.eval().match(torch.zeros(1, 4, 3, 64, 64), ["#C C opens the box"])
    assert sorted(seen) == ["key", "query"]
