"""One video of Ego4D: resized, cut into pieces, verified, and a receipt of it. All videos of a folder are source.py's.

Prepared files have a constant frame rate, and their time zero is the source's first frame. Of a source with a constant
rate every frame is kept, none is added; one with a variable rate (phones, screen recorders) is resampled at its usual rate,
so that a frame's number is its time multiplied by the rate, as every reader here assumes.
"""
from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from egokit.prep.measure import PrepError, scan, verify
from egokit.runs.files import atomic_folder, atomic_path, is_abandoned, write_text

# For random access: a keyframe every 25 frames, and between the frames that others refer to (every eighth) seven that nothing
# refers to, so that any frame is at most five decodes away. No deblocking, no arithmetic coding: they cost decoding time.
# benchmarks/decode.py has the measurements. faststart: opened in one read.
RANDOM_ACCESS = ["-c:v", "libx264", "-preset", "faster", "-crf", "23", "-pix_fmt", "yuv420p", "-g", "25", "-keyint_min", "25",
                 "-sc_threshold", "0", "-bf", "7", "-b_strategy", "0", "-x264-params", "b-pyramid=none:open-gop=0", "-tune", "fastdecode",
                 "-an", "-movflags", "+faststart"]
# The paper's code scales with plain ffmpeg: these are libx264's defaults, with B-frames and up to 250 frames between keyframes.
ORIGINAL = ["-c:v", "libx264", "-preset", "medium", "-crf", "23", "-g", "250", "-an", "-movflags", "+faststart"]
ENCODINGS = {"random_access": RANDOM_ACCESS, "original": ORIGINAL}  # site.encoding

# what ffmpeg says when the reason is not the video: every other video would fail the same way
NOT_THE_VIDEO = ("No space left on device", "Disk quota exceeded", "Read-only file system", "Unknown encoder", "Stale file handle")


class SetupError(PrepError):
    """Nothing can be prepared here: a full disk, no permission, no ffmpeg. Not written into any video's receipt."""


@dataclasses.dataclass(frozen=True)
class SourceVideo:
    """One source video."""
    uid: str
    path: Path
    bytes: int


@dataclasses.dataclass(frozen=True)
class PrepSettings:
    """How videos are prepared, and where what is made of them goes."""
    root: Path
    short_side: int = 256
    chunk_seconds: float = 600.0
    encoding: str = "random_access"

    def __post_init__(self):
        if self.encoding not in ENCODINGS:
            raise ValueError(f"site.encoding {self.encoding!r}: expected {' or '.join(ENCODINGS)}")

    def settings(self, video: SourceVideo) -> dict:
        """What the outputs depend on: made with anything else, they are made again."""
        return {"short_side": self.short_side, "chunk_seconds": self.chunk_seconds, "frame_rate": "constant",
                "encoding": " ".join(ENCODINGS[self.encoding]), "source_bytes": video.bytes}

    def resized(self, uid: str) -> Path:
        return self.root / "Ego4D_256" / f"{uid}.mp4"

    def pieces(self, uid: str) -> Path:
        return self.root / "Ego4D_Chunked" / uid

    def receipt(self, uid: str) -> Path:
        return self.root / ".prepared" / f"{uid}.json"


