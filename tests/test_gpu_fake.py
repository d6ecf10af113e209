"""Devices, without a GPU: training and scoring run as on "cuda:0" and mix no tensors of two devices; planted mixes are found.

The full-size model runs on tensors without values, what depends on values on the tests' tiny data (benchmarks/fake_gpu.py).
"""
import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MODEL, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import fake_gpu
import train_step
from fake_gpu import GPU

from egokit import evaluate, inputs, losses, tasks, train, transforms
from egokit.config import Config, DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from egokit.loading import move
from egokit.model import EgoVLP, autocast
from egokit.resolve import outputs_folder
from egokit.runs import Run
from egokit.tasks import windows
from egokit.tasks.base import embed_texts
from egokit.tasks.charades import CharadesEgo
from egokit.tasks.egoclip import EgoClip
from egokit.tasks.egomcq import EgoMCQ
from egokit.tasks.ek100 import EK100
from egokit.tasks.mq import EgoMQ

CPU = torch.device("cpu")
TRAINED = {"egoclip": (EgoClip, 4), "ek100": (EK100, 16), "charades": (CharadesEgo, 32)}  # frames of a clip, as in params/
MIX = "on the same device|two devices"


# The full-size model, without values

def batch_of(task: str, clips: int, model: ModelConfig) -> dict:
    batch = train_step.synthetic_batch(clips, model)
    if task == "egoclip":
        return batch
    return {key: batch[key] for key in ("video", "tokens")} | {"index": torch.arange(clips), "relevancy": torch.rand(clips)}


def trained(name: str, precision: str = "fp16", in_parts: bool = False, checkpointing: bool = False) -> fake_gpu.NoValues:
    """A step of the full-size model on four clips, at once or two at a time; returns the mode, which knows what was waited for."""
    task, frames = TRAINED[name]
    samples = 4 // task.clips_in_sample
    micro_batch = samples // 2 if in_parts else 0
    config = Config(task=name, model=ModelConfig(frames=frames, checkpointing=checkpointing), data=DataConfig(frames=frames),
                    train=TrainConfig(precision=precision, batch_size=samples, micro_batch=micro_batch, log_steps=train_step.ENDLESS))
    with fake_gpu.without_values() as mode:
        trainer = train_step.Trainer(config, GPU, train_step.without_files(task))
        batch = batch_of(name, 4, config.model)
        mode.waits.clear()
        trainer.steps_on(batch)
    assert trainer.step == 1
    return mode


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("in_parts", [False, True], ids=["one piece", "micro-batches"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("task", TRAINED)
def test_a_full_size_step_mixes_no_devices(task, precision, in_parts, checkpointing):
    trained(task, precision, in_parts, checkpointing)


def words(texts: list[str], longest: int) -> dict:
    ids = torch.full((len(texts), longest), 5)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def scoring(monkeypatch):
    """(task class, precision) -> the task with attributes of its own and the full-size model, both on the GPU, inside `without_values`."""
    monkeypatch.setattr(inputs, "load_tokenizer", lambda source: words)

    def made(task, precision, **attributes):
        model = EgoVLP(ModelConfig(frames=16)).to(GPU).eval()
        config = Config(model=model.config, data=DataConfig(workers=0), evaluate=EvaluateConfig(precision=precision, batch_size=4))
        one = train_step.without_files(task)(config)
        vars(one).update(attributes)
        return one, model
    return made


def clips_of(count: int) -> dict:
    return {"video": torch.zeros(count, 16, 3, 224, 224, dtype=torch.uint8), "index": torch.arange(count)}


PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])


@PRECISIONS
@torch.no_grad()
def test_full_size_egomcq_mixes_no_devices(scoring, precision):
    with fake_gpu.without_values():
        task, model = scoring(EgoMCQ, precision, texts=["a", "b"], pairs_of={0: [0, 6], 1: [3], 2: []})
        with autocast(GPU, precision):
            rows = task.score(model, move(clips_of(3), GPU))
    assert rows["dual"].shape == rows["fusion"].shape == (3,) and rows["index"].tolist() == [0, 3, 6]


@PRECISIONS
@pytest.mark.parametrize("task", [EK100, CharadesEgo])
@torch.no_grad()
def test_full_size_retrieval_mixes_no_devices(scoring, task, precision):
    with fake_gpu.without_values():
        task, model = scoring(task, precision)
        with autocast(GPU, precision):
            assert task.score(model, move(clips_of(2), GPU))["video"].shape == (2, 4096)
            assert embed_texts(model, ["a", "b", "c"], 30).shape == (3, 4096)


class TwoBatches(windows.Windows):
    """Three windows of a video, that of EgoMQ or of search."""
    seconds = 6.0

    def read(self, index: int, rng) -> dict:
        return {"video": clips_of(max(0, 2 - index))["video"] if index < 2 else torch.empty(0), "seconds": self.seconds}


@PRECISIONS
def test_full_size_extraction_mixes_no_devices(scoring, precision):
    with fake_gpu.without_values():
        task, model = scoring(EgoMQ, precision)
        vectors, seconds = windows.embed(model, TwoBatches(task, Path("clip.mp4"), 2), "clip")
        assert vectors.shape == (3, 4096) and vectors.device == CPU and seconds == 6.0


# Planted mixes

def cpu_mean(monkeypatch):
    def normalise(frames):
        mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (transforms.MEAN, transforms.STD))
        return (frames.float() - mean) / std
    for module in [module for name, module in sys.modules.items() if name.startswith("egokit.") and hasattr(module, "normalise")]:
        monkeypatch.setattr(module, "normalise", normalise)


def cpu_labels(monkeypatch):
    plain = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda logits, labels, **rest: plain(logits, labels.cpu(), **rest))


