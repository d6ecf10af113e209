"""Preparation that is interrupted, killed or stopped by the machine fails no video and leaves no part of a file."""
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import ROOT
from full_videos import check_complete, command, four_videos

from egokit import prep
from egokit.prep import measure, source, video


@pytest.fixture
def full(project, tmp_path):
    return four_videos(project, tmp_path / "full")


def test_what_is_wrong_with_the_machine_stops_everything_and_fails_no_video(full, tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    (root / "Ego4D_Chunked").write_text("a file where the folder should be")
    with pytest.raises(prep.PrepError, match=r"root/Ego4D_Chunked can't be written"):
        prep.ego4d(root, 72, 30, source=full, progress=False)
    (root / "Ego4D_Chunked").unlink()
    script = tmp_path / "bin/ffmpeg"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n"
                      "printf 'Error writing trailer: No space left on device\\nConversion failed!\\n' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    with pytest.raises(prep.PrepError, match=r"root/Ego4D_256 can't be written: ffmpeg says .*No space left"):
        prep.ego4d(root, 72, 30, source=full, progress=False)
    assert not list(root.glob(".prepared/*.json")) and not list(root.glob("Ego4D_*/*"))
    monkeypatch.setenv("PATH", str(tmp_path))
    import imageio_ffmpeg

    def no_executable():
        raise RuntimeError("No ffmpeg exe could be found.")
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", no_executable)
    with pytest.raises(prep.PrepError, match="no ffmpeg in PATH: apt install ffmpeg"):
        prep.ego4d(root, 72, 30, source=full, progress=False)


def test_a_disk_that_fills_up(full, tmp_path):
    """A real file system of 64 kB is used, if the machine lets us mount one."""
    root = tmp_path / "small"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(root)], capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")
    try:
        with pytest.raises(prep.PrepError, match=r"small.* can't be written.*No space left on device"):
            prep.ego4d(root, 72, 30, source=full, progress=False)
        assert not list(root.rglob("*.mp4")) and not list(root.rglob("*.part*"))
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_interrupted_videos_are_not_failed_ones(full, tmp_path):
    root = tmp_path / "root"
    for number in range(30):
        shutil.copy(full / "d.mp4", full / f"more{number}.mp4")
    process = subprocess.Popen(command(root, full), start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, cwd=ROOT)
    while not list(root.glob(".prepared/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal and Jupyter do
    assert process.wait(timeout=20) == 130
    receipts = source.read_receipts(source.list_videos(full), video.PrepSettings(root, 72, 30), check_files=True)
    summary = source.summary(receipts)
    assert summary["failed"] == [] and summary["pending"] > 10 and not list(root.glob("Ego4D_*/.*"))


@pytest.mark.parametrize("end", ["kill -INT $$", "kill -TERM $$", "exit 255"])
def test_an_interrupted_ffmpeg_is_no_fault_of_the_video(tmp_path, monkeypatch, end):
    """Ctrl-C reaches ffmpeg, too, and may end it before this program knows."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{end}\n")
    program.chmod(0o755)
    monkeypatch.setattr(video, "ffmpeg", lambda: str(program))
    with pytest.raises(video.SetupError, match=r"a\.mp4: ffmpeg was interrupted; start the same command again"):
        video.run_ffmpeg([], tmp_path / "a.mp4", tmp_path / "b.mp4")


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again(full, tmp_path):
    root = tmp_path / "root"
    for number in range(8):
        shutil.copy(full / "d.mp4", full / f"more{number}.mp4")
    generator = random.Random(7)
    for _ in range(6):
        process = subprocess.Popen(command(root, full), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        time.sleep(1.0 + 1.5 * generator.random())
        process.kill()
        process.wait()
        for path in [*root.glob("Ego4D_256/[!.]*.mp4"), *root.glob("Ego4D_Chunked/[!.]*/*.mp4")]:
            assert measure.scan(path).facts["frames"] > 0, "a file under its final name is whole"
    time.sleep(2)  # an ffmpeg whose parent was killed ends by itself
    assert subprocess.run(command(root, full), capture_output=True, cwd=ROOT, timeout=120).returncode == 0
    check_complete(root, full)
