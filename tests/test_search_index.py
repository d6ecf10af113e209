"""The index of a folder of videos: its updates, its unreadable videos, its vectors, exact and with faiss."""
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from search_folder import searching, three_videos, video

import egokit
from egokit import search
from egokit.jobs import launch, status
from egokit.runs.run_folder import Run
from egokit.search import index_task, vector_index


@pytest.fixture
def folder(tmp_path, project):
    return three_videos(project, tmp_path / "videos")


@pytest.fixture
def searched(checkpoint, folder, tmp_path):
    return searching(folder, tmp_path)


def test_only_what_is_new_is_embedded_and_what_is_gone_is_forgotten(searched, folder, monkeypatch):
    config, run, _ = searched[1]()
    features, read = run.path / "features", []
    before = {path.name: path.read_bytes() for path in features.glob("*.npy")}
    original = index_task.embed_windows
    monkeypatch.setattr(index_task, "embed_windows",
                        lambda model, windows, name: read.append(name) or original(model, windows, name))
    assert index_task.is_up_to_date(config, features) and searched[1]()[2]["videos"] == 3 and not read
    (folder / "one.mp4").unlink()
    video(folder / "short.mkv", seconds=2, rate=30, size="160x120")
    video(folder / "new.webm", seconds=3, more=("-c:v", "libvpx", "-b:v", "200k"))
    assert not index_task.is_up_to_date(config, features)
    assert searched[1]()[2]["videos"] == 3 and sorted(read) == ["new.webm", "short.mkv"]
    manifest = json.loads((features / "manifest.json").read_text())
    assert [line["video"] for line in manifest["videos"]] == ["inner/two.MP4", "new.webm", "short.mkv"]
    assert {path.stem for path in features.glob("*.npy")} == {line["name"] for line in manifest["videos"]}
    names = [f"{line['name']}.npy" for line in manifest["videos"]]
    assert [before.get(name) == (features / name).read_bytes() for name in names] == [True, False, False]


def test_a_broken_video_is_named_and_the_others_are_searched(searched, folder, capsys):
    whole = (folder / "one.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[:len(whole) // 2])
    (folder / "noise.mov").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / ".hidden.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video")
    (folder / "inner/round").symlink_to(folder, target_is_directory=True)
    config, run, metrics = searched[1]()
    assert metrics["videos"] == 3 and metrics["unreadable"] == 2
    assert index_task.is_up_to_date(config, run.path / "features")
    manifest = json.loads((run.path / "features/manifest.json").read_text())
    for line, name in zip(manifest["unreadable"], ("cut.mp4", "noise.mov"), strict=True):
        assert line["video"] == name and str(folder / name) in line["reason"]
    assert sum(event["kind"] == "bad" for event in run.read_log()) == 2
    assert "2 can't be read" in repr(search.open_index(config, run))


def test_another_checkpoint_or_window_is_an_error(searched, checkpoint):
    config, run, _ = searched[1]()
    with pytest.raises(egokit.ConfigError, match=r"window: 2.0 -> 3.0\): choose another run name, or delete"):
        searched[1]("task.window=3")
    kept = checkpoint.read_bytes()
    try:
        checkpoint.write_bytes(kept + b" ")
        with pytest.raises(egokit.ConfigError, match="init_sha256"):
            search.open_index(config, run)
    finally:
        checkpoint.write_bytes(kept)
    with pytest.raises(egokit.ConfigError, match="expected a stride above 0 and up to the window"):
        searched[1]("task.stride=3", "other")
    with pytest.raises(egokit.ConfigError, match="has no index of any video"):
        search.open_index(config, Run(run.path / "empty"))


def some_vectors(folder, files, seed=0, dimension=16):
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((40, dimension), np.float32)
    clips = [int(n) for n in rng.integers(200, 900, files)]
    for file, n in enumerate(clips):
        vector_index.save(folder / f"{file}.npy", np.arange(n), np.arange(n) + 1, centre[rng.integers(0, 40, n)]
                     + 0.5 * rng.standard_normal((n, dimension), np.float32))
    return vector_index.VectorIndex(folder, [str(file) for file in range(files)], clips, dimension), \
        centre[rng.integers(0, 40, 20)] + 0.7 * rng.standard_normal((20, dimension), np.float32)


def test_nearest_is_a_plain_sort(tmp_path, monkeypatch):
    index, query = some_vectors(tmp_path, 12)
    monkeypatch.setattr(vector_index, "BLOCK", 4 * 16 * 100)
    every = np.concatenate([index.rows(file)["vector"].astype(np.float32) for file in range(12)])
    cosine = vector_index.unit(query) @ every.T
    best, number = index.search(query, 30)
    assert np.allclose(best, -np.sort(-cosine, axis=1)[:, :30])
    # the tolerance: how a sum is rounded depends on the block
    assert np.allclose(np.take_along_axis(cosine, number, 1), best, atol=1e-6)
    assert index.search(query[0], 10 ** 6)[0].shape == (1, len(index))
    file, at = index.locate(int(number[0, 0]))
    assert index.rows(file)["start"][at] == number[0, 0] - index.first[file]


