"""Stages that measure time; nothing may run beside them.

    python -m gpu_day.speed STAGE      STAGE: card step divided_layers attention large_batch
                                       encode profile compiled compiled_sdpa

Those of the card, the training step and its profile are here; attention_speed.py, encoding_speed.py
and large_batch.py have the others.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import platform
import unittest.mock
from collections.abc import Iterator

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(os.cpu_count()))
import torch
import train_step
from gpu_day.attention_speed import attention, divided_layers
from gpu_day.common import (
    COMPILER,
    COPIES,
    DEVICE,
    HALF,
    OUT,
    REHEARSAL,
    SHAPE,
    check,
    clock,
    forget,
    measured,
    note,
    peak_gib,
    reason,
    run,
    wait,
)
from gpu_day.encoding_speed import encode
from gpu_day.large_batch import large_batch
from gpu_day.largest_batch import find_largest, largest_batch, ran_out_of_memory
from torch.utils.flop_counter import FlopCounterMode

from egokit.config.schema import ModelConfig
from egokit.model.egovlp import EgoVLP
from egokit.model.precision import float32_products
from egokit.train import compiled as compilation
from egokit.train import step as steps

PRODUCTS = "Products of two square matrices"  # titles of tables that several functions use
STEPS, WORK = "Training step", "Arithmetic of a training step"


# the card

def card() -> None:
    """Note what is installed, and the two ceilings: the speed of products, and of memory."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    memory = torch.cuda.get_device_properties(DEVICE).total_memory / 2**30 if DEVICE.type == "cuda" else 0.0
    note("Machine", card=name, memory_gib=memory, torch=torch.__version__, cuda=torch.version.cuda,
         cudnn=torch.backends.cudnn.version(), python=platform.python_version(), cores=os.cpu_count())
    size, float32 = 256 if REHEARSAL else 8192, torch.float32
    for precision, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": float32, "tf32": float32}.items():
        with float32_products(DEVICE, tf32=precision == "tf32"):
            a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
            note(PRODUCTS, precision=precision, size=size, tflop_s=2 * size**3 / clock(lambda a=a, b=b: a @ b) / 1e9)
    source = torch.randn(2**20 if REHEARSAL else 2**30, device=DEVICE)
    target = torch.empty_like(source)
    note(COPIES, what="copy, read and written", tb_s=2 * source.nbytes / clock(lambda: target.copy_(source)) / 1e9)
    for module in ("av", "submitit", "pandas", "transformers", "tokenizers", "timm", "pytest"):
        try:
            check("Packages", True, module=module, version=getattr(importlib.import_module(module), "__version__", "?"))
        except ImportError as error:
            check("Packages", False, module=module, version=reason(error))


# the training step

@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to compute a training step."""
    precision: str
    checkpointing: str           # model.checkpointing
    clips: int                   # with their negatives: two for each sample
    micro_batch: int = 0         # samples; 0: all at once
    attention: str = "sdpa"      # model.attention; or "without cuDNN"
    half_residual: bool = False  # model.half_residual
    compiled: bool = False       # train.compile


VARIANTS = [  # what is wanted most comes first: with all that is new, and the recipe as it was
    Variant("fp16", "none", 64, attention="triton"), Variant("fp16", "full", 64),
    Variant("fp16", "none", 96, attention="triton"), Variant("fp16", "full", 64, attention="triton"),
    Variant("fp16", "cheap", 64, attention="triton"), Variant("fp16", "none", 64),
    Variant("fp16", "none", 48, attention="triton"), Variant("fp16", "none", 48),
    Variant("fp16", "none", 64, attention="triton", half_residual=True),
    Variant("bf16", "none", 48, attention="triton"), Variant("fp16", "full", 128, attention="triton"),
    Variant("fp16", "none", 64, micro_batch=16, attention="triton"),
    Variant("fp16", "none", 64, micro_batch=4, attention="triton"), Variant("fp16", "none", 32),
    Variant("fp16", "full", 128), Variant("fp32", "none", 16)]


@contextlib.contextmanager
def attending(how: str) -> Iterator[None]:
    """Change for a while which of PyTorch's kernels compute attention; see Variant.attention."""
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(cudnn and how != "without cuDNN")
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def trainer(variant: Variant, model: EgoVLP | None = None, **shape) -> train_step.Trainer:
    """Make egokit's trainer of a variant.

    Args:
        model: is trained and gets the variant's config; None makes a fresh model.
        shape: other values of ModelConfig for a fresh model.
    """
    shape = SHAPE | shape | {"dropout": 0.1, "checkpointing": variant.checkpointing,
                             "half_residual": variant.half_residual,
                             "attention": "triton" if variant.attention == "triton" else "sdpa"}
    config = train_step.configured(variant.precision, **shape)
    settings = dataclasses.replace(config.train, micro_batch=variant.micro_batch, compile=variant.compiled)
    config = dataclasses.replace(config, train=settings)
    if model is not None:
        model.compute_as(config.model)
    return train_step.Trainer(config, DEVICE, model)


