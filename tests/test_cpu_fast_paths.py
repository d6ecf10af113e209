"""What trains faster on a CPU: linear layers by oneDNN, and the word embedding's gradient.

Its gradients are PyTorch's own; and it stands aside where it must.
"""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from egokit.model import cpu_fast_paths
from egokit.model.layers import Linear


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(cpu_fast_paths, "TRAINED_PRODUCTS", 0)


@pytest.fixture
def products(monkeypatch):
    """The shapes of what oneDNN multiplies."""
    shapes, product = [], cpu_fast_paths._product

    def counted(x, weight, *others):
        shapes.append((tuple(x.shape), tuple(weight.shape)))
        return product(x, weight, *others)

    monkeypatch.setattr(cpu_fast_paths, "_product", counted)
    return shapes


def tensors(*shape: int, bias: bool = True):
    torch.manual_seed(0)
    layer = Linear(shape[-1], 40, bias=bias)
    return layer, torch.randn(shape), torch.randn(*shape[:-1], 40)


@pytest.mark.parametrize("shape", [(2, 785, 24), (7, 24), (2, 1, 24), (1, 24)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [None, slice(8, 32)])
def test_gradients_are_those_of_float64(products, shape, gelu, bias, rows):
    layer, x, direction = tensors(*shape, bias=bias)
    x.requires_grad_()
    (layer(x, rows, gelu) * direction[..., rows or slice(None)]).sum().backward()
    leaves = [None if leaf is None else leaf.detach().double().requires_grad_()
              for leaf in (x, layer.weight, layer.bias)]
    y = F.linear(leaves[0], *(None if leaf is None else leaf[rows or slice(None)] for leaf in leaves[1:]))
    ((F.gelu(y) if gelu else y) * direction[..., rows or slice(None)]).sum().backward()
    for ours, theirs in zip((x, layer.weight, layer.bias), leaves, strict=True):
        if theirs is not None:
            assert (ours.grad - theirs.grad).norm() <= 1e-6 * theirs.grad.norm()
    assert len(products) == 3


def test_a_gradient_without_memory_of_its_own_and_a_transposed_input():
    """`sum` hands back one number for all outputs, and a view's rows need not lie one after the other."""
    layer, x, _ = tensors(24, 24)
    x = x.T.requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.detach().sum(0).expand(24, -1), rtol=1e-5, atol=1e-6)
    assert torch.allclose(layer.weight.grad, x.detach().sum(0).expand(40, -1), rtol=1e-5, atol=1e-5)
    assert layer.bias.grad.eq(24).all()


def test_only_gradients_asked_for_are_computed(products):
    layer, x, _ = tensors(7, 24)
    layer.weight.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert products == [((7, 24), (40, 24)), ((7, 40), (24, 40))] and layer.weight.grad is None
    layer.requires_grad_(False)
    assert not layer(x.detach()).requires_grad


def test_a_recomputation_ends_before_the_last_product(products):
    first, x, _ = tensors(7, 24)
    last = Linear(40, 16)
    y = checkpoint(lambda x: last(first(x)), x.requires_grad_(), use_reentrant=False)
    forward = products[:]
    y.sum().backward()
    assert forward == [((7, 24), (40, 24)), ((7, 40), (16, 40))]
    assert products[2] == forward[0] and forward[1] not in products[2:] and len(products) == 2 + 1 + 4


def hessian_product(layer, x, weight):
    """The second derivative of a quartic of the layer's outputs, by its weight and its input."""
    grads = torch.autograd.grad(layer(x).pow(4).sum(), (x, weight), create_graph=True)
    return torch.autograd.grad(sum(grad.square().sum() for grad in grads), (x, weight))


