"""The stage `attention`: what attention costs by kind and backend, and by sums of products."""
from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_day.common import COMPILER, COPIES, DEVICE, REHEARSAL, check, clock, measured, note, reason, wait
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from egokit.config.schema import ModelConfig
from egokit.model import layers
from egokit.model.precision import autocast
from egokit.model.video_encoder import DividedAttention, devices_of_kernels

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
ATTENTION, LAYERS, GROUPS = "Attention of 64 clips", "Layers of divided attention", "65,600 groups"  # tables


def by_sums(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention to a few keys as sums of products.

    A compiler can fuse them into one pass over memory.
    """
    scores = (query.unsqueeze(-2).float() * key.unsqueeze(-3).float()).sum(-1) * query.shape[-1] ** -0.5
    return (scores.softmax(-1).unsqueeze(-1) * value.unsqueeze(-3).float()).sum(-2).to(query.dtype)


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


def divided_layers() -> None:
    """Measure whole layers of divided attention by model.attention, at the frames of training and of evaluation."""
    patches, heads = (4, 2) if REHEARSAL else (196, 12)
    for clips, frames in ((2, 4), (2, 8)) if REHEARSAL else ((64, 4), (32, 16)):
        for over in ("time", "space"):
            divided(over, clips, patches, frames, heads)


def divided(over: str, clips: int, patches: int, frames: int, heads: int) -> None:
    """Note what a layer costs by model.attention, and how far it is from float32's sdpa."""
    layer = DividedAttention(64 * heads, heads, over).to(DEVICE)
    x = torch.randn(clips, 1 + frames * patches, 64 * heads, device=DEVICE, requires_grad=True)
    grad, exact = torch.randn_like(x), None
    inputs = (x, *layer.parameters())
    for precision, bound in (("fp32", 1e-4), ("fp16", 5e-3), ("bf16", 4e-2)):  # shares of the largest value

        def once(precision: str = precision) -> list[Tensor]:
            with autocast(DEVICE, precision):
                out = layer(x, frames)
            return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]
        # egokit's kernels leave float32 to PyTorch on a GPU
        for way in ("sdpa",) if precision == "fp32" else ("sdpa", "triton"):
            layer.fused_on = devices_of_kernels(ModelConfig(attention=way))
            row = {"clips": clips, "frames": frames, "over": over, "precision": precision, "attention": way}
            try:
                found = once()
                exact = exact or found
                differs = max(((a - b).abs().max() / b.abs().max()).item()
                              for a, b in zip(found, exact, strict=True))
                with torch.no_grad(), autocast(DEVICE, precision):
                    forward = clock(lambda: layer(x, frames))
                check(LAYERS, differs < bound, **row, forward_ms=forward, both_ms=clock(once), differs_by=differs)
            except Exception as error:  # Triton's are of many classes
                check(LAYERS, False, **row, problem=reason(error))


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
