"""Training and scoring run as on "cuda:0" without a GPU and never mix devices.

The full-size model runs on tensors without values; what depends on values runs on tiny data (benchmarks/fake_gpu.py).
Planted mixes of devices are found.
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

from egokit import tasks
from egokit.config.resolve import outputs_folder
from egokit.config.schema import Config, DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from egokit.data.loader import move_to_device
from egokit.data.video import transforms
from egokit.model import input_checks, layers
from egokit.model.egovlp import EgoVLP, autocast, embed_texts
from egokit.runs.run_folder import Run
from egokit.tasks import losses, windows
from egokit.tasks.charades import CharadesEgo
from egokit.tasks.egoclip import EgoClip
from egokit.tasks.egomcq import EgoMCQ
from egokit.tasks.ek100 import EK100
from egokit.tasks.mq import EgoMQ
from egokit.train import evaluate, loop

CPU = torch.device("cpu")
TRAINED = {"egoclip": (EgoClip, 4), "ek100": (EK100, 16), "charades": (CharadesEgo, 32)}  # frames, as in params/
# in a step in one piece the CPU waits to count masked words, to read what pairs are drawn from (twice), for the norm
MOST_WAITS = {"egoclip": 4, "ek100": 1, "charades": 1}
MIX = r"on the same device|two (different )?devices"


# The full-size model, without values

def batch_of(task: str, clips: int, model: ModelConfig) -> dict:
    batch = train_step.synthetic_batch(clips, model)
    if task == "egoclip":
        return batch
    numbers = {"index": torch.arange(clips), "relevancy": torch.rand(clips)}
    return {key: batch[key] for key in ("video", "tokens")} | numbers


def full_size_step(name: str, precision: str = "fp16", in_parts: bool = False, checkpointing: bool = False) -> list:
    """Train the full-size model for a step on four clips; return what the CPU waited for.

    Clips are computed at once, or two at a time.
    """
    task, frames = TRAINED[name]
    samples = 4 // task.clips_per_sample
    recipe = TrainConfig(precision=precision, batch_size=samples, micro_batch=samples // 2 if in_parts else 0,
                         log_steps=train_step.ENDLESS)
    model = ModelConfig(frames=frames, checkpointing=checkpointing)
    config = Config(task=name, model=model, data=DataConfig(frames=frames), train=recipe)
    with fake_gpu.without_values() as mode:
        trainer = train_step.Trainer(config, GPU, task=train_step.without_files(task))
        batch = batch_of(name, 4, model)
        mode.waits.clear()
        trainer.steps_on(batch)
    assert trainer.step == 1
    return mode.waits


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
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
        config = Config(model=model.config, data=DataConfig(workers=0), evaluate=EvaluateConfig(4, precision))
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
        return {"video": clips(2 - index)["video"] if index < 2 else torch.empty(0), "seconds": 6.0}


@PRECISIONS
def test_full_size_extraction_mixes_no_devices(full_size, precision):
    with fake_gpu.without_values():
        task, model = full_size(EgoMQ, precision)
        vectors, seconds = windows.embed_windows(model, ThreeWindows(task, Path("clip.mp4"), 2), "clip")
        assert vectors.shape == (3, 4096) and vectors.device == CPU and seconds == 6.0


# Planted mixes

def mean_on_the_cpu(monkeypatch):
    def normalise(frames):
        mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (transforms.MEAN, transforms.STD))
        return (frames.float() - mean) / std

    for name, module in list(sys.modules.items()):
        if name.startswith("egokit.") and hasattr(module, "normalise"):
            monkeypatch.setattr(module, "normalise", normalise)


def labels_on_the_cpu(monkeypatch):
    plain = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy",
                        lambda logits, labels, **options: plain(logits, labels.cpu(), **options))


def positives_on_the_cpu(monkeypatch):
    plain = losses.positives
    monkeypatch.setattr(losses, "positives", lambda verbs, nouns: plain(verbs, nouns).cpu())


PLANTED = pytest.mark.parametrize("plant", [mean_on_the_cpu, labels_on_the_cpu, positives_on_the_cpu])


@PLANTED
def test_a_mix_in_a_full_size_step_is_found(monkeypatch, plant):
    plant(monkeypatch)
    with pytest.raises(RuntimeError, match=MIX):
        full_size_step("egoclip")


def test_a_mix_in_full_size_scoring_is_found(monkeypatch, full_size):
    mean_on_the_cpu(monkeypatch)
    with pytest.raises(RuntimeError, match=MIX):
        test_full_size_extraction_mixes_no_devices(full_size, "fp32")


@PLANTED
def test_a_mix_in_training_on_files_is_found(monkeypatch, resolve, run, plant):
    plant(monkeypatch)
    config = resolve("toy/pretrain", f"{MODEL} init= data.workers=0 train.precision=fp16 train.evaluate_epochs=9")
    with fake_gpu.on_the_cpu(), pytest.raises(RuntimeError, match=MIX):
        fitted(config, run, GPU)


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


# What depends on values: tiny data, computed on the CPU

@pytest.mark.parametrize("mask", [None, "one for all", "one each"])
def test_attention_of_many_groups_is_split(monkeypatch, mask):
    """A GPU's attention kernels take 65,535 groups at once: parts give what the whole gives."""
    monkeypatch.setattr(layers, "MOST_ITEMS", 3)
    torch.manual_seed(0)
    query, key, value = (torch.randn(8, 2, n, 4, requires_grad=True) for n in (3, 5, 5))
    masks = {None: None, "one for all": torch.randn(1, 1, 1, 5), "one each": torch.randn(8, 1, 1, 5)}[mask]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=masks)
    gradients = torch.autograd.grad(expected.square().sum(), (query, key, value))
    sizes, plain = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention",
                        lambda query, *args, **options: sizes.append(len(query)) or plain(query, *args, **options))
    with fake_gpu.on_the_cpu():
        on_gpu = [x.detach().to(GPU).requires_grad_() for x in (query, key, value)]
        out = layers.attend(*on_gpu, None if masks is None else masks.to(GPU))
        gpu_gradients = torch.autograd.grad(out.square().sum(), on_gpu)
        assert torch.allclose(out.cpu(), expected, atol=1e-6) and sizes == [3, 3, 2]
        for gradient, expected_gradient in zip(gpu_gradients, gradients, strict=True):
            assert torch.allclose(gradient.cpu(), expected_gradient, atol=1e-5)


