"""torch.compile of the encoders' blocks (train.compile): no graph breaks, and few graphs for all shapes of a run."""
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def compile_blocks(model, backend: str | Callable = "inductor", fixed_shapes: bool | None = None) -> "CompiledBlocks":
    """Let torch.compile compile the blocks of both encoders, each kind on its first use.

    What lies between the blocks (losses, gathering, recomputation) is not compiled. Names of parameters stay as they
    are.

    Args:
        backend: torch.compile's.
        fixed_shapes: see CompiledBlocks; None: on a GPU alone.

    Returns:
        The compiled functions, which the blocks call from now on.

    Raises:
        RuntimeError: torch.compile does not work here, for example because there is no C++ compiler.
    """
    try:
        torch.compile(lambda x: (x + 1).sin(), backend=backend)(torch.ones(8, device=model.device))
    except Exception as error:  # its class depends on PyTorch's version and on what is missing
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError("train.compile needs a working C++ compiler (g++ or clang++, or the one that CXX names) "
                           "and, on a GPU, Triton; install it, or set train.compile=false. "
                           f"What was found: {reason[0]}") from error
    # DDP's optimizer would split each block where a bucket of gradients is full. Between blocks, gradients arrive
    # early enough to be sent during the backward pass.
    torch._dynamo.config.optimize_ddp = False
    # Else two sizes that happen to be equal, such as 15 clips and 15 tokens, would be taken for one and the same.
    torch.fx.experimental._config.use_duck_shape = False
    blocks = CompiledBlocks(backend, model.device.type == "cuda" if fixed_shapes is None else fixed_shapes)
    for block in (*model.video.blocks, *model.text.layers):
        block.forward = functools.partial(blocks, block)
    return blocks


@dataclass(frozen=True)
class Kind:
    """What a block computes: blocks of a kind share their graphs, whatever their weights."""
    block: type[nn.Module]
    given: tuple[bool | None, ...]  # of each argument: its value if it is a flag, else whether it is there
    training: bool                  # whether gradients are computed


class CompiledBlocks:
    """The compiled functions of all kinds of blocks.

    A kind has at most 4 graphs over a run, two with and two without gradients:

    - On a CPU, one graph for a batch of one and one for all other batches; lengths of texts and numbers of frames
      are symbolic from the first. So the graphs, and with them the rounding, do not depend on the step at which a run
      was resumed.
    - With `fixed_shapes` (a GPU, where training pads all texts to one length) one graph for the shapes that come first,
      and one with symbolic sizes for all others: last batches, and texts of an evaluation. torch.compile's own
      "automatic dynamic" would use the symbolic graph for the first shapes, too, from then on. A batch of one,
      for which symbolic sizes would take a graph of their own, is computed as two equal items.

    Beyond that, torch.compile makes new graphs where blocks differ in what is frozen, up to its `recompile_limit`.

    Attributes:
        functions: the compiled functions of each kind, by whether their shapes are fixed.
    """

    def __init__(self, backend: str | Callable, fixed_shapes: bool):
        self.backend, self.fixed_shapes = backend, fixed_shapes
        self.functions: dict[tuple[Kind, bool], Callable] = {}
        self.first: dict[Kind, tuple] = {}

    def __call__(self, block: nn.Module, x: Tensor, *others) -> Tensor:
        kind = Kind(type(block), tuple(y if isinstance(y, bool) else y is not None for y in others),
                    torch.is_grad_enabled())
        fixed = False
        if self.fixed_shapes:
            shapes = tuple(y.shape if isinstance(y, Tensor) else y for y in (x, *others))
            fixed = self.first.setdefault(kind, shapes) == shapes
            if not fixed and len(x) == 1:
                twice = (torch.cat([y, y]) if isinstance(y, Tensor) else y for y in (x, *others))
                return self.function(kind, False)(block, *twice)[:1]
        return self.function(kind, fixed)(block, x, *others)

    def function(self, kind: Kind, fixed: bool) -> Callable:
        found = self.functions.get((kind, fixed))
        if found is None:
            # a code object of its own, because PyTorch keeps graphs, looks for them and limits them by code object
            own = types.FunctionType(_compute.__code__.replace(), globals())
            found = torch.compile(own, backend=self.backend, fullgraph=True, dynamic=not fixed)
            self.functions[kind, fixed] = found
        return found


def _compute(block, *inputs):
    return type(block).forward(block, *inputs)
