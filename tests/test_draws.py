"""Drawing of hard negatives: the random numbers of rows, and what is drawn by them."""
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import fake_gpu
from fake_gpu import GPU

from egokit.tasks import counter_random, losses
from egokit.train import distributed, moving
from egokit.train.parts import Part


def pairs(similarity, positives, step=0, temperature=0.05, seed=0):
    return losses.draw_pairs(Part.whole(similarity), Part.whole(positives), temperature, seed, step)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chi_square(counts, shares):
    """Return the squared deviations of counts from their shares; about the number of shares if all is well."""
    expected = counts.sum() * shares
    return ((counts - expected) ** 2 / expected).sum()


ROWS = np.arange(4096)
SERIES = {  # numbers that differ by little
    "rows": counter_random.uniforms(ROWS, 0, 0, 0),
    "steps": np.concatenate([counter_random.uniforms(ROWS[:1], 0, step, 0) for step in range(4096)]),
    "seeds": np.concatenate([counter_random.uniforms(ROWS[:1], seed, 0, 0) for seed in range(4096)]),
    "purposes": np.concatenate([counter_random.uniforms(ROWS[:1], 0, 0, purpose) for purpose in range(4096)])}


@pytest.mark.parametrize("name", SERIES)
def test_random_numbers_are_uniform_and_follow_no_order(name):
    x = SERIES[name]
    assert (x >= 0).all() and (x < 1).all() and len({*x}) == len(x)
    counts = np.histogram(x, 64, (0, 1))[0]
    assert 30 < chi_square(counts, np.full(64, 1 / 64)) < 110   # 63 degrees: 99.98 % of all series
    assert np.array([abs(np.corrcoef(x[lag:], x[:-lag])[0, 1]) for lag in (1, 2, 3, 64)]).max() < 0.065  # 4 sigma
    neighbours = np.histogram2d(x[:-1], x[1:], 8, [[0, 1]] * 2)[0]
    assert 30 < chi_square(neighbours.ravel(), np.full(64, 1 / 64)) < 110


def test_random_numbers_of_different_purposes_are_independent():
    for a, b in itertools.combinations(SERIES.values(), 2):
        assert abs(np.corrcoef(a[1:], b[1:])[0, 1]) < 0.065  # their first numbers are the same
    assert counter_random.hashes(ROWS[:1], 1, 2) != counter_random.hashes(ROWS[:1], 2, 1)


def test_a_bit_of_what_a_number_is_for_changes_half_of_its_bits():
    flips = []
    for bit in range(0, 40, 3):
        for change in ((1 << bit, 0, 0), (0, 1 << bit, 0), (0, 0, 1 << bit)):
            (row, seed, step), hashed = change, counter_random.hashes(np.arange(7, 39), 5, 9)
            other = counter_random.hashes(np.arange(7, 39) ^ row, 5 ^ seed, 9 ^ step)
            flips.append(np.mean([int(x).bit_count() for x in hashed ^ other]))
    assert min(flips) > 29 and max(flips) < 35  # 32 on average, 4 sigma of the mean of 32 numbers are 2.8


def test_random_numbers_of_a_row_do_not_depend_on_the_others():
    assert np.array_equal(counter_random.hashes(ROWS[40:50], 3, 4), counter_random.hashes(ROWS, 3, 4)[40:50])


def test_random_numbers_are_what_they_were():
    """A run that is resumed by a later version draws the same. Without numbers it is SplitMix64's own series from 0."""
    series = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert counter_random.hashes(np.arange(3)).tolist() == series
    assert counter_random.hashes(np.arange(2), 0).tolist() == [12035550249420947055, 12935080325729570654]


