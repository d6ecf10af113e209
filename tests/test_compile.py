"""Compiled blocks have one graph each and the same losses, and a missing compiler is named."""
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import MODEL, ROOT
from training import run_of

from egokit.config.schema import ModelConfig
from egokit.model.egovlp import EgoVLP
from egokit.model.precision import autocast
from egokit.runs.run_folder import Run


@pytest.fixture
def run(project, request):
    return run_of(request)


def test_blocks_compile_to_one_graph_each():
    """With fullgraph, what torch.compile can't trace is an error, not a silent graph break."""
    torch._dynamo.reset()
    model = EgoVLP(ModelConfig(image_size=32, width=64, heads=2, depth=2, num_fused_layers=1, vocab_size=99,
                               max_positions=40, projection="linear8"))
    for block in (*model.video.blocks, *model.text.layers):
        block.compile(fullgraph=True, backend="eager")
    tokens = {"input_ids": torch.randint(4, 99, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with autocast(torch.device("cpu"), "bf16"):
        frames = torch.randn(2, 4, 3, 32, 32)
        trunk, words = model.fusion_trunk(frames), model.text_trunk(tokens)
        matching = model.itm_from_states(*model.fuse(trunk, words, tokens["attention_mask"], 4, "itm"))
        logits = model.mlm_from_states(model.fuse(trunk, words, tokens["attention_mask"], 4, "mlm")[1])
        outputs = (model.embed_video(frames), model.embed_text(tokens), matching, logits)
        sum(x.float().sum() for x in outputs).backward()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "cheap", "full"])
def test_compiled_blocks_give_the_same_losses(resolve, run, checkpointing):
    """Without a C++ compiler, the error that says so is checked instead."""
    from egokit import tasks
    from egokit.train.loop import train
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    few = f"{MODEL} data.limit=16 model.checkpointing={checkpointing} train.precision=fp32 model.dropout=0"
    losses = {}
    for name in ("false", "true"):
        config = resolve(overrides=f"{few} train.compile={name}")
        if name == "true" and not shutil.which(os.environ.get("CXX", "g++")):
            with pytest.raises(RuntimeError, match=r"train.compile needs a working C\+\+ compiler"):
                train(config, tasks.make(config), Run(run.path / name), "pretrain", torch.device("cpu"))
            return
        train(config, tasks.make(config), Run(run.path / name), "pretrain", torch.device("cpu"))
        losses[name] = [event["loss"] for event in Run(run.path / name).read_log() if event["kind"] == "step"]
    assert len(losses["true"]) == 2 and losses["true"] == pytest.approx(losses["false"], rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 4  # both encoders, fused and not


@pytest.mark.slow
def test_a_missing_compiler_is_named(tmp_path):
    """It runs in a process of its own, because PyTorch looks for its compiler once."""
    code = ("from egokit.config.schema import ModelConfig; from egokit.model.egovlp import EgoVLP; "
            "from egokit.train import step; "
            "config = ModelConfig(width=64, heads=1, depth=2, num_fused_layers=1, vocab_size=9, projection='linear8', "
            "image_size=32); step.compile_blocks(EgoVLP(config))")
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
                                "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "RuntimeError: train.compile needs a working C++ compiler" in done.stderr
