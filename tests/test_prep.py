"""Preparation of real videos: they are resized, cut and verified, and what is done is not done again."""
import json
import os
import shutil
import subprocess
import tempfile
import time
import typing
from pathlib import Path

import av
import numpy as np
import pytest
from full_videos import check_complete, four_videos

from egokit import prep
from egokit.config import schema
from egokit.prep import source, verify, video


@pytest.fixture
def full(project, tmp_path):
    return four_videos(project, tmp_path / "full")


def encode(target, *arguments):
    subprocess.run([video.ffmpeg(), "-loglevel", "error", "-y", *map(str, arguments), str(target)], check=True)


def test_everything_is_resized_and_verified(project):
    root = project / "outputs/toy"
    manifest = json.loads((root / "prepared.json").read_text())
    assert manifest["failed"] == [] and manifest["pending"] == 0
    assert manifest["videos"] == len(manifest["lines"]) == len(list((root / "Ego4D").glob("*.mp4")))
    for line in manifest["lines"]:
        outputs = [line["resized"], *line["pieces"]]
        assert all([output[key] for key in ("width", "height", "fps", "status", "constant_rate")]
                   == [96, 72, 10, "ok", True] for output in outputs)
        assert line["source"]["frames"] == line["resized"]["frames"] == sum(piece["frames"] for piece in line["pieces"])
        assert [piece["seconds"] for piece in line["pieces"][:-1]] == [30] * (len(line["pieces"]) - 1)
        paths = [root / "Ego4D_256" / line["resized"]["file"],
                 *(root / "Ego4D_Chunked" / line["uid"] / piece["file"] for piece in line["pieces"])]
        assert [output["bytes"] for output in outputs] == [path.stat().st_size for path in paths]


def test_a_second_run_does_nothing_and_a_lost_or_damaged_file_is_made_again(project):
    root = project / "outputs/toy"
    files = sorted((root / "Ego4D_256").glob("*.mp4"))
    before = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    piece = root / "Ego4D_Chunked" / files[1].stem / "0.mp4"
    piece.write_bytes(piece.read_bytes()[:1000])
    prep.ego4d(root, 72, 30, progress=False)
    assert files[0].exists() and piece.stat().st_size > 1000 and files[1].stat().st_mtime_ns > before[1]
    assert [file.stat().st_mtime_ns for file in files[2:]] == before[2:]