def test_second_derivatives_are_those_of_float64():
    layer, x, _ = tensors(7, 24)
    exact = copy.deepcopy(layer).double()
    sides = [hessian_product(one, y.requires_grad_(), one.weight)
             for one, y in ((layer, x.clone()), (exact, x.double().clone()))]
    for ours, theirs in zip(*sides, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm() > 0
    product = torch.autograd.functional.hvp(lambda y: layer(y).square().sum(), x.detach(), x.detach())[1]
    assert torch.allclose(product, 2 * x @ layer.weight.T @ layer.weight, rtol=1e-3, atol=1e-3)


def test_an_embeddings_second_derivative_is_pytorchs():
    layer = torch.nn.Embedding(9, 4, padding_idx=1)
    ids, found = torch.tensor([[3, 1, 3], [0, 5, 8]]), []
    for lookup in (lambda: cpu_fast_paths.embedding(layer, ids), lambda: layer(ids)):
        grad, = torch.autograd.grad(lookup().pow(3).sum(), layer.weight, create_graph=True)
        found.append((grad.detach(), torch.autograd.grad(grad.square().sum(), layer.weight)[0]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs) and theirs.abs().sum() > 0


def test_transforms_and_forward_derivatives_work():
    layer, x, _ = tensors(7, 24)
    words = torch.nn.Embedding(9, 24)

    def loss(weight, table):
        embedded = torch.func.functional_call(words, {"weight": table}, (torch.tensor([3, 3, 1, 0, 2, 8, 7]),))
        return torch.func.functional_call(layer, {"weight": weight}, (x + embedded,)).square().sum()
    grads = torch.func.grad(loss, argnums=(0, 1))(layer.weight, words.weight)
    expected = torch.autograd.grad(loss(layer.weight, words.weight), (layer.weight, words.weight))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(grads, expected, strict=True))
    assert not _applies_under(torch.func.vmap, words)
    with torch.autograd.forward_ad.dual_level():
        assert not cpu_fast_paths.linear_applies(x, layer.weight, layer.bias)
        assert not cpu_fast_paths.embedding_applies(words)


def _applies_under(transform, words) -> bool:
    asked = []
    transform(lambda y: asked.append(cpu_fast_paths.embedding_applies(words)) or y)(torch.zeros(2))
    return asked[0]


@pytest.mark.parametrize("case", ["small", "float64", "autocast", "switched off"])
def test_pytorchs_own_layer_is_used(monkeypatch, products, case):
    layer, x, _ = tensors(7, 24)
    if case == "small":
        monkeypatch.setattr(cpu_fast_paths, "TRAINED_PRODUCTS", 7 * 24 * 40 + 1)
    if case == "float64":
        layer, x = layer.double(), x.double()
    with (torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"),
          torch.backends.mkldnn.flags(enabled=case != "switched off")):
        layer(x).sum().backward()
    assert not products and layer.weight.grad is not None


def test_an_embeddings_uses_share_one_dense_gradient():
    torch.manual_seed(0)
    layer = torch.nn.Embedding(50, 8, padding_idx=1)
    twin = copy.deepcopy(layer)
    ids = [torch.randint(0, 50, (3, 7)) for _ in range(3)]
    directions = torch.randn(3, 3, 7, 8)
    ids[0][0, :3] = 1
    for _ in range(2):  # the second step's gradient is added to the first one's
        rows = [cpu_fast_paths.embedding(layer, x) for x in ids]
        assert all(torch.equal(row, twin(x)) for row, x in zip(rows, ids, strict=True))
        assert len({row.grad_fn.next_functions[0][0] for row in rows}) == 1
        for side in (rows, [twin(x) for x in ids]):
            (torch.stack(side) * directions).sum().backward()
        del rows, side
        assert layer.weight.grad.layout == torch.strided and not cpu_fast_paths._TABLES
        assert torch.allclose(layer.weight.grad, twin.weight.grad, rtol=1e-6, atol=1e-6)
        assert layer.weight.grad[1].eq(0).all()


def test_an_embedding_reads_its_present_weights():
    """Also while a graph of before is alive: after a step in place, and after a move to other memory."""
    layer, ids = torch.nn.Embedding(5, 3), torch.tensor([4, 2])
    rows = [cpu_fast_paths.embedding(layer, ids)]
    for change in (lambda weight: weight.mul_(2), lambda weight: setattr(weight, "data", weight.data + 1)):
        with torch.no_grad():
            change(layer.weight)
        rows.append(cpu_fast_paths.embedding(layer, ids))
        assert torch.equal(rows[-1], layer.weight[ids])
    sum(row.sum() for row in rows).backward()
    assert layer.weight.grad.eq(torch.tensor([[0.0], [0], [3], [0], [3]])).all()


def test_pytorchs_own_embedding_is_used():
    layer = torch.nn.Embedding(5, 3)
    assert cpu_fast_paths.embedding_applies(layer)
    with torch.no_grad():
        assert not cpu_fast_paths.embedding_applies(layer)
    adapted = copy.deepcopy(layer)
    adapted.register_forward_hook(lambda *_: None)
    frozen = copy.deepcopy(layer).requires_grad_(False)
    watched = copy.deepcopy(layer)
    watched.register_full_backward_hook(lambda *_: None)
    others = [torch.nn.Embedding(5, 3, **option) for option in ({"max_norm": 1.0}, {"scale_grad_by_freq": True},
                                                               {"sparse": True})]
    others += [adapted, frozen, watched, torch.nn.Sequential(layer)]
    assert not any(map(cpu_fast_paths.embedding_applies, others))


def test_what_onednn_can_not_compute_is_pytorchs(products):
    layer, x, _ = tensors(7, 24)
    layer.bias = torch.nn.Parameter(torch.randn(80)[::2])
    assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias))
    layer.bias = None
    assert layer(x[:0]).shape == (0, 40) and not products
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        layer(x[:, :20])
