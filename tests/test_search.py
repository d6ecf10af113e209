"""Text search over a folder of videos: clips, hits, updates of the index, faiss, pages."""
import base64
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time

import av
import numpy as np
import pytest
import torch

import egokit
from egokit import cli, search, tasks
from egokit.data.video import open_video
from egokit.jobs import launch, status
from egokit.prep.video import ffmpeg
from egokit.runs.run_folder import Run
from egokit.search import command, index_task, vector_index
from egokit.train import loop

RECIPE = "toy/search"


def video(path, seconds=5, rate=10, size="128x96", more=()):
    """Write a real video of ffmpeg's moving test pattern."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern = f"testsrc2=size={size}:rate={rate}:duration={seconds}"
    subprocess.run([ffmpeg(), "-y", "-loglevel", "error", "-f", "lavfi", "-i", pattern, *more, str(path)], check=True)
    return path


@pytest.fixture
def folder(tmp_path, project):
    """Two of the toy's videos, one in a sub-folder, and a short one of another format."""
    root = tmp_path / "videos"
    toys = sorted((project / "outputs/toy/Ego4D").glob("*.mp4"))
    (root / "inner").mkdir(parents=True)
    shutil.copy(toys[0], root / "one.mp4")
    shutil.copy(toys[1], root / "inner/two.MP4")
    video(root / "short.mkv", seconds=1.3, rate=30, size="160x120")
    return root


@pytest.fixture
def searched(checkpoint, resolve, folder, tmp_path):
    """Return a function that makes the folder's config, and one that indexes it here."""
    def config(overrides=""):
        return resolve(RECIPE, {"search.videos": str(folder), "data.limit": 0, "evaluate.batch_size": 8}
                       | dict(pair.split("=") for pair in overrides.split()), "random")

    def index(overrides="", name="run"):
        resolved, run = config(overrides), Run(tmp_path / name)
        return resolved, run, tasks.make(resolved).extract(loop.initial_model(resolved).eval(), run)
    return config, index


@pytest.fixture
def resolve(project):
    from egokit.config.build import merge
    from egokit.config.resolve import parse_overrides, resolve

    def on_tiny(params, overrides, run):
        one_process = parse_overrides("launch.tasks_per_node=1")
        return resolve(params, "tiny", merge(one_process, parse_overrides(overrides)), run)
    return on_tiny


def test_hits_are_those_of_a_naive_twin(searched, folder):
    """The twin embeds and compares every clip by itself and drops overlapping ones one by one."""
    config, run, metrics = searched[1]()
    searcher, model = search.open_index(config, run), loop.initial_model(config).eval()
    naive = []
    for path in (folder / "inner/two.MP4", folder / "one.mp4", folder / "short.mkv"):
        reader = open_video.PyAVReader(path)
        seconds = reader.length / reader.fps
        starts = [float(s) for s in range(1000) if s + 2 <= seconds + 1e-6] or [0.0]
        if starts[-1] + 2 < seconds - 1e-6:
            starts.append(seconds - 2)
        for start in starts:
            stop = min(start + 2, seconds)
            clip = egokit.read_clip(path, start, stop, frames=4, size=64, resize=72)
            with torch.no_grad():
                naive.append((path, start, stop, clip, model.encode_video(clip[None])[0]))
    seconds = {path: stop for path, _, stop, _, _ in naive}
    assert metrics == {"videos": 3, "clips": len(naive), "unreadable": 0,
                       "hours": pytest.approx(sum(seconds.values()) / 3600, rel=1e-4)}
    text = "#C C opens the box"
    with torch.no_grad():
        vectors = torch.stack([vector for *_, vector in naive])
        cosine = egokit.similarity(model.encode_text([text]), vectors)[0].tolist()
    kept = []
    for score, (path, start, stop, clip, _) in sorted(zip(cosine, naive, strict=True), key=lambda pair: -pair[0]):
        if all(path != better[1] or stop <= better[2] or start >= better[3] for better in kept):
            kept.append((score, path, start, stop, clip))
    hits = searcher(text, top=1000)
    assert len(hits) == len(kept) < len(naive)
    assert [hit.cosine for hit in hits] == pytest.approx([score for score, *_ in kept], abs=2e-3)  # float16
    assert searcher(text, top=3) == hits[:3]
    assert hits[0].path == kept[0][1] and hits[0].start == pytest.approx(kept[0][2])
    reranked = searcher(text, top=4, rerank=6)
    with torch.no_grad():
        place = {(path, round(start, 3)): clip for _, path, start, _, clip in kept}
        match = {hit: model.match(place[hit.path, round(hit.start, 3)][None], [text]).item() for hit in hits[:6]}
    assert [hit.match for hit in reranked] == pytest.approx(sorted(match.values(), reverse=True)[:4], abs=1e-4)
    assert {dataclasses.replace(hit, match=None) for hit in reranked} <= set(hits[:6])


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


