"""Verification looks: an output that shows something else than its source fails, an honest one passes."""
import json
import subprocess
import threading

import numpy as np
import pytest

from egokit import prep
from egokit.prep import measure, verify, video
from egokit.prep.pictures import CELL, CONTRAST, PICTURE, SHIFTED, STILL, Comparison

RATE, SECONDS = 30, 6
SIZE = f"s=192x144:r={RATE}:d={SECONDS}"
CONTENTS = {
    "clock": (f"testsrc={SIZE}", "null"), "motion": (f"testsrc2={SIZE}", "null"),
    "zoom": (f"mandelbrot=s=192x144:r={RATE}", "null"), "noise": (f"color=gray:{SIZE}", "noise=alls=100:allf=t"),
    "dark": (f"testsrc2={SIZE}", "lutyuv=y='16+(val-16)*0.1',noise=alls=6:allf=t"),
    "still": (f"smptebars={SIZE}", "null"), "black": (f"color=black:{SIZE}", "null"),
    "fade": (f"testsrc2={SIZE}", "fade=in:0:90,fade=out:90:90"),
    "flicker": (f"testsrc2={SIZE}", "geq=lum='if(mod(N,2),lum(X,Y),lum(X,Y)/2)':cb='cb(X,Y)':cr='cr(X,Y)'"),
    "fast": (f"testsrc={SIZE}", "scroll=h=0.04:v=0.01"),
    "cells": (f"life=s=192x144:r={RATE}:mold=10:ratio=0.3", "null")}


def run(*arguments):
    subprocess.run([video.ffmpeg(), "-loglevel", "error", "-y", *map(str, arguments)], check=True)


def source_of(folder, name):
    path = folder / f"{name}.mkv"
    if not path.exists():
        pattern, filters = CONTENTS[name]
        run("-f", "lavfi", "-i", pattern, "-vf", filters, "-t", SECONDS, "-c:v", "libx264", "-preset", "ultrafast",
            "-qp", 4, "-pix_fmt", "yuv420p", path)
    return path


def encoded(source, target, filters, encoding="random_access", *more):
    """Make what prep makes, with `filters` applied as well."""
    run("-i", source, "-vf", f"scale=-2:72,{filters}", *video.ENCODINGS[encoding], *more,
        "-force_key_frames", "expr:gte(t,n_forced*2)", target)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("contents")


@pytest.mark.parametrize("encoding", video.ENCODINGS)
@pytest.mark.parametrize("name", CONTENTS)
def test_what_encoders_change_is_far_from_the_limits(folder, tmp_path, name, encoding):
    film = measure.scan(source_of(folder, name))
    resized = encoded(source_of(folder, name), tmp_path / "a.mp4", "null", encoding)
    facts, _ = verify.verify(film, resized, [], 2)
    assert facts["status"] == "ok", facts
    numbers = np.arange(len(film.times))
    comparison = Comparison(film.pictures, numbers, numbers, film.damaged, RATE, 144)
    measure.scan(resized, look=comparison.add)
    assert comparison.finish() == ""
    margins = comparison.largest
    assert margins["cell"] < 0.6 * CELL and margins["picture"] < 0.6 * PICTURE and margins["shift"] < 0.7 * SHIFTED
    assert margins["still"] > 2 * STILL and margins["contrast"] < 0.75 * CONTRAST


FAULTS = {
    "frozen": "trim=end_frame=60,tpad=stop=120:stop_mode=clone", "frozen for a second":
    "split[a][b];[a]trim=end_frame=90,tpad=stop=30:stop_mode=clone[c];[b]trim=start_frame=120,setpts=PTS-STARTPTS[d];"
    "[c][d]concat",
    "one frame late": "tpad=start=1:start_mode=clone,trim=end_frame=180",
    "one frame early": "trim=start_frame=1,setpts=PTS-STARTPTS,tpad=stop=1:stop_mode=clone",
    "many frames late": "tpad=start=40:start_mode=clone,trim=end_frame=180",
    "late for two seconds": "split[a][b];[a]trim=end_frame=60,tpad=stop=1:stop_mode=clone[c];"
    "[b]split[e][f];[e]trim=start_frame=60:end_frame=119,setpts=PTS-STARTPTS[g];"
    "[f]trim=start_frame=120,setpts=PTS-STARTPTS[d];[c][g][d]concat=n=3",
    "mirrored": "hflip", "upside down": "vflip", "half a turn": "hflip,vflip",
    "full range taken as limited": "lutyuv=y='clip(16+val*219/255,0,255)'",
    "limited range taken as full": "lutyuv=y='clip((val-16)*255/219,0,255)'",
    "bars": "scale=96:54,pad=96:72:0:9", "cut out": "crop=64:48,scale=96:72", "black": "lutyuv=y=16:u=128:v=128",
    "played backwards": "reverse"}


