"""Training of a task's own modules alone, on stored features: checkpoints, averaged weights, the last validation."""
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import egokit
from egokit.config.build import ConfigError
from egokit.config.resolve import resolve as resolve_recipe
from egokit.model import feature_model
from egokit.model.checkpoints import WeightsError
from egokit.model.own_modules import attach
from egokit.runs.run_folder import Run
from egokit.tasks import Samples, Task
from egokit.train.loop import Trainer, train
from egokit.train.weight_average import WeightAverage

CPU = torch.device("cpu")
SETTINGS = ("train.epochs=6 train.batch_size=4 train.precision=fp32 optim.lr=0.05 optim.warmup_epochs=0 "
            "optim.head_lr_scale=1 data.workers=0 init= train.checkpoint_steps=1")


class Numbers(Samples):
    """Vectors, and on which side of a plane they lie."""

    def read(self, index, rng):
        return {"video": torch.from_numpy(np.random.default_rng(index).normal(size=8).astype(np.float32)),
                "index": index}


class Sides(Task):
    """A linear head on vectors; no encoder is built, and the site needs no tokenizer."""
    reports_last = True
    best = "accuracy"

    @classmethod
    def encodes(cls, action):
        return False

    def initial_model(self, action):
        return feature_model.FeatureModel()

    def head(self, model):
        return nn.Linear(8, 1)

    def dataset(self, split):
        return Numbers(16, self.config.seed, split == "train")

    def loss(self, model, batch, step):
        target = (batch["video"].sum(1) > 0).float()
        return {"bce": nn.functional.binary_cross_entropy_with_logits(model.head(batch["video"])[:, 0], target)}

    def score_batch(self, model, batch):
        right = (model.head(batch["video"])[:, 0] > 0) == (batch["video"].sum(1) > 0)
        return {"index": batch["index"].numpy(), "right": right.numpy()}

    def metrics(self, rows, prompts_KE):
        return {"accuracy": 100 * float(rows["right"].mean())}


def settings(overrides=""):
    return dataclasses.replace(resolve_recipe("toy/pretrain", overrides=f"{SETTINGS} {overrides}"))


def sections(tmp_path, overrides="", name="run"):
    run = Run(tmp_path / name)
    run.path.mkdir(exist_ok=True)
    config = settings(overrides)
    return run, Sides(config), train(config, Sides(config), run, "train", CPU)


def test_a_head_is_trained_without_encoders_and_its_checkpoint_says_so(tmp_path):
    run, task, result = sections(tmp_path)
    assert result["accuracy"] >= 90 and result["step"] == 24
    model = feature_model.load(run.path)
    assert attach(model, task) == [] and [*model.state_dict()] == ["head.weight", "head.bias"]
    with pytest.raises(WeightsError, match=r"task's own modules alone \(head.bias, head.weight\).*task.head_init"):
        egokit.load(run.path)
    with pytest.raises(WeightsError, match=r"no checkpoint of a head.*\[\]|no checkpoint of a head"):
        path = tmp_path / "encoders.pt"
        torch.save({"state_dict": {"video.weight": torch.ones(2)}}, path)
        feature_model.load(path)


def test_the_last_validation_is_the_result_and_the_best_one_beside_it(tmp_path, monkeypatch):
    scores = iter([10.0, 50.0, 90.0, 70.0, 60.0, 40.0, 30.0])
    monkeypatch.setattr(Sides, "metrics", lambda self, rows, prompts: {"accuracy": next(scores)})
    result = sections(tmp_path)[2]
    assert (result["accuracy"], result["step"]) == (30.0, 24)
    assert (result["accuracy_of_best_validation"], result["best_validation_step"]) == (90.0, 8)


def test_validation_and_best_pt_have_the_averaged_weights(tmp_path):
    """The average of a naive twin, which sees the weights of every step."""
    seen = []

    class Watched(Sides):
        def watched(self, model):
            seen.append(model.head.weight.detach().clone())
            return {}
    run, config = Run(tmp_path / "run"), settings("train.ema_decay=0.8 train.log_steps=1")
    trainer_start = Trainer(config, Watched(config), run, "train", CPU).model.head.weight.detach().clone()
    train(config, Watched(config), run, "train", CPU)
    mean = trainer_start
    for step, weight in enumerate(seen, 1):
        decay = min(0.8, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
    best = feature_model.load(run.path / "checkpoints/best.pt").state_dict()["head.weight"]
    assert torch.allclose(best, mean, atol=1e-6) and not torch.allclose(best, seen[-1], atol=1e-3)
    newest = feature_model.load(run.path / "checkpoints/step-0000024.pt").state_dict()["head.weight"]
    assert torch.equal(newest, seen[-1])  # a step's checkpoint goes on with the weights themselves


def test_an_interrupted_run_goes_on_with_the_same_average(tmp_path):
    whole, _, _ = sections(tmp_path, "train.ema_decay=0.9", "whole")
    run, _, _ = sections(tmp_path, "train.ema_decay=0.9", "cut")
    for path in (run.path / "checkpoints").glob("*.pt"):
        if path.name != "step-0000023.pt":
            path.unlink()
    config = settings("train.ema_decay=0.9")
    train(config, Sides(config), run, "train", CPU)
    first, second = (feature_model.load(each.path / "checkpoints/best.pt").state_dict() for each in (whole, run))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_no_average_without_a_decay_and_none_of_other_parameters():
    model = nn.Linear(2, 2)
    none = WeightAverage(model, 0.0)
    none.update(1)
    with none.in_place():
        assert none.state_dict() == {}
    with pytest.raises(ValueError, match=r"train\.ema_decay"):
        none.load_state_dict({"weight": torch.ones(2, 2)})


def test_compile_needs_encoders(tmp_path):
    config = settings("train.compile=true")
    with pytest.raises(ConfigError, match=r"train\.compile=false"):
        Trainer(config, Sides(config), Run(tmp_path), "train", CPU)
