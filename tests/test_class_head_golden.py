"""EgoTaskQA's head, on the original's figures: alone, behind the model, and its gradients."""
import pytest
import torch
import torch.nn.functional as F
from golden_inputs import draw, golden, release_state, taskqa_head, taskqa_release

import egokit
from egokit.model import weights
from egokit.model.class_head import ClassHead

FIGURES = golden("golden_taskqa_qfvs")
SEED, FIGURES = FIGURES["seed"], FIGURES["egotaskqa"]


def close(ours, theirs, relative=1e-5):
    ours, theirs = torch.as_tensor(ours).double().flatten(), torch.as_tensor(theirs).double().flatten()
    worst = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert len(ours) == len(theirs) and worst <= relative, worst


def test_the_head_equals_the_original():
    figures = FIGURES["head"]
    answers = figures["answers_in_vocabulary"]
    head = ClassHead(768, answers, hidden=answers).eval()
    head.load_state_dict({weights.rename(key, "ours").removeprefix("head."): value
                          for key, value in taskqa_head(SEED, answers).items()})
    with torch.no_grad():
        logits_BK = head(torch.from_numpy(draw(SEED, "head.cls", (4, 768))))
    close(logits_BK, figures["logits"])
    close(F.cross_entropy(logits_BK, torch.tensor(figures["answers"])), figures["cross_entropy"])


@pytest.fixture(scope="module")
def released_model(tmp_path_factory):
    """The model of a file in the layout of the released EgoTaskQA checkpoints."""
    path = tmp_path_factory.mktemp("taskqa") / "EgoTaskQA_finetune_direct.tar"
    answers = FIGURES["model"]["answers_in_vocabulary"]
    return egokit.load(taskqa_release(path, release_state("large", SEED) | taskqa_head(SEED, answers)))


def fused(model, figures, clips):
    """Return the fused states of drawn clips, and their questions' tokens."""
    frames = torch.from_numpy(draw(SEED, "input.video", (clips, 16, 3, 224, 224)))
    tokens = {key: torch.tensor(figures[key]) for key in ("input_ids", "attention_mask")}
    return model.fused_video(model.fusion_trunk(frames), tokens, 16), frames, tokens


@pytest.mark.golden
@pytest.mark.slow
def test_answers_equal_the_original(released_model):
    model, figures = released_model, FIGURES["model"]
    assert model.config.frames == figures["frames"] == 16 and not model.training
    head = model.head
    assert (head.num_classes, head.fc1.out_features, head.classes) == (figures["answers_in_vocabulary"],) * 2 + ((),)
    close(model.video.temporal_embed[0, :, :4].detach(), figures["temporal_embed_head_16x4"])
    with torch.no_grad():
        states_BD, frames, tokens = fused(model, figures, len(figures["answers"]))
        close(states_BD[:, :16], figures["fused_cls_head"])
        close(states_BD.norm(dim=1), figures["fused_cls_norm"])
        logits_BK = head(states_BD)
    close(logits_BK, figures["logits"])
    close(F.cross_entropy(logits_BK, torch.tensor(figures["answers"])), figures["cross_entropy"])
    head.classes = tuple(f"answer {number}" for number in range(head.num_classes))
    try:
        told = model.answer(frames, tokens, k=3)
    finally:
        head.classes = ()
    best = torch.tensor(figures["logits"]).softmax(-1).topk(3)
    assert [[word for word, _ in row] for row in told] == [
        [f"answer {number}" for number in row] for row in best.indices.tolist()]
    close([[chance for _, chance in row] for row in told], best.values, 1e-4)


@pytest.mark.golden
@pytest.mark.slow
def test_gradients_equal_the_original(released_model):
    model, figures = released_model, FIGURES["gradients"]
    loss = F.cross_entropy(model.head(fused(model, figures, figures["clips"])[0]), torch.tensor(figures["answers"]))
    close(loss.detach(), figures["cross_entropy"])
    loss.backward()
    released = {name: weights.rename(name, "released") for name, _ in model.named_parameters()}
    norms = {released[name]: parameter.grad.norm().item() for name, parameter in model.named_parameters()
             if parameter.grad is not None}
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    model.zero_grad(set_to_none=True)
    wrong = {key: (norms[key], norm) for key, norm in figures["grad_norms"].items()
             if abs(norms[key] - norm) > 1e-3 * norm}
    assert not wrong and len(figures["grad_norms"]) > 3
    assert model.unused_parameters("fused_video") == without

    def listed(names):  # as the figures have them: modules for their weights and biases, other parameters by name
        return {name.removesuffix(".weight").removesuffix(".bias") for name in names}
    assert listed(released[name] for name in without) == listed(figures["parameters_without_gradient"])
