"""EgoNLQ's conversion, submission and recalls equal the original's figures; damage is named."""
import copy
import json

import pytest
from conftest import ROOT

from egokit.tasks.moments import nlq_annotations

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


@pytest.fixture
def document():
    return copy.deepcopy(GOLDEN["nlq_convert"]["documents"]["val"])


def queries(document):
    return document["videos"][0]["clips"][0]["annotations"][0]["language_queries"]


def test_skipped_questions_keep_their_index_and_are_counted(document):
    template = {"template": "Objects: Where is object X?"}
    queries(document)[:] = [{"query": None}, {}, {"query": "  IS it On? "} | template |
                            {"clip_start_sec": 3.0, "clip_end_sec": 3}, {"query": ""}]
    clip = nlq_annotations.read_clips(document)[0]
    question = clip.questions[0]
    assert (question.query_idx, question.query, question.template) == (2, "is it on?", template["template"])
    rest = document["videos"][0]["clips"][0]["annotations"][1:]
    empty = sum(not query.get("query") for annotation in rest for query in annotation["language_queries"])
    assert clip.skipped == 3 + empty and nlq_annotations.count_empty([question]) == 1
    assert question.key == (clip.clip_uid, "ann-val-000", 2)


def test_the_test_split_has_no_times(document):
    questions = nlq_annotations.read_questions(GOLDEN["nlq_convert"]["documents"]["test"])
    assert {(question.start, question.stop) for question in questions} == {(None, None)}
    assert nlq_annotations.count_empty(questions) == 0
    del queries(document)[1]["clip_end_sec"]  # of another split, they are missed
    with pytest.raises(ValueError, match=r"'clip-val-00': annotation 0, question 1: 'clip_end_sec' is None"):
        nlq_annotations.read_questions(document)


def test_scores_need_no_video(document):
    bare = GOLDEN["nlq_metrics_edges"]["ground_truth"]
    with pytest.raises(ValueError, match="video 0: 'video_uid' is missing"):
        nlq_annotations.read_questions(bare)
    question = nlq_annotations.read_questions(bare, extents=False)[0]
    assert (question.video_uid, question.duration, question.stop) == (None, None, 10)


@pytest.mark.parametrize("change, message", [
    ({"clip_start_sec": None}, "'clip_start_sec' is None; expected seconds"), ({"query": 7}, "'query' is 7"),
    ({"clip_end_sec": "inf"}, "'clip_end_sec' is 'inf'"), ({"clip_end_sec": 0.5}, "ends (clip_end_sec 0.5 s) before")])
def test_a_damaged_question_is_named(document, tmp_path, change, message):
    queries(document)[1] |= change
    path = tmp_path / "nlq_val.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError) as caught:
        nlq_annotations.read_clips(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}, video video-val-0, clip 'clip-val-00': annotation 0, question 1: ")


def test_a_question_that_stands_twice_is_refused(document):
    document["videos"][0]["clips"].append(document["videos"][0]["clips"][0])
    with pytest.raises(ValueError, match="annotation ann-val-000 stands twice"):
        nlq_annotations.read_clips(document)
    with pytest.raises(ValueError, match="lists no clips"):
        nlq_annotations.read_clips({"videos": []})
