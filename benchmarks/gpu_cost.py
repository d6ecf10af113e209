"""Counts what a pre-training step costs a GPU, by part, without having one.

    python benchmarks/gpu_cost.py [clips] [precision]     (64 and fp16; it prints the tables of docs/gpu.md)

Counted are TFLOP, kernels, bytes and memory.

egokit's own Trainer runs one step of the base model (224 px, 4 frames, 15 tokens a text) on tensors without values
(fake_gpu.py): forward and backward pass, loss scaling, norm of the gradients, AdamW. A rank's share is computed in one
piece, without and with checkpointing, and in micro-batches. Scene-aware negatives are half of the clips.

What is counted:
- A kernel is an operation that PyTorch's dispatcher gives to the GPU and that writes something. Views are none, nor is
  memory that is only set aside. Attention is one kernel forward and one backward; an operation on a list of tensors
  (the norm, AdamW) is one. Some are two or three on the card: the gradient of a slice is zeros, then a copy.
- Bytes are those of all tensors that a kernel reads, as large as they lie in memory, and of all that it writes.
- FLOPs are products, convolutions and attention, by torch.utils.flop_counter.
- Memory is the sum of all storages that are alive at once, without the allocator's rounding and fragments and the
  libraries' workspaces.

Parts are the stages of EgoClip's loss: "embedding" (both towers of the dual encoder), "trunk" (the unfused half of the
fusion encoder's video side), "MLM" and "ITM" (the fused passes, with their texts and heads), "loss" (what lies between
them: similarity, EgoNCE, draws of negatives, moving of rows) and "optimizer" (unscaling, norm, AdamW). The backward
pass belongs to the part whose forward pass made the autograd node: nodes have numbers in the order in which they are
made, and the node that runs (`torch._C._current_autograd_node`) is looked up by its number. What a node computes again
belongs to its part, too.

Estimates: by the roofline, a kernel takes as long as its FLOPs at 650 TFLOP/s or its bytes at 2.6 TB/s, whichever is
longer; that is an H100 at its best, without gaps between kernels. Clips/s at 40 % of 800 TFLOP/s follow from FLOPs
alone.
"""
from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import sys
import weakref
from collections.abc import Iterator

import fake_gpu
import torch
from fake_gpu import GPU, aten
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from train_step import Synthetic, Trainer, configured, synthetic_batch

from egokit.config.schema import ModelConfig
from egokit.data.loader import move_to_device
from egokit.model.divided_attention import Tiling  # from here on PyTorch knows egokit's operations

FLOPS, BYTES, REACHED = 650e12, 2.6e12, 0.4 * 800e12  # a second
STAGES = ("embedding", "trunk", "MLM", "ITM")         # EgoClip.loss computes them by `in_parts`, in this order
PARTS = (*STAGES, "loss", "optimizer")
TRITON = {"attention": "triton"}
VARIANTS = {                                          # arguments of counted_step
    "one piece": {}, "cheap checkpointing": {"checkpointing": "cheap"}, "full checkpointing": {"checkpointing": "full"},
    "micro_batch 16": {"micro_batch": 16}, "micro_batch 4": {"micro_batch": 4}, "triton": TRITON,
    "triton, half_residual": TRITON | {"half_residual": True},
    "triton, cheap checkpointing": TRITON | {"checkpointing": "cheap"},
    "triton, full checkpointing": TRITON | {"checkpointing": "full"},
    "triton, micro_batch 16": TRITON | {"micro_batch": 16}}
LEAF = 2**62                                          # autograd nodes of leaves have numbers from here on
NO_KERNEL = {aten._unsafe_view, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided,
             aten._local_scalar_dense}                # beside views
ZEROS_FIRST = {aten.slice_backward, aten.select_backward, aten.constant_pad_nd}  # then the input is copied to a part
OF_TWO = {torch.ops.egokit.divided_attention, torch.ops.egokit.divided_attention_backward}  # patches, then CLS
OVERWRITES = {aten.copy_, aten.fill_, aten.zero_}     # do not read what their first tensor held


