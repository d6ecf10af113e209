"""Runs egokit as on "cuda:0" without a GPU, to check devices and to count costs.

There are two ways, each a context manager.

`without_values()`: tensors have shapes, types and devices, but no values (PyTorch's FakeTensorMode). Nothing is
computed, so a whole training step of the full-size model takes seconds. An operation whose tensors lie on different
devices raises an error, as on a GPU. What depends on values is assumed: see `NoValues`.

`on_the_cpu()`: tensors have values and are computed on the CPU, but say "cuda:0" (a tensor subclass). An operation that
a GPU refuses, because its tensors lie on different devices, raises an error. Whole runs on tiny data work like this.

No kernel of a GPU runs in either way, so they say nothing about its speed, its rounding or its allocator.
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
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
GPU = torch.device("cuda:0")
UNKNOWN = 2**15          # an integer that depends on values; as the end of a slice it means "all"
MASKED = 0.15 * 13 / 15  # share of tokens that a boolean mask chooses: 15 % of the words between a text's start and end
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index,
            aten._unsafe_index_put}


# What PyTorch asks CUDA

class _Idle:
    """Stands in for torch.cuda.Stream, Event and device: there is nothing to wait for."""

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
    """Let torch.cuda answer as if there were one GPU, with an H100's properties."""
    memory = 80 * 2**30
    properties = types.SimpleNamespace(name="no GPU", major=9, minor=0, total_memory=memory, multi_processor_count=132,
                                       warp_size=32, max_threads_per_multi_processor=2048, L2_cache_size=50 * 2**20,
                                       uuid="no-gpu")
    constants = {
        "is_available": True, "is_initialized": True, "is_bf16_supported": True, "device_count": 1, "current_device": 0,
        "get_device_name": properties.name, "get_device_capability": (9, 0), "get_device_properties": properties,
        "is_current_stream_capturing": False, "_is_in_bad_fork": False, "mem_get_info": (memory, memory),
        "memory_allocated": 0, "max_memory_allocated": 0, "memory_reserved": 0, "max_memory_reserved": 0,
        "memory_stats": {}}
    answers = {name: (lambda *args, value=value, **kwargs: value) for name, value in constants.items()}
    answers |= dict.fromkeys((
        "_lazy_init", "init", "_lazy_call", "set_device", "set_stream", "synchronize", "manual_seed", "manual_seed_all",
        "set_rng_state", "empty_cache", "reset_peak_memory_stats"), _nothing)
    answers |= dict.fromkeys(("Stream", "Event", "device", "stream", "device_of"), _Idle)
    answers |= dict.fromkeys(("current_stream", "default_stream"), lambda *args, **kwargs: _Idle())
    answers["get_rng_state"] = lambda *args, **kwargs: torch.zeros(16, dtype=torch.uint8)
    with unittest.mock.patch.multiple(torch.cuda, **answers):
        yield


@contextlib.contextmanager
def backward_passes() -> Iterator[None]:
    """Let autograd run backward passes of tensors that say "cuda:0", in this thread.

    PyTorch would leave it to a thread for each GPU, and has found none.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        if torch.backends.cuda.is_built():
            stack.enter_context(_no_primary_context())
        yield


@contextlib.contextmanager
def _no_primary_context() -> Iterator[None]:
    """Let CUDA's hooks say that no GPU is in use, instead of raising an error.

    Autograd asks them, in C++, before it notes a GPU's current stream (`hasPrimaryContext`). Python can't replace a
    method of C++. Instead the hooks object gets a copy of its table of virtual methods in which this one is ours, and
    its own table back at the end. PyTorch's header says at which place of the table the method stands.

    Raises:
        RuntimeError: this PyTorch has no such hooks, or no such header.
    """
    home = Path(torch.__file__).parent
    try:
        get_hooks = ctypes.CDLL(str(home / "lib/libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
        header = (home / "include/ATen/detail/AcceleratorHooksInterface.h").read_text()
        methods = re.findall(r"virtual [^(]*?(~?\w+)\(", header)
        place = 1 + methods.index("hasPrimaryContext")  # the destructor, the first, takes two places
    except (OSError, AttributeError, ValueError) as error:
        raise RuntimeError(f"PyTorch {torch.__version__}: no backward pass on a GPU that is not there, as CUDA's hooks "
                           f"are not where PyTorch 2.11 and 2.15 have them ({error})") from error
    get_hooks.restype = ctypes.c_void_p
    pointer = ctypes.cast(get_hooks(), ctypes.POINTER(ctypes.c_void_p))
    word, own_table, before = ctypes.sizeof(ctypes.c_void_p), pointer[0], 2  # words of type information
    words = ctypes.c_void_p * (before + 128)
    table = words.from_buffer_copy(words.from_address(own_table - before * word))
    answer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, index: False)
    table[before + place] = ctypes.cast(answer, ctypes.c_void_p).value
    pointer[0] = ctypes.addressof(table) + before * word
    try:
        yield
    finally:
        pointer[0] = own_table


@contextlib.contextmanager
def fresh_caches() -> Iterator[None]:
    """Empty egokit's caches before and after, so that tensors of two kinds never meet."""
    def empty() -> None:
        modules = [module for name, module in list(sys.modules.items()) if name.startswith("egokit.")]
        for cached in [value for module in modules for value in vars(module).values() if hasattr(value, "cache_clear")]:
            cached.cache_clear()

    empty()
    try:
        yield
    finally:
        empty()


@contextlib.contextmanager
def foreach_of(kind: type[Tensor]) -> Iterator[None]:
    """Let PyTorch pass a list of such tensors to one operation, as on a GPU."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils
    kinds = [*optimizer._foreach_supported_types, kind]
    with (unittest.mock.patch.object(optimizer, "_foreach_supported_types", kinds),
          unittest.mock.patch.object(_foreach_utils, "_foreach_supported_types", kinds)):
        yield


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it takes time in each operation


# Tensors without values

class _FakeTensorMode(FakeTensorMode):
    """PyTorch's own, which never looks for a GPU, whatever torch.cuda.is_available() says."""
    avoid_device_init = True


class NoValues(_Mode):
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


def refuse_indices(args) -> None:
    """Raise PyTorch's error if a tensor of the CPU is indexed by one of a GPU."""
    if args[0].device.type == "cpu" and any(index is not None and index.device.type != "cpu" for index in args[1]):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")


def refuse_array(tensor: Tensor) -> None:
    """Raise PyTorch's error if a tensor on a GPU or with a gradient is to become an array."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy. Use Tensor.cpu() first.")
    if tensor.requires_grad:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


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
          unittest.mock.patch.object(fake_tensor, "init_gpu_context", _nothing), mode):
        yield mode


# Tensors with values

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


class _ComputedMode(_Mode):
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
        with (fresh_caches(), cuda_answers(), backward_passes(), foreach_of(ComputedOnCpu), _ComputedMode(),
              unittest.mock.patch.multiple(torch.cuda, get_rng_state=lambda *args: torch.get_rng_state(),
                                           set_rng_state=lambda state, *args: torch.set_rng_state(state)),
              unittest.mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *args: tensor)):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
