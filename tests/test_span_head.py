"""The span head (VSLNet) and its labels against the original's figures and naive twins."""
import itertools
import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT

from egokit.model.span_head import SpanHead, best_spans, highlight_loss, span_loss
from egokit.tasks.moments.span_labels import highlight_label, resample, span_label, span_times

GOLDEN = json.loads((ROOT / "tests/golden/golden_mq_nlq.json").read_text())
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def same(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), **CLOSE)


def masks(lengths, P=None) -> torch.Tensor:
    return torch.arange(P or max(lengths)) < torch.tensor(lengths)[:, None]


def logits_of_losses() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    case = GOLDEN["nlq_losses"]
    mask = masks(case["lengths"], len(case["start_logits"][0]))
    start, end = (torch.tensor(case[key]).masked_fill(~mask, -1e30) for key in ("start_logits", "end_logits"))
    return start, end, mask


@pytest.fixture
def head() -> SpanHead:
    """The original's small network: parameters by formula, in the original's order; no dropout."""
    sizes = GOLDEN["nlq_original_head"]["sizes"]
    head = SpanHead(sizes["video_input"], sizes["text_input"], sizes["hidden"], sizes["heads"], sizes["positions"], 0.0)
    pairs = zip(head.parameters(), GOLDEN["nlq_original_head"]["parameters"], strict=True)
    for p, (parameter, (_, shape, norm)) in enumerate(pairs):
        assert [size for size in parameter.shape if size > 1] == [size for size in shape if size > 1]
        values = 0.15 * np.sin(1.3 * np.arange(parameter.numel()) + 0.7 * p + 0.1) + norm
        parameter.data = torch.from_numpy(values).float().view(parameter.shape)
    return head


def test_the_network_its_losses_and_gradients_equal_the_original_s(head):
    case = GOLDEN["nlq_original_head"]
    mask = masks(case["lengths"], len(case["video"][0]))
    start, end, highlight = head(torch.tensor(case["video"]), mask, torch.tensor(case["text"]),
                                 torch.tensor(case["text_mask"]).bool())
    for found, key in ((start, "start_logits"), (end, "end_logits"), (highlight, "highlight")):
        for clip, length in enumerate(case["lengths"]):
            same(found[clip, :length], case[key][clip][:length])
    assert (start[~mask] == -1e30).all() and (highlight[~mask] == 0).all()
    of_span = span_loss(start, end, torch.tensor(case["starts"]), torch.tensor(case["ends"]))
    of_highlight = highlight_loss(highlight, torch.tensor(case["highlight_labels"]), mask)
    total = of_span + 5 * of_highlight
    same(torch.stack([of_span, of_highlight, total]), [case["span_loss"], case["highlight_loss"], case["total"]])
    total.backward()
    for parameter, (name, norm) in zip(head.parameters(), case["grad_norms"].items(), strict=True):
        torch.testing.assert_close(parameter.grad.norm().item(), norm, **CLOSE, msg=name)


def test_losses_equal_the_golden_ones():
    case, (start, end, mask) = GOLDEN["nlq_losses"], logits_of_losses()
    same(span_loss(start, end, torch.tensor(case["starts"]), torch.tensor(case["ends"])), case["span"])
    labels = torch.tensor(GOLDEN["nlq_highlight_labels"]["labels"])
    same(highlight_loss(torch.tensor(case["scores"]), labels, mask), case["highlight"])


def test_the_five_best_spans_equal_the_golden_ones():
    starts, ends, chances = best_spans(*logits_of_losses())
    assert starts.tolist() == GOLDEN["nlq_top5"]["starts"] and ends.tolist() == GOLDEN["nlq_top5"]["ends"]
    assert (chances.diff(dim=1) <= 0).all() and (chances > 0).all()


