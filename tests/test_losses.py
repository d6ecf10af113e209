"""Losses against naive twins; masking and hard negatives by their statistics."""
import copy
import math

import numpy as np
import pytest
import torch

from egokit.config.build import ConfigError
from egokit.tasks import losses
from egokit.tasks.egoclip import EgoClip
from egokit.train.parts import Part


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_egonce_equals_its_formula():
    s, P = drawn(6, 6).tanh(), torch.eye(6).bool() | (drawn(6, 6, seed=1) > 1)
    expected = 0.0
    for matrix, mask in ((s, P), (s.T, P.T)):
        for i in range(6):
            weights = [math.exp(v / 0.05) for v in matrix[i].tolist()]
            expected -= math.log(sum(w for w, p in zip(weights, mask[i].tolist(), strict=True) if p) / sum(weights)) / 6
    assert losses.egonce(s, P).item() == pytest.approx(expected, rel=1e-5)


def test_egonce_is_finite_at_extremes():
    s = torch.full((4, 4), -1.0)
    s.fill_diagonal_(1.0).requires_grad_(True)
    loss = losses.egonce(-s, torch.eye(4).bool(), 0.01)
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all()


def test_max_margin_equals_its_formula():
    s, w = drawn(5, 5).tanh(), torch.tensor([1.0, 0.5, 0.3, 1.0, 0.8])
    terms = [max(0.0, 0.2 * w[i].item() - (s[i, i] - m[i, j]).item())
             for m in (s, s.T) for i in range(5) for j in range(5) if i != j]
    assert losses.max_margin(s, w).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_a_part_and_a_whole_matrix_are_not_mixed():
    part = Part(torch.zeros(2, 4), torch.zeros(2, 4), first=2, ranks=2)
    for loss in (losses.egonce, losses.symmetric_multi_similarity):
        with pytest.raises(ValueError, match=r"pair 2 and is of 2 ranks.*pair 0 and is of 1"):
            loss(part, torch.ones(2, 4))


def test_a_part_is_no_tensor_and_says_so():
    """As a loss meets it that was written for whole matrices, with other names of its own."""
    part, weight = Part(torch.zeros(2, 4), torch.zeros(2, 4), first=2, ranks=2), torch.ones(2, 4)
    for loss in (lambda s: s / 0.05, lambda s: 2 * s, lambda s: weight * s, lambda s: -s, lambda s: ~s, lambda s: s[0],
                 torch.diag, lambda s: torch.nn.functional.cross_entropy(s, torch.arange(2)), lambda s: s.T.exp(),
                 lambda s: torch.where(weight > 0, s, 0.0), lambda s: 1 - s, lambda s: s.float()):
        with pytest.raises((TypeError, AttributeError), match=r"expected its tensors, .rows_bB .*docs/extending.md"):
            loss(part)
    assert copy.deepcopy(part).first == 2  # looks for names that may be absent


def test_relevancies_are_those_of_this_ranks_pairs():
    """Gathered ones would be broadcast where a rank has one row, and one number where it has several."""
    part = Part(torch.zeros(1, 4), torch.zeros(1, 4), first=2, ranks=4)
    for loss in (lambda: losses.max_margin(part, torch.ones(4)), lambda: losses.max_margin(drawn(4, 4), torch.ones(1))):
        with pytest.raises(ValueError, match=r"relevancy_b: expected a number for each of this rank's [14] pairs"):
            loss()


def of_whole_matrices(self, model, similarity_BB, positives_BB):
    return {}


def of_all_pairs(self, model, batch, trunk_bSD, counts, text_index_B, video_index_B, label_B):
    return 0.0


