"""Search by example: a moment, a clip's file, a picture, a hit or frames, alone or beside a text."""
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from search_folder import searching, three_videos, video

import egokit
from egokit import cli, search
from egokit.config.build import ConfigError
from egokit.data.video import open_video
from egokit.search import command, examples, page
from egokit.search.examples import LONGEST, NEAR, ROUNDED, read_example, seconds
from egokit.search.hits import Answer
from egokit.search.vector_index import record, unit

TEXT = "#C C opens the box"


@pytest.fixture(scope="module")
def folder(project, tmp_path_factory):
    root = three_videos(project, tmp_path_factory.mktemp("example") / "videos")
    (root / "other").mkdir()
    shutil.copy(root / "short.mkv", root / "other/one.mp4")
    return root


@pytest.fixture(scope="module")
def searcher(checkpoint, folder, tmp_path_factory):
    config, run, _ = searching(folder, tmp_path_factory.mktemp("example_runs"))[1]()
    return search.open_index(config, run)


def embedded(searcher, clips):
    """The mean of the unit vectors of some clips, normalised frames (T, 3, 64, 64) each."""
    with torch.no_grad():
        return unit(searcher.model.encode_video(torch.stack(clips)).numpy()).mean(0)


def clip(path, start, stop):
    return egokit.read_clip(path, start, stop, frames=4, size=64, resize=72)


def test_times():
    assert [seconds(text) for text in ("83", "1:23", "1:02:03.5", "0:00.25")] == [83, 83, 3723.5, 0.25]


def test_examples_are_embedded_as_the_index_is(searcher, folder, tmp_path):
    one, two, short = folder / "one.mp4", folder / "inner/two.MP4", folder / "short.mkv"
    hit = searcher(TEXT, top=1)[0]
    frame = open_video.open_video(two).read([7])[0]
    Image.fromarray(frame).save(tmp_path / "a.png")
    still = searcher.task.transform(frame[None], None)
    elsewhere = video(tmp_path / "far@1:00.mp4", seconds=5)  # a file may be called like a moment
    frames = searcher.clip(hit)
    for like, expected in (
            (hit, [clip(hit.path, *hit.scored)]), (hit.place, None), (frames, [searcher.model.normalise(frames)]),
            ("two.MP4@3.25", [clip(two, 2.25, 4.25)]), ("inner/two.MP4@0:00.5", [clip(two, 0, 2)]),
            (f"{two}@2-3", [clip(two, 2, 3)]), ("two.MP4@1–0:04", [clip(two, start, start + 2) for start in (1, 2)]),
            ("short.mkv", [clip(short, 0, 1.3)]), (short, [clip(short, 0, 1.3)]),
            (elsewhere, [clip(elsewhere, start, start + 2) for start in range(4)]),
            (tmp_path / "a.png", [searcher.model.normalise(still.expand(4, -1, -1, -1))])):
        vector_E = read_example(searcher, like).vector_E
        assert np.isfinite(vector_E).all()
        if expected:
            assert unit(vector_E) @ unit(embedded(searcher, expected)) > 0.9999, like
    assert read_example(searcher, str(one.relative_to(folder)) + "@1").own.file == 1  # not other/one.mp4


def test_its_own_moment_is_left_out_and_that_is_said(searcher, folder):
    for merge in (True, False):
        hit = searcher(TEXT, top=1, merge=merge)[0]
        hits = searcher(like=hit, top=1000, merge=merge)
        assert not any(other.path == hit.path and other.start < hit.stop and other.stop > hit.start for other in hits)
        assert hits.notes[0] == f"like {hit.video} {hit.time} (left out of the hits)" and len(hits) > 1
    assert not any(other.video == "short.mkv" for other in searcher(like=folder / "short.mkv", top=1000))
    frames = searcher.clip(searcher(TEXT, top=1, merge=False)[0])
    found = searcher(like=frames, top=1, merge=False)
    assert found[0].cosine > 0.999 and found.notes[0] == "like frames", "frames are of no known moment"


@pytest.mark.parametrize("merge", [True, False])
def test_a_hit_and_its_place_are_one_example(searcher, folder, merge):
    """The clip that answered best, found again by times in tenths of a second; its moment is left out."""
    hits = searcher(TEXT, top=8, merge=merge)
    assert any(hit.best for hit in hits) == merge
    for hit in hits:
        by_hit, by_place = read_example(searcher, hit), read_example(searcher, hit.place)
        assert by_hit.name == by_place.name and by_hit.own == by_place.own
        assert (by_hit.vector_E == by_place.vector_E).all()
        assert searcher(like=hit, top=5) == searcher(like=hit.place, top=5)
    stretch = read_example(searcher, "inner/two.MP4@1-4")
    assert not any((stretch.vector_E == row["vector"]).all() for row in searcher.vectors.rows(stretch.own.file)), \
        "a stretch that is pasted is the mean of its windows"


def test_the_times_of_a_place_are_those_of_the_index():
    rows = np.zeros(5, record(2))
    rows["start"], rows["vector"] = np.arange(5) + 0.0433, np.arange(10).reshape(5, 2)
    rows["stop"] = rows["start"] + 2
    place, vector_E = examples._stored(rows, examples.Place("a", "a", 0, 1.0, 3.0, (0.0, 5.0), ROUNDED + NEAR))
    assert (place.start, place.stop, *place.around) == (*(rows[1][name] for name in ("start", "stop")), 0.0433, 5.0433)
    assert vector_E.tolist() == [2, 3]
    for near, start in ((NEAR, 1.0), (ROUNDED + NEAR, 1.1)):
        place = examples.Place("a", "a", 0, start, 3.0, (start, 3.0), near)
        assert examples._stored(rows, place) == (place, None)


