"""Damaged videos, read alone and by a loader: no hang, no crash that hides the file's name, no invented picture."""
import faulthandler
import os
import signal
import time
from pathlib import Path

import damage
import decord  # noqa: F401  (before any fork: in a forked process, Python 3.11 now and then fails to import it)
import numpy as np
import pytest
import torch

from egokit.data import loader
from egokit.data.video import clips, open_video

GARBLED = 2.0  # levels of 255, averaged over a frame: a difference that can be seen
# files in which some pictures are damaged while the tables are right: only a checksum would find every flipped bit
PICTURES = ("flipped-mdat", "flipped-anywhere")
TABLES_OF_TIMES = ("flipped-moov-", "zeros-moov-")


@pytest.fixture(scope="module")
def piece(project):
    return damage.toy_piece(project)


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
# (bad_alloc in it ends the process by one of two signals, whichever thread is first)
NATIVE = {"more-stts-2G": r"its reader ended the loader process \((Aborted|Segmentation fault)\)"}


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
