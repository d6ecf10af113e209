"""EgoMQ's annotations, NMS, result files and metrics equal the original's figures; damage is named."""
import json

import numpy as np
import pytest
from conftest import ROOT

from egokit.tasks.moments import mq_annotations, mq_metrics, mq_results, segments
from egokit.tasks.moments.mq_annotations import Moment, MQClip
from egokit.tasks.moments.mq_results import Rows

GOLDEN = json.loads((ROOT / "tests/golden/golden_mq_nlq.json").read_text())
exactly = pytest.approx  # golden figures have 6 to 9 digits


def test_the_conversion_equals_the_original():
    converted = {}
    for document in GOLDEN["mq_convert"]["documents"].values():
        converted |= mq_annotations.clip_annotations(mq_annotations.read_clips(document))
    assert converted == GOLDEN["mq_convert"]["clip_annotations"]
    assert list(converted) == list(GOLDEN["mq_convert"]["clip_annotations"])


def label(start: float, stop: float, name: str, primary: bool = True) -> dict:
    return {"start_time": start, "end_time": stop, "label": name, "primary": primary}


@pytest.fixture
def document():
    """A moments_val.json of one video with two clips."""
    return {"videos": [{"video_uid": "val-0", "split": "val", "clips": [
        {"clip_uid": "val-0-0", "video_start_sec": 10.5, "video_end_sec": 250.25, "annotations": [
            {"labels": [label(5, 9, "read_book"), label(3, 4, "cut_bread"), label(1, 2, "read_book", False)]},
            {"labels": [label(23.5, 25, "wash_hands"), label(3.5, 4, "read_book")]}]},
        {"clip_uid": "val-0-1", "video_start_sec": 250.25, "video_end_sec": 300, "annotations": [
            {"labels": [label(2, 3, "read_book")]}]}]}]}


def test_a_clip_has_the_primary_labels_of_all_annotators(document):
    clip = document["videos"][0]["clips"][0]
    own = clip["annotations"][0]["labels"]
    own[0]["label"] = '"clean_/_repair_small_equipment_(mower,_trimmer_etc.)"'
    own[1] |= {"start_time": 5.0, "end_time": 5}
    clip["annotations"].append(clip["annotations"][0])  # doubles stay
    clips = mq_annotations.read_clips(document)
    first, twice = clips["val-0-0"], [own[0]["label"], "cut_bread"]
    assert [moment.label for moment in first.moments] == [*twice, "wash_hands", "read_book", *twice]
    assert first.moments[2] == (23.5, 25, "wash_hands") and (first.subset, first.seconds) == ("val", 239.75)
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
    ((*LABEL, "end_time"), 1.5, "label 0: it ends (end_time 1.5 s) before it starts (start_time 23.5 s)"),
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


CLIPS = GOLDEN["mq_clips"]
NAMES = sorted(CLIPS["classes"], key=CLIPS["classes"].get)[1:]  # without background


@pytest.fixture
def clips():
    """The golden's val clips."""
    return {uid: MQClip(uid, clip["video_id"], clip["parent_start_sec"], clip["parent_end_sec"], clip["subset"],
                        tuple(Moment(label["start_time"], label["end_time"], label["label"])
                              for label in clip["annotations"]))
            for uid, clip in CLIPS["clip_annotations"].items() if clip["subset"] == "val"}


@pytest.fixture
def read(tmp_path):
    """A function: document and file name -> what is read of the file."""
    def written(document, name="detections.json"):
        mq_results.write(tmp_path / name, document)
        return mq_results.read_results(tmp_path / name)
    return written


def proposals(raw: dict) -> Rows:
    """The original's steps 1 and 2 for a clip of the golden."""
    boxes = np.clip(raw["segments"], 0, CLIPS["length"] - 1)
    start, end = (mq_results.boundary_scores(boxes[:, side], raw[name]) for side, name in enumerate(("start", "end")))
    seconds = np.clip(boxes, 0, min(raw["features"], CLIPS["length"]) - 1) / raw["fps"]
    probabilities = np.array(raw["probabilities"])[:, 1:]
    return mq_results.suppress(mq_results.propose(seconds, probabilities, NAMES, start, end), CLIPS["nms_threshold"])