def test_names_that_are_long_or_no_text(searched, folder, tmp_path, capsys):
    """A file system accepts any 255 bytes as a name; old disks have names that are not UTF-8."""
    shutil.copy(folder / "one.mp4", folder / f"{'ü' * 125}.mp4")
    shutil.copy(folder / "inner/two.MP4", os.fsencode(folder) + b"/bad-\xff\xe9.mp4")
    with open(os.fsencode(folder) + b"/noise-\xff.mp4", "wb") as file:
        file.write(b"no video")
    config, run, metrics = searched[1]()
    searcher = search.open_index(config, run)
    hits = searcher("#C C opens the box", top=20)
    assert metrics["unreadable"] == 1 and "noise-\ufffd.mp4" in searcher.manifest["unreadable"][0]["reason"]
    assert {"bad-\ufffd\ufffd.mp4", f"{'ü' * 125}.mp4"} < {hit.video for hit in hits}
    print(command.format_hits(hits), search.table(hits).to_html(), search.browser(searcher, "box", 20).data)
    assert "bad-\ufffd\ufffd" in capsys.readouterr().out.encode().decode()
    assert b"bad-\xff\xe9.mp4," in search.write_csv(hits, tmp_path / "hits.csv").read_bytes()
    paths = search.export(hits, tmp_path / "clips")
    assert all(path.is_file() for path in paths) and len({path.name for path in paths}) == len(hits)


def test_another_checkpoint_or_window_is_an_error(searched, checkpoint):
    config, run, _ = searched[1]()
    with pytest.raises(egokit.ConfigError, match=r"window: 2.0 -> 3.0\): choose another run name, or delete"):
        searched[1]("search.window=3")
    kept = checkpoint.read_bytes()
    try:
        checkpoint.write_bytes(kept + b" ")
        with pytest.raises(egokit.ConfigError, match="init_sha256"):
            search.open_index(config, run)
    finally:
        checkpoint.write_bytes(kept)
    with pytest.raises(egokit.ConfigError, match="expected a stride above 0 and up to the window"):
        searched[1]("search.stride=3", "other")
    with pytest.raises(egokit.ConfigError, match="has no index of any video"):
        search.open_index(config, Run(run.path / "empty"))


def test_variable_frame_rates_are_cut_by_time(searched, tmp_path):
    """A phone's video has ten frames a second, then thirty; clips are cut by seconds."""
    path = video(tmp_path / "phone.mp4", 8, 30, more=("-vf", "select='gte(t,4)+not(mod(n,3))'", "-fps_mode", "vfr"))
    reader, task = open_video.PyAVReader(path), tasks.make(searched[0]())
    assert reader.length == 160 and open_video.duration(reader) == pytest.approx(8, abs=0.05)
    times = (reader.times - reader.times[0]) * float(reader.stream.time_base)
    for start in (0, 3, 5):
        shown = times[task.clip_indices(reader, start, start + 2)]
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
    """The same video in every container; in AVI, which has no time stamps, frames are counted."""
    task = tasks.make(searched[0]())
    rate = 25 if name.endswith((".mpg", ".vob")) else 10
    mp4, path = video(tmp_path / "same.mp4", 6), video(tmp_path / name, 6, rate, more=(*more, "-b:v", "4M"))
    for start in (0.0, 2.0, 4.0):
        expected, clip = (task.clip(source, start, start + 2).float() for source in (mp4, path))
        next_start = (start + 2) % 6
        next_clip = task.clip(mp4, next_start, next_start + 2).float()
        assert (expected - clip).abs().mean() < 0.3 * (expected - next_clip).abs().mean()
    windows = index_task.VideoWindows(task, path)
    assert windows.read(0, None)["video"].shape == (5, 4, 3, 64, 64)
    assert windows.seconds == pytest.approx(6, abs=0.11)
    assert torch.equal(index_task.VideoWindows(task, path).read(0, None)["video"][2], task.clip(path, 2, 4))


@pytest.mark.parametrize("seconds, starts", [(0.5, [0]), (4, [0]), (5, [0, 1]), (8, [0, 2, 4]), (9.5, [0, 2, 4, 5.5])])
def test_clips_cover_a_video(seconds, starts):
    start_N, stop_N = index_task.clip_times(seconds, 4, 2)
    assert start_N.tolist() == starts and stop_N.tolist() == [min(start + 4, seconds) for start in starts]


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
    file, row = index.locate(int(number[0, 0]))
    assert row["start"] == number[0, 0] - index.first[file]


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