@dataclasses.dataclass
class Cost:
    """Counts of a part of a step, forward and backward pass together."""
    flops: float = 0
    kernels: int = 0
    bytes: int = 0
    seconds: float = 0   # by the roofline
    peak_bytes: int = 0  # the most memory in use while the part runs

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.kernels + other.kernels, self.bytes + other.bytes,
                    self.seconds + other.seconds, max(self.peak_bytes, other.peak_bytes))


class Counter(fake_gpu.NoValues):
    """Counts the GPU's work from `start` on, by part, and follows all of its memory.

    Attributes:
        costs: by part.
        operations: by name of the operation.
        live_bytes: memory in use now.
        left_bytes: memory in use at the end of the step.
    """

    def __init__(self):
        super().__init__()
        self.counting, self.running, self.last = False, [], "loss"
        self.costs: dict[str, Cost] = collections.defaultdict(Cost)
        self.operations: dict[str, Cost] = collections.defaultdict(Cost)
        self.first_nodes: list[int] = []             # of each stretch of a part
        self.stretches: list[tuple[int, str]] = []   # the number after its last node, and the part
        self.storages: dict[int, weakref.ref] = {}
        self.live_bytes = self.left_bytes = 0

    def start(self) -> None:
        self.counting = True
        self.waits.clear()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs in the block, and the backward pass of what it computes, to a part."""
        first = torch.autograd._get_sequence_nr()
        self.running.append(name)
        try:
            yield
        finally:
            self.running.pop()
            if not self.running:
                self.first_nodes.append(first)
                self.stretches.append((torch.autograd._get_sequence_nr(), name))

    def part_now(self) -> str:
        """Tell to which part the operation that runs now belongs."""
        if self.running:
            return self.running[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return "loss"
        number = node._sequence_nr()
        if number < LEAF:  # else a parameter gets its gradient from the node before
            stretch = bisect.bisect_right(self.first_nodes, number) - 1
            end, name = self.stretches[stretch] if stretch >= 0 else (0, "")
            self.last = name if number < end else "loss"
        return self.last

    def observe(self, func, args, kwargs, out) -> None:
        inputs, outputs = tensors((args, kwargs)), tensors(out)
        if not any(x.device.type == "cuda" for x in (*inputs, *outputs)):
            return
        for x in outputs:
            if x.device.type == "cuda":
                self.follow(x.untyped_storage())
        if self.counting:
            self.count(func, args, kwargs, inputs, outputs, out)

    def follow(self, storage) -> None:
        """Add a storage to the memory in use until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return

        def freed(_) -> None:
            del self.storages[key]
            self.live_bytes -= size

        self.storages[key] = weakref.ref(storage, freed)
        self.live_bytes += size

    def count(self, func, args, kwargs, inputs, outputs, out) -> None:
        packet, schema, part = func.overloadpacket, func._schema, self.costs[self.part_now()]
        part.peak_bytes = max(part.peak_bytes, self.live_bytes)
        view = any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
        if view or packet in NO_KERNEL:
            return
        changed = [x for argument, value in zip(schema.arguments, args, strict=False)
                   if argument.alias_info is not None and argument.alias_info.is_write for x in tensors(value)]
        written = [*changed, *(x for x in outputs if not any(x is y for y in changed))]
        if packet in ZEROS_FIRST:
            written += inputs
        moved = sum(extent(x) for x in (*(inputs[1:] if packet in OVERWRITES else inputs), *written))
        if packet in OF_TWO:
            moved += scratch_bytes(packet, *args)
        flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        cost = Cost(flops, 2 if packet in OF_TWO else 1, moved, max(flops / FLOPS, moved / BYTES))
        self.costs[self.part_now()] = part + cost
        self.operations[str(packet)] += cost


def tensors(tree) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def extent(x: torch.Tensor) -> int:
    """A tensor's bytes on the GPU; of an expanded one those that lie in memory."""
    return min(x.nbytes, x.untyped_storage().nbytes()) if x.device.type == "cuda" else 0


