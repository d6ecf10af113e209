"""Damaged annotation files: an error names the file and the row, question or clip.

Harmless oddities just work. test_damage.py: damaged videos. test_egoclip_table.py: malformed rows of EgoClip, which are
counted and left out.
"""
import csv
import dataclasses
import io
import json
import os
import pickle
import warnings

import numpy as np
import pytest
from conftest import MODEL

from egokit import prep, tasks
from egokit.data import relevancy
from egokit.data.annotation_tables import EK100_ANNOTATIONS
from egokit.data.egoclip_table import EgoClipTable
from egokit.data.video import clips, frame_sampling
from egokit.data.video.open_video import VideoError
from egokit.prep import doctor

EK, CHARADES = str(EK100_ANNOTATIONS), "CharadesEgo/CharadesEgo"
RELEVANCY = f"{EK}/relevancy/caption_relevancy_EPIC_100_retrieval_train.safetensors"

# file -> (recipe, what a user does with a task of it)
FILES = {
    "egoclip.csv": ("pretrain", lambda task: task.dataset("train")),
    "egomcq.json": ("egomcq", lambda task: task.dataset("test")),
    f"{EK}/EPIC_100_retrieval_test.csv": ("ek100_finetune", lambda task: task.dataset("test")),
    f"{EK}/EPIC_100_retrieval_test_sentence.csv": ("ek100_finetune", lambda task: task.dataset("test")),
    f"{EK}/EPIC_100_retrieval_train.csv": ("ek100_finetune", lambda task: task.dataset("train")),
    f"{EK}/EPIC_100_retrieval_train_sentence.csv": ("ek100_finetune", lambda task: task.dataset("train")),
    RELEVANCY: ("ek100_finetune", lambda task: [task.dataset("train")[0, i] for i in range(8)]),
    f"{CHARADES}/CharadesEgo_v1_test_only1st.csv": ("charades_finetune", lambda task: task.dataset("test")),
    f"{CHARADES}/Charades_v1_classes.txt": ("charades_finetune", lambda task: task.dataset("test")),
    f"{CHARADES}/metadata_train.csv": ("charades_finetune", lambda task: task.dataset("train")),
    "moments_train.json": ("egomq_features", lambda task: task.clips()),
    "moments_val.json": ("egomq_features", lambda task: task.clips()),
    "moments_test_unannotated.json": ("egomq_features", lambda task: task.clips()),
}
SHORT = [name.rsplit("/", 1)[-1] for name in FILES]
EGOCLIP, EGOMCQ, CLIPS, SENTENCES, TRAIN_CLIPS, _, _, VIDEOS, CLASSES, METADATA, MOMENTS, *_ = FILES


@pytest.fixture
def use(resolve, copied):
    """Return (use, root): use(name) does with a file's task what a user does."""
    on_copy, root = copied

    def do(name: str):
        recipe, action = FILES[name]
        config = dataclasses.replace(on_copy(resolve(f"toy/{recipe}", MODEL)), init="")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*malformed rows")
            return action(tasks.make(config))
    return do, root


