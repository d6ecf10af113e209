"""The embedded data set: frame numbers, pictures, tables, and reproducibility."""
import ast
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from egokit import toy
from egokit.runs.files import processes
from egokit.toy import frame_number, schedule, videos, words

SEED = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return toy.make(tmp_path_factory.mktemp("toy") / "data", seed=SEED, size="tiny")


def decode(path: Path) -> list[np.ndarray]:
    import av
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def clip_rows(root: Path) -> tuple[list[dict], int]:
    """Return the well-formed rows of egoclip.csv, and the number of malformed rows."""
    header, *lines = (root / "egoclip.csv").read_text().splitlines()
    names, good = header.split("\t"), []
    for line in lines:
        row = dict(zip(names, line.split("\t"), strict=False))
        try:
            if len(line.split("\t")) == len(names) and float(row["clip_end"]) > float(row["clip_start"]):
                good.append(row)
        except ValueError:
            pass
    return good, len(lines) - len(good)


def test_import_is_light():
    code = ("import sys, egokit.toy; "
            "assert not {'av', 'PIL', 'pandas', 'tokenizers', 'torch', 'transformers'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(toy.__file__).parents[2])


# the frame number

@pytest.mark.parametrize("number", [0, 1, 959, 2730, 4095])
def test_frame_number_roundtrip(number):
    frame_HWC = np.full((96, 128, 3), 120, np.uint8)
    frame_number.write_frame_number(frame_HWC, number)
    assert toy.read_frame_number(frame_HWC) == number


def test_wrong_strips_are_refused():
    frame_HWC = np.full((96, 128, 3), 120, np.uint8)
    with pytest.raises(ValueError, match="guard"):
        toy.read_frame_number(frame_HWC)
    frame_number.write_frame_number(frame_HWC, 77)
    with pytest.raises(ValueError):
        toy.read_frame_number(frame_HWC[:, ::-1])  # flipped
    damaged = frame_HWC.copy()
    damaged[-6:, 8 * 10:8 * 11] = 255 - damaged[-6:, 8 * 10:8 * 11]  # one bit: the parity shows it
    with pytest.raises(ValueError, match="parity"):
        toy.read_frame_number(damaged)
    grey = frame_HWC.copy()
    grey[-6:, 8 * 10:8 * 11] = 130
    with pytest.raises(ValueError):
        toy.read_frame_number(grey)
    with pytest.raises(ValueError, match="uint8"):
        toy.read_frame_number(frame_HWC.astype(np.float32))
    with pytest.raises(ValueError, match="4096"):
        frame_number.write_frame_number(frame_HWC, 4096)


def test_every_frame_is_numbered_even_resized(root, tmp_path):
    import imageio_ffmpeg
    tiny = schedule.make_schedule(SEED, "tiny")
    for corpus in ("ego4d", "ek100", "charades"):
        video = next(video for video in tiny if video.corpus == corpus)
        numbers = [toy.read_frame_number(frame_HWC) for frame_HWC in decode(root / video.path)]
        assert numbers == list(range(video.frames))
    small = tmp_path / "small.mp4"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", root / tiny[0].path, "-vf",
                    "scale=96:72", "-c:v", "libx264", "-crf", "23", small], check=True)
    frames = decode(small)
    assert frames[0].shape == (72, 96, 3)
    assert [toy.read_frame_number(frame_HWC) for frame_HWC in frames] == list(range(tiny[0].frames))


# pictures and the schedule


def test_clips_show_their_objects(root):
    """A clip shows only its narrated object, from start to end."""
    video = schedule.make_schedule(SEED, "tiny")[0]
    for scene in video.scenes:
        for before, after in zip(scene.actions, scene.actions[1:], strict=False):
            assert 0.2 <= after.start - before.stop <= 0.5
    for row in clip_rows(root)[0]:
        if row["video_uid"] == video.uid:
            shown = {videos._nearest_action(scene, now).thing.noun
                     for now in (float(row["clip_start"]), float(row["clip_end"]))
                     for scene in video.scenes if scene.start <= now < scene.stop}
            assert [*shown] == ast.literal_eval(row["tag_noun"])


