"""Text search over a folder of videos: its hits, their files and pages, and its command."""
import base64
import csv
import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path

import av
import pytest
import torch
from conftest import ROOT
from search_folder import RECIPE, searching, three_videos

import egokit
from egokit import cli, search
from egokit.data.video import open_video
from egokit.model import weights
from egokit.search import command, index_task


@pytest.fixture
def folder(tmp_path, project):
    return three_videos(project, tmp_path / "videos")


@pytest.fixture
def searched(checkpoint, folder, tmp_path):
    return searching(folder, tmp_path)


def test_hits_are_those_of_a_naive_twin(searched, folder):
    """The twin embeds and compares every clip by itself and drops overlapping ones one by one."""
    config, run, metrics = searched[1]()
    searcher, model = search.open_index(config, run), weights.initial_model(config).eval()
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
    hits = searcher(text, top=1000, merge=False)
    assert len(hits) == len(kept) < len(naive)
    assert [hit.cosine for hit in hits] == pytest.approx([score for score, *_ in kept], abs=2e-3)  # float16
    assert searcher(text, top=3, merge=False) == hits[:3]
    assert hits[0].path == kept[0][1] and hits[0].start == pytest.approx(kept[0][2])
    reranked = searcher(text, top=4, rerank=6, merge=False)
    with torch.no_grad():
        place = {(path, round(start, 3)): clip for _, path, start, _, clip in kept}
        match = {hit: model.match(place[hit.path, round(hit.start, 3)][None], [text]).item() for hit in hits[:6]}
    assert [hit.match for hit in reranked] == pytest.approx(sorted(match.values(), reverse=True)[:4], abs=1e-4)
    assert {dataclasses.replace(hit, match=None) for hit in reranked} <= set(hits[:6])


def test_names_that_are_long_or_no_text(searched, folder, tmp_path, capsys):
    """A file system accepts any 255 bytes as a name; old disks have names that are not UTF-8."""
    shutil.copy(folder / "one.mp4", folder / f"{'ü' * 125}.mp4")
    shutil.copy(folder / "inner/two.MP4", os.fsencode(folder) + b"/bad-\xff\xe9.mp4")
    with open(os.fsencode(folder) + b"/noise-\xff.mp4", "wb") as file:
        file.write(b"no video")
    config, run, metrics = searched[1]()
    searcher = search.open_index(config, run)
    hits = searcher("#C C opens the box", top=20, merge=False)
    assert metrics["unreadable"] == 1 and "noise-\ufffd.mp4" in searcher.manifest["unreadable"][0]["reason"]
    assert {"bad-\ufffd\ufffd.mp4", f"{'ü' * 125}.mp4"} < {hit.video for hit in hits}
    print(command.format_hits(hits), search.table(hits).to_html(), search.browser(searcher, "box", 20).data)
    assert "bad-\ufffd\ufffd" in capsys.readouterr().out.encode().decode()
    assert b"bad-\xff\xe9.mp4," in search.write_csv(hits, tmp_path / "hits.csv").read_bytes()
    paths = search.export(hits, tmp_path / "clips")
    assert all(path.is_file() for path in paths) and len({path.name for path in paths}) == len(hits)


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
    hits = searcher("#C C opens <the> box", top=4, rerank=2, merge=False)
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
    shown = search.browser(searcher, "#C C opens <the> box", top=4, merge=False).data
    page, = (path.read_text() for path in run.path.glob("figures/search-c-c-opens-the-box-??????.html"))
    for text in (shown, page):
        embedded = [base64.b64decode(data) for data in re.findall(r'src="data:video/mp4;base64,([^"]+)"', text)]
        assert len(embedded) == 4 and all(decoded(data)[2:] == ("h264", "yuv420p") for data in embedded)
        assert all(data.index(b"moov") < data.index(b"mdat") for data in embedded), "faststart"
        assert text.count("aria-label") == 4 and text.count("controls") == 4
        assert "<the>" not in text and "data:image/jpeg" in text
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    live = search.browser(searcher, "#C C opens the box", top=2, merge=False)
    query, sliders, status_line, view = live.children
    before = view.value
    query.value = "#C C moves the ball"
    assert view.value != before and view.value.count("<video") == 2
    sliders.children[0].value = 3
    sliders.children[1].value = 10
    assert view.value.count("<video") == 3 and view.value.count("match") >= 3
    query.value = " "
    assert "an empty query" in status_line.value and view.value.count("<video") == 3


def test_folders_of_long_and_of_equal_names_have_an_index_each():
    names = {command.run_name(Path(above) / name) for above in ("/a", "/b") for name in ("videos", "x" * 255, "ü")}
    assert len(names) == 6 and max(map(len, names)) == 255


def test_mistakes_are_one_line(project, capsys, tmp_path):
    for folder, message in ((tmp_path / "nowhere", "task.videos: no folder"), (tmp_path, "no videos in")):
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
def test_the_examples_of_the_document_work(project, checkpoint):
    """The lines of docs/search.md, on the tiny data set with the tests' checkpoint."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/search.md").read_text(), re.DOTALL)
    names = {}
    exec("".join(code).replace('"toy"', '"tiny"').replace("02_pretrain/demo", "02_pretrain/random"), names)
    hits, clip = names["hits"], names["clip"]
    assert 2 < len(hits) <= 10 and all(hit.path.is_file() and hit.match is not None for hit in hits)
    assert clip.dtype == torch.uint8 and clip.shape == (4, 3, 64, 64)
    read = egokit.read_clip(hits[0].path, *hits[0].scored, frames=4, size=64, resize=72)
    assert torch.allclose(egokit.tasks.normalise(clip), read, atol=1e-5)
    assert names["frames"].shape == (len(hits), 4, 3, 64, 64) and names["alike"].shape == (len(hits), len(hits))
    assert torch.allclose(names["alike"].diagonal(), torch.ones(len(hits)), atol=1e-4)
    assert len(names["motion"]) == len(names["by_motion"]) and set(names["by_motion"]) == set(hits)
    assert "left out" in names["similar"].notes[0] and "70 %" in names["both"].notes[0]
    assert names["still"][0].cosine and names["page"].is_file()
    assert all(hit.best is None for hit in names["single"])


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
    # an egokit of before made the index, and its copy is in the job's folder
    made = project / "outputs/07_search_your_videos/random"
    copy, manifest = made / "jobs/index/code/egokit/search/index_task.py", made / "features/manifest.json"
    copy.write_text(copy.read_text().replace(f"READING = {index_task.READING}", "READING = 0"))
    manifest.write_text(re.sub('"name": "', '"name": "0', manifest.read_text()).replace('"reading"', '"another"'))
    cli.main(arguments)
    assert json.loads(manifest.read_text())["reading"] == index_task.READING
    cli.main(["submit", RECIPE, "--site", "tiny", "--run", "random", "--overrides", f"task.videos={folder}",
              "--wait"])
    assert '"unreadable": 0' in capsys.readouterr().out, "a finished index is brought up to date"
