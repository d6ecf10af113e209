"""The single-stage head equals a naive twin: every layer by loops, for one clip at a time, without padding."""
import math

import pytest
import torch

from egokit.model.moment_head import MomentHead

LEVELS, HEADS, REACH = 3, 2, 2  # the twin's band is REACH positions on each side


class Twin:
    """ActionFormer's and TemporalMaxer's head, with a text as in SnAG, from a head's parameters."""

    def __init__(self, head: MomentHead):
        self.of = dict(head.named_parameters())

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.of[f"{name}.weight"] + self.of[f"{name}.bias"]

    def linear(self, x, name):
        return x @ self.of[f"{name}.weight"].T + self.of[f"{name}.bias"]

    def conv(self, x, name, stride=1, depthwise=False):
        kernel, bias, edge = self.of[f"{name}.weight"], self.of.get(f"{name}.bias", 0), torch.zeros(1, x.shape[1])
        x, rows = torch.cat([edge, x, edge]), []
        for t in range(0, len(x) - 2, stride):
            taps = [x[t + k] * kernel[:, 0, k] if depthwise else kernel[:, :, k] @ x[t + k] for k in range(3)]
            rows.append(sum(taps) + bias)
        return torch.stack(rows)

    def attention(self, x, source, name, reach=math.inf):
        query, (key, value) = self.linear(x, f"{name}.query"), self.linear(source, f"{name}.key_value").chunk(2, -1)
        rows, size = [], query.shape[1] // HEADS
        for i in range(len(query)):
            near, parts = [j for j in range(len(key)) if abs(i - j) <= reach], []
            for part in (slice(h * size, (h + 1) * size) for h in range(HEADS)):
                weights = torch.softmax(key[near, part] @ query[i, part] / math.sqrt(size), dim=0)
                parts.append(weights @ value[near, part])
            rows.append(torch.cat(parts))
        return self.linear(torch.stack(rows), f"{name}.out")

    def mlp(self, x, name):
        x = self.linear(self.norm(x, f"{name}.0"), f"{name}.1")
        return self.linear(x * (1 + torch.erf(x / math.sqrt(2))) / 2, f"{name}.4")  # GELU

    def pool(self, x):
        return torch.stack([x[max(0, t - 1):t + 2].amax(0) for t in range(0, len(x), 2)])

    def block(self, x, name, text, stride=1):
        near = self.conv(self.norm(x, f"{name}.norm"), f"{name}.conv", stride, depthwise=True)
        x = self.pool(x) if stride == 2 else x
        x = x + self.of[f"{name}.scale"] * self.attention(near, near, f"{name}.attention", REACH)
        if text is not None:
            read = self.attention(self.norm(x, f"{name}.text_norm"), text, f"{name}.text_attention")
            x = x + self.of[f"{name}.text_scale"] * read
        return x + self.of[f"{name}.mlp_scale"] * self.mlp(x, f"{name}.mlp")

    def tower(self, x, name):
        for layer in range(2):
            x = self.norm(self.conv(x, f"{name}.{layer}.0"), f"{name}.{layer}.1").relu()
        return x

    def __call__(self, x, text, stem, pyramid):
        if text is not None:
            text = self.norm(self.linear(text, "text_layer.embed.0"), "text_layer.embed.1")
            normed = self.norm(text, "text_layer.norm")
            text = text + self.attention(normed, normed, "text_layer.attention")
            text = text + self.mlp(text, "text_layer.mlp")
        x, logits, offsets = self.tower(x, "embed"), [], []
        for number in range(stem):
            x = self.block(x, f"stem.{number}", text)
        for level in range(LEVELS):
            if level:
                x = self.block(x, f"pyramid.{level - 1}", text, 2) if pyramid == "attention" else self.pool(x)
            normed = self.norm(x, f"norms.{level}")
            logits.append(self.conv(self.tower(normed, "class_tower"), "class_layer"))
            reach = self.conv(self.tower(normed, "offset_tower"), "offset_layer")
            offsets.append((self.of["offset_scale"][level] * reach).relu())
        return torch.cat(logits), torch.cat(offsets)


@pytest.mark.parametrize("pyramid", ["maxpool", "attention"])
@pytest.mark.parametrize("text", [0, 6])
@pytest.mark.parametrize("T, stem", [(13, 1), (6, 2), (1, 0)])
def test_the_head_equals_its_twin(pyramid, text, T, stem):
    torch.manual_seed(T)
    head = MomentHead(5, 3, dim=8, levels=LEVELS, heads=HEADS, window=2 * REACH + 1, stem=stem, pyramid=pyramid,
                      text=text).eval()
    features, tokens = torch.randn(T, 5), torch.randn(4, text) if text else None
    words = [tokens[None], torch.ones(1, 4, dtype=torch.bool)] if text else []
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
        found = head(features.T[None], torch.ones(1, T, dtype=torch.bool), *words)
        logits, offsets = Twin(head)(features, tokens, stem, pyramid)
    torch.testing.assert_close(found.logits_BPC[0], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.offsets_BP2[0], offsets, rtol=1e-4, atol=1e-5)


def test_initial_values_band_and_dropout_are_those_of_the_recipe():
    """Blocks start near the identity, texts with a tenth; biases are 0; a position sees 9; features are dropped."""
    head = MomentHead(5, 3, dim=8, text=6, pyramid="attention")
    values = {name.rpartition(".")[2]: parameter for name, parameter in head.stem[0].named_parameters()}
    for name, value in (("scale", 1e-4), ("mlp_scale", 1e-4), ("text_scale", 0.1)):
        assert (values[name] == value).all() and values[name].shape == (8,)
    assert (head.offset_scale == 1).all() and len(head.stem) == 2 and len(head.pyramid) == 7
    assert all(block.attention.window == 9 and block.attention.heads == 4 for block in [*head.stem, *head.pyramid])
    assert (head.stem[0].text_attention.heads, head.stem[0].text_attention.window) == (4, 0)
    biases = {name: value for name, value in head.named_parameters() if name.endswith("bias")}
    assert (biases.pop("class_layer.bias") == -math.log(99)).all() and not any(value.any() for value in biases.values())
    plain, mask = MomentHead(5, 3, dim=8, stem=0, dropout=0.5), torch.ones(1, 9, dtype=torch.bool)
    first, second = (plain(torch.ones(1, 5, 9), mask).logits_BPC for _ in range(2))
    assert not torch.equal(first, second), "without a block, the features' own dropout is the only one"