def test_a_broken_video_is_listed_with_its_reason_and_the_others_are_done(full, tmp_path):
    good = (full / "a.mp4").read_bytes()
    (full / "b.mp4").write_bytes(good[:2000])
    encode(full / "whole.mkv", "-i", full / "c.mp4", "-c", "copy")
    whole = (full / "whole.mkv").read_bytes()
    (full / "d.mkv").write_bytes(whole[:len(whole) // 2])  # a download that stopped: it ends early, undamaged
    (full / "d.mp4").unlink()
    manifest = prep.ego4d(tmp_path / "root", 72, 30, source=full, progress=False)
    assert manifest["videos"] == 3 and len(manifest["failed"]) == 2
    assert "b.mp4: can't be decoded" in manifest["failed"][0] and "d.mkv: its header promises " in manifest["failed"][1]
    assert not (tmp_path / "root/Ego4D_256/d.mp4").exists() and not (tmp_path / "root/Ego4D_Chunked/d").exists()
    (full / "b.mp4").write_bytes(good)
    (full / "d.mkv").write_bytes(whole)
    assert prep.ego4d(tmp_path / "root", 72, 30, source=full, progress=False)["videos"] == 5
    check_complete(tmp_path / "root", full)


@pytest.mark.parametrize("name", video.ENCODINGS)
def test_encodings_cut_at_their_keyframes(tmp_path, name):
    """Cuts are exact with B-frames, and with up to 250 frames between keyframes.

    The source has 29.97 frames a second, a cut every 4 s, and scene changes just before the cuts.
    """
    folder = tmp_path / "full"
    folder.mkdir()
    encode(folder / "tv.mov", "-f", "lavfi", "-i", "testsrc2=s=128x96:r=30000/1001:d=11",
           "-vf", "hue=h='90*floor((t+0.1)/4)'")
    root = tmp_path / "root"
    line = prep.ego4d(root, 72, 4, source=folder, progress=False, encoding=name)["lines"][0]
    assert line["status"] == "ok" and [piece["frames"] for piece in line["pieces"]] == [120, 120, 90]
    with av.open(str(root / "Ego4D_256/tv.mp4")) as container:
        resized = list(container.decode(video=0))
    pieces = []
    for number in range(3):
        with av.open(str(root / f"Ego4D_Chunked/tv/{number}.mp4")) as container:
            pieces += list(container.decode(video=0))
    assert all(np.array_equal(frame.to_ndarray(), cut.to_ndarray()) for frame, cut in zip(resized, pieces, strict=True))
    keys = [number for number, frame in enumerate(resized) if frame.key_frame]
    assert {0, 120, 240} <= set(keys) and (max(np.diff(keys)) <= 25) == (name == "random_access")
    if name == "random_access":  # other settings: made again
        again = prep.ego4d(root, 72, 4, source=folder, progress=False, encoding="original")["lines"][0]
        assert again["resized"] != line["resized"]


def test_encodings_are_the_choices_of_the_configuration(project, tmp_path):
    from egokit.config.build import ConfigError
    from egokit.config.resolve import resolve
    assert tuple(video.ENCODINGS) == typing.get_args(schema.SiteConfig.__pydantic_fields__["encoding"].annotation)
    assert schema.SiteConfig().encoding in video.ENCODINGS
    with pytest.raises(ConfigError, match=r"site\.encoding .*'originel': did you mean 'original'"):
        resolve("toy/pretrain", "tiny", "site.encoding=originel")
    with pytest.raises(ValueError, match=r"site\.encoding 'av1': expected random_access or original"):
        prep.ego4d(tmp_path, encoding="av1")


def test_a_variable_rate_becomes_constant_and_as_long(full, tmp_path):
    """A video with skipped frames, and a skipped second, is resampled.

    Times that are rounded to milliseconds still count as a constant rate.
    """
    folder = tmp_path / "variable"
    folder.mkdir()
    encode(folder / "gaps.mp4", "-i", full / "a.mp4",
           "-vf", "select='not(eq(mod(n,7),3))*not(between(n,100,109))'", "-fps_mode", "vfr")
    encode(folder / "rounded.mkv", "-f", "lavfi", "-i", "testsrc2=s=128x96:r=30000/1001:d=5")
    gaps, rounded = prep.ego4d(tmp_path / "root", 72, 10, source=folder, progress=False)["lines"]
    assert gaps["status"] == "ok" and not gaps["source"]["constant_rate"]
    assert gaps["source"]["frames"] < 240 <= gaps["resized"]["frames"] <= 241
    assert gaps["resized"]["constant_rate"] and gaps["resized"]["fps"] == 10
    assert abs(gaps["resized"]["seconds"] - gaps["source"]["seconds"]) < 0.101
    assert rounded["source"]["constant_rate"] and rounded["source"]["frames"] == rounded["resized"]["frames"]


def test_verification_finds_lost_frames_and_wrong_cuts():
    whole = {"frames": 100, "fps": 10.0, "seconds": 10.0, "constant_rate": True}
    assert verify.check_length(whole, whole) == ""
    assert verify.check_length(whole, whole | {"frames": 99}) == "100 frames became 99"
    assert verify.check_length(whole, whole | {"seconds": 10.2}) == "10.000 s became 10.200 s"
    assert verify.check_length(whole, whole | {"constant_rate": False}) == "its frame rate is not constant"
    assert verify.check_cut(whole, 41, 40, False) == verify.check_cut(whole, 100, 100, True) == ""
    assert verify.check_cut(whole, 100, 40, False) == "ends with frame 100 of the video, expected 40"
    assert verify.check_cut(whole, 99, 100, True) == "ends with frame 99 of the video, expected 100"


def test_names_of_videos(full, tmp_path):
    (full / "b.mp4").rename(full / "b.MOV")
    (full / "notes.txt").write_text("no video")
    (full / ".c.mp4").write_bytes(b"")
    assert [entry.path.name for entry in source.list_videos(full)] == ["a.mp4", "b.MOV", "c.mp4", "d.mp4"]
    assert prep.ego4d(tmp_path / "root", 72, 30, source=full, progress=False)["videos"] == 4
    assert (tmp_path / "root/Ego4D_256/b.mp4").is_file()
    shutil.copy(full / "a.mp4", full / "a.mkv")
    manifest = prep.ego4d(tmp_path / "root", 72, 30, source=full, progress=False)
    assert manifest["videos"] == 3 and len(manifest["failed"]) == 1
    assert "a.mkv and a.mp4 are both video a: keep one of them" in manifest["failed"][0]
    assert json.loads((tmp_path / "root/prepared.json").read_text())["failed"] == manifest["failed"]


@pytest.fixture
def many_files(tmp_path):
    """A folder for tens of thousands of tiny files: in memory where there is room.

    Some disks take a minute to delete 10,000 folders.
    """
    memory = Path("/dev/shm")
    room = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**29
    with tempfile.TemporaryDirectory(dir=memory if room else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_ten_thousand_finished_videos_are_passed_over_in_seconds(many_files):
    settings = video.PrepSettings(many_files / "root", 72, 30)
    folder = settings.root / "Ego4D"
    folder.mkdir(parents=True)
    settings.receipt_path("x").parent.mkdir()
    settings.resized_path("x").parent.mkdir()
    facts = {"frames": 9, "fps": 10.0, "seconds": 0.9, "constant_rate": True, "width": 96, "height": 72, "bytes": 1,
             "status": "ok"}
    for number in range(10_000):
        entry = source.SourceVideo(f"{number:08d}-8968-4cdb-b9c4-10ceedca1ed8", None, 1)
        (folder / f"{entry.uid}.mp4").write_bytes(b"x")
        settings.resized_path(entry.uid).write_bytes(b"x")
        settings.pieces_folder(entry.uid).mkdir(parents=True)
        for piece in "01":
            (settings.pieces_folder(entry.uid) / f"{piece}.mp4").write_bytes(b"x")
        whole = facts | {"file": f"{entry.uid}.mp4"}
        settings.receipt_path(entry.uid).write_text(json.dumps({
            "uid": entry.uid, "status": "ok", "settings": settings.fingerprint(entry), "source": whole,
            "resized": whole, "pieces": [facts | {"file": f"{piece}.mp4"} for piece in "01"]}))
    began = time.process_time()  # of this process: other tests run beside it
    assert prep.ego4d(settings.root, 72, 30, progress=False)["videos"] == 10_000
    took = time.process_time() - began
    print(f"10,000 finished videos: {took:.1f} s")
    assert took < 10


def test_missing_root_says_what_makes_it(project, tmp_path):
    from egokit.config.resolve import resolve
    config = resolve("toy/pretrain", "tiny", f"site.root={tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match=r"data root .*nowhere.*params/sites/tiny\.yaml"):
        prep.prepare(config)
    from egokit import tasks
    with pytest.raises(FileNotFoundError, match=r"egoclip\.csv is missing .*get it: https://github\.com/showlab/EgoVLP"):
        tasks.make(config).dataset("train")
