"""Tensors with shapes, types and devices, but without values: "cuda:0" is there, and nothing is computed.

fake_gpu.py explains what this is for.
"""
from __future__ import annotations

import contextlib
import sys
import unittest.mock
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from fake_cuda import (
    INDEXING,
    Mode,
    aten,
    backward_passes,
    cuda_answers,
    foreach_of,
    fresh_caches,
    nothing,
    refuse_array,
    refuse_indices,
)
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

UNKNOWN = 2**15          # an integer that depends on values; as the end of a slice it means "all"
MASKED = 0.15 * 13 / 15  # share of tokens that a boolean mask chooses: 15 % of the words between a text's start and end


class _FakeTensorMode(FakeTensorMode):
    """PyTorch's own, which never looks for a GPU, whatever torch.cuda.is_available() says."""
    avoid_device_init = True


class NoValues(Mode):
    """Answers what depends on values, and lists what the CPU waits for.

    A float that is read (`.item()`) is 1, an integer is UNKNOWN, a truth value is True, but that of `any` is False. A
    boolean mask over a square matrix chooses all but the diagonal, any other mask the share MASKED.

    Attributes:
        waits: operations for which the CPU waits until the GPU has done all work before, with the function of egokit.
    """

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def observe(self, func, args, kwargs, out) -> None:
        """Look at an operation, its inputs and its outputs. Called after each one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:  # asked several times an operation
            return args[0].device
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet in INDEXING:
            refuse_indices(args)
            args = (args[0], [place for index in args[1] for place in self.places(index)], *args[2:])
        if packet is aten._local_scalar_dense:
            out = self.number(args[0])
        elif packet is aten.nonzero:
            out = args[0].new_empty((self.chosen(args[0]), args[0].dim()), dtype=torch.long)
        else:
            out = func(*args, **kwargs)
        if packet is aten.any:
            out.read_as = False  # nothing is out of bounds
        if self.is_waited_for(packet, args, kwargs):
            self.waits.append(f"{packet} in {caller()}")
        self.observe(func, args, kwargs, out)
        return out

    def number(self, x: Tensor) -> float | bool | int:
        if x.dtype == torch.bool:
            return getattr(x, "read_as", True)
        return 1.0 if x.is_floating_point() else UNKNOWN

    def chosen(self, mask: Tensor) -> int:
        if mask.dim() == 2 and mask.shape[0] == mask.shape[1]:
            return mask.numel() - len(mask)
        return round(mask.numel() * MASKED)

    def places(self, index: Tensor | None) -> list[Tensor | None]:
        """What a GPU makes of a boolean mask: the chosen places, one tensor for each axis."""
        if index is None or index.dtype != torch.bool:
            return [index]
        return list(self.__torch_dispatch__(aten.nonzero.default, (), (index,)).unbind(1))

    def is_waited_for(self, packet, args, kwargs) -> bool:
        if packet in (aten._local_scalar_dense, aten.nonzero):
            return args[0].device.type == "cuda"
        if packet is aten._to_copy:
            target = torch.device(kwargs.get("device") or args[0].device)
            return target.type != args[0].device.type and not kwargs.get("non_blocking")
        return (packet is aten.copy_ and args[0].device != args[1].device
                and not (args[2:] or kwargs.get("non_blocking")))


def caller() -> str:
    """Name the function of egokit that is running, and its line."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("egokit."):
        frame = frame.f_back
    if frame is None:
        return "no function of egokit"
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}:{frame.f_lineno}"


@contextlib.contextmanager
def attention_kernels() -> Iterator[None]:
    """Let attention be a GPU's kernel: flash for half precision without mask, else efficient.

    PyTorch asks the GPU which kernels it has, and without one computes attention as single products.
    """
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                  is_causal: bool = False, scale: float | None = None, **rest) -> Tensor:
        if query.device.type != "cuda":
            return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **rest)
        if torch.is_autocast_enabled("cuda"):
            query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
            attn_mask = None if attn_mask is None else attn_mask.to(query.dtype)
        if attn_mask is None and query.dtype != torch.float32:
            flash = aten._scaled_dot_product_flash_attention
            return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
        if attn_mask is not None:
            length = attn_mask.shape[-1]  # the kernel reads a mask's rows in steps of 16
            attn_mask = F.pad(attn_mask, (0, -length % 16))[..., :length].expand(*query.shape[:3], length)
        efficient, keep = aten._scaled_dot_product_efficient_attention, torch.is_grad_enabled()
        return efficient(query, key, value, attn_mask, keep, dropout_p, is_causal, scale=scale)[0]

    with unittest.mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


@contextlib.contextmanager
def arrays_and_lists() -> Iterator[None]:
    """Let fake tensors become arrays (of zeros) and lists (0, 1, 2 …), and let them be pinned."""
    def numpy(tensor: FakeTensor, *, force: bool = False) -> np.ndarray:
        if not force:
            refuse_array(tensor)
        return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))

    def tolist(tensor: FakeTensor) -> list:
        return np.arange(tensor.numel()).reshape(tensor.shape).tolist()

    with (unittest.mock.patch.multiple(FakeTensor, numpy=numpy, tolist=tolist),
          unittest.mock.patch.object(Tensor, "pin_memory", lambda tensor, *args: tensor)):
        yield


@contextlib.contextmanager
def modules_that_move(mode: FakeTensorMode) -> Iterator[None]:
    """Let nn.Module.to() swap fake parameters.

    It refuses while the mode has a weak reference to them.
    """
    swap = torch.utils.swap_tensors

    def forget_and_swap(a: Tensor, b: Tensor) -> None:
        mode.fake_tensor_converter.tensor_memo.clear()
        swap(a, b)

    with unittest.mock.patch.object(torch.utils, "swap_tensors", forget_and_swap):
        yield


@contextlib.contextmanager
def without_values(mode: NoValues | None = None) -> Iterator[NoValues]:
    """Give tensors that are made inside no values, but devices; "cuda:0" is there.

    Args:
        mode: answers what depends on values; a NoValues if there is none. It is what the block gets.
    """
    mode, fake = mode or NoValues(), _FakeTensorMode(allow_non_fake_inputs=True)
    with (fresh_caches(), fake, cuda_answers(), backward_passes(), attention_kernels(), foreach_of(FakeTensor),
          arrays_and_lists(), modules_that_move(fake),
          unittest.mock.patch.object(fake_tensor, "init_gpu_context", nothing), mode):
        yield mode
