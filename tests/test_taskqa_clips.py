"""EgoTaskQA's clips in three forms, all of real files; patterns, damage, and what the doctor says of a site."""
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from taskqa_site import CLIPS, SIZE, make_clips, make_questions, make_videos, number_of, picture, write_video

from egokit import tasks
from egokit.config.build import ConfigError
from egokit.data.site_checks import Checks
from egokit.data.video import frame_sampling
from egokit.data.video.timeline import VideoError
from egokit.tasks.taskqa.annotations import ClipName
from egokit.tasks.taskqa.clips import ClipFiles

CUT, WHOLE, FRAMES = ("EgoTaskQA/qa_videos/{clip}.mp4", "LEMMA/{video}/{view}.mp4",
                      "LEMMA/{video}/{view}/img_{frame:05d}.jpg")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    make_clips(root)
    make_videos(root)
    make_questions(root / "EgoTaskQA/qa")
    return root


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("frames", [4, 16, 100])
def test_three_forms_give_the_same_frames(root, name, frames):
    clip = ClipName.parse(name)
    length = clip.stop - clip.start
    expected = clip.start + frame_sampling.pad_indices(frame_sampling.whole_video(length, frames), frames)
    for pattern in (CUT, WHOLE, FRAMES):
        pixels = ClipFiles(root, pattern).read(name, frames)
        assert pixels.shape == (frames, SIZE, SIZE, 3) and pixels.dtype == np.uint8
        assert np.abs(number_of(pixels) - expected).max() <= 1, pattern
        corners = pixels[:, 4, 4].mean(-1), pixels[:, -5, -5].mean(-1)
        assert all(((corner > 128) == white).all() for corner, white in
                   zip(corners, (clip.person == 2, clip.video == "room-2"), strict=True)), pattern
        drawn = [number_of(ClipFiles(root, pattern).read(name, 4, np.random.default_rng(seed))) for seed in range(3)]
        assert len(np.unique(drawn, axis=0)) > 1
        assert all(np.abs(number - (clip.start + frame_sampling.whole_video(
            length, 4, np.random.default_rng(seed)))).max() <= 1 for seed, number in enumerate(drawn))


def test_a_video_of_another_rate_is_read_by_time(tmp_path):
    """At 30 frames a second, second 1.5 to 4 are the frames 45 to 119."""
    write_video(tmp_path / "LEMMA/room-1/fpv1.mp4", (picture("room-1", 1, number) for number in range(120)), rate=30)
    pixels = ClipFiles(tmp_path, WHOLE).read("room-1|P1|36|96", 4)
    middles = 36 + frame_sampling.whole_video(60, 4)
    assert np.abs(number_of(pixels) - middles * 30 // 24).max() <= 1


def test_clips_that_go_on_after_their_video(root):
    """Frame numbers of annotations are imprecise by up to 5 s; later ones are of another video."""
    files = ClipFiles(root, WHOLE)
    assert np.abs(number_of(files.read("room-1|P1|100|150", 2)) - [104, 114]).max() <= 1
    assert np.abs(number_of(files.read("room-1|P1|130|150", 2)) - [119, 119]).max() <= 1
    with pytest.raises(VideoError, match=r"fpv1.mp4: a clip begins at 41.67 s, but the video ends at 5.00 s"):
        files.read("room-1|P1|1000|1100", 2)
    with pytest.raises(FileNotFoundError, match=r"img_00123.jpg is missing, and so are 8 of"):
        ClipFiles(root, FRAMES).read("room-1|P1|100|150", 16)


@pytest.mark.parametrize("pattern", [
    "{clip", "{}.mp4", "{0}.mp4", "{clip}/{nothing}.mp4", "{clip.__class__}.mp4", "{clip[0]}.mp4", "{clip!r}.mp4",
    "{clip:>40}.mp4", "a.mp4", "{video}.mp4", "{view}/{video}/{clip}.mp4", "{clip}/img_{frame:05d}.jpg",
    "{video}/{view}/img_{frame:99999999d}.jpg", "{video}/{view}/img_{frame:5d}.jpg",
    "{video}/{view}/{frame:{clip}}.jpg", ""])
def test_patterns_that_name_no_clip(tmp_path, pattern):
    with pytest.raises(ConfigError, match=r"task.clips is .*expected one of .*\{clip\}.*\{frame\}") as caught:
        ClipFiles(tmp_path, pattern)
    assert len(str(caught.value).splitlines()) == 1


def test_names_stay_under_the_root(tmp_path):
    files = ClipFiles(tmp_path, FRAMES)
    for name in ("../../etc|P1|0|9", "a/b|P1|0|9", "{video}/x|P1|0|9"):
        with pytest.raises(ValueError, match="expected"):
            files.path(name)
    assert files.path("{clip}|P2|0|9", 41) == tmp_path / "LEMMA/{clip}/fpv2/img_00042.jpg"
    assert files.folder == tmp_path / "LEMMA" and ClipFiles(tmp_path, "{clip}.mp4").folder == tmp_path


def picture_site(root, damage):
    folder = root / "LEMMA/v/fpv1"
    folder.mkdir(parents=True)
    for number in range(1, 9):
        Image.fromarray(picture("room-1", 1, number)).save(folder / f"img_{number:05d}.jpg")
    damage(folder / "img_00003.jpg")
    return ClipFiles(root, FRAMES)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:200])


