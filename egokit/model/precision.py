"""How exactly a GPU computes: float32 or TensorFloat-32, deterministically or not."""
import contextlib
import os
from collections.abc import Iterator

import torch

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@contextlib.contextmanager
def float32_products(device, tf32: bool) -> Iterator[None]:
    """Set within the block how a GPU computes products and convolutions of float32 tensors.

    PyTorch's own defaults are float32 for products, but TensorFloat-32 for convolutions.

    Args:
        tf32: round factors to TensorFloat-32 (10 bits of mantissa), which is several times as fast.
    """
    if device.type != "cuda":
        yield
        return
    with contextlib.ExitStack() as restored:
        restored.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        restored.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
        torch.backends.cudnn.allow_tf32 = tf32
        yield


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use only deterministic algorithms within the block, if wanted (train.deterministic).

    cuBLAS needs a workspace of a fixed size, which it reads from the environment at its first product. cuDNN's
    attention is switched off, as its backward pass is never deterministic; PyTorch's other kernels are, in this mode.

    Raises:
        RuntimeError: an operation within the block has no deterministic algorithm.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with contextlib.ExitStack() as restored:
        restored.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled(),
                          warn_only=torch.is_deterministic_algorithms_warn_only_enabled())
        torch.use_deterministic_algorithms(True)
        restored.callback(torch.backends.cuda.enable_cudnn_sdp, torch.backends.cuda.cudnn_sdp_enabled())
        torch.backends.cuda.enable_cudnn_sdp(False)
        restored.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
        torch.backends.cudnn.benchmark = False
        yield


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in mixed precision (fp16, bf16), in float32 (fp32) or in TensorFloat-32 (tf32)."""
    with (float32_products(device, tf32=precision == "tf32"),
          torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF)):
        yield


def half_precision(device: torch.device) -> torch.dtype | None:
    """Return the data type that autocast gives products on a device; None outside autocast."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):  # a meta device has no autocast to ask
        return None
    return torch.get_autocast_dtype(device.type)
