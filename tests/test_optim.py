"""AdamW: the fused kernel gives the plain rule's numbers and resumes; rates that follow the batch."""
import copy
import io

import pytest
import torch

import egokit
from egokit.config.build import ConfigError, flatten, to_dict
from egokit.config.resolve import resolve
from egokit.config.schema import ModelConfig, OptimConfig
from egokit.model.egovlp import EgoVLP
from egokit.train import optim
from egokit.train.batch_plan import plan_batch

SMALL = ModelConfig(image_size=32, width=64, heads=1, depth=2, num_fused_layers=1, vocab_size=99, max_positions=40,
                    projection="linear16")
RECIPE = OptimConfig(lr=1e-3)


def stepped(model, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optim.set_rate(optimizer, RECIPE.lr / (1 + step))
        optimizer.step()


def test_fused_adamw_is_adamw_and_resumes():
    torch.manual_seed(0)
    model = EgoVLP(SMALL)
    model.reset_parameters()
    twin, again = copy.deepcopy(model), copy.deepcopy(model)
    fused = optim.optimizer(model, RECIPE)
    plain = torch.optim.AdamW(optim.param_groups(twin, RECIPE), lr=RECIPE.lr, betas=RECIPE.betas, eps=RECIPE.eps,
                              foreach=False, fused=False)
    assert fused.defaults["fused"]
    stepped(model, fused, range(5))
    stepped(twin, plain, range(5))
    for (name, parameter), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter, expected, rtol=1e-6, atol=1e-7), name

    file = io.BytesIO()
    first = optim.optimizer(again, RECIPE)
    stepped(again, first, range(2))
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = optim.optimizer(again, RECIPE)
    second.load_state_dict(torch.load(file, weights_only=True))
    stepped(again, second, range(2, 5))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_norm_is_that_of_all_gradients_and_shortens_only_what_is_longer():
    model = torch.nn.Linear(3, 2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    assert optim.clip_grad_norm(model, 0.0).item() == pytest.approx(2 * 8 ** 0.5) and model.bias.grad.tolist() == [2, 2]
    optim.clip_grad_norm(model, 100.0)
    assert model.bias.grad.tolist() == [2, 2]
    optim.clip_grad_norm(model, 1.0)
    assert optim.clip_grad_norm(model, 0.0).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("rule, batch_size, expected", [
    ("none", 4096, 3e-5), ("linear", 4096, 4.8e-4), ("square_root", 4096, 1.2e-4), ("linear", 64, 7.5e-6),
    ("square_root", 256, 3e-5)])
def test_the_rate_is_scaled_to_the_batch_and_told(rule, batch_size, expected):
    config = resolve("pretrain", "toy", f"optim.scale_lr={rule} optim.lr_batch_size=256 train.batch_size={batch_size}")
    plan = plan_batch(config, 2)
    assert plan.peak_lr == pytest.approx(expected, rel=1e-12)
    rates = [optim.learning_rate(step, 200, 10, config.optim, plan.peak_lr) for step in range(200)]
    # 2 epochs of warm-up
    assert rates[0] == pytest.approx(expected / 20) and rates[19] == pytest.approx(expected)
    assert max(rates) == pytest.approx(expected)
    assert rates[199] == pytest.approx(config.optim.final_lr + (expected - config.optim.final_lr) / 180)
    told = f"; learning rate {expected:.3g} = optim.lr 3e-05 of batches of 256, scaled by optim.scale_lr={rule}"
    assert str(plan).endswith(told) is (rule != "none") and ("scale_lr" in egokit.describe(config)) is (rule != "none")


def test_a_rule_without_the_batch_it_starts_from_is_refused():
    with pytest.raises(ConfigError, match=r"optim.scale_lr=linear needs optim.lr_batch_size.*256 in params/pretrain"):
        resolve("pretrain", "toy", "optim.scale_lr=linear")
    with pytest.raises(ConfigError, match=r"optim.scale_lr.*'cubic'.*linear, none, square_root"):
        resolve("pretrain", "toy", "optim.scale_lr=cubic")


def test_the_large_batch_recipe_differs_in_batch_rate_and_warm_up_alone():
    large, published = (flatten(to_dict(resolve(name, "toy"))) for name in ("pretrain_large_batch", "pretrain"))
    assert {key for key in large if large[key] != published[key]} == {
        "model.time_init", "optim.scale_lr", "optim.lr_batch_size", "optim.warmup_epochs", "train.batch_size"}
    assert large["optim.lr_batch_size"] == published["train.batch_size"]
    rates = {size: plan_batch(resolve("pretrain_large_batch", "toy", f"train.batch_size={size}"), 1).peak_lr
             for size in (2048, 16384)}
    assert rates == {2048: pytest.approx(8.49e-5, rel=1e-3), 16384: pytest.approx(2.4e-4)}  # as the file says
