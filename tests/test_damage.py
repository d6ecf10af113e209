"""Damaged videos: no hang, no crash that hides the file's name, no invented picture.

damage.py makes a hundred files and reads each in a process that may die. test_damaged_tables.py: damaged annotations.
"""
import dataclasses
import faulthandler
import os
import shutil
import signal
import time
from pathlib import Path

import damage
import decord  # noqa: F401  (before any fork: in a forked process, Python 3.11 now and then fails to import it)
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

GARBLED = 2.0  # levels of 255, averaged over a frame: a difference that can be seen
# files in which some pictures are damaged while the tables are right: only a checksum would find every flipped bit
PICTURES = ("flipped-mdat", "flipped-anywhere")
TABLES_OF_TIMES = ("flipped-moov-", "zeros-moov-")


@pytest.fixture(scope="module")
def piece(project):
    """Return a prepared chunk of 300 frames."""
    return max((project / "outputs/toy/Ego4D_Chunked").glob("*/0.mp4"), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def files(piece, tmp_path_factory):
    paths = damage.make(piece, tmp_path_factory.mktemp("damaged"))
    assert len(paths) >= 100
    return paths


@pytest.fixture(scope="module")
def read(files, piece, tmp_path_factory):
    """Return a function: reader -> its results for every file, computed once."""
    results = {}

    def by(reader):
        if reader not in results:
            results[reader] = damage.probe(files, piece, reader, 10.0, tmp_path_factory.mktemp("logs") / reader)
        return results[reader]
    return by


def test_nothing_hangs_and_nothing_dies(read, files):
    results = read("pyav")
    assert results.keys() == files.keys()
    assert {name: result for name, result in results.items() if "died" in result or result["seconds"] > 5} == {}


@pytest.mark.slow
def test_decord_hangs_or_dies_at_two_files_only(read):
    """Therefore decord is not the default reader, and is best used with workers: see NATIVE."""
    assert {name for name, result in read("decord").items() if "died" in result} <= {*NATIVE, "durations-zero"}


@pytest.mark.parametrize("reader", ["pyav", pytest.param("decord", marks=pytest.mark.slow)])
def test_every_error_is_ours_and_names_the_file(read, files, reader):
    wrong = [(name, *error) for name, result in read(reader).items() for error in result.get("errors", ())
             if error[1] not in ("VideoError", "Untimed", "FileNotFoundError") or str(files[name]) not in error[2]]
    assert wrong == []


def test_a_frame_beyond_the_end_is_an_error(read):
    assert [name for name, result in read("pyav").items() if result.get("length") is not None
            and result["length"] not in [index for index, _, _ in result["errors"]]] == []


def test_no_picture_is_made_up(read):
    """A file whose tables or packets are incomplete gives the right frame, or an error.

    The same holds if they contradict each other.
    """
    invented = {name: bad for name, result in read("pyav").items() if not name.startswith((*PICTURES, *TABLES_OF_TIMES))
                and (bad := [frame for frame in result["frames"] if frame[1] != 0 or frame[2] > GARBLED])}
    assert invented == {}


def frames_of(results, prefixes):
    """Return the frames that were read from all files whose name begins with a prefix."""
    return [frame for name, result in results.items() if name.startswith(prefixes) for frame in result["frames"]]


def test_frames_whose_times_are_damaged_are_seldom_taken_for_others(read):
    """A table of times with flipped bits may name other frames, consistently.

    Only a pass over the file could tell.
    """
    frames = frames_of(read("pyav"), TABLES_OF_TIMES)
    wrong = [frame for frame in frames if frame[1] != 0 or frame[2] > GARBLED]
    assert len(frames) > 20 and len(wrong) <= 0.15 * len(frames), (len(wrong), len(frames), wrong)


def test_pictures_that_the_decoder_conceals_are_errors(read):
    """After flipped bits in packets, decoders go on with grey or repeated pictures.

    Almost all of these must be errors.
    """
    frames = frames_of(read("pyav"), PICTURES)
    garbled = [frame for frame in frames if frame[1] != 0 or frame[2] > GARBLED]
    assert len(frames) > 50 and len(garbled) <= 0.05 * len(frames), (len(garbled), len(frames), garbled)


@pytest.mark.parametrize("name", ["mkv", "twice"])
def test_whole_videos_under_another_name_are_read(read, name):
    assert [frame[1:] for frame in read("pyav")[name]["frames"]] == [[0, 0.0]] * 8


@pytest.mark.parametrize("name", ["text", "html", "png", "jpeg", "audio", "zeros-all"])
def test_what_is_no_video_is_not_opened(read, name):
    assert read("pyav")[name]["length"] is None


class Files(loader.Samples):
    """A data set of files: three frames of each."""

    def __init__(self, paths: list[Path], reader: str, tolerant: bool = False):
        self.paths, self.reader, self.tolerant = paths, reader, tolerant
        super().__init__(len(paths), 0, train=True)

    def read(self, index: int, rng) -> dict:
        pixels = clips.read(self.paths[index], lambda length, fps: np.array([0, length // 2, length - 1]), self.reader)
        return {"pixels": torch.from_numpy(pixels.copy()), "index": index}


def loaded(dataset: loader.Samples, workers: int, timeout: float = 3.0) -> list[dict]:
    batches = [[(0, i)] for i in range(len(dataset))]
    return list(loader.build_loader(dataset, batches, torch.utils.data.default_collate, workers, timeout))


# what decord 0.6 does in native code; at durations-zero it may hang, depending on the encoding (test_loading.py tests
# readers that hang)
NATIVE = {"more-stts-2G": r"its reader ended the loader process \(Aborted\)"}


@pytest.fixture
def fresh(monkeypatch):
    """Start with an empty list of unreadable files, and restore it afterwards."""
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
    messages = [message for batch in batches for message in batch.get("bad", ())]
    assert {name for name in NATIVE for message in messages if str(files[name]) in message} == NATIVE.keys()


class Ending(loader.Samples):
    """A data set whose worker is ended by a signal while it reads a file."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(1, 0, train=True)

    def read(self, index: int, rng) -> dict:
        open_video.on_open("videos/a.mp4")
        faulthandler.disable()  # pytest's handler, which would write a traceback
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_the_file_at_which_a_loader_process_ended_is_named(number):
    message = r"^videos/a\.mp4: its reader ended the loader process \((Aborted|Segmentation fault)\)"
    with pytest.raises(open_video.VideoError, match=message):
        loaded(Ending(number), 1)


def test_a_process_that_the_kernel_killed_is_not_the_files_fault():
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|Killed") as caught:
        loaded(Ending(signal.SIGKILL), 1)
    assert "a.mp4" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_overreporting_files_through_a_loader(files, fresh, reader):
    """The loader gives frames that the container promises, or an error that names the file.

    That holds whatever the reader does in native code.
    """
    for name in (name for name in files if name.startswith("more-")):
        try:
            batch, = loaded(Files([files[name]], reader), 1)
        except open_video.VideoError as error:
            assert str(files[name]) in str(error)
        else:
            assert batch["pixels"].shape[-1] == 3


# end to end: preparation, the doctor, training, evaluation

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
    assert failed.keys() == bad | {"dangling", "folder"}
    assert {uid: reason for uid, reason in failed.items() if f"{source / uid}.mp4" not in reason} == {}
    assert leftovers(root) == []
    # a failed video must leave nothing there, as it would be trained on
    prepared = {path.stem for folder in ("Ego4D_256", "Ego4D_Chunked") for path in (root / folder).iterdir()}
    assert prepared == {"good", "100%d good"}


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
    findings = doctor.examine(on_copy(resolve()), 0, ("egoclip", "egomcq", "ek100", "charades", "egomq"))
    assert [finding for finding in findings if finding.what == "check"] == []
    # these can be opened; only reading them shows the damage
    if name not in ("more-all-300", "zeros-mdat-0.6-4000", "cut-first-0.5", "no-keyframes"):
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
        if name not in ("more-all-300", "zeros-mdat-0.6-4000", "cut-first-0.5"):  # some frames of these are undamaged
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


@pytest.mark.parametrize("recipe, split, pattern", [
    ("ek100_finetune", "test", "EK100/video_ht256px/*/*.MP4"),
    ("charades_finetune", "train", "CharadesEgo/CharadesEgo_v1_480/*.mp4"),
    ("egomq_features", "", "Ego4D_256/*.mp4"),
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
            task.extract(loop.initial_model(task.config).eval(), Run(tmp_path / "run"))
