"""Clips that are cut out of a video have the frames of the hit, in every container."""
import subprocess

import numpy as np
import pytest

from egokit.data.video import open_video
from egokit.prep.video import ffmpeg
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


@pytest.mark.parametrize("name, encoding, tolerance", [
    ("a.mp4", H264, 0), ("b.mkv", H264, 0), ("c.mov", ("-c:v", "mjpeg"), 0),
    ("d.webm", ("-c:v", "libvpx", "-b:v", "2M"), 0), ("e.avi", ("-c:v", "mpeg4"), 1), ("f.ts", H264, 0),
    ("g.mpg", MPEG2, 1), ("h.flv", FLV, 0), ("i.m2ts", H264, 0), ("j.vob", MPEG2, 0), ("k.wmv", ("-c:v", "wmv2"), 0),
    ("l.3gp", H264, 0), ("m.ogv", ("-c:v", "libtheora", "-q:v", "8"), 0)])
def test_a_cut_clip_has_the_frames_of_its_time(tmp_path, name, encoding, tolerance):
    """The tolerance is in frames: a file without timestamps may be wrong by one."""
    path, clip = tmp_path / name, tmp_path / "clip.mp4"
    sound = () if name.endswith((".ogv", ".3gp")) else SOUND
    subprocess.run([ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", NUMBERED, *sound, *encoding, str(path)],
                   check=True)
    assert (numbers(path) == np.arange(250)).all()
    for start in (0.0, 2.52, 7.0):
        encode_clip(Hit(path.name, start, start + 2, 0.5, None, path), clip)
        shown, first = numbers(clip), round(start * RATE)
        errors = shown[0] - first, shown[-1] - (first + 2 * RATE - 1), len(shown) - 2 * RATE
        assert max(map(abs, errors)) <= tolerance, (start, shown)
