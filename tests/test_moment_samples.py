"""What heads train on and what becomes of their candidates: crops, weight decay, suppression; against naive twins."""
import math

import numpy as np
import pytest
import torch
from moment_site import RATE, make_mq, make_nlq
from test_moment_tasks import settings

from egokit import tasks
from egokit.model.feature_model import FeatureModel
from egokit.model.own_modules import attach
from egokit.tasks import span_task
from egokit.tasks.feature_files import Clip
from egokit.tasks.moment_task import Entry, MomentSamples
from egokit.tasks.moments import mq_metrics, span_labels
from egokit.tasks.moments import segments as overlaps
from egokit.tasks.moments.mq_annotations import Moment, MQClip
from egokit.tasks.moments.mq_results import Rows
from egokit.train import optim

CROP, SHOWN = 40, 0.3


@pytest.fixture(scope="module")
def mq(tmp_path_factory):
    root = tmp_path_factory.mktemp("mq")
    vectors = make_mq(root, (3, 2), positions=(90, 91))
    for path in vectors.glob("*.npy"):
        np.save(path, np.repeat(np.arange(90, dtype=np.float32)[:, None], 16, axis=1))  # a feature is its number
    return root, vectors


@pytest.fixture(scope="module")
def nlq(tmp_path_factory):
    root = tmp_path_factory.mktemp("nlq")
    return root, make_nlq(root, (3, 2), positions=(48, 64))


def cropped(mq, moments):
    """Return 200 readings of a training clip with these moments, (start, stop) in positions, and its one whole."""
    task = tasks.make(settings("toy/egomq", *mq, f"task.crop={CROP}"))
    first = task.entries("train")[0]
    segments = (np.array(moments, float).reshape(-1, 2) + 0.5) / RATE
    samples = MomentSamples(task, [Entry(first.clip, segments, np.arange(len(moments)))], True)
    return [samples.read(0, np.random.default_rng(seed)) for seed in range(200)], samples.read(0, None)


def test_crops_take_their_moments_with_them(mq):
    """Whatever is seen, its moments are where their features are; one shows 30 % of a moment at least."""
    moments = [(2, 10), (4, 60), (55, 58), (70, 70), (80, 89)]
    crops, whole = cropped(mq, moments)
    assert whole["video"][:, 0].tolist() == [*range(90)] and whole["segments"] == pytest.approx(np.array(moments))
    starts = set()
    for sample in crops:
        start = int(sample["video"][0, 0])
        assert sample["video"][:, 0].tolist() == [*range(start, start + CROP)]
        starts.add(start)
        shown = []
        for (first, last), found in zip(moments, sample["segments"], strict=True):
            held = max(first, start - 0.5), min(last, start + CROP - 0.5)
            if held[1] - held[0] >= SHOWN * (last - first) > 0:
                assert found == pytest.approx(np.array(held) - start)
                shown.append(held)
            else:
                assert found[0] == found[1], "a moment that is hardly seen claims nothing"
        assert shown and sample["classes"].tolist() == [0, 1, 2, 3, 4]
    assert min(starts) < 5 and max(starts) > 45 and len(starts) > 30


def test_crops_look_for_a_moment(mq):
    """Of 51 crops, few show 30 % of the only moment that has a length; a clip without one is cropped anywhere."""
    crops, _ = cropped(mq, [(85, 89), (10, 10)])
    assert all(int(sample["video"][0, 0]) >= 46 and np.diff(sample["segments"])[0] >= SHOWN * 4 for sample in crops)
    for moments in ([], [(10, 10)]):
        starts = {int(sample["video"][0, 0]) for sample in cropped(mq, moments)[0]}
        assert min(starts) < 5 and max(starts) > 45


def overlap(first, second) -> float:
    shared = max(0, min(first[1], second[1]) - max(first[0], second[0]))
    return shared / (first[1] - first[0] + second[1] - second[0] - shared)


def softened(rows, sigma, most, least=0.0):
    """Soft-NMS of [(segment, score, class)] as a loop; the last row that is left is given, too."""
    rows, taken = [list(row) for row in rows], []
    while rows and len(taken) < most:
        best = rows.pop(max(range(len(rows)), key=lambda i: rows[i][1]))
        if best[1] < least:
            break
        taken.append(best)
        for row in rows:
            row[1] *= math.exp(-overlap(best[0], row[0])**2 / sigma)
    return taken


def suppressed(rows, threshold):
    """NMS of [(segment, score, class)] as a loop, by falling score."""
    kept = []
    for row in sorted(rows, key=lambda row: -row[1]):
        if all(overlap(row[0], other[0]) <= threshold for other in kept):
            kept.append(row)
    return kept


def candidates(count, classes, seed=0):
    random = np.random.default_rng(seed)
    starts = random.uniform(0, 60, count)
    segments = np.stack([starts, starts + random.uniform(0.5, 20, count)], 1)
    scores, numbers = (random.permutation(count) + 1) / (count + 1), random.integers(classes, size=count)
    return segments, scores, numbers, [*zip(segments.tolist(), scores.tolist(), numbers.tolist(), strict=True)]


