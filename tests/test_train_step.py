"""The benchmark of a training step: its two sides compute the same, which it checks."""
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import train_step

CPU = torch.device("cpu")
TINY = {"image_size": 32, "width": 128, "heads": 2, "depth": 2, "num_fused_layers": 1, "vocab_size": 99,
        "max_positions": 40, "projection": "mlp32"}


def sides():
    trainer = train_step.Trainer(train_step.configured(**TINY), CPU)
    plain = train_step.PlainSchedule(trainer.model, trainer.config)
    return trainer, plain, train_step.synthetic_batch(6, trainer.model.config)


def test_the_two_schedules_differ_by_rounding_alone(monkeypatch):
    """In float64, also where float32 is forced, no difference is left."""
    in_float32 = train_step.same_step(*sides())[1]
    trainer, _, batch = sides()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    trainer.model.double()
    in_float64 = train_step.same_step(trainer, train_step.PlainSchedule(trainer.model, trainer.config), batch)[1]
    assert in_float64 < 1e-11 < 1e-8 < in_float32 < 1e-4


def ungated(plain):
    plain.state["text_model.encoder.layer.1.alpha_t2i"] = plain.state["text_model.encoder.layer.1.alpha_t2i"] * 1.01


def unscaled(plain):
    attend = plain.attend
    plain.attend = lambda query, key, value, mask=None: attend(query * 1.02, key, value, mask)


def lighter(plain):
    loss = plain.loss
    plain.loss = lambda batch, step: {name: term * (1 if name == "egonce" else 1.00002)
                                      for name, term in loss(batch, step).items()}


@pytest.mark.parametrize("wrong", [ungated, unscaled, lighter])
def test_a_different_step_is_noticed(wrong):
    trainer, plain, batch = sides()
    wrong(plain)
    with pytest.raises(SystemExit, match="don't compute the same step"):
        train_step.same_step(trainer, plain, batch)


@pytest.mark.slow
def test_a_step_is_profiled():
    trainer, plain, batch = sides()
    for side in (trainer, plain):
        seconds = train_step.shares(lambda side=side: side.steps_on(batch))
        assert min(seconds.values()) > 0
