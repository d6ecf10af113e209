"""Media files of others: lists of other files, addresses in place of names, and pictures beyond memory."""
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from search_folder import video

from egokit import prep
from egokit.data.video import open_video, pictures
from egokit.data.video.container import FORMATS, LIMITS
from egokit.data.video.open_video import VideoError
from egokit.prep.decoding import PrepError
from egokit.prep.measure import scan
from egokit.prep.video import PrepSettings, SourceVideo, ffmpeg, film_input, prepare_video, run_ffmpeg
from egokit.search.clip_files import encode_clip
from egokit.search.searcher import Hit
from egokit.toy import schedule, videos

DASH = ('<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="urn:mpeg:dash:profile:'
        'isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
        "<BaseURL>film.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>")
TEXTS = {
    "ffconcat": "ffconcat version 1.0\nfile film.mp4\n",
    "ffconcat of an address": "ffconcat version 1.0\nfile 'http://127.0.0.1:9/a.mp4'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfilm.ts\n#EXT-X-ENDLIST\n",
    "dash": DASH,
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
           "a=rtpmap:96 H264/87040\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nhi\n",
    "metadata": ";FFMETADATA1\ntitle=x\n",
    "vtt": "WEBVTT\n\n00:00.000 --> 00:01.000\nhi\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><image href="film.png"/></svg>',
}


@pytest.fixture
def film(tmp_path):
    """A film of two seconds, alone in its folder and as a transport stream, which a list may name."""
    path = video(tmp_path / "full/film.mp4", 2)
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", path, "-c", "copy", path.with_suffix(".ts")], check=True)
    return path


def refusals(path, program=True):
    """Open a file in every way there is, by the ffmpeg program, too; return the messages of the errors."""
    ways = [lambda: open_video.open_video(path), lambda: open_video.open_video(path, tolerant=True),
            lambda: open_video.open_video(path, "decord"), lambda: scan(path),
            lambda: encode_clip(Hit("x", 0, 1, 0.5, None, path), path.with_name("clip.mp4")),
            lambda: run_ffmpeg([*film_input(path), "-f", "null", "-"], path, path)]
    messages = []
    for way in ways if program else ways[:-1]:
        with pytest.raises((VideoError, PrepError)) as caught:
            way()
        messages.append(str(caught.value))
        assert "\n" not in messages[-1] and str(path) in messages[-1]
    return messages


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_a_list_of_files_is_no_video(film, kind, suffix):
    path = film.with_name(f"list{suffix}")
    path.write_text(TEXTS[kind])
    refusals(path)


@pytest.mark.parametrize("codec", ["png", "mjpeg", "bmp"])
def test_a_picture_is_no_video(film, codec):
    path = film.with_name("picture.mp4")
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", film, "-frames:v", "1", "-c:v", codec, "-f", "image2", path],
                   check=True)
    assert "no video" in refusals(path)[0]


def test_a_pattern_is_no_video(film):
    for number in range(3):
        subprocess.run([ffmpeg(), "-loglevel", "error", "-i", film, "-frames:v", "1", film.with_name(f"p{number}.png")],
                       check=True)
    path = film.with_name("p%d.png")
    path.write_text("x")
    refusals(path)


def test_preparation_refuses_lists_and_goes_on(film, tmp_path):
    film.with_suffix(".ts").rename(tmp_path / "film.ts")
    for number, text in enumerate(TEXTS.values()):
        film.with_name(f"list-{number}.mp4").write_text(text)
    manifest = prep.ego4d(tmp_path / "root", 64, 1, source=film.parent, workers=1, progress=False)
    assert manifest["videos"] == 1 and len(manifest["failed"]) == len(TEXTS)
    assert sorted(os.listdir(tmp_path / "root/Ego4D_256")) == ["film.mp4"]


def test_no_format_reads_other_files():
    """Those that open what is named in them, as FFmpeg's documentation of demuxers says, and text that is drawn."""
    assert not {"concat", "hls", "dash", "imf", "sdp", "rtsp", "rtp", "sap", "image2", "webm_dash_manifest", "tty",
                "sbg", "lavfi", "vapoursynth", "avisynth", "vobsub"} & {*FORMATS.split(",")}
    assert LIMITS["protocol_whitelist"] == "file"


