"""Training, evaluation and extraction of files run as on "cuda:0" without a GPU and never mix devices.

What depends on values runs on tiny data, computed on the CPU (benchmarks/fake_gpu.py).
"""
import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MODEL, ROOT
from planted_mixes import MIX, PLANTED

sys.path.insert(0, str(ROOT / "benchmarks"))
import fake_gpu
from fake_gpu import GPU

from egokit import tasks
from egokit.config.resolve import outputs_folder
from egokit.model import layers, weights
from egokit.runs.run_folder import Run
from egokit.train import evaluate, loop

CPU = torch.device("cpu")


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
    "ek100": ("toy/ek100_finetune", "train.precision=fp16 task.retrieval_loss=symmetric_multi_similarity"),
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


@PLANTED
def test_a_mix_in_training_on_files_is_found(monkeypatch, resolve, run, plant):
    plant(monkeypatch)
    config = resolve("toy/pretrain", f"{MODEL} init= data.workers=0 train.precision=fp16 train.evaluate_epochs=9")
    with fake_gpu.on_the_cpu(), pytest.raises(RuntimeError, match=MIX):
        fitted(config, run, GPU)


def numbers(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name != "seconds"}


@pytest.mark.parametrize("recipe", ["toy/egomcq", "toy/ek100_finetune", "toy/charades_finetune"])
def test_evaluation_of_files_mixes_no_devices(checkpoint, resolve, recipe):
    config = resolve(recipe, "data.limit=0 data.workers=0", run="random")
    half = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, precision="bf16"))
    expected, rows, _ = evaluate.evaluate(weights.initial_model(config), tasks.make(config))
    with fake_gpu.on_the_cpu():
        gpu_metrics, gpu_rows, _ = evaluate.evaluate(weights.initial_model(config).to(GPU), tasks.make(config))
        halved, *_ = evaluate.evaluate(weights.initial_model(half).to(GPU), tasks.make(half))
    for key in rows:
        assert np.allclose(rows[key], gpu_rows[key], atol=1e-5), key
    assert numbers(gpu_metrics) == pytest.approx(numbers(expected), abs=1e-6)
    assert halved.keys() == gpu_metrics.keys() and halved["samples"] == gpu_metrics["samples"]


def read(path: Path) -> np.ndarray:
    return torch.load(path).numpy() if path.suffix == ".pt" else np.load(path)["vector"].astype(np.float32)


@pytest.mark.parametrize("recipe", ["toy/egomq", "toy/search"])
def test_extraction_from_files_mixes_no_devices(checkpoint, resolve, tmp_path, recipe):
    config = resolve(recipe, "data.limit=2 data.workers=0", run="random")

    def extracted(side, device):
        metrics = tasks.make(config).extract(weights.initial_model(config).to(device).eval(), Run(tmp_path / side))
        files = [path for path in (tmp_path / side / "features").iterdir() if path.suffix in (".pt", ".npy")]
        return numbers(metrics), {path.name: read(path) for path in files}

    with fake_gpu.on_the_cpu():
        gpu_metrics, vectors = extracted("gpu", GPU)
    expected, cpu_vectors = extracted("cpu", CPU)
    assert gpu_metrics == expected and vectors and vectors.keys() == cpu_vectors.keys()
    for name in vectors:
        assert np.allclose(vectors[name], cpu_vectors[name], atol=1e-3)  # files hold float16: steps of 5e-4 below 1