def test_hard_negatives_are_never_positives_and_repeat_from_the_seed():
    s, P = drawn(16, 16).tanh(), torch.eye(16).bool()
    P[0, 1] = P[1, 0] = True
    counts, kept, own = {"video": 0, "text": 0}, torch.zeros(16), torch.arange(16)
    for step in range(200):
        text, video, label = pairs(s, P, step)
        assert (label == 1).sum() == 8
        kept += label
        assert torch.equal(text[label == 1], own[label == 1]) and torch.equal(video[label == 1], own[label == 1])
        assert not P[text, video][label == 0].any()
        assert ((text != own) ^ (video != own))[label == 0].all()
        counts["video"] += (video != own).sum().item()
        counts["text"] += (text != own).sum().item()
        again = pairs(s, P.to(torch.uint8), step)
        assert all(torch.equal(a, b) for a, b in zip((text, video, label), again, strict=True))
    assert counts["video"] / counts["text"] == pytest.approx(1, abs=0.15)
    assert chi_square(kept.numpy(), np.full(16, 1 / 16)) < 25  # every row keeps its pair equally often


def test_negatives_follow_the_similarities():
    """Videos are drawn from a text's row, texts from a video's column, by softmax(s / temperature) of the negatives."""
    s, P, temperature = 0.2 * drawn(6, 6), torch.eye(6).bool(), 0.1
    P[2, 4] = P[4, 2] = True
    of_texts, of_videos = torch.zeros(6, 6), torch.zeros(6, 6)
    own, one = torch.arange(6), torch.ones(6)
    for step in range(1200):
        text, video, _ = pairs(s, P, step, temperature)
        of_texts.index_put_((own, video), one * (video != own), accumulate=True)
        of_videos.index_put_((own, text), one * (text != own), accumulate=True)
    shares = [(x / temperature).masked_fill(P, -math.inf).softmax(1) for x in (s, s.T)]
    for counts, share in zip((of_texts, of_videos), shares, strict=True):
        assert not counts[share == 0].any() and counts.sum(1).min() > 200
        statistic = sum(chi_square(n[p > 0].double().numpy(), p[p > 0].double().numpy())
                        for n, p in zip(counts, share, strict=True))
        assert 8 < statistic < 46  # 22 degrees: 99.8 % of all draws


def test_a_uniform_number_chooses_by_the_cumulated_probabilities():
    """The draw is the inverse of the cumulated softmax, whatever the number: no other randomness is left in it."""
    s, temperature, n = 0.1 * drawn(1, 50), 0.07, 20000
    positive = torch.rand(1, 50, generator=torch.Generator().manual_seed(1)) < 0.3
    uniforms = (torch.arange(n).double() + 0.5) / n
    column, possible = losses.draw_negatives(s.expand(n, -1), positive.expand(n, -1), temperature, uniforms)
    share = (s.double() / temperature).masked_fill(positive, -math.inf).softmax(1)[0]
    assert possible.all() and (column.diff() >= 0).all()
    counts = torch.bincount(column, minlength=50)
    assert (counts - n * share).abs().max() <= 1 + 1e-6 and not counts[positive[0]].any()
    last = torch.tensor([0.0, 1 - 2**-53]).double()
    ends = losses.draw_negatives(s.expand(2, -1), positive.expand(2, -1), temperature, last)[0]
    assert ends.tolist() == (~positive[0]).nonzero()[[0, -1], 0].tolist()


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0])
def test_extreme_similarities_draw_negatives(fill):
    """NaN draws like 0; what is infinitely similar is drawn, and what is infinitely far is not."""
    P, seen = torch.eye(8).bool(), set()
    s = torch.full((8, 8), fill)
    for step in range(40):
        text, video, label = pairs(s, P, step)
        assert label.sum() == 4 and not P[text, video][label == 0].any()
        seen |= {(int(i), int(j)) for i, j in zip(text, video, strict=True) if i != j}
    assert len(seen) > 40  # all are alike
    s = torch.zeros(8, 8)
    s[:, 3] = s[3, :] = fill
    drawn_3, swaps = 0, 0
    for step in range(100):
        text, video, label = pairs(s, P, step)
        others = (label == 0) & (torch.arange(8) != 3)
        drawn_3 += int(((text == 3) | (video == 3))[others].sum())
        swaps += int(others.sum())
    share = drawn_3 / swaps
    assert share == (1 if fill > 1 else 0 if fill < 0 else pytest.approx(1 / 7, abs=0.06))