def test_a_video_that_is_gone_is_an_example_still(searcher, folder):
    """A hit's vector is in the index."""
    hit = searcher(TEXT, top=1)[0]
    expected = searcher(like=hit, top=3)
    os.rename(hit.path, f"{hit.path}.away")
    try:
        assert len(searcher(like=hit, top=3)) == len(expected)
    finally:
        os.rename(f"{hit.path}.away", hit.path)


def test_with_a_text(searcher):
    hit = searcher(TEXT, top=1)[0]
    alone, text = searcher(like=hit, top=5), searcher(TEXT, top=5)
    for weight, expected in ((1.0, alone), (0.0, text)):
        both = searcher(TEXT, top=5, like=hit, weight=weight)
        assert f"counts {100 * weight:.0f} %, the text {100 - 100 * weight:.0f} %" in both.notes[0]
        assert {(other.video, other.best) for other in both} & {(other.video, other.best) for other in expected}
    ranked = searcher(TEXT, top=3, rerank=4, like=hit)
    matches = [other.match for other in ranked]
    assert None not in matches and matches == sorted(matches, reverse=True)


@pytest.mark.parametrize("like, message", [
    ("three.mp4", "no such file, and no video of"), ("one.mp5@0:01", "did you mean 'one.mp4'"),
    ("two.MP4@59:00", "has pictures from 0:00 to"), ("two.MP4@0:03-0:01", "ends before it starts"),
    ("no.jpg", "no such picture"), ("{tmp}/bad.jpg", "expected a whole JPEG or PNG"),
    ("{tmp}/notes.txt", "neither a video's nor a picture's file"), ("{tmp}/long.mp4", "name a moment of it"),
    (torch.zeros(9, 3, 64, 64, dtype=torch.uint8), "T from 1 to 4"), (torch.zeros(0, 3, 64, 64).byte(), "T from 1"),
    (7, "expected a moment of a video"), (torch.zeros(4, 3, 8, 8), "expected uint8"), ("@1:23", "no such file")])
def test_what_is_no_example_is_told_what_was_expected(searcher, tmp_path, like, message):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no video")
    if "long" in str(like):
        video(tmp_path / "long.mp4", seconds=LONGEST + 1, rate=2)
    with pytest.raises(ConfigError, match=message):
        searcher(like=like.format(tmp=tmp_path) if isinstance(like, str) else like)


@pytest.mark.parametrize("like, message", [
    ("three.mp4", "no such file, and no video of"), ("two.MP4@59:00", "has pictures from 0:00 to"),
    ("no.jpg", "no such picture"), ("noise.mp4@0:01", "noise.mp4"), ("two.MP4@0:01", "")])
def test_a_wrong_example_is_told_before_the_folder_is_indexed(project, checkpoint, folder, tmp_path, monkeypatch, like,
                                                              message, capsys):
    """Hours of indexing come after it, and the model that is loaded for them."""
    videos = shutil.copytree(folder, tmp_path / "videos")
    (videos / "noise.mp4").write_bytes(b"no video")

    def submit(config, run):
        raise ConfigError("indexing begins")
    monkeypatch.setattr(command, "submit", submit)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["search", str(videos), "--like", like, "--site", "tiny", "--run", "random"])
    error = capsys.readouterr().err
    assert (message or "indexing begins") in error and ("indexing begins" in error) == (not message)


def test_names_that_several_videos_have(searcher, folder):
    assert read_example(searcher, "one.mp4@1").own.file != read_example(searcher, "other/one.mp4@1").own.file
    with pytest.raises(ConfigError, match="write one beside the example"):
        searcher(like="one.mp4@1", rerank=5)
    with pytest.raises(ConfigError, match="weight=2"):
        searcher(TEXT, like="one.mp4@1", weight=2)
    with pytest.raises(ValueError, match="an empty query"):
        searcher(" ")


def test_a_hit_of_a_videos_first_clip_is_an_example_as_it_is_shown(searcher, monkeypatch):
    monkeypatch.setattr(open_video, "open_video", lambda *given, **options: SimpleNamespace(start=0.04, seconds=9.0))
    library = examples.Library(searcher.folder, searcher.manifest["videos"], searcher.task.config)
    place = examples._named(library, "one.mp4@0:00-0:02")
    assert (place.start, place.stop) == (0.04, 2.0), "times are shown in tenths of a second"


def test_the_box_asks_on_with_the_same_example():
    """Frames have no name."""
    asked = []

    class Recorder:
        model = SimpleNamespace(fuses=False)

        def __call__(self, text, top, rerank, like, weight, merge):
            asked.append(like)
            return Answer([], [])
    frames = torch.zeros(4, 3, 64, 64).byte()
    query, sliders, *_ = page._live(Recorder(), "", 2, 0, ("frames", frames), 0.5, True, 1.0, "").children
    query.value = "#C C opens"
    sliders.children[1].value = " one.mp4@1 "
    sliders.children[1].value = ""
    assert asked[0] is frames and asked[1:] == ["one.mp4@1", None]