def refused(action, path, *words) -> str:
    """Check that an action raises an error of ours that names the file; return its message."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        action()
    assert type(caught.value) in (ValueError, FileNotFoundError), repr(caught.value)
    message = str(caught.value)
    assert str(path) in message and all(word in message for word in words), message
    return message


# damage that any file may have

def halved(data: bytes) -> bytes:
    """Return a file that is cut off in the middle of a row."""
    at = len(data) // 2
    return data[:at - 3] if data[at - 4:at - 2].strip() else data[:at]


WHOLE_FILE = {
    "empty": lambda data: b"",
    "binary": lambda data: np.random.default_rng(0).bytes(5000),
    "zeros": lambda data: bytes(len(data)),
    "UTF-16": lambda data: data.decode("latin-1").encode("utf-16"),
    "page": lambda data: b"<!DOCTYPE html>\n<html><head><title>404, Not Found</title></head>\n<body></body></html>\n",
    "header only": lambda data: data.split(b"\n")[0] + b"\n",
    "cut": halved,
    "latin-1": lambda data: data[:-30] + b"\xe9" + data[-30:],
    "list": lambda data: b"[]",
    "number": lambda data: b"7",
    "brackets": lambda data: b"[" * 100_000,
}
# malformed rows of EgoClip are counted; a list of sentences that is cut off is valid, only the relevancy's size tells
HARMLESS = {("cut", EGOCLIP), ("latin-1", EGOCLIP), ("cut", CLASSES), ("header only", CLASSES), ("cut", SENTENCES),
            ("header only", EGOMCQ), ("latin-1", RELEVANCY)}


@pytest.mark.parametrize("damage", ["missing", *WHOLE_FILE])
@pytest.mark.parametrize("name", FILES, ids=SHORT)
def test_a_damaged_file_is_named(use, name, damage):
    do, root = use
    path = root / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(WHOLE_FILE[damage](data))
    if (damage, name) not in HARMLESS:
        refused(lambda: do(name), path)
    elif (damage, name) == ("cut", SENTENCES):
        refused(lambda: do(name), root, "but EPIC_100_retrieval_*.csv have 9 clips and", "if those are whole")


@pytest.mark.parametrize("name", FILES, ids=SHORT)
def test_the_doctor_names_a_damaged_file(resolve, copied, name):
    on_copy, root = copied
    config, path = on_copy(resolve()), root / name
    data = path.read_bytes()
    for damage, change in WHOLE_FILE.items():
        path.write_bytes(change(data))
        findings = doctor.examine(config, 1, ("egoclip", "egomcq", "ek100", "charades", "egomq"))
        messages = [f"{finding.what}: {finding.message}" for finding in findings
                    if finding.state in ("wrong", "missing")]
        if (damage, name) not in HARMLESS:
            assert any(path.name in message for message in messages), (damage, messages)


@pytest.mark.parametrize("name", [name for name in FILES if name != RELEVANCY],
                         ids=lambda name: name.rsplit("/", 1)[-1])
def test_line_ends_of_windows_and_a_byte_order_mark_just_work(use, name):
    do, root = use
    path = root / name
    before = do(name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    after = do(name)
    assert len(before) == len(after) and len(after) > 0
    if name in (VIDEOS, CLASSES):
        assert before.task.ids == after.task.ids and before.task.classes == after.task.classes
        assert np.array_equal(before.task.targets_VK, after.task.targets_VK)


def test_where_the_locale_is_not_utf_8(use, monkeypatch):
    """Tables are read as UTF-8 on every machine."""
    do, root = use
    path = root / CLASSES
    text = path.read_text(encoding="utf-8").replace("picking up the cup", "picking up the café's cup")
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(io, "text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    assert any("café" in sentence for sentence in do(CLASSES).task.classes.values())


# one cell, question or clip

def edited(path, row: int, delimiter: str = ",", **cells) -> None:
    """Change cells of a row, counted from 0 without the header; None removes a column."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    rows[row] |= {name: cell for name, cell in cells.items() if cell is not None}
    names = [name for name in rows[0] if cells.get(name, "") is not None]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter=delimiter, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


CELLS = [
    *((CLIPS, {"start_timestamp": bad}, ["line 4", "start_timestamp", repr(bad), "expected hours:minutes:seconds"])
      for bad in ("abc", "", "12.5", "nan", "-00:00:01.00", "00:00", "00:00:٣")),
    *((CLIPS, {"all_noun_classes": bad}, ["line 4", "all_noun_classes", "expected a list of class numbers"])
      for bad in ("8", "", "[8", "['book']", "[8 9]", "[-1]", "{8}", "[8,,9]", "[__import__('os').getcwd()]")),
    *((CLIPS, {"verb_class": bad}, ["line 4", "verb_class", "expected a whole number"])
      for bad in ("abc", "", "1.5", "-1", "nan")),
    *((CLIPS, {name: ""}, ["line 4", name, "expected text"])
      for name in ("narration_id", "participant_id", "video_id", "narration")),
    (CLIPS, {"narration_id": "P01_11_0"}, ["line 4", "'P01_11_0' is in line 2, too"]),
    (SENTENCES, {"narration_id": "P01_11_0"}, ["line 4", "'P01_11_0' is in line 2, too"]),
    (SENTENCES, {"narration": " "}, ["line 4", "narration", "expected text"]),
    *((file, {name: None}, [f"columns ['{name}'] are missing", "found ["]) for file, name in
      ((CLIPS, "start_timestamp"), (CLIPS, "all_noun_classes"), (SENTENCES, "narration"), (VIDEOS, "actions"),
       (VIDEOS, "id"))),
    *((VIDEOS, {"actions": bad}, ["line 4", "actions", repr(bad)[:20]])
      for bad in ("c001", "c001 1.0", "c001 abc 2.0", "c001 nan 2.0", "c001 -1.0 2.0", "c999 1.0 2.0",
                  "c001 1.0 2.0;", "c001  1.0 2.0")),
    (VIDEOS, {"id": "RXFSE"}, ["line 4", "'RXFSE' is in line 2, too"]),
    (VIDEOS, {"id": ""}, ["line 4", "expected text"]),
    *((METADATA, {name: bad}, ["line 4", name, "expected seconds"])
      for name in ("t_start", "t_end") for bad in ("abc", "", "nan", "inf", "-1")),
    (METADATA, {"narration": ""}, ["line 4", "expected text"]),
    (METADATA, {"t_end": None}, ["columns ['t_end'] are missing"]),
]


