"""Exact gradient caching: a function of a batch's rows computed a micro-batch at a time, forward and backward.

The first pass keeps what the function gives and forgets how. Losses over the whole batch, on all ranks, are computed from
that as ever. When their gradient arrives, each micro-batch is computed again, with the same dropout, and takes its rows of it.
So the gradient is the full batch's, contrastive losses included, and activations are only ever one micro-batch's. The price
is one more forward pass. Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size" (arXiv 2101.06983).
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def by_micro_batches(function: Callable, rows: int, *inputs: Tensor):
    """function(*inputs), `rows` rows at a time; in one piece, with nothing computed again, if rows is 0.

    inputs: tensors (b, …) of one length. function: gives a tensor or several, to be concatenated along their first
    axis; it may not mix rows, nor talk to other ranks, which may have another number of micro-batches. Its parameters'
    gradients are added where they belong in the backward pass, once for each micro-batch: not for DDP's hooks.
    """
    if not rows:
        return function(*inputs)
    # autograd asks for a backward pass only where an input has a gradient; frames and tokens have none
    return _Recomputed.apply(function, rows, torch.zeros(0, requires_grad=True), *inputs)


def several(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(context, function, rows: int, start: Tensor, *inputs: Tensor):
        context.function, context.rows, context.surroundings = function, rows, []
        context.save_for_backward(*inputs)
        parts = []
        for part in zip(*(x.split(rows) for x in inputs), strict=True):
            context.surroundings.append(_Surroundings(inputs[0].device))
            with torch.enable_grad():  # the very kernels of the second pass; those of inference round differently
                # nothing may hold this graph while the next one is made
                parts.append([x.detach() for x in several(function(*(x.detach() for x in part)))])
        context.lengths = [[len(x) for x in part] for part in parts]
        whole = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return whole if len(whole) > 1 else whole[0]

    @staticmethod
    def backward(context, *grads: Tensor):
        inputs, needed = context.saved_tensors, context.needs_input_grad[3:]
        of_inputs = [torch.empty_like(x) if need else None for x, need in zip(inputs, needed, strict=True)]
        columns = [grad.split(list(lengths)) for grad, lengths in zip(grads, zip(*context.lengths, strict=True), strict=True)]
        for number, surroundings in enumerate(context.surroundings):
            first = number * context.rows
            part = [x[first:first + context.rows].detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
            with surroundings.again(), torch.enable_grad():
                out = several(context.function(*part))
            torch.autograd.backward(out, [column[number] for column in columns])
            for whole, x in zip(of_inputs, part, strict=True):
                if whole is not None:
                    whole[first:first + context.rows] = x.grad
        return None, None, None, *of_inputs


class _Surroundings:
    """What a micro-batch's numbers depend on beside its rows: random state (dropout) and autocast."""

    def __init__(self, device: torch.device):
        self.device = device
        self.random = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.autocast = {"enabled": torch.is_autocast_enabled(device.type), "dtype": torch.get_autocast_dtype(device.type)}

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if on_gpu else []), torch.autocast(self.device.type, **self.autocast):
            torch.set_rng_state(self.random[0])
            if on_gpu:
                torch.cuda.set_rng_state(self.random[1], self.device)
            yield
