"""Counting a training step's cost (benchmarks/gpu_cost.py), at a tiny size."""
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import fake_gpu
import gpu_cost
from gpu_cost import PARTS, STAGES, Cost
from torch.utils._pytree import tree_leaves
from train_step import configured, synthetic_batch

from egokit.model import text_encoder, video_encoder
from egokit.model.egovlp import EgoVLP
from egokit.tasks import losses
from egokit.train import parts

TINY = {"image_size": 64, "width": 128, "heads": 2, "depth": 2, "num_fused_layers": 1, "vocab_size": 99,
        "max_positions": 40, "projection": "mlp32"}
CLIPS = 8


def counted(clips=CLIPS, precision="fp16", **options):
    return gpu_cost.counted_step(clips, precision, **options, **TINY)


def total(counter) -> Cost:
    return sum(counter.costs.values(), Cost())


def counts(cost: Cost) -> tuple:
    return cost.flops, cost.kernels, cost.bytes


@pytest.fixture(scope="module")
def plain():
    return counted()


def test_every_part_costs_something_and_nothing_else_does(plain):
    assert set(plain.costs) == set(PARTS)
    assert all(cost.kernels and cost.bytes and cost.seconds and cost.peak_bytes for cost in plain.costs.values())
    assert all(plain.costs[stage].flops > 10 * plain.costs["loss"].flops > 0 for stage in STAGES)
    assert plain.costs["optimizer"].flops == 0
    assert total(plain).kernels == sum(cost.kernels for cost in plain.operations.values())


@pytest.mark.parametrize("precision, kernels", [("fp16", True), ("bf16", True), ("fp32", False)])
def test_on_a_gpu_float32_attends_by_pytorchs_kernels(precision, kernels):
    operations = counted(2, precision, attention="triton").operations
    assert any("egokit.divided_attention" in name for name in operations) == kernels


def test_the_passes_of_a_linear_layer_are_counted_by_hand():
    """Forward: a product. Backward: two, for input and weight, and the sum of the bias."""
    counter = gpu_cost.Counter()
    with fake_gpu.without_values(counter):
        layer = torch.nn.Linear(8, 16, device=fake_gpu.GPU)
        x = torch.randn(4, 8, device=fake_gpu.GPU, requires_grad=True)
        before = counter.live_bytes
        counter.start()
        with counter.part("embedding"):
            y = layer(x)
        assert counter.live_bytes == before + 4 * 4 * 16
        y.backward(torch.ones_like(y))
    forward = 4 * (4 * 8 + 16 * 8 + 16 + 4 * 16)  # bytes: input, weight, bias, output
    backward = 4 * ((4 * 16 + 16 * 8 + 4 * 8) + (4 * 16 + 4 * 8 + 16 * 8) + (4 * 16 + 16))
    assert counter.costs["embedding"].flops == 3 * 2 * 4 * 8 * 16
    assert counter.costs["embedding"].kernels == 4 and counter.costs["embedding"].bytes == forward + backward
    assert before == 4 * (16 * 8 + 16 + 4 * 8)


def test_a_step_leaves_weights_moments_and_the_batch(plain):
    """Parameters count three times; the rest are the batch, step counts and the loss scale."""
    with fake_gpu.without_values():
        config = configured("fp16", **TINY).model
        parameters = list(EgoVLP(config).parameters())
        batch = tree_leaves(synthetic_batch(CLIPS, config))
    kept = 3 * sum(x.nbytes for x in parameters) + 4 * len(parameters) + sum(x.nbytes for x in batch)
    assert kept <= plain.left_bytes <= kept + 100


