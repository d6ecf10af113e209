"""Frames by number are the right ones, proven by the number in every toy frame."""
import multiprocessing
import struct
import subprocess
from pathlib import Path

import av
import damage
import numpy as np
import pytest
from golden_inputs import GOLDEN  # noqa: F401  (keeps the folder on the path explicit)

import egokit
from egokit.data.video import clips, decoding, frame_sampling, open_video
from egokit.prep.video import RANDOM_ACCESS, ffmpeg
from egokit.toy import read_frame_number


def numbers(pixels):
    """Return the numbers that are drawn in the frames."""
    return [read_frame_number(frame) for frame in pixels]


@pytest.fixture(scope="module")
def full(project):
    return sorted((project / "outputs/toy/Ego4D").glob("*.mp4"))[0]


@pytest.fixture(scope="module")
def pieces(project, full):
    return project / "outputs/toy/Ego4D_Chunked" / full.stem


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_frames_by_number(full, reader):
    video = open_video.open_video(full, reader)
    wanted = [0, 1, 17, 17, 16, 100, video.length - 1, 3]
    assert numbers(video.read(wanted)) == wanted
    assert numbers(video.read([5, 6])) == [5, 6] and numbers(video.read([7, 7, 60])) == [7, 7, 60]


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_every_frame_of_the_prepared_pieces_in_order(pieces, full, reader):
    seen = []
    for piece in range(len(list(pieces.glob("*.mp4")))):
        video = open_video.open_video(pieces / f"{piece}.mp4", reader)
        seen += numbers(video.read(range(video.length)))
    assert seen == list(range(open_video.open_video(full).length))


@pytest.mark.parametrize("start, stop", [(1.0, 3.0), (28.5, 31.5), (29.9, 30.1), (30.0, 31.0), (0.0, 0.05)])
def test_a_clip_across_pieces_has_the_frames_of_the_full_video(full, pieces, start, stop):
    def pick(first, last):
        return frame_sampling.sample_frames(first, last, 4)
    expected = frame_sampling.sample_frames(int(start * 10), max(int(start * 10) + 1, int(stop * 10)), 4)
    expected = np.maximum(expected, 30 * 10 * (start >= 30)).tolist()
    assert numbers(clips.read_chunked(pieces, start, stop, pick, 30.0)) == expected


def test_a_clip_at_the_videos_end_stays_inside(full, pieces):
    def pick(first, last):
        return frame_sampling.sample_frames(first, last, 4)
    length = open_video.open_video(full).length
    shown = numbers(clips.read_chunked(pieces, length / 10 - 0.5, length / 10 + 2, pick, 30.0))
    assert shown == frame_sampling.sample_frames(length - 5, length, 4).tolist() and max(shown) < length


