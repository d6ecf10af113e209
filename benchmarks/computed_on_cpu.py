"""Tensors that say "cuda:0" and are computed on the CPU; they refuse to be mixed with the CPU's.

fake_gpu.py explains what this is for.
"""
from __future__ import annotations

import contextlib
import unittest.mock
from collections.abc import Iterator

import numpy as np
import torch
from fake_cuda import (
    GPU,
    INDEXING,
    Mode,
    aten,
    backward_passes,
    cuda_answers,
    foreach_of,
    fresh_caches,
    refuse_array,
    refuse_indices,
)
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


class ComputedOnCpu(torch.Tensor):
    """A tensor that says "cuda:0"; `inner`, on the CPU, holds its values."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=GPU)
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})

    def __repr__(self, **options) -> str:
        return f"{self.inner.__repr__(**options)} on {GPU}"

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)  # files hold plain tensors

    def tolist(self) -> list:
        return self.inner.tolist()  # PyTorch gives no list, and no array, of a subclass

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if not force:
            refuse_array(self)
        return self.detach().inner.numpy(force=True).copy()


class _ComputedMode(Mode):
    """Gives what is asked for on "cuda:0" to functions that take no tensor, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    """Compute an operation on the CPU; its result says the device that a GPU would give it.

    Raises:
        RuntimeError: a GPU refuses these devices together.
    """
    if func is torch.ops.prim.device.default:
        return GPU
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    owners = {id(x.inner): x for x in tensors if isinstance(x, ComputedOnCpu)}
    target = torch.device(kwargs.get("device") or (GPU if owners else "cpu"))
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != target.type:
        raise RuntimeError(f"{func}: Expected a {target.type!r} device type for generator but found "
                           f"{generator.device.type!r}")
    if owners and func.overloadpacket not in (aten._to_copy, aten.copy_, aten.copy, aten._foreach_copy_):
        refuse_mix(func, args, tensors)
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, ComputedOnCpu) else x, (args, kwargs))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    out = func(*args, **kwargs)
    if target.type == "cuda":
        return tree_map(lambda x: owner(x, owners) if isinstance(x, Tensor) else x, out)
    return out.clone() if owners and out is args[0] else out  # a copy, though both devices' memory is the CPU's


def owner(inner: Tensor, owners: dict[int, ComputedOnCpu]) -> ComputedOnCpu:
    """Find the tensor that an operation has changed in place, or make a new one."""
    return owners[id(inner)] if id(inner) in owners else ComputedOnCpu(inner)


def refuse_mix(func, args, tensors: list[Tensor]) -> None:
    """Raise a GPU's error for tensors on both devices.

    A single number may be the CPU's, and so may indices.
    """
    if func.overloadpacket in INDEXING:
        refuse_indices(args)
        tensors = [args[0], *(x for x in args[2:] if isinstance(x, Tensor))]
    if any(x.dim() and not isinstance(x, ComputedOnCpu) for x in tensors):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found at least two devices, "
                           f"{GPU} and cpu!")


@contextlib.contextmanager
def on_the_cpu() -> Iterator[None]:
    """Let tensors on "cuda:0" be computed on the CPU, and refuse to be mixed with the CPU's."""
    torch._C._ensureCUDADeviceGuardSet()  # this and the next: as FakeTensorMode does where there is no GPU
    lifted, overwrite = torch._C._only_lift_cpu_tensors(), torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda:0") makes its numbers on the CPU first
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter that moves changes its class
    try:
        with (fresh_caches(), cuda_answers(unbuilt="need a real GPU"), backward_passes(),
              foreach_of(ComputedOnCpu), _ComputedMode(),
              unittest.mock.patch.multiple(torch.cuda, get_rng_state=lambda *args: torch.get_rng_state(),
                                           set_rng_state=lambda state, *args: torch.set_rng_state(state)),
              unittest.mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *args: tensor)):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
