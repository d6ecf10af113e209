"""Counts what a pre-training step costs where torch.compile fuses the blocks' cheap operations, by a stated rule.

    python benchmarks/fused_cost.py [clips] [precision]     (64 and fp16; it prints the second table of docs/gpu.md)

No compiler runs: gpu_cost.py's count of the step as it is, is corrected by this rule. Within one call of a block,
forward or backward, operations that follow one another without a product or attention between them become one kernel:
element by element (sums, GELU, casts, gates), copies, and sums over rows or columns (LayerNorm, gradients of biases).
It reads once each tensor that comes from outside, and writes what something outside reads later: a product, another
kernel, or the backward pass. Of several sums over rows or columns, each beyond the first one is a kernel more, and
reads what it sums again. Nothing is fused with products or attention, over the ends of blocks, or into another order; a
compiler does some of that.

Not counted: compiled blocks cast their weights anew in each pass (18 more passes of a block, 3 GB a step).
"""
from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import sys
import unittest.mock
from collections.abc import Iterator

import gpu_cost
import torch
from fake_gpu import aten
from gpu_cost import BYTES, Cost, Counter, extent, line, tensors

from egokit.model.text_encoder import TextLayer
from egokit.model.video_encoder import Block

SUMS = {aten.sum, aten.native_layer_norm, aten.native_layer_norm_backward}
FUSIBLE = SUMS | {aten.add, aten.mul, aten.sub, aten.div, aten.neg, aten._to_copy, aten.gelu, aten.gelu_backward,
                  aten.clone, aten.cat, aten.slice_backward, aten.select_backward, aten.native_dropout,
                  aten.native_dropout_backward}
WAYS = {"as it is": {}, "attention=triton": {"attention": "triton"},
        "attention=triton, half_residual": {"attention": "triton", "half_residual": True}}


@dataclasses.dataclass
class Kernel:
    """Fusible operations of one call of a block that follow one another."""
    read: dict[int, int]        # storage -> bytes, of what comes from outside
    written: dict[int, int]     # storage -> bytes, of all results
    wanted: set[int] = dataclasses.field(default_factory=set)  # of these, what is read outside
    sums: int = 0
    read_again: int = 0         # bytes, by sums beyond the first


