"""One training step: from a batch to the gradient in the parameters' .grad.

The gradient is that of one process on the whole global batch, for any number of processes. With train.micro_batch=0
DDP averages the gradients over ranks during the backward pass. With micro-batches (gradient_cache.py) a parameter's
gradient arrives in several pieces, which DDP's hooks cannot count: the ranks average once, after the backward pass.
"""
import torch
from torch import Tensor, nn

from egokit.config.build import ConfigError
from egokit.config.schema import Config
from egokit.model.precision import autocast, float32_products
from egokit.train import distributed
from egokit.train.batch_plan import plan_batch
from egokit.train.compiled import compile_blocks
from egokit.train.timing import StepClock


class Loss(nn.Module):
    """Model and task as one Module, which DDP wraps."""

    def __init__(self, model, task, clock: StepClock):
        super().__init__()
        self.model, self.task, self.clock = model, task, clock

    def forward(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise and its terms, detached."""
        self.clock.entered()
        terms = self.task.loss(self.model, batch, step)
        return sum(terms.values()), {name: value.detach() for name, value in terms.items()}


def freeze(model, task, only_head: bool) -> bool:
    """Freeze what is not trained; what the task has frozen stays frozen.

    Args:
        only_head: train the task's own modules alone.

    Returns:
        Whether all but the task's own modules is frozen, so that it need not be in training mode.

    Raises:
        ConfigError: only the head is to be trained, but the task has none.
    """
    roles, unused = model.parameters_by_role(), task.unused(model)
    own = {*roles["head"], *roles["own"]}
    if only_head and not own:
        raise ConfigError(f"train.only_head is true, but task {task.config.task.name!r} has no head: set it to false, "
                          "or give the task a head (Task.head)")
    for name, parameter in model.named_parameters():
        # DDP waits for every gradient that is asked for: the loss gives the unused ones none
        if name in unused or (only_head and name not in own):
            parameter.requires_grad_(False)
    return only_head


class Objective:
    """What training minimises, and how its gradient is computed.

    Attributes:
        plan: how the batch is spread over processes and micro-batches.
        clock: times the forward and backward passes of the training loop.
        frozen: whether all but the task's own modules is frozen (train.only_head).
        micro_batched: whether train.micro_batch is set. It may hold a rank's whole share: that halves the memory,
            because the passes of the loss are recomputed one after the other in the backward pass.
    """

    def __init__(self, config: Config, model, task):
        self.model, self.precision, self.clock = model, config.train.precision, StepClock(model.device)
        self.plan = plan_batch(config, distributed.world_size())
        self.frozen = freeze(model, task, config.train.only_head)
        if config.train.compile:
            compile_blocks(model)
        self.loss = Loss(model, task, self.clock)
        self.micro_batched = config.train.micro_batch > 0
        self.warmed_up = self.micro_batched or distributed.world_size() < 3
        self.checked = False
        if self.micro_batched:
            distributed.broadcast_in_place([*model.parameters(), *model.buffers()])
        elif distributed.is_on():
            self.loss = nn.parallel.DistributedDataParallel(
                self.loss, device_ids=[model.device] if model.device.type == "cuda" else None,
                gradient_as_bucket_view=True)
            self.clock.expect_gradients(each for each in model.parameters() if each.requires_grad)

    def training_mode(self) -> None:
        """Put the model into training mode: frozen encoders without dropout, as stored features are made."""
        self.model.train(not self.frozen)
        if self.frozen:
            self.model.own.train()
            if self.model.head is not None:
                self.model.head.train()

    def warm_up_ddp(self, batch: dict, step: int, scaler: torch.amp.GradScaler) -> None:
        """Run one throw-away backward pass after each (re)start, before the first step.

        DDP lays out its buckets anew after its first backward pass, in the order in which gradients arrived. From three
        ranks on, that layout decides how sums over ranks are rounded. Without this pass, one step of a resumed run
        would differ in its last bits from an uninterrupted run's.
        """
        if not self.warmed_up:
            self.warmed_up = True
            buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
            self.gradient(batch, step, scaler)
            for buffer, before in buffers:  # running means of a task's modules
                buffer.copy_(before)
            self.model.zero_grad(set_to_none=True)
            self.clock.forget()

    def gradient(self, batch: dict, step: int, scaler: torch.amp.GradScaler) -> dict[str, Tensor]:
        """Add the global batch's gradient to the parameters' .grad.

        Args:
            batch: this rank's share, on the model's device.
            step: number of the optimizer step, from 0.
            scaler: multiplies the loss, hence the gradient, against fp16's underflow; disabled in other precisions.

        Returns:
            This rank's loss terms by name, detached and not scaled.
        """
        # exact float32 products hold for the backward pass, too; autocast is for the forward pass alone
        with float32_products(self.model.device, tf32=False):
            with self.clock.phase("forward"), autocast(self.model.device, self.precision):
                loss, terms = self.loss(batch, step)
            with self.clock.phase("backward"):
                scaler.scale(loss).backward()
        if not self.checked:
            self.checked = True
            expect_gradients(self.model)
        if self.micro_batched:
            with self.clock.phase("backward"):
                distributed.average_gradients(self.model)
                distributed.broadcast_in_place(self.model.buffers())  # as DDP does before each forward pass
        return terms


def expect_gradients(model) -> None:
    """Raise ConfigError if a parameter that is to be trained has no gradient after a backward pass."""
    unused = [name for name, parameter in model.named_parameters()
              if parameter.requires_grad and parameter.grad is None]
    if unused:
        shown = ", ".join(unused[:8]) + (" …" if len(unused) > 8 else "")
        raise ConfigError(f"the loss does not use {len(unused)} parameters that are to be trained: {shown}. Use them "
                          "in the task's `loss`, or freeze them in its `modules`, by requires_grad_(False)")
