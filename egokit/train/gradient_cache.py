"""Exact gradient caching: the full batch's gradient, computed in micro-batches.

The first pass keeps the outputs of the function (embeddings, say) and drops the activations. A loss over the whole
batch, on all ranks, is computed from these outputs as usual. When their gradient arrives, each micro-batch is computed
again, with the same dropout, and backpropagates its rows of that gradient. So the gradient is that of the full batch,
contrastive losses included, while only one micro-batch's activations are in memory. The price is one more forward pass.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983).
"""
import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states


def by_micro_batches(function: Callable, rows: int, *inputs: Tensor):
    """Return function(*inputs), computed `rows` rows at a time; gradients are exact.

    The backward pass adds to the parameters' .grad itself, once for each micro-batch, so DDP's hooks must not count
    these gradients.

    Args:
        function: gives a tensor or a tuple of tensors, to be concatenated along their first axis. It must not mix rows,
            nor talk to other ranks, which may have another number of micro-batches.
        rows: rows of a micro-batch; 0 calls the function once and computes nothing again.
        inputs: tensors (b, …) of one length b.

    Returns:
        What function(*inputs) gives.
    """
    if not rows:
        return function(*inputs)
    # autograd runs a backward pass only if an input needs a gradient; frames and tokens need none
    return _GradientCache.apply(function, rows, torch.zeros(0, requires_grad=True), *inputs)


def _as_tuple(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


class _GradientCache(torch.autograd.Function):
    @staticmethod
    def forward(context, function, rows: int, start: Tensor, *inputs: Tensor):
        context.function, context.rows, context.states = function, rows, []
        context.save_for_backward(*inputs)
        outputs = []
        for micro_batch in zip(*(x.split(rows) for x in inputs), strict=True):
            context.states.append(_ForwardState(inputs))
            with torch.enable_grad():  # the kernels of the second pass; those of inference round differently
                # detached at once: this graph must be free before the next one is made
                given = (x.detach().requires_grad_(need)  # as in the second pass, for which compiled blocks look
                         for x, need in zip(micro_batch, context.needs_input_grad[3:], strict=True))
                outputs.append([x.detach() for x in _as_tuple(function(*given))])
        context.lengths = [[len(x) for x in output] for output in outputs]
        whole = tuple(torch.cat(column) for column in zip(*outputs, strict=True))
        return whole if len(whole) > 1 else whole[0]

    @staticmethod
    def backward(context, *grads: Tensor):
        inputs, needed = context.saved_tensors, context.needs_input_grad[3:]
        input_grads = [torch.empty_like(x) if need else None for x, need in zip(inputs, needed, strict=True)]
        columns = [grad.split(list(lengths))
                   for grad, lengths in zip(grads, zip(*context.lengths, strict=True), strict=True)]
        for number, state in enumerate(context.states):
            rows = slice(number * context.rows, (number + 1) * context.rows)
            micro_batch = [x[rows].detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
            with state.restored(), torch.enable_grad():
                outputs = _as_tuple(context.function(*micro_batch))
            pairs = [(x, column[number]) for x, column in zip(outputs, columns, strict=True) if x.requires_grad]
            if pairs:  # none where all that the function uses is frozen
                torch.autograd.backward(*zip(*pairs, strict=True))
            for input_grad, x in zip(input_grads, micro_batch, strict=True):
                if input_grad is not None:
                    input_grad[rows] = x.grad
        return None, None, None, *input_grads


class _ForwardState:
    """What outputs depend on beside the inputs: random state (dropout) and autocast."""

    def __init__(self, inputs: tuple[Tensor, ...]):
        device = inputs[0].device.type
        self.cpu_rng = torch.get_rng_state()
        self.gpus, self.gpu_rngs = get_device_states(*inputs)
        self.autocast = {"device_type": device, "enabled": torch.is_autocast_enabled(device),
                         "dtype": torch.get_autocast_dtype(device)}

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Compute in this state in the block; the random state of outside is untouched."""
        with torch.random.fork_rng(self.gpus), torch.autocast(**self.autocast):
            torch.set_rng_state(self.cpu_rng)
            set_device_states(self.gpus, self.gpu_rngs)
            yield
