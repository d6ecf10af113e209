"""Search cuts any video, of any container, frame rate and rotation, into clips by seconds."""
import struct
import subprocess

import numpy as np
import pytest
import torch
from search_folder import searching, three_videos, video

from egokit import tasks
from egokit.data.video import open_video
from egokit.prep.video import ffmpeg
from egokit.search import index_task


@pytest.fixture
def folder(tmp_path, project):
    return three_videos(project, tmp_path / "videos")


@pytest.fixture
def searched(checkpoint, folder, tmp_path):
    return searching(folder, tmp_path)


def test_variable_frame_rates_are_cut_by_time(searched, tmp_path):
    """A phone's video has ten frames a second, then thirty; clips are cut by seconds."""
    path = video(tmp_path / "phone.mp4", 8, 30, more=("-vf", "select='gte(t,4)+not(mod(n,3))'", "-fps_mode", "vfr"))
    reader, task = open_video.open_video(path), tasks.make(searched[0]())
    assert reader.length == 160 and not reader.constant and reader.seconds == pytest.approx(8, abs=0.05)
    for start in (0, 3, 5):
        shown = reader.time_of(task.clip_indices(reader, start, start + 2))
        assert (np.abs(shown - (start + np.array([0.25, 0.75, 1.25, 1.75]))) < 0.26).all()


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_a_phone_held_upright(searched, tmp_path, matrix):
    """Frames are rotated by the matrix in the file's header, as players and ffmpeg do."""
    lying, upright, task = tmp_path / "lying.mp4", tmp_path / "upright.mp4", tasks.make(searched[0]())
    flat = video(tmp_path / "flat.mp4", 3)
    a, b, c, d = (value << 16 for value in matrix)
    data = bytearray(flat.read_bytes())
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    lying.write_bytes(data)
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", str(lying), "-crf", "5", str(upright)], check=True)
    turned, expected, unturned = (task.clip(path, 0, 2).float() for path in (lying, upright, flat))
    assert (turned - expected).abs().mean() < 0.1 * (unturned - expected).abs().mean()
    assert torch.equal(index_task.VideoWindows(task, lying).read(0, None)["video"][0].float(), turned)


@pytest.mark.parametrize("name, more", [
    ("a.avi", ("-c:v", "mpeg4")), ("b.avi", ("-c:v", "libx264")), ("c.mpg", ()), ("d.ts", ()),
    ("e.MOV", ("-c:v", "mjpeg")), ("f.wmv", ()), ("g.flv", ()), ("h.vob", ()), ("i.m2ts", ()),
    ("j.3gp", ("-c:v", "libx264")), ("k.ogv", ()), ("l.mpg", ("-g", "15"))])
def test_any_container_gives_the_same_clips(searched, tmp_path, name, more):
    """The same video in every container; AVI shows frames as much later as the decoder needs to put them in order."""
    task = tasks.make(searched[0]())
    rate = 25 if name.endswith((".mpg", ".vob")) else 10
    mp4, path = video(tmp_path / "same.mp4", 6), video(tmp_path / name, 6, rate, more=(*more, "-b:v", "4M"))
    late = open_video.open_video(path).start
    assert late < 0.1 or (late, name) == (0.2, "b.avi")
    for start in (0.0, 2.0, 4.0):
        expected = task.clip(mp4, start, start + 2).float()
        clip = task.clip(path, start + late, start + late + 2).float()
        next_start = (start + 2) % 6
        next_clip = task.clip(mp4, next_start, next_start + 2).float()
        assert (expected - clip).abs().mean() < 0.3 * (expected - next_clip).abs().mean()
    windows = index_task.VideoWindows(task, path)
    assert windows.read(0, None)["video"].shape == (5, 4, 3, 64, 64)
    assert windows.read(0, None)["read"]["seconds"] == pytest.approx(6 + late, abs=0.11)
    third = index_task.VideoWindows(task, path).read(0, None)["video"][2]
    assert torch.equal(third, task.clip(path, late + 2, late + 4))


@pytest.mark.parametrize("seconds, starts", [(0.5, [0]), (4, [0]), (5, [0, 1]), (8, [0, 2, 4]), (9.5, [0, 2, 4, 5.5])])
def test_clips_cover_a_video(seconds, starts):
    start_N, stop_N = index_task.clip_times(seconds, 4, 2)
    assert start_N.tolist() == starts and stop_N.tolist() == [min(start + 4, seconds) for start in starts]
