"""Sources of every kind are prepared right: each frame at its time, upright, not squeezed, read past damage."""
import subprocess
import threading
import time

import av
import numpy as np
import pytest

from egokit.data.video import open_video
from egokit.prep import measure, source, video

RATE = 25
# each of 8 bars is a bit of the frame's number
NUMBERED = (f"color=size=256x128:rate={RATE}:duration=8,"
            "geq=lum='if(mod(floor(N/pow(2,floor(X/32))),2),220,30)':cb=128:cr=128")
H264 = ("-c:v", "libx264", "-preset", "veryfast", "-g", "50", "-pix_fmt", "yuv420p")


def make(path, *options, pattern=NUMBERED, before=()):
    command = [video.ffmpeg(), "-loglevel", "error", "-y", *before, "-f", "lavfi", "-i", pattern, *options]
    subprocess.run([*map(str, command), str(path)], check=True)
    return path


def again(path, target, *options, before=()):
    command = [video.ffmpeg(), "-loglevel", "error", "-y", *before, "-i", path, "-c", "copy", *options, target]
    subprocess.run([*map(str, command)], check=True)
    return target


def prepared(path, tmp_path, short_side=64, encoding="random_access"):
    """Prepare a video in pieces of 3 s; return its receipt and the frames of the resized file."""
    settings = video.PrepSettings(tmp_path / "root", short_side, 3, encoding)
    line = video.prepare_video(video.SourceVideo("v", path, path.stat().st_size), settings, threading.Event())
    if line["status"] != "ok":
        return line, None
    reader = open_video.open_video(settings.resized_path("v"))
    return line, reader.read(range(reader.length))


