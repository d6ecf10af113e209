"""Preparation by several threads, processes and jobs at once: shards, their manifest, and an array of jobs."""
import errno
import json
import random
import shutil
import subprocess
import threading
import time

import pytest
from conftest import ROOT
from full_videos import check_complete, command, four_videos

from egokit import cli, prep
from egokit.prep import source, video
from egokit.runs import files
from egokit.runs.files import atomic_folder, lock_file


@pytest.fixture
def full(project, tmp_path):
    return four_videos(project, tmp_path / "full")


def test_shards_are_whole_disjoint_and_balanced():
    generator = random.Random(0)
    videos = [source.SourceVideo(str(i), None, int(generator.lognormvariate(20, 1))) for i in range(1000)]
    shards = [source.shard_of(videos, number, 16) for number in range(1, 17)]
    assert sorted(entry.uid for shard in shards for entry in shard) == sorted(entry.uid for entry in videos)
    sizes = [sum(entry.bytes for entry in shard) for shard in shards]
    assert max(sizes) - min(sizes) < 0.05 * max(sizes)
    assert source.shard_of(videos[::-1], 3, 16) == shards[2], "the file system's order doesn't matter"
    with pytest.raises(ValueError, match="shard 17/16: expected 1/16 to 16/16"):
        source.shard_of(videos, 17, 16)


def test_the_manifest_covers_all_videos_whichever_shards_have_ended(full, tmp_path):
    root = tmp_path / "root"
    pending = []
    for number in (2, 1, 3):
        own = prep.ego4d(root, 72, 30, source=full, progress=False, shard=(number, 3))
        manifest = json.loads((root / "prepared.json").read_text())
        assert [line["uid"] for line in manifest["lines"]] == list("abcd") and own["pending"] == 0
        assert own["videos"] == len(source.shard_of(source.list_videos(full), number, 3))
        pending.append(manifest["pending"])
    assert pending[0] > pending[1] > pending[2] == 0
    check_complete(root, full)


def test_a_receipt_that_comes_while_the_manifest_is_written_is_in_it(full, tmp_path, monkeypatch):
    settings, videos = video.PrepSettings(tmp_path / "root", 72, 30), source.list_videos(full)
    for entry in videos[:2]:
        video.prepare_video(entry, settings, threading.Event())
    write_text = source.write_text

    def another_shard_ends(path, text):
        monkeypatch.setattr(source, "write_text", write_text)
        prep.ego4d(settings.root, 72, 30, source=full, progress=False)
        write_text(path, text)
    monkeypatch.setattr(source, "write_text", another_shard_ends)
    source.write_manifest(videos, settings)
    assert json.loads((settings.root / "prepared.json").read_text())["pending"] == 0


def test_processes_on_the_same_videos_at_once(full, tmp_path):
    root = tmp_path / "root"
    work = [subprocess.Popen(command(root, full, *more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
            for more in ((), (), ("--shard", "1/2"))]
    errors = [process.communicate(timeout=120)[1].decode() for process in work]
    assert [process.returncode for process in work] == [0, 0, 0], errors
    check_complete(root, full)


def test_without_locks_the_same_video_twice_at_once_stays_whole(full, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr("fcntl.flock", no_locks)
    settings, entry = video.PrepSettings(tmp_path / "root", 72, 30), source.list_videos(full)[0]
    nobody = f"{files._processes()}-{2**22 + 1}"  # above the largest process id
    leftover = settings.resized_path("x").with_name(f".{entry.uid}.{nobody}-0badcafe.part.mp4")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half of it")
    threads = [threading.Thread(target=video.prepare_video, args=(entry, settings, threading.Event()))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert video.read_receipt(entry, settings)["status"] == "ok"
    assert not [path for path in settings.root.rglob("*") if ".part" in path.name]


def test_a_folder_is_replaced_whole_by_many_at_once(tmp_path):
    def write(name):
        for _ in range(50):
            with atomic_folder(tmp_path / "pieces") as folder:
                for number in range(3):
                    (folder / f"{number}.mp4").write_text(name)
    writers = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {len({path.read_text() for path in tmp_path.glob("pieces/*")}), len(list(tmp_path.iterdir()))} == {1}
    assert len(list(tmp_path.glob("pieces/*"))) == 3


def test_an_array_of_local_jobs_and_its_retry(full, tmp_path, project, capfd):
    root, good = tmp_path / "root", (full / "c.mp4").read_bytes()
    (full / "c.mp4").write_bytes(good[:3000])
    arguments = command(root, full, "--array", "3", "--wait")[3:]
    with pytest.raises(SystemExit, match="1"):
        cli.main(arguments)
    printed = capfd.readouterr().out
    for expected in ("3 shards on local: ", "retry:", "c.mp4: can't be decoded", '"videos": 3'):
        assert expected in printed
    before = {path: path.stat().st_mtime_ns for path in (root / "Ego4D_256").iterdir()}
    (full / "c.mp4").write_bytes(good)
    with pytest.raises(SystemExit, match="0"):
        cli.main(arguments)
    assert "1 shards on local: " in capfd.readouterr().out
    assert all(path.stat().st_mtime_ns == modified for path, modified in before.items())
    check_complete(root, full)
    cli.main(arguments)
    assert capfd.readouterr().out == "nothing to submit: every video is verified\n"


def test_an_array_that_runs_is_found_again(full, project, tmp_path):
    from egokit.config.resolve import resolve
    shutil.move(full, tmp_path / "root/Ego4D")
    config = resolve("toy/pretrain", "tiny", f"site.root={tmp_path / 'root'}")
    first, again = prep.submit_array(config, 2), prep.submit_array(config, 4)
    assert again.folder == first.folder and "2 shards on local" in str(again)
    assert again.wait(progress=False)["videos"] == 4 and prep.submit_array(config, 2) is None
    check_complete(tmp_path / "root", tmp_path / "root/Ego4D")


def test_a_lock_is_waited_for_until_it_is_free_or_the_wait_is_stopped(tmp_path, capsys):
    order, stop = [], threading.Event()

    def wait(name, **options):
        with lock_file(tmp_path / "lock", **options):
            order.append(name)
    with lock_file(tmp_path / "lock"):
        waiting = threading.Thread(target=wait, args=("second",), kwargs={"busy": "waits\n"})
        stopped = threading.Thread(target=wait, args=("stopped",), kwargs={"stop": stop})
        waiting.start()
        stopped.start()
        time.sleep(0.7)
        stop.set()
        stopped.join(10)
        order.append("first")
    waiting.join(10)
    assert order == ["stopped", "first", "second"] and capsys.readouterr().out == "waits\n"