def assert_rows(found, expected):
    expected = sorted(expected, key=lambda row: -row[1])[:200]
    assert np.isnan(found[len(expected):]).all()
    np.testing.assert_allclose(found[:len(expected)], [[*row[0], row[1], row[2]] for row in expected], rtol=1e-9)


@pytest.mark.parametrize("asked", [[1, 3], []])
@pytest.mark.parametrize("count", [700, 25])
def test_detections_and_retrievals_of_candidates(mq, asked, count):
    """Retrievals are of the classes asked for, 200 of these; without any, as in the test split, of all."""
    segments, scores, numbers, rows = candidates(count, 4)
    entry = Entry(Clip("c", "v", 0.0, 90.0), np.zeros((len(asked), 2)), np.array(asked, np.int64))
    of_asked = [[row for row in rows if row[2] == number] for number in asked or range(4)]
    found = tasks.make(settings("toy/egomq", *mq)).found(entry, segments, scores, numbers)
    every = [[row for row in rows if row[2] == number] for number in range(4)]
    assert_rows(found["detected"], [row for group in every for row in softened(group, 0.9, 200, 0.001)])
    assert_rows(found["retrieved"], [row for group in of_asked for row in softened(group, 0.9, 200, 0.001)])
    original = tasks.make(settings("toy/egomq", *mq, "task.postprocess=original"))
    found = original.found(entry, segments, scores, numbers)
    kept = [row for group in every for row in suppressed(group, 0.4)]
    assert_rows(found["detected"], softened(kept, 0.46, min(200, len(kept) - 1)))
    assert_rows(found["retrieved"], [row for group in of_asked for row in suppressed(group, 0.4)])
    for each in (original, tasks.make(settings("toy/egomq", *mq))):
        none = each.found(entry, segments[:0], scores[:0], numbers[:0])
        assert np.isnan(none["detected"]).all() and np.isnan(none["retrieved"]).all()


def test_answers_of_candidates(nlq):
    """Soft-NMS, then the mean of what overlaps by 0.9, of which each is given once; five at most."""
    random = np.random.default_rng(2)
    centres = np.array([[3, 9], [20, 40], [31, 33], [45, 70]])[random.integers(4, size=900)]
    segments, scores = centres + random.normal(0, 0.02, (900, 2)), (random.permutation(900) + 1) / 901
    numbers = np.zeros(900, int)
    rows = [*zip(segments.tolist(), scores.tolist(), numbers.tolist(), strict=True)]
    entry = Entry(Clip("c", "v", 0.0, 90.0), np.zeros((0, 2)), np.zeros(0, np.int64), 0)
    task = tasks.make(settings("toy/egonlq", *nlq))
    voted = []
    for segment, score, number in softened(rows, 0.75, 15, 0.001):
        near = [(row, overlap(segment, row[0])) for row in rows if overlap(segment, row[0]) >= 0.9]
        weights = np.array([row[1] * share for row, share in near])
        voted.append((tuple(weights @ np.array([row[0] for row, _ in near]) / weights.sum()), score, number))
    expected = suppressed(voted, 0.9)
    assert len(expected) == 4 and len(voted) == 15, "votes make the same answer of near ones"
    found = task.found(entry, segments, scores, numbers)["answers"]
    np.testing.assert_allclose(found, [[*row[0], row[1]] for row in expected] + [[np.nan] * 3], rtol=1e-9)
    plain = tasks.make(settings("toy/egonlq", *nlq, "task.vote=0")).found(entry, segments, scores, numbers)["answers"]
    np.testing.assert_allclose(plain, [[*row[0], row[1]] for row in softened(rows, 0.75, 5, 0.001)], rtol=1e-9)
    assert np.abs(plain - found)[:4].max() > 1e-3, "the votes change something"


def test_only_clips_of_the_test_split_may_have_no_moments(mq):
    task = tasks.make(settings("toy/egomq", *mq))
    for split in ("train", "val", "test_unannotated"):
        uid, clip = next(iter(task.annotated(split).items()))
        task.annotated(split)[uid] = clip._replace(moments=())
    assert [entry.clip.uid for entry in task.entries("train")] == ["train-1", "train-2"]
    assert [entry.clip.uid for entry in task.entries("test")] == ["val-1", "test_unannotated-0", "test_unannotated-1"]


def test_limits_that_are_met_exactly():
    """An IoU of the threshold is right for the mAP, not for the recall, and votes; a score of the least one stays."""
    clip = {"k": MQClip("k", "v", 0.0, 10.0, "val", (Moment(0.0, 8.0, "a"),))}
    rows = {"k": Rows.of([[0, 4]], [0.5], ["a"])}
    assert mq_metrics.mean_average_precision(rows, clip, tious=[0.5])["average_map"] == 1
    assert mq_metrics.recall(rows, clip, [1], [0.5]) == 0
    assert overlaps.vote([[0, 8]], [[0, 8], [0, 4]], [1.0, 1.0], 0.5)[0, 1] == pytest.approx((8 + 4 / 2) / 1.5)
    assert overlaps.soft_nms([[0, 1], [2, 3]], [0.5, 0.25], 0.9, 0.25, 9)[1].tolist() == [0.5, 0.25]