def test_checkpointing_computes_its_blocks_again_and_needs_less_memory(monkeypatch, plain):
    """All is computed again up to the last tensor that the backward pass needs."""
    forward = 0
    for encoder, method in ((video_encoder.VideoEncoder, "run_block"), (text_encoder.TextEncoder, "run_layer")):
        step = getattr(encoder, method)

        def counting(self, block, x, *rest, step=step, video=encoder is video_encoder.VideoEncoder):
            nonlocal forward
            if not video and rest[1:2] in ((), (None,)):
                return step(self, block, x, *rest)  # words alone are not recomputed
            before = total(counter).flops
            out = step(self, block, x, *rest)
            forward += total(counter).flops - before
            return out

        monkeypatch.setattr(encoder, method, counting)
    counter = gpu_cost.Counter()
    monkeypatch.setattr(gpu_cost, "Counter", lambda: counter)
    assert total(counted()) == total(plain)
    monkeypatch.undo()
    recomputed = counted(checkpointing="full")
    assert 0.7 * forward < total(recomputed).flops - total(plain).flops <= forward
    assert total(recomputed).peak_bytes < 0.8 * total(plain).peak_bytes
    for part in ("loss", "optimizer"):
        assert counts(recomputed.costs[part]) == counts(plain.costs[part])


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_cheap_checkpointing_computes_no_product_attention_or_dropout_again(plain, micro_batch):
    kept = counted(micro_batch=micro_batch) if micro_batch else plain
    cheap = counted(checkpointing="cheap", micro_batch=micro_batch)
    assert total(cheap).flops == total(kept).flops
    assert total(cheap).peak_bytes < (0.95 if micro_batch else 0.85) * total(kept).peak_bytes
    assert cheap.left_bytes == kept.left_bytes
    for name, operation in kept.operations.items():
        if "attention" in name or name in ("aten.mm", "aten.addmm", "aten.bmm", "aten.native_dropout"):
            assert cheap.operations[name].kernels == operation.kernels > 0, name
    assert cheap.operations["aten.gelu"].kernels > kept.operations["aten.gelu"].kernels


@pytest.mark.slow
def test_cheap_checkpointing_fits_64_clips_of_the_full_size_model_into_80_gb():
    kept, cheap = (gpu_cost.counted_step(64, "fp16", checkpointing=mode) for mode in ("none", "cheap"))
    assert total(cheap).flops == total(kept).flops
    assert total(cheap).peak_bytes < 48 * 2**30 < 79 * 2**30 < total(kept).peak_bytes


def test_micro_batches_cost_one_more_forward_pass_and_need_less_memory(plain):
    cached = counted(micro_batch=2)
    ratio = total(cached).flops / total(plain).flops
    assert 1.3 < ratio < 1.36, ratio  # 4/3, as a backward pass is two forward passes
    assert total(cached).peak_bytes < 0.8 * total(plain).peak_bytes
    assert total(cached).kernels > 2 * total(plain).kernels
    assert sum(cached.costs[stage].kernels for stage in STAGES) > 0.95 * total(cached).kernels


def test_twice_the_clips_are_twice_the_arithmetic_by_the_same_kernels(plain):
    twice = counted(2 * CLIPS)
    for stage in ("embedding", "trunk", "ITM"):
        assert twice.costs[stage].flops == 2 * plain.costs[stage].flops
        assert twice.costs[stage].kernels == plain.costs[stage].kernels


def test_fp32_moves_more_bytes(plain):
    assert total(counted(precision="fp32")).bytes > total(plain).bytes
    assert total(counted(precision="bf16")).flops == total(plain).flops


def test_a_planted_copy_is_one_kernel_and_its_bytes(monkeypatch, plain):
    similarity = parts.similarity

    def copied(text, video):
        text.detach().clone()
        return similarity(text, video)

    monkeypatch.setattr(parts, "similarity", copied)
    planted, size = counted(), 2 * CLIPS * 32 * 4  # read and written: an embedding of 32 float32 for each clip
    assert planted.costs["loss"].kernels == plain.costs["loss"].kernels + 1
    assert planted.costs["loss"].bytes == plain.costs["loss"].bytes + size
    for part in {*PARTS} - {"loss"}:
        assert counts(planted.costs[part]) == counts(plain.costs[part])
    assert planted.waits == plain.waits


def test_a_planted_wait_is_counted(monkeypatch, plain):
    positives = losses.positives

    def read(verbs, *others):
        verbs.sum().item()
        return positives(verbs, *others)

    monkeypatch.setattr(losses, "positives", read)
    assert len(counted().waits) == len(plain.waits) + 1


def test_the_tables_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(gpu_cost, "VARIANTS", {"one piece": {},
                                               "in micro-batches": {"checkpointing": "full", "micro_batch": 2}})
    step = gpu_cost.counted_step
    monkeypatch.setattr(gpu_cost, "counted_step", lambda *args, **settings: step(*args, **settings, **TINY))
    gpu_cost.main(CLIPS, "bf16")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 + 2 * (2 + len(PARTS)) and lines[2].startswith("one piece") and "optimizer" in lines[-1]