class FusedCounter(Counter):
    """Counts as Counter does, and remembers which kernels would be one.

    Attributes:
        fused: cost of what is in `kernels`, as it is.
    """

    def __init__(self):
        super().__init__()
        self.serial = 0
        self.numbers: dict[int, int] = {}            # of live storages, never used again
        self.maker: dict[int, Kernel] = {}           # of a storage
        self.kernels: list[Kernel] = []
        self.open: tuple[tuple, Kernel] | None = None  # the call whose kernel goes on, and that kernel
        self.call, self.calls = None, 0
        self.first_nodes_of_calls: list[int] = []
        self.ends: list[tuple[int, int]] = []
        self.fused, self.last_call = Cost(), None

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """Count what runs in the block of code, and its backward pass, as one call of a block of the model."""
        self.calls += 1
        first, self.call = torch.autograd._get_sequence_nr(), self.calls
        try:
            yield
        finally:
            self.call = None
            self.first_nodes_of_calls.append(first)
            self.ends.append((torch.autograd._get_sequence_nr(), self.calls))

    def call_now(self) -> tuple | None:
        """Return (call, pass) of the operation that runs now; None outside blocks."""
        if self.call is not None:
            return self.call, "forward"
        node = torch._C._current_autograd_node()
        number = gpu_cost.LEAF if node is None else node._sequence_nr()
        if number < gpu_cost.LEAF:  # else gradients of a node's outputs are added up after it has run
            at = bisect.bisect_right(self.first_nodes_of_calls, number) - 1
            end, call = self.ends[at] if at >= 0 else (0, 0)
            self.last_call = (call, "backward") if number < end else None
        return self.last_call

    def follow(self, storage) -> None:
        if storage._cdata not in self.storages:
            self.serial += 1
            self.numbers[storage._cdata] = self.serial
        super().follow(storage)

    def sizes(self, tree) -> dict[int, int]:
        """Return bytes by storage of the tensors that lie on the GPU."""
        sizes: dict[int, int] = collections.defaultdict(int)
        for x in tensors(tree):
            if x.device.type == "cuda":
                number = self.numbers[x.untyped_storage()._cdata]
                sizes[number] = max(sizes[number], extent(x))
        return sizes

    def count(self, func, args, kwargs, inputs, outputs, out) -> None:
        before = self.operations.copy()
        super().count(func, args, kwargs, inputs, outputs, out)
        packet = func.overloadpacket
        if self.operations[str(packet)] == before.get(str(packet), Cost()):
            return  # a view
        read, written, call = self.sizes((args, kwargs)), self.sizes(out), self.call_now()
        if packet not in FUSIBLE or call is None:
            self.open = None
            self.want(read, None)
            return
        if self.open is None or self.open[0] != call:
            self.open = call, Kernel({}, {})
            self.kernels.append(self.open[1])
        kernel = self.open[1]
        self.want(read, kernel)
        kernel.read |= {number: size for number, size in read.items() if number not in kernel.written}
        kernel.written |= written
        kernel.read_again += sum(read.values()) if packet in SUMS and kernel.sums else 0
        kernel.sums += packet in SUMS
        self.maker |= dict.fromkeys(written, kernel)
        added, earlier = self.operations[str(packet)], before.get(str(packet), Cost())
        self.fused += Cost(0, added.kernels - earlier.kernels, added.bytes - earlier.bytes,
                           added.seconds - earlier.seconds)

    def want(self, read: dict[int, int], reader: Kernel | None) -> None:
        """Note that storages are read by another kernel than the one that has made them."""
        for number in read:
            maker = self.maker.get(number)
            if maker is not None and maker is not reader:
                maker.wanted.add(number)

    def after_fusion(self) -> Cost:
        """Return the cost of the whole step by the rule."""
        total = sum(self.costs.values(), Cost())
        moved = sum(sum(kernel.read.values()) + sum(kernel.written[number] for number in kernel.wanted)
                    + kernel.read_again for kernel in self.kernels)
        launches = sum(max(1, kernel.sums) for kernel in self.kernels)
        return Cost(total.flops, total.kernels - self.fused.kernels + launches, total.bytes - self.fused.bytes + moved,
                    total.seconds - self.fused.seconds + moved / BYTES, total.peak_bytes)


def counted_step(clips: int, precision: str, **model) -> FusedCounter:
    """Count a step as gpu_cost.counted_step does, with the calls of blocks told apart."""
    counter = FusedCounter()

    def told_apart(forward):
        def called(*args, **kwargs):
            with counter.block():
                return forward(*args, **kwargs)
        return called

    with (unittest.mock.patch.object(Block, "forward", told_apart(Block.forward)),
          unittest.mock.patch.object(TextLayer, "forward", told_apart(TextLayer.forward))):
        return gpu_cost.counted_step(clips, precision, counter=counter, **model)


def main(clips: int, precision: str) -> None:
    print(f"base model, {clips} clips of 4 frames, {precision}, in one piece; ms by the roofline, GiB at the peak")
    print(f"{'':42} {'TFLOP':>8} {'kernels':>8} {'GB':>8} {'ms':>8} {'GiB':>7} {'clips/s':>8}")
    for name, model in WAYS.items():
        counter = counted_step(clips, precision, **model)
        for kind, cost in (("", sum(counter.costs.values(), Cost())), (", compiled", counter.after_fusion())):
            print(f"{name + kind:42} {line(cost)} {clips / cost.seconds:8.0f}", flush=True)


if __name__ == "__main__":
    main(int((sys.argv[1:] or [64])[0]), (sys.argv[2:] or ["fp16"])[0])