@pytest.mark.parametrize("B", [1, 4, 7])
def test_a_row_without_negatives_keeps_its_pair(B):
    text, video, label = pairs(drawn(B, B), torch.ones(B, B).bool())
    assert label.tolist() == [1] * B and text.tolist() == video.tolist() == [*range(B)]


def test_the_only_negative_is_drawn():
    P = torch.ones(9, 9).bool()
    for i in range(9):
        P[i, (i + 4) % 9] = False
    for step in range(20):
        s = 100 * drawn(9, 9, seed=step)
        text, video, label = pairs(s, P, step)
        own = torch.arange(9)
        assert label.sum() == 4
        swapped = label == 0
        assert (((video == (own + 4) % 9) & (text == own)) | ((text == (own - 4) % 9) & (video == own)))[swapped].all()


def test_each_step_and_seed_draws_anew():
    s, P = drawn(64, 64).tanh(), torch.eye(64).bool()
    draws = [pairs(s, P, step, seed=seed) for step in range(3) for seed in range(3)]
    for a, b in itertools.combinations(draws, 2):
        assert (a[2] != b[2]).sum() > 16 and (a[1] != b[1]).sum() > 16


def test_a_long_row_is_drawn_from_exactly():
    """Of 40,000 columns each has its share, the first and the last ones, too."""
    B = 40_000
    u = counter_random.uniforms(np.arange(50), 1, 2)
    column, _ = losses.draw_negatives(torch.zeros(50, B), torch.zeros(50, B).bool(), 0.05, torch.from_numpy(u))
    assert np.array_equal(column.numpy(), np.floor(u * B))


def test_drawing_and_moving_rows_mix_no_devices_on_gpus(monkeypatch):
    """One of two ranks, on tensors that say "cuda:0"; what the other one sends is planted. Real ranks: test_dist.py."""
    wants, given = [[0, 5, 2, 0], [4, 1, 6, 1]], []
    everything = drawn(8, 3)

    def exchange(x, give, take):
        given.append((x.tolist(), give, take))
        return everything[[5]].to(GPU) if len(given) == 1 else x.new_full((2, 3), 10.0)

    with fake_gpu.on_the_cpu():
        monkeypatch.setattr(distributed, "is_on", lambda: True)
        monkeypatch.setattr(distributed, "rank", lambda: 0)
        monkeypatch.setattr(distributed, "gather", lambda x, counts: torch.cat([x, torch.tensor(wants[1:]).T.to(GPU)]))
        monkeypatch.setattr(distributed, "exchange", exchange)
        x = everything[:4].to(GPU).requires_grad_(True)
        rows = moving.gather_rows(x, torch.tensor(wants[0]).to(GPU), [4, 4])
        weight = torch.arange(12.0).reshape(4, 3).to(GPU)
        (rows * weight).sum().backward()
        assert torch.equal(rows.detach().cpu(), everything[wants[0]])
        assert given[0] == (everything[[1, 1]].tolist(), (0, 2), (0, 1)) and given[1] == ([[3, 4, 5]], (0, 1), (0, 2))
        assert x.grad.tolist() == [[9, 11, 13], [20, 20, 20], [6, 7, 8], [0, 0, 0]]

        s, P = drawn(16, 16).tanh(), torch.eye(16).bool()
        on_gpu = pairs(s.to(GPU), P.to(GPU))
        assert {x.device for x in on_gpu} == {torch.device(GPU)}
    assert all(x.tolist() == y.tolist() for x, y in zip(on_gpu, pairs(s, P), strict=True))
