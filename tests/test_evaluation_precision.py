"""The emulation of a GPU's precisions (benchmarks/evaluation_precision.py) rounds what it says, and nothing else."""
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

sys.path.insert(0, str(ROOT / "benchmarks"))
import evaluation_precision as emulated

from egokit.config.schema import ModelConfig
from egokit.model import layers
from egokit.model.precision import autocast

CPU = torch.device("cpu")


def naive_tf32(x: torch.Tensor) -> torch.Tensor:
    """Round with 11 significant bits, halves away from zero."""
    mantissa, exponent = np.frexp(x.double().numpy())
    return torch.from_numpy(np.ldexp(np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5), exponent - 11))


def test_tf32_has_ten_bits_of_mantissa():
    torch.manual_seed(0)
    x = torch.randn(1000) * 10.0 ** torch.randint(-20, 20, (1000,))
    x[-3:] = torch.tensor([0.0, 1 + 2.0**-11, -3.0])
    rounded = emulated.rounded_to_tf32(x)
    assert torch.equal(rounded.double(), naive_tf32(x)) and rounded[-3:].tolist() == [0.0, 1 + 2.0**-10, -3.0]
    assert ((rounded - x).abs() <= x.abs() * 2.0**-11).all() and not torch.equal(rounded, x)


def test_factors_are_rounded_and_sums_are_not():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    frames, patch = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 4, 4)
    r = emulated.rounded_to_tf32
    with emulated.Tf32():
        found = F.linear(x, weight, bias), x[None].expand(2, -1, -1) @ weight.T.expand(2, -1, -1), \
            F.conv2d(frames, patch, stride=4), x + x
    expected = F.linear(r(x), r(weight), bias), (r(x) @ r(weight).T).expand(2, -1, -1), \
        F.conv2d(r(frames), r(patch), stride=4), x + x
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert not torch.allclose(found[0], F.linear(x, weight, bias), atol=1e-5)


@pytest.mark.parametrize("dtype, apart", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_attention_rounds_weights_and_results_once(dtype, apart):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, size, 16).to(dtype) for size in (5, 40, 40))
    mask = -30000.0 * (torch.arange(40) > 33).float()[None, None, None]
    with emulated.as_on_a_gpu("fp16"):
        found = layers.attend(query, key, value, mask)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), mask.double())
    assert found.dtype == dtype and (found.double() - exact).abs().max() < apart
    if dtype != torch.float32:
        assert (found.double() - exact).abs().max() > apart / 100


@torch.no_grad()
def test_heads_in_float32_read_the_half_precise_state():
    shape = ModelConfig(image_size=32, width=32, heads=2, depth=2, num_fused_layers=1, projection="mlp64")
    model = emulated.base_model(shape, CPU).eval()
    frames = torch.randn(3, 4, 3, 32, 32)
    with emulated.as_on_a_gpu("bf16"), autocast(CPU, "bf16"):
        state, halved = model.video(frames), model.embed_video(frames)
        with emulated.heads_in_float32(model):
            found = model.embed_video(frames)
    exact = nn.Sequential.forward(model.video_projection, state.float())
    assert torch.allclose(found, exact, atol=1e-6) and not torch.allclose(halved, exact, atol=1e-4)
    assert "forward" not in vars(model.video_projection)  # it is as it was


def test_deviations_of_scores_and_of_features():
    exact = np.array([[3.0, 4.0], [0.0, 2.0]])
    apart = np.array([[3.0, 3.5], [1.0, 2.0]])
    assert emulated.deviations("EgoMCQ cosines", apart, exact).tolist() == [[0.0, 0.5], [1.0, 0.0]]
    assert emulated.deviations("EK-100 features", apart, exact).tolist() == [0.1, 0.5]


def test_each_precision_changes_a_small_models_scores_by_its_own_rounding():
    shape = ModelConfig(patch_size=56, width=32, heads=2, depth=2, num_fused_layers=1, projection="linear16")
    model = emulated.base_model(shape, CPU).eval()
    exact, tf32, bf16, fp16 = (emulated.of_base_model(model, name)[0] for name in ("fp32", *emulated.PRECISIONS))
    for name, values in exact.items():
        apart = [emulated.deviations(name, other[name], values).max() for other in (tf32, bf16, fp16)]
        assert 0 < apart[0] < apart[1] and 0 < apart[2] < apart[1] < 0.05
