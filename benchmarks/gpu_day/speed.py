"""Stages that measure time; nothing may run beside them.

    python -m gpu_day.speed STAGE      STAGE: card step attention encode profile compiled compiled_sums

They measure the card, the training step, attention, encoding and a profile.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import platform
import statistics
import unittest.mock
from collections.abc import Callable, Iterator

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(os.cpu_count()))
import torch
import torch.nn.functional as F
import train_step
from gpu_day.common import (
    COMPILER,
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
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from egokit.config.schema import CHOICES, ModelConfig
from egokit.data.video.transforms import normalise
from egokit.model import cpu_fast_paths, layers, video_encoder
from egokit.model.egovlp import EgoVLP, autocast
from egokit.model.precision import float32_products

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
PRODUCTS, COPIES = "Products of two square matrices", "Memory"  # titles of tables that several functions use
STEPS, WORK = "Training step", "Arithmetic of a training step"
ATTENTION, GROUPS = "Attention of 64 clips", "65,600 groups"


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
    recomputed: bool             # model.checkpointing
    clips: int                   # with their negatives: two for each sample
    micro_batch: int = 0         # samples; 0: all at once
    attention: str = "as it is"  # or "by sums", or "without cuDNN"
    compiled: bool = False       # train.compile


VARIANTS = [  # what is wanted most comes first
    Variant("fp16", True, 64), Variant("fp16", False, 48), Variant("bf16", False, 48), Variant("fp16", False, 32),
    Variant("fp16", False, 48, attention="by sums"), Variant("fp16", False, 48, attention="without cuDNN"),
    Variant("fp16", False, 64), Variant("fp16", False, 64, micro_batch=4), Variant("fp16", False, 64, micro_batch=16),
    Variant("fp16", False, 64, micro_batch=32), Variant("bf16", True, 64), Variant("fp16", True, 128),
    Variant("fp32", False, 16)]


def by_sums(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention to a few keys as sums of products.

    A compiler can fuse them into one pass over memory.
    """
    scores = (query.unsqueeze(-2).float() * key.unsqueeze(-3).float()).sum(-1) * query.shape[-1] ** -0.5
    return (scores.softmax(-1).unsqueeze(-1) * value.unsqueeze(-3).float()).sum(-2).to(query.dtype)


@functools.cache
def attend_by_sums() -> Callable:
    """Make a `layers.attend` that takes few keys by sums.

    It is made once, because blocks would be compiled anew for another function.
    """
    fused, before = torch.compile(by_sums, dynamic=False, backend=COMPILER), layers.attend

    def attend(query, key, value, mask=None, dropout=0.0):
        few = key.shape[2] <= cpu_fast_paths.FEW_KEYS and mask is None and not dropout
        return fused(query, key, value) if few else before(query, key, value, mask, dropout)
    return attend


@contextlib.contextmanager
def attending(how: str) -> Iterator[None]:
    """Change for a while how video blocks compute attention; see Variant.attention."""
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(cudnn and how != "without cuDNN")
    try:
        attend = attend_by_sums() if how == "by sums" else layers.attend
        with unittest.mock.patch.object(video_encoder, "attend", attend):
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def trainer(variant: Variant, model: EgoVLP | None = None, **shape) -> train_step.Trainer:
    """Make egokit's trainer of a variant.

    Args:
        model: is trained and gets the variant's config; None makes a fresh model.
        shape: other values of ModelConfig for a fresh model.
    """
    shape = SHAPE | shape | {"dropout": 0.1, "checkpointing": variant.recomputed}
    config = train_step.configured(variant.precision, **shape)
    settings = dataclasses.replace(config.train, micro_batch=variant.micro_batch, compile=variant.compiled)
    config = dataclasses.replace(config, train=settings)
    if model is not None:
        model.config = dataclasses.replace(model.config, checkpointing=variant.recomputed)
        model.video.config = model.text.config = model.config
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
    measured_trainer = trainer(Variant("bf16", False, 4), model)
    with FlopCounterMode(display=False) as counter:
        measured_trainer.steps_on(batch_of(4, measured_trainer.model.config))
    return counter.get_total_flops() / 4 / 1e12


