"""Divided attention on a GPU in one pass over packed queries, keys and values (model.attention=triton).

It computes what DividedAttention (video_encoder.py) computes by PyTorch's kernels, without the copies that these need:
patches are read where the linear layer has written them, CLS is one more key of each group, and the outputs lie in the
order of the tokens. The kernels are in divided_kernels.py. To PyTorch they are one operation forward and one backward,
which torch.compile, selective recomputation and the counter of benchmarks/gpu_cost.py know by its name.

Shapes: B clips, T frames, N patches a frame, S = 1 + T*N tokens, D width, H heads, K = D/H.
"""
import functools

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from egokit.model import divided_kernels as kernels

DEVICES = ("cuda", "cpu") if triton.knobs.runtime.interpret else ("cuda",)  # Triton's interpreter serves the tests
PARTS = 16         # tiles whose parts of CLS are added up at once
WIDEST_HEAD = 64  # K; twice as wide ones would not fit every card's shared memory
WARPS, FORWARD_STAGES, BACKWARD_STAGES = 4, 2, 1  # what the compiler fits into registers, at K = 64 for an H100


def refusal(head_width: int) -> str:
    """Return why a model's heads can't be computed by these kernels, and what to do; "" if they can, or without a GPU.

    Args:
        head_width: K.
    """
    if head_width > WIDEST_HEAD:
        return (f"takes at most {WIDEST_HEAD} dimensions a head, but model.width / model.heads is {head_width}: "
                "give the model more heads")
    return unbuilt() if torch.cuda.is_available() else ""


@functools.cache
def unbuilt() -> str:
    """Return what keeps Triton from building what starts kernels on this machine's GPU; "" if nothing does.

    It needs a C compiler and Python's headers, or what it built before with the same PyTorch (~/.triton).
    """
    if triton.knobs.runtime.interpret:
        return ""
    try:
        _ = triton.runtime.driver.active.utils  # what the first kernel would ask for
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:150]
        need = "needs a C compiler (gcc, or $CC) and Python's headers (python3-dev) on the node"
        print(f"divided attention by egokit's kernels {need} ({reason}); PyTorch's, which are slower, take their place",
              flush=True)
        return f"{need} ({reason}): add them"
    return ""