def decoded(data):
    """Return (seconds, frames, codec, pixel format) of an MP4."""
    with av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        codec = stream.codec_context
        return float(stream.duration * stream.time_base), frames, codec.name, codec.pix_fmt


def test_files_and_pages(searched, tmp_path, monkeypatch):
    config, run, _ = searched[1]()
    searcher = search.open_index(config, run)
    hits = searcher("#C C opens <the> box", top=4, rerank=2)
    with open(search.write_csv(hits, tmp_path / "hits.csv")) as file:
        rows = list(csv.DictReader(file))
    expected = [(str(hit.path), round(hit.start, 3)) for hit in hits]
    assert [(row["video"], float(row["start"])) for row in rows] == expected
    assert rows[0]["match"] and not rows[3]["match"]
    assert float(rows[1]["cosine"]) == pytest.approx(hits[1].cosine, abs=1e-6)
    for hit, path in zip(hits, search.export(hits, tmp_path / "clips"), strict=True):
        seconds, count, codec, pixels = decoded(path)
        assert abs(seconds - (hit.stop - hit.start)) < 0.15 and count >= 9 * seconds
        assert (codec, pixels) == ("h264", "yuv420p")
    shown = search.browser(searcher, "#C C opens <the> box", top=4).data
    page = (run.path / "figures/search-c-c-opens-the-box.html").read_text()
    for text in (shown, page):
        embedded = [base64.b64decode(data) for data in re.findall(r'src="data:video/mp4;base64,([^"]+)"', text)]
        assert len(embedded) == 4 and all(decoded(data)[2:] == ("h264", "yuv420p") for data in embedded)
        assert all(data.index(b"moov") < data.index(b"mdat") for data in embedded), "faststart"
        assert text.count("aria-label") == 4 and text.count("controls") == 4
        assert "<the>" not in text and "data:image/jpeg" in text
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    live = search.browser(searcher, "#C C opens the box", top=2)
    query, sliders, status_line, view = live.children
    before = view.value
    query.value = "#C C moves the ball"
    assert view.value != before and view.value.count("<video") == 2
    sliders.children[0].value = 3
    sliders.children[1].value = 10
    assert view.value.count("<video") == 3 and view.value.count("match") >= 3
    query.value = " "
    assert "an empty query" in status_line.value and view.value.count("<video") == 3
    hits[0].path.unlink()
    with pytest.raises(FileNotFoundError, match="is gone since it was indexed"):
        searcher("#C C opens <the> box", top=4, rerank=2)


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


def test_mistakes_are_one_line(project, capsys, tmp_path):
    for folder, message in ((tmp_path / "nowhere", "search.videos: no folder"), (tmp_path, "no videos in")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["search", str(folder), "x", "--site", "tiny", "--run", "random"])
        assert message in capsys.readouterr().err


def test_what_is_asked_for_can_be_written(project, capsys, tmp_path):
    """Targets are checked before hours of indexing; an unforeseen error is one line, too."""
    (tmp_path / "file").write_text("")
    for option, target, message in (("--csv", tmp_path, "is a folder: name a file in it"),
                                    ("--clips", tmp_path / "file", "is a file"),
                                    ("--csv", tmp_path / "file/hits.csv", "nothing can be written in")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["search", str(tmp_path / "nowhere"), "x", "--site", "tiny", option, str(target)])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["convert", str(tmp_path), str(tmp_path / "out.pt")])
    assert re.fullmatch(r"egokit: .*\n", capsys.readouterr().err)


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
        search.submit(searched[0]("launch.tasks_per_node=2 search.window=3"), run)
    assert launch.Handle(run, "index").metrics()["videos"] == 10


@pytest.mark.slow
def test_the_command_indexes_and_answers(searched, folder, project, tmp_path, capsys):
    arguments = ["search", str(folder), "#C C opens the box", "--site", "tiny", "--run", "random", "--top", "3",
                 "--rerank", "5"]
    cli.main([*arguments, "--csv", str(tmp_path / "hits.csv"), "--clips", str(tmp_path / "clips")])
    printed = capsys.readouterr().out
    assert re.search(r"rank  video +time +cosine +match\n +1  ", printed) and (tmp_path / "hits.csv").exists()
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 3
    (folder / "bad.mp4").write_bytes(b"no video")
    cli.main(arguments)
    assert f"can't be read: {folder / 'bad.mp4'}" in capsys.readouterr().out
    (folder / "bad.mp4").unlink()
    cli.main(["submit", RECIPE, "--site", "tiny", "--run", "random", "--overrides", f"search.videos={folder}",
              "--wait"])
    assert '"unreadable": 0' in capsys.readouterr().out, "a finished index is brought up to date"
