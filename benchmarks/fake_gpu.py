"""A GPU that is not there: run egokit as on "cuda:0" on any machine, to check devices and to count costs.

Two ways, each a context manager:

`without_values()`: tensors have shapes, types and devices, but no values (PyTorch's FakeTensorMode). Nothing is computed, so
the full-size model and its whole training step take seconds. An operation whose tensors lie on different devices raises, as
on a GPU. Numbers that depend on values are assumed: see `NoValues`.

`on_the_cpu()`: tensors have values and are computed on the CPU, but say "cuda:0" (a tensor subclass). An operation that a GPU
would refuse, because its tensors lie on different devices, raises. Real loops on tiny data run so, start to end.

What PyTorch asks CUDA itself (how many GPUs, which, their random state) is answered by `cuda_answers()`. No kernel runs, so
neither way says anything about a GPU's speed, rounding or memory fragmentation.
"""
from __future__ import annotations

import contextlib
import ctypes
import re
import sys
import types
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # lists torch.cuda's functions when it is imported, which should be the real ones
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
GPU = torch.device("cuda:0")
MANY = 2**15            # an integer that nobody knows: as the end of a slice it means "all"
MASKED = 0.15 * 13 / 15  # share of tokens that a boolean mask chooses: 15 % of the words between a text's start and end
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index, aten._unsafe_index_put}


# What PyTorch asks CUDA

class _Idle:
    """Stand-in for torch.cuda.Stream, Event and device: nothing to wait for, nothing to choose."""

    def __init__(self, *args, **kwargs):
        self.device, self.cuda_stream = GPU, 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def query(self) -> bool:
        return True

    def elapsed_time(self, end) -> float:
        return 0.0

    def record(self, *args, **kwargs) -> None:
        pass

    record_event = synchronize = wait = wait_event = wait_stream = record


def _nothing(*args, **kwargs) -> None:
    pass


@contextlib.contextmanager
def cuda_answers() -> Iterator[None]:
    """Let torch.cuda answer as if there were one GPU, of an H100's properties."""
    properties = types.SimpleNamespace(name="no GPU", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132,
                                       warp_size=32, max_threads_per_multi_processor=2048, uuid="no-gpu", L2_cache_size=50 * 2**20)
    constant = {"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True,
                "get_device_name": properties.name, "get_device_capability": (9, 0), "get_device_properties": properties,
                "is_current_stream_capturing": False, "memory_allocated": 0, "max_memory_allocated": 0, "memory_reserved": 0,
                "max_memory_reserved": 0, "memory_stats": {}, "mem_get_info": (properties.total_memory,) * 2, "_is_in_bad_fork": False}
    answers = {name: (lambda *args, value=value, **kwargs: value) for name, value in constant.items()}
    answers |= dict.fromkeys(("_lazy_init", "init", "_lazy_call", "set_device", "synchronize", "empty_cache", "manual_seed",
                              "manual_seed_all", "reset_peak_memory_stats", "set_rng_state", "set_stream"), _nothing)
    answers |= dict.fromkeys(("Stream", "Event", "device", "stream", "device_of"), _Idle)
    answers |= dict.fromkeys(("current_stream", "default_stream"), lambda *args, **kwargs: _Idle())
    answers["get_rng_state"] = lambda *args, **kwargs: torch.zeros(16, dtype=torch.uint8)
    with unittest.mock.patch.multiple(torch.cuda, **answers):
        yield


@contextlib.contextmanager
def backward_passes() -> Iterator[None]:
    """Let autograd's engine run the backward pass of tensors that say "cuda:0" where CUDA finds no GPU.

    Before it uses a GPU's stream the engine asks CUDA's hooks, in C++, whether that GPU is in use (`hasPrimaryContext`), and
    CUDA raises, as it finds none. Python can't replace a C++ method, so the hooks object is given a copy of its table of methods in
    which this one says no; the old table comes back at the end. Where the method stands in the table is read from PyTorch's own
    header. One thread runs the whole pass, as a GPU's own thread was not started.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        if torch.backends.cuda.is_built():
            stack.enter_context(_no_primary_context())
        yield


@contextlib.contextmanager
def _no_primary_context() -> Iterator[None]:
    home = Path(torch.__file__).parent
    try:
        get_hooks = ctypes.CDLL(str(home / "lib/libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
        header = (home / "include/ATen/detail/AcceleratorHooksInterface.h").read_text()
        methods = re.findall(r"virtual [^(]*?(~?\w+)\(", header)
        slot = 1 + methods.index("hasPrimaryContext")  # a destructor, which comes first, has two slots
    except (OSError, AttributeError, ValueError) as error:
        raise RuntimeError(f"PyTorch {torch.__version__} can't run a backward pass without a GPU here: its CUDA hooks are not where "
                           f"2.11 to 2.15 have them ({error})") from error
    get_hooks.restype = ctypes.c_void_p
    table_pointer = ctypes.cast(get_hooks(), ctypes.POINTER(ctypes.c_void_p))
    before, word, words = table_pointer[0], ctypes.sizeof(ctypes.c_void_p), 2 + 128  # two words of type information come first
    table = (ctypes.c_void_p * words).from_buffer_copy((ctypes.c_void_p * words).from_address(before - 2 * word))
    answer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, index: False)
    table[2 + slot] = ctypes.cast(answer, ctypes.c_void_p).value
    table_pointer[0] = ctypes.addressof(table) + 2 * word
    try:
        yield
    finally:
        table_pointer[0] = before


@contextlib.contextmanager
def fresh_caches() -> Iterator[None]:
    """Empty egokit's caches before and after, so that no tensor of one kind meets another kind's."""
    def empty() -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("egokit."):
                for value in list(vars(module).values()):
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()
    empty()
    try:
        yield
    finally:
        empty()


# Tensors without values

class _FakeTensorMode(FakeTensorMode):
    """PyTorch's, which never asks for a real GPU, whatever torch.cuda.is_available() says."""
    avoid_device_init = True


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it takes time in each operation


