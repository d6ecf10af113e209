"""Hits as files: a CSV table, and MP4 clips that any browser plays.

Clips are H.264 in yuv420p, with the index before the pictures (faststart).
"""
import csv
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from egokit.prep.video import run_ffmpeg
from egokit.runs.files import atomic_path
from egokit.search.searcher import Hit, timecode
from egokit.tasks.windows import reason

EXACT_SEEK = {"mov", "mp4", "matroska", "webm", "avi", "asf", "ogg"}  # containers in which ffmpeg seeks exactly
SEEK_MARGIN = 60.0  # seconds to seek earlier in the others, where ffmpeg lands on a later keyframe
STEM_BYTES = 150  # of a video's name in an exported clip's name; file systems allow names of 255 bytes


def write_csv(hits: list[Hit], path: str | Path) -> Path:
    """Write the hits as CSV, one line each, the best first, and return the path.

    Columns: video (path), start and stop (seconds on the player's clock), cosine, match (empty where the fusion encoder
    was not used), note (what is damaged or can't be read).
    """
    # surrogateescape writes file names that are not UTF-8 byte by byte, unchanged
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="",
                                              errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "start", "stop", "cosine", "match", "note"])
        writer.writerows([hit.path, f"{hit.start:.3f}", f"{hit.stop:.3f}", f"{hit.cosine:.6f}",
                          "" if hit.match is None else f"{hit.match:.6f}",
                          f"{hit.note}: {hit.error}" if hit.error else hit.note] for hit in hits)
    return Path(path)


def _seek_options(path: Path, start: float) -> tuple[list[str], list[str]]:
    """Return ffmpeg's options before and after its input that start at exactly this time.

    `start` is in seconds after the first picture.
    """
    import av
    from av.format import Flags
    with av.open(str(path), metadata_errors="replace") as container:
        stream, exact = container.streams.video[0], EXACT_SEEK & set(container.format.name.split(","))
        discontinuous = container.format.flags & Flags.ts_discont.value
        timed = not discontinuous and stream.start_time is not None  # without times, ffmpeg's 0 is the first picture
        if timed:
            start += float(stream.start_time * stream.time_base)
    # use the file's own time stamps: where the sound begins before the pictures, PyAV's FFmpeg and the ffmpeg program
    # may disagree on which time is 0
    timestamps = ["-seek_timestamp", "1"] if timed else []
    start -= 0.001  # times are written in thousandths: the first frame must not lie before its own time
    if exact:
        return [*timestamps, "-ss", f"{start:.3f}"], []
    early = max(0.0, start - SEEK_MARGIN)
    # MPEG streams have one frame rate, and not always a time stamp for each frame
    regular = ["-fps_mode", "cfr"] if discontinuous else []
    return ([*timestamps, *(["-ss", f"{early:.3f}"] if early else [])],
            ["-ss", f"{max(0.0, start - early):.3f}", *regular])


def encode_clip(hit: Hit, target: Path, height: int = 0, quality: int = 20) -> None:
    """Encode a hit's part of its video as an MP4 file without sound.

    Args:
        hit: The hit.
        target: The file to write.
        height: Largest height in pixels; 0 keeps the video's size.
        quality: x264's CRF; lower is better.
    """
    # yuv420p needs even sides
    scale = f"scale=-2:'min({height},trunc(ih/2)*2)'" if height else "scale=trunc(iw/2)*2:trunc(ih/2)*2"
    before, after = _seek_options(hit.path, hit.start)
    run_ffmpeg([*before, "-i", str(hit.path), *after, "-t", f"{hit.stop - hit.start:.3f}", "-map", "0:v:0", "-an",
                "-vf", scale, "-c:v", "libx264", "-preset", "veryfast", "-crf", str(quality), "-pix_fmt", "yuv420p",
                "-movflags", "+faststart", "-map_metadata", "-1", str(target)], hit.path, target)


class ExportError(RuntimeError):
    """Some clips can't be cut; all others are written. The message has a line for each that is not."""


def export(hits: list[Hit], folder: str | Path, on_error: Callable[[str], None] | None = None) -> list[Path]:
    """Write each hit as <rank>_<video>_<time>.mp4 into a folder and return the paths of those that are written.

    Clips have the size of their video. A long video name is cut to STEM_BYTES. A clip that can't be cut does not end
    the others.

    Args:
        hits: The hits, best first.
        folder: The folder to write to.
        on_error: Called with one line for each clip that can't be cut, after the others, such as `print`.

    Raises:
        ExportError: Without `on_error`, after all others are written.
    """
    stems = [os.fsencode(hit.path.stem)[:STEM_BYTES].decode(errors="ignore") for hit in hits]
    paths = [Path(folder) / f"{rank:02d}_{stem}_{timecode(hit.start).replace(':', '-')}.mp4"
             for rank, (stem, hit) in enumerate(zip(stems, hits, strict=True), 1)]

    def write(hit: Hit, path: Path) -> str:
        try:
            with atomic_path(path) as temporary:
                encode_clip(hit, temporary)
        except Exception as error:  # of a decoder, ffmpeg, the file system: the other clips are cut all the same
            return f"not written: {path.name}: {reason(error)}"
        return ""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = list(pool.map(write, hits, paths))
    failed = [error for error in errors if error]
    if failed and not on_error:
        raise ExportError("\n".join([*failed, f"{len(failed)} of {len(hits)} clips can't be cut; the others are in "
                                     f"{folder}. Index the folder again, or leave these clips out"]))
    for error in failed:
        on_error(error)
    return [path for path, error in zip(paths, errors, strict=True) if not error]


def encode_preview(hit: Hit) -> tuple[bytes, bytes, float]:
    """Return (MP4 of at most 240 lines, JPEG of its middle frame, height / width) for a page."""
    import io

    from PIL import Image

    from egokit.data.video.pyav_reader import PyAVReader
    with tempfile.TemporaryDirectory(prefix="egokit-") as folder:
        path = Path(folder) / "clip.mp4"
        encode_clip(hit, path, height=240, quality=27)
        reader, picture = PyAVReader(path), io.BytesIO()
        middle = Image.fromarray(reader.read([reader.length // 2])[0])
        middle.save(picture, "JPEG", quality=80)
        reader.close()
        return path.read_bytes(), picture.getvalue(), middle.height / middle.width
