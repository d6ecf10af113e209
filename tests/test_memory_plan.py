"""Predicted GPU memory is what benchmarks/gpu_cost.py counts, and advice names the first setting that fits."""
import dataclasses
import re
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from memory_constants import peak_gib, predicted

from egokit.config.schema import Config, ModelConfig, TrainConfig
from egokit.model.egovlp import EgoVLP
from egokit.tasks.charades import CharadesEgo
from egokit.tasks.egoclip import EgoClip
from egokit.tasks.ek100 import EK100
from egokit.train import memory_plan
from egokit.train.batch_plan import plan_batch
from egokit.train.memory_plan import network_of, parameter_bytes, predicted_gib, what_would_fit

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
# networks of the full-size model's width, which are counted in seconds
SHALLOW = {"none": {"depth": 3, "num_fused_layers": 1}, "cheap": {"depth": 3, "num_fused_layers": 1},
           "full": {"depth": 6, "num_fused_layers": 3}}
TINY = ModelConfig(image_size=64, width=128, heads=2, depth=2, num_fused_layers=1, vocab_size=99, max_positions=40,
                   projection="mlp32")


def of_the_base_model(checkpointing="none", micro_batch=0, clips=64, precision="fp16", processes=1, **model) -> Config:
    return Config(task=EgoClip.Params(name="egoclip"), model=ModelConfig(checkpointing=checkpointing, **model),
                  train=TrainConfig(batch_size=clips // 2 * processes, micro_batch=micro_batch, precision=precision))


@pytest.mark.parametrize("checkpointing, micro_batch, clips, frames, precision", [
    ("none", 0, 16, 4, "fp16"), ("cheap", 0, 16, 4, "fp16"), ("full", 0, 64, 4, "fp16"), ("cheap", 0, 4, 16, "bf16"),
    ("none", 0, 16, 4, "fp32"), ("none", 4, 32, 4, "fp16"), ("cheap", 8, 32, 4, "fp16")])
def test_predictions_are_within_a_tenth_of_what_is_counted(checkpointing, micro_batch, clips, frames, precision):
    model = SHALLOW[checkpointing] | {"frames": frames}
    counted = peak_gib(clips, precision, checkpointing, micro_batch, **model)
    assert predicted(clips, checkpointing, micro_batch, precision, **model) == pytest.approx(counted, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing, clips, model", [
    ("none", 64, {}), ("cheap", 64, {}), ("full", 64, {}), ("cheap", 16, {}), ("none", 64, {"attention": "triton"}),
    ("none", 32, {"half_residual": True}), ("cheap", 64, {"attention": "triton", "half_residual": True})])
def test_predictions_for_the_full_size_model(checkpointing, clips, model):
    counted = peak_gib(clips, "fp16", checkpointing, **model)
    assert predicted(clips, checkpointing, **model) == pytest.approx(counted, rel=0.05)


def test_half_tokens_are_predicted_to_save_memory_in_half_precision_alone():
    half, single = ([predicted_gib(of_the_base_model(precision=precision, half_residual=way), EgoClip, 1)
                     for way in (False, True)] for precision in ("fp16", "fp32"))
    assert half[1] < 0.95 * half[0] and single[0] == single[1]


def test_parameters_are_counted_without_building_the_model():
    model, state, network = TINY, torch.get_rng_state(), EgoVLP(TINY)
    torch.set_rng_state(state)
    fusion = {*network.parameters_by_role()["fusion"]}
    sizes = {name: parameter.nbytes for name, parameter in network.named_parameters()}
    everything, dual = sum(sizes.values()), sum(size for name, size in sizes.items() if name not in fusion)
    assert parameter_bytes(network_of(model, "all")) == (everything, everything)
    assert parameter_bytes(network_of(model, "embeddings")) == (everything, dual) and dual < everything
    assert torch.equal(torch.get_rng_state(), state)  # building on "meta" draws nothing
    assert parameter_bytes(network_of(dataclasses.replace(model, vocab_size=0), "all"))[0] > everything


def test_tasks_differ_by_clips_and_fusion():
    """A sample of pre-training is two clips, which go through the dual encoder, the trunk and two fused passes."""
    config = of_the_base_model("none")
    pre_training, dual = (predicted_gib(config, task, 1) for task in (EgoClip, EK100))
    assert 4 < pre_training / dual < 6
    assert predicted_gib(config, EK100, 1) == predicted_gib(config, CharadesEgo, 1)
    assert predicted_gib(of_the_base_model("none", processes=4), EgoClip, 4) == pre_training


@pytest.fixture
def card(monkeypatch):
    """Return a function that puts a network on a card of so many GiB."""
    def put(network: EgoVLP, gib: float) -> EgoVLP:
        monkeypatch.setattr(EgoVLP, "device", GPU)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, gib * 2**30))
        return network
    return put


