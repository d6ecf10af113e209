"""torch.compile of the encoders' blocks (train.compile): no graph breaks, and few graphs for all shapes of a run."""
import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from egokit.config.build import ConfigError
from egokit.model.egovlp import EgoVLP


def compile_blocks(model, backend: str | Callable = "inductor", fixed_shapes: bool | None = None) -> "CompiledBlocks":
    """Let torch.compile compile the blocks of both encoders, each kind on its first use.

    What lies between the blocks (losses, gathering, recomputation) is not compiled. Names of parameters stay as they
    are.

    Args:
        model: an EgoVLP; its blocks call compiled functions from now on.
        backend: torch.compile's.
        fixed_shapes: see `CompiledBlocks`; None: on a GPU alone.

    Returns:
        The compiled functions.

    Raises:
        ConfigError: the model has no encoders.
        RuntimeError: torch.compile does not work here, for example because there is no C++ compiler.
    """
    if not isinstance(model, EgoVLP):
        raise ConfigError("train.compile compiles the encoders' blocks, but this task trains only a head on stored "
                          "features: set train.compile=false")
    try:
        torch.compile(lambda x: (x + 1).sin(), backend=backend)(torch.ones(8, device=model.device))
    except Exception as error:  # its class depends on PyTorch's version and on what is missing
        raise RuntimeError("train.compile needs a working C++ compiler (g++ or clang++, or the one that CXX names) "
                           "and, on a GPU, Triton; install it, or set train.compile=false. "
                           f"What was found: {first_line(error)}") from error
    blocks = CompiledBlocks(backend, model.device.type == "cuda" if fixed_shapes is None else fixed_shapes)
    for block in (*model.video.blocks, *model.text.layers):
        block.forward, block.is_compiled = functools.partial(blocks, block), True
    return blocks


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Compile within the block as is right for blocks; PyTorch's settings are those of one thread."""
    dynamo, shapes = torch._dynamo.config, torch.fx.experimental._config
    before = dynamo.optimize_ddp, dynamo.skip_nnmodule_hook_guards, shapes.use_duck_shape
    # DDP's own optimizer would split a block wherever a bucket of gradients is full. Whole blocks are small enough for
    # their gradients to be sent during the backward pass.
    dynamo.optimize_ddp = False
    # A hook that is set after the first call, such as that of viz/attention.py, would be ignored.
    dynamo.skip_nnmodule_hook_guards = False
    # Two sizes that happen to be equal, such as 15 clips and 15 tokens, would be taken for the same one.
    shapes.use_duck_shape = False
    try:
        yield
    finally:
        dynamo.optimize_ddp, dynamo.skip_nnmodule_hook_guards, shapes.use_duck_shape = before


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class Kind:
    """What a block computes. Blocks of a kind share their graphs, whatever their weights.

    Attributes:
        block: the class.
        given: of each argument after the first: its value if it is a flag, else whether it is there.
        gradients: whether they are computed.
        trained: of each parameter: whether it is trained.
    """
    block: type[nn.Module]
    given: tuple[bool, ...]
    gradients: bool
    trained: tuple[bool, ...]


class CompiledBlocks:
    """The compiled functions of all kinds of blocks.

    A block has at most 2 graphs with gradients (training) and 2 without (evaluation):

    - On a CPU, one graph for a batch of one and one for all other batches. Sizes are symbolic from the first call:
      lengths of texts change with every batch there. No graph depends on what came before, so that a run that is
      resumed is rounded as if it had not been interrupted.
    - With `fixed_shapes`, one graph for the shapes that come first, and one with symbolic sizes for all others. That is
      for GPUs, where training pads all texts to one length: only last batches, and texts of evaluations, have other
      shapes. The quicker kernels of the first shapes stay in use; torch.compile's automatic choice would
      abandon them at the second shape. A batch of one, which would need a third graph, is computed as two equal rows.

    Blocks that differ in what is frozen are of different kinds.

    Attributes:
        functions: the compiled function of each kind, for fixed shapes and for others.
        first: the fixed shapes of each kind.
    """

    def __init__(self, backend: str | Callable, fixed_shapes: bool):
        self.backend, self.fixed_shapes = backend, fixed_shapes
        self.functions: dict[tuple[Kind, bool], Callable] = {}
        self.first: dict[Kind, tuple] = {}

    def __call__(self, block: nn.Module, *inputs: Tensor | int | None) -> Tensor:
        """Return block(*inputs).

        Args:
            inputs: the tokens (B, …), then what else the block takes; all tensors have B rows.

        Raises:
            RuntimeError: the block can't be compiled as one graph, or torch.compile's limit of graphs is reached.
        """
        kind = Kind(type(block), tuple(x if isinstance(x, bool) else x is not None for x in inputs[1:]),
                    torch.is_grad_enabled(), tuple(x.requires_grad for x in block.parameters()))
        if not self.fixed_shapes:
            return self.compute(kind, False, block, inputs)
        shapes = tuple(x.shape if isinstance(x, Tensor) else x for x in inputs)
        if self.first.setdefault(kind, shapes) == shapes:
            return self.compute(kind, True, block, inputs)
        if len(inputs[0]) > 1:
            return self.compute(kind, False, block, inputs)
        return self.compute(kind, False, block, [twice(x) if isinstance(x, Tensor) else x for x in inputs])[:1]

    def __getstate__(self) -> dict:
        """Leave out compiled functions, which can't be pickled; they are made anew."""
        return vars(self) | {"functions": {}, "first": {}}

    def compute(self, kind: Kind, fixed: bool, block: nn.Module, inputs) -> Tensor:
        """Return block(*inputs) by the function of a kind, which is made if there is none yet."""
        function = self.functions.get((kind, fixed))
        if function is None:
            # PyTorch keeps, searches and limits graphs by code object: each function has its own
            own = types.FunctionType(forward.__code__.replace(), globals())
            function = torch.compile(own, backend=self.backend, fullgraph=True, dynamic=not fixed)
            self.functions[kind, fixed] = function
        try:
            with _settings():
                return function(block, *inputs)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            limit = torch._dynamo.config.recompile_limit
            raise RuntimeError(f"train.compile: {type(block).__name__} needs more than {limit} graphs ({kind}), "
                               "because more than sizes keeps changing: TORCH_LOGS=recompiles says what. Make it the "
                               "same in all passes, or set train.compile=false") from error
        except torch._dynamo.exc.Unsupported as error:
            raise RuntimeError(f"train.compile: {type(block).__name__}.forward can't be compiled as one graph "
                               f"({first_line(error)}); change it, or set train.compile=false") from error


def twice(x: Tensor) -> Tensor:
    """Return the rows twice, as a view if x is one: graphs are told apart by that."""
    rows = torch.cat([x, x])
    return rows[:] if x._is_view() else rows


def forward(block: nn.Module, *inputs) -> Tensor:
    """Return block(*inputs) without the compiled function that `block.forward` is now."""
    return type(block).forward(block, *inputs)