def cpu_positives(monkeypatch):
    plain = losses.positives
    monkeypatch.setattr(losses, "positives", lambda verbs, nouns: plain(verbs, nouns).cpu())


@pytest.mark.parametrize("plant", [cpu_mean, cpu_labels, cpu_positives])
def test_a_mix_in_a_full_size_step_is_found(monkeypatch, plant):
    plant(monkeypatch)
    with pytest.raises(RuntimeError, match=MIX):
        trained("egoclip")


def test_a_mix_in_full_size_scoring_is_found(monkeypatch, scoring):
    cpu_mean(monkeypatch)
    with pytest.raises(RuntimeError, match=MIX):
        test_full_size_extraction_mixes_no_devices(scoring, "fp32")


# What depends on values: tiny data, computed on the CPU

@pytest.fixture
def run(project, request):
    return Run(outputs_folder() / "tests" / request.node.name.replace("[", "-").replace("]", ""))


def fitted(config, run, device) -> list[dict]:
    """Events of the log of a training from start to end, with validation and checkpoints."""
    run.path.mkdir(parents=True, exist_ok=True)
    train.train(config, tasks.make(config), run, "train", device)
    return run.read_log()


def losses_of(events) -> list[float]:
    return [event["loss"] for event in events if event["kind"] == "step"]


FITTED = {
    "pretrain": ("toy/pretrain", "train.precision=fp16"),
    "pretrain in micro-batches": ("toy/pretrain", "train.precision=fp16 train.micro_batch=2 model.checkpointing=true model.dropout=0.1"),
    "ek100": ("toy/ek100_finetune", "train.precision=fp16 train.retrieval_loss=symmetric_multi_similarity"),
    "charades": ("toy/charades_finetune", "train.precision=bf16 train.micro_batch=3 model.checkpointing=true"),
}


@pytest.mark.parametrize("name", FITTED)
def test_training_on_files_mixes_no_devices(monkeypatch, resolve, run, name):
    """The losses are the CPU's in float32, to rounding; a run resumed from a checkpoint, whose tensors are plain ones, ends the same."""
    recipe, overrides = FITTED[name]
    config = resolve(recipe, f"{MODEL} init= data.workers=0 model.dropout=0 train.evaluate_epochs=1 train.checkpoint_steps=1 {overrides}")
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**10))  # no step is skipped
    with fake_gpu.on_the_cpu():
        found = losses_of(fitted(config, run, GPU))
        sorted(run.checkpoints.glob("step-*.pt"))[-1].unlink()
        assert losses_of(fitted(config, run, GPU)) == found and len(found) > 1
    if config.model.dropout == 0:
        exact = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp32"))
        assert found == pytest.approx(losses_of(fitted(exact, Run(run.path / "cpu"), CPU)), rel=0.01)


@pytest.mark.parametrize("recipe", ["toy/egomcq", "toy/ek100_finetune", "toy/charades_finetune"])
def test_evaluation_of_files_mixes_no_devices(checkpoint, resolve, recipe):
    config = resolve(recipe, "data.limit=0 data.workers=0", run="random")
    expected, rows, _ = evaluate.evaluate(train.initial_model(config), tasks.make(config))
    with fake_gpu.on_the_cpu():
        found, gpu_rows, _ = evaluate.evaluate(train.initial_model(config).to(GPU), tasks.make(config))
        half = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, precision="bf16"))
        halved, *_ = evaluate.evaluate(train.initial_model(half).to(GPU), tasks.make(half))
    for key in rows:
        assert np.allclose(rows[key], gpu_rows[key], atol=1e-5), key
    assert {name: value for name, value in found.items() if name != "seconds"} == pytest.approx(
        {name: value for name, value in expected.items() if name != "seconds"}, abs=1e-6)
    assert halved.keys() == found.keys() and halved["samples"] == found["samples"]


@pytest.mark.parametrize("recipe", ["toy/egomq_features", "toy/search"])
def test_extraction_from_files_mixes_no_devices(checkpoint, resolve, tmp_path, recipe):
    config = resolve(recipe, "data.limit=2 data.workers=0", run="random")

    def extracted(folder, device):
        return tasks.make(config).extract(train.initial_model(config).to(device).eval(), Run(folder))
    with fake_gpu.on_the_cpu():
        found = extracted(tmp_path / "gpu", GPU)
    expected = extracted(tmp_path / "cpu", CPU)
    assert {key: value for key, value in found.items() if key != "seconds"} == {
        key: value for key, value in expected.items() if key != "seconds"}
    files = sorted(path.name for path in (tmp_path / "cpu/features").iterdir() if path.suffix in (".pt", ".npy"))
    assert files
    for name in files:
        one, other = (read(tmp_path / side / "features" / name) for side in ("cpu", "gpu"))
        assert np.allclose(one, other, atol=1e-4)


def read(path: Path) -> np.ndarray:
    if path.suffix == ".pt":
        return torch.load(path).numpy()
    return np.load(path)["vector"].astype(np.float32)


@pytest.mark.parametrize("plant", [cpu_mean, cpu_labels, cpu_positives])
def test_a_mix_in_training_on_files_is_found(monkeypatch, resolve, run, plant):
    plant(monkeypatch)
    config = resolve("toy/pretrain", f"{MODEL} init= data.workers=0 train.precision=fp16 train.evaluate_epochs=9")
    with fake_gpu.on_the_cpu(), pytest.raises(RuntimeError, match=MIX):
        fitted(config, run, GPU)


def test_a_gpus_tensor_is_no_array():
    for somewhere in (fake_gpu.without_values, fake_gpu.on_the_cpu):
        with somewhere():
            assert torch.ones(2, device=GPU).numpy(force=True).shape == (2,)
            with pytest.raises(TypeError, match="can't convert cuda:0"):
                torch.ones(2, device=GPU).numpy()