def batch_of(clips: int, model: ModelConfig) -> dict:
    """Make a synthetic batch on the device; a CPU would take longer for it than the step."""
    with torch.device(DEVICE):
        return train_step.synthetic_batch(clips, model)


def rehearsed(variant: Variant) -> Variant:
    """Make a variant small in a rehearsal."""
    if not REHEARSAL:
        return variant
    return dataclasses.replace(variant, precision=variant.precision.replace("fp16", HALF), clips=min(variant.clips, 4),
                               micro_batch=min(variant.micro_batch, 1))


def tflop_a_clip(model: EgoVLP) -> float:
    """Count a step's arithmetic, forward and backward. What is recomputed is no part of it."""
    measured_trainer = trainer(Variant("bf16", "none", 4), model)
    with FlopCounterMode(display=False) as counter:
        measured_trainer.steps_on(batch_of(4, measured_trainer.model.config))
    return counter.get_total_flops() / 4 / 1e12


def measure(variant: Variant, work: float, model: EgoVLP) -> float | None:
    """Note the speed and the memory of a variant's step.

    Args:
        work: TFLOP a clip.
        model: the weights, which are trained.

    Returns:
        The peak in GiB, or None if the step does not fit.
    """
    forget()
    ceiling = measured(PRODUCTS, "tflop_s", precision=variant.precision)
    repeats, warm = (1, 1) if REHEARSAL else (4, 2) if variant.clips < 256 else (2, 1)
    row, variant_trainer = dataclasses.asdict(variant), None
    try:
        with attending(variant.attention):
            variant_trainer = trainer(variant, model)
            batch = batch_of(variant.clips, variant_trainer.model.config)
            milliseconds = clock(lambda: variant_trainer.steps_on(batch), repeats, warm)
    except RuntimeError as error:
        if ran_out_of_memory(error):
            note(STEPS, **row, problem="out of memory")
        else:
            check(STEPS, False, **row, problem=reason(error))
        return None
    finally:
        if variant_trainer is not None:  # gradients would stay with the weights
            variant_trainer.optimizer.zero_grad(set_to_none=True)
    speed, gib = variant.clips / milliseconds * 1e3, peak_gib()
    note(STEPS, **row, ms=milliseconds, clips_s=speed, tflop_s=speed * work,
         share_of_peak=speed * work / ceiling if ceiling else None, gib=gib, skipped=variant_trainer.skipped)
    return gib