class NoValues(_Mode):
    """Answer what depends on values that fake tensors don't have.

    A float read with `.item()` is 1, an integer is MANY, a truth value True, but False if it is `any`'s. A boolean mask over a
    square matrix chooses all but its diagonal, any other mask the share MASKED. `waits` lists the operations for which the CPU
    waits for the GPU. `observe` sees every operation.
    """

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []


    def observe(self, func, args, kwargs, out) -> None:
        """Called after each operation that PyTorch's dispatcher gives to a device, with its inputs and what it gave."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:  # asked many times an operation
            return args[0].device
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet in INDEXED:
            args = (args[0], [place for index in args[1] for place in self.places(index)], *args[2:])
        if packet is aten._local_scalar_dense:
            out = self.number(args[0])
        elif packet is aten.nonzero:
            out = args[0].new_empty((self.chosen(args[0]), args[0].dim()), dtype=torch.long)
        else:
            out = func(*args, **kwargs)
        if packet is aten.any:
            out.read_as = False  # nothing is out of bounds
        if self.waited_for(packet, args, kwargs):
            self.waits.append(str(func))
        self.observe(func, args, kwargs, out)
        return out

    def number(self, x: Tensor) -> float | bool | int:
        return 1.0 if x.is_floating_point() else getattr(x, "read_as", True) if x.dtype == torch.bool else MANY

    def chosen(self, mask: Tensor) -> int:
        if mask.dim() == 2 and mask.shape[0] == mask.shape[1]:
            return mask.numel() - len(mask)
        return round(mask.numel() * MASKED)

    def places(self, index: Tensor | None) -> list[Tensor | None]:
        """What a GPU makes of a boolean index: the places, an index for each axis."""
        if index is None or index.dtype != torch.bool:
            return [index]
        return list(self.__torch_dispatch__(aten.nonzero.default, (), (index,)).unbind(1))

    def waited_for(self, packet, args, kwargs) -> bool:
        if packet in (aten._local_scalar_dense, aten.nonzero):
            return args[0].device.type == "cuda"
        if packet is aten._to_copy:
            devices = {args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type}
            return len(devices) == 2 and not kwargs.get("non_blocking")
        return packet is aten.copy_ and args[0].device != args[1].device and not (args[2:] or kwargs.get("non_blocking"))


@contextlib.contextmanager
def attention_kernels() -> Iterator[None]:
    """Have attention be the fused kernel that a GPU has for it: flash in half precision without a mask, else memory-efficient.

    PyTorch asks the GPU itself which kernels it has, and without one falls back to single products.
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
            return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        if attn_mask is not None:
            length = attn_mask.shape[-1]  # the kernel reads masks in rows of 16
            attn_mask = F.pad(attn_mask, (0, -length % 16))[..., :length].expand(*query.shape[:3], length)
        return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p,
                                                            is_causal, scale=scale)[0]

    with unittest.mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


@contextlib.contextmanager
def foreach_of(kind: type[Tensor]) -> Iterator[None]:
    """Have operations on lists of such tensors be those of lists, as for plain tensors on a GPU."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils
    known = [*optimizer._foreach_supported_types, kind]
    with (unittest.mock.patch.object(optimizer, "_foreach_supported_types", known),
          unittest.mock.patch.object(_foreach_utils, "_foreach_supported_types", known)):
        yield


@contextlib.contextmanager
def some_numbers() -> Iterator[None]:
    """Let fake tensors be read as arrays (of zeros) and lists (of 0, 1, 2 …), from the CPU alone as ever; pinning changes nothing."""
    def numpy(tensor: FakeTensor, *, force: bool = False) -> np.ndarray:
        if not force:
            refuse_array(tensor)
        return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))

    def tolist(tensor: FakeTensor) -> list:
        return np.arange(tensor.numel()).reshape(tensor.shape).tolist()

    with (unittest.mock.patch.multiple(FakeTensor, numpy=numpy, tolist=tolist),
          unittest.mock.patch.object(Tensor, "pin_memory", lambda tensor, *args: tensor)):
        yield


def refuse_array(tensor: Tensor) -> None:
    """Raise what a GPU's tensor, and one with a gradient, raises when it is made an array."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy. Use Tensor.cpu() first.")
    if tensor.requires_grad:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


