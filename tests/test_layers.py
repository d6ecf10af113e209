"""The linear layer that trains by oneDNN on a CPU: PyTorch's own figures, for inputs of any shape."""
import pytest
import torch
import torch.nn.functional as F

from egokit.layers import Linear, onednn_serves


@pytest.mark.parametrize("shape", [(5, 7, 16), (3, 16), (16,), (0, 16)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [slice(None), slice(8, None)])
def test_gradients_are_pytorchs(shape, bias, rows):
    torch.manual_seed(0)
    layer, x = Linear(16, 24, bias=bias), torch.randn(shape, requires_grad=True)
    leaves = [x, *layer.parameters()]
    ours = layer(x, rows=rows, gelu=True)
    theirs = F.gelu(F.linear(x, layer.weight[rows], layer.bias[rows] if bias else None))
    assert torch.allclose(ours, theirs, atol=1e-6)
    for summed in (lambda out: out.sum(), lambda out: out.transpose(0, -1).square().sum()):  # expanded and transposed gradients
        for one, other in zip(*(torch.autograd.grad(summed(out), leaves, retain_graph=True) for out in (ours, theirs)), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_a_frozen_layer_still_passes_its_gradient_on():
    layer, x = Linear(4, 4).requires_grad_(False), torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, -1)) and layer.weight.grad is None


def test_half_precision_goes_pytorchs_way():
    x, weight = torch.randn(2, 4), torch.randn(4, 4)
    assert not onednn_serves(x.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn_serves(x, weight)
