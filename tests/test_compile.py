"""Compiled blocks: no graph break and at most 4 graphs a kind over a run, the same losses, and errors that say why."""
import os
import pickle
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from compiling import breaks, graphs, recorder
from conftest import MODEL, ROOT
from test_dist import ranks
from torch import nn
from training import run_of

from egokit import tasks
from egokit.model.video_encoder import Block
from egokit.runs.run_folder import Run
from egokit.train import loop
from egokit.train.compiled import CompiledBlocks

CPU = torch.device("cpu")
HAS_COMPILER = bool(shutil.which(os.environ.get("CXX", "g++")))
# 3 steps of 4, 4 and 3 samples an epoch; a validation's last batch is one clip
UNEVEN = f"{MODEL} data.limit=11 train.batch_size=4 train.precision=fp32 model.dropout=0 evaluate.batch_size=3"


@pytest.fixture
def run(project, request):
    yield run_of(request)
    torch._dynamo.reset()


def outcome(run) -> list[float]:
    """Return all losses and validation scores in the order of a run's log."""
    return [event[key] for event in run.read_log() for key in ("loss", "ensemble_inter", "nDCG") if key in event]


def train(config, run) -> list[float]:
    loop.train(config, tasks.make(config), run, "test", CPU)
    return outcome(run)


@pytest.mark.parametrize("fixed_shapes, overrides", [
    (False, "model.checkpointing=full train.micro_batch=2 train.epochs=2"),
    (True, "train.deterministic=true train.epochs=2"),
])
def test_a_run_has_few_graphs_and_the_same_losses(resolve, run, monkeypatch, fixed_shapes, overrides):
    """Text lengths, last batches, validations, recomputation and micro-batches: all kinds of blocks are met."""
    made = recorder(monkeypatch, "eager", fixed_shapes)
    losses = {name: train(resolve(overrides=f"{UNEVEN} {overrides} train.compile={name}"), Run(run.path / name))
              for name in ("false", "true")}
    assert len(losses["true"]) == 2 * 3 + 3 and losses["true"] == pytest.approx(losses["false"], rel=1e-5)
    counted = graphs(made[0])
    assert not breaks()
    # in the order of Block.forward's and TextLayer.forward's arguments; the last one is "CLS alone"
    assert set(counted) == {"Block(True, False, False, False)", "Block(True, False, False, True)",
                            "Block(True, True, True, True)", "TextLayer(True, False, False)",
                            "TextLayer(True, False, True)", "TextLayer(True, True, False)",
                            "TextLayer(True, True, True)"}
    for kind, numbers in counted.items():
        assert sum(numbers.values()) <= 4, (kind, numbers)
        # fixed shapes and others have a graph each; else training has one: no batch of one clip occurs there
        assert all(number == 1 for (gradients, _), number in numbers.items() if gradients or fixed_shapes), kind
    assert sum(sum(numbers.values()) for numbers in counted.values()) == torch._dynamo.utils.counters["stats"][
        "unique_graphs"] - 1  # compile_blocks' own trial