def scratch_bytes(packet, *args) -> int:
    """Return what the kernels of divided attention write for themselves, and read once, at least."""
    backward = packet is torch.ops.egokit.divided_attention_backward
    qkv_BSC, (heads, frames, over_time) = args[backward], args[-3:]
    tiling = Tiling(qkv_BSC, heads, frames, over_time)
    numbers = tiling.tiles * (3 * tiling.channels if backward else tiling.channels + 2)
    numbers += 4 * qkv_BSC.shape[1] * backward
    return 2 * 4 * len(qkv_BSC) * heads * numbers


class Staged(Synthetic):
    """EgoClip's loss, whose stages are parts to a counter."""
    counter: Counter

    def loss(self, model, batch: dict, step: int) -> dict:
        self.stages = iter(STAGES)
        terms = super().loss(model, batch, step)
        if left := list(self.stages):
            raise RuntimeError(f"EgoClip's loss does not compute these stages by in_parts: {left}; correct STAGES")
        return terms

    def in_parts(self, function, *inputs):
        stage = next(self.stages)

        def counted(*rows):  # runs again in the backward pass, where there are micro-batches
            with self.counter.part(stage):
                return function(*rows)

        with self.counter.part(stage):
            return super().in_parts(counted, *inputs)


def counted_step(clips: int = 64, precision: str = "fp16", checkpointing: str = "none", micro_batch: int = 0,
                 counter: Counter | None = None, **model) -> Counter:
    """Count a step of a model whose moments exist, from a batch that lies on the GPU.

    Args:
        clips: of the batch, negatives included.
        micro_batch: samples, of two clips each.
        counter: counts; None makes one.
        model: other values of ModelConfig.
    """
    model = {"dropout": ModelConfig.dropout, "attention": "sdpa"} | model
    config = configured(precision, checkpointing=checkpointing, **model)
    recipe = dataclasses.replace(config.train, batch_size=clips // 2, micro_batch=micro_batch)
    config, counter = dataclasses.replace(config, train=recipe), counter or Counter()
    with fake_gpu.without_values(counter):
        trainer = Trainer(config, GPU, task=type("Counted", (Staged,), {"counter": counter}))
        for parameter in trainer.model.parameters():
            trainer.optimizer.state[parameter] = {
                "step": torch.zeros((), device=GPU), "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter)}
        batch, update = move_to_device(synthetic_batch(clips, config.model), GPU), trainer.update

        def counted_update(rate: float) -> float:
            with counter.part("optimizer"):
                return update(rate)

        trainer.update = counted_update
        counter.start()
        trainer.steps_on(batch)
        counter.left_bytes = counter.live_bytes
    return counter


def main(clips: int, precision: str) -> None:
    head = f"{'TFLOP':>8} {'kernels':>8} {'GB':>8} {'ms':>8} {'GiB':>7}"
    print(f"base model, {clips} clips of 4 frames, {precision}; ms by the roofline, GiB at the peak")
    print(f"{'':31} {head} {'waits':>6} {'clips/s':>8} {'at 40 %':>8}")
    counters = {}
    for name, settings in VARIANTS.items():
        counters[name] = counter = counted_step(clips, precision, **settings)
        total = sum(counter.costs.values(), Cost())
        print(f"{name:31} {line(total)} {len(counter.waits):6} {clips / total.seconds:8.0f} "
              f"{clips * REACHED / total.flops:8.0f}", flush=True)
    for name, counter in counters.items():
        print(f"\n{name:31} {head}")
        for part in PARTS:
            print(f"  {part:29} {line(counter.costs[part])}")


def line(cost: Cost) -> str:
    return (f"{cost.flops / 1e12:8.1f} {cost.kernels:8,} {cost.bytes / 1e9:8.1f} {1e3 * cost.seconds:8.1f} "
            f"{cost.peak_bytes / 2**30:7.1f}")


if __name__ == "__main__":
    main(int((sys.argv[1:] or [64])[0]), (sys.argv[2:] or ["fp16"])[0])
