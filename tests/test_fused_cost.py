"""The rule by which benchmarks/fused_cost.py counts what a compiler fuses, and what a whole step costs by count."""
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import fake_gpu
import fused_cost
from fake_gpu import GPU
from gpu_cost import Cost


def test_operations_between_products_are_one_kernel():
    counter = fused_cost.FusedCounter()
    with fake_gpu.without_values(counter):
        x, weight = torch.zeros(100, 50, device=GPU), torch.zeros(50, 50, device=GPU)
        counter.start()
        with counter.block():
            y = torch.nn.functional.gelu(x * 2) + x      # three operations: x is read once, y written for the product
            z = y @ weight
            kept = (z + 1) * z                           # two: z is read once; the result is read outside
            kept.sum(0)                                  # with the sum, which nothing reads
            z @ weight
            kept @ weight
        x + 1                                            # outside of blocks
    size = 100 * 50 * 4
    plain, total = sum(counter.costs.values(), Cost()), counter.after_fusion()
    assert plain.kernels == 10 and counter.fused.kernels == 6
    assert len(counter.kernels) == 2 and total.kernels == 10 - 6 + 1 + 1
    assert counter.fused.bytes == (2 + 2 + 3) * size + (2 + 3) * size + size + 50 * 4
    assert plain.bytes - counter.fused.bytes + 4 * size == total.bytes
    assert total.seconds < plain.seconds and total.flops == plain.flops


def test_a_second_sum_reads_again_what_it_sums():
    counter = fused_cost.FusedCounter()
    with fake_gpu.without_values(counter):
        x = torch.zeros(100, 50, device=GPU)
        counter.start()
        with counter.block():
            x.sum(0), (x + 1).sum(1)
    size = 100 * 50 * 4
    assert len(counter.kernels) == 1 and counter.kernels[0].read_again == size
    assert counter.after_fusion().kernels == 2 and counter.after_fusion().bytes == 2 * size


def test_forward_and_backward_passes_and_calls_are_told_apart():
    counter = fused_cost.FusedCounter()
    with fake_gpu.without_values(counter):
        x = torch.zeros(100, 50, device=GPU, requires_grad=True)
        counter.start()
        with counter.block():
            y = torch.nn.functional.gelu(x * 2)  # the product by 2 is read by the backward pass, so it is written
        with counter.block():
            z = (y * 3) + 1
        z.sum().backward()
    forward, other, *backward = counter.kernels
    size = 100 * 50 * 4
    assert len(forward.read) == 1 and len(forward.wanted) == 2 and sum(forward.written.values()) == 2 * size
    assert len(other.wanted) == 1 and len(other.read) == 1
    assert [len(kernel.wanted) for kernel in backward] == [1, 0]  # of the second block, then of the first


@pytest.mark.slow
def test_a_base_models_step_stays_as_cheap_as_it_is():
    """64 clips in one piece: what docs/gpu.md says of an H100, as bounds."""
    counter = fused_cost.counted_step(64, "fp16", attention="triton")
    plain, compiled = sum(counter.costs.values(), Cost()), counter.after_fusion()
    assert plain.bytes < 620e9 and plain.kernels < 6_500 and plain.peak_bytes < 68 * 2**30
    assert 64 / plain.seconds > 200 and 64 / compiled.seconds > 235
    half = fused_cost.counted_step(64, "fp16", attention="triton", half_residual=True)
    assert 64 / sum(half.costs.values(), Cost()).seconds > 250 and 64 / half.after_fusion().seconds > 260