def test_candidates_are_held_in_the_clip(mq):
    task = tasks.make(settings("toy/egomq", *mq))
    entry = task.entries("train")[0]
    found = torch.tensor([[-9.0, 3.0], [80.0, 200.0]]), torch.tensor([0.5, 0.4]), torch.tensor([0, 1])
    assert task.in_seconds(entry, 90, found)[0] == pytest.approx(np.array([[0, 3.5 / RATE], [80.5 / RATE, 90 / RATE]]))


def test_the_span_head_learns_cut_times_and_answers_in_the_clip_s_cut_length(nlq):
    """Times are cut to 1 / 1.875 s; a span's times are those of its first and last position."""
    task = tasks.make(settings("toy/egonlq", *nlq, "task.head=span task.positions=64"))
    question = task.questions("train")[0]._replace(start=10.5, stop=16.4, duration=48.0, grid_start=19 / 1.875,
                                                   grid_stop=30 / 1.875)
    exact, P = span_labels.span_label(10.5, 16.4, 64, 48.0), 64
    label = span_task.labels(question, P)
    assert tuple(label["span"]) == span_labels.span_label(19 / 1.875, 30 / 1.875, 64, 48.0) != exact
    start, end = torch.full((1, P), -20.0), torch.full((1, P), -20.0)
    start[0, 12], end[0, 20] = 20.0, 20.0

    def head(*inputs):
        return start, end, torch.full((1, P), 0.25)
    batch = {"video": torch.zeros(1, P, 16), "video_mask": torch.ones(1, P, dtype=torch.bool),
             "words": torch.zeros(1, 1, 16), "words_mask": torch.ones(1, 1, dtype=torch.bool),
             "span": torch.tensor([[12, 20]]), "highlight": torch.ones(1, P)}
    segments, _, _ = next(iter(span_task.candidates(head, batch, 5)))
    assert span_task.grid(question, P).seconds(segments[0].numpy()) == pytest.approx(
        span_labels.span_times(12, 20, P, 48.0), rel=1e-6)
    terms = span_task.loss(task, head, batch)
    assert terms["highlight"].item() == pytest.approx(5 * 2 * math.log(4)) and terms["span"].item() < 1e-6
    assert not task.crops, "spans are labels of whole clips"


def test_a_clip_that_is_shorter_than_a_feature_has_a_span(nlq):
    """Its length as the original cuts it would be 0."""
    task = tasks.make(settings("toy/egonlq", *nlq, "task.head=span"))
    question = task.questions("train")[0]._replace(clip_start=5.0, clip_stop=5.4, duration=0.0, grid_start=0.0,
                                                   grid_stop=0.0)
    assert span_task.labels(question, 1)["span"].tolist() == [0, 0]
    assert span_task.grid(question, 1).seconds([-0.5, 0.5]) == pytest.approx([0, 0.4])


def test_answers_without_a_length_are_counted_as_the_head_sees_them(nlq, capsys):
    """The span head's labels are cut to 1 / 1.875 s: more answers have no length there."""
    kinds = {"single_stage": "0.2 to 0.2 alone", "span": "and 0.1 to 0.5"}
    for count, head in enumerate(kinds, 1):
        task = tasks.make(settings("toy/egonlq", *nlq, f"task.head={head}"))
        first, second, *rest = task.questions("train")
        task._questions["train"] = [
            first._replace(start=0.2, stop=0.2, grid_start=0.0, grid_stop=0.0),
            second._replace(start=0.1, stop=0.5, grid_start=0.0, grid_stop=0.0), *rest]
        task.entries("train")
        assert f"train: {count} of {len(rest) + 2} answers have length 0" in capsys.readouterr().out, kinds[head]


@pytest.mark.parametrize("recipe, overrides", [
    ("toy/egomq", "task.stem=1 task.pyramid=attention"), ("toy/egonlq", ""), ("toy/egonlq", "task.head=span")])
def test_weight_decay_is_on_the_matrices_alone(mq, nlq, recipe, overrides):
    """Not on biases, norms and scales."""
    task = tasks.make(settings(recipe, *(mq if recipe == "toy/egomq" else nlq), overrides))
    model = FeatureModel()
    attach(model, task)
    groups = optim.param_groups(model, task.config.optim)
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert {group["scale"] for group in groups} == {1} and sum(len(group["params"]) for group in groups) > 20
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() > 1
        assert (id(parameter) in decayed) == is_matrix, name
        assert is_matrix or name.endswith(("bias", "scale")) or "norm" in name or parameter.eq(1).all(), name
