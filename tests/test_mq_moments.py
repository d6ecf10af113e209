"""EgoMQ's annotations, NMS, result files and metrics equal the original's figures; damage is named."""
import copy
import json

import numpy as np
import pytest
from conftest import ROOT

from egokit.tasks.moments import mq_annotations, segments

GOLDEN = json.loads((ROOT / "tests/golden/golden_mq_nlq.json").read_text())
exactly = pytest.approx  # golden figures have 6 to 9 digits


def test_the_conversion_equals_the_original():
    converted = {}
    for document in GOLDEN["mq_convert"]["documents"].values():
        converted |= mq_annotations.clip_annotations(mq_annotations.read_clips(document))
    assert converted == GOLDEN["mq_convert"]["clip_annotations"]
    assert list(converted) == list(GOLDEN["mq_convert"]["clip_annotations"])


@pytest.fixture
def document():
    return copy.deepcopy(GOLDEN["mq_convert"]["documents"]["moments_val"])


def test_a_clip_has_the_primary_labels_of_all_annotators(document):
    clip = document["videos"][0]["clips"][0]
    own = [label for annotation in clip["annotations"] for label in annotation["labels"]]
    own[0]["label"] = '"clean_/_repair_small_equipment_(mower,_trimmer_etc.)"'
    own[1] |= {"start_time": 5.0, "end_time": 5}
    clip["annotations"].append(clip["annotations"][0])  # doubles stay
    clips = mq_annotations.read_clips(document)
    first = clips[clip["clip_uid"]]
    primary = [label for label in [*own, *clip["annotations"][0]["labels"]] if label["primary"]]
    assert [moment.label for moment in first.moments] == [label["label"] for label in primary]
    assert first.subset == "val" and first.seconds == clip["video_end_sec"] - clip["video_start_sec"]
    assert mq_annotations.count_empty(clips.values()) == 2
    assert mq_annotations.class_names(clips)[0].startswith('"clean') and mq_annotations.class_names() == []


@pytest.mark.parametrize("value", [None, []])
def test_a_clip_without_annotations_has_no_moments(document, value):
    clips = document["videos"][0]["clips"]
    clips[0]["annotations"] = value
    del clips[1]["annotations"], document["videos"][0]["split"]
    read = mq_annotations.read_clips(document)
    assert [read[clip["clip_uid"]].moments for clip in clips] == [(), ()] and read[clips[0]["clip_uid"]].subset == ""


LABEL = ("videos", 0, "clips", 0, "annotations", 1, "labels", 0)


@pytest.mark.parametrize("place, value, message", [
    ((*LABEL, "start_time"), None, "annotation 1, label 0: 'start_time' is None; expected seconds"),
    ((*LABEL, "end_time"), "nan", "label 0: 'end_time' is 'nan'; expected seconds"),
    ((*LABEL, "end_time"), float("inf"), "label 0: 'end_time' is inf"),
    ((*LABEL, "end_time"), 1.5, "label 0: it ends (end_time 1.5 s) before it starts (start_time 23.908 s)"),
    ((*LABEL, "label"), 7, "label 0: 'label' is 7"), ((*LABEL, "primary"), "yes", "label 0: 'primary' is 'yes'"),
    (LABEL, [], "label 0: it is []"), (LABEL[:-1], None, "annotation 1: 'labels' is None"),
    (LABEL[:-2], 3, "annotation 1: it is 3"), (LABEL[:-3], {}, "'annotations' is {}"),
    (("videos", 0, "split"), 3, "'split' is 3"), (("videos", 0, "clips", 1, "clip_uid"), "val-0-0", "stands twice"),
])
def test_a_damaged_label_is_named(document, tmp_path, place, value, message):
    owner = document
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    path = tmp_path / "moments_val.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError) as caught:
        mq_annotations.read_clips(path)
    assert str(caught.value).startswith(f"{path}, video val-0, clip 'val-0-") and message in str(caught.value)


@pytest.mark.parametrize("document, message", [({"videos": []}, "lists no clips"), ({}, "'videos' is missing"),
                                               ({"videos": [[]]}, "the annotations, video 0: expected video_uid")])
def test_annotations_of_another_shape(document, message):
    with pytest.raises(ValueError, match=message):
        mq_annotations.read_clips(document)


def test_overlaps():
    first, second = [[0, 10], [3, 3]], [[5, 15], [20, 30], [3, 3], [0, 10], [10, 12]]
    assert segments.iou(first, second).tolist() == [[1 / 3, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert segments.hull_iou(first, second).tolist() == [[1 / 3, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert segments.iou([], second).shape == (0, 5)


def test_nms_equals_the_original():
    for case in GOLDEN["mq_nms"]:
        assert segments.nms(case["segments"], case["scores"], case["threshold"]).tolist() == case["keep"]
    assert segments.nms([], [], 0.4).tolist() == []


def test_soft_nms_over_all_classes_equals_the_original():
    for case in GOLDEN["mq_soft_nms"]:
        order, scores = segments.soft_nms_all(case["segments"], case["scores"], case["count"], case["sigma"])
        assert scores.tolist() == exactly(case["out_scores"], abs=1e-8)
        assert [case["segments"][i] for i in order] == case["out_segments"]
        assert [case["labels"][i] for i in order] == case["out_labels"]
    assert segments.soft_nms_all([[0, 1], [5, 6], [8, 9]], [0, 0.5, 0])[0].tolist() == [1]  # a score of 0 is not given


def test_soft_nms_equals_actionformers():
    for case in GOLDEN["single_stage_soft_nms"]:
        classes = case["labels"] if case["per_class"] else None
        kept, scores, labels = segments.soft_nms(case["segments"], case["scores"], case["sigma"], case["least_score"],
                                                 case["most"], classes)
        if not case["per_class"] and case["voting_iou"]:
            kept = segments.vote(kept, case["segments"], case["scores"], case["voting_iou"])
        np.testing.assert_allclose(kept, case["out_segments"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, case["out_scores"], rtol=1e-4, atol=1e-5)
        assert labels.tolist() == case["out_labels"]


def test_voting_is_a_mean_weighted_by_score_and_overlap():
    raw, scores = [[0, 10], [0, 9], [1, 10], [20, 30]], [1.0, 0.5, 0.25, 0.9]
    voted = segments.vote([[0, 10], [40, 50]], raw, scores, 0.85)
    weights = np.array([1, 0.5 * 0.9, 0.25 * 0.9])
    assert voted[0] == pytest.approx(weights @ np.array(raw)[:3] / weights.sum())
    assert voted[1].tolist() == [40, 50] and segments.vote([], raw, scores, 0.9).shape == (0, 2)
