"""AdamW: the fused kernel gives the plain rule's numbers and resumes."""
import copy
import io

import pytest
import torch

from egokit.config.schema import ModelConfig, OptimConfig
from egokit.model.egovlp import EgoVLP
from egokit.train import optim

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