def numbers(frames):
    """Return the number that is drawn in every frame."""
    height, width = frames.shape[1:3]
    places = (np.arange(8) + 0.5) * width / 8
    return (frames[:, height // 2, places.astype(int)].mean(-1) > 120) @ (1 << np.arange(8))


def test_a_variable_rate_whose_picture_changes_does_not_stand_still(tmp_path):
    """F0: ffmpeg's filters start anew at each change of size, range or colour."""
    sizes = ["256x128", "128x128", "256x128", "192x128"]
    parts = []
    for part, (size, matrix) in enumerate(zip(sizes, ["bt709", "smpte170m"] * 2, strict=True)):
        wanted = NUMBERED.replace("256x128", size).replace("N/", f"(N+{50 * part})/").replace("32", f"({size[:3]}/8)")
        parts.append(make(tmp_path / f"{part}.ts", "-t", 2, "-vf", "select='mod(n,7)'", "-fps_mode", "vfr",
                          "-output_ts_offset", 2 * part, "-colorspace", matrix, "-color_range", "pc" if part == 2 else
                          "tv", *H264, pattern=wanted))
    (tmp_path / "all.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    line, frames = prepared(again(tmp_path / "all.ts", tmp_path / "all.mkv"), tmp_path)
    assert line["status"] == "ok" and not line["source"]["constant_rate"]
    length = len(frames)
    assert 196 <= length <= 199 and frames.shape[1:3] == (64, 128)  # the first frame and the last are left out
    shown = [numbers(frames[:, :, 32:96] if 49 <= at < 99 else frames[:, :, 16:112] if at >= 149 else frames)[at]
             for at in range(length)]
    due = np.arange(1, length + 1)
    assert np.abs(np.array(shown) - np.where(due % 50 % 7, due, due - 1))[4:].max() <= 2
    assert frames[60, :, :28].max() < 20 and frames[160, :, :12].max() < 20  # bars


@pytest.mark.parametrize("options, upright", [
    (("-display_rotation", 90), lambda frames: np.rot90(frames, -1, (1, 2))),
    (("-display_rotation", 180), lambda frames: frames[:, ::-1, ::-1]),
    (("-display_rotation", 270), lambda frames: np.rot90(frames, 1, (1, 2))),
    (("-display_hflip",), lambda frames: frames[:, :, ::-1]),
    (("-display_rotation", 90, "-display_hflip"), lambda frames: None)])
def test_turned_and_mirrored_sources(tmp_path, options, upright):
    path = again(make(tmp_path / "a.mp4", *H264), tmp_path / "b.mp4", before=options)
    line, frames = prepared(path, tmp_path)
    shown = open_video.open_video(path)
    assert line["status"] == "ok" and frames.shape[1] / frames.shape[2] == shown.height / shown.width
    stored = upright(frames)
    if stored is not None:
        assert (numbers(stored) == np.arange(200)).all()
    expected = shown.read([77])[0, ::shown.height // frames.shape[1], ::shown.width // frames.shape[2]]
    assert np.abs(expected.astype(float) - frames[77]).mean() < 12


@pytest.mark.parametrize("aspect, shape", [("4/3", (64, 170)), ("1/2", (64, 64)), ("1/3", (96, 64))])
def test_pixels_that_are_not_square(tmp_path, aspect, shape):
    line, frames = prepared(make(tmp_path / "a.mp4", "-vf", f"setsar={aspect}", *H264), tmp_path)
    assert line["status"] == "ok" and frames.shape[1:3] == shape and (numbers(frames) == np.arange(200)).all()


def test_a_cover_before_the_film(tmp_path):
    film, cover = make(tmp_path / "a.mp4", *H264), make(tmp_path / "c.png", "-frames:v", 1, pattern="testsrc=s=300x300")
    path = again(film, tmp_path / "b.mp4", "-map", "0", "-map", "1", "-disposition:v:0", "attached_pic",
                 before=("-i", cover))
    line, frames = prepared(path, tmp_path)
    assert line["status"] == "ok" and (numbers(frames) == np.arange(200)).all()


@pytest.mark.parametrize("name, options", [
    ("a.avi", ("-c:v", "mpeg4", "-q:v", 3)), ("b.avi", ("-c:v", "mjpeg", "-q:v", 3)), ("c.mpg", ("-b:v", "3M")),
    ("d.wmv", ("-b:v", "3M")), ("e.flv", ("-b:v", "3M")), ("f.MTS", (*H264, "-f", "mpegts")), ("g.vob", ("-b:v", "3M")),
    ("h.webm", ("-c:v", "libvpx", "-b:v", "2M")), ("i.ogv", ("-q:v", 8)), ("j.mp4", (*H264, "-flags", "+ildct+ilme"))])
def test_every_suffix_that_the_reader_reads(tmp_path, name, options):
    path = make(tmp_path / name, *options)
    assert [entry.path for entry in source.list_videos(tmp_path)] == [path]
    line, frames = prepared(path, tmp_path)
    shown, first = numbers(frames), int(name == "b.avi")  # ffmpeg shows the first frame of such a file for longer
    assert line["status"] == "ok" and (np.abs(shown - np.arange(len(shown))) <= first).all() and len(shown) >= 200


def packets(path):
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def destroy(path, which, target):
    data = bytearray(path.read_bytes())
    for number in which:
        position, size = packets(path)[number]
        data[position:position + size] = bytes(size)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("name, codec", [
    ("a.mp4", H264), ("b.mp4", ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=1:keyint=50")),
    ("c.avi", ("-c:v", "mpeg4", "-q:v", 2)), ("d.mov", ("-c:v", "mjpeg"))])
@pytest.mark.parametrize("which", [[99], [199], [0]])
def test_one_glitch_does_not_lose_a_video_nor_move_what_follows(tmp_path, name, codec, which):
    path = destroy(make(tmp_path / name, *codec), which, tmp_path / f"bad-{name}")
    line, frames = prepared(path, tmp_path)
    assert line["status"] == "ok", line["reason"]
    facts = line["source"]
    assert facts["frames"] == len(frames) == 200 and facts["damaged"] >= 1 and line["resized"]["damaged"] == 0
    wrong = np.flatnonzero(numbers(frames) != np.arange(200))
    # decoders show what they can of the frames up to the next keyframe
    first = round(facts["damaged_times"][0][0] * RATE)
    assert not len(wrong) or (first - 5 <= wrong.min() and wrong.max() <= first + 50)
    if codec == H264 and which == [99]:
        assert facts["damaged"] == 1


def test_a_recording_that_begins_between_keyframes(tmp_path):
    whole = make(tmp_path / "a.ts", *H264).read_bytes()
    path = tmp_path / "b.ts"
    path.write_bytes(whole[len(whole) // 188 // 8 * 188:])
    line, frames = prepared(path, tmp_path)
    assert line["status"] == "ok" and line["source"]["damaged_times"][0][0] == 0
    late = numbers(frames)[-100:]
    assert (late == np.arange(100, 200)).all()


def test_much_damage_is_refused_with_its_share_and_times(tmp_path):
    path = destroy(make(tmp_path / "a.mov", "-c:v", "mjpeg"), range(20, 120, 10), tmp_path / "b.mov")
    line, _ = prepared(path, tmp_path)
    assert line["status"] == "failed"
    assert "b.mov: 10 of 200 frames are damaged (0.80-0.84 s, 1.20-1.24 s, " in line["reason"]
    assert "more than 1% besides the longest stretch; fetch it again" in line["reason"]
    damaged, seconds = np.zeros(1000, bool), np.full(1000, 0.04)
    damaged[:300] = damaged[500:510] = True  # at the start; the longest stretch
    assert measure._counted_damage(damaged, seconds) == pytest.approx(0, abs=1e-9)
    damaged[600] = damaged[610] = True
    assert measure._counted_damage(damaged, seconds) == pytest.approx(2 * 0.04)
    damaged[500:900] = True  # longer than one glitch may last
    assert measure._counted_damage(damaged, seconds) == pytest.approx(400 * 0.04)
    damaged[:400] = True
    assert measure._counted_damage(damaged, seconds) == pytest.approx(800 * 0.04)
    hole = np.zeros(100, bool)
    hole[50] = True  # one frame before a hole
    assert measure._counted_damage(hole, np.where(hole, 42.0, 0.04)) == 42.0


def test_an_irregular_source_is_encoded_as_a_regular_one(tmp_path):
    """A plain file and the same file in AVI have the same keyframes, cuts and almost the same pictures."""
    plain = make(tmp_path / "a.mp4", *H264)
    film = measure.scan(plain)
    assert film.plain
    settings = video.PrepSettings(tmp_path, 64, 3)
    both = []
    for way in (True, False):
        video.resize(plain, tmp_path / f"{way}.mp4", settings, film, way)
        with av.open(str(tmp_path / f"{way}.mp4")) as container:
            both.append([(frame.pts * frame.time_base, frame.key_frame, frame.to_ndarray(format="rgb24"))
                         for frame in container.decode(video=0)])
    for one, other in zip(*both, strict=True):
        assert one[:2] == other[:2] and np.abs(one[2].astype(float) - other[2]).mean() < 2


def test_the_pipe_to_ffmpeg(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    monkeypatch.setattr(video, "ffmpeg", lambda: str(program))

    def run(script, frames):
        program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n{script}\n")
        program.chmod(0o755)
        (tmp_path / "pid").unlink(missing_ok=True)
        video.run_ffmpeg([], tmp_path / "source.mp4", tmp_path / "target.mp4", frames)
    many = (bytes(100_000) for _ in range(100))
    run("cat > /dev/null", many)
    assert next(many, None) is None
    with pytest.raises(video.PrepError, match=r"source\.mp4: ffmpeg failed: enough"):  # more than a pipe holds
        run("head -c 3000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo enough >&2; exit 1",
            (bytes(100_000) for _ in range(100)))
    with pytest.raises(video.SetupError, match="can't be written: ffmpeg says 'No space left on device'"):
        run("echo No space left on device >&2; exit 1", (bytes(100_000) for _ in range(100)))

    def interrupted():
        yield bytes(50_000)
        for _ in range(500):
            if (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().strip():
                break
            time.sleep(0.01)
        raise video.PrepError("interrupted")
    with pytest.raises(video.PrepError, match="interrupted"):
        run("head -c 50000 > /dev/null; exec sleep 100", interrupted())
    pid = int((tmp_path / "pid").read_text())
    assert subprocess.run(["kill", "-0", str(pid)], capture_output=True).returncode  # it has ended


def test_an_interrupted_video_leaves_nothing(tmp_path):
    path, stop = make(tmp_path / "a.avi", "-c:v", "mpeg4"), threading.Event()
    film, real = measure.scan(path), video.draw

    def draw(*arguments):
        for count, frame in enumerate(real(*arguments)):
            if count == 20:
                stop.set()
            yield frame
    settings = video.PrepSettings(tmp_path / "root", 64, 3)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(video.PrepError, match="interrupted"):
        patch.setattr(video, "draw", draw)
        video.prepare_video(video.SourceVideo("v", path, 1), settings, stop)
    assert film.facts["frames"] == 200 and not list(tmp_path.glob("root/Ego4D_*/*"))
    assert not settings.receipt_path("v").exists()