class Tiling:
    """How the groups of a clip are cut into tiles, and the kernels' arguments that follow."""

    def __init__(self, qkv: Tensor, heads: int, frames: int, over_time: bool):
        self.clips, tokens, three = qkv.shape
        width, patches = three // 3 // heads, (tokens - 1) // frames
        if (width * heads * 3, patches * frames) != (three, tokens - 1) or width > WIDEST_HEAD or patches < 1:
            raise ValueError(f"divided attention: {tokens} tokens are not CLS and {frames} frames of patches, or "
                             f"{three} channels are not {heads} heads of at most {WIDEST_HEAD}, three times")
        exact = qkv.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
        groups, size = (patches, frames) if over_time else (frames, patches)
        block = 32 if size <= 32 else 64  # rows; smaller ones leave more programs at once to read from memory
        pack = max(1, min(groups, block // size))
        self.heads, self.tiles = heads, -(-groups // pack)
        self.channels = max(16, triton.next_power_of_2(width))
        self.sizes = tokens, heads, width
        self.groups = groups, size, *((1, patches) if over_time else (patches, 1))
        self.scale = width ** -0.5
        self.options = {"PACK": pack, "BLOCKS": -(-pack * size // block), "BLOCK": block, "CHANNELS": self.channels,
                        "PRECISION": "ieee" if exact else "tf32"}

    def run(self, kernel, cls_kernel, tensors: tuple[Tensor, ...], stages: int) -> None:
        with torch.cuda.device_of(tensors[0]):  # Triton takes the current GPU
            kernel[self.heads, self.tiles, self.clips](*tensors, *self.sizes, *self.groups, self.scale, **self.options,
                                                       num_warps=WARPS, num_stages=stages)
            cls_kernel[self.heads, self.clips](*tensors, *self.sizes, self.scale, TILES=self.tiles,
                                               PARTS=PARTS, CHANNELS=self.channels)


@torch.library.custom_op("egokit::divided_attention", mutates_args=())
def divided_attention(qkv_BSC: Tensor, heads: int, frames: int, over_time: bool) -> tuple[Tensor, Tensor]:
    """Return what each token reads, (B, S, D), and the logarithms of its softmax' sums, (B, H, S) float32.

    Args:
        qkv_BSC: queries, keys and values side by side, (B, S, 3*D), with CLS first, then frame by frame.
        frames: T.
        over_time: whether the groups are the patches at one position, or else those of one frame.
    """
    qkv_BSC, tiling = qkv_BSC.contiguous(), Tiling(qkv_BSC, heads, frames, over_time)
    out, lse = _outputs(qkv_BSC, heads)
    parts = lse.new_empty(tiling.clips, heads, tiling.tiles, tiling.channels + 2)
    tiling.run(kernels.forward, kernels.forward_cls, (qkv_BSC, out, lse, parts), FORWARD_STAGES)
    return out, lse


@torch.library.custom_op("egokit::divided_attention_backward", mutates_args=())
def divided_attention_backward(grad_out: Tensor, qkv_BSC: Tensor, out: Tensor, lse: Tensor, heads: int, frames: int,
                               over_time: bool) -> Tensor:
    """Return the gradient of queries, keys and values, (B, S, 3*D)."""
    qkv_BSC, tiling = qkv_BSC.contiguous(), Tiling(qkv_BSC, heads, frames, over_time)
    grad_qkv = torch.empty_like(qkv_BSC)
    parts = lse.new_empty(tiling.clips, heads, tiling.tiles, 3, tiling.channels)
    rows = lse.new_empty(tiling.clips, heads, 4, qkv_BSC.shape[1])
    tiling.run(kernels.backward, kernels.backward_cls,
               (qkv_BSC, out, lse, grad_out.contiguous(), grad_qkv, parts, rows), BACKWARD_STAGES)
    return grad_qkv


@divided_attention.register_fake
def _outputs_without_values(qkv_BSC, heads, frames, over_time):
    return _outputs(qkv_BSC, heads)


@divided_attention_backward.register_fake
def _gradient_without_values(grad_out, qkv_BSC, out, lse, heads, frames, over_time):
    return torch.empty_like(qkv_BSC, memory_format=torch.contiguous_format)


def _outputs(qkv_BSC: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    B, S, C = qkv_BSC.shape
    return qkv_BSC.new_empty(B, S, C // 3), qkv_BSC.new_empty(B, heads, S, dtype=torch.float32)


def _keep(ctx, inputs, output) -> None:
    qkv_BSC, *ctx.rest = inputs
    ctx.save_for_backward(qkv_BSC, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, grad_out: Tensor, _):
    return divided_attention_backward(grad_out, *ctx.saved_tensors, *ctx.rest), None, None, None


divided_attention.register_autograd(_gradients, setup_context=_keep)


def _flops(qkv_shape, heads, frames, over_time, products: int) -> int:
    B, S, C = qkv_shape
    size = frames if over_time else (S - 1) // frames
    return products * 2 * B * (C // 3) * ((S - 1) * (size + 1) + S)


@register_flop_formula(torch.ops.egokit.divided_attention)
def _forward_flops(qkv_shape, heads, frames, over_time, out_shape=None, **_) -> int:
    """Scores and what is read: each query with the keys of its group and CLS; CLS with all."""
    return _flops(qkv_shape, heads, frames, over_time, 2)


@register_flop_formula(torch.ops.egokit.divided_attention_backward)
def _backward_flops(grad_shape, qkv_shape, read_shape, lse_shape, heads, frames, over_time, **_) -> int:
    """Five products, of which the scores are computed again."""
    return _flops(qkv_shape, heads, frames, over_time, 5)