def test_best_spans_equal_a_naive_twin_and_short_clips_have_fewer():
    torch.manual_seed(0)
    start, end = torch.randn(2, 5, 7)
    lengths = (7, 1, 2, 4, 3)
    starts, ends, chances = best_spans(start, end, masks(lengths), k=8)
    for clip, length in enumerate(lengths):
        first, last = start[clip, :length].softmax(0), end[clip, :length].softmax(0)
        spans = sorted((-(first[i] * last[j]).item(), i, j)
                        for i, j in itertools.combinations_with_replacement(range(length), 2))[:8]
        missing = [(0.0, -1, -1)] * (8 - len(spans))
        rows = zip((-chances[clip]).tolist(), starts[clip].tolist(), ends[clip].tolist(), strict=True)
        for found, expected in zip(rows, spans + missing, strict=True):
            assert found == pytest.approx(expected)


def test_positions_of_answers_equal_the_golden_ones():
    for case in GOLDEN["nlq_positions"]:
        size = case["positions"], case["duration"]
        assert span_label(case["start"], case["end"], *size) == (case["start_index"], case["end_index"])
        assert span_times(case["start_index"], case["end_index"], *size) == pytest.approx(case["back"], rel=1e-8)


def test_a_position_s_own_times_give_it_back():
    for first, last in itertools.combinations_with_replacement(range(13), 2):
        assert span_label(*span_times(first, last, 13, 29.7), 13, 29.7) == (first, last)


def test_resampled_features_and_highlights_equal_the_golden_ones():
    for case in GOLDEN["nlq_resampling"]:
        features = np.array(case["features"], dtype=np.float32)
        found = resample(features, case["most"])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, case["out"], rtol=1e-6, atol=1e-6)
    case = GOLDEN["nlq_highlight_labels"]
    for sample, row in zip(case["samples"], case["labels"], strict=True):
        found = highlight_label(sample["start"], sample["end"], sample["length"])
        assert found.tolist() == row[:sample["length"]] and not any(row[sample["length"]:])


def test_padding_of_a_text_counts_as_in_the_original(head):
    """The text's last words see its padding through the convolutions, as in the original: 3 of each layer's 7."""
    case = GOLDEN["nlq_original_head"]
    inputs = torch.tensor(case["video"]), masks(case["lengths"], len(case["video"][0]))
    text = torch.tensor(case["text"])
    text_mask = masks([text.shape[1], 4], text.shape[1])
    before = head.eval()(*inputs, text, text_mask)
    other = head(*inputs, text.where(text_mask[..., None], 3.0), text_mask)
    assert torch.equal(before[0][0], other[0][0]) and not torch.equal(before[0][1], other[0][1])


def test_initial_weights_are_the_original_s():
    torch.manual_seed(0)
    head = SpanHead()
    for name, parameter in head.named_parameters():
        if name.endswith("positions.weight"):
            assert parameter.std().item() == pytest.approx(1, abs=0.02)
        elif name.endswith("bias"):
            assert not parameter.any()
        elif parameter.dim() > 1:
            rest = math.prod(parameter.shape[2:])
            bound = math.sqrt(6 / (parameter.shape[0] * rest + parameter.shape[1] * rest))
            assert 0.9 * bound < parameter.abs().max() <= bound, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_losses(head, dtype):
    case = GOLDEN["nlq_original_head"]
    mask = masks(case["lengths"], len(case["video"][0]))
    with torch.autocast("cpu", dtype):
        start, end, highlight = head(torch.tensor(case["video"]), mask, torch.tensor(case["text"]),
                                     torch.tensor(case["text_mask"]).bool())
        of_span = span_loss(start, end, torch.tensor(case["starts"]), torch.tensor(case["ends"]))
        of_highlight = highlight_loss(highlight, torch.tensor(case["highlight_labels"]), mask)
    assert of_span.dtype == of_highlight.dtype == torch.float32
    assert of_span.item() == pytest.approx(case["span_loss"], rel=0.01)
    assert of_highlight.item() == pytest.approx(case["highlight_loss"], rel=0.01)
    (of_span + 5 * of_highlight).backward()
    norms = [parameter.grad.norm().item() for parameter in head.parameters()]
    assert all(map(math.isfinite, norms))


def test_too_many_positions_are_refused():
    with pytest.raises(ValueError, match=r"25 positions.*at most 24"):
        SpanHead(6, 5, 16, 4, 24)(torch.zeros(1, 25, 6), masks([25]), torch.zeros(1, 2, 5), masks([2]))