ADDRESSES = ["concat:film.mp4", "pipe:.mp4", "data:x.mp4", "file:film.mp4", "subfile,,start,0,end,9,,:film.mp4",
             "http:film.mp4", "-i.mp4", "fd:.mp4", "crypto:film.mp4", "@list.mp4", "film%d.mp4"]


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_relative_name_is_no_address(film, name, tmp_path, monkeypatch):
    other = video(tmp_path / "other.mp4", 1.5, size="96x64")
    monkeypatch.chdir(film.parent)
    shutil.move(other, name)
    path = Path(name)
    for reader in ("pyav", "decord"):
        assert open_video.open_video(path, reader).read([3]).shape == (1, 64, 96, 3)
    assert (scan(path).facts["frames"], scan(path).facts["width"]) == (15, 96)
    encode_clip(Hit("x", 0, 1, 0.5, None, path), Path(f"clip of {name}"))
    assert open_video.open_video(Path(f"clip of {name}")).length == 10
    encode_clip(Hit("x", 0, 1, 0.5, None, film), Path(f"pipe:{name}"))
    line = prepare_video(SourceVideo("a", path, path.stat().st_size), PrepSettings(Path("data:b"), 32, 1),
                         threading.Event())
    assert line["status"] == "ok" and [piece["frames"] for piece in line["pieces"]] == [10, 5]
    assert sorted(os.listdir("data:b/Ego4D_Chunked/a")) == ["0.mp4", "1.mp4"]


def test_the_toy_is_made_in_a_folder_of_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = min(schedule.make_schedule(0, "tiny"), key=lambda entry: entry.seconds)
    Path("data:x").mkdir()
    videos.encode(videos.draw_frames(entry), Path("data:x/pipe:.mp4"))
    assert os.listdir("data:x") == ["pipe:.mp4"]


# pictures beyond memory

LARGE = "color=s=8704x8704:r=5:d=0.2,format=gray"  # one picture of 76 million pixels
MEASURE = """
import sys
from pathlib import Path
from egokit.data.video import open_video
from egokit.prep.measure import scan
for way in (open_video.open_video, lambda path: open_video.open_video(path, tolerant=True), scan):
    try:
        made = way(Path(sys.argv[1]))
        print("made", made.read([0, made.length - 1]).shape if way is not scan else made.facts["frames"])
    except Exception as error:
        print(type(error).__name__, error)
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def measured(path) -> tuple[list[str], int]:
    """Return what becomes of a file in three ways, and the memory in MB that a process needs for them."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    *lines, memory = done.stdout.splitlines()
    return lines, int(memory)


