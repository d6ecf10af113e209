"""One clip that can't be read or cut never ends a query, a page, a table or an export; and what every answer says."""
import argparse
import csv
import errno
import html
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from search_folder import searching, three_videos, video

from egokit import search
from egokit.model import weights
from egokit.search import clip_files, command, index_task, searcher

TEXT = "#C C opens the box"


@pytest.fixture
def folder(tmp_path, project):
    return three_videos(project, tmp_path / "videos")


@pytest.fixture
def searched(checkpoint, folder, tmp_path):
    return searching(folder, tmp_path)


def lose(folder):
    """After indexing: one video is gone, one is noise now, one is whole; return the readable one."""
    (folder / "one.mp4").unlink()
    (folder / "inner/two.MP4").write_bytes(np.random.default_rng(0).bytes(5000))
    return folder / "short.mkv"


def test_clips_that_cannot_be_read_come_last_and_are_named(searched, folder):
    config, run, _ = searched[1]()
    shutil.copy(folder / "short.mkv", folder / "whole.mkv")
    config, run, _ = searched[1]()
    index = search.open_index(config, run)
    by_cosine = index(TEXT, top=1000, merge=False)
    whole = index(TEXT, top=1000, rerank=1000, merge=False)
    assert not any(hit.error for hit in whole) and whole.notes == by_cosine.notes
    lose(folder)
    hits = index(TEXT, top=1000, rerank=len(by_cosine) - 1, merge=False)
    readable = [hit for hit in whole if hit.path.suffix == ".mkv"]
    tail = by_cosine[-1:]  # not re-ranked
    expected = [hit for hit in readable if hit.path != tail[0].path or hit.start != tail[0].start]
    assert [(hit.path, hit.start) for hit in hits[:len(expected)]] == [(hit.path, hit.start) for hit in expected]
    assert [hit.match for hit in hits[:len(expected)]] == pytest.approx([hit.match for hit in expected], abs=1e-4)
    lost = hits[len(expected):-1]
    assert [(hit.path, hit.start, hit.cosine) for hit in lost] == [
        (hit.path, hit.start, hit.cosine) for hit in by_cosine[:-1] if hit.path.suffix != ".mkv"]
    assert all(hit.match is None and hit.note == "can't be read" for hit in lost) and not hits[-1].error
    notes = "\n".join(hits.notes)
    count = sum(hit.path.name == "one.mp4" for hit in lost)
    assert f"not re-ranked: {count} clip" in notes and f"{folder / 'one.mp4'} is gone since it was indexed" in notes
    assert str(folder / "inner/two.MP4") in notes and len(hits.notes) == len(whole.notes) + 2
    few = index(TEXT, top=1, rerank=1000, merge=False)
    every = index(TEXT, 1000, 1000, merge=False)
    assert few[0].match and few.notes == every.notes, "named although they are not among the best"
    with pytest.raises(FileNotFoundError, match="brings the index up to date"):
        index.clip(next(hit for hit in hits if hit.path.name == "one.mp4"))


def test_a_video_that_became_shorter_is_not_ranked_by_its_last_picture(searched, folder):
    config, run, _ = searched[1]()
    index = search.open_index(config, run)
    video(folder / "one.mp4", seconds=3)
    hits = index(TEXT, top=1000, rerank=1000, merge=False)
    late = [hit for hit in hits if hit.path.name == "one.mp4" and hit.start >= 3]
    assert late and all(hit.match is None and "it ends at 3.0 s" in hit.error for hit in late)


def test_pages_tables_and_exports_go_on(searched, folder, tmp_path, monkeypatch):
    config, run, _ = searched[1]()
    index = search.open_index(config, run)
    lose(folder)
    hits = index(TEXT, top=6, rerank=1000, merge=False)
    readable = [hit for hit in hits if hit.path.name == "short.mkv"]
    assert len(readable) == 1 < len(hits)
    lines = []
    paths = search.export(hits, tmp_path / "clips", lines.append)
    assert [path.name for path in paths] == [path.name for path in (tmp_path / "clips").iterdir()]
    assert len(paths) == 1 and len(lines) == len(hits) - 1 and all("not written: " in line for line in lines)
    with pytest.raises(clip_files.ExportError, match=f"{len(lines)} of {len(hits)} clips can't be cut"):
        search.export(hits, tmp_path / "again")
    assert len(list((tmp_path / "again").iterdir())) == 1
    with open(search.write_csv(hits, tmp_path / "hits.csv")) as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["video", "start", "stop", "cosine", "match", "note", "best_start", "best_stop"]
    assert len(rows) == len(hits)
    assert not rows[0]["note"] and "can't be read: " in rows[-1]["note"]
    assert command.format_hits(hits).count("can't be read") == len(lines)
    table = html.unescape(search.table(hits).to_html())
    assert table.count("can't be read</td>") == len(lines) and "not re-ranked: " in table
    shown = search.browser(index, TEXT, top=6, rerank=1000, merge=False).data
    page = (run.path / "figures/search-c-c-opens-the-box.html").read_text()
    for text in map(html.unescape, (shown, page, search.grid(hits).data)):
        assert text.count("<video") == 1 and text.count("no clip: ") == len(lines) == text.count("· can't be read<")
        assert text.count("<figcaption") == len(hits) and "ranked by run:02_pretrain/random" in text
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    query, _, status_line, view = search.browser(index, TEXT, top=6, rerank=1000, merge=False).children
    query.value = "#C C moves the ball"
    assert view.value.count("<figcaption") == 6 and not status_line.value and "no clip: " in view.value


