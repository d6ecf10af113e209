"""How far an evaluation in TF32, bf16 or fp16 is from float32's, without a GPU.

    python benchmarks/evaluation_precision.py [run]     (demo; it prints the tables of docs/gpu.md)

The run is one of notebook 02 on the embedded data set, under outputs/02_pretrain/. Its EgoMCQ, EK-100 and EgoMQ
features are computed in each precision of evaluate.precision. So are CLIPS clips of 4 frames and TEXTS texts by the
base model with random weights, in which all gates are open and time attention is not zero.

This is an emulation on a CPU. What a GPU computes in each precision is:
- tf32: factors of products and convolutions are rounded to 10 bits of mantissa; sums are float32. Here they are rounded
  before each product (`Tf32`), also in attention, which PyTorch's kernels compute more exactly.
- bf16, fp16: autocast rounds the factors and results of linear layers and convolutions; sums are float32. Here it is
  PyTorch's autocast of the CPU, with the rounding of a GPU's attention kernels (`attend`).
The order of a GPU's sums is not emulated, nor any kernel that rounds otherwise.

"Heads in float32" computes projections, poolers and the ITM head outside autocast: what that would gain.
"""
from __future__ import annotations

import contextlib
import dataclasses
import sys
import unittest.mock
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from train_step import base_model

from egokit import tasks
from egokit.config.resolve import resolve
from egokit.config.schema import Config, ModelConfig
from egokit.data.video.transforms import normalise
from egokit.model import cpu_fast_paths, weights
from egokit.model.dual import similarity
from egokit.model.egovlp import EgoVLP
from egokit.model.precision import autocast
from egokit.tasks import clip_features
from egokit.tasks.windows import embed_windows
from egokit.train import evaluate

CLIPS, TEXTS, CPU = 2, 6, torch.device("cpu")
HALF = ("bf16", "fp16")
PRECISIONS = ("tf32", *HALF)
aten = torch.ops.aten
FACTORS = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2), aten.convolution: (0, 1)}


def rounded_to_tf32(x: Tensor) -> Tensor:
    """Return float32 numbers rounded to the nearest with 10 bits of mantissa."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Tf32(TorchDispatchMode):
    """Rounds the factors of all products and convolutions of float32 tensors to TF32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        factors = FACTORS.get(func.overloadpacket, ())
        args = tuple(rounded_to_tf32(x.contiguous()) if place in factors and x.dtype == torch.float32 else x
                     for place, x in enumerate(args))
        return func(*args, **(kwargs or {}))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Return what `layers.attend` does, rounded as by a GPU's kernels.

    Those multiply factors in half precision, keep sums and softmax in float32, and round the weights, before they are
    divided by their sum, to half precision.
    """
    half = query.dtype
    with torch.autocast("cpu", enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        scores = scores if mask is None else scores + mask
        shares = (scores - scores.amax(-1, keepdim=True)).exp()
        return (shares.to(half).float() @ value / shares.sum(-1, keepdim=True)).to(half)


@contextlib.contextmanager
def as_on_a_gpu(precision: str) -> Iterator[None]:
    """Let the block's products round as a GPU's in this precision; the CPU's shortcuts are off."""
    with (unittest.mock.patch.multiple(cpu_fast_paths, _in_float32_inference=lambda x: False, attend=attend),
          Tf32() if precision == "tf32" else contextlib.nullcontext()):
        yield


@contextlib.contextmanager
def heads_in_float32(model: EgoVLP) -> Iterator[None]:
    """Compute projections, poolers and the ITM head outside autocast."""
    def exactly(module: nn.Module):
        def forward(x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return type(module).forward(module, x.float())
        return forward

    heads = [model.text_projection, model.video_projection, model.fusion_norm, model.text_transform,
             model.video_transform, model.text_pooler, model.video_pooler, model.itm_head]
    with contextlib.ExitStack() as stack:
        for head in heads:
            stack.enter_context(unittest.mock.patch.object(head, "forward", exactly(head)))
        yield


@torch.no_grad()
def of_base_model(model: EgoVLP, precision: str) -> list[dict[str, np.ndarray]]:
    """Return the base model's features, cosines and matching probabilities of random clips and texts.

    Once with its heads in this precision, once with the heads in float32; the rest is computed once for both.
    """
    torch.manual_seed(1)
    pictures = F.interpolate(torch.rand(CLIPS * 4, 3, 9, 9), 224, mode="bilinear")
    frames = normalise((255 * pictures).byte()).unflatten(0, (CLIPS, 4))
    ids = torch.randint(4, 50000, (TEXTS, 12))
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    clip, text = torch.arange(TEXTS) % CLIPS, torch.arange(TEXTS)
    both = []
    with as_on_a_gpu(precision), autocast(CPU, precision):
        video_BD, text_BD = model.video(frames), model.text(tokens)
        fused = model.fuse(model.fusion_trunk(frames)[clip], model.text_trunk(tokens)[text],
                           tokens["attention_mask"][text], 4, "itm")
        for heads in (contextlib.nullcontext, heads_in_float32):
            with heads(model):
                video_BE, text_BE = model.video_projection(video_BD).float(), model.text_projection(text_BD).float()
                probability = model.itm_from_states(*fused).float().softmax(-1)[:, 1]
            both.append({"features": video_BE.numpy(), "cosines": similarity(text_BE, video_BE).numpy(),
                         "probabilities": probability.numpy()})
    return both


def of_toy(run: str, precision: str, patched=contextlib.nullcontext) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the scores and features of the toy's evaluations, and their metrics."""
    def configured(recipe: str) -> Config:
        config = resolve(recipe, "toy", "data.workers=0", run)
        return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, precision=precision))

    out, metrics = {}, {}
    for recipe, names in (("toy/egomcq", ("dual", "fusion", "ensemble")), ("toy/ek100_finetune", ("mAP", "nDCG"))):
        task = tasks.make(configured(recipe))
        model = weights.initial_model(task.config).eval()
        with as_on_a_gpu(precision), patched(model):
            found, rows, prompts_KE = evaluate.evaluate(model, task)
        metrics |= {name: value for name, value in found.items() if name.startswith(names)}
        out |= {"EgoMCQ cosines": rows["dual"], "EgoMCQ probabilities": rows["fusion"]} if prompts_KE is None else \
            {"EK-100 cosines": task.score_matrix(rows, prompts_KE), "EK-100 features": rows["video"]}
    task = tasks.make(configured("toy/egomq"))
    model = weights.initial_model(task.config).eval()
    with as_on_a_gpu(precision), patched(model):
        features = [embed_windows(model, clip_features.ClipWindows(task, clip), "clip")[0]
                    for clip in task.clips()[:12]]
    return out | {"EgoMQ features": torch.cat(features).numpy()}, metrics