@pytest.fixture
def run(project, request):
    return Run(outputs_folder() / "tests" / request.node.name.replace("[", "-").replace("]", ""))


def fitted(config, run, device) -> list[float]:
    """Train to the end, with validation and checkpoints; return the losses of the steps."""
    run.path.mkdir(parents=True, exist_ok=True)
    loop.train(config, tasks.make(config), run, "train", device)
    return [event["loss"] for event in run.read_log() if event["kind"] == "step"]


IN_PARTS = "model.checkpointing=true train.micro_batch"
FITTED = {
    "pretrain": ("toy/pretrain", "train.precision=fp16"),
    "pretrain in micro-batches": ("toy/pretrain", f"train.precision=fp16 model.dropout=0.1 {IN_PARTS}=4"),
    "ek100": ("toy/ek100_finetune", "train.precision=fp16 train.retrieval_loss=symmetric_multi_similarity"),
    "charades": ("toy/charades_finetune", f"train.precision=bf16 {IN_PARTS}=3"),
}


@pytest.mark.parametrize("name", FITTED)
def test_training_on_files_mixes_no_devices(monkeypatch, resolve, run, name):
    """Losses are the CPU's in float32, to rounding; a resumed run ends the same.

    Checkpoints hold plain tensors.
    """
    recipe, overrides = FITTED[name]
    config = resolve(recipe, f"{MODEL} init= data.workers=0 model.dropout=0 train.checkpoint_steps=1 {overrides}")
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**10)  # so that no step is skipped
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    with fake_gpu.on_the_cpu():
        losses_on_gpu = fitted(config, run, GPU)
        sorted(run.checkpoints.glob("step-*.pt"))[-1].unlink()
        assert fitted(config, run, GPU) == losses_on_gpu and len(losses_on_gpu) > 1
    if config.model.dropout == 0:
        exact = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp32"))
        assert losses_on_gpu == pytest.approx(fitted(exact, Run(run.path / "cpu"), CPU), rel=0.01)


def numbers(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name != "seconds"}


@pytest.mark.parametrize("recipe", ["toy/egomcq", "toy/ek100_finetune", "toy/charades_finetune"])
def test_evaluation_of_files_mixes_no_devices(checkpoint, resolve, recipe):
    config = resolve(recipe, "data.limit=0 data.workers=0", run="random")
    half = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, precision="bf16"))
    expected, rows, _ = evaluate.evaluate(loop.initial_model(config), tasks.make(config))
    with fake_gpu.on_the_cpu():
        gpu_metrics, gpu_rows, _ = evaluate.evaluate(loop.initial_model(config).to(GPU), tasks.make(config))
        halved, *_ = evaluate.evaluate(loop.initial_model(half).to(GPU), tasks.make(half))
    for key in rows:
        assert np.allclose(rows[key], gpu_rows[key], atol=1e-5), key
    assert numbers(gpu_metrics) == pytest.approx(numbers(expected), abs=1e-6)
    assert halved.keys() == gpu_metrics.keys() and halved["samples"] == gpu_metrics["samples"]


def read(path: Path) -> np.ndarray:
    return torch.load(path).numpy() if path.suffix == ".pt" else np.load(path)["vector"].astype(np.float32)


@pytest.mark.parametrize("recipe", ["toy/egomq_features", "toy/search"])
def test_extraction_from_files_mixes_no_devices(checkpoint, resolve, tmp_path, recipe):
    config = resolve(recipe, "data.limit=2 data.workers=0", run="random")

    def extracted(side, device):
        metrics = tasks.make(config).extract(loop.initial_model(config).to(device).eval(), Run(tmp_path / side))
        files = [path for path in (tmp_path / side / "features").iterdir() if path.suffix in (".pt", ".npy")]
        return numbers(metrics), {path.name: read(path) for path in files}

    with fake_gpu.on_the_cpu():
        gpu_metrics, vectors = extracted("gpu", GPU)
    expected, cpu_vectors = extracted("cpu", CPU)
    assert gpu_metrics == expected and vectors and vectors.keys() == cpu_vectors.keys()
    for name in vectors:
        assert np.allclose(vectors[name], cpu_vectors[name], atol=1e-4)
