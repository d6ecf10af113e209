"""The embedded data set's clips and questions of EgoTaskQA."""
import collections
import json

import numpy as np
import pytest

from egokit import toy
from egokit.tasks.taskqa import annotations, vocabulary
from egokit.toy import schedule, task_questions, words

SEED = 3
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy") / "data", seed=SEED, size="tiny")


def rows_of(root, split: str, file: str) -> list[dict]:
    return json.loads((root / f"EgoTaskQA/qa/{split}/formatted_{file}_qas_encode.json").read_text())


def test_clips_are_cut_where_their_names_say(root):
    """A cut file's pictures carry the numbers that they have in the video."""
    import av
    paths = sorted((root / "EgoTaskQA/qa_videos").iterdir())
    listed = {row["interval"] for file in SPLITS for row in rows_of(root, "direct", file)}
    assert {path.stem for path in paths} == listed
    for path in paths[::5]:
        name = annotations.ClipName.parse(path.stem)
        with av.open(str(path)) as container:
            numbers = [toy.read_frame_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        assert numbers == list(range(round(name.start / 2.4), round(name.stop / 2.4)))
        assert (root / f"Ego4D/{name.video}.mp4").exists() and name.view == "fpv1"


def test_answers_are_true_of_the_clips(root):
    """Every answer follows from the actions that the schedule has in the clip, and from nothing else."""
    of_video = {video.uid: video for video in schedule.make_schedule(SEED, "tiny")}
    kinds = collections.Counter()
    for file in SPLITS:
        for number, row in enumerate(rows_of(root, "direct", file)):
            if file == "val" and number < 2:
                continue  # spoilt: see test_two_answers_of_validation_are_in_no_vocabulary
            name = annotations.ClipName.parse(row["interval"])
            video = of_video[name.video]
            assert (video.split == "train") == (file == "train")
            within = [action for action in video.actions
                      if name.start / 24 - 0.1 <= action.start and action.stop <= name.stop / 24 + 0.1]
            meanings = [(action.verb, action.thing.noun, action.thing.colour) for action in within]
            first = row["reference"] == "indirect"
            asked = meanings[:1] if first else meanings
            said = [(kind, meaning) for kind in ("action", "object", "state") for meaning in asked
                    if row["question"] == words.task_question(kind, *meaning, first)]
            values = {"action": 0, "object": 1, "state": 2}
            named = (words.VERBS, words.NOUNS, words.COLOURS)
            if row["structural"] == "verify":
                true = {words.task_question("binary", *meaning, first) for meaning in asked}
                assert (row["question"] in true) == (row["answer"] == "yes")
            elif row["type"] == ["predictive"]:
                coming = min((action for action in video.actions if action.start > within[-1].stop),
                             key=lambda action: action.start)
                assert row["answer"] == words.NOUNS[coming.thing.noun] and name.stop / 24 < coming.stop
            else:
                assert {named[values[kind]][meaning[values[kind]]] for kind, meaning in said} == {row["answer"]}
            kinds[(*row["type"], row["semantic"], row["structural"], row["reference"])] += 1
    assert len(kinds) == 9 and min(kinds.values()) >= 3, kinds


def test_files_are_read_as_the_real_ones(root):
    for split in ("direct", "indirect"):
        folder = root / "EgoTaskQA/qa" / split
        answers = vocabulary.read(folder / vocabulary.FILE)
        labels = (folder / "all_reasoning_types.txt").read_text().split()
        for file in SPLITS:
            rows = rows_of(root, split, file)
            questions = annotations.read_questions(folder / annotations.file_of(file), len(answers))
            assert [question.answer for question in questions] == [row["answer_encode"] for row in rows]
            encoded = vocabulary.encode([row["answer"] for row in rows], answers, as_written=file != "train")
            assert encoded == [row["answer_encode"] for row in rows]
            assert {label for question in questions for label in question.labels} <= set(labels)
            assert all(row["reasoning_type"].split("$") == [*row["type"], *row["category"], row["semantic"],
                                                            row["structural"], row["reference"]] for row in rows)
    train, val, test = (rows_of(root, "indirect", file) for file in SPLITS)
    assert {row["reference"] for row in val + test} == {"indirect"}
    asked = {row["question"] for row in train if row["reference"] == "indirect"}
    assert asked == {"What is the hand doing first?"} and len(val) >= 5 and abs(len(val) - len(test)) <= 1
    orders = [vocabulary.read(root / f"EgoTaskQA/qa/{split}/answer_set.txt") for split in ("direct", "indirect")]
    assert orders[0] != orders[1] and set(orders[0]) == set(orders[1])


def test_two_answers_of_validation_are_in_no_vocabulary(root):
    first, second = rows_of(root, "direct", "val")[:2]
    assert first["answer"].lower() in {*words.VERBS, *words.NOUNS, *words.COLOURS} and first["answer"][0].isupper()
    assert second["answer"].startswith("not the ")
    assert first["answer_encode"] == second["answer_encode"] == vocabulary.UNKNOWN


def test_questions_are_short_for_the_tokenizer(root):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    questions = [row["question"].lower() for file in SPLITS for row in rows_of(root, "direct", file)]
    assert max(map(len, tokenizer(questions)["input_ids"])) <= 30


@pytest.mark.parametrize("seed", range(2))
def test_the_demo_has_enough_balanced_questions(tmp_path, seed):
    videos = schedule.make_schedule(seed, "demo")
    clips = task_questions.draw_clips(seed, videos, "demo")
    assert clips == task_questions.draw_clips(seed, videos, "demo")
    task_questions.write_egotaskqa(tmp_path, seed, clips)
    for file, fewest in (("train", 2000), ("val", 150), ("test", 400)):
        rows = rows_of(tmp_path, "direct", file)
        said = [row["answer"] for row in rows if row["structural"] == "verify"]
        assert len(rows) > fewest and abs(said.count("yes") - said.count("no")) <= 1
        assert 0.2 < len(said) / len(rows) < 0.4
        assert sum(row["answer_encode"] == vocabulary.UNKNOWN for row in rows) == (2 if file == "val" else 0)
        colours = collections.Counter(row["answer"] for row in rows if row["semantic"] == "state")
        assert len(colours) >= 5 and max(colours.values()) < 0.5 * sum(colours.values())
    lengths = [(clip.end - clip.first) / schedule.FPS for clip in clips]
    assert min(lengths) >= 1 and max(lengths) < 6 and np.mean([len(clip.actions) for clip in clips]) > 1.2
