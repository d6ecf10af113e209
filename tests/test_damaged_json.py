"""A wrong question of EgoMCQ's file, or a wrong clip of EgoMQ's files, is named."""
import json
import os

import numpy as np
import pytest
from annotation_files import EGOMCQ, FILES, MOMENTS, SHORT, change, refused, user

from egokit import viz
from egokit.config import json_file
from egokit.data.annotation_json import read_egomcq, read_manifest
from egokit.runs.array_file import read_array, read_arrays
from egokit.runs.run_folder import Run
from egokit.search import manifest
from egokit.tasks import clip_features


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
    ("choices.2.clip_end", 10 ** 400, "choice 2: 'clip_end' is 1000"),
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
    ({"1" * 5000: {}}, "expected a number"),
    ({"0": []}, "question '0'"), ({"0": None}, "question '0'"), ("text", "expected questions")])
def test_questions_of_another_shape(use, document, message):
    do, root = use
    (root / EGOMCQ).write_text(json.dumps(document))
    refused(lambda: do(EGOMCQ), root / EGOMCQ, message)


CLIP_CHANGES = [
    *((f"clips.{name}", bad, f"'{name}' is")
      for name in ("video_start_sec", "video_end_sec") for bad in (None, "abc", "nan", [], 10 ** 400)),
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


def test_videos_may_lie_in_folders(use):
    do, root = use
    document = json.loads((root / EGOMCQ).read_text())
    change(document["3"], "choices.2.video_uid", "P01/P01_101")
    (root / EGOMCQ).write_text(json.dumps(document))
    assert len(read_egomcq(root / EGOMCQ)) == len(document)
    document = json.loads((root / MOMENTS).read_text())
    document["videos"][1]["video_uid"] = "P01/P01_101"
    (root / MOMENTS).write_text(json.dumps(document))
    assert "P01/P01_101" in [clip["video_uid"] for clip in do(MOMENTS)]


def test_prepared_json_names_files(tmp_path):
    path = tmp_path / "prepared.json"
    path.write_text(json.dumps({"lines": [{"uid": "a", "status": "ok"}, {"uid": "../b", "status": "ok"}]}))
    good, bad = read_manifest(path)
    assert good["status"] == "ok" and bad["status"] == "failed"
    assert str(path) in bad["reason"] and "line 1" in bad["reason"] and "'../b'" in bad["reason"]
    path.write_text(json.dumps({"lines": [{"uid": "a", "status": "ok"}, {"status": "failed"}]}))
    assert len(read_manifest(path)) == 2


def test_more_lists_than_memory_are_refused_before_they_are_made(use, tmp_path, monkeypatch):
    do, root = use
    (root / MOMENTS).write_text('{"videos": [' + "[]," * 5_000_000 + "[]]}")
    refused(lambda: do(MOMENTS), root / MOMENTS, "5,000,000 lists and objects")
    monkeypatch.setattr(json_file, "MOST", 3)
    for text in ("[{},{},{}]", b"[[],[],[]]"):
        with pytest.raises(ValueError, match="more than 3 lists and objects"):
            json_file.parse_json(text)
    assert json_file.parse_json("[{},[]]") == [{}, []]


@pytest.mark.parametrize("name", FILES, ids=SHORT)
def test_a_pipe_in_place_of_a_file_is_named_at_once(use, name):
    do, root = use
    (root / name).unlink()
    os.mkfifo(root / name)
    refused(lambda: do(name), root / name, "expected a regular file")


def test_a_pipe_in_place_of_an_array_is_named_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    for read in (read_array, read_arrays):
        refused(lambda read=read: read(tmp_path / "a.npy", "fix"), tmp_path / "a.npy", "expected a regular file")


def test_lists_of_all_videos_may_be_large(tmp_path):
    (tmp_path / "features").mkdir()
    path = tmp_path / "features/manifest.json"
    clip = {"clip_uid": "a", "split": "val", "start": 0, "stop": 1}
    path.write_text(json.dumps({"videos": [], "unreadable": [], "format": "npy", "clips": [clip]}) + " " * (64 << 20))
    assert manifest.read_manifest(path.parent)["videos"] == []
    assert clip_features.read_manifest(tmp_path / "features")["clips"] == [clip]


def test_features_without_a_moment_are_named(tmp_path):
    (tmp_path / "features").mkdir()
    clip = {"clip_uid": "a", "split": "val", "start": 0, "stop": 1}
    (tmp_path / "features/manifest.json").write_text(json.dumps({"format": "npy", "clips": [clip]}))
    np.save(tmp_path / "features/a.npy", np.zeros((0, 8), np.float32))
    refused(lambda: viz.features(Run(tmp_path)), tmp_path / "features/a.npy", "(0, 8)")