def test_the_plan_says_what_is_predicted(card, capsys):
    config = of_the_base_model("cheap")
    network, gib = network_of(config.model, "all"), predicted_gib(config, EgoClip, 1)
    plan = plan_batch(config, 1)
    assert memory_plan.card_gib(CPU) == 0 and memory_plan.told(config, EgoClip, plan, EgoVLP(TINY)) == {}
    assert not capsys.readouterr().out
    assert memory_plan.told(config, EgoClip, plan, card(network, 79)) == {"predicted_gib": pytest.approx(gib, abs=0.05)}
    assert capsys.readouterr().out == f"memory: about {gib:.0f} of the GPU's 79 GiB are predicted to be needed\n"


def test_a_network_that_a_checkpoint_gave_is_predicted_and_not_the_config(card):
    """With what is frozen: it has no gradients and moments."""
    config = of_the_base_model("none")
    network = card(EgoVLP(TINY), 79)
    small = predicted_gib(config, EgoClip, 1, network)
    assert small == predicted_gib(dataclasses.replace(config, model=TINY), EgoClip, 1) < 1
    network.text.requires_grad_(False)
    assert predicted_gib(config, EgoClip, 1, network) < small


def test_compiled_blocks_are_never_advised_what_does_nothing_for_them(card):
    """The compiler itself chooses what to compute again."""
    config = of_the_base_model("none")
    compiled = dataclasses.replace(config, train=dataclasses.replace(config.train, compile=True))
    network = card(network_of(config.model, "all"), 79)
    assert "set model.checkpointing=cheap" in what_would_fit(config, 1, EgoClip, network)
    assert "set model.checkpointing=full" in what_would_fit(compiled, 1, EgoClip, network)
    cheap = dataclasses.replace(compiled, model=dataclasses.replace(config.model, checkpointing="cheap"))
    assert predicted_gib(cheap, EgoClip, 1) == predicted_gib(compiled, EgoClip, 1)


@pytest.mark.parametrize("config, gib, advice", [
    (of_the_base_model("none"), 79, r"set model.checkpointing=cheap, which is predicted to need 4\d of the GPU's 79"),
    (of_the_base_model("none"), 24, r"set model.checkpointing=full, which is predicted to need 1\d of the GPU's 24"),
    (of_the_base_model("cheap", clips=512), 79, r"set model.checkpointing=full, which .* 6\d of the GPU's 79"),
    (of_the_base_model("full", clips=1024), 79, r"set train.micro_batch=256, which .* of the GPU's 79"),
    (of_the_base_model("none", clips=1024), 79, r"set train.micro_batch=\d+, which .* of the GPU's 79"),
    (of_the_base_model("full", micro_batch=1), 79, r"use more processes \(launch.tasks_per_node\), or a GPU"),
    (of_the_base_model("none"), 5, r"nothing is predicted to fit into the GPU's 5 GiB: model.checkpointing=full, "
                                   r"train.micro_batch=1 needs least, \d GiB.*launch.tasks_per_node"),
])
def test_advice_is_the_first_setting_that_is_predicted_to_fit(card, config, gib, advice):
    message = what_would_fit(config, 1, EgoClip, card(network_of(config.model, "all"), gib))
    assert re.search(advice, message), message
