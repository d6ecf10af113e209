"""What the backward pass computes again (model.checkpointing) changes no gradient."""
import collections
import dataclasses

import pytest
import torch
from test_model_twin import SMALL, inputs, seeded
from torch import nn

import egokit
from egokit.model import cpu_fast_paths, recomputation
from egokit.model.precision import autocast
from egokit.model.recomputation import recomputed
from egokit.model.video_encoder import Block

MODES = ("none", "cheap", "full")


@pytest.fixture
def calls(monkeypatch):
    """The numbers of clips of which a block of the video encoder was given to be recomputed, in their order."""
    sizes, checkpoint = [], recomputation.checkpoint

    def counted(block, x_BSD, *arguments, **options):
        if isinstance(block, Block):
            sizes.append(len(x_BSD))
        return checkpoint(block, x_BSD, *arguments, **options)

    monkeypatch.setattr(recomputation, "checkpoint", counted)
    return sizes


def gradients(model, checkpointing: str, frames: int, pairs: int = 5, precision: str = "fp32") -> dict:
    """Return every parameter's gradient of a loss that goes through both encoders, fused and not."""
    model.compute_as(dataclasses.replace(model.config, checkpointing=checkpointing))
    model.zero_grad(set_to_none=True)
    video, tokens = inputs(SMALL, frames, pairs, "H")
    torch.manual_seed(7)
    with autocast(model.device, precision):
        trunk, words = model.fusion_trunk(video), model.text_trunk(tokens)
        itm = model.itm_from_states(*model.fuse(trunk, words, tokens["attention_mask"], frames, "itm"))
        mlm = model.mlm_from_states(model.fuse(trunk, words, tokens["attention_mask"], frames, "mlm")[1])
        dual = egokit.similarity(model.embed_text(tokens), model.embed_video(video))
    (itm.float().square().mean() + mlm.float().square().mean() + dual.square().sum()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(kept: dict, again: dict, bound: float) -> None:
    # a gate's gradient is a sum of many terms that cancel
    floor = bound / 10 * max(grad.norm() for grad in kept.values())
    for name, grad in kept.items():
        assert (again[name] - grad).norm() <= bound * grad.norm() + floor, name


@pytest.mark.parametrize("checkpointing", ["cheap", "full"])
@pytest.mark.parametrize("frames, clips", [(4, 1), (3, 2), (4, 5)])
def test_no_gradient_changes(monkeypatch, calls, frames, clips, checkpointing):
    """Blocks are recomputed in the backward pass, `clips` of the five clips at a time; with the same dropout."""
    if clips < 5:
        values = (1 + frames * (SMALL.image_size // SMALL.patch_size) ** 2) * SMALL.width
        monkeypatch.setattr(cpu_fast_paths, "RECOMPUTED_VALUES", int((clips + 0.9) * values))
    model = seeded(dataclasses.replace(SMALL, dropout=0.1), "H").train()
    kept = gradients(model, "none", frames)
    assert not calls
    again = gradients(model, checkpointing, frames)
    assert set(calls) == {clips, 5 % clips or clips}
    assert_same(kept, again, 1e-5)


def test_cheap_is_full_to_the_last_digits_in_half_precision():
    """Autocast casts a weight once for all passes at first, and again for each block in the backward pass.

    So the passes' gradients of a weight are summed in half precision without recomputation, else in float32.
    """
    model = seeded(dataclasses.replace(SMALL, dropout=0.1), "H").train()
    none, cheap, full = (gradients(model, checkpointing, 4, precision="bf16") for checkpointing in MODES)
    assert_same(full, cheap, 1e-6)
    assert_same(none, cheap, 5e-3)


@pytest.mark.parametrize("by_onednn", [False, True], ids=["plain", "onednn"])
def test_cheap_keeps_products_and_computes_the_rest_again(monkeypatch, by_onednn):
    """Operations that are computed, by name: those in the graph of "none" once, and some of them again."""
    monkeypatch.setattr(cpu_fast_paths, "TRAINED_PRODUCTS", 0 if by_onednn else 2**60)
    linear = "mkldnn::_linear_pointwise" if by_onednn else "aten::addmm"

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            counts[operation.name()] += 1
            return operation(*args, **(kwargs or {}))

    model, computed, grads = seeded(dataclasses.replace(SMALL, dropout=0.0), "H").train(), {}, {}
    for checkpointing in MODES:
        counts = collections.Counter()
        with Counted():
            grads[checkpointing] = gradients(model, checkpointing, 4)
        computed[checkpointing] = counts
    assert_same(grads["none"], grads["cheap"], 1e-5)
    none, cheap, full = (computed[checkpointing] for checkpointing in MODES)
    products = {name for name in none if name in recomputation.KEPT}
    assert {linear, "aten::bmm", "aten::_scaled_dot_product_flash_attention_for_cpu"} <= products
    assert all(cheap[name] == none[name] < full[name] for name in products - {"aten::mm", "aten::convolution"})
    assert cheap["aten::mm"] == none["aten::mm"]  # of backward passes alone
    for name in ("aten::gelu", "aten::native_layer_norm"):
        assert none[name] < cheap[name] <= full[name], name


def block_of(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return recomputed(layer, "cheap", x)


def test_cheap_allows_one_backward_pass_and_says_so():
    layer = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.GELU())
    out = block_of(layer, torch.ones(2, 4, requires_grad=True)).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"model.checkpointing=cheap.*one backward pass.*model.checkpointing=full"):
        out.backward()


def test_a_product_that_is_changed_in_place_is_an_error():
    """What was kept would have been changed with it, and the gradients would be wrong."""
    class InPlace(nn.Linear):
        def forward(self, x):
            return super().forward(x).mul_(3).sin()

    with pytest.raises(RuntimeError, match=r"model.checkpointing=cheap keeps.*mul_.*in place.*checkpointing=full"):
        block_of(InPlace(4, 4), torch.ones(2, 4, requires_grad=True)).sum().backward()


def test_a_block_that_computes_something_else_the_second_time_is_named():
    class Changing(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            product = super().forward(x) if self.calls == 1 else (x[None] @ self.weight[None].expand(1, -1, -1))[0]
            return (product.sin() + 1).cos()

    out = block_of(Changing(4, 4), torch.ones(2, 4, requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match=r"model.checkpointing=cheap: a block computed aten.addmm.*but aten.bmm"):
        out.backward()
