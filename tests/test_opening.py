"""What is asked of a file system that many share: a sample's file is looked at once, a folder is listed by one rank."""
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from conftest import MODEL

from egokit import tasks
from egokit.data.video import clips, frame_sampling, open_video
from egokit.data.video.timeline import VideoError

SECONDS = 30.0  # of a chunk of the tiny data set


@pytest.fixture
def asked(monkeypatch):
    """Return a list that takes ("stat" or "open", path) of each video that is looked at or opened."""
    calls, stat, opening = [], os.stat, av.open
    open_video._open.clear()

    def noting(kind, call):
        def noted(path, *arguments, **options):
            if str(path).endswith(".mp4"):
                calls.append((kind, "/".join(str(path).split("/")[-2:])))
            return call(path, *arguments, **options)
        return noted
    monkeypatch.setattr(os, "stat", noting("stat", stat))
    monkeypatch.setattr(av, "open", noting("open", opening))
    yield calls
    open_video._open.clear()


def read(folder: Path, start: float, stop: float):
    return clips.read_chunked(folder, start, stop, lambda a, b: frame_sampling.sample_frames(a, b, 4), SECONDS)


def chunks(project) -> dict[Path, int]:
    """Return the number of chunks of each video."""
    root = project / "outputs/toy/Ego4D_Chunked"
    return {folder: len(list(folder.iterdir())) for folder in sorted(root.iterdir())}


def test_a_samples_file_is_asked_for_once_and_opened_once(project, asked):
    folder = next(folder for folder, count in chunks(project).items() if count > 1)
    first, second = (f"{folder.name}/{number}.mp4" for number in range(2))
    for start, stop, expected in (
            (1, 3, [("stat", first), ("open", first)]),
            (5, 7, [("stat", first)]),  # still open
            (29, 31, [("stat", first), ("stat", second), ("open", second)]),
            (31, 33, [("stat", second)]),
            (28, 32, [("stat", first), ("stat", second)])):
        asked.clear()
        assert len(read(folder, start, stop)) == 4
        assert asked == expected, (start, stop)


def test_the_end_of_a_video_is_found_by_opening(project, asked):
    folder, count = next(iter(chunks(project).items()))
    last, after = (f"{folder.name}/{count - 1 + more}.mp4" for more in range(2))
    end = open_video.open_video(folder / f"{count - 1}.mp4").seconds + (count - 1) * SECONDS
    open_video._open.clear()
    asked.clear()
    read(folder, end - 1, count * SECONDS + 1)  # goes on after the end of the video
    assert asked == [("stat", last), ("open", last), ("stat", after)]
    with pytest.raises(FileNotFoundError, match=rf"{folder.name}/{count + 5}\.mp4 is missing.*egokit prep"):
        read(folder, (count + 5) * SECONDS, (count + 5) * SECONDS + 1)


def test_a_replaced_file_is_opened_again_and_a_stale_one_is_not_missing(project, tmp_path, asked, monkeypatch):
    source = next(iter(chunks(project))) / "0.mp4"
    folder = tmp_path / "Ego4D_Chunked" / "video"
    folder.mkdir(parents=True)
    path = folder / "0.mp4"
    path.write_bytes(source.read_bytes())
    before = open_video.open_video(path)
    assert open_video.open_video(path) is before
    path.unlink()
    path.write_bytes(source.read_bytes())
    assert open_video.open_video(path) is not before
    (folder / "1.mp4").mkdir()
    assert open_video.find_video(folder / "1.mp4") is None and open_video.find_video(folder / "2.mp4") is None

    def stale(path, *arguments, **options):
        raise OSError(116, "Stale file handle", str(path))
    monkeypatch.setattr(os, "stat", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        open_video.find_video(folder / "2.mp4")


def test_a_chunk_that_may_not_be_seen_is_no_end_of_the_video(project, asked, monkeypatch):
    """A chunk may be a link to where this user may not look; frames of another chunk would take its place."""
    folder = next(folder for folder, count in chunks(project).items() if count > 1)
    stat = os.stat

    def refuses(path, *arguments, **options):
        if str(path).endswith("1.mp4") and not options:  # not what looks for the reason
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)
    monkeypatch.setattr(os, "stat", refuses)
    for start, stop in ((29, 31), (31, 33)):
        with pytest.raises(VideoError, match=r"1\.mp4"):
            read(folder, start, stop)


def test_absent_videos_are_named_before_training(resolve, copied):
    on_copy, root = copied
    data = tasks.make(on_copy(resolve())).dataset("train")
    data.check_files()
    absent = sorted(data.table.videos)[0]
    (root / "Ego4D_Chunked" / absent).rename(root / "moved")
    with pytest.raises(FileNotFoundError, match=f"1 videos of .*egoclip.csv are not under .*such as {absent}; prepare"):
        data.check_files()
    (root / "Ego4D_Chunked" / "sub").mkdir()
    (root / "moved").rename(root / "Ego4D_Chunked" / "sub" / absent)
    data.table.videos[data.table.videos.index(absent)] = f"sub/{absent}"
    data.check_files()


@pytest.mark.slow
def test_one_rank_lists_the_folder_and_all_raise_its_error(project, copied, tmp_path):
    _, root = copied
    command = [sys.executable, str(Path(__file__).with_name("rank_opening.py"))]
    ranks = [subprocess.Popen([*command, str(rank), "2", str(tmp_path), str(root), f"{MODEL} train.precision=fp32"],
                              env={**os.environ, "OMP_NUM_THREADS": "1"}) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    (listed, raised), other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert listed == 1 and other[0] == 0
    assert other[1] == raised and "1 videos of" in raised and "not under" in raised
