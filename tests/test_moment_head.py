"""The single-stage head: points, targets, losses and decoding against golden figures and naive twins; padding."""
import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT

from egokit.model.moment_head import MomentHead, Points, decode, diou, focal, losses, targets
from egokit.model.moment_layers import banded_attention

GOLDEN = json.loads((ROOT / "tests/golden/golden_mq_nlq.json").read_text())
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def same(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), **CLOSE)


def small_head(**options) -> MomentHead:
    """A head of 5 features, 3 classes and 4 levels, with weights that all matter."""
    torch.manual_seed(0)
    head = MomentHead(5, 3, **{"dim": 16, "levels": 4, "heads": 2, "window": 5, "dropout": 0.0} | options)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("scale"):
                parameter.uniform_(0.3, 1.0)
            elif name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
        head.offset_layer.bias.fill_(0.5)
    return head


def padded(rows: list, value=0) -> torch.Tensor:
    """Rows of different lengths as one tensor."""
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True,
                                           padding_value=value)


def golden_targets() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The points of golden single_stage_points, and their class and offset targets."""
    case = GOLDEN["single_stage_points"]
    head = MomentHead(1, case["classes"], dim=4, levels=len(case["strides"]), ranges=case["ranges"], stem=0)
    segments = padded([np.array(rows, dtype=np.float32).reshape(-1, 2) for rows in case["segments"]])
    labels = padded([np.array(row, dtype=np.int64) for row in case["labels"]], -1)
    points = head.points(case["length"])
    return points, *targets(points, segments, labels, case["classes"])


def test_points_and_targets_equal_the_golden_ones():
    case = GOLDEN["single_stage_points"]
    points, classes, offsets = golden_targets()
    parts = points.split(case["points_per_level"])
    for part, first, stride in zip(parts, case["first_of_each_level"], case["strides"], strict=True):
        same(part[:len(first)], first)
        assert (part[:, 3] == stride).all()
    for clip, positive in enumerate(case["positive"]):
        numbers = classes[clip].any(dim=1).nonzero().flatten().tolist()
        found = [[number, classes[clip, number].nonzero().flatten().tolist()] for number in numbers]
        assert found == [[number, labels] for number, labels, _ in positive]
        same(offsets[clip, [number for number, *_ in positive]], np.array([row[2] for row in positive]).reshape(-1, 2))
        assert offsets[clip].any(dim=1).sum() == len(positive), "background has no offsets"


def test_losses_and_their_running_mean_equal_the_golden_ones():
    case = GOLDEN["single_stage_losses"]
    strides = GOLDEN["single_stage_points"]["strides"]
    counts = GOLDEN["single_stage_points"]["points_per_level"]
    _, classes, offsets = golden_targets()
    logits, predicted = (torch.cat([padded(level)[:, :count] for level, count in zip(levels, counts, strict=True)], 1)
                         for levels in (case["logits"], case["offsets"]))
    mask = torch.cat([torch.arange(count) < torch.tensor(case["lengths"])[:, None].div(stride).ceil()
                      for stride, count in zip(strides, counts, strict=True)], dim=1)
    found = losses(Points(logits, predicted, mask), classes, offsets)
    head = MomentHead(1, 1, dim=4, levels=1, stem=0)
    assert head.eval().normaliser(found.positives) == case["normaliser_before"], "evaluation changes nothing"
    normaliser = head.train().normaliser(found.positives)
    assert found.positives == case["positives"]
    same(normaliser, case["normaliser_after"])
    same(found.focal / normaliser, case["class_loss"])
    same(found.diou / normaliser, case["regression_loss"])


def test_focal_and_diou_equal_the_golden_ones():
    case = GOLDEN["single_stage_focal"]
    same(focal(torch.tensor(case["logits"]), torch.tensor(case["targets"]), case["alpha"], case["gamma"]), case["loss"])
    case = GOLDEN["single_stage_diou"]
    same(diou(torch.tensor(case["predicted"]), torch.tensor(case["target"])), case["loss"])


def naive_targets(points, moments, C):
    """Section 3.2's rule as a loop over points and moments: {point: (classes, offsets)}."""
    found = {}
    for number, (position, least, most, stride) in enumerate(points.tolist()):
        claims = []
        for start, stop, label in moments:
            left, right, centre = position - start, stop - position, (start + stop) / 2
            if abs(position - centre) < 1.5 * stride and min(left, right) > 0 and least <= max(left, right) <= most:
                claims.append((stop - start, label, left / stride, right / stride))
        if claims:
            shortest = min(claims)
            found[number] = ({claim[1] for claim in claims if claim[0] <= shortest[0] + 1e-3}, shortest[2:])
    return found


