"""Metrics and rules of frame sampling against numbers of the original code."""
import json
from pathlib import Path

import numpy as np
import pytest

from egokit.data.video import frame_sampling
from egokit.tasks import metrics

GOLDEN = Path(__file__).parent / "golden"


def figures(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def test_retrieval_equals_the_original():
    expected = figures("A_metrics")["mir"]
    ours = metrics.retrieval(expected["similarity_video_x_text"], expected["relevancy"])
    for key in ("mAP_V2T", "mAP_T2V", "nDCG_V2T", "nDCG_T2V"):
        assert ours[key] == pytest.approx(expected[key], rel=1e-9)


def test_charades_equals_the_original():
    expected = figures("A_metrics")["charades"]
    assert metrics.charades(expected["scores"], expected["targets"])["mAP"] == pytest.approx(expected["mAP"], rel=1e-9)


def test_charades_classes_that_do_not_occur_and_videos_without_labels():
    """The original's numbers have both: 1 of 11 classes, 6 of 40 videos."""
    expected = figures("A_metrics")["charades"]
    scores, targets = np.array(expected["scores"]), np.array(expected["targets"])
    absent, unlabelled = targets.sum(0) == 0, targets.sum(1) == 0
    assert absent.sum() == 1 and unlabelled.sum() == 6
    assert np.array_equal(np.isnan(metrics.each_class(scores, targets)), absent)
    # videos without labels come last, whatever their scores
    scores[unlabelled] = 1e6 * np.random.default_rng(0).standard_normal((6, 11))
    assert metrics.charades(scores, targets)["mAP"] == pytest.approx(expected["mAP"], rel=1e-9)


def test_dual_softmax_equals_its_formula():
    """Each direction has its own: s times the query's share among all queries of the item."""
    rng = np.random.default_rng(0)
    similarity, relevancy = rng.random((12, 7)).astype(np.float32), np.round(rng.random((12, 7)) ** 3 * 4) / 4
    expected = {}
    for name, s, r in (("V2T", similarity, relevancy), ("T2V", similarity.T, relevancy.T)):
        rescaled = np.array([[s[q, i] * np.exp(s[q, i] / 0.05) / sum(np.exp(s[p, i] / 0.05) for p in range(len(s)))
                              for i in range(s.shape[1])] for q in range(len(s))])
        assert np.allclose(metrics.dual_softmax(s, 0.05), rescaled)
        both = metrics.retrieval(*((rescaled, r) if name == "V2T" else (rescaled.T, r.T)))
        expected |= {key: value for key, value in both.items() if key.endswith(name)}
    got, plain = metrics.retrieval(similarity, relevancy, 0.05), metrics.retrieval(similarity, relevancy)
    assert {key: got[key] for key in expected} == pytest.approx(expected) and got["mAP"] != plain["mAP"]
    assert got["nDCG"] == pytest.approx((expected["nDCG_V2T"] + expected["nDCG_T2V"]) / 2)


def test_dual_softmax_at_a_low_temperature_still_ranks_everything():
    similarity = np.linspace(0.2, 0.9, 40, dtype=np.float32).reshape(20, 2)
    assert len(np.unique(metrics.dual_softmax(similarity, 0.005)[:, 0])) == 20


def test_egomcq_equals_the_original():
    expected = figures("A_metrics")["egomcq"]
    ours = metrics.egomcq(expected["scores"], expected["labels"], expected["types"])
    assert ours["inter"] == pytest.approx(expected["Inter-video"])
    assert ours["intra"] == pytest.approx(expected["Intra-video"])


def test_chance_is_what_random_scores_give():
    answers = np.arange(1000) % 5
    assert metrics.chance(metrics.egomcq, (1000, 5), answers, np.ones(1000))["inter"] == pytest.approx(20, abs=1.5)


@pytest.mark.parametrize("rule", figures("A_sampling"), ids=lambda r: f"{r['rule']}-{r.get('end', r.get('length'))}")
def test_frame_rules_equal_the_original(rule):
    if rule["rule"] == "egoclip uniform":
        assert frame_sampling.sample_frames(rule["start"], rule["end"], rule["num_frames"]).tolist() == rule["index"]
    elif rule["rule"] == "whole video uniform":
        assert frame_sampling.whole_video(rule["length"], rule["num_frames"]).tolist() == rule["index"]
    elif rule["rule"] == "ek100 uniform":
        assert frame_sampling.ek100(rule["start"], rule["end"], rule["num_frames"]).tolist() == rule["index"]
    else:
        index = frame_sampling.mq(rule["start"], rule["end"], 1.87, 30, 16)
        assert len(index) == rule["count"]
        assert index[:20].tolist() == rule["first"] and index[-5:].tolist() == rule["last"]


@pytest.mark.parametrize("rule", [frame_sampling.sample_frames, frame_sampling.ek100])
@pytest.mark.parametrize("start, stop, count", [(10, 50, 4), (0, 3, 16), (7, 8, 4), (100, 160, 16)])
def test_random_frames_lie_in_order_inside_the_clip(rule, start, stop, count):
    for seed in range(50):
        index = rule(start, stop, count, np.random.default_rng(seed))
        assert len(index) == count and (np.diff(index) >= 0).all() and index.min() >= start and index.max() <= stop


def test_short_clips_repeat_their_last_frame_and_never_leave_the_video():
    assert frame_sampling.pad_indices(np.array([0, 1, 2]), 5).tolist() == [0, 1, 2, 2, 2]
    assert frame_sampling.clamp_indices(np.array([-1, 3, 12]), 10).tolist() == [0, 3, 9]


def test_retrieval_of_many_ties_and_of_arrays_that_stay_as_they_are():
    """Equal scores rank by index, -0 is 0, and neither array is changed.

    Metrics are compared with the formula, query by query.
    """
    rng = np.random.default_rng(0)
    similarity = rng.integers(-3, 4, (150, 70)) * np.where(rng.random((150, 70)) < 0.5, 1, -1.0) / 8
    similarity = similarity.astype(np.float32)
    relevancy = np.round(rng.random((150, 70)) ** 6 * 4) / 4
    relevancy[5], relevancy[:, 7] = 0, 0
    for kind in (np.float32, np.float64):
        scores, grades = similarity.astype(kind), relevancy.astype(np.float32)
        if kind is np.float64:  # numbers that float32 can't hold
            scores += 1e-12 * rng.random(scores.shape)
        copies = scores.copy(), grades.copy()
        got = metrics.retrieval(scores, grades)
        assert np.array_equal(scores, copies[0]) and np.array_equal(grades, copies[1])
        for name, s, r in (("V2T", scores, grades), ("T2V", scores.T, grades.T)):
            aps, ndcgs = [], []
            for row, grade in zip(s, r.astype(float), strict=True):
                order = sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))
                hits = [place for place, i in enumerate(order) if grade[i] == 1]
                if hits:
                    aps.append(np.mean([grade[order[:place + 1]].sum() / (place + 1) for place in hits]))
                if k := int((grade > 0).sum()):
                    discount = 1 / np.log2(np.arange(2, k + 2))
                    ndcgs.append((grade[order[:k]] * discount).sum() / (np.sort(grade)[::-1][:k] * discount).sum())
            assert got[f"mAP_{name}"] == pytest.approx(100 * np.mean(aps))
            assert got[f"nDCG_{name}"] == pytest.approx(100 * np.mean(ndcgs))


@pytest.mark.parametrize(("rows", "metric"), [
    ("clips", lambda scores: metrics.retrieval(scores, np.ones((4, 3)))),
    ("videos", lambda scores: metrics.charades(scores, np.ones((4, 3)))),
    ("questions", lambda scores: metrics.egomcq(scores, [0, 1, 2, 0], [1, 1, 2, 2]))])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error(rows, metric, value):
    scores = np.zeros((4, 3), np.float32)
    assert metric(scores)
    scores[2, 1] = value
    with pytest.raises(ValueError, match=f"scores of 1 {rows} are not finite, such as of number 2"):
        metric(scores)
