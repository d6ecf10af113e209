"""Preparation with real videos and processes, and the tables and files derived from it."""
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest
from conftest import ROOT

from egokit import cli, prep
from egokit.config import schema
from egokit.data import annotation_tables, relevancy
from egokit.prep import measure, source, video
from egokit.runs.files import atomic_folder


@pytest.fixture
def full(project, tmp_path):
    """Return a folder with four small full videos: a, b, c and d."""
    folder = tmp_path / "full"
    folder.mkdir()
    smallest = sorted((project / "outputs/toy/Ego4D").glob("*.mp4"), key=lambda path: path.stat().st_size)[:4]
    for name, path in zip("abcd", smallest, strict=True):
        shutil.copy(path, folder / f"{name}.mp4")
    return folder


def encode(target, *arguments):
    subprocess.run([video.ffmpeg(), "-loglevel", "error", "-y", *map(str, arguments), str(target)], check=True)


def command(root, folder, *more):
    """Return the shell command that prepares the videos of `folder` into `root`."""
    return [sys.executable, "-m", "egokit.cli", "prep", "ego4d", "--site", "tiny", "--root", str(root),
            "--source", str(folder), *more]


def check_complete(root, folder):
    """Check that all of `folder` is prepared, with a true manifest and no unfinished files."""
    manifest = json.loads((root / "prepared.json").read_text())
    videos = source.list_videos(folder)
    assert (manifest["videos"], manifest["failed"], manifest["pending"]) == (len(videos), [], 0)
    receipts = source.read_receipts(videos, video.PrepSettings(root, 72, 30), check_files=True)
    assert [line["status"] for line in receipts] == ["ok"] * len(videos)
    assert not [path for path in root.rglob("*") if ".part" in path.name]
    for line in manifest["lines"]:
        pieces = [measure.scan(root / "Ego4D_Chunked" / line["uid"] / piece["file"])[0]["frames"]
                  for piece in line["pieces"]]
        resized = measure.scan(root / "Ego4D_256" / line["resized"]["file"])[0]["frames"]
        assert sum(pieces) == resized == line["source"]["frames"]


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
    assert tuple(video.ENCODINGS) == schema.CHOICES["site.encoding"]
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

    def reasons(resized, *pieces):
        outputs = [whole | resized, *({"constant_rate": True, "frames": count} for count in pieces)]
        measure.verify(whole, outputs[0], outputs[1:], 4)
        return [output.get("reason", "") for output in outputs]
    assert reasons({}, 40, 40, 20) == ["", "", "", ""]
    assert reasons({"frames": 99}, 40, 40, 19)[0] == "100 frames became 99"
    assert reasons({"seconds": 10.2}, 40, 40, 20)[0] == "10.000 s became 10.200 s"
    assert reasons({}, 100)[1] == "ends with frame 100 of the video, expected 40"
    assert reasons({}, 40, 40, 19)[3] == "ends with frame 99 of the video, expected 100"


def test_names_of_videos(full, tmp_path):
    (full / "b.mp4").rename(full / "b.MOV")
    (full / "notes.txt").write_text("no video")
    (full / ".c.mp4").write_bytes(b"")
    assert [entry.path.name for entry in source.list_videos(full)] == ["a.mp4", "b.MOV", "c.mp4", "d.mp4"]
    assert prep.ego4d(tmp_path / "root", 72, 30, source=full, progress=False)["videos"] == 4
    assert (tmp_path / "root/Ego4D_256/b.mp4").is_file()
    shutil.copy(full / "a.mp4", full / "a.mkv")
    with pytest.raises(prep.PrepError, match=r"a\.mkv and a\.mp4 are both video a"):
        prep.ego4d(tmp_path / "root", source=full)


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
    monkeypatch.setattr(video.fcntl, "flock", no_locks)
    settings, entry = video.PrepSettings(tmp_path / "root", 72, 30), source.list_videos(full)[0]
    nobody = f"{socket.gethostname()}-{2**22 + 1}"  # above the largest process id
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
    # tests that run in the background ignore SIGINT, and so would their children
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command(root, full), start_new_session=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, cwd=ROOT)
    finally:
        signal.signal(signal.SIGINT, before)
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
            assert measure.scan(path)[0]["frames"] > 0, "a file under its final name is whole"
    time.sleep(2)  # an ffmpeg whose parent was killed ends by itself
    assert subprocess.run(command(root, full), capture_output=True, cwd=ROOT, timeout=120).returncode == 0
    check_complete(root, full)


@pytest.mark.slow
def test_ten_thousand_finished_videos_are_passed_over_in_seconds(tmp_path):
    settings = video.PrepSettings(tmp_path / "root", 72, 30)
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
    began = time.perf_counter()
    assert prep.ego4d(settings.root, 72, 30, progress=False)["videos"] == 10_000
    took = time.perf_counter() - began
    print(f"10,000 finished videos: {took:.1f} s")
    assert took < 10