def test_from_network_outputs_to_both_files(clips):
    """The files are equal as documents."""
    made = {}
    for uid, raw in CLIPS["raw"].items():
        made[uid], expected = proposals(raw), np.array(raw["proposals"])
        np.testing.assert_allclose(made[uid].segments, expected[:, :2], rtol=1e-8)
        np.testing.assert_allclose(made[uid].scores, expected[:, 2], rtol=1e-8)
        assert [CLIPS["classes"][label] for label in made[uid].labels] == expected[:, 3].tolist()
    detect = mq_results.detections(made, clips, CLIPS["soft_nms_sigma"])
    retrieve = mq_results.retrievals(made, clips)
    assert detect == CLIPS["detections"] and retrieve == CLIPS["retrievals"]
    assert mq_results.submission(detect, retrieve) == {
        "version": "1.0", "challenge": "ego4d_moment_queries", "detect_results": CLIPS["detections"]["results"],
        "retrieve_results": CLIPS["retrievals"]["results"]}


def test_files_from_a_list_that_went_through_soft_nms(clips):
    """It stays as it is, but sorted; a clip without annotations is asked for all classes, and 200 rows are kept."""
    clips["bare"] = MQClip("bare", "video-9", 0.0, 9.96, "test", ())
    rows = Rows.of([[-1, 3.26], [2, 11]] + [[1, 2]] * 300, [0.25, 0.5] + [0.1] * 300, ["a", "b"] + ["c"] * 300)
    for document in (mq_results.detections({"bare": rows}, clips, None), mq_results.retrievals({"bare": rows}, clips)):
        entries = document["results"]["bare"]
        assert entries[:2] == [{"label": "b", "score": 0.5, "segment": [2.0, 10.0]},
                               {"label": "a", "score": 0.25, "segment": [0.0, 3.3]}] and len(entries) == 200
    empty = mq_results.suppress(Rows.of([], [], []))
    assert mq_results.detections({"bare": empty}, clips)["results"] == {"bare": []}
    with pytest.raises(ValueError, match="clip 'other' has proposals, but is in none of the annotations"):
        mq_results.retrievals({"other": rows}, clips)


def test_metrics_equal_the_original(clips, read):
    """Of the conversion's clips, and of a file with double detections, a missing class and foreign labels."""
    merged = mq_results.submission(CLIPS["detections"], CLIPS["retrievals"])
    both, alone = read(merged), read(GOLDEN["mq_metrics"]["detections"])
    assert alone.retrievals is None
    for results, retrievals, golden in ((both.detections, both.retrievals, CLIPS),
                                        (alone.detections, alone.detections, GOLDEN["mq_metrics"])):
        found = mq_metrics.mean_average_precision(results, clips, tious=CLIPS["tious"])
        assert dict(zip(found["classes"], found["ap"].tolist(), strict=True)) == {
            label: exactly(ap, abs=1e-8) for label, ap in golden["ap_per_class"].items()}
        assert found["map"].tolist() == exactly(golden["map"], abs=1e-8)
        assert found["average_map"] == exactly(golden["average_map"], abs=1e-8)
        recall = mq_metrics.recall(retrievals, clips, CLIPS["recall_k"], CLIPS["recall_tious"])
        np.testing.assert_allclose(recall, golden["recall"], atol=1e-8)


def as_rows(clips) -> dict[str, Rows]:
    """The ground truth as detections with different scores."""
    score, rows = iter(np.linspace(0.9, 0.1, 1000)), {}
    for uid, clip in clips.items():
        rows[uid] = Rows.of([moment[:2] for moment in clip.moments], [next(score) for _ in clip.moments],
                            [moment.label for moment in clip.moments])
    return rows


def test_the_ground_truth_finds_itself(clips):
    found = mq_metrics.mean_average_precision(as_rows(clips), clips)
    assert (found["ap"] == 1).all() and found["average_map"] == 1
    assert (mq_metrics.recall(as_rows(clips), clips) == 1).all()


