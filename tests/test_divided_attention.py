"""The kernels of divided attention: the plain path's values and gradients, and what a GPU's compiler makes of them.

There is no GPU: Triton's interpreter runs the kernels (interpreted_attention.py), and its compiler translates them for
GPUs that are not there.
"""
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from egokit.config.build import ConfigError
from egokit.config.schema import ModelConfig
from egokit.model import divided_attention, divided_kernels
from egokit.model.egovlp import EgoVLP
from egokit.model.video_encoder import VideoEncoder

SMALL = {"image_size": 32, "width": 32, "heads": 1, "depth": 1, "num_fused_layers": 1}


def interpreted(what: str) -> list[dict]:
    """Return what interpreted_attention.py prints."""
    done = subprocess.run([sys.executable, str(ROOT / "tests/interpreted_attention.py"), what], text=True, check=True,
                          env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_kernels_give_the_plain_paths_values_and_gradients():
    *rows, operation = interpreted("quick")
    assert len(rows) == 4
    for row in rows:
        assert row["values"] < 2e-6 and row["gradients"] < 2e-6, row
    assert len(operation["checks"]) == 4 and set(operation["checks"].values()) == {"SUCCESS"}


@pytest.mark.slow
def test_the_kernels_at_all_numbers_of_frames_and_in_whole_models():
    """Both halves of the model, with and without a last block of CLS alone; one model is compiled, without breaks."""
    rows = interpreted("whole")
    kernels, models = ([row for row in rows if row["kind"] == kind] for kind in ("kernels", "model"))
    assert {row["frames"] for row in kernels} == {row["frames"] for row in models} == {1, 4, 16, 32}
    assert len(kernels) == 18 and [row["compiled"] for row in models] == [False] * 4 + [True]
    for row in kernels:
        bound = 2e-6 if row["dtype"] == "float32" else 2e-3
        assert row["values"] < bound and row["gradients"] < bound, row
    for row in models:
        assert row["values"] < 1e-5 and row["gradients"] < 1e-5 and row["parameters"] == row["of"], row


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
def test_the_kernels_compile_for_gpus(capability):
    """Space attention of 196 patches takes four blocks; time attention of four frames takes one."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compiled(kernel, dtype: str, pointers: dict, stages: int, constants: dict):
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        types = {name: "constexpr" if name in constants else "fp32" if name == "scale" else
                 pointers.get(name, f"*{dtype}" if name in ("qkv", "out", "grad_out", "grad_qkv") else "i32")
                 for name in kernel.arg_names}
        even = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(kernel.arg_names)
                if types[name].startswith("*") or name == "width"}
        source = ASTSource(fn=kernel, signature=types, attrs=even,
                           constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()})
        return triton.compile(source, target=GPUTarget("cuda", capability, 32),
                              options={"num_warps": divided_attention.WARPS, "num_stages": stages})

    pointers = dict.fromkeys(("lse", "parts", "rows"), "*fp32")
    main = ((divided_kernels.forward, divided_attention.FORWARD_STAGES),
            (divided_kernels.backward, divided_attention.BACKWARD_STAGES))
    for_cls = ((divided_kernels.forward_cls, 1), (divided_kernels.backward_cls, 1))
    for dtype, precision, (pack, blocks, block), kernels in (
            ("bf16", "tf32", (1, 4, 64), main), ("fp16", "tf32", (8, 1, 32), (*main, *for_cls)),
            ("fp32", "ieee", (1, 4, 64), main)):
        constants = {"PACK": pack, "BLOCKS": blocks, "BLOCK": block, "CHANNELS": 64, "PRECISION": precision,
                     "PARTS": divided_attention.PARTS, "TILES": 25}
        for kernel, stages in kernels:
            made = compiled(kernel, dtype, pointers, stages, constants)
            assert made.asm["cubin"] and made.metadata.shared <= 99 * 1024, (kernel.__name__, dtype, pack)


def test_a_triton_that_is_missing_or_a_head_that_is_too_wide_is_named(monkeypatch):
    with pytest.raises(ConfigError, match=r"most 64 dimensions a head, but model.width / model.heads is 160: .*sdpa"):
        VideoEncoder(ModelConfig(**SMALL | {"width": 160}, attention="triton"))
    monkeypatch.setitem(sys.modules, "egokit.model.divided_attention", None)
    monkeypatch.delattr("egokit.model.divided_attention")
    assert VideoEncoder(ModelConfig(**SMALL, attention="triton")).blocks[0].time.fused_on == ()  # a CPU needs none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"model.attention=triton needs the package triton .* model.attention=sdpa"):
        VideoEncoder(ModelConfig(**SMALL, attention="triton"))


@pytest.mark.parametrize("tokens, channels, heads", [(10, 48, 1), (1, 48, 1), (9, 50, 1), (9, 3 * 80, 1)])
def test_wrong_shapes_are_refused(tokens, channels, heads):
    """They would leave outputs unwritten."""
    with pytest.raises(ValueError, match=f"attention: {tokens} tokens are not CLS and 2 frames.*{channels} channels"):
        divided_attention.Tiling(torch.zeros(1, tokens, channels), heads, 2, True)


def test_a_refused_setting_changes_nothing():
    model = EgoVLP(ModelConfig(**SMALL | {"width": 96}, vocab_size=99, projection="linear8"))
    before = model.config
    with pytest.raises(ConfigError, match="at most 64 dimensions a head"):
        model.compute_as(ModelConfig(attention="triton"))
    assert model.config is before and model.video.config is before and model.text.config is before


def test_a_model_on_these_kernels_can_be_unpickled_elsewhere(tmp_path):
    model = EgoVLP(ModelConfig(**SMALL, vocab_size=99, projection="linear8", attention="triton"))
    torch.save(model, tmp_path / "model.pt")
    code = (f"import torch; torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False); "
            "print(torch.ops.egokit.divided_attention)")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
                          capture_output=True)
    assert done.returncode == 0 and "divided_attention" in done.stdout, done.stderr


def test_auto_takes_the_kernels_where_they_can_be_had(monkeypatch):
    def fused_on(**values) -> tuple[str, ...]:
        return VideoEncoder(ModelConfig(**SMALL | values)).blocks[0].time.fused_on
    assert fused_on() == ()  # without a GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(divided_attention, "unbuilt", lambda: "")
        assert fused_on() == fused_on(attention="triton") == ("cuda",)
    assert fused_on(attention="sdpa") == fused_on(width=160) == ()
    monkeypatch.setitem(sys.modules, "egokit.model.divided_attention", None)
    monkeypatch.delattr("egokit.model.divided_attention")
    assert fused_on() == ()


def test_a_node_without_a_c_compiler(monkeypatch, capsys):
    """Triton builds what starts kernels when the first one is started, in the middle of a step."""
    class Driver:
        @property
        def active(self):
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    divided_attention.unbuilt.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(divided_attention.triton.runtime, "driver", Driver())
    try:
        for _ in range(2):
            assert VideoEncoder(ModelConfig(**SMALL)).blocks[0].time.fused_on == ()
        said, = capsys.readouterr().out.splitlines()
        assert "PyTorch's" in said and "Failed to find C compiler" in said
        with pytest.raises(ConfigError, match=r"attention=triton needs a C compiler .*model\.attention=sdpa"):
            VideoEncoder(ModelConfig(**SMALL, attention="triton"))
    finally:
        divided_attention.unbuilt.cache_clear()


def test_a_model_changes_its_path():
    encoder = VideoEncoder(ModelConfig(**SMALL))
    encoder.compute_as(ModelConfig(**SMALL, attention="triton"))
    assert encoder.blocks[0].time.fused_on == encoder.blocks[0].space.fused_on == ("cuda",)
    encoder.compute_as(ModelConfig(**SMALL, attention="sdpa"))
    assert encoder.blocks[0].space.fused_on == ()