def test_faiss_proposes_what_exact_search_finds(tmp_path, monkeypatch):
    """New files are searched exactly, and removed ones are not found."""
    index, query = some_vectors(tmp_path, 25)
    exact = index.search(query, 10)[1]
    monkeypatch.setattr(vector_index, "EXACT", 100_000)
    monkeypatch.setattr(vector_index, "CANDIDATES", 200)
    monkeypatch.setattr(vector_index, "CODE", 8)  # quicker to train
    assert index.needs_faiss()
    index.build_faiss()
    assert not index.needs_faiss() and index.faiss_index()
    close = index.search(query, 10)[1]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(close, exact, strict=True)]) > 0.95
    vector_index.save(tmp_path / "new.npy", np.zeros(3), np.ones(3), query[:3])
    names = ["new", *index.names[5:]]
    changed = vector_index.VectorIndex(tmp_path, names, [3, *np.diff(index.first)[5:]], 16)
    assert changed.files_outside_faiss() == [0]
    best, number = changed.search(query, 10)
    assert number[:3, 0].tolist() == [0, 1, 2] and np.allclose(best[:3, 0], 1, atol=1e-3)
    remaining = [set(row[row >= index.first[5]] - index.first[5] + 3) for row in exact]
    recall = [len(set(row) & expected) / len(expected) for row, expected in zip(number, remaining, strict=True)
              if expected]
    assert np.mean(recall) > 0.95


def test_a_faiss_index_of_others_is_not_opened(tmp_path, monkeypatch, capsys):
    import shutil

    import faiss
    index, query = some_vectors(tmp_path / "mine", 25)
    monkeypatch.setattr(vector_index, "CODE", 8)
    exact = index.search(query, 10)[1]
    index.build_faiss()
    shutil.copytree(tmp_path / "mine", tmp_path / "moved")
    moved = vector_index.VectorIndex(tmp_path / "moved", index.names, np.diff(index.first).tolist(), 16)
    assert moved.faiss_index() and not capsys.readouterr().out
    with open(tmp_path / "moved/approximate/index.faiss", "r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 8)
    opened = []
    monkeypatch.setattr(faiss, "read_index", opened.append)
    changed = vector_index.VectorIndex(tmp_path / "moved", index.names, np.diff(index.first).tolist(), 16)
    assert np.array_equal(changed.search(query, 10)[1], exact) and not opened
    assert capsys.readouterr().out.count("approximate was not made by this user's egokit, or is damaged") == 1


def test_steps_are_videos_of_all_attempts(searched):
    """Steps count the videos of all attempts.

    requeue.decide gives up when a rank is lost twice at one step; two losses at different videos must not look so.
    """
    _, run, metrics = searched[1]()
    total = metrics["videos"]
    next(run.path.glob("features/[!.]*.npy")).unlink()
    searched[1]()
    steps = [(event["step"], event["steps"]) for event in run.read_log() if event["kind"] == "extract"]
    assert steps == [(done, total) for done in (*range(total + 1), total - 1, total)]


@pytest.mark.slow
def test_killed_in_the_middle_and_in_two_processes_the_index_is_the_same(searched, folder, tmp_path):
    for number in range(8):
        shutil.copy(folder / "one.mp4", folder / f"copy-{number}.mp4")
    config, run = searched[0]("launch.tasks_per_node=2 evaluate.batch_size=1"), Run(tmp_path / "two")
    handle = search.submit(config, run)
    deadline = time.monotonic() + 180
    while not (before := {path.name: path.stat().st_mtime_ns for path in run.path.glob("features/[!.]*.npy")}):
        assert time.monotonic() < deadline and handle.alive(), handle.log_tail()
        time.sleep(0.005)
    for process in status.processes(handle.folder):
        os.kill(process, signal.SIGKILL)
    while handle.alive():
        time.sleep(0.05)
    assert len(list(run.path.glob("features/[!.]*.npy"))) < 11
    metrics = search.submit(config, run).wait(progress=False)
    _, uninterrupted, _ = searched[1]("evaluate.batch_size=1", "one")
    names = {path.name for path in uninterrupted.path.glob("features/*.npy")}
    assert metrics["videos"] == 11 and metrics["processes"] == 2
    assert {path.name for path in run.path.glob("features/*.npy")} == names
    assert {path.name for path in run.path.glob("features/.*")} <= names, "no parts of files are left"
    for name in names:
        assert (uninterrupted.path / "features" / name).read_bytes() == (run.path / "features" / name).read_bytes()
    assert all((run.path / "features" / name).stat().st_mtime_ns == at for name, at in before.items())
    began = (handle.folder / "spec.json").stat().st_mtime_ns
    assert search.submit(config, run).metrics()
    assert (handle.folder / "spec.json").stat().st_mtime_ns == began, "nothing has changed"
    (folder / "copy-0.mp4").unlink()
    assert search.submit(config, run).wait(progress=False)["videos"] == 10
    with pytest.raises(egokit.ConfigError, match="made with other parameters"):
        search.submit(searched[0]("launch.tasks_per_node=2 task.window=3"), run)
    assert launch.Handle(run, "index").metrics()["videos"] == 10
