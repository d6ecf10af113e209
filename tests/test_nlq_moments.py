"""EgoNLQ's conversion, submission and recalls equal the original's figures; damage is named."""
import json

import numpy as np
import pytest
from conftest import ROOT

from egokit.tasks.moments import nlq_annotations, nlq_results

GOLDEN = json.loads((ROOT / "tests/golden/golden_mq_nlq.json").read_text())


def test_both_steps_of_the_conversion_equal_the_original():
    counted = 0
    for split, document in GOLDEN["nlq_convert"]["documents"].items():
        clips = nlq_annotations.read_clips(document)
        converted = nlq_annotations.converted(clips)
        assert converted == GOLDEN["nlq_convert"]["converted"][split]
        assert list(converted) == list(GOLDEN["nlq_convert"]["converted"][split])
        made = nlq_annotations.records(nlq_annotations.read_questions(document), counted)
        counted += len(made)
        expected = GOLDEN["nlq_convert"]["records"][split]
        assert made == [{key: pytest.approx(value, rel=1e-8) if type(value) is float else value
                         for key, value in record.items()} for record in expected]


def asked(query: str, start: float, stop: float) -> dict:
    return {"query": query, "clip_start_sec": start, "clip_end_sec": stop}


@pytest.fixture
def document():
    """A nlq_val.json of one video with two clips, five questions, of which one's answer has length 0."""
    return {"videos": [{"video_uid": "video-0", "split": "val", "clips": [
        {"clip_uid": "clip-0", "video_start_sec": 10.5, "video_end_sec": 250.25, "annotations": [
            {"annotation_uid": "a0", "language_queries": [{"query": None}, asked("Where is it?", 3.25, 9)]},
            {"annotation_uid": "a1", "language_queries": [asked("Who was it", 4, 4), asked("How many?", 20, 50)]}]},
        {"clip_uid": "clip-1", "video_start_sec": 250.25, "video_end_sec": 300, "annotations": [
            {"annotation_uid": "a2", "language_queries": [asked("Is it on?", 0, 2), asked("Is it off?", 2, 3)]}]}]}]}


def queries(document):
    return document["videos"][0]["clips"][0]["annotations"][0]["language_queries"]


def test_skipped_questions_keep_their_index_and_are_counted(document):
    template = {"template": "Objects: Where is object X?"}
    queries(document)[:] = [{"query": None}, {}, {"query": "  IS it On? "} | template |
                            {"clip_start_sec": 3.0, "clip_end_sec": 3}, {"query": ""}]
    clip = nlq_annotations.read_clips(document)[0]
    question = clip.questions[0]
    assert (question.query_idx, question.query, question.template) == (2, "is it on?", template["template"])
    assert clip.skipped == 3 and nlq_annotations.count_empty(clip.questions) == 2
    short = [question._replace(start=3.0, stop=3.1) for question in clip.questions]
    assert (nlq_annotations.count_empty(short), nlq_annotations.count_empty(short, cut=True)) == (0, 2)
    assert question.key == ("clip-0", "a0", 2) and (question.start, question.grid_start) == (3, 5 / 1.875)


def test_questions_are_cleaned_and_answers_end_with_the_cut_clip(document):
    """A clip of 239.75 s has 449 features, 239.47 s; marks go at both ends, spaces only outside of them."""
    queries(document)[1] |= {"query": " ??How MANY Cups ? ?? ", "clip_end_sec": 245.0}
    question = nlq_annotations.read_questions(document)[0]
    assert question.query == "how many cups ? ?"
    assert (question.grid_stop, question.stop) == (pytest.approx(449 / 1.875), 245)


def test_the_test_split_has_no_times(document):
    questions = nlq_annotations.read_questions(GOLDEN["nlq_convert"]["documents"]["test"])
    assert {(question.start, question.stop) for question in questions} == {(None, None)}
    assert nlq_annotations.count_empty(questions) == 0
    del queries(document)[1]["clip_end_sec"]  # of another split, they are missed
    with pytest.raises(ValueError, match=r"'clip-0': annotation 0, question 1: 'clip_end_sec' is None"):
        nlq_annotations.read_questions(document)


def test_scores_need_no_video(document):
    bare = GOLDEN["nlq_metrics_edges"]["ground_truth"]
    with pytest.raises(ValueError, match="video 0: 'video_uid' is missing"):
        nlq_annotations.read_questions(bare)
    question = nlq_annotations.read_questions(bare, extents=False)[0]
    first = bare["videos"][0]["clips"][0]["annotations"][0]["language_queries"][0]
    assert (question.video_uid, question.duration, question.stop) == (None, None, first["clip_end_sec"])


@pytest.mark.parametrize("change, message", [
    ({"clip_start_sec": None}, "'clip_start_sec' is None; expected seconds"), ({"query": 7}, "'query' is 7"),
    ({"clip_end_sec": "inf"}, "'clip_end_sec' is 'inf'"), ({"clip_end_sec": 1e308}, "'clip_end_sec' is 1e+308"),
    ({"clip_end_sec": 0.5}, "ends (clip_end_sec 0.5 s) before")])
def test_a_damaged_question_is_named(document, tmp_path, change, message):
    queries(document)[1] |= change
    path = tmp_path / "nlq_val.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError) as caught:
        nlq_annotations.read_clips(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}, video video-0, clip 'clip-0': annotation 0, question 1: ")