@pytest.mark.parametrize("in_thread", [False, True], ids=["main-thread", "other-thread"])
@pytest.mark.parametrize("views", [False, True], ids=["tensors", "views"])
@pytest.mark.parametrize("fixed_shapes, expected", [(False, {False: 2}), (True, {True: 1, False: 1})])
def test_batches_of_one_and_others_share_two_graphs(fixed_shapes, expected, views, in_thread):
    """Outputs and gradients are the block's own, for any number of clips and frames, and any length of text.

    PyTorch's settings are a thread's own, and ours are as before after each call.
    """
    torch.manual_seed(0)
    block = Block(16, 2, 2.0, fused=True)
    nn.init.ones_(block.text.gate)
    blocks, sides = CompiledBlocks("eager", fixed_shapes), []

    def run() -> None:
        for clips, frames, tokens in ((5, 2, 5), (3, 2, 7), (1, 2, 4), (5, 2, 5), (7, 4, 17), (1, 3, 9)):
            inputs = [torch.randn(clips, 1 + frames * 4, 16), frames, torch.randn(clips, tokens, 16),
                      torch.randn(clips, 1, 1, tokens), False]
            for function in (block, lambda *inputs: blocks(block, *inputs)):
                x = inputs[0].clone().requires_grad_()
                y = function(x[:] if views else x, *inputs[1:])
                sides.append((y, *torch.autograd.grad(y.square().sum(), (x, *block.parameters()))))

    if in_thread:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    assert len(sides) == 12
    for right, got in zip(sides[::2], sides[1::2], strict=True):
        for ours, plain in zip(got, right, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert graphs(blocks) == {"Block(True, True, True, False)": {(True, fixed): n for fixed, n in expected.items()}}
    assert torch.fx.experimental._config.use_duck_shape and torch._dynamo.config.optimize_ddp
    torch._dynamo.reset()


def test_hooks_set_later_are_obeyed_and_compiled_models_are_copied():
    torch.manual_seed(0)
    block = Block(16, 2, 2.0, fused=False)
    blocks, x, called = CompiledBlocks("eager", False), torch.randn(2, 9, 16), []
    plain = blocks(block, x, 2)
    hook = block.fc1.register_forward_hook(lambda module, inputs, out: called.append(1) or out * 0)
    hooked = blocks(block, x, 2)
    assert called and not torch.allclose(hooked, plain)
    torch.testing.assert_close(hooked, block(x, 2))
    hook.remove()
    torch.testing.assert_close(blocks(block, x, 2), plain)
    copied = pickle.loads(pickle.dumps(blocks))
    torch.testing.assert_close(copied(block, x, 2), plain)
    torch._dynamo.reset()


def test_blocks_that_differ_in_what_is_frozen_are_different_kinds():
    blocks, x = CompiledBlocks("eager", False), torch.randn(2, 9, 16)
    for frozen in range(10):
        block = Block(16, 2, 2.0, fused=False)
        list(block.parameters())[frozen].requires_grad_(False)
        blocks(block, x, 2)
    assert len(blocks.functions) == 10
    torch._dynamo.reset()


class Broken(nn.Module):
    """A block that can't be one graph."""

    def forward(self, x):
        torch._dynamo.graph_break()
        return x + 1


def test_what_would_silently_stay_uncompiled_is_an_error():
    x = torch.ones(3, 2)
    with pytest.raises(RuntimeError, match=r"Broken\.forward can't be compiled as one graph.*train\.compile=false"):
        CompiledBlocks("eager", False)(Broken(), x)
    blocks = CompiledBlocks("eager", True)
    with torch._dynamo.config.patch(recompile_limit=2), pytest.raises(RuntimeError, match="Linear needs more than 2"):
        for given in (x, x.double(), x.half()):
            blocks(nn.Linear(2, 2, dtype=given.dtype), given)
    torch._dynamo.reset()


@pytest.mark.slow
def test_two_ranks_compile_whole_blocks(resolve, project, tmp_path):
    """DDP's own optimizer would split each block into several graphs: its buckets are small here."""
    overrides = f"{UNEVEN} init="
    single, = ranks("rank_compile.py", 1, tmp_path / "1", project, overrides)
    compiled = ranks("rank_compile.py", 2, tmp_path / "2", project, overrides, "train.compile=true")
    assert not single["graphs"] and len(single["losses"]) == 3
    for result in compiled:
        assert result["losses"] == pytest.approx(single["losses"], rel=1e-5)
        assert len(result["graphs"]) == 4 and max(result["graphs"].values()) <= 4 and not result["breaks"]
        assert result["given"] == sum(result["graphs"].values())


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
def test_the_compiler_gives_the_same_losses(resolve, run, monkeypatch):
    """The kernels of torch.compile's own backend, which adds guards of its own, with recomputed micro-batches."""
    made = recorder(monkeypatch, "inductor")
    overrides = f"{UNEVEN} model.checkpointing=full train.micro_batch=2 train.deterministic=true"
    losses = {name: train(resolve(overrides=f"{overrides} train.compile={name}"), Run(run.path / name))
              for name in ("false", "true")}
    assert len(losses["true"]) == 3 + 2 and losses["true"] == pytest.approx(losses["false"], rel=1e-5)
    assert not breaks() and max(sum(numbers.values()) for numbers in graphs(made[0]).values()) <= 4


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
def test_a_stopped_run_goes_on_to_the_same_losses(resolve, run, monkeypatch):
    """To the bit on a CPU, although blocks are compiled anew, in the middle of an epoch."""
    recorder(monkeypatch, "inductor")
    config = resolve("toy/ek100_finetune", f"{UNEVEN} init= model.dropout=0.1 train.checkpoint_steps=1 "
                                           "train.compile=true")
    straight, broken = Run(run.path / "straight"), Run(run.path / "broken")
    update, steps = loop.Trainer.update, []

    def stopped(trainer, rate):
        if len(steps) == 1:
            raise KeyboardInterrupt
        steps.append(rate)
        return update(trainer, rate)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "update", stopped)
        train(config, broken)
    assert len(steps) == 1
    assert train(config, broken) == train(config, straight) and len(outcome(straight)) == 3 + 2


@pytest.mark.slow
def test_a_missing_compiler_is_named(tmp_path):
    """It runs in a process of its own, because PyTorch looks for its compiler once."""
    code = ("from egokit.config.schema import ModelConfig; from egokit.model.egovlp import EgoVLP; "
            "from egokit.train.compiled import compile_blocks; "
            "config = ModelConfig(width=64, heads=1, depth=2, num_fused_layers=1, vocab_size=9, projection='linear8', "
            "image_size=32); compile_blocks(EgoVLP(config))")
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
                                "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "RuntimeError: train.compile needs a working C++ compiler" in done.stderr
