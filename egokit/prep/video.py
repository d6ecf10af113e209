"""Prepare one Ego4D video: resize it, cut it into pieces, verify them, write a receipt.

A receipt is the video's line of the manifest in a file of its own. All videos of a folder are handled in source.py.

Prepared files have a constant frame rate, and their time zero is the source's first frame. If the source has a
constant rate, every frame is kept and none is added. A source with a variable rate (phones, screen recorders) is
resampled at its usual rate, so that a frame's number is its time multiplied by the rate, as every reader here assumes.
"""
import contextlib
import dataclasses
import glob
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from egokit.data.video.container import LIMITS
from egokit.prep.decoding import PrepError, draw
from egokit.prep.measure import Film, scan
from egokit.prep.verify import verify
from egokit.runs.files import atomic_folder, atomic_path, lock_file, remove_abandoned, write_text

# For random access: a keyframe every 25 frames; between reference frames (every eighth) seven B-frames to which nothing
# refers, so that any frame is at most five decodes away. No deblocking and no arithmetic coding, which cost decoding
# time. benchmarks/decode.py has the measurements. faststart: the index is at the front, so one read opens the file.
RANDOM_ACCESS = ["-c:v", "libx264", "-preset", "faster", "-crf", "23", "-pix_fmt", "yuv420p", "-g", "25",
                 "-keyint_min", "25", "-sc_threshold", "0", "-bf", "7", "-b_strategy", "0",
                 "-x264-params", "b-pyramid=none:open-gop=0", "-tune", "fastdecode", "-an", "-movflags", "+faststart"]
# The paper's code scales with plain ffmpeg; these are libx264's defaults: B-frames, up to 250 frames between keyframes.
ORIGINAL = ["-c:v", "libx264", "-preset", "medium", "-crf", "23", "-g", "250", "-an", "-movflags", "+faststart"]
ENCODINGS = {"random_access": RANDOM_ACCESS, "original": ORIGINAL}  # site.encoding

# ffmpeg's messages whose reason is not the video: every other video would fail in the same way
NOT_THE_VIDEO = ("No space left on device", "Disk quota exceeded", "Read-only file system", "Unknown encoder",
                 "Stale file handle")


class SetupError(PrepError):
    """Nothing can be prepared here: the disk is full, or permission or ffmpeg is missing.

    It is not written into any video's receipt.
    """


@dataclasses.dataclass(frozen=True)
class SourceVideo:
    """One source video; `bytes` is its size."""
    uid: str
    path: Path
    bytes: int


@dataclasses.dataclass(frozen=True)
class PrepSettings:
    """How videos are prepared, and where the outputs go."""
    root: Path
    short_side: int = 256
    chunk_seconds: float = 600.0
    encoding: str = "random_access"

    def __post_init__(self):
        if self.encoding not in ENCODINGS:
            raise ValueError(f"site.encoding {self.encoding!r}: expected {' or '.join(ENCODINGS)}")

    def fingerprint(self, video: SourceVideo) -> dict:
        """Return what a video's outputs depend on; a change of it has them made again."""
        return {"short_side": self.short_side, "chunk_seconds": self.chunk_seconds, "frame_rate": "constant",
                "encoding": " ".join(ENCODINGS[self.encoding]), "source_bytes": video.bytes}

    def resized_path(self, uid: str) -> Path:
        return self.root / "Ego4D_256" / f"{uid}.mp4"

    def pieces_folder(self, uid: str) -> Path:
        return self.root / "Ego4D_Chunked" / uid

    def receipt_path(self, uid: str) -> Path:
        return self.root / ".prepared" / f"{uid}.json"


def ffmpeg() -> str:
    """Return the path of the system's ffmpeg, or else of the one in the imageio-ffmpeg wheel.

    Raises:
        SetupError: there is neither.
    """
    path = shutil.which("ffmpeg")
    if path:
        return path
    try:
        import imageio_ffmpeg
        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise SetupError("no ffmpeg in PATH: apt install ffmpeg, conda install ffmpeg or "
                         "pip install imageio-ffmpeg") from None