def ffmpeg() -> str:
    """The system's ffmpeg, or the one in the imageio-ffmpeg wheel. Raises SetupError if there is neither."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg
        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise SetupError("no ffmpeg in PATH: apt install ffmpeg, conda install ffmpeg or pip install imageio-ffmpeg") from None


def run_ffmpeg(arguments: list[str], source: Path, target: Path) -> None:
    """Raises PrepError that names the source, or SetupError if the reason is not the source."""
    done = subprocess.run([ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments],
                          capture_output=True, text=True, errors="replace")
    lines = done.stderr.strip().splitlines()
    for line in lines:  # looked at in any case: ffmpeg may end with 0 when the disk was full only for its last step, faststart
        if any(reason in line for reason in NOT_THE_VIDEO):
            raise SetupError(f"{target.parent} can't be written: ffmpeg says {line!r}. Correct that; the same command then goes on")
    if done.returncode:
        raise PrepError(f"{source}: ffmpeg failed: {(lines or [f'exit status {done.returncode}'])[-1]}")


def resize(source: Path, target: Path, plan: PrepSettings, facts: dict, rate: Fraction) -> None:
    """Short side `plan.short_side`, aspect kept, even sizes; a keyframe at every multiple of `plan.chunk_seconds`.

    facts, rate: `scan` of the source.
    """
    side = plan.short_side
    filters = f"scale='if(gt(iw,ih),-2,{side})':'if(gt(iw,ih),{side},-2)'"
    pace, end = ["-r", str(rate)], []  # frame n at n / rate: ffmpeg neither drops nor repeats any, however its time was rounded
    if not facts["constant_rate"]:  # ffmpeg's versions differ in how long they show the last frame: repeated here, and cut off
        filters = f"setpts=PTS-STARTPTS,fps={rate},tpad=stop=-1:stop_mode=clone,{filters}"
        pace, end = [], ["-t", str(facts["seconds"])]
    run_ffmpeg([*pace, "-i", str(source), "-map", "0:v:0", "-vf", filters, *end, *ENCODINGS[plan.encoding],
                "-force_key_frames", f"expr:gte(t,n_forced*{plan.chunk_seconds})", str(target)], source, target)


def cut(resized: Path, folder: Path, plan: PrepSettings) -> list[Path]:
    """Cut at the keyframes that `resize` put at the boundaries, without encoding again: 0.mp4, 1.mp4, …"""
    names = str(folder).replace("%", "%%") + "/%d.mp4"  # a folder may be called "50%"
    # B-frames give the first packet a negative time; shifted to zero, with all others, cuts would fall before the boundaries
    run_ffmpeg(["-i", str(resized), "-c", "copy", "-avoid_negative_ts", "disabled", "-f", "segment",
                "-segment_time", str(plan.chunk_seconds), "-reset_timestamps", "1",
                "-segment_format_options", "movflags=+faststart", names], resized, folder)
    return [folder / f"{number}.mp4" for number in range(len(list(folder.glob("*.mp4"))))]


def prepare_video(video: SourceVideo, plan: PrepSettings, stop: threading.Event) -> dict:
    """One video: resized, cut, verified, then published and its receipt written. Returns the receipt, its line of the manifest.

    Never raises for a bad video: its receipt has status "failed" and the reason. Raises SetupError for a full disk and the
    like. Any number of processes and machines may be given the same video at once.
    """
    path = plan.receipt(video.uid)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(path.with_suffix(".lock"), stop):
            line = receipt(video, plan)  # another process may have made it while this one waited
            if line["status"] == "ok":
                return line
            sweep(video.uid, plan)
            line = {"uid": video.uid, "status": "ok", "settings": plan.settings(video)}
            try:
                make(video, plan, line, stop)
            except PrepError as error:
                if isinstance(error, SetupError) or stop.is_set():
                    raise
                told = str(video.path) in str(error)  # otherwise it names only the temporary file that was made of it
                line |= {"status": "failed", "reason": str(error) if told else f"{video.path}: {error}"}
            write_text(path, json.dumps(line))
            return line
    except OSError as error:  # not of the source, whose errors are PrepErrors by now
        raise SetupError(f"{error.filename or plan.root} can't be written ({error.strerror or error}). "
                         "Correct that; the same command then goes on") from None


def make(video: SourceVideo, plan: PrepSettings, line: dict, stop: threading.Event) -> None:
    """Put source, resized and pieces into `line`; nothing appears under its final name before all of it is verified."""
    line["source"], rate = scan(video.path, stop)
    with atomic_path(plan.resized(video.uid)) as whole, atomic_folder(plan.pieces(video.uid)) as folder:
        resize(video.path, whole, plan, line["source"], rate)
        files = cut(whole, folder, plan)
        line["resized"] = scan(whole, stop)[0] | {"file": plan.resized(video.uid).name}
        line["pieces"] = [scan(file, stop)[0] for file in files]
        verify(line["source"], line["resized"], line["pieces"], plan.chunk_seconds)
        wrong = [f"{one['file']}: {one['reason']}" for one in (line["resized"], *line["pieces"]) if one["status"] != "ok"]
        if wrong:
            raise PrepError(f"{video.path}: {'; '.join(wrong[:3])}")


def receipt(video: SourceVideo, plan: PrepSettings, files: bool = True) -> dict:
    """The receipt of a video; status "pending" where there is none, where it is of other settings, or where a file is not as it says.

    files=False believes the receipt: two files are read of each video instead of a folder.
    """
    pending = {"uid": video.uid, "status": "pending"}
    try:
        line = json.loads(plan.receipt(video.uid).read_bytes())
        if line["settings"] != plan.settings(video):
            return pending
        if files and line["status"] == "ok":
            there = {entry.name: entry.stat().st_size for entry in os.scandir(plan.pieces(video.uid))}
            if there != {piece["file"]: piece["bytes"] for piece in line["pieces"]} \
                    or plan.resized(video.uid).stat().st_size != line["resized"]["bytes"]:
                return pending
        return line
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return pending


@contextlib.contextmanager
def claimed(path: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process does. A killed process's lock is free at once.

    It saves work and is not what keeps outputs whole: where a file system has no locks, two processes make the same video
    under names of their own, and the later one's takes the place of the earlier one's.
    """
    with open(path, "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stop.wait(0.5):
                    raise PrepError(f"{path}: interrupted while another process held it") from None
            except OSError:
                break
        yield


def sweep(uid: str, plan: PrepSettings) -> None:
    """Remove what killed processes left half made of a video."""
    for path in (plan.resized(uid), plan.pieces(uid), plan.receipt(uid)):
        for part in path.parent.glob(f".{glob.escape(uid)}.*-*-*.part*"):
            with contextlib.suppress(FileNotFoundError):
                if is_abandoned(part):
                    shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink()