@pytest.mark.parametrize("name, cells, words", CELLS)
def test_a_wrong_cell_is_named(use, name, cells, words):
    do, root = use
    edited(root / name, 2, "\t" if name == METADATA else ",", **cells)
    refused(lambda: do(name), root / name, *words)


@pytest.mark.parametrize("name, cells, message", [
    (CLIPS, {"stop_timestamp": "00:00:00.00"},
     "1 of [0-9]+ rows end before they begin, such as narration_id 'P01_11_2'"),
    (METADATA, {"t_start": "9", "t_end": "3"},
     r"1 of [0-9]+ rows end before they begin, such as id .*t_start 9 s, t_end 3 s")])
def test_rows_that_end_before_they_begin_are_counted(use, name, cells, message):
    do, root = use
    edited(root / name, 2, "\t" if name == METADATA else ",", **cells)
    with pytest.warns(UserWarning, match=message):
        do(name)


@pytest.mark.parametrize("name", [CLIPS, SENTENCES, VIDEOS, METADATA, EGOCLIP])
@pytest.mark.parametrize("delimiter", [";", "\t", ",", "|"])
def test_a_wrong_delimiter_is_named(use, name, delimiter):
    do, root = use
    path, own = root / name, "\t" if name in (METADATA, EGOCLIP) else ","
    path.write_text(path.read_text().replace(own, delimiter))
    if own != delimiter:
        refused(lambda: do(name), path, "expected", "found")


@pytest.mark.parametrize("name", [CLIPS, SENTENCES, VIDEOS, METADATA])
def test_a_row_that_is_cut_off_or_has_a_field_too_many_is_named(use, name):
    do, root = use
    path, own = root / name, "\t" if name == METADATA else ","
    whole = path.read_text().rstrip("\n")
    last = whole.count("\n") + 1
    path.write_text(whole.rpartition(own)[0])
    refused(lambda: do(name), path, f"line {last}: ")
    path.write_text(f"{whole}{own}more\n")
    refused(lambda: do(name), path, f"line {last}: ")
    path.write_text(whole.replace(own, f'{own}"', 1) + "\n")
    refused(lambda: do(name), path)


def test_words_that_pandas_takes_for_nothing_are_words(use):
    do, root = use
    edited(root / SENTENCES, 1, narration="null")
    assert do(SENTENCES).sentences.narration.iloc[1] == "null"


CLASS_LINES = [("picking up", "expected lines like"), ("c024", "expected lines like"),
               ("c000 again", "is listed twice"), ("x17 no class", "expected lines like")]


@pytest.mark.parametrize("line, message", CLASS_LINES)
def test_a_wrong_line_of_the_class_list_is_named(use, line, message):
    do, root = use
    with open(root / CLASSES, "a") as file:
        file.write(line + "\n")
    refused(lambda: do(CLASSES), root / CLASSES, "line 25", message)


def test_a_class_file_that_lacks_a_class_of_the_list(use):
    do, root = use
    path = root / CLASSES
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    refused(lambda: do(CLASSES), root / VIDEOS, "the class file doesn't know")


def change(question: dict, key: str, value) -> None:
    """Set a field, "choices.2.video_uid" for one that is deeper; None removes it."""
    *way, last = key.split(".")
    for name in way:
        question = question[name]
    if value is None:
        del question[last]
    else:
        question[last] = value


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


# relevancy

@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], np.zeros(3), np.zeros((2, 2), object),
                                     np.full((20, 20), "x"), "text"])
def test_a_pickle_of_something_else(tmp_path, content):
    path = tmp_path / "relevancy.pkl"
    path.write_bytes(pickle.dumps(content))
    refused(lambda: prep.load_relevancy(path), path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 3.0])