def arguments(folder, tmp_path, **more):
    """Return the command line's arguments for the folder, with a table and clips."""
    return argparse.Namespace(**{
        "folder": str(folder), "query": TEXT, "params": "toy/search", "site": "tiny", "run": None, "rerank": 0,
        "overrides": "data.limit=0 launch.tasks_per_node=1", "checkpoint": "run:02_pretrain/random", "top": 4,
        "csv": str(tmp_path / "a.csv"), "clips": str(tmp_path / "clips"), "page": str(tmp_path / "a.html"),
        "like": None, "weight": 0.5, "single": True} | more)


@pytest.fixture
def indexing(searched, monkeypatch):
    """The command makes the index in this process, without a job."""
    monkeypatch.setattr(command, "submit", lambda config, run: argparse.Namespace(
        wait=lambda: index_task.Search(config).extract(weights.initial_model(config).eval(), run)))


def test_the_command_writes_what_it_can_and_fails_at_the_end(indexing, folder, tmp_path, monkeypatch, capsys):
    original = command.open_index

    def lost_meanwhile(config, run):
        opened = original(config, run)
        lose(folder)
        return opened
    monkeypatch.setattr(command, "open_index", lost_meanwhile)
    with pytest.raises(SystemExit) as ended:
        command.answer(arguments(folder, tmp_path, rerank=1000, top=5))
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and len(list((tmp_path / "clips").glob("*.mp4"))) == 1
    assert "1 clips in" in printed and "a.csv: 5 hits" in printed and len((tmp_path / "a.csv").read_text().split()) > 5
    assert printed.rstrip().splitlines()[-4:] == [line for line in printed.splitlines() if "not written: " in line]


def test_unreadable_videos_are_listed_once_and_then_counted(indexing, folder, tmp_path, capsys):
    for number in range(3):
        (folder / f"bad-{number}.mp4").write_bytes(b"no video")
    printed = []
    for _ in range(3):
        command.answer(arguments(folder, tmp_path, clips=None, csv=None))
        printed.append(capsys.readouterr().out)
        if len(printed) == 2:
            (folder / "bad-2.mp4").unlink()
    assert [text.count("can't be read: ") for text in printed] == [3, 0, 2]
    for text, count in zip(printed, (3, 3, 2), strict=True):
        named = re.search(rf"{count} can't be read \(listed in (\S+manifest.json)\)", text)[1]
        assert Path(named).parts[-4:-2] == ("07_search_your_videos", command.run_name(folder))
    assert len(json.loads(Path(named).read_text())["unreadable"]) == count


def test_a_folder_that_may_not_be_looked_at_is_named(searched, folder, monkeypatch):
    """As lost+found on every disk; tests may run as root, whom nothing is refused."""
    original = os.scandir

    def scandir(path):
        if Path(path).name == "inner":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)
    monkeypatch.setattr(os, "scandir", scandir)
    config, run, metrics = searched[1]()
    assert metrics["videos"] == 2 and metrics["unreadable"] == 1
    assert index_task.is_up_to_date(config, run.path / "features")
    assert f"{folder / 'inner'}: can't be looked at (Permission denied)" in search.open_index(config, run).problems()[0]
    monkeypatch.undo()
    assert not index_task.is_up_to_date(config, run.path / "features")
    assert searched[1]()[2]["videos"] == 3


def test_whose_model_ranks_stands_in_every_answer(searched, resolve):
    config, run, _ = searched[1]()
    index = search.open_index(config, run)
    said = "ranked by run:02_pretrain/random (the toy's model: it knows only the toy's videos)"
    assert said in repr(index)
    hits = index(TEXT)  # in videos that are not the toy's
    for text in ("\n".join(hits.notes), search.browser(index, TEXT, 1).data, search.table(hits).to_html()):
        assert said in html.unescape(text) and "--params search --site local" in text
    assert searcher.model_notes(resolve("toy/search", "task.videos=EK100", run="random")) == (said, "")