def test_relevancy_equals_its_formula(project):
    folder = project / "outputs/toy/EK100/epic-kitchens-100-annotations/retrieval_annotations"
    paths = [folder / f"EPIC_100_retrieval_train{end}.csv" for end in ("", "_sentence")]
    import ast

    import pandas as pd
    clips, sentences = pd.read_csv(paths[0]), pd.read_csv(paths[1])
    rows = clips.set_index("narration_id").loc[sentences.narration_id]
    matrix = prep.relevancy(*paths)
    for i in range(0, len(clips), 7):
        clip_nouns = set(ast.literal_eval(clips.all_noun_classes[i]))
        for j in range(0, len(sentences), 5):
            nouns = set(ast.literal_eval(rows.all_noun_classes.iloc[j]))
            iou = len(clip_nouns & nouns) / len(clip_nouns | nouns)
            assert matrix[i, j] == pytest.approx(((clips.verb_class[i] == rows.verb_class.iloc[j]) + iou) / 2)
    path = relevancy.relevancy_path(folder / "relevancy", "train")
    loaded, mapped = prep.load_relevancy(path), relevancy.read(path)
    assert path.suffix == ".safetensors" and loaded.dtype == np.float32 and np.array_equal(loaded, matrix)
    assert mapped.shape == matrix.shape and np.array_equal(mapped.row(3), matrix[3])
    assert isinstance(mapped.codes, np.memmap)


def test_relevancy_files_of_every_kind(tmp_path):
    import pickle
    matrix = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(matrix.astype(np.float64)))
    np.save(tmp_path / "b.npy", matrix)
    for name in ("a.pkl", "b.npy"):
        assert np.allclose(prep.load_relevancy(tmp_path / name), matrix)
        relevancy.check(tmp_path / name, (5, 4))
        expected = rf"{name} is 5 x 4, but .*csv have 50 clips and 40 sentences; if those are whole, delete it"
        with pytest.raises(ValueError, match=expected):
            relevancy.check(tmp_path / name, (50, 40))
    (tmp_path / "c.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"c\.safetensors: not a relevancy file"):
        prep.load_relevancy(tmp_path / "c.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("clips, sentences, seconds, gigabytes", [(9668, 3842, 10, 1), (67217, 16000, 120, 4)])
def test_relevancy_at_full_size(tmp_path, clips, sentences, seconds, gigabytes):
    """Tables as large as EK-100's test and train splits stay within time and memory.

    Measured on one core: 1 s and 13 s, 0.4 and 2.4 GB.
    """
    import csv
    rng = np.random.default_rng(0)
    verbs = rng.zipf(1.6, clips) % 97
    nouns = [sorted(set((rng.zipf(1.5, rng.integers(1, 7)) % 300).tolist())) for _ in range(clips)]
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([("narration_id", "verb_class", "all_noun_classes"),
                                    *((f"n{i}", verbs[i], nouns[i]) for i in range(clips))])
    own = rng.choice(clips, sentences, replace=False)
    with open(tmp_path / "sentences.csv", "w", newline="") as file:
        csv.writer(file).writerows([("narration_id", "narration"), *((f"n{i}", "words") for i in own)])
    code = ("import re, sys, time, pandas\nfrom egokit.data import relevancy\nbegan = time.perf_counter()\n"
            "relevancy.write(*sys.argv[1:])\n"
            "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
            "print(time.perf_counter() - began, peak)")
    paths = [str(tmp_path / name) for name in ("out.safetensors", "clips.csv", "sentences.csv")]
    printed = subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True, text=True).stdout
    took, peak = map(float, printed.split())
    print(f"{clips} x {sentences}: {took:.1f} s, {peak / 2**20:.2f} GiB, "
          f"file {os.path.getsize(paths[0]) / 2**30:.2f} GiB")
    assert took < seconds and peak < gigabytes * 2**20
    mapped = relevancy.read(tmp_path / "out.safetensors")
    for i, j in rng.integers(0, (clips, sentences), (200, 2)):
        clip_nouns, sentence_nouns = set(nouns[i]), set(nouns[own[j]])
        iou = np.float32(len(clip_nouns & sentence_nouns)) / np.float32(len(clip_nouns | sentence_nouns))
        expected = (np.float32(verbs[i] == verbs[own[j]]) + iou) / 2
        assert mapped.row(i)[j] == np.float32(expected)


def test_a_relevancy_pickle_executes_nothing(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))
    path = tmp_path / "relevancy.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"relevancy\.pkl: not a relevancy file"):
        prep.load_relevancy(path)
    assert not (tmp_path / "made").exists()


def test_charades_metadata_has_a_row_for_every_action(project):
    folder = project / "outputs/toy/CharadesEgo/CharadesEgo"
    rows = annotation_tables.read_metadata(folder / "metadata_train.csv")
    classes = annotation_tables.charades_classes(folder / "Charades_v1_classes.txt")
    import pandas as pd
    listed = pd.read_csv(folder / "CharadesEgo_v1_train_only1st.csv")
    assert len(rows) == sum(len(annotation_tables.actions(text)) for text in listed.actions)
    assert (rows.narration == rows.cls.map(classes)).all()
    assert annotation_tables.actions("c152 11.0 17.1;c008 0.0 4.3") == [("c152", 11.0, 17.1), ("c008", 0.0, 4.3)]
    assert annotation_tables.actions(float("nan")) == []


def test_missing_root_says_what_makes_it(project, tmp_path):
    from egokit.config.resolve import resolve
    config = resolve("toy/pretrain", "tiny", f"site.root={tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match=r"data root .*nowhere.*params/sites/tiny\.yaml"):
        prep.prepare(config)
    from egokit import tasks
    with pytest.raises(FileNotFoundError, match="01_data_prep"):
        tasks.make(config).dataset("train")
