"""A hundred damaged videos: nothing hangs, nothing ends a run without naming the file, and no picture is made up.

The files and what a reader makes of each, in a process that may die: damage.py. Damaged tables: test_damaged_tables.py.
"""
import dataclasses
import faulthandler
import os
import shutil
import signal
import time
from pathlib import Path

import damage
import decord  # noqa: F401  (before any process is forked: Python 3.11 now and then fails to import in a new one)
import numpy as np
import pytest
import torch
from conftest import MODEL, rarest

from egokit import prep, tasks
from egokit.data import loader
from egokit.data.video import clips, frame_sampling, open_video
from egokit.prep import doctor
from egokit.runs.run_folder import Run
from egokit.tasks.egoclip import Clips
from egokit.train import evaluate, loop

GARBLED = 2.0  # levels of 255, on average over a frame: what shows
# names of files in which some pictures are lost while the tables are right: nothing but a checksum tells of every flipped bit
PICTURES = ("flipped-mdat", "flipped-anywhere")
TABLES_OF_TIMES = ("flipped-moov-", "zeros-moov-")


@pytest.fixture(scope="module")
def piece(project):
    """A prepared piece of 300 frames."""
    return max((project / "outputs/toy/Ego4D_Chunked").glob("*/0.mp4"), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def files(piece, tmp_path_factory):
    made = damage.make(piece, tmp_path_factory.mktemp("damaged"))
    assert len(made) >= 100
    return made


@pytest.fixture(scope="module")
def read(files, piece, tmp_path_factory):
    """reader -> what it makes of every file; once each."""
    found = {}

    def by(reader):
        if reader not in found:
            found[reader] = damage.probe(files, piece, reader, 10.0, tmp_path_factory.mktemp("logs") / reader)
        return found[reader]
    return by


def test_nothing_hangs_and_nothing_dies(read, files):
    found = read("pyav")
    assert found.keys() == files.keys()
    assert {name: one for name, one in found.items() if "died" in one or one["seconds"] > 5} == {}


@pytest.mark.slow
def test_decord_hangs_or_dies_at_two_files_only(read):
    """Which is why it is not the default reader, and is best used with loader processes: see NATIVE."""
    assert {name for name, one in read("decord").items() if "died" in one} <= {*NATIVE, "durations-zero"}


@pytest.mark.parametrize("reader", ["pyav", pytest.param("decord", marks=pytest.mark.slow)])
def test_every_error_is_ours_and_names_the_file(read, files, reader):
    wrong = [(name, *error) for name, one in read(reader).items() for error in one.get("errors", ())
             if error[1] not in ("VideoError", "Untimed", "FileNotFoundError") or str(files[name]) not in error[2]]
    assert wrong == []


def test_a_frame_beyond_the_end_is_an_error(read):
    assert [name for name, one in read("pyav").items() if one.get("length") is not None
            and one["length"] not in [index for index, _, _ in one["errors"]]] == []


def test_no_picture_is_made_up(read):
    """Of files whose tables or packets are missing or contradict each other: the right frame, or an error."""
    made_up = {name: bad for name, one in read("pyav").items() if not name.startswith((*PICTURES, *TABLES_OF_TIMES))
               and (bad := [frame for frame in one["frames"] if frame[1] != 0 or frame[2] > GARBLED])}
    assert made_up == {}


def test_frames_whose_times_are_damaged_are_seldom_taken_for_others(read):
    """A table of times whose bits are flipped may name other frames, consistently: only a pass over the file could tell."""
    got = [frame for name, one in read("pyav").items() if name.startswith(TABLES_OF_TIMES) for frame in one["frames"]]
    wrong = [frame for frame in got if frame[1] != 0 or frame[2] > GARBLED]
    assert len(got) > 20 and len(wrong) <= 0.15 * len(got), (len(wrong), len(got), wrong)


def test_pictures_that_the_decoder_conceals_are_errors(read):
    """Flipped bits in packets: decoders go on with grey or repeated pictures. Almost all of these must be errors."""
    got = [frame for name, one in read("pyav").items() if name.startswith(PICTURES) for frame in one["frames"]]
    garbled = [frame for frame in got if frame[1] != 0 or frame[2] > GARBLED]
    assert len(got) > 50 and len(garbled) <= 0.05 * len(got), (len(garbled), len(got), garbled)


@pytest.mark.parametrize("name", ["mkv", "twice"])
def test_whole_videos_under_another_name_are_read(read, name):
    assert [frame[1:] for frame in read("pyav")[name]["frames"]] == [[0, 0.0]] * 8


@pytest.mark.parametrize("name", ["text", "html", "png", "jpeg", "audio", "zeros-all"])
def test_what_is_no_video_is_not_opened(read, name):
    assert read("pyav")[name]["length"] is None


class Files(loader.Samples):
    """Frames of each file, read in a loader process."""

    def __init__(self, paths: list[Path], reader: str, tolerant: bool = False):
        self.paths, self.reader, self.tolerant = paths, reader, tolerant
        super().__init__(len(paths), 0, train=True)

    def read(self, index: int, rng) -> dict:
        pixels = clips.read(self.paths[index], lambda length, fps: np.array([0, length // 2, length - 1]), self.reader)
        return {"pixels": torch.from_numpy(pixels.copy()), "index": index}


def loaded(dataset: loader.Samples, workers: int, timeout: float = 3.0) -> list[dict]:
    batches = [[(0, i)] for i in range(len(dataset))]
    return list(loader.build_loader(dataset, batches, torch.utils.data.default_collate, workers, timeout))


# what decord 0.6 does natively; at durations-zero it may never return (where depends on the encoding): test_loading.py has such readers
NATIVE = {"more-stts-2G": r"its reader ended the loader process \(Aborted\)"}


@pytest.fixture
def fresh(monkeypatch):
    """No file avoided before, and none afterwards."""
    monkeypatch.setattr(open_video, "unreadable", set())


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_a_reader_that_hangs_or_dies_natively_ends_a_strict_run_by_naming_the_file(files, piece, fresh, name):
    began = time.monotonic()
    with pytest.raises(open_video.VideoError, match=rf"^{files[name]}: {NATIVE[name]}.*max_bad_fraction"):
        loaded(Files([piece, files[name], piece], "decord"), 1)
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_tolerant_run_goes_on_past_files_at_which_the_reader_hangs_or_dies(files, piece, fresh):
    dataset = Files([piece, *(files[name] for name in NATIVE), *[piece] * 8], "decord", tolerant=True)
    batches = loaded(dataset, 1)
    assert [int(batch["index"]) in (0, *range(2, 10)) for batch in batches] == [True] * len(dataset)
    said = [line for batch in batches for line in batch.get("bad", ())]
    assert {name for name in NATIVE for line in said if str(files[name]) in line} == NATIVE.keys()


class Ending(loader.Samples):
    """A process that ends with a signal while it reads a file."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(1, 0, train=True)

    def read(self, index: int, rng) -> dict:
        open_video.on_open("videos/a.mp4")
        faulthandler.disable()  # pytest's, which would write a traceback
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_the_file_at_which_a_loader_process_ended_is_named(number):
    with pytest.raises(open_video.VideoError, match=r"^videos/a\.mp4: its reader ended the loader process "
                                                        r"\((Aborted|Segmentation fault)\)"):
        loaded(Ending(number), 1)


def test_a_process_that_the_kernel_killed_is_not_the_files_fault():
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|Killed") as caught:
        loaded(Ending(signal.SIGKILL), 1)
    assert "a.mp4" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_overreporting_files_through_a_loader(files, fresh, reader):
    """Whatever the reader does natively: the middle frame that the container promises, or an error that names the file."""
    for name in (name for name in files if name.startswith("more-")):
        try:
            batch, = loaded(Files([files[name]], reader), 1)
        except open_video.VideoError as error:
            assert str(files[name]) in str(error)
        else:
            assert batch["pixels"].shape[-1] == 3


# the whole way: preparation, the doctor, training, evaluation

# of each kind, one that no reader can take for whole
BAD = ("cut-first-0.5", "zeros-mdat-0.6-4000", "cut-first-0", "html", "audio", "h264", "more-all-300", "other-codec",
       "flipped-anywhere-10000-1", "no-keyframes")


def leftovers(root: Path) -> list[str]:
    return [str(path) for path in root.rglob("*") if ".part" in path.name]


def test_preparation_lists_what_is_damaged_and_does_the_rest(files, piece, tmp_path):
    source, root = tmp_path / "full", tmp_path / "root"
    source.mkdir()
    bad = {*BAD, "zeros-all", "png", "durations-zero", "flipped-mdat-50-0"} - {"h264"}  # ffmpeg makes a whole video of that one
    for name in bad:
        shutil.copy(files[name], source / f"{name}.mp4")
    shutil.copy(piece, source / "good.mp4")
    shutil.copy(piece, source / "100%d good.mp4")
    (source / "dangling.mp4").symlink_to(source / "gone.mp4")
    (source / "folder.mp4").mkdir()
    manifest = prep.ego4d(root, 72, 30, source=source, workers=1, progress=False)
    failed = {line["uid"]: line["reason"] for line in manifest["lines"] if line["status"] != "ok"}
    assert failed.keys() == bad | {"dangling", "folder"}
    assert {uid: reason for uid, reason in failed.items() if f"{source / uid}.mp4" not in reason} == {}
    assert leftovers(root) == []
    # what a failed video left there would be trained on
    assert {path.stem for folder in ("Ego4D_256", "Ego4D_Chunked") for path in (root / folder).iterdir()} == {"good", "100%d good"}


@pytest.mark.slow
def test_preparation_of_every_damaged_file(files, tmp_path):
    """None raises, none leaves a part, and a video that has lost a part of its frames is not called done."""
    source = tmp_path / "full"
    source.mkdir()
    for name, path in files.items():
        if path.is_file():
            shutil.copy(path, source / f"{name}.mp4")
    manifest = prep.ego4d(tmp_path / "root", 72, 30, source=source, workers=2, progress=False)
    assert manifest["videos"] + len(manifest["failed"]) == len(list(source.iterdir()))
    assert [reason for reason in manifest["failed"] if str(source) not in reason] == [] and leftovers(tmp_path / "root") == []
    done = [line for line in manifest["lines"] if line["status"] == "ok"]
    assert {line["uid"]: line["resized"]["frames"] for line in done if line["resized"]["frames"] < 0.95 * 300} == {}
    for line in done:
        assert open_video.open_video(tmp_path / "root/Ego4D_256" / f"{line['uid']}.mp4").length == line["resized"]["frames"]


@pytest.mark.parametrize("name", BAD)
def test_the_doctor_finds_damaged_videos(files, resolve, copied, name):
    on_copy, root = copied
    places = [next((root / "Ego4D_Chunked").glob("*/0.mp4")), next(root.glob("EK100/video_ht256px/*/*.MP4")),
              next(root.glob("CharadesEgo/CharadesEgo_v1_480/*.mp4")), next((root / "Ego4D_256").glob("*.mp4"))]
    for place in places:
        shutil.copy(files[name], place)
    findings = doctor.examine(on_copy(resolve()), 0, ("egoclip", "egomcq", "ek100", "charades", "egomq"))
    assert [one for one in findings if one.what == "check"] == []
    if name not in ("more-all-300", "zeros-mdat-0.6-4000", "cut-first-0.5", "no-keyframes"):  # those open: only reading them tells
        said = " ".join(one.said for one in findings if one.state == "wrong")
        assert all(str(place) in said for place in places if place.name != "0.mp4"), said


@pytest.fixture
def attempt(resolve, copied, tmp_path):
    """(name, overrides) -> (run folder, a function that trains a few steps on the copy), and the copy's root."""
    on_copy, root = copied

    def prepared(name: str, overrides: str):
        config = on_copy(resolve(overrides=f"{MODEL} data.limit=0 train.batch_size=20 train.precision=fp32 {overrides}"))
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
        assert metrics["bad_samples"] == len(bad) and all(f"{uid}/0.mp4" in said for said in bad), name
        if name not in ("more-all-300", "zeros-mdat-0.6-4000", "cut-first-0.5"):  # in those some frames are whole
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
    model = loop.initial_model(config)
    with pytest.raises(open_video.VideoError, match=rf"{root / folder}/[\w/.-]+\.(mp4|MP4): "):
        evaluate.evaluate(model, tasks.make(config))


@pytest.mark.parametrize("name", LOST)
def test_extraction_on_damaged_videos_is_an_error_and_leaves_no_features(files, resolve, copied, tmp_path, name):
    on_copy, root = copied
    for path in (root / "Ego4D_256").glob("*.mp4"):
        shutil.copy(files[name], path)
    config = dataclasses.replace(on_copy(resolve("toy/egomq_features", MODEL)), init="")
    run = Run(tmp_path / "run")
    with pytest.raises(open_video.VideoError, match=rf"{root}/Ego4D_256/[\w-]+\.mp4: "):
        tasks.make(config).extract(loop.initial_model(config).eval(), run)
    assert not (run.path / "features").exists() and run.metrics() == {}


@pytest.mark.parametrize("recipe, split, pattern", [("ek100_finetune", "test", "EK100/video_ht256px/*/*.MP4"),
                                                    ("charades_finetune", "train", "CharadesEgo/CharadesEgo_v1_480/*.mp4"),
                                                    ("egomq_features", "", "Ego4D_256/*.mp4"), ("egomcq", "test", "Ego4D_Chunked/*/0.mp4")])
def test_a_whole_video_that_is_far_too_short_is_an_error(piece, resolve, copied, tmp_path, monkeypatch, recipe, split, pattern):
    """Of another video, or of one whose header has lost frames: its last frame is not what was annotated."""
    monkeypatch.setattr(frame_sampling, "LATE", 1.0)  # the toy's videos are short
    on_copy, root = copied
    damage.remuxed(piece, tmp_path / "short.mp4", lambda number, key: number < 9)  # a keyframe, the eighth frame, those between
    for path in root.glob(pattern):
        shutil.copy(tmp_path / "short.mp4", path)
    task = tasks.make(dataclasses.replace(on_copy(resolve(f"toy/{recipe}", MODEL)), init=""))
    with pytest.raises(open_video.VideoError, match=rf"{root}/.*(begins|ends) at [\d.]+ s, but the video ends at 0.90 s"):
        if split:
            dataset = task.dataset(split)
            [dataset[0, i] for i in range(len(dataset))]
        else:
            task.extract(loop.initial_model(task.config).eval(), Run(tmp_path / "run"))
