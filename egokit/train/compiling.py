"""torch.compile of the encoders' blocks, one by one: what lies between them (losses, gathering, recomputation) stays as it is."""
from __future__ import annotations

import torch

VARIANTS = 32  # of a block: fused or not, whole or its first token, in training and evaluation, each at some shapes


def compile_blocks(model) -> None:
    """Compile each block of both encoders on its first use; RuntimeError where that can't be done here.

    Names of parameters stay what they are. A shape that changes (texts, an epoch's last batch) becomes symbolic the second time.
    """
    try:
        torch.compile(lambda x: (x + 1).sin())(torch.ones(8, device=model.device))
    except Exception as error:  # of many kinds, by version and by what is missing
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError("train.compile needs a working C++ compiler (g++ or clang++, or the one that CXX names) and, on a GPU, Triton; "
                           f"install it, or set train.compile=false. What was found: {reason[0]}") from error
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for block in (*model.video.blocks, *model.text.layers):
        block.compile()