def step() -> None:
    """Measure steps of egokit's trainer on synthetic batches, and find the largest batch."""
    model = trainer(rehearsed(VARIANTS[0])).model
    work = tflop_a_clip(model)
    note(WORK, tflop_a_clip=work)
    gib: dict[str, dict[int, float]] = {"full": {}, "none": {}}
    for variant in dict.fromkeys(map(rehearsed, VARIANTS)):
        peak = measure(variant, work, model)
        if peak is not None and variant == Variant("fp16", variant.checkpointing, variant.clips):
            gib.get(variant.checkpointing, {})[variant.clips] = peak
    if REHEARSAL:  # as if a clip took 1 GiB, and there were 9
        gib, available = {"full": {1: 1.0, 2: 2.0}, "none": {1: 1.0, 2: 2.0}}, 9.0
    else:
        forget()  # 3 % of what is free are lost between blocks
        available = 0.97 * (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / 2**30
    for checkpointing in ("none", "full"):
        if len(gib[checkpointing]) < 2:  # their problems stand in the table
            continue

        def fits(clips: int, checkpointing=checkpointing) -> bool:
            return measure(Variant(HALF, checkpointing, clips), work, model) is not None
        clips = find_largest(largest_batch(gib[checkpointing], available), fits)
        check("Largest batch", clips > 0, precision=HALF, checkpointing=checkpointing, clips=clips)


def compiled() -> None:
    """Measure the step with train.compile and egokit's own attention."""
    compiled_steps(Variant(HALF, "none", 48, attention="triton"), Variant(HALF, "full", 48, attention="triton"),
                   Variant(HALF, "none", 48, attention="triton", half_residual=True))


def compiled_sdpa() -> None:
    """Measure the step with train.compile and PyTorch's attention."""
    compiled_steps(Variant(HALF, "none", 48), Variant("bf16", "none", 48))


def compiled_steps(*variants: Variant) -> None:
    """Measure compiled steps, all at one size of batch, whose shapes the graphs have fixed."""
    compile_by = functools.partial(compilation.compile_blocks, backend=COMPILER)
    with unittest.mock.patch.object(steps, "compile_blocks", compile_by):
        smaller = {"depth": 1} if REHEARSAL else {}  # each kind of block is traced for seconds
        model = trainer(rehearsed(Variant("fp16", "none", 48)), **smaller).model
        work = measured(WORK, "tflop_a_clip") or tflop_a_clip(model)
        for variant in dict.fromkeys(map(rehearsed, variants)):
            measure(dataclasses.replace(variant, compiled=True), work, model)
    counters = torch._dynamo.utils.counters
    breaks = counters["graph_break"]  # each splits a block, between whose parts nothing is fused
    check("Compiled blocks", not breaks, attention=variants[0].attention, graphs=counters["stats"]["unique_graphs"],
          graph_breaks=sum(breaks.values()), first_reason=reason(Exception(next(iter(breaks), "none"))))


def profile() -> None:
    """Note where the time of a step goes, by kernel, with egokit's attention and with PyTorch's.

    Longer tables go to profile.txt. A step that takes longer than its kernels together waits for the CPU.
    """
    for variant in (Variant("fp16", "none", 48, attention="triton"), Variant("fp16", "none", 48)):
        table = profiled(rehearsed(variant))
        with open(OUT / "profile.txt", "a") as file:
            file.write(f"model.attention={variant.attention}\n\n{table}\n\n")


def profiled(variant: Variant) -> str:
    """Note the kernels of a variant's step: all of them, and the 20 that take most; return a table of more."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    forget()
    profiled_trainer = trainer(variant)
    batch = batch_of(variant.clips, profiled_trainer.model.config)
    milliseconds = clock(lambda: profiled_trainer.steps_on(batch), 3, 2)
    on_gpu = DEVICE.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
        profiled_trainer.steps_on(batch)
        wait()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = averages = recorded.key_averages()
    if on_gpu:  # kernels alone: the time of a kernel stands with the operator that has started it, too
        events = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    total = sum(getattr(event, key) for event in events) or 1
    note("Kernels of a training step", attention=variant.attention, clips=variant.clips,
         kernels=sum(event.count for event in events), kernels_ms=total / 1e3, step_ms=milliseconds)
    for event in sorted(events, key=lambda event: -getattr(event, key))[:20]:
        spent = getattr(event, key)
        note("Profile of a training step", attention=variant.attention, kernel=event.key[:70], calls=event.count,
             ms=spent / 1e3, share=spent / total)
    return averages.table(sort_by=key, row_limit=60, max_name_column_width=60)


if __name__ == "__main__":
    run(card, step, divided_layers, attention, large_batch, encode, profile, compiled, compiled_sdpa)