def test_targets_equal_a_naive_twin():
    """Moments on a grid of quarters, so that limits are met exactly; some have no length, some the same."""
    random = np.random.default_rng(3)
    points = small_head().points(77)
    batch = []
    for clip in range(6):
        starts, lengths = random.integers(0, 240, 9 + clip) / 4, random.integers(0, 160, 9 + clip) / 4
        batch.append([(start, start + length, int(random.integers(3)))
                      for start, length in zip(starts, lengths, strict=True)] * (1 + clip % 2))
    batch.append([(5.0, 5.0, 1), (0.25, 0.25, 2)])
    segments = padded([np.array([moment[:2] for moment in moments], dtype=np.float32) for moments in batch])
    labels = padded([np.array([moment[2] for moment in moments]) for moments in batch], -1)
    classes, offsets = targets(points, segments, labels, 3)
    sizes = []
    for clip, moments in enumerate(batch):
        expected = naive_targets(points, moments, 3)
        sizes.append(len(expected))
        assert {number: set(row.nonzero().flatten().tolist()) for number, row in enumerate(classes[clip]) if row.any()
                } == {number: labels for number, (labels, _) in expected.items()}
        for number, row in enumerate(offsets[clip]):
            same(row, expected[number][1] if number in expected else (0.0, 0.0))
    assert min(sizes[:-1]) >= 20 and sizes[-1] == 0, "moments of length 0 claim nothing"


