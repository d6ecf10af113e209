"""One's own videos are indexed as far as they can be read, by the player's clock; features are strict by default."""
import json
import subprocess

import numpy as np
import pytest
import torch
from mq_features import extracted
from search_folder import damage, searching, video

import egokit
from egokit import search, tasks
from egokit.data.video import open_video
from egokit.prep.video import ffmpeg
from egokit.search import index_task

TEXT = "#C C opens the box"
KEYFRAMES = ("-c:v", "libx264", "-g", "60", "-bf", "0", "-keyint_min", "60", "-sc_threshold", "0")  # every six seconds


@pytest.fixture
def folder(tmp_path):
    """A whole video of 18 s, and one of which 7 s to 12 s can't be decoded: a packet at 7 s refers to nothing."""
    video(tmp_path / "videos/whole.mp4", 18, more=KEYFRAMES)
    damage(video(tmp_path / "videos/damaged.mp4", 18, more=KEYFRAMES), 7, 7.05)
    return tmp_path / "videos"


@pytest.fixture
def searched(checkpoint, project, folder, tmp_path):
    return searching(folder, tmp_path)


def rows(run, line):
    return np.load(run.path / f"features/{line['name']}.npy")


def test_what_can_be_read_of_a_damaged_video_is_searched(searched, folder):
    config, run, metrics = searched[1]()
    assert metrics["videos"] == 2 and not metrics["unreadable"]
    index = search.open_index(config, run)
    damaged, whole = index.manifest["videos"]
    assert "damaged" not in whole and whole["clips"] == 17
    (start, stop), = damaged["damaged"]["times"]
    assert start == pytest.approx(7, abs=0.11) and stop == pytest.approx(12, abs=0.11)
    assert damaged["damaged"]["share"] == pytest.approx(50 / 180, abs=0.02)
    assert (damaged["start"], damaged["seconds"]) == (whole["start"], whole["seconds"]) == (0, 18)
    left_out = {7, 8, 9, 10}  # two seconds each, no frame of which can be read
    assert rows(run, damaged)["start"].tolist() == [start for start in range(17) if start not in left_out]
    same = rows(run, whole)
    for row in rows(run, damaged):
        twin, = same[same["start"] == row["start"]]
        touched = row["stop"] > start and row["start"] < stop
        assert touched or np.array_equal(row["vector"], twin["vector"])
    assert "0 can't be read; 1 has damaged parts (listed in" in repr(index)
    line, = index.problems()
    assert line.startswith("damaged: damaged.mp4: 2") and line.endswith("%, 0:07–0:12")
    hits = index(TEXT, top=100, rerank=100, merge=False)
    assert not any(hit.error for hit in hits) and {hit.note for hit in hits} == {"", "damaged part"}
    for hit in hits:
        assert hit.damaged == (hit.video == "damaged.mp4" and hit.start < 12 and hit.stop > 7)


def test_damage_is_remembered_after_an_interruption_and_forgotten_with_its_video(searched, folder):
    _, run, _ = searched[1]()
    manifest = index_task.read_manifest(run.path / "features")
    assert len(list(run.path.glob("features/*.json"))) == 2
    name = {line["video"]: line["name"] for line in manifest["videos"]}["whole.mp4"]
    (run.path / f"features/{name}.npy").unlink()  # as if the job had been killed before it
    searched[1]()
    assert index_task.read_manifest(run.path / "features") == manifest
    (folder / "damaged.mp4").unlink()
    searched[1]()
    assert [path.name for path in run.path.glob("features/*.json")] == ["manifest.json"]


def test_a_video_without_a_readable_frame_is_unreadable(searched, folder):
    damage(folder / "damaged.mp4", 0, 100)
    _, run, metrics = searched[1]()
    assert metrics["videos"] == metrics["unreadable"] == 1
    assert str(folder / "damaged.mp4") in index_task.read_manifest(run.path / "features")["unreadable"][0]["reason"]


def test_a_picture_whose_size_changes_is_indexed_and_re_ranked(searched, folder):
    parts = [video(folder.parent / f"{size}.ts", 3, size=size, more=("-output_ts_offset", str(offset)))
             for size, offset in (("128x96", 0), ("96x128", 3))]
    (folder.parent / "sizes.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", str(folder.parent / "sizes.ts"), "-c", "copy",
                    str(folder / "sizes.mkv")], check=True)
    config, run, metrics = searched[1]()
    assert not metrics["unreadable"]
    hits = search.open_index(config, run)(TEXT, top=100, rerank=100, merge=False)
    assert not any(hit.error for hit in hits)
    assert {hit.start for hit in hits if hit.video == "sizes.mkv"} & {2.0, 1.0, 3.0}