VARIABLE = ["-fps_mode", "vfr", "-vf"]
KINDS = {  # file name: ffmpeg's options before and after the input
    "as prepared.mp4": ([], RANDOM_ACCESS),
    "B-frames, open GOPs.mp4": ([], ["-g", "20", "-bf", "5", "-x264-params", "open-gop=1:b-pyramid=normal"]),
    "one keyframe.mp4": ([], ["-g", "9999", "-sc_threshold", "0"]),
    "every seventh left out.mp4": ([], [*VARIABLE, "select='not(eq(mod(n,7),3))'", "-bf", "3", "-g", "40"]),
    "one left out.mp4": ([], [*VARIABLE, "select='not(eq(n,50))'"]),
    "a slide show.mp4": ([], [*VARIABLE, "select='not(mod(n,40))'"]),
    "cut without encoding.mp4": (["-ss", "5.3"], ["-c", "copy"]),  # an edit list hides the frames since the keyframe
    "starts at 5 s.mp4": ([], ["-output_ts_offset", "5"]),
    "29.97 a second.mp4": ([], ["-vf", "setpts=N*1001/30000/TB", "-r", "30000/1001"]),
    "fragments.mp4": ([], ["-movflags", "frag_keyframe+empty_moov"]),  # seeks by decoding order
    "MPEG-4 with B-frames.mov": ([], ["-c:v", "mpeg4", "-q:v", "2", "-bf", "2"]),
    "HEVC.mp4": ([], ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none"]),
    # its decoder can't skip frames, and returns them late
    "AV1.mp4": ([], ["-c:v", "libsvtav1", "-preset", "12", "-svtav1-params", "keyint=50"]),
    # the container has no frame count
    "VP9.webm": ([], ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M", "-g", "40"]),
    "Matroska.mkv": ([], ["-bf", "3"]),
    "a broadcast.ts": ([], ["-bf", "3", "-g", "30"]),  # seeks land where no keyframe is
}


@pytest.mark.parametrize("name", KINDS)
def test_a_frame_by_number_is_the_one_that_decoding_it_all_gives(full, tmp_path, name):
    """Frames of any codec, container, GOP structure and rate are equal in every pixel.

    Frames at random places, the first, the last, and a stream of frames are compared.
    """
    path, (before, after) = tmp_path / name, KINDS[name]
    subprocess.run([ffmpeg(), "-loglevel", "error", *before, "-i", str(full), "-t", "15", *after, str(path)],
                   check=True)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    video = open_video.open_video(path)
    assert video.length == len(frames)
    rng = np.random.default_rng(0)
    for first in rng.integers(0, len(frames), 20):
        wanted = np.minimum(first + rng.integers(0, 30, 4), len(frames) - 1)
        assert all(np.array_equal(pixels, frames[index])
                   for pixels, index in zip(video.read(wanted), wanted, strict=True))
    last = len(frames) - 1
    assert np.array_equal(video.read([last, 0, last]), np.stack([frames[-1], frames[0], frames[-1]]))
    wanted = [0, 0, 1, 2, *range(3, last, 3), last]
    assert all(np.array_equal(pixels, frames[index])
               for pixels, index in zip(video.stream_frames(wanted), wanted, strict=True))


def test_a_file_that_was_replaced_is_opened_again(full, tmp_path):
    path, other = tmp_path / "video.mp4", tmp_path / "other.mp4"
    path.write_bytes(full.read_bytes())
    assert numbers(open_video.open_video(path).read([5])) == [5]
    assert open_video.open_video(path) is open_video.open_video(path)
    subprocess.run([ffmpeg(), "-loglevel", "error", "-ss", "2", "-i", str(full), "-t", "5", str(other)], check=True)
    other.replace(path)
    assert numbers(open_video.open_video(path).read([5])) == [25]
    path.write_bytes(path.read_bytes()[:1000])  # overwritten in place, as by cp
    with pytest.raises(open_video.VideoError, match=r"video\.mp4: not a video that can be opened"):
        open_video.open_video(path)


def test_a_picture_that_changes_its_size_is_fitted_to_the_first(full, tmp_path):
    parts = []
    for size in ("128:96", "64:64"):
        parts.append(tmp_path / f"{size[:2]}.ts")
        subprocess.run([ffmpeg(), "-loglevel", "error", "-i", str(full), "-t", "2", "-vf", f"scale={size}",
                        "-c:v", "libx264", "-output_ts_offset", str(5 * len(parts)), str(parts[-1])], check=True)
    joined, path = tmp_path / "both.ts", tmp_path / "both.mp4"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", str(joined), "-c", "copy", str(path)], check=True)
    video = open_video.open_video(path)
    first, last = video.read([0, video.length - 1])
    assert first.shape == last.shape == (96, 128, 3)
    assert last[:, :16].max() == last[:, -16:].max() == 0 and last[:, 20:-20].mean() > 20  # bars beside, not squeezed
    assert {pixels.shape for pixels in video.stream_frames(range(video.length))} == {(96, 128, 3), (64, 64, 3)}


def with_edits(source: Path, target: Path, parts: list[tuple[float, float]]) -> Path:
    """Write an MP4 of one track with an edit list of parts (start and stop in seconds of the film)."""
    data = bytearray(source.read_bytes())
    at = data.index(b"elst")
    size, scale = (int.from_bytes(data[place:place + 4], "big") for place in (at - 4, data.index(b"mdhd") + 16))
    movie = int.from_bytes(data[data.index(b"mvhd") + 16:][:4], "big")
    entries = b"".join(struct.pack(">IiI", round((stop - start) * movie), round(start * scale), 1 << 16)
                       for start, stop in parts)
    new = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(parts)) + entries
    more = len(new) - size
    data[at - 4:at - 4 + size] = new
    for box in (b"edts", b"trak", b"moov"):  # they contain it; the pictures stand before them
        place = data.index(box) - 4
        data[place:place + 4] = struct.pack(">I", int.from_bytes(data[place:place + 4], "big") + more)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("parts", [[(0, 5)], [(1.5, 6)], [(2.2, 9)], [(0.3, 1.0), (4.1, 6.0)], [(5, 7), (0, 2)],
                                   [(1, 3), (1, 3)]])
def test_edit_lists_are_read_as_they_play(full, tmp_path, parts):
    plain = tmp_path / "plain.mp4"
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", str(full), "-t", "10", "-g", "20", "-bf", "2", str(plain)],
                   check=True)
    path = with_edits(plain, tmp_path / "edited.mp4", parts)
    with av.open(str(path)) as container:
        expected = [read_frame_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    due = [n for start, stop in parts for n in range(round(start * 10), round(stop * 10))]
    assert abs(len(expected) - len(due)) <= len(parts) + 1  # the parts' ends lie between frames
    for tolerant in (False, True):
        video = open_video.open_video(path, tolerant=tolerant)
        assert numbers(video.stream_frames(range(video.length))) == expected and not video.damaged
        assert numbers(video.read([video.length - 1, 3])) == [expected[-1], expected[3]]


def test_few_frames_are_decoded(full, tmp_path, monkeypatch):
    """A frame of a prepared chunk costs its keyframe, few frames after that, and itself.

    The few are at most every eighth frame.
    """
    path = tmp_path / "prepared.mp4"
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", str(full), *RANDOM_ACCESS, str(path)], check=True)
    video, decoded = open_video.open_video(path), []
    monkeypatch.setattr(decoding.Damage, "show", lambda self, number: decoded.append(number))
    for index in range(100, 150):
        video.read([index])
    decoded = [number for number in decoded if number < video.length]  # without the mark of a pass's end
    assert 50 <= len(decoded) <= 50 * 5


def test_a_forked_worker_does_not_wait_for_its_parents_decoders(full):
    """A decoder that has threads waits for them in a forked process, which does not have them."""
    open_video.open_video(full).stream.codec_context.thread_count = 2
    open_video.open_video(full).read([3])
    worker = multiprocessing.get_context("fork").Process(target=open_video.open_video, args=(full,))
    worker.start()
    worker.join(20)
    worker.kill()
    assert worker.exitcode == 0


def test_read_clip_is_ready_for_the_model(full):
    clip = egokit.read_clip(full, 2.0, 4.0, frames=4, size=64)
    assert clip.shape == (4, 3, 64, 64) and clip.dtype.is_floating_point and clip.abs().max() < 3
    with pytest.raises(ValueError, match=r"lies outside the video"):
        egokit.read_clip(full, 1e5, 1e6)


def damaged(full):
    """Yield the name and bytes of four damaged copies of a video."""
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
    path.write_bytes(dict(damaged(full))[kind])
    try:
        pixels = clips.read(path, lambda length, fps: np.arange(length))
    except open_video.VideoError as error:
        assert str(path) in str(error)
    else:  # a decoder may conceal damage; the number of frames must then still be right
        assert kind == "zeros inside" and len(pixels) == open_video.open_video(full).length


def test_audio_only_and_missing_files(tmp_path):
    damage.audio(tmp_path / "audio.mp4")
    with pytest.raises(open_video.VideoError, match=r"audio\.mp4: .*no video stream"):
        open_video.open_video(tmp_path / "audio.mp4")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4 is missing"):
        open_video.open_video(tmp_path / "none.mp4")
    with pytest.raises(open_video.VideoError, match="asked for, but the file has"):
        open_video.open_video(sorted(tmp_path.parent.glob("none")) or _tiny(tmp_path)).read([10**6])


def _tiny(folder):
    path = folder / "tiny.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode(None))
    return path
