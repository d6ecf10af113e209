"""The full-size model's training and scoring run as on "cuda:0" without a GPU and never mix devices.

Its tensors have no values (benchmarks/fake_gpu.py); test_gpu_fake_files.py runs what depends on values.
Planted mixes of devices are found.
"""
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from planted_mixes import MIX, PLANTED, mean_on_the_cpu

sys.path.insert(0, str(ROOT / "benchmarks"))
import fake_gpu
import train_step
from fake_gpu import GPU

from egokit.config.schema import Config, DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from egokit.data.loader import move_to_device
from egokit.model import input_checks
from egokit.model.dual import embed_texts
from egokit.model.egovlp import EgoVLP
from egokit.model.precision import autocast
from egokit.tasks import windows
from egokit.tasks.charades import CharadesEgo
from egokit.tasks.egoclip import EgoClip
from egokit.tasks.egomcq import EgoMCQ
from egokit.tasks.ek100 import EK100
from egokit.tasks.mq import EgoMQ

CPU = torch.device("cpu")
TRAINED = {"egoclip": (EgoClip, 4), "ek100": (EK100, 16), "charades": (CharadesEgo, 32)}  # frames, as in params/
# in a step in one piece the CPU waits to count masked words, and for the norm
MOST_WAITS = {"egoclip": 2, "ek100": 1, "charades": 1}


# The full-size model, without values

def batch_of(task: str, clips: int, model: ModelConfig) -> dict:
    batch = train_step.synthetic_batch(clips, model)
    if task == "egoclip":
        return batch
    numbers = {"index": torch.arange(clips), "relevancy": torch.rand(clips)}
    return {key: batch[key] for key in ("video", "tokens")} | numbers


def full_size_step(name: str, precision: str = "fp16", in_parts: bool = False, checkpointing: str = "none") -> list:
    """Train the full-size model for a step on four clips; return what the CPU waited for.

    Clips are computed at once, or two at a time.
    """
    task, frames = TRAINED[name]
    samples = 4 // task.clips_per_sample
    recipe = TrainConfig(precision=precision, batch_size=samples, micro_batch=samples // 2 if in_parts else 0,
                         log_steps=train_step.ENDLESS)
    model = ModelConfig(frames=frames, checkpointing=checkpointing)
    config = Config(task=task.Params(name=name), model=model, data=DataConfig(frames=frames), train=recipe)
    with fake_gpu.without_values() as mode:
        trainer = train_step.Trainer(config, GPU, task=train_step.without_files(task))
        batch = batch_of(name, 4, model)
        mode.waits.clear()
        trainer.steps_on(batch)
    assert trainer.step == 1
    return mode.waits


@pytest.mark.parametrize("checkpointing", ["none", "cheap", "full"])
@pytest.mark.parametrize("in_parts", [pytest.param(False, id="whole"),
                                      pytest.param(True, id="micro-batches", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("task", TRAINED)
def test_a_full_size_step_mixes_no_devices(task, precision, in_parts, checkpointing):
    waits = full_size_step(task, precision, in_parts, checkpointing)
    assert in_parts or len(waits) <= MOST_WAITS[task], waits


def words(texts: list[str], longest: int) -> dict:
    ids = torch.full((len(texts), longest), 5)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def full_size(monkeypatch):
    """Give a function that makes a task without files and the full-size model on the GPU.

    Its arguments are the task's class, the precision, and attributes of the task.
    """
    monkeypatch.setattr(input_checks, "load_tokenizer", lambda source: words)

    def made(task, precision, **attributes):
        model = EgoVLP(ModelConfig(frames=16)).to(GPU).eval()
        config = Config(task=task.Params(), model=model.config, data=DataConfig(workers=0),
                        evaluate=EvaluateConfig(batch_size=4, precision=precision))
        made_task = train_step.without_files(task)(config)
        vars(made_task).update(attributes)
        return made_task, model
    return made


def clips(count: int) -> dict:
    return {"video": torch.zeros(count, 16, 3, 224, 224, dtype=torch.uint8), "index": torch.arange(count)}


PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])


@PRECISIONS
@torch.no_grad()
def test_full_size_egomcq_mixes_no_devices(full_size, precision):
    with fake_gpu.without_values():
        task, model = full_size(EgoMCQ, precision, texts=["a", "b"], pairs_of={0: [0, 6], 1: [3], 2: []})
        with autocast(GPU, precision):
            rows = task.score_batch(model, move_to_device(clips(3), GPU))
    assert rows["dual"].shape == rows["fusion"].shape == (3,) and rows["index"].tolist() == [0, 3, 6]


@PRECISIONS
@pytest.mark.parametrize("task", [EK100, CharadesEgo])
@torch.no_grad()
def test_full_size_retrieval_mixes_no_devices(full_size, task, precision):
    with fake_gpu.without_values():
        task, model = full_size(task, precision)
        with autocast(GPU, precision):
            assert task.score_batch(model, move_to_device(clips(2), GPU))["video"].shape == (2, 4096)
            assert embed_texts(model, ["a", "b", "c"], 30).shape == (3, 4096)


class ThreeWindows(windows.Windows):
    """Three windows of a video, two to an item, as EgoMQ and search have them."""

    def read(self, index: int, rng) -> dict:
        return {"video": clips(2 - index)["video"] if index < 2 else torch.empty(0), "read": {"seconds": 6.0}}


@PRECISIONS
def test_full_size_extraction_mixes_no_devices(full_size, precision):
    with fake_gpu.without_values():
        task, model = full_size(EgoMQ, precision)
        vectors, read = windows.embed_windows(model, ThreeWindows(task, Path("clip.mp4"), 2), "clip")
        assert vectors.shape == (3, 4096) and vectors.device == CPU and read["seconds"] == 6.0


# Planted mixes

@PLANTED
def test_a_mix_in_a_full_size_step_is_found(monkeypatch, plant):
    plant(monkeypatch)
    with pytest.raises(RuntimeError, match=MIX):
        full_size_step("egoclip")


def test_a_mix_in_full_size_scoring_is_found(monkeypatch, full_size):
    mean_on_the_cpu(monkeypatch)
    with pytest.raises(RuntimeError, match=MIX):
        test_full_size_extraction_mixes_no_devices(full_size, "fp32")


@pytest.mark.parametrize("somewhere", [fake_gpu.without_values, fake_gpu.on_the_cpu])
def test_mixes_are_refused_as_on_a_gpu(somewhere):
    with somewhere():
        x, on_cpu, place = torch.ones(2, device=GPU), torch.ones(2), torch.tensor([1])
        assert (x + torch.tensor(1.0)).device == x[place].device == GPU  # a number and an index may be the CPU's
        assert x.numpy(force=True).shape == (2,) and x.cpu().device == CPU
        mixes = [lambda: x + on_cpu, lambda: on_cpu[place.to(GPU)], lambda: on_cpu.add_(x),
                 lambda: torch.cat([x, on_cpu])]
        for mix in mixes:
            with pytest.raises(RuntimeError, match=MIX):
                mix()
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            x.numpy()
