"""Clips that are cut out of a video have the frames of the hit, in every container."""
import subprocess

import av
import numpy as np
import pytest

from egokit.data.video import open_video
from egokit.prep.decoding import PrepError
from egokit.prep.video import ffmpeg, run_ffmpeg
from egokit.search import clip_files
from egokit.search.clip_files import encode_clip
from egokit.search.searcher import Hit

RATE = 25  # frames per second; MPEG allows few rates
# each of 8 vertical bars is a bit of the frame's number
NUMBERED = (f"color=size=256x64:rate={RATE}:duration=10,"
            "geq=lum='if(mod(floor(N/pow(2,floor(X/32))),2),220,30)':cb=128:cr=128")
SOUND = ("-f", "lavfi", "-i", "sine=duration=10", "-shortest")
H264 = ("-c:v", "libx264", "-g", "40", "-bf", "2")
MPEG2, FLV = ("-c:v", "mpeg2video", "-g", "15"), ("-c:v", "flv", "-g", "40")


def numbers(path):
    """Return the number that is drawn in every frame of a video."""
    reader = open_video.open_video(path)
    frames = reader.read(range(reader.length))
    return (frames[:, 32, 16::32].mean(-1) > 120) @ (1 << np.arange(8))


@pytest.mark.parametrize("name, encoding", [
    ("a.mp4", H264), ("b.mkv", H264), ("c.mov", ("-c:v", "mjpeg")), ("d.webm", ("-c:v", "libvpx", "-b:v", "2M")),
    ("e.avi", ("-c:v", "mpeg4")), ("f.ts", H264), ("g.mpg", MPEG2), ("h.flv", FLV), ("i.m2ts", H264), ("j.vob", MPEG2),
    ("k.wmv", ("-c:v", "wmv2")), ("l.3gp", H264), ("m.ogv", ("-c:v", "libtheora", "-q:v", "8"))])
def test_a_cut_clip_has_the_frames_of_its_time(tmp_path, name, encoding):
    """Times are the player's: in some containers the sound begins before the pictures."""
    path, clip = tmp_path / name, tmp_path / "clip.mp4"
    sound = () if name.endswith((".ogv", ".3gp")) else SOUND
    subprocess.run([ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", NUMBERED, *sound, *encoding, str(path)],
                   check=True)
    assert (numbers(path) == np.arange(250)).all()
    begin = open_video.open_video(path).start
    for start in (0.0, 2.52, 7.0):
        encode_clip(Hit(path.name, begin + start, begin + start + 2, 0.5, None, path), clip)
        errors = numbers(clip) - (round(start * RATE) + np.arange(2 * RATE))
        # ffmpeg writes AVI files whose second frame comes one frame late
        assert np.abs(errors).max() <= (1 if name.endswith(".avi") else 0)


def cut(path, start, stop, target, **options):
    middle = encode_clip(Hit(path.name, start, stop, 0.5, None, path), target, **options)
    made = open_video.open_video(target)
    return made, middle


def make(path, pattern, *options):
    command = [ffmpeg(), "-loglevel", "error", "-y", "-f", "lavfi", "-i", pattern, *options, str(path)]
    subprocess.run(command, check=True)
    return path


def test_a_clip_of_a_variable_rate_shows_each_picture_at_its_time(tmp_path):
    """One picture is shown from 2 s to 8 s: its clip is as long as asked for, and stands still."""
    path = make(tmp_path / "a.mp4", NUMBERED, "-vf", "select='lt(t,2)+gte(t,8)'", "-fps_mode", "vfr", *H264)
    made, _ = cut(path, 3.0, 5.0, tmp_path / "clip.mp4")
    assert made.length == 2 * RATE and set(numbers(tmp_path / "clip.mp4")) == {2 * RATE - 1}
    cut(path, 7.0, 9.0, tmp_path / "clip.mp4")
    assert numbers(tmp_path / "clip.mp4").tolist() == [49] * RATE + list(range(200, 225))


def test_a_clip_is_upright_of_square_pixels_and_at_most_sixty_frames_a_second(tmp_path):
    plain = make(tmp_path / "a.mp4", "testsrc=s=101x67:r=120:d=2", "-vf", "setsar=2", *H264, "-pix_fmt", "yuv444p")
    path = tmp_path / "turned.mp4"
    subprocess.run([ffmpeg(), "-loglevel", "error", "-display_rotation", "90", "-i", str(plain), "-c", "copy",
                    str(path)], check=True)
    made, middle = cut(path, 0.5, 1.5, tmp_path / "clip.mp4", quality=5)
    assert middle.shape == (202, 67, 3) and (made.width, made.height, made.length, made.fps) == (66, 202, 60, 60)
    source = open_video.open_video(path)
    expected = source.read([source.frame_at(1.0)])[0, :, :66].astype(float)
    error, mirrored = (np.abs(picture - made.read([30])[0]).mean() for picture in (expected, expected[::-1]))
    assert error < 0.25 * mirrored
    made, _ = cut(path, 0.5, 1.5, tmp_path / "clip.mp4", height=100)
    assert (made.width, made.height) == (32, 100)


def test_a_clip_of_a_damaged_video_and_of_changing_sizes(tmp_path):
    for part, size, start in (("a", "256x64", 0), ("b", "128x64", 10)):
        make(tmp_path / f"{part}.ts", NUMBERED.replace("256x64", size), "-output_ts_offset", str(start), *H264)
    path = tmp_path / "sizes.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    begin = open_video.open_video(path).start
    made, _ = cut(path, begin + 9, begin + 11, tmp_path / "clip.mp4")
    assert (made.width, made.height, made.length) == (256, 64, 2 * RATE)
    late = made.read([40])[0]
    assert late[:, :60].max() < 40 and late[:, 70:180].max() > 150  # bars, not stretched
    damaged = make(tmp_path / "damaged.mp4", NUMBERED, *H264)
    with av.open(str(damaged)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][100]
    data = bytearray(damaged.read_bytes())
    data[packet.pos:packet.pos + packet.size] = bytes(packet.size)
    damaged.write_bytes(data)
    cut(damaged, 3.0, 5.0, tmp_path / "clip.mp4")
    shown = numbers(tmp_path / "clip.mp4")
    assert len(shown) == 50 and shown[0] == 75 and shown[-1] == 124 and (np.diff(shown) >= 0).all()


def test_a_clip_that_shows_something_else_is_an_error(tmp_path, monkeypatch):
    path = make(tmp_path / "a.mp4", NUMBERED, *H264)

    def mirrored(arguments, *more):
        run_ffmpeg(["hflip," + argument if argument.startswith("scale") else argument for argument in arguments], *more)
    monkeypatch.setattr(clip_files, "run_ffmpeg", mirrored)
    with pytest.raises(PrepError, match=r"a\.mp4: the clip of 0:03–0:05 can't be made: .*turned or mirrored"):
        cut(path, 3.0, 5.0, tmp_path / "clip.mp4")
