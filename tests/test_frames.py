"""Reading: the frame that was asked for, proven by the number that every toy frame carries."""
import subprocess

import av
import numpy as np
import pytest
from golden_inputs import GOLDEN  # noqa: F401  (keeps the folder on the path explicit)

import egokit
from egokit import clips, frames, sampling
from egokit.prep.video import ffmpeg
from egokit.toy import read_frame_number


def numbers(pixels):
    return [read_frame_number(frame) for frame in pixels]


@pytest.fixture(scope="module")
def full(project):
    return sorted((project / "outputs/toy/Ego4D").glob("*.mp4"))[0]


@pytest.fixture(scope="module")
def pieces(project, full):
    return project / "outputs/toy/Ego4D_Chunked" / full.stem


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_frames_by_number(full, reader):
    video = frames.open_video(full, reader)
    wanted = [0, 1, 17, 17, 16, 100, video.length - 1, 3]
    assert numbers(video.read(wanted)) == wanted
    assert numbers(video.read([5, 6])) == [5, 6] and numbers(video.read([7, 7, 60])) == [7, 7, 60]


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_every_frame_of_the_prepared_pieces_in_order(pieces, full, reader):
    seen = []
    for piece in range(len(list(pieces.glob("*.mp4")))):
        video = frames.open_video(pieces / f"{piece}.mp4", reader)
        seen += numbers(video.read(range(video.length)))
    assert seen == list(range(frames.open_video(full).length))


@pytest.mark.parametrize("start, stop", [(1.0, 3.0), (28.5, 31.5), (29.9, 30.1), (30.0, 31.0), (0.0, 0.05)])
def test_a_clip_across_pieces_has_the_frames_of_the_full_video(full, pieces, start, stop):
    def pick(first, last):
        return sampling.egoclip(first, last, 4)
    expected = sampling.egoclip(int(start * 10), max(int(start * 10) + 1, int(stop * 10)), 4)
    assert numbers(clips.read_chunked(pieces, start, stop, pick, 30.0)) == np.maximum(expected, 30 * 10 * (start >= 30)).tolist()


def test_a_clip_at_the_videos_end_stays_inside(full, pieces):
    length = frames.open_video(full).length
    got = numbers(clips.read_chunked(pieces, length / 10 - 0.5, length / 10 + 2, lambda a, b: sampling.egoclip(a, b, 4), 30.0))
    assert got == sampling.egoclip(length - 5, length, 4).tolist() and max(got) < length


def test_variable_frame_rate_and_b_frames(full, tmp_path):
    """Frames dropped at random, B-frames and open GOPs: numbers come from a table of the packets' times."""
    path = tmp_path / "vfr.mp4"
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", str(full), "-vf", "select='not(eq(mod(n,7),3))'", "-fps_mode", "vfr",
                    "-c:v", "libx264", "-bf", "3", "-g", "40", str(path)], check=True)
    kept = [n for n in range(frames.open_video(full).length) if n % 7 != 3]
    video = frames.open_video(path)
    assert video.length == len(kept)
    wanted = [0, 5, 90, 91, 40, len(kept) - 1]
    assert numbers(video.read(wanted)) == [kept[i] for i in wanted]


def test_read_clip_is_ready_for_the_model(full):
    clip = egokit.read_clip(full, 2.0, 4.0, frames=4, size=64)
    assert clip.shape == (4, 3, 64, 64) and clip.dtype.is_floating_point and clip.abs().max() < 3
    with pytest.raises(ValueError, match=r"lies outside the video"):
        egokit.read_clip(full, 1e5, 1e6)


def damaged(full, folder):
    whole = full.read_bytes()
    yield "empty", b""
    yield "text", b"<html>404</html>" * 50
    yield "cut", whole[:len(whole) // 2]
    flipped = bytearray(whole)
    middle = whole.index(b"mdat") + len(whole) // 3
    flipped[middle:middle + 4000] = bytes(4000)
    yield "zeros inside", bytes(flipped)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "zeros inside"])
def test_a_corrupt_video_is_an_error_that_names_it(full, tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    path.write_bytes(dict(damaged(full, tmp_path))[kind])
    try:
        got = clips.read(path, lambda length, fps: np.arange(length))
    except frames.VideoError as error:
        assert str(path) in str(error)
    else:  # a decoder may conceal damage; it must then still be these very frames in number
        assert kind == "zeros inside" and len(got) == frames.open_video(full).length


def test_audio_only_and_missing_files(tmp_path):
    path = tmp_path / "audio.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(frames.VideoError, match=r"audio\.mp4: .*no video stream"):
        frames.open_video(path)
    with pytest.raises(FileNotFoundError, match=r"none\.mp4 is missing"):
        frames.open_video(tmp_path / "none.mp4")
    with pytest.raises(frames.VideoError, match="asked for, but the file has"):
        frames.open_video(sorted(tmp_path.parent.glob("none")) or _tiny(tmp_path)).read([10**6])


def _tiny(folder):
    path = folder / "tiny.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode(None))
    return path