def huge(path):
    Image.new("L", (9000, 9000)).save(path)


def thin(path):
    Image.new("L", (6000, 10)).save(path)


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage, error, reason", [
    (cut_off, VideoError, "no whole picture"), (huge, VideoError, "9000 x 9000 pixels"),
    (thin, VideoError, "6000 x 10"), (lambda path: path.write_bytes(b""), VideoError, "no whole picture"),
    (lambda path: path.write_text("text"), VideoError, "no whole picture"),
    (lambda path: path.unlink(), FileNotFoundError, "is missing, and so are 0"),
    (a_folder, FileNotFoundError, "is missing"),
    (lambda path: Image.new("RGB", (9, 9)).save(path, format="GIF"), VideoError, "no whole picture")])
def test_damaged_pictures_are_named(tmp_path, damage, error, reason):
    files = picture_site(tmp_path, damage)
    with pytest.raises(error, match=rf"img_00003.jpg.*{reason}") as caught:
        files.read("v|P1|0|8", 8)
    assert len(str(caught.value).splitlines()) == 1
    assert files.read("v|P1|3|8", 4).shape == (4, SIZE, SIZE, 3)  # clips beside it can be read


def test_pictures_of_other_sizes_and_kinds_become_the_first_ones(tmp_path):
    files = picture_site(tmp_path, lambda path: Image.new("L", (100, 50), 77).save(path, format="PNG"))
    pixels = files.read("v|P1|0|8", 8)
    assert pixels.shape == (8, SIZE, SIZE, 3) and abs(int(pixels[2, 32, 32, 0]) - 77) < 2


def findings(root, resolve_recipe, overrides=""):
    from egokit.config.resolve import resolve
    config = resolve(resolve_recipe, "tiny", f"site.root={root} {overrides}")
    return list(tasks.find("egotaskqa").check_site(Checks(config)))


@pytest.mark.parametrize("pattern", [CUT, WHOLE, FRAMES])
def test_the_doctor_counts_and_finds_all(project, root, pattern):
    found = findings(root, "egotaskqa_direct", f"task.clips={pattern}")
    assert {finding.state for finding in found} == {"ok", "note"}
    text = "\n".join(f"{finding.what}: {finding.message}" for finding in found)
    assert "direct/formatted_train_qas_encode.json: 11 questions (6 open, 5 binary) about 5 clips, 7 answers" in text
    assert text.count("2 questions have an answer that is not in the vocabulary") == 2
    assert ("all 4 videos" if pattern == WHOLE else "all 5") in text


def test_the_doctor_says_what_is_missing(project, root, tmp_path):
    empty = findings(tmp_path, "egotaskqa_direct")
    assert {finding.state for finding in empty} == {"missing"} and all("egotaskqa" in each.fix for each in empty)
    make_questions(tmp_path / "EgoTaskQA/qa", splits=("direct",))
    path = tmp_path / "EgoTaskQA/qa/direct/formatted_test_qas_encode.json"
    entries = json.loads(path.read_text())
    entries[2]["answer_encode"] = 99
    path.write_text(json.dumps(entries))
    for pattern, lacks in ((CUT, "5 videos that are not under qa_videos/"),
                           (FRAMES, "5 of 5 clips lack their first or last")):
        found = findings(tmp_path, "egotaskqa_direct", f"task.clips={pattern}")
        wrong = [finding for finding in found if finding.state == "wrong"]
        assert len(wrong) == 2 and lacks in wrong[1].message and "qa_videos.tgz" in wrong[1].fix
        assert "question 2" in wrong[0].message and "99" in wrong[0].message
    other = findings(root, "toy/egomcq")  # another task's config: the defaults hold
    assert {finding.state for finding in other} == {"ok", "note"}


def test_inputs_are_what_a_job_needs(project, root):
    from egokit.config.resolve import resolve
    task = tasks.find("egotaskqa")
    config = resolve("egotaskqa_indirect", "tiny", f"site.root={root} task.clips={WHOLE}")
    files = [*(f"formatted_{split}_qas_encode.json" for split in ("train", "val", "test")), "answer_set.txt"]
    assert list(task.inputs(config, "train")) == [*(f"EgoTaskQA/qa/indirect/{name}" for name in files), "LEMMA"]
    assert all((root / name).exists() for action in ("train", "evaluate") for name in task.inputs(config, action))
    elsewhere = dataclasses.replace(config, task=dataclasses.replace(config.task, clips=f"{root}/x/{{clip}}.mp4"))
    assert list(task.inputs(elsewhere, "evaluate"))[-1] in ("x", f"{root}/x")
    assert "formatted_val_qas_encode.json" not in "".join(task.inputs(config, "evaluate"))
