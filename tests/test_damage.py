"""A hundred damaged videos: nothing hangs, nothing ends a run without naming the file, and no picture is made up.

The files and what a reader makes of each, in a process that may die: damage.py. Damaged tables: test_damaged_tables.py.
"""
import dataclasses
import shutil
import subprocess
import time
from pathlib import Path

import damage
import pytest
import torch
from conftest import MODEL, rarest

from egokit import clips, doctor, evaluate, frames, loading, prep, sampling, tasks, train
from egokit.runs import Run
from egokit.tasks.egoclip import Clips

GARBLED = 2.0  # levels of 255, on average over a frame: what shows
# names of files in which some pictures are lost while the tables are right: nothing but a checksum tells of every flipped bit
PICTURES = ("flipped-mdat", "flipped-anywhere")


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


@pytest.mark.parametrize("reader", ["pyav", pytest.param("decord", marks=pytest.mark.slow)])
def test_every_error_is_ours_and_names_the_file(read, files, reader):
    wrong = [(name, *error) for name, one in read(reader).items() for error in one.get("errors", ())
             if error[1] not in ("VideoError", "FileNotFoundError") or str(files[name]) not in error[2]]
    assert wrong == []


def test_a_frame_beyond_the_end_is_an_error(read):
    assert [name for name, one in read("pyav").items() if one.get("length") is not None
            and one["length"] not in [index for index, _, _ in one["errors"]]] == []


def test_no_picture_is_made_up(read):
    """Of files whose tables or packets are missing or contradict each other: the right frame, or an error."""
    made_up = {name: bad for name, one in read("pyav").items() if not name.startswith(PICTURES)
               and (bad := [frame for frame in one["frames"] if frame[1] != 0 or frame[2] > GARBLED])}
    assert made_up == {}


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