def test_relevancy_outside_its_range(tmp_path, value):
    matrix = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    matrix[2, 3] = value
    np.save(tmp_path / "relevancy.npy", matrix)
    refused(lambda: relevancy.read(tmp_path / "relevancy.npy").row(2), tmp_path / "relevancy.npy", "outside 0..1")
    relevancy.read(tmp_path / "relevancy.npy").row(1)


def test_flipped_bytes_of_a_relevancy_file_are_never_a_bare_error(use):
    do, root = use
    path = root / RELEVANCY
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(12), *rng.integers(0, len(data), 60).tolist()]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xff]) + data[at + 1:])
        try:
            do(RELEVANCY)
        except ValueError as error:
            assert type(error) is ValueError and str(path) in str(error), (at, error)


def test_a_relevancy_without_a_sentence_for_a_clip(use):
    do, root = use
    path = root / RELEVANCY
    shape = relevancy.read(path).shape
    path.unlink()
    path.with_suffix(".pkl").write_bytes(pickle.dumps(np.zeros(shape, np.float32)))
    refused(lambda: do(RELEVANCY), path.with_suffix(".pkl"), "no sentence of a relevancy above", "P01_")


# preparation reads the tables, too

@pytest.mark.parametrize("name, action", [(f"{CHARADES}/CharadesEgo_v1_train_only1st.csv", prep.charades),
                                          (CLASSES, prep.charades), (TRAIN_CLIPS, prep.ek100), (SENTENCES, prep.ek100)],
                         ids=lambda value: str(getattr(value, "__name__", value))[-20:])
def test_preparation_names_a_damaged_table_and_leaves_no_part(copied, name, action):
    _, root = copied
    for path in root.glob(f"{EK}/relevancy/*"):
        path.unlink()
    path = root / name
    data = path.read_bytes()
    for damage, change in WHOLE_FILE.items():
        path.write_bytes(change(data))
        if (damage, name) not in HARMLESS:
            refused(lambda: action(root), path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        action(root)
    assert not [path for path in root.rglob("*") if ".part" in path.name]


def test_sentences_of_another_table(copied):
    _, root = copied
    for path in root.glob(f"{EK}/relevancy/*"):
        path.unlink()
    edited(root / SENTENCES, 2, narration_id="P99_99_0")
    refused(lambda: prep.ek100(root), root / SENTENCES, "P99_99_0", "are not in")


# clips whose times contradict their video

def pick(first, last):
    return frame_sampling.sample_frames(first, last, 4)


def test_a_clip_that_begins_before_its_video_is_read_from_its_start(project):
    """EgoClip's times are estimated from the narration's time, and may be just below 0."""
    from egokit.toy import read_frame_number
    folder = next((project / "outputs/toy/Ego4D_Chunked").iterdir())
    pixels = clips.read_chunked(folder, -0.5, 1.0, pick, 30.0)
    assert [read_frame_number(frame) for frame in pixels] == pick(0, 10).tolist()


def test_a_clip_far_beyond_its_video_is_an_error(project):
    """A moment beyond the end gives the last frame, but a minute beyond it is an error.

    Then it is another video, or one that has lost its end.
    """
    folder = next((project / "outputs/toy/Ego4D_Chunked").iterdir())  # of at most 45 s
    with pytest.raises(VideoError, match=rf"{folder}/\d\.mp4"):
        clips.read_chunked(folder, 100.0, 101.0, pick, 600.0)


def test_a_folder_or_an_unreadable_file_in_a_tables_place(use):
    do, root = use
    for name in FILES:
        path = root / name
        data = path.read_bytes()
        path.unlink()
        path.mkdir()
        with pytest.raises((OSError, ValueError), match=path.name):
            do(name)
        path.rmdir()
        path.write_bytes(data)
    if os.geteuid():  # root may read any file
        (root / EGOMCQ).chmod(0)
        with pytest.raises(PermissionError, match=r"egomcq\.json"):
            do(EGOMCQ)


def test_a_table_of_which_no_row_is_well_formed(use):
    do, root = use
    text = (root / EGOCLIP).read_text()
    (root / EGOCLIP).write_text(text.split("\n")[0] + "\n" + "7\n" * 5)
    refused(lambda: do(EGOCLIP), root / EGOCLIP, "none of its 5 rows is well formed")
    (root / EGOCLIP).write_text(text[:len(text) // 2])
    with pytest.warns(UserWarning, match="malformed rows"):
        assert 0 < len(EgoClipTable(root / EGOCLIP)) < text.count("\n")