@contextlib.contextmanager
def modules_that_move(fake: FakeTensorMode) -> Iterator[None]:
    """Let nn.Module.to() swap fake parameters, which it refuses while the mode's own memory has a weak reference to them."""
    swap = torch.utils.swap_tensors

    def forgotten(one: Tensor, other: Tensor) -> None:
        fake.fake_tensor_converter.tensor_memo.clear()
        swap(one, other)

    with unittest.mock.patch.object(torch.utils, "swap_tensors", forgotten):
        yield


@contextlib.contextmanager
def without_values(mode: NoValues | None = None) -> Iterator[NoValues]:
    """Tensors made inside have no values; those made for "cuda:0" are a GPU's to all code inside. Yields the mode."""
    mode = mode or NoValues()
    fake = _FakeTensorMode(allow_non_fake_inputs=True)
    with (fresh_caches(), fake, cuda_answers(), backward_passes(), attention_kernels(), foreach_of(FakeTensor), some_numbers(),
          modules_that_move(fake), mode):
        yield mode


# Tensors with values

class ComputedOnCpu(torch.Tensor):
    """A tensor that says "cuda:0" and is computed on the CPU, where `inner` holds its values."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
                                                   dtype=inner.dtype, layout=inner.layout, device=GPU, requires_grad=False)
        made.inner = inner
        return made

    def __repr__(self, **options) -> str:
        return f"{self.inner.__repr__(**options)} on {GPU}"

    def tolist(self) -> list:
        return self.inner.tolist()  # PyTorch gives no list, and no array, of a subclass

    def numpy(self, *, force: bool = False):
        if not force:
            refuse_array(self)
        return self.detach().inner.numpy(force=True).copy()

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)  # a file holds plain tensors

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class CpuForGpu(_Mode):
    """Give what is asked for on the GPU, also by functions that take no tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    """An operation's result, computed on the CPU, on the device on which a GPU's machine would have it.

    Raises:
        RuntimeError: a GPU would refuse these devices together.
    """
    if func is torch.ops.prim.device.default:
        return GPU
    packet = func.overloadpacket
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    on_gpu = any(isinstance(x, ComputedOnCpu) for x in tensors)
    wanted = torch.device(kwargs.get("device") or (GPU if on_gpu else "cpu"))
    if packet not in COPIES:
        refuse_mix(func, args, kwargs, tensors, on_gpu)
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != wanted.type:
        raise RuntimeError(f"{func}: Expected a {wanted.type!r} device type for generator but found {generator.device.type!r}")
    owners = {id(x.inner): x for x in tensors if isinstance(x, ComputedOnCpu)}

    def outer(x):
        if not isinstance(x, Tensor):
            return x
        return owners[id(x)] if id(x) in owners else ComputedOnCpu(x)

    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, ComputedOnCpu) else x, (args, kwargs))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    out = func(*args, **kwargs)
    if wanted.type != "cuda":
        # a copy to the other device is one, though both are the CPU's memory
        return out.clone() if packet is aten._to_copy and on_gpu and out is args[0] else out
    return tree_map(outer, out)


COPIES = {aten._to_copy, aten.copy_, aten.copy, aten._foreach_copy_}


def refuse_mix(func, args, kwargs, tensors: list[Tensor], on_gpu: bool) -> None:
    """Raise what a GPU raises for tensors of both devices. A single number, and indices of a GPU's tensor, may be the CPU's."""
    if not on_gpu:
        return
    if func.overloadpacket in INDEXED and isinstance(args[0], ComputedOnCpu):
        tensors = [args[0], *(x for x in args[2:] if isinstance(x, Tensor))]
    if any(x.dim() and not isinstance(x, ComputedOnCpu) for x in tensors):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!")


@contextlib.contextmanager
def on_the_cpu() -> Iterator[None]:
    """Tensors on "cuda:0" made inside have values, are computed on the CPU, and refuse to be mixed with the CPU's."""
    torch._C._ensureCUDADeviceGuardSet()  # this and the next are what FakeTensorMode does where there is no GPU
    lifted, overwrite = torch._C._only_lift_cpu_tensors(), torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda:0") makes its numbers on the CPU, then copies them
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter that moves becomes one of the other class
    try:
        with (fresh_caches(), cuda_answers(), backward_passes(), foreach_of(ComputedOnCpu), CpuForGpu(),
              unittest.mock.patch.multiple(torch.cuda, get_rng_state=lambda *args: torch.get_rng_state(),
                                           set_rng_state=lambda state, *args: torch.set_rng_state(state)),
              unittest.mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *args: tensor)):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