def run_ffmpeg(arguments: list[str], source: Path, target: Path, frames: Iterable[bytes] = ()) -> None:
    """Run ffmpeg with `arguments`.

    Args:
        source: the file that an error names.
        target: the output; its folder is named if it can't be written.
        frames: what ffmpeg reads as "-", piece by piece. If they raise, ffmpeg is ended.

    Raises:
        PrepError: ffmpeg failed because of the source.
        SetupError: ffmpeg failed for another reason, such as a full disk or Ctrl-C.
    """
    with tempfile.TemporaryFile() as file:  # not a pipe: nothing would empty it while frames are written
        process = subprocess.Popen([ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments],
                                   stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=file)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended early, and says why
                for frame in frames:
                    process.stdin.write(frame)
                process.stdin.close()
            process.wait()
        finally:
            process.kill()  # nothing, if it has ended
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        file.seek(0)
        messages = file.read().decode(errors="replace").strip().splitlines()
    # Read even after exit status 0: ffmpeg ends so if the disk was full only for its last step, faststart.
    for message in messages:
        if any(reason in message for reason in NOT_THE_VIDEO):
            raise SetupError(f"{target.parent} can't be written: ffmpeg says {message!r}. "
                             "Correct that; the same command then goes on")
    # Ctrl-C reaches ffmpeg, too, maybe before this program has set `stop`: that is no fault of the video.
    if process.returncode in (-signal.SIGINT, -signal.SIGTERM) or (process.returncode == 255 and not messages):
        raise SetupError(f"{source}: ffmpeg was interrupted; start the same command again to go on")
    if process.returncode:
        reason = messages[-1] if messages else f"exit status {process.returncode}"
        raise PrepError(f"{source}: ffmpeg failed: {reason}")


def film_input(path: Path) -> list[str]:
    """Return ffmpeg's options and name of an input, which is read by the same limits as egokit's readers read it."""
    return [*(word for key, value in LIMITS.items() for word in (f"-{key}", value)), "-i", str(path.absolute())]


def resize(source: Path, target: Path, settings: PrepSettings, film: Film, plain: bool,
           stop: threading.Event | None = None) -> None:
    """Scale a video, with a keyframe at every multiple of `settings.chunk_seconds`.

    The short side becomes `settings.short_side`, the aspect ratio is kept, and both sides are even.

    Args:
        film: the result of `scan` of the source.
        plain: whether ffmpeg reads the source, or is given its pictures.
    """
    side = settings.short_side
    encoding = [*ENCODINGS[settings.encoding], "-force_key_frames", f"expr:gte(t,n_forced*{settings.chunk_seconds})",
                str(target.absolute())]  # a name such as "a:b" would be an address
    if plain:
        filters = f"scale='if(gt(iw,ih),-2,{side})':'if(gt(iw,ih),{side},-2)'"
        # Frame n is put at n / rate: ffmpeg neither drops nor repeats a frame, however its time was rounded.
        run_ffmpeg(["-r", str(film.rate), *film_input(source), "-map", f"0:{film.stream}", "-vf", filters, *encoding],
                   source, target)
        return
    # ffmpeg starts anew where the picture changes, squeezes what is of another shape, and stops at some damage
    size = [2 * round(side * length / min(film.canvas) / 2) for length in film.canvas]
    colours = "setparams=range=tv:colorspace={}:color_primaries={}:color_trc={}".format(*film.colours)
    run_ffmpeg(["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{size[0]}x{size[1]}", "-r", str(film.rate), "-i", "-",
                "-vf", colours, *encoding], source, target, draw(source, film, size, stop))


def cut_pieces(resized: Path, folder: Path, settings: PrepSettings) -> list[Path]:
    """Cut a resized video into 0.mp4, 1.mp4, … without re-encoding.

    The cuts are at the keyframes that `resize` put at the boundaries.
    """
    names = str(folder.absolute()).replace("%", "%%") + "/%d.mp4"  # a folder may be called "50%"
    # B-frames give the first packet a negative time. If all times were shifted to make it zero, cuts would fall before
    # the boundaries.
    run_ffmpeg([*film_input(resized), "-c", "copy", "-avoid_negative_ts", "disabled", "-f", "segment",
                "-segment_time", str(settings.chunk_seconds), "-reset_timestamps", "1",
                "-segment_format_options", "movflags=+faststart", names], resized, folder)
    return [folder / f"{number}.mp4" for number in range(len(list(folder.glob("*.mp4"))))]