@pytest.mark.parametrize("name", ["clock", "motion", "zoom", "cells", "fast"])
def test_every_planted_fault_is_seen(folder, tmp_path, name):
    film = measure.scan(source_of(folder, name))
    for fault, filters in FAULTS.items():
        resized = encoded(source_of(folder, name), tmp_path / "a.mp4", filters)
        facts, _ = verify.verify(film, resized, [], 2)
        assert facts["frames"] == 180 and facts["status"] == "failed", fault
        assert "the source" in facts["reason"], fault


def test_the_reason_says_what_is_seen_and_when(folder, tmp_path):
    source = source_of(folder, "motion")
    film = measure.scan(source)

    def reason(filters, *more):
        return verify.verify(film, encoded(source, tmp_path / "a.mp4", filters, "original", *more), [], 2)[0]["reason"]
    assert reason("hflip") == "at 0.00 s it shows the source's picture turned or mirrored"
    assert reason(FAULTS["many frames late"]).startswith("at 0.")
    assert "it shows the source's frame 59 instead of " in reason(FAULTS["frozen"])
    assert reason("setsar=2") == "it is shown 192 x 72, which squeezes the source's 192 x 144"
    assert reason("scale=96:96,setsar=1").startswith("it is shown 96 x 96, which squeezes")
    assert "is it of another colour range?" in reason("lutyuv=y='clip(val*0.89+13,0,255)'")
    slow = source_of(folder, "zoom")
    late = encoded(slow, tmp_path / "a.mp4", FAULTS["one frame late"])
    assert "it shows earlier pictures than the source" in verify.verify(measure.scan(slow), late, [], 2)[0]["reason"]


def test_a_still_in_place_of_noise():
    """Nothing but the changes from frame to frame tells noise from its own still."""
    source = np.random.default_rng(1).normal(128, 4, (180, 256)).round().astype(np.uint8)
    numbers = np.arange(180)

    def reason(shown):
        comparison = Comparison(source, numbers, numbers, np.zeros(180, bool), RATE, 500)
        for number in shown:
            comparison.add(source[number], 500)
        return comparison.finish()
    assert reason(numbers) == ""
    assert reason(np.minimum(numbers, 60)) == "from about 2.1 s on it stands still, which the source does not"
    assert reason(np.maximum(numbers - 1, 0)) == "from about 0.0 s on it shows earlier pictures than the source"


def test_pieces_in_the_wrong_order(folder, tmp_path):
    source = source_of(folder, "motion")
    film, settings = measure.scan(source), video.PrepSettings(tmp_path, 72, 2)
    resized = tmp_path / "a.mp4"
    video.resize(source, resized, settings, film, True)
    (tmp_path / "pieces").mkdir()
    pieces = video.cut_pieces(resized, tmp_path / "pieces", settings)
    assert [line["status"] for line in verify.verify(film, resized, pieces, 2)[1]] == ["ok", "ok", "ok"]
    swapped = [pieces[1], pieces[0], pieces[2]]
    assert [line["status"] for line in verify.verify(film, resized, swapped, 2)[1]] == ["failed", "failed", "ok"]


def test_what_looks_wrong_is_not_published(folder, tmp_path, monkeypatch):
    real = video.run_ffmpeg

    def turned(arguments, *more):
        real([argument.replace("scale=", "hflip,scale=").replace("setparams=", "hflip,setparams=")
              for argument in arguments], *more)
    monkeypatch.setattr(video, "run_ffmpeg", turned)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.mkv").write_bytes(source_of(folder, "clock").read_bytes())
    manifest = prep.ego4d(tmp_path / "root", 72, 2, source=tmp_path / "full", progress=False)
    assert "turned or mirrored" in manifest["failed"][0] and not list(tmp_path.glob("root/Ego4D_*/*"))
    assert json.loads((tmp_path / "root/.prepared/a.json").read_text())["status"] == "failed"


def test_ffmpeg_that_misreads_a_source_is_given_its_pictures(folder, tmp_path, monkeypatch):
    real = video.resize

    def misread(source, target, settings, film, plain, stop=None):
        real(source_of(folder, "clock") if plain else source, target, settings, film, plain, stop)
    monkeypatch.setattr(video, "resize", misread)
    path = source_of(folder, "motion")
    entry = video.SourceVideo("a", path, path.stat().st_size)
    line = video.prepare_video(entry, video.PrepSettings(tmp_path / "root", 72, 2), threading.Event())
    assert line["status"] == "ok" and len(line["pieces"]) == 3