def test_times_are_those_that_a_player_shows(searched, folder, tmp_path):
    """The sound begins five seconds before the first picture."""
    path = folder / "late.mkv"
    subprocess.run([ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", "sine=duration=10", "-itsoffset", "5", "-i",
                    str(folder / "whole.mp4"), "-c:v", "copy", "-t", "15", str(path)], check=True)
    config, run, _ = searched[1]()
    lines = {line["video"]: line for line in index_task.read_manifest(run.path / "features")["videos"]}
    line, whole = lines["late.mkv"], lines["whole.mp4"]
    assert line["start"] == pytest.approx(5, abs=0.01) and line["seconds"] == pytest.approx(10, abs=0.15)
    late, early = rows(run, line), rows(run, whole)
    assert late["start"][0] == pytest.approx(5, abs=0.01) and late["stop"][-1] == pytest.approx(15, abs=0.15)
    assert np.array_equal(late["vector"][:8], early["vector"][:8])
    index = search.open_index(config, run)
    hits = [hit for hit in index(TEXT, top=100, merge=False) if hit.video == path.name]
    clip = egokit.read_clip(path, hits[0].start, hits[0].stop, frames=4, size=64, resize=72)
    assert torch.allclose(egokit.tasks.normalise(index.clip(hits[0])), clip, atol=1e-5)
    assert search.export(hits[:1], tmp_path / "clips")[0].name.startswith("01_late_0-")


def test_a_picture_that_stands_still_does_not_fill_the_index(searched, folder):
    """As in a recording of variable rate, or where a damaged time lies hours ahead."""
    path = video(folder / "still.mp4", 60, more=("-vf", "select='lt(t,2)+gt(t,57)'", "-fps_mode", "vfr"))
    _, run, _ = searched[1]()
    line = {line["video"]: line for line in index_task.read_manifest(run.path / "features")["videos"]}[path.name]
    assert line["seconds"] == pytest.approx(60, abs=0.2)
    starts = rows(run, line)["start"].tolist()
    still = [start for start in starts if 2 <= start <= 55]
    assert still == list(range(2, 2 + index_task.STILL)) and starts[-2:] == [57, 58]


def test_whatever_a_decoder_raises_concerns_one_video(searched, folder, monkeypatch):
    original = open_video.PyAVReader.stream_frames

    def stream_frames(self, indices):
        if self.path.name == "damaged.mp4":
            raise IndexError("list index out of range")  # as PyAV's demux does where a stream begins in mid-file
        return original(self, indices)
    monkeypatch.setattr(open_video.PyAVReader, "stream_frames", stream_frames)
    _, run, metrics = searched[1]()
    assert metrics["videos"] == metrics["unreadable"] == 1
    line, = index_task.read_manifest(run.path / "features")["unreadable"]
    assert f"{folder / 'damaged.mp4'}: can't be read (IndexError" in line["reason"]


def test_an_index_of_an_earlier_reading_is_made_anew(searched, monkeypatch):
    monkeypatch.setattr(index_task, "READING", index_task.READING - 1)
    config, run, _ = searched[1]()
    monkeypatch.undo()
    earlier = {path.name for path in run.path.glob("features/*.npy")}
    assert not index_task.is_up_to_date(config, run.path / "features")
    with pytest.raises(egokit.ConfigError, match="by an earlier egokit: the same command"):
        search.open_index(config, run)
    searched[1]()
    assert not earlier & {path.name for path in run.path.glob("features/*.npy")}
    assert search.open_index(config, run).manifest["reading"] == index_task.READING


def test_features_of_damaged_videos_are_an_error_or_a_bounded_share(checkpoint, resolve, copied, tmp_path):
    """Half a second of one video can't be read: an error, or named in the manifest."""
    on_copy, root = copied
    config = on_copy(resolve("toy/egomq", "data.limit=0", run="random"))
    clips = tasks.make(config).clips()
    uid = clips[0]["video_uid"]
    own = [clip for clip in clips if clip["video_uid"] == uid]
    path = root / f"Ego4D_256/{uid}.mp4"
    seconds = open_video.open_video(path).seconds
    path.unlink()
    video(path, seconds, more=("-c:v", "libx264", "-g", "10", "-bf", "0"))
    middle = int((own[0]["start"] + own[0]["stop"]) / 2)
    damage(path, middle + 0.5, middle + 0.55)
    with pytest.raises(open_video.VideoError, match=f"{uid}.mp4.*\n.* clips have no features"):
        extracted(config, tmp_path / "strict")
    others = {clip["clip_uid"] for clip in clips if not clip["start"] < middle + 0.5 < clip["stop"] or
              clip["video_uid"] != uid}
    assert {file.stem for file in (tmp_path / "strict/features").glob("*.pt")} == others
    allowed = on_copy(resolve("toy/egomq", "data.limit=0 data.max_bad_fraction=0.2", run="random"))
    features, manifest = extracted(allowed, tmp_path / "allowed")
    named = {clip["clip_uid"]: clip["damaged"] for clip in manifest["clips"] if "damaged" in clip}
    assert named.keys() == features.keys() - others and manifest["damaged"] == len(named) > 0
    for line in named.values():
        (start, stop), = line["times"]
        assert 0 < line["share"] < 0.2 and (start, stop) == pytest.approx((middle + 0.5, middle + 1), abs=0.11)
    assert json.loads((tmp_path / f"allowed/features/{min(named)}.json").read_text()) == named[min(named)]
    little = on_copy(resolve("toy/egomq", "data.limit=0 data.max_bad_fraction=0.001", run="random"))
    with pytest.raises(open_video.VideoError, match=rf"{uid}.mp4: .*% of the frames of clip .*data.max_bad_fraction"):
        extracted(little, tmp_path / "little")
    assert {file.stem for file in (tmp_path / "little/features").glob("*.pt")} == others
