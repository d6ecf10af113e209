"""The model and its losses equal the original's figures.

The weights are seeded ones in the released format.
"""
import pytest
import torch
import torch.nn.functional as F
from golden_inputs import golden, inputs

import egokit
from egokit.model import weights
from egokit.tasks import losses


def close(ours, theirs, relative=1e-5, scale=None):
    ours, theirs = torch.as_tensor(ours).double().flatten(), torch.as_tensor(theirs).double().flatten()
    worst = ((ours - theirs).abs().max() / (scale or theirs.abs().max())).item()
    assert worst <= relative, worst


@pytest.mark.parametrize("name, kind", [
    ("A_large_4f", "large"), pytest.param("A_small_16f", "small", marks=[pytest.mark.slow, pytest.mark.golden])])
def test_forward_equals_the_original(released, name, kind):
    figures = golden(name)
    model = egokit.load(released(kind))
    frames, text, masked = inputs(figures)
    labels = torch.tensor(figures["mlm_labels"])
    with torch.no_grad():
        video_BE, text_BE = model.encode_video(frames), model.encode_text(text)
        similarity = egokit.similarity(text_BE, video_BE)
        close(video_BE[:, :16], figures["video_embed_head"])
        close(text_BE[:, :16], figures["text_embed_head"])
        close(video_BE.norm(dim=1), figures["video_embed_norm"])
        close(text_BE.norm(dim=1), figures["text_embed_norm"])
        close(similarity, figures["sim_text_x_video"], scale=1.0)
        close(model.itm_logits(frames, text), figures["itm_logits"])
        logits = model.mlm_logits(frames, masked)
        close(logits[labels != -100][:, :16], figures["mlm_logits_at_mask_head"])
        close(F.cross_entropy(logits.flatten(0, 1), labels.flatten()), figures["mlm_loss"])
        if "egonce" in figures:
            expected = figures["egonce"]
            positives = losses.positives(torch.tensor(expected["verb_vec"]), torch.tensor(expected["noun_vec"]))
            assert positives.int().tolist() == expected["positive_mask"]
            close(losses.egonce(similarity, positives), expected["loss"])
        else:
            expected = figures["adaptive_max_margin"]
            loss = losses.max_margin(similarity, torch.tensor(expected["weights"]), expected["margin"])
            close(loss, expected["loss"])
            close(losses.infonce(similarity), figures["norm_softmax"]["loss"])


@pytest.mark.golden
@pytest.mark.slow  # test_model_twin.py compares every gradient of small models among the quick tests
def test_gradients_equal_the_original(released):
    figures, grads = golden("A_large_4f"), golden("A_grad_4f")
    model = egokit.load(released("large"))
    frames, text, masked = inputs(figures)
    labels = torch.tensor(figures["mlm_labels"])
    positives = losses.positives(torch.tensor(figures["egonce"]["verb_vec"]),
                                 torch.tensor(figures["egonce"]["noun_vec"]))
    egonce = losses.egonce(egokit.similarity(model.encode_text(text), model.encode_video(frames)), positives)
    mlm = F.cross_entropy(model.mlm_logits(frames, masked).flatten(0, 1), labels.flatten())
    itm = F.cross_entropy(model.itm_logits(frames[grads["itm_video_order"]], text), torch.tensor(grads["itm_labels"]))
    for ours, name in ((egonce, "egonce"), (mlm, "mlm"), (itm, "itm")):
        close(ours.detach(), grads[name])
    (egonce + mlm + 2 * itm).backward()
    ours = {weights.rename(name, "released"): parameter.grad.norm().item()
            for name, parameter in model.named_parameters()}
    assert ours.keys() == grads["grad_norms"].keys()
    # a gradient that vanishes in exact arithmetic (a key's bias) is rounding on both sides: compare with the largest
    floor = 1e-6 * max(grads["grad_norms"].values())
    wrong = {key: (ours[key], norm) for key, norm in grads["grad_norms"].items()
             if abs(ours[key] - norm) > 1e-3 * norm + floor}
    assert not wrong
