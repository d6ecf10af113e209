"""Damaged videos in preparation, the doctor, training, evaluation, extraction: an error or a count, never a score."""
import dataclasses
import shutil
from pathlib import Path

import damage
import pytest
import torch
from conftest import MODEL, rarest

from egokit import prep, tasks
from egokit.data.video import frame_sampling, open_video
from egokit.model import weights
from egokit.prep import doctor
from egokit.runs.run_folder import Run
from egokit.tasks.egoclip import Clips
from egokit.train import evaluate, loop


@pytest.fixture(scope="module")
def piece(project):
    return damage.toy_piece(project)


@pytest.fixture(scope="module")
def files(piece, tmp_path_factory):
    return damage.make(piece, tmp_path_factory.mktemp("damaged"))


# one file of each kind, none of which a reader can take for undamaged
BAD = ("cut-first-0.5", "zeros-mdat-0.6-4000", "cut-first-0", "html", "audio", "h264", "more-all-300", "other-codec",
       "flipped-anywhere-10000-1", "no-keyframes")


def leftovers(root: Path) -> list[str]:
    return [str(path) for path in root.rglob("*") if ".part" in path.name]


def test_preparation_lists_what_is_damaged_and_does_the_rest(files, piece, tmp_path):
    source, root = tmp_path / "full", tmp_path / "root"
    source.mkdir()
    bad = {*BAD, "zeros-all", "png", "durations-zero", "flipped-mdat-50-0"} - {"h264"}  # ffmpeg converts that one
    for name in bad:
        shutil.copy(files[name], source / f"{name}.mp4")
    shutil.copy(piece, source / "good.mp4")
    shutil.copy(piece, source / "100%d good.mp4")
    (source / "dangling.mp4").symlink_to(source / "gone.mp4")
    (source / "folder.mp4").mkdir()
    manifest = prep.ego4d(root, 72, 30, source=source, workers=1, progress=False)
    failed = {line["uid"]: line["reason"] for line in manifest["lines"] if line["status"] != "ok"}
    past = "zeros-mdat-0.6-4000"  # one glitch: read past, and named
    line = next(line for line in manifest["lines"] if line["uid"] == past)
    assert line["status"] == "ok" and 0 < line["source"]["damaged"] < 50 and line["source"]["damaged_times"]
    assert failed.keys() == bad - {past} | {"dangling", "folder"}
    assert {uid: reason for uid, reason in failed.items() if f"{source / uid}.mp4" not in reason} == {}
    assert leftovers(root) == []
    # a failed video must leave nothing there, as it would be trained on
    made = [path for folder in ("Ego4D_256", "Ego4D_Chunked") for path in (root / folder).iterdir()]
    prepared = {path.name.removesuffix(".mp4") for path in made}
    assert prepared == {"good", "100%d good", past}


@pytest.mark.slow
def test_preparation_of_every_damaged_file(files, tmp_path):
    """No file raises or leaves a .part, and a video that has lost frames is not called done."""
    source = tmp_path / "full"
    source.mkdir()
    for name, path in files.items():
        if path.is_file():
            shutil.copy(path, source / f"{name}.mp4")
    manifest = prep.ego4d(tmp_path / "root", 72, 30, source=source, workers=2, progress=False)
    assert manifest["videos"] + len(manifest["failed"]) == len(list(source.iterdir()))
    assert [reason for reason in manifest["failed"] if str(source) not in reason] == []
    assert leftovers(tmp_path / "root") == []
    done = {line["uid"]: line["resized"]["frames"] for line in manifest["lines"] if line["status"] == "ok"}
    assert {uid: frames for uid, frames in done.items() if frames < 0.95 * 300} == {}
    for uid, frames in done.items():
        assert open_video.open_video(tmp_path / "root/Ego4D_256" / f"{uid}.mp4").length == frames


@pytest.mark.parametrize("name", BAD)
def test_the_doctor_finds_damaged_videos(files, resolve, copied, name):
    on_copy, root = copied
    places = [next((root / "Ego4D_Chunked").glob("*/0.mp4")), next(root.glob("EK100/video_ht256px/*/*.MP4")),
              next(root.glob("CharadesEgo/CharadesEgo_v1_480/*.mp4")), next((root / "Ego4D_256").glob("*.mp4"))]
    for place in places:
        shutil.copy(files[name], place)
    findings = doctor.examine(on_copy(resolve()), 0, ("egoclip", "egomcq", "ek100", "charades", "mq"))
    assert [finding for finding in findings if finding.what == "check"] == []
    # these can be opened; only reading them shows the damage
    if name not in ("more-all-300", "zeros-mdat-0.6-4000", "cut-first-0.5", "no-keyframes", "h264"):
        messages = " ".join(finding.message for finding in findings if finding.state == "wrong")
        assert all(str(place) in messages for place in places if place.name != "0.mp4"), messages


@pytest.fixture
def attempt(resolve, copied, tmp_path):
    """Return (prepared, root, on_copy), to train a few steps on a copy of the toy.

    `prepared(name, overrides)` gives (run, a function that trains it); `root` is the copy's root.
    """
    on_copy, root = copied

    def prepared(name: str, overrides: str):
        config = on_copy(resolve(overrides=f"{MODEL} data.limit=0 train.batch_size=20 train.precision=fp32 "
                                           f"{overrides}"))
        run = Run(tmp_path / name)
        return run, lambda: loop.train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
    return prepared, root, on_copy


