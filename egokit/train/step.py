"""From a batch to the gradient in the parameters' .grad: for any number of processes, in one piece or in micro-batches.

The gradient is that of one process on the whole global batch. In one piece, DDP averages over ranks while it computes. In
micro-batches (microbatch.py) a parameter's gradient arrives in pieces, which DDP's hooks can't count: the ranks average once, after.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from egokit.config.schema import Config
from egokit.model.egovlp import autocast
from egokit.model.precision import float32_products
from egokit.train import compiling, distributed
from egokit.train.batch_plan import plan_batch


class Loss(nn.Module):
    """Model and task as one Module, which is what DDP wraps: forward gives the loss and its terms."""

    def __init__(self, model, task):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: dict, step: int):
        terms = self.task.loss(self.model, batch, step)
        return sum(terms.values()), {name: value.detach() for name, value in terms.items()}


class Objective:
    """What training minimises, and how its gradient is computed."""

    def __init__(self, config: Config, model, task):
        self.model, self.precision, self.plan = model, config.train.precision, plan_batch(config, distributed.world_size())
        if not task.uses_fusion:  # ranks wait for every gradient: what the loss doesn't use is not trained
            unused = set(model.parameters_by_role()["fusion"])
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in unused)
        if config.train.compile:
            compiling.compile_blocks(model)
        self.loss = Loss(model, task)
        self.in_pieces = config.train.micro_batch > 0  # one piece of a rank's whole share included: half the memory of its three passes
        self.settled = self.in_pieces or distributed.world_size() < 3
        if self.in_pieces:
            distributed.share_parameters(model)
        elif distributed.is_on():
            self.loss = nn.parallel.DistributedDataParallel(
                self.loss, device_ids=[model.device] if model.device.type == "cuda" else None, gradient_as_bucket_view=True)

    def warm_up_ddp(self, batch: dict, step: int, scaler: torch.amp.GradScaler) -> None:
        """Once in a start, before its first step: compute a gradient and forget it.

        DDP learns from the first backward pass in which order gradients arrive, and lays them out anew; from three ranks on,
        sums over ranks are rounded by that layout. So a run that starts again would differ in the last bit of one step.
        """
        if not self.settled:
            self.settled = True
            self.gradient(batch, step, scaler)
            self.model.zero_grad(set_to_none=True)

    def gradient(self, batch: dict, step: int, scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
        """Add the global batch's gradient, scaled, to the parameters' .grad; `batch` is this rank's share. Returns the terms."""
        with float32_products(self.model.device, tf32=False):  # of the backward pass; autocast is for the forward pass alone
            with autocast(self.model.device, self.precision):
                loss, terms = self.loss(batch, step)
            scaler.scale(loss).backward()
        if self.in_pieces:
            distributed.average_gradients(self.model)
        return terms