def ran_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or isinstance(error.__cause__, torch.cuda.OutOfMemoryError)


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


def largest_batch(gib: dict[int, float], available: float) -> int:
    """Estimate how many clips fit, by a line through the smallest and the largest batch.

    Args:
        gib: the peak, by clips, of two batches at least.
        available: GiB.

    Returns:
        A multiple of 8.
    """
    few, many = min(gib), max(gib)
    slope = (gib[many] - gib[few]) / (many - few)
    return int((available - gib[few] + slope * few) / slope) // 8 * 8


def find_largest(clips: int, fits: Callable[[int], bool]) -> int:
    """Try a number of clips, then two smaller ones; return the first that fits, or 0."""
    for _ in range(3):
        if clips and fits(clips):
            return clips
        clips = int(clips * 0.92) // 8 * 8
    return 0


def step() -> None:
    """Measure steps of egokit's trainer on synthetic batches, and find the largest batch."""
    model = trainer(rehearsed(VARIANTS[0])).model
    work = tflop_a_clip(model)
    note(WORK, tflop_a_clip=work)
    gib: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for variant in dict.fromkeys(map(rehearsed, VARIANTS)):
        peak = measure(variant, work, model)
        if peak is not None and dataclasses.replace(variant, clips=0, recomputed=False) == Variant("fp16", False, 0):
            gib[variant.recomputed][variant.clips] = peak
    if REHEARSAL:  # as if a clip took 1 GiB, and there were 9
        gib, available = {True: {1: 1.0, 2: 2.0}, False: {1: 1.0, 2: 2.0}}, 9.0
    else:
        forget()  # 3 % of what is free are lost between blocks
        available = 0.97 * (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / 2**30
    for recomputed in (False, True):
        if len(gib[recomputed]) < 2:  # their problems stand in the table
            continue

        def fits(clips: int, recomputed=recomputed) -> bool:
            return measure(Variant(HALF, recomputed, clips), work, model) is not None
        clips = find_largest(largest_batch(gib[recomputed], available), fits)
        check("Largest batch", clips > 0, precision=HALF, recomputed=recomputed, clips=clips)


def compiled() -> None:
    """Measure the step with train.compile, with and without recomputation."""
    compiled_steps("as it is", [(HALF, False), (HALF, True), ("bf16", False)])


def compiled_sums() -> None:
    """Measure the step with train.compile and time attention by sums, which it fuses."""
    compiled_steps("by sums", [(HALF, False), (HALF, True)])


def compiled_steps(attention: str, ways: list[tuple[str, bool]]) -> None:
    """Measure compiled steps, all at one size of batch: each new shape would be compiled anew."""
    compile_by = functools.partialmethod(nn.Module.compile, backend=COMPILER)
    with unittest.mock.patch.object(nn.Module, "compile", compile_by):
        smaller = {"depth": 1} if REHEARSAL else {}  # each kind of block is traced for seconds
        model = trainer(rehearsed(Variant("fp16", False, 48)), **smaller).model
        work = measured(WORK, "tflop_a_clip") or tflop_a_clip(model)
        for precision, recomputed in dict.fromkeys(ways):
            measure(rehearsed(Variant(precision, recomputed, 48, attention=attention, compiled=True)), work, model)
    counters = torch._dynamo.utils.counters
    breaks = counters["graph_break"]  # each splits a block, between whose parts nothing is fused
    check("Compiled blocks", not breaks, attention=attention, graphs=counters["stats"]["unique_graphs"],
          graph_breaks=sum(breaks.values()), first_reason=reason(Exception(next(iter(breaks), "none"))))


def profile() -> None:
    """Note where the time of a step goes, by kernel.

    Longer tables, also by shape, go to profile.txt.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    profiled_trainer = trainer(rehearsed(Variant("fp16", False, 48)))
    batch = batch_of(4 if REHEARSAL else 48, profiled_trainer.model.config)
    profiled_trainer.steps_on(batch, batch)
    on_gpu = DEVICE.type == "cuda"
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, record_shapes=True) as profiled:
        profiled_trainer.steps_on(batch, batch)
        wait()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events, by_shape = profiled.key_averages(), profiled.key_averages(group_by_input_shape=True)
    tables = [averages.table(sort_by=key, row_limit=40, max_name_column_width=60) for averages in (events, by_shape)]
    (OUT / "profile.txt").write_text("\n\n".join(tables))
    if on_gpu:  # kernels alone: the time of a kernel stands with the operator that has started it, too
        events = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    total = sum(getattr(event, key) for event in events) or 1
    for event in sorted(events, key=lambda event: -getattr(event, key))[:20]:
        spent = getattr(event, key)
        note("Profile of a training step", kernel=event.key[:70], calls=event.count / 2, ms=spent / 2e3,
             share=spent / total)


# attention

def with_backend(name: str, *tensors: Tensor, **options) -> Tensor:
    """Compute PyTorch's fused attention by a named backend, or its own choice ("default")."""
    with sdpa_kernel(BACKENDS[name]) if name in BACKENDS else contextlib.nullcontext():
        return F.scaled_dot_product_attention(*tensors, **options)


def attention() -> None:
    """Measure attention of 64 clips by kind and backend.

    Then try new shapes, and more groups than a CUDA grid has.
    """
    clips, patches, frames, heads = (2, 4, 4, 2) if REHEARSAL else (64, 196, 4, 12)
    dtype, backends = (torch.float32, ["default", "math"]) if REHEARSAL else (torch.bfloat16, ["default", *BACKENDS])
    tokens = 1 + frames * patches
    shapes = {"time": (clips * patches, frames, frames + 1), "space": (clips * frames, patches, patches + 1),
              "CLS": (clips, 1, tokens), "text reads video": (clips, 15, tokens),
              "video reads text": (clips, tokens, 15)}
    for kind, (groups, queries, keys) in shapes.items():
        query, key, value = (torch.randn(groups, heads, n, 64, device=DEVICE, dtype=dtype, requires_grad=True)
                             for n in (queries, keys, keys))
        ways = {name: functools.partial(with_backend, name) for name in backends}
        if kind == "time":
            ways |= {"sums": by_sums, "sums, compiled": torch.compile(by_sums, dynamic=False, backend=COMPILER)}
        for name, way in ways.items():
            time_attention(kind, name, way, query, key, value)
    new_lengths(clips, heads, dtype, [name for name in backends if name in ("default", "cudnn", "efficient")])
    many_groups(heads, dtype, backends)


def time_attention(kind: str, name: str, way: Callable, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Note what one way to compute attention costs, beside the cost of memory traffic."""
    grad, tb_s = torch.randn_like(query), measured(COPIES, "tb_s")
    # forward reads q, k, v and writes the output; backward reads these and its gradient, and writes three gradients
    moved = 6 * query.nbytes + 3 * key.nbytes + 3 * value.nbytes
    row = {"kind": kind, "way": name, "floor_ms": moved / tb_s / 1e9 if tb_s else None}
    try:
        with torch.no_grad():
            forward = clock(lambda: way(query, key, value))
        both = clock(lambda: torch.autograd.grad(way(query, key, value), (query, key, value), grad))
        note(ATTENTION, **row, forward_ms=forward, both_ms=both)
    except RuntimeError as error:  # a backend that doesn't take these shapes
        note(ATTENTION, **row, problem=reason(error))


def new_lengths(clips: int, heads: int, dtype: torch.dtype, backends: list[str]) -> None:
    """Note what it costs to plan kernels for a new shape: first and second calls by length."""
    for name in backends:
        try:
            times = [first_and_second(name, clips, heads, length, dtype) for length in range(5, 13)]
            first, second = (statistics.median(column) for column in zip(*times, strict=True))
            note("New lengths of texts", way=name, first_ms=first, again_ms=second)
        except RuntimeError as error:
            note("New lengths of texts", way=name, problem=reason(error))


def first_and_second(name: str, clips: int, heads: int, length: int, dtype: torch.dtype) -> tuple[float, float]:
    """Measure two calls, forward and backward, at a new length, in milliseconds."""
    query, key, value = (torch.randn(clips, heads, length, 64, device=DEVICE, dtype=dtype, requires_grad=True)
                         for _ in range(3))
    mask = torch.zeros(clips, 1, 1, length, device=DEVICE, dtype=dtype)

    def once() -> None:
        with_backend(name, query, key, value, attn_mask=mask, dropout_p=0.1).sum().backward()
    return clock(once, 1, 0), clock(once, 1, 0)


def many_groups(heads: int, dtype: torch.dtype, backends: list[str]) -> None:
    """Try more groups than the 65,535 of a CUDA grid, by backend.

    egokit's `attend` is compared with its halves.
    """
    groups, heads, width = (65_600, 1, 16) if REHEARSAL else (65_600, heads, 64)  # time attention's of 335 clips
    query = torch.randn(groups, heads, 4, width, device=DEVICE, dtype=dtype, requires_grad=True)
    for name in backends:
        try:
            with_backend(name, query, query, query).sum().backward()
            wait()
            note(GROUPS, way=name, problem="none")
        except RuntimeError as error:
            note(GROUPS, way=name, problem=reason(error))
        query.grad = None
    key, value = (torch.randn(groups, heads, 5, width, device=DEVICE, dtype=dtype, requires_grad=True)
                  for _ in range(2))
    grad = torch.randn_like(query)

    def of(rows: slice) -> list[Tensor]:
        out = layers.attend(query[rows], key[rows], value[rows])
        return [out.detach(), *torch.autograd.grad(out, (query, key, value), grad[rows])]

    way = "egokit's attend, against its halves"
    try:
        (out, *grads), first, second = (of(slice(start, stop)) for start, stop in
                                        ((0, groups), (0, groups // 2), (groups // 2, groups)))
        sides = [(out, torch.cat([first[0], second[0]]))]
        sides += [(grads[i], first[i + 1] + second[i + 1]) for i in range(3)]  # a half's is 0 on the other half
        difference = max((whole - halves).abs().max().item() for whole, halves in sides)
        check(GROUPS, difference < (1e-5 if dtype == torch.float32 else 0.05), way=way, differs_by=difference)
    except RuntimeError as error:
        check(GROUPS, False, way=way, problem=reason(error))


# encoding

def encode() -> None:
    """Measure EK-100's and EgoMCQ's evaluation by precision.

    Noted are the speed and how far scores are from exact float32's.
    """
    frames, clips = (4, 2) if REHEARSAL else (16, 32)
    shape = ModelConfig(**{"time_init": "zero_output"} | SHAPE | {"frames": frames})
    model = train_step.base_model(shape, DEVICE).eval()
    size = (clips, frames, 3, shape.image_size, shape.image_size)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, device=DEVICE)
    ids = torch.randint(4, 90, (clips, 15), device=DEVICE)
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def ek100() -> Tensor:
        return model.embed_video(normalise(pixels))

    def egomcq() -> tuple[Tensor, Tensor]:
        normalised = normalise(pixels)
        video, trunk = model.embed_video(normalised), model.fusion_trunk(normalised)
        states = model.fuse(trunk, model.text_trunk(tokens), tokens["attention_mask"], frames, "itm")
        return video, model.itm_from_states(*states).float()

    exact = None
    for name in CHOICES["evaluate.precision"]:
        forget()
        with torch.no_grad(), autocast(DEVICE, name):
            video, logits = egomcq()
            exact = exact or (video, logits)
            times = [clock(function, 3, 1) for function in (ek100, egomcq)]
        cosine = F.cosine_similarity(video, exact[0]).min().item()
        check(f"Encoding {clips} clips of {frames} frames", cosine > 0.99, precision=name,
              ek100_clips_s=1e3 * clips / times[0], egomcq_clips_s=1e3 * clips / times[1], least_cosine=cosine,
              logits_differ_by=(logits - exact[1]).abs().max().item(), gib=peak_gib())


if __name__ == "__main__":
    run(card, step, attention, encode, profile, compiled, compiled_sums)
