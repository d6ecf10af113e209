"""Runs the kernels of divided attention in Triton's interpreter, on a CPU, against the path of PyTorch's kernels.

    TRITON_INTERPRET=1 python tests/interpreted_attention.py quick|whole     (test_divided_attention.py runs it)

It is a process of its own, because Triton chooses between compiler and interpreter when the kernels are imported.
The interpreter can't multiply bfloat16, so that is left to the compiler. Differences are the largest, as a share of the
largest value of what is compared, or of its gradient.
"""
import itertools
import json
import sys
import warnings

import torch
from torch import Tensor, nn

from egokit.config.schema import ModelConfig
from egokit.model.divided_attention import divided_attention
from egokit.model.egovlp import EgoVLP
from egokit.model.video_encoder import DividedAttention

FRAMES = (1, 4, 16, 32)
SHAPE = ModelConfig(image_size=32, width=32, heads=2, depth=2, num_fused_layers=1, vocab_size=99, max_positions=40,
                    projection="linear8", frames=32, dropout=0.0)


class Given(nn.Module):
    """Stands for a linear layer whose output is known."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, _, **options) -> Tensor:
        return self.output


def difference(x: Tensor, exact: Tensor) -> float:
    return ((x.double() - exact.double()).abs().max() / exact.double().abs().max().clamp_min(1e-12)).item()


def plain(qkv_BSC: Tensor, heads: int, frames: int, over: str) -> Tensor:
    """Return what PyTorch's path makes of packed queries, keys and values."""
    layer = DividedAttention(qkv_BSC.shape[-1] // 3, heads, over)
    layer.qkv, layer.proj = Given(qkv_BSC), nn.Identity()
    return layer(qkv_BSC[..., :qkv_BSC.shape[-1] // 3], frames)


def kernels(frames: int, patches: int, heads: int, width: int, over: str, dtype: torch.dtype) -> dict:
    """Compare outputs and gradients of the kernels in a data type with float64's of the plain path."""
    torch.manual_seed(0)
    clips = 2 if frames * patches < 300 else 1
    qkv = torch.randn(clips, 1 + frames * patches, 3 * heads * width, dtype=dtype, requires_grad=True)
    exact_qkv = qkv.detach().double().requires_grad_()
    exact, out = plain(exact_qkv, heads, frames, over), divided_attention(qkv, heads, frames, over == "time")[0]
    grad = torch.randn_like(out)
    out.backward(grad)
    exact.backward(grad.double())
    return {"frames": frames, "patches": patches, "over": over, "dtype": str(dtype).split(".")[1],
            "values": difference(out, exact), "gradients": difference(qkv.grad, exact_qkv.grad)}


def outputs(model: EgoVLP, frames_BTCHW: Tensor) -> list[Tensor]:
    """Both halves of the model, fused and unfused, with all tokens of the last block and with CLS alone."""
    ids = torch.arange(12).reshape(2, 6) + 5
    tokens, frames = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, frames_BTCHW.shape[1]
    trunk, words = model.fusion_trunk(frames_BTCHW), model.text_trunk(tokens)
    states = [model.fuse(trunk, words, tokens["attention_mask"], frames, read) for read in ("all", "itm", "mlm")]
    return [model.embed_video(frames_BTCHW), trunk, *(x for pair in states for x in pair if x is not None)]


def whole_model(frames: int, compiled: bool) -> dict:
    """Compare a small model's outputs and gradients under model.attention=triton with sdpa's."""
    torch.manual_seed(0)
    model = EgoVLP(SHAPE)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.2 if "weight" in name else 0.5)
    clips, found = torch.randn(2, frames, 3, 32, 32), {}
    for attention in ("sdpa", "triton"):
        model.compute_as(ModelConfig(attention=attention))
        for block in model.video.blocks if compiled and attention == "triton" else ():
            block.compile(fullgraph=True, backend="aot_eager")
        made = outputs(model.train(), clips)
        sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in made).backward()
        found[attention] = made, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
    (exact, exact_grads), (made, grads) = found["sdpa"], found["triton"]
    largest = max(grad.abs().max() for grad in exact_grads.values())
    return {"frames": frames, "compiled": compiled, "parameters": len(grads), "of": len(exact_grads),
            "values": max(map(difference, made, exact)),
            "gradients": max(((grads[name] - grad).abs().max() / largest).item() for name, grad in exact_grads.items())}


def quick() -> list[dict]:
    """Four frames, and groups that take several blocks."""
    cases = [(4, 5, 24, "time"), (4, 5, 24, "space"), (3, 70, 16, "space"), (70, 3, 16, "time")]
    rows = [kernels(frames, patches, 2, width, over, torch.float32) for frames, patches, width, over in cases]
    qkv = torch.randn(1, 9, 48, requires_grad=True)
    checked = torch.library.opcheck(divided_attention, (qkv, 1, 2, True), raise_exception=False)
    return [{"kind": "kernels"} | row for row in rows] + [{"kind": "operation", "checks": checked}]


def whole() -> list[dict]:
    rows = [kernels(frames, patches, heads, width, over, torch.float32) for frames, (patches, heads, width), over in
            itertools.product(FRAMES, ((5, 2, 24), (70, 1, 16)), ("time", "space"))]
    rows += [kernels(4, 70, 1, 32, over, torch.float16) for over in ("time", "space")]
    models = [whole_model(frames, False) for frames in FRAMES] + [whole_model(4, True)]
    return [{"kind": "kernels"} | row for row in rows] + [{"kind": "model"} | row for row in models]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for row in {"quick": quick, "whole": whole}[sys.argv[1]]():
        print(json.dumps(row))