@pytest.mark.parametrize("T", [1, 7, 16, 33, 50])
@pytest.mark.parametrize("window", [1, 5, 9, 41])
def test_banded_attention_equals_a_naive_twin(T, window):
    torch.manual_seed(T)
    query, key, value = torch.randn(3, 2, 2, T, 4)
    mask = torch.arange(T) < torch.tensor([T, max(1, T - 6)])[:, None]
    found = banded_attention(query, key, value, mask, window)
    for clip in range(2):
        for i in range(int(mask[clip].sum())):
            near = [j for j in range(T) if abs(i - j) <= window // 2 and mask[clip, j]]
            weights = torch.softmax((query[clip, :, i, None] * key[clip][:, near]).sum(-1) / 2, dim=-1)
            same(found[clip, :, i], (weights[..., None] * value[clip][:, near]).sum(1))
    assert found.isfinite().all()


def test_banded_attention_of_a_long_clip_needs_little_memory():
    """All pairs of 20,000 positions would be 1.6 GB of scores; the band's are 2 MB."""
    T = 20_000
    query = torch.randn(1, 1, T, 2)
    mask = torch.ones(1, T, dtype=torch.bool)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        banded_attention(query, query, query, mask, 9)
    assert max(abs(event.cpu_memory_usage) for event in profile.key_averages()) < 20e6


@pytest.mark.parametrize("pyramid", ["maxpool", "attention"])
@pytest.mark.parametrize("text", [0, 6])
def test_padding_has_no_influence(pyramid, text):
    """Two clips of different lengths equal each alone, with garbage at padding, also in gradients."""
    head = small_head(pyramid=pyramid, text=text)
    lengths, words = (40, 29), (4, 2)
    features, tokens = torch.randn(2, 5, 43), torch.randn(2, 5, 6)
    mask = torch.arange(43) < torch.tensor(lengths)[:, None]
    text_mask = torch.arange(5) < torch.tensor(words)[:, None]

    def outputs(features, mask, tokens, text_mask):
        head.zero_grad()
        found = head(features, mask, *([tokens, text_mask] if text else []))
        ((found.logits_BPC**2).sum(-1) + found.offsets_BP2.sum(-1))[found.mask_BP].sum().backward()
        return found, {name: parameter.grad.clone() for name, parameter in head.named_parameters()}
    both, gradient = outputs(features, mask, tokens, text_mask)
    for garbage in (1e4, math.nan):
        wild, wild_gradient = outputs(features.where(mask[:, None], garbage), mask,
                                      tokens.where(text_mask[..., None], garbage), text_mask)
        assert torch.equal(wild.logits_BPC[both.mask_BP], both.logits_BPC[both.mask_BP])
        torch.testing.assert_close(wild_gradient, gradient)
    alone_gradients = []
    for clip, (length, count) in enumerate(zip(lengths, words, strict=True)):
        alone, alone_gradient = outputs(features[clip:clip + 1, :, :length], mask[clip:clip + 1, :length],
                                        tokens[clip:clip + 1, :count], text_mask[clip:clip + 1, :count])
        real = both.mask_BP[clip]
        assert real.sum() == alone.mask_BP.sum() == len(head.points(length))
        same(both.logits_BPC[clip, real], alone.logits_BPC[0])
        same(both.offsets_BP2[clip, real], alone.offsets_BP2[0])
        alone_gradients.append(alone_gradient)
    for name, total in gradient.items():
        torch.testing.assert_close(sum(part[name] for part in alone_gradients), total, rtol=1e-3, atol=1e-3)
        assert total.abs().max() > 0 or ("attention.key_value" in name and "bias" in name), f"{name} is not used"


@pytest.mark.parametrize("pyramid", ["maxpool", "attention"])
def test_any_length_has_its_points(pyramid):
    head = small_head(pyramid=pyramid)
    for T in (1, 2, 3, 17, 32):
        found = head(torch.randn(1, 5, T), torch.ones(1, T, dtype=torch.bool))
        assert found.mask_BP.all() and found.logits_BPC.shape == (1, len(head.points(T)), 3)
        assert found.logits_BPC.isfinite().all() and (found.offsets_BP2 >= 0).all()


def test_each_level_equals_the_head_on_it_alone():
    """The heads run on all levels in one row; a level's neighbours in the row have no influence."""
    head = small_head(levels=3, stem=0).eval()
    features, mask = torch.randn(1, 5, 21), torch.ones(1, 21, dtype=torch.bool)
    found = head(features, mask)
    x, first = head.embed(features.transpose(1, 2), mask), 0
    for level in range(3):
        if level:
            x = torch.nn.functional.max_pool1d(x.transpose(1, 2), 3, 2, 1).transpose(1, 2)
        mask = torch.ones(x.shape[:2], dtype=torch.bool)
        row = head.norms[level](x)
        part = slice(first, first := first + x.shape[1])
        same(found.logits_BPC[:, part], head.class_layer(head.class_tower(row, mask)))
        same(found.offsets_BP2[:, part],
             (head.offset_scale[level] * head.offset_layer(head.offset_tower(row, mask))).relu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_losses_near_the_exact_ones(dtype):
    head = small_head(pyramid="attention", text=6)
    features, tokens = torch.randn(2, 5, 40), torch.randn(2, 4, 6)
    mask, text_mask = torch.arange(40) < torch.tensor([[40], [31]]), torch.ones(2, 4, dtype=torch.bool)
    wanted = targets(head.points(40), torch.tensor([[[3.0, 9.0], [11.0, 30.0]]] * 2), torch.tensor([[0, 2]] * 2), 3)

    def step(half):
        head.zero_grad()
        with torch.autocast("cpu", dtype, enabled=half):
            found = losses(head(features, mask, tokens, text_mask), *wanted)
        (found.focal + found.diou).backward()
        return found, torch.cat([parameter.grad.flatten() for parameter in head.parameters()])
    (exact, gradient), (half, half_gradient) = step(False), step(True)
    assert half.focal.dtype == half.diou.dtype == torch.float32 and half.positives == exact.positives > 5
    torch.testing.assert_close(half[:2], exact[:2], rtol=0.03, atol=0)
    assert (half_gradient - gradient).norm() < 0.1 * gradient.norm()


def test_a_clip_without_moments_is_background():
    head = small_head()
    outputs = head(torch.randn(1, 5, 20), torch.ones(1, 20, dtype=torch.bool))
    wanted = targets(head.points(20), torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.long), 3)
    found = losses(outputs, *wanted)
    assert not wanted[0].any() and not wanted[1].any()
    assert found.positives == 0 and found.diou == 0 and found.focal > 0
    same(head.normaliser(found.positives), 90.1)  # at least 1 goes into the mean
    (found.focal + found.diou).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_decoded_candidates_equal_a_naive_twin():
    torch.manual_seed(5)
    points = small_head().points(50)
    logits, offsets = 3 * torch.randn(len(points), 3) - 5, torch.rand(len(points), 2) * 3
    offsets[::7] = 0.01  # too short at the finest levels
    mask = torch.rand(len(points)) < 0.8
    for least, most in ((0.001, 2000), (0.02, 9)):
        expected = []
        for stride in (1, 2, 4, 8):
            level = sorted((-torch.sigmoid(logits[p, c]).item(), p, c) for p in range(len(points)) for c in range(3)
                           if mask[p] and points[p, 3] == stride and torch.sigmoid(logits[p, c]) > least)[:most]
            for score, p, c in level:
                start, stop = (points[p, 0] + sign * offsets[p, side] * stride for side, sign in enumerate((-1, 1)))
                if stop - start > 0.05:
                    expected.append((start.item(), stop.item(), -score, c))
        segments, scores, classes = decode(logits, offsets, mask, points, least, most)
        same(torch.cat([segments, scores[:, None], classes[:, None].float()], dim=1), expected)
        assert len(expected) > (20 if most == 9 else 100), len(expected)
    nothing = decode(logits - 50, offsets, mask, points)
    assert [len(part) for part in nothing] == [0, 0, 0]


def test_initial_probabilities_and_ranges():
    head = MomentHead(5, 3, dim=8, stem=1)
    found = head.eval()(torch.randn(1, 5, 9), torch.ones(1, 9, dtype=torch.bool))
    assert 0.005 < torch.sigmoid(found.logits_BPC).mean() < 0.02
    assert head.ranges == ((0, 4), (2, 8), (4, 16), (8, 32), (16, 64), (32, 128), (64, 256), (128, math.inf))
    assert MomentHead(5, 3, dim=8, levels=1).ranges == ((0, math.inf),)


@pytest.mark.parametrize("wrong, message", [
    ({"pyramid": "mean"}, "pyramid 'mean'.*maxpool"), ({"window": 8}, "window 8.*odd"), ({"heads": 3}, "dim 16.*heads"),
    ({"ranges": [(0, 4)]}, r"ranges \[\(0, 4\)\].* 4 levels")])
def test_sizes_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        small_head(**wrong)


def test_inputs_that_do_not_fit_are_refused():
    mask = torch.ones(1, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\(1, 6, 9\).* 5 features"):
        small_head()(torch.randn(1, 6, 9), mask)
    with pytest.raises(ValueError, match=r"text None.* 7 features of each token"):
        small_head(text=7)(torch.randn(1, 5, 9), mask)
    with pytest.raises(ValueError, match=r"text \(1, 2, 7\).*no features of each token"):
        small_head()(torch.randn(1, 5, 9), mask, torch.randn(1, 2, 7), torch.ones(1, 2, dtype=torch.bool))