def test_a_question_that_stands_twice_is_refused(document):
    document["videos"][0]["clips"].append(document["videos"][0]["clips"][0])
    with pytest.raises(ValueError, match="annotation a0 stands twice"):
        nlq_annotations.read_clips(document)
    with pytest.raises(ValueError, match="lists no clips"):
        nlq_annotations.read_clips({"videos": []})


@pytest.mark.parametrize("name", ["nlq_metrics", "nlq_metrics_edges"])
def test_recalls_equal_the_original(name, tmp_path):
    golden, val = GOLDEN[name], GOLDEN["nlq_convert"]["documents"]["val"]
    truth = val if isinstance(golden["ground_truth"], str) else golden["ground_truth"]
    (tmp_path / "mine.json").write_text(json.dumps({"results": golden["predictions"]}))
    predictions = nlq_results.read_predictions(tmp_path / "mine.json")
    clips = nlq_annotations.read_clips(truth, extents=False)
    questions = [question for clip in clips for question in clip.questions]
    found = nlq_results.recalls(predictions, questions, golden["k"], golden["thresholds"])
    np.testing.assert_allclose(found["original"]["recall"], golden["recall"], atol=1e-8)
    assert found["original"]["mean_iou"] == pytest.approx(golden["mean_iou_of_first"], abs=1e-8)
    instances = found["questions"] + sum(clip.skipped for clip in clips)  # the original counts those without a text
    assert golden["says"] == f"Evaluated: {found['answered']} / {instances} instances"


@pytest.fixture
def questions(document):
    return nlq_annotations.read_questions(document)


def right(questions) -> dict:
    return {question.key: np.array([[question.start, question.stop]]) for question in questions}


def test_unanswered_questions_count_against_you(questions):
    """In the challenge; the original's mean is over the predictions that are given."""
    given = right(questions[:3]) | {questions[3].key: np.zeros((0, 2)), ("clip", "elsewhere", 0): np.array([[0, 1.0]])}
    found = nlq_results.recalls(given, questions)  # two right, one of length 0, one without a segment, one missing
    assert found["recall"] == pytest.approx(2 / 5) and found["mean_iou"] == pytest.approx(2 / 5)
    original = found.pop("original")
    assert original["recall"] == pytest.approx(2 / 3) and original["mean_iou"] == pytest.approx(2 / 3)
    counts = {key: value for key, value in found.items() if type(value) is int}
    assert counts == {"questions": 5, "answered": 3, "unanswered": 2, "unknown": 1, "empty": 1}


def test_an_answer_of_length_zero_is_never_right(questions):
    found = nlq_results.recalls(right(questions), questions)
    assert found["empty"] == 1 and found["recall"] == pytest.approx(4 / 5)


def test_recalls_by_template(questions):
    first = questions[0]._replace(template="Place: Where did I put X?")
    rest = [question for question in questions[1:] if question.stop > question.start]
    found = nlq_results.recalls_by_template(right(rest), [first, *rest])
    assert list(found) == ["none", "Place: Where did I put X?"]
    assert (found["none"]["recall"] == 1).all() and (found[first.template]["recall"] == 0).all()
    assert found[first.template]["unanswered"] == 1


def test_predictions_that_fit_nothing(questions):
    with pytest.raises(ValueError, match=r"none of the 1 predictions is for a question .*another split"):
        nlq_results.recalls({("a", "b", 0): [[0, 1]]}, questions)
    test = nlq_annotations.read_questions(GOLDEN["nlq_convert"]["documents"]["test"])
    for without in (test, []):
        with pytest.raises(ValueError, match="no answers to compare with"):
            nlq_results.recalls(right(questions), without)


def test_a_submission_is_read_as_it_was_made(questions, tmp_path):
    document = nlq_results.submission(right(questions))
    assert (document["version"], document["challenge"]) == ("1.0", "ego4d_nlq_challenge")
    assert list(document["results"][0]) == ["clip_uid", "annotation_uid", "query_idx", "predicted_times"]
    nlq_results.write(tmp_path / "mine.json", document)
    read = nlq_results.read_predictions(tmp_path / "mine.json")
    assert {key: times.tolist() for key, times in read.items()} == {
        key: times.tolist() for key, times in right(questions).items()}


ANSWER = {"clip_uid": "k", "annotation_uid": "a", "query_idx": 0, "predicted_times": [[0, 1]]}


@pytest.mark.parametrize("entry, message", [
    (3, "result 1: it is 3"), (ANSWER | {"clip_uid": None}, "result 1: 'clip_uid' is None"),
    (ANSWER | {"query_idx": "0"}, "query '0': 'query_idx' is '0'"),
    (ANSWER, "clip k, annotation a, query 0: the question is answered twice"),
    (ANSWER | {"query_idx": 1, "predicted_times": None}, "query 1: 'predicted_times' is None"),
    (ANSWER | {"query_idx": 1, "predicted_times": [[0, 1], [2, float("nan")]]}, "query 1: the segment is [2, nan]"),
    (ANSWER | {"query_idx": 1, "predicted_times": [[3, 1]]}, "query 1: the segment is [3, 1]")])
def test_a_damaged_prediction_is_named(tmp_path, entry, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"results": [ANSWER, entry]}))
    with pytest.raises(ValueError) as caught:
        nlq_results.read_predictions(path)
    assert str(caught.value).startswith(f"{path}, result 1") and message in str(caught.value)


@pytest.mark.parametrize("document", [[], {}, {"results": {}}])
def test_a_file_of_another_form_is_refused(tmp_path, document):
    (tmp_path / "mine.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"mine.json: expected .*predicted_times"):
        nlq_results.read_predictions(tmp_path / "mine.json")
