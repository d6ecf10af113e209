"""A wrong question of EgoMCQ's file, or a wrong clip of EgoMQ's files, is named."""
import json

import pytest
from annotation_files import EGOMCQ, MOMENTS, change, refused, user


@pytest.fixture
def use(resolve, copied):
    return user(resolve, copied)


QUESTIONS = [
    *(("answer", bad, "'answer' is") for bad in (None, 5, -1, "x", [], 1.5)),
    *(("types", bad, "expected one of 1, 2") for bad in (None, 0, 3, "x")),
    *(("choices", bad, "'choices' is") for bad in (None, [], 7)), ("choices.4", None, "choice 4: '4' is missing"),
    ("choices.2", [], "choice 2: '2' is []"), ("choices.2.video_uid", None, "choice 2: 'video_uid' is missing"),
    ("choices.2.video_uid", 7, "choice 2: 'video_uid' is 7"),
    *(("choices.2.clip_start", bad, "choice 2: 'clip_start' is") for bad in (None, "abc", "nan", [], {})),
    ("choices.2.clip_end", float("nan"), "choice 2: 'clip_end' is nan"),
    ("choices.2.clip_end", -1, "before it or its video begins"),
    ("query", None, "'query' is missing"), ("query", [], "'query' is []"),
    ("query.clip_text", None, "'clip_text' is missing"), ("query.clip_text", 7, "'clip_text' is 7"),
]


@pytest.mark.parametrize("key, value, message", QUESTIONS)
def test_a_wrong_question_is_named(use, key, value, message):
    do, root = use
    path = root / EGOMCQ
    document = json.loads(path.read_text())
    change(document["3"], key, value)
    path.write_text(json.dumps(document))
    refused(lambda: do(EGOMCQ), path, "question '3'", message)


@pytest.mark.parametrize("document, message", [
    ([], "expected questions"), ({}, "expected questions"), ({"a": {}}, "question 'a'"),
    ({"0": []}, "question '0'"), ({"0": None}, "question '0'"), ("text", "expected questions")])
def test_questions_of_another_shape(use, document, message):
    do, root = use
    (root / EGOMCQ).write_text(json.dumps(document))
    refused(lambda: do(EGOMCQ), root / EGOMCQ, message)


CLIP_CHANGES = [
    *((f"clips.{name}", bad, f"'{name}' is")
      for name in ("video_start_sec", "video_end_sec") for bad in (None, "abc", "nan", [])),
    ("clips.video_end_sec", -3, "before it or its video begins"), ("clips.clip_uid", None, "'clip_uid' is missing"),
    ("clips.clip_uid", 7, "'clip_uid' is 7"), ("video_uid", None, "'video_uid' is missing"),
    ("clips", None, "'clips' is missing"), ("clips", {}, "'clips' is {}"), ("clips", [7], "clip 7: expected clip_uid"),
]


@pytest.mark.parametrize("key, value, message", CLIP_CHANGES)
def test_a_wrong_clip_is_named(use, key, value, message):
    do, root = use
    path = root / MOMENTS
    document = json.loads(path.read_text())
    video = document["videos"][0]
    if "." in key:
        change(video["clips"][0], key.removeprefix("clips."), value)
    else:
        change(video, key, value)
    path.write_text(json.dumps(document))
    refused(lambda: do(MOMENTS), path, "video", message)


@pytest.mark.parametrize("document", [[], {}, {"videos": {}}, {"videos": [7]}, "text"])
def test_moments_of_another_shape(use, document):
    do, root = use
    (root / MOMENTS).write_text(json.dumps(document))
    refused(lambda: do(MOMENTS), root / MOMENTS, "expected")


@pytest.mark.parametrize("videos", [[], [{"video_uid": "v", "clips": []}]])
def test_a_list_without_clips_is_named(use, videos):
    do, root = use
    (root / MOMENTS).write_text(json.dumps({"videos": videos}))
    refused(lambda: do(MOMENTS), root / MOMENTS, "it lists no clips")


def test_one_name_for_two_clips(use):
    do, root = use
    document = json.loads((root / MOMENTS).read_text())
    clip = document["videos"][0]["clips"][0]
    document["videos"][0]["clips"].append(clip)
    (root / MOMENTS).write_text(json.dumps(document))
    assert len({entry["clip_uid"] for entry in do(MOMENTS)}) == len(do(MOMENTS))
    document["videos"][0]["clips"].append(clip | {"video_end_sec": clip["video_end_sec"] + 1})
    (root / MOMENTS).write_text(json.dumps(document))
    refused(lambda: do(MOMENTS), root / MOMENTS, clip["clip_uid"], "other times")