def deviations(name: str, value: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return how far each score is from float32's; of features, how far each row is, as a share of its norm."""
    if "features" in name:
        return np.linalg.norm(value - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    return np.abs(value - exact)


def table(of_precision: dict[str, dict[str, np.ndarray]]) -> None:
    """Print the largest and the mean deviation of everything in each precision."""
    exact, *others = of_precision
    print(f"| {'':22} | {' | '.join(f'{name:>22}' for name in others)} |")
    for name, value in of_precision[exact].items():
        cells = []
        for precision in others:
            apart = deviations(name, of_precision[precision][name], value)
            cells.append(f"{apart.max():.1e}, {apart.mean():.1e}")
        print(f"| {name:22} | {' | '.join(f'{cell:>22}' for cell in cells)} |")


def main(run: str) -> None:
    print(f"torch {torch.__version__}, emulated on a CPU; largest and mean deviation from float32")
    print("\nthe toy's model")
    scores, metrics = {}, {}
    for precision in ("fp32", *PRECISIONS):
        scores[precision], metrics[precision] = of_toy(run, precision)
    for precision in HALF:
        name = f"{precision}, heads fp32"
        scores[name], metrics[name] = of_toy(run, precision, heads_in_float32)
    table(scores)
    print(f"\n| {'':28} | {' | '.join(f'{name:>16}' for name in metrics)} |")
    for name in metrics["fp32"]:
        print(f"| {name:28} | {' | '.join(f'{found[name]:16.3f}' for found in metrics.values())} |")
    print(f"\nthe base model with random weights, {CLIPS} clips of 4 frames")
    model = base_model(ModelConfig(time_init="zero_output"), CPU).eval()
    scores, exact = {}, {}
    for precision in ("fp32", *PRECISIONS):
        scores[precision], exact[f"{precision}, heads fp32"] = of_base_model(model, precision)
    table(scores | {name: exact[name] for name in map("{}, heads fp32".format, HALF)})


if __name__ == "__main__":
    torch.set_num_threads(2)
    main((sys.argv[1:] or ["demo"])[0])

# Printed on a CPU of 2 cores by the demo's model (docs/gpu.md has the rest):
#
# torch 2.15.0+cu132, emulated on a CPU; largest and mean deviation from float32
#
# the toy's model
# | tf32 | bf16 | fp16 | bf16, heads fp32 | fp16, heads fp32
# EgoMCQ cosines | 5.5e-04, 9.1e-05 | 4.1e-03, 7.9e-04 | 5.7e-04, 1.0e-04 | 3.6e-03, 7.1e-04 | 5.2e-04, 9.1e-05
# EgoMCQ probabilities | 1.5e-03, 6.4e-05 | 1.2e-02, 6.0e-04 | 2.2e-03, 7.3e-05 | 1.3e-02, 5.8e-04 | 2.1e-03, 6.9e-05
# EK-100 cosines | 4.7e-04, 6.5e-05 | 4.1e-03, 6.0e-04 | 6.0e-04, 7.7e-05 | 4.1e-03, 5.5e-04 | 5.1e-04, 7.0e-05
# EK-100 features | 6.8e-04, 3.8e-04 | 6.7e-03, 3.6e-03 | 9.7e-04, 4.8e-04 | 5.8e-03, 2.7e-03 | 9.1e-04, 3.6e-04
# EgoMQ features | 7.4e-04, 3.3e-04 | 5.7e-03, 3.4e-03 | 1.0e-03, 4.3e-04 | 5.2e-03, 2.4e-03 | 9.6e-04, 3.0e-04
#
# the base model with random weights, 2 clips of 4 frames
# features | 8.6e-04, 8.4e-04 | 8.2e-03, 7.9e-03 | 9.6e-04, 9.6e-04 | 6.8e-03, 6.6e-03 | 8.2e-04, 8.2e-04
# cosines | 4.1e-05, 1.7e-05 | 4.3e-04, 1.8e-04 | 6.9e-05, 3.1e-05 | 2.4e-04, 1.4e-04 | 4.0e-05, 1.5e-05
# probabilities | 2.5e-05, 1.3e-05 | 4.3e-04, 3.2e-04 | 9.4e-05, 4.3e-05 | 6.3e-04, 2.7e-04 | 1.5e-04, 8.1e-05