def test_schedule_is_balanced():
    demo = schedule.make_schedule(0, "demo")
    train = [action for video in demo if (video.corpus, video.split) == ("ego4d", "train")
             for action in video.actions]
    assert 1350 <= len(train) <= 1650
    assert np.bincount([action.verb for action in train], minlength=8).min() > 0.1 * len(train)
    assert np.bincount([action.thing.noun for action in train], minlength=12).min() > 0.05 * len(train)
    assert all(video.frames < 4096 for video in demo)
    assert len({video.path for video in demo}) == len(demo)


# reproducibility

def test_same_seed_same_bytes(root, tmp_path):
    video = next(video for video in schedule.make_schedule(SEED, "tiny") if video.corpus == "charades")
    videos.encode(videos.draw_frames(video), tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == (root / video.path).read_bytes()
    tiny = schedule.make_schedule(SEED, "tiny")
    assert tiny == schedule.make_schedule(SEED, "tiny") != schedule.make_schedule(SEED + 1, "tiny")


def test_make_is_idempotent_resumable_and_particular(root, tmp_path):
    stamp = (root / "toy.json").stat().st_mtime_ns
    assert toy.make(root, seed=SEED, size="tiny") == root
    assert (root / "toy.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"toy\.json.*another root"):
        toy.make(root, seed=SEED + 1, size="tiny")
    with pytest.raises(ValueError, match="demo, tiny"):
        toy.make(tmp_path / "x", size="huge")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "egoclip.csv").write_text("real")
    with pytest.raises(ValueError, match="other data"):
        toy.make(tmp_path / "real", size="tiny")

    copy = tmp_path / "interrupted"
    shutil.copytree(root, copy)
    arguments = json.loads((copy / "toy.json").read_text())
    del arguments["counts"]
    (copy / "toy.json").unlink()
    (copy / "toy.unfinished.json").write_text(json.dumps(arguments))
    kept, *_, lost = [path for path in sorted(copy.rglob("*")) if path.suffix.lower() == ".mp4"]
    lost.unlink()
    nobody = f"{processes()}-{2**22 + 1}"  # above the largest process id
    lost.with_name(f".{lost.stem}.{nobody}-0badcafe.part{lost.suffix}").write_bytes(b"torn")
    modified = kept.stat().st_mtime_ns
    with pytest.raises(ValueError, match="unfinished"):
        toy.make(copy, seed=SEED + 1, size="tiny")
    toy.make(copy, seed=SEED, size="tiny")
    assert kept.stat().st_mtime_ns == modified and not (copy / "toy.unfinished.json").exists()
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    assert all((root / name).read_bytes() == (copy / name).read_bytes() for name in files)


# the tables

def test_egoclip(root):
    good, malformed = clip_rows(root)
    counts = json.loads((root / "toy.json").read_text())["counts"]
    assert (len(good), malformed) == (counts["egoclip_clips"], 5)
    assert ",".join(good[0]) == ("clip_idx,video_uid,video_dur,narration_source,narration_ind,narration_time,"
                                 "clip_start,clip_end,clip_text,tag_verb,tag_noun")
    train = {Path(video.path).stem for video in schedule.make_schedule(SEED, "tiny")
             if (video.corpus, video.split) == ("ego4d", "train")}
    for row in good:
        assert row["video_uid"] in train and (root / "Ego4D" / f"{row['video_uid']}.mp4").exists()
        start, middle, end = (float(row[key]) for key in ("clip_start", "narration_time", "clip_end"))
        assert 0 <= start < middle < end <= float(row["video_dur"]) and 1.2 <= end - start <= 2.6
        (verb,), (noun,) = ast.literal_eval(row["tag_verb"]), ast.literal_eval(row["tag_noun"])
        assert toy.NOUNS[noun] in row["clip_text"]
        assert any(words._phrase(verb, form, "").split()[0] in row["clip_text"].split() for form in range(3))
    styled = np.mean([row["clip_text"].startswith("#C C ") for row in good])
    assert 0.8 < styled < 1, "a few are narrated as in the other data sets"
    assert {row["narration_source"] for row in good} == {"narration_pass_1", "narration_pass_2"}


def test_egomcq(root):
    questions = json.loads((root / "egomcq.json").read_text())
    test = {video.uid for video in schedule.make_schedule(SEED, "tiny")
            if (video.corpus, video.split) == ("ego4d", "test")}
    verb_only = {1: 0, 2: 0}
    for question in questions.values():
        choices = list(question["choices"].values())
        assert list(question["choices"]) == ["0", "1", "2", "3", "4"]
        assert choices[question["answer"]] == question["query"]
        assert len({clip["clip_text"] for clip in choices}) == 5
        assert len({(clip["tag_verb"][0], clip["tag_noun"][0]) for clip in choices}) == 5
        uids = {clip["video_uid"] for clip in choices}
        assert uids <= test and len(uids) == {1: 5, 2: 1}[question["types"]]
        if len({clip["tag_noun"][0] for clip in choices}) == 1:
            verb_only[question["types"]] += 1
    types = [question["types"] for question in questions.values()]
    for kind in (1, 2):
        assert 0 < verb_only[kind] < types.count(kind) / 3
    answers = np.bincount([question["answer"] for question in questions.values()], minlength=5)
    assert np.ptp(answers) <= 1 + len(types) // 20


def test_ek100(root):
    from egokit.data.annotation_tables import EK100_ANNOTATIONS
    for split in ("train", "test"):
        with open(root / EK100_ANNOTATIONS / f"EPIC_100_retrieval_{split}.csv") as file:
            clips = {row["narration_id"]: row for row in csv.DictReader(file)}
        with open(root / EK100_ANNOTATIONS / f"EPIC_100_retrieval_{split}_sentence.csv") as file:
            sentences = list(csv.DictReader(file))
        narrations = {row["narration"] for row in clips.values()}
        assert sorted(row["narration"] for row in sentences) == sorted(narrations)
        assert all(clips[row["narration_id"]]["narration"] == row["narration"] for row in sentences)
        assert ("verb_class" in sentences[0]) == (split == "train")
        for row in clips.values():
            assert (root / f"EK100/video_ht256px/{row['participant_id']}/{row['video_id']}.MP4").exists()
            nouns = ast.literal_eval(row["all_nouns"])
            assert [toy.NOUNS[i] for i in ast.literal_eval(row["all_noun_classes"])] == nouns
            assert all(noun in row["narration"] for noun in nouns) and nouns[0] == row["noun"]
            assert row["start_timestamp"] < row["narration_timestamp"] < row["stop_timestamp"]
            hours, minutes, seconds = row["stop_timestamp"].split(":")
            assert (hours, minutes) == ("00", "00") and len(seconds) == 5
            assert abs(int(row["stop_frame"]) - 10 * float(seconds)) <= 1


def test_charades(root):
    folder = root / "CharadesEgo/CharadesEgo"
    lines = (folder / "Charades_v1_classes.txt").read_text().splitlines()
    classes = {line[:4]: line[5:] for line in lines}
    assert len(classes) == 24 and list(classes)[23] == "c023"
    assert all(any(noun in text.split() for text in classes.values()) for noun in toy.NOUNS)
    for split in ("train", "test"):
        with open(folder / f"CharadesEgo_v1_{split}_only1st.csv") as file:
            rows = list(csv.DictReader(file))
        assert any(not row["actions"] for row in rows) == (split == "test")
        for row in rows:
            assert (root / f"CharadesEgo/CharadesEgo_v1_480/{row['id']}.mp4").exists()
            for action in filter(None, row["actions"].split(";")):
                name, start, stop = action.split()
                assert name in classes and 0 <= float(start) < float(stop) <= float(row["length"])


def test_tokenizer(root):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    assert {path.name for path in (root / "tokenizer").iterdir()} == {
        "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    sentences = words.all_sentences()
    for sentence, ids in zip(sentences, tokenizer(sentences)["input_ids"], strict=True):
        assert ids[0] == 0 and ids[-1] == 2 and len(ids) <= 15
        assert len(ids) - 2 <= len(sentence.split()) + 3  # a token a word, or two: "#C", and verbs as stem and ending
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == sentence
    assert tokenizer("picks <mask> up")["input_ids"].count(tokenizer.mask_token_id) == 1