def encoded(path, *options, pattern=LARGE):
    subprocess.run([ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", pattern, *options, str(path)], check=True)
    return path


H264 = ("-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast")


@pytest.mark.parametrize("name, options", [
    ("a.mov", ("-c:v", "png")), ("b.mkv", ("-c:v", "png")), ("c.mp4", H264), ("d.ts", H264), ("e.h264", H264),
    ("f.mov", ("-c:v", "qtrle")), ("g.avi", ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p")), ("h.gif", ())])
def test_an_enormous_picture_is_refused_before_it_is_decoded(tmp_path, name, options):
    path = encoded(tmp_path / name, *options)
    lines, memory = measured(path)
    assert memory < 150 and [line.split()[0] for line in lines] == ["VideoError", "VideoError", "PrepError"], lines
    assert all(str(path) in line and "67,108,864 pixels" in line for line in lines)
    assert name not in ("c.mp4", "d.ts", "e.h264") or "8704 x 8704" in lines[0]
    with pytest.raises(PrepError):
        run_ffmpeg([*film_input(path), "-f", "null", "-"], path, path)


def test_a_header_that_states_a_small_picture(tmp_path):
    data = encoded(tmp_path / "a.mp4", *H264).read_bytes()
    for size, small in (((8704).to_bytes(2, "big") * 2, (90).to_bytes(2, "big") * 2),
                        ((8704 << 16).to_bytes(4, "big") * 2, (90 << 16).to_bytes(4, "big") * 2)):
        assert size in data
        data = data.replace(size, small)
    (tmp_path / "b.mp4").write_bytes(data)
    lines, memory = measured(tmp_path / "b.mp4")
    assert memory < 150 and all("8704 x 8704" in line for line in lines)


@pytest.mark.parametrize("name, disposition", [("b.mp4", "attached_pic"), ("b.mkv", "0"), ("b.mov", "0")])
def test_a_cover_or_a_second_film_is_not_decoded(tmp_path, name, disposition):
    cover, film = encoded(tmp_path / "c.png", "-frames:v", "1"), video(tmp_path / "a.mp4", 2)
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", film, "-i", cover, "-map", "0", "-map", "1", "-c", "copy",
                    "-disposition:v:0", "default", "-disposition:v:1", disposition, str(tmp_path / name)], check=True)
    lines, memory = measured(tmp_path / name)
    assert memory < 150 and lines == ["made (2, 96, 128, 3)"] * 2 + ["made 20"]


@pytest.mark.parametrize("suffix", [".ts", ".h264"])
def test_a_picture_that_grows_in_mid_file_is_damage(tmp_path, suffix):
    small = video(tmp_path / f"a{suffix}", 2, more=H264)
    large = encoded(tmp_path / f"b{suffix}", *H264, *(("-output_ts_offset", "2") if suffix == ".ts" else ()))
    small.write_bytes(small.read_bytes() + large.read_bytes())
    lines, memory = measured(small)
    assert memory < 300 and lines[0].startswith("VideoError") and lines[2] == "made 21", lines


@pytest.mark.parametrize("pattern", ["color=s=16x2048:r=5:d=0.4", "color=s=2048x16:r=5:d=0.4"])
def test_a_picture_as_thin_as_a_thread(tmp_path, pattern):
    """Its short side would be made as long as a frame's, and its long side with it."""
    assert "times the other" in refusals(encoded(tmp_path / "a.mp4", *H264, pattern=pattern), program=False)[0]
    small, thin = video(tmp_path / "b.ts", 2, more=H264), encoded(
        tmp_path / "c.ts", *H264, "-output_ts_offset", "2", pattern=pattern)
    small.write_bytes(small.read_bytes() + thin.read_bytes())
    reader = open_video.open_video(small, tolerant=True)
    with pytest.raises(VideoError, match=rf"{small.name}: its pictures have .*times the other"):
        reader.read([reader.length - 1])
    with pytest.raises(PrepError, match="times the other"):
        scan(small)


@pytest.mark.parametrize("width, height, fits", [
    (8192, 8192, True), (7680, 3840, True), (11000, 5500, True), (8193, 8192, False), (64, 1, True), (65, 1, False),
    (1, 65, False), (2**31, 2**31, False), (0, 0, False)])
def test_the_limit(width, height, fits):
    if fits:
        return pictures.check_size(width, height)
    with pytest.raises(pictures.Refused, match="expected at most 67,108,864 pixels"):
        pictures.check_size(width, height)


def test_a_long_picture_is_fitted_without_what_is_cut_off(monkeypatch):
    """In mid-file, a picture of another shape is put into the canvas of the first."""
    row = np.linspace(0, 255, 512).astype(np.uint8)
    long = np.broadcast_to(row[None, :, None], (8, 512, 3))
    made, resize = [], torch.nn.functional.interpolate
    whole = resize(torch.from_numpy(long.copy()).permute(2, 0, 1)[None], (64, 4096), mode="bilinear", antialias=True)
    whole = whole[0, :, :, 2016:2080].permute(1, 2, 0).numpy()

    def noted(pixels, size, **options):
        made.append(size)
        return resize(pixels, size, **options)
    monkeypatch.setattr(torch.nn.functional, "interpolate", noted)
    fitted = pictures.fit(long, 64, 64)
    assert fitted.shape == (64, 64, 3) and np.abs(fitted.astype(int) - whole).max() <= 1
    assert pictures.fit(long.swapaxes(0, 1), 64, 64).shape == (64, 64, 3)
    assert all(rows * columns <= 4 * 64 * 64 for rows, columns in made) and len(made) == 2