def test_what_does_not_count(document):
    """A clip without an entry finds nothing; other classes change nothing; detections of other clips are wrong ones."""
    clips = mq_annotations.read_clips(document)
    rows = as_rows(clips)
    missing = rows.pop("val-0-1")
    recall = mq_metrics.recall(rows, clips)
    assert recall == pytest.approx(4 / 5)
    precision = mq_metrics.mean_average_precision(rows, clips)["average_map"]
    assert precision == pytest.approx((1 + 2 / 3 + 1) / 3)
    clips["bare"] = MQClip("bare", "video-9", 0.0, 10.0, "val", ())
    for uid in ("bare", "elsewhere"):
        wrong = rows | {uid: missing._replace(scores=np.ones(1))}  # read_book's best: 1/2, 2/3 of 3 moments
        found = mq_metrics.mean_average_precision(wrong, clips)["average_map"]
        assert found == pytest.approx((1 + 2 / 3 * 2 / 3 + 1) / 3)
    rows |= {"bare": missing, "elsewhere": missing}  # of a low score
    rows["val-0-0"] = Rows.of([*rows["val-0-0"].segments, [0, 9]], [*rows["val-0-0"].scores, 1.0],
                              [*rows["val-0-0"].labels, "never_seen"])
    assert mq_metrics.mean_average_precision(rows, clips)["average_map"] == precision
    assert (mq_metrics.recall(rows, clips) == recall).all()
    assert mq_metrics.coverage(rows, clips, "a file") == {
        "clips": 2, "without_entry": 1, "unlabelled": 1, "unknown": 1, "rows": 5, "of_other_classes": 1}
    with pytest.raises(ValueError, match=r"a file: none of its 1 clips is in the annotations, such as 'x'"):
        mq_metrics.coverage({"x": missing}, clips, "a file")
    with pytest.raises(ValueError, match="no moments to be found"):
        mq_metrics.mean_average_precision(rows, {"bare": clips["bare"]})
    with pytest.raises(ValueError, match="no moments to be found"):
        mq_metrics.recall(rows, {"bare": clips["bare"]})


def test_a_moment_is_found_once_and_in_the_order_of_scores():
    clip = {"k": MQClip("k", "v", 0.0, 100.0, "val", (Moment(0.0, 10.0, "a"), Moment(2.0, 12.0, "a")))}
    twice = {"k": Rows.of([[1, 11], [1, 11], [0, 10]], [0.5, 0.9, 0.4], ["a"] * 3)}
    ap = mq_metrics.mean_average_precision(twice, clip, ["a", "b"], [0.5, 0.9])["ap"]
    assert ap.tolist() == [[1, pytest.approx(1 / 6)], [0, 0]]  # at .9 only the last is right, of the first moment
    assert mq_metrics.recall(twice, clip, [1], [0.5, 0.9])[:, 0].tolist() == [1, 0]  # the file's first two rows


GOOD = {"label": "a", "score": 0.5, "segment": [1.0, 2.0]}


@pytest.mark.parametrize("row, message", [
    ([], "it is []"), (GOOD | {"label": 3}, "'label' is 3"), (GOOD | {"score": None}, "'score' is None"),
    (GOOD | {"score": float("nan")}, "'score' is nan"), (GOOD | {"score": True}, "'score' is True"),
    (GOOD | {"segment": [1, "2"]}, "the segment is [1, '2']"), (GOOD | {"segment": [1]}, "the segment is [1]"),
    (GOOD | {"segment": [2, 1]}, "the segment is [2, 1]"), ({"score": 1, "label": "a"}, "the segment is None"),
    (GOOD | {"segment": [0, float("inf")]}, "the segment is [0, inf]")])
def test_a_damaged_row_is_named(read, tmp_path, row, message):
    with pytest.raises(ValueError) as caught:
        read({"detect_results": {"k": [GOOD, row]}, "retrieve_results": {}}, "mine.json")
    assert str(caught.value).startswith(f"{tmp_path / 'mine.json'}, detect_results, clip k, row 1: {message}")


@pytest.mark.parametrize("document, message", [
    ({"results": []}, r"'results' is \[\]; expected"), ({"results": {"k": 3}}, "clip k: it is 3"),
    ([], r"mine.json: expected .*results"), ({"retrieve_results": 3}, "'retrieve_results' is 3"),
    ({"detect_results": {}, "retrieve_results": {}}, r"mine.json: expected .*results")])
def test_a_file_of_another_form_is_refused(read, document, message):
    with pytest.raises(ValueError, match=message):
        read(document, "mine.json")


def test_a_retrieval_file_is_known_by_its_name(read, tmp_path):
    assert read({"results": {"k": [GOOD]}}, mq_results.RETRIEVAL_FILE)[0] is None
    assert read({"results": {"k": [GOOD]}}, mq_results.DETECTION_FILE)[1] is None
    with pytest.raises(FileNotFoundError, match="name a result file that is there"):
        mq_results.read_results(tmp_path / "none.json")
