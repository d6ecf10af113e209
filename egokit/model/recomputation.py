"""What the backward pass computes again instead of keeping it (model.checkpointing), for a block of either encoder.

In a block that is not compiled, PyTorch's selective checkpointing (create_selective_checkpoint_contexts) can't be used:
from 2.15 on it refuses a second computation with more operations than the first. Under autocast there are more, because
a weight is cast once for all passes of the forward pass, but again for each block in the backward pass.
"""
import collections

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

# Operations whose results "cheap" keeps: products and attention, in which the arithmetic is. Dropout is one of them
# because a GPU's attention draws random numbers of its own: if attention is not computed again, what is drawn after it
# would be drawn from another state. On a CPU, attention with dropout and dropout itself are made of other operations,
# which are all computed again, from the same state.
KEPT = frozenset({
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution", "aten::native_dropout",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_scaled_dot_product_flash_attention_for_cpu", "egokit::divided_attention",
    "mkldnn::_linear_pointwise"})


class _Keeping(TorchDispatchMode):
    """Keeps the results of KEPT, in their order."""

    def __init__(self, results: collections.deque):
        super().__init__()
        self.results, self.storages = results, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._schema.is_mutable and _storages(args[0]) & self.storages:
            raise RuntimeError(f"model.checkpointing=cheap keeps results of products, but {operation} changes one in "
                               "place, in a layer or a hook of a block: write y = y + z for y += z, or set "
                               "model.checkpointing=full")
        out = operation(*args, **(kwargs or {}))
        if operation.name() in KEPT:
            # detached: the graph, to which `out` is going to belong, must not keep itself alive
            self.results.append((operation, tree_map_only(Tensor, Tensor.detach, out)))
            self.storages |= _storages(out)
        return out


class _Replaying(TorchDispatchMode):
    """Gives what `_Keeping` has kept, in place of computing it, and keeps it no longer."""

    def __init__(self, results: collections.deque):
        super().__init__()
        self.results = results

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.name() not in KEPT:
            return operation(*args, **(kwargs or {}))
        if not self.results:
            raise RuntimeError("model.checkpointing=cheap allows one backward pass through a block: what it kept is "
                               "used up. Compute the loss again, or set model.checkpointing=full")
        kept, out = self.results.popleft()
        if kept is not operation:
            raise RuntimeError(f"model.checkpointing=cheap: a block computed {kept} at first, but {operation} in the "
                               "backward pass; it must do the same twice. Set model.checkpointing=full or none")
        return out

    def __exit__(self, *error) -> None:
        self.results.clear()  # the block's last product, which the backward pass doesn't need
        super().__exit__(*error)


def _storages(tree) -> set[int]:
    """Return what identifies the memory of tensors."""
    return {x.untyped_storage()._cdata for x in tree_leaves(tree) if isinstance(x, Tensor)}


def _keep_products() -> tuple[_Keeping, _Replaying]:
    """Return the contexts of the first and of the second computation."""
    results = collections.deque()
    return _Keeping(results), _Replaying(results)


def recomputed(block: nn.Module, checkpointing: str, *inputs: Tensor | int | bool | None,
               has_dropout: bool = False) -> Tensor:
    """Return block(*inputs), of which the backward pass computes again what `checkpointing` says.

    Args:
        block: if it is compiled (train.compile), the compiler does what "cheap" says by itself: it keeps products and
            attention, and computes again what it fuses.
        checkpointing: full: all of it. cheap: all but the results of KEPT.
        has_dropout: draw the same random numbers in the second computation.
    """
    options = {"use_reentrant": False, "preserve_rng_state": has_dropout}
    if checkpointing == "full":
        return checkpoint(block, *inputs, **options)
    if getattr(block, "is_compiled", False):  # by compile_blocks
        return block(*inputs)
    return checkpoint(block, *inputs, context_fn=_keep_products, **options)