@pytest.mark.parametrize("name", ["cut-first-0", "other-codec", "html"])
def test_training_on_damaged_pieces_stops_naming_one(files, attempt, name):
    prepared, root, _ = attempt
    pieces = [path for path in (root / "Ego4D_Chunked").glob("*/*.mp4")]
    for path in pieces:
        shutil.copy(files[name], path)
    # EgoMCQ validates before the first step: the error may be about one of its videos
    with pytest.raises(open_video.VideoError, match=rf"{root}/Ego4D_Chunked/[\w-]+/\d\.mp4: "):
        prepared("strict", "data.workers=0")[1]()


@pytest.mark.slow
def test_training_with_a_share_of_damaged_pieces_counts_them(files, attempt, resolve):
    prepared, root, on_copy = attempt
    table = Clips(tasks.make(on_copy(resolve(overrides=MODEL)))).table
    uid = rarest(table)
    for name in BAD:
        shutil.copy(files[name], root / "Ego4D_Chunked" / uid / "0.mp4")
        run, go = prepared(name, "data.workers=0 data.max_bad_fraction=0.9 data.limit=40")
        metrics = go()
        bad = [event["said"] for event in run.read_log() if event["kind"] == "bad"]
        assert metrics["bad_samples"] == len(bad) and all(f"{uid}/0.mp4" in message for message in bad), name
        # some frames of these are undamaged, and a raw stream can be read
        if name not in ("more-all-300", "zeros-mdat-0.6-4000", "cut-first-0.5", "h264"):
            assert bad, name
        steps = [event["step"] for event in run.read_log() if event["kind"] == "step"]
        assert steps == list(range(1, metrics["steps"] + 1))


EVALUATED = {"egomcq": ("Ego4D_Chunked", "*/0.mp4"), "ek100_finetune": ("EK100/video_ht256px", "*/*.MP4"),
             "charades_finetune": ("CharadesEgo/CharadesEgo_v1_480", "*.mp4")}

LOST = ("cut-first-0.3", "html", "half-of-mdat", "flipped-mdat-50-0")


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("recipe", EVALUATED)
def test_evaluation_on_damaged_videos_is_an_error_and_no_score(files, resolve, copied, monkeypatch, recipe, name):
    on_copy, root = copied
    folder, pattern = EVALUATED[recipe]
    for path in (root / folder).glob(pattern):
        shutil.copy(files[name], path)
    config = dataclasses.replace(on_copy(resolve(f"toy/{recipe}", MODEL)), init="")
    model = weights.initial_model(config)
    with pytest.raises(open_video.VideoError, match=rf"{root / folder}/[\w/.-]+\.(mp4|MP4): "):
        evaluate.evaluate(model, tasks.make(config))


@pytest.mark.parametrize("name", LOST)
def test_extraction_on_damaged_videos_is_an_error_and_leaves_no_features(files, resolve, copied, tmp_path, name):
    on_copy, root = copied
    for path in (root / "Ego4D_256").glob("*.mp4"):
        shutil.copy(files[name], path)
    config = dataclasses.replace(on_copy(resolve("toy/egomq", MODEL)), init="")
    run = Run(tmp_path / "run")
    with pytest.raises(open_video.VideoError, match=rf"{root}/Ego4D_256/[\w-]+\.mp4: "):
        tasks.make(config).extract(weights.initial_model(config).eval(), run)
    assert not (run.path / "features").exists() and run.metrics() == {}


@pytest.mark.parametrize("recipe, split, pattern", [
    ("ek100_finetune", "test", "EK100/video_ht256px/*/*.MP4"),
    ("charades_finetune", "train", "CharadesEgo/CharadesEgo_v1_480/*.mp4"),
    ("egomq", "", "Ego4D_256/*.mp4"),
    ("egomcq", "test", "Ego4D_Chunked/*/0.mp4")])
def test_a_whole_video_that_is_far_too_short_is_an_error(piece, resolve, copied, tmp_path, monkeypatch, recipe, split,
                                                         pattern):
    """It is another video, or its header has lost frames: its last frame was not annotated."""
    monkeypatch.setattr(frame_sampling, "LATE", 1.0)  # the toy's videos are short
    on_copy, root = copied
    # a keyframe, the eighth frame after it, and those between
    damage.remuxed(piece, tmp_path / "short.mp4", lambda number, key: number < 9)
    for path in root.glob(pattern):
        shutil.copy(tmp_path / "short.mp4", path)
    task = tasks.make(dataclasses.replace(on_copy(resolve(f"toy/{recipe}", MODEL)), init=""))
    message = rf"{root}/.*(begins|ends) at [\d.]+ s, but the video ends at 0.90 s"
    with pytest.raises(open_video.VideoError, match=message):
        if split:
            dataset = task.dataset(split)
            [dataset[0, i] for i in range(len(dataset))]
        else:
            task.extract(weights.initial_model(task.config).eval(), Run(tmp_path / "run"))