@pytest.mark.parametrize("name, method, names", [
    ("contrastive_loss", of_whole_matrices, r"similarity_BB, positives_BB .*\(self, model, similarity, positives\)"),
    ("pairs", lambda self, similarity_BB, positives_BB, step: None, r".*\(self, similarity, positives, step\)"),
    ("matching_loss", of_all_pairs, r"text_index_B, video_index_B, label_B .*text_index_b, video_index_b, label_b"),
    ("chosen_texts", lambda self, tokens, text_index_B, counts: None, r"text_index_B .*\(self, tokens, moves\)")])
def test_a_method_on_the_whole_batch_is_refused(name, method, names):
    with pytest.raises(ConfigError, match=rf"Old.{name}: {names}.* similarity.mean_of_texts"):
        type("Old", (EgoClip,), {name: method})


def relevancies(B, seed=2):
    """Draw (B, B) relevancies like EK-100's.

    They have few values and are not symmetric; a row's own pair need not be the most relevant.
    """
    c = torch.tensor([0.0, 0.25, 0.5, 1.0])[torch.randint(4, (B, B), generator=torch.Generator().manual_seed(seed))]
    return c + 1e-7 * drawn(B, B, seed=3)  # equal ones differ by rounding


def test_symmetric_multi_similarity_equals_its_formula():
    s, c, terms, cases = drawn(7, 7).tanh(), relevancies(7), [], set()
    for matrix, grades in ((s.tolist(), c.tolist()), (s.T.tolist(), c.T.tolist())):
        for i in range(7):
            for j in range(7):
                if i != j:
                    d = grades[i][i] - grades[i][j]
                    m = 0.6 * d - (matrix[i][i] - matrix[i][j])
                    case = "equal" if abs(d) < 1e-3 else "less" if d > 0 else "more"
                    terms.append(max(0.0, {"less": m, "equal": abs(m) - 0.1, "more": -m}[case]))
                    cases.add((case, terms[-1] > 0))
    every_branch = {(case, positive) for case in ("less", "equal", "more") for positive in (False, True)}
    assert cases == every_branch
    assert losses.symmetric_multi_similarity(s, c).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_symmetric_multi_similarity_pushes_similarities_apart_as_relevancies_are():
    s, c = drawn(6, 6).tanh().requires_grad_(True), relevancies(6)

    def loss(similarity):
        return losses.symmetric_multi_similarity(similarity, c, 0.5, 0.2)

    loss(s).backward()
    for i in range(6):
        for j in range(6):
            step = torch.zeros(6, 6)
            step[i, j] = 1e-3
            with torch.no_grad():
                slope = (loss(s + step) - loss(s - step)) / 2e-3
            assert s.grad[i, j].item() == pytest.approx(slope.item(), abs=2e-4)
    best = (0.5 * c).requires_grad_(True)  # differences of similarities are those of relevancies, times the margin
    assert losses.symmetric_multi_similarity(best, c, 0.5, 0.0).item() == pytest.approx(0, abs=1e-6)


def test_positives_share_a_verb_and_a_noun():
    verbs, nouns = torch.eye(3)[[0, 0, 1]], torch.tensor([[1.0, 1], [0, 1], [0, 1]])
    assert losses.positives(verbs, nouns).tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    untagged = torch.zeros(2, 3)
    assert losses.positives(untagged, untagged).tolist() == [[True, False], [False, True]]


def test_masking_follows_berts_rule():
    ids = torch.randint(4, 99, (400, 50))
    ids[:, 0], ids[:, -1] = 0, 2
    uniforms = torch.from_numpy(np.random.default_rng(0).random((400, 50, 3), np.float32))
    masked, labels = losses.mask_words(ids, uniforms, [0, 1, 2, 3, 100], 100, 101)
    chosen = labels != -100
    assert chosen[:, 1:-1].float().mean() == pytest.approx(0.15, abs=0.01)
    assert not chosen[:, 0].any() and not chosen[:, -1].any()
    assert (masked[chosen] == 100).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (masked[chosen] == ids[chosen]).float().mean() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(masked[~chosen], ids[~chosen]) and torch.equal(labels[chosen], ids[chosen])