def prepare_video(video: SourceVideo, settings: PrepSettings, stop: threading.Event) -> dict:
    """Resize, cut and verify one video, publish its files, and write its receipt.

    Any number of processes and machines may be given the same video at once.

    Args:
        stop: when set, the video is given up and PrepError is raised.

    Returns:
        The receipt, the video's line of the manifest. A bad video does not raise: its receipt has status "failed" and
        the reason.

    Raises:
        SetupError: outputs can't be written, for example because the disk is full.
    """
    path = settings.receipt_path(video.uid)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the lock only saves work: without it, the later of two equal results replaces the earlier one
        with lock_file(path.with_suffix(".lock"), stop=stop):
            line = read_receipt(video, settings)  # another process may have made it while this one waited
            if line["status"] == "ok":
                return line
            for final in (settings.resized_path(video.uid), settings.pieces_folder(video.uid), path):
                remove_abandoned(final.parent, glob.escape(video.uid))
            line = {"uid": video.uid, "status": "ok", "settings": settings.fingerprint(video), "looked": True}
            try:
                make_outputs(video, settings, line, stop)
            except PrepError as error:
                if isinstance(error, SetupError) or stop.is_set():
                    raise
                named = str(video.path) in str(error)  # otherwise the error names only the temporary file made of it
                line |= {"status": "failed", "reason": str(error) if named else f"{video.path}: {error}"}
            write_text(path, json.dumps(line))
            return line
    except OSError as error:  # not an error of the source: those have become PrepErrors by now
        raise SetupError(f"{error.filename or settings.root} can't be written ({error.strerror or error}). "
                         "Correct that; the same command then goes on") from None


def make_outputs(video: SourceVideo, settings: PrepSettings, line: dict, stop: threading.Event) -> None:
    """Put the facts of source, resized file and pieces into `line`.

    Nothing appears under its final name before all of it is verified.
    """
    film = scan(video.path, stop)
    line["source"] = film.facts
    with (atomic_path(settings.resized_path(video.uid)) as resized,
          atomic_folder(settings.pieces_folder(video.uid)) as folder):
        def make(plain: bool) -> list[str]:
            resize(video.path, resized, settings, film, plain, stop)
            files = cut_pieces(resized, folder, settings)
            line["resized"], line["pieces"] = verify(film, resized, files, settings.chunk_seconds, stop)
            line["resized"]["file"] = settings.resized_path(video.uid).name
            return [f"{output['file']}: {output['reason']}" for output in (line["resized"], *line["pieces"])
                    if output["status"] != "ok"]

        wrong = make(film.plain)
        if wrong and film.plain:  # ffmpeg saw another film
            wrong = make(plain=False)
        if wrong and film.doubt(scan(video.path, stop), video.path):  # decoders fill some damage with what lies about
            wrong = make(plain=False)
        if wrong:
            raise PrepError(f"{video.path}: {'; '.join(wrong[:3])}")


def read_receipt(video: SourceVideo, settings: PrepSettings, check_files: bool = True) -> dict:
    """Return the receipt of a video, or one with status "pending" if the video has to be made.

    It is pending if there is no receipt, if the receipt is of other settings, or if a file's size differs from what
    the receipt says. With check_files=False the receipt is believed, which spares listing the folder of pieces.
    """
    pending = {"uid": video.uid, "status": "pending"}
    try:
        line = json.loads(settings.receipt_path(video.uid).read_bytes())
        if line["settings"] != settings.fingerprint(video):
            return pending
        if line["status"] == "ok" and not line["source"]["constant_rate"] and not line.get("looked"):
            return pending  # made before pictures were looked at, and may stand still
        if check_files and line["status"] == "ok":
            present = {entry.name: entry.stat().st_size for entry in os.scandir(settings.pieces_folder(video.uid))}
            if present != {piece["file"]: piece["bytes"] for piece in line["pieces"]} \
                    or settings.resized_path(video.uid).stat().st_size != line["resized"]["bytes"]:
                return pending
        return line
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return pending
