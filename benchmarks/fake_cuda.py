"""What both ways of fake_gpu.py share: torch.cuda's answers without a GPU, backward passes, a GPU's refusals."""
from __future__ import annotations

import contextlib
import ctypes
import re
import sys
import types
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import torch
import torch._dynamo  # lists torch.cuda's functions when it is imported, which should be the real ones
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import DefaultDeviceType

from egokit.model import divided_attention

aten = torch.ops.aten
GPU = torch.device("cuda:0")
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index,
            aten._unsafe_index_put}


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


def nothing(*args, **kwargs) -> None:
    pass


@contextlib.contextmanager
def cuda_answers(unbuilt: str = "") -> Iterator[None]:
    """Let torch.cuda answer as if there were one GPU, with an H100's properties.

    Args:
        unbuilt: why egokit's own kernels could not be built for it; "" if they could.
    """
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
        "set_rng_state", "empty_cache", "reset_peak_memory_stats"), nothing)
    answers |= dict.fromkeys(("Stream", "Event", "device", "stream", "device_of"), _Idle)
    answers |= dict.fromkeys(("current_stream", "default_stream"), lambda *args, **kwargs: _Idle())
    answers["get_rng_state"] = lambda *args, **kwargs: torch.zeros(16, dtype=torch.uint8)
    with (unittest.mock.patch.multiple(torch.cuda, **answers),
          unittest.mock.patch.object(divided_attention, "unbuilt", lambda: unbuilt)):
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
    """Empty caches before and after, so that tensors of two kinds never meet."""
    def empty() -> None:
        modules = [module for name, module in list(sys.modules.items()) if name.startswith("egokit.")]
        for cached in [value for module in modules for value in vars(module).values() if hasattr(value, "cache_clear")]:
            cached.cache_clear()

    empty()
    try:
        # PyTorch's checkpoints remember whether there was a GPU when they first asked
        with unittest.mock.patch.object(DefaultDeviceType, "_default_device_type", None):
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


class Mode(TorchDispatchMode):
    """A dispatch mode that Dynamo leaves alone."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it takes time in each operation


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
