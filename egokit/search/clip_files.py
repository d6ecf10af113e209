"""Hits as files: a CSV table, and MP4 clips that any browser plays.

Clips are H.264 in yuv420p, with the index before the pictures (faststart).
"""
import contextlib
import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from egokit.data.video.pictures import fit
from egokit.data.video.pyav_reader import PyAVReader
from egokit.data.video.timeline import ROUNDING, Untimed, VideoError
from egokit.data.video.untimed_reader import UntimedReader
from egokit.prep.decoding import PrepError
from egokit.prep.measure import frame_rate, scan
from egokit.prep.pictures import UNSTATED, Comparison, shrink
from egokit.prep.verify import squeezed
from egokit.prep.video import run_ffmpeg
from egokit.runs.files import atomic_path, temporary_folder
from egokit.search.hits import Hit, timecode
from egokit.tasks.windows import reading, reason

MAX_RATE = 60   # frames a second of a clip
PREVIEW = 240   # lines of a page's clips
PLAYED = 8.0    # seconds of a merged moment that a page plays, around its best clip
THUMBNAIL = 240  # pixels of a thumbnail's longer side
STEM_BYTES = 150  # of a video's name in an exported clip's name; file systems allow names of 255 bytes


def write_csv(hits: list[Hit], path: str | Path) -> Path:
    """Write the hits as CSV, one line each, the best first, and return the path.

    Columns: video (path), start and stop (seconds on the player's clock), cosine, match (empty where the fusion encoder
    was not used), note (what is damaged or can't be read), best_start and best_stop (the clip that the scores are of).
    """
    # surrogateescape writes file names that are not UTF-8 byte by byte, unchanged
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="",
                                              errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "start", "stop", "cosine", "match", "note", "best_start", "best_stop"])
        writer.writerows([hit.path, f"{hit.start:.3f}", f"{hit.stop:.3f}", f"{hit.cosine:.6f}",
                          "" if hit.match is None else f"{hit.match:.6f}",
                          f"{hit.note}: {hit.error}" if hit.error else hit.note,
                          *(f"{time:.3f}" for time in hit.scored)] for hit in hits)
    return Path(path)


def _open(path: Path) -> PyAVReader:
    """Open a video as `open_video` does, but for this caller alone: clips are cut in parallel."""
    try:
        return PyAVReader(path, tolerant=True)
    except Untimed:
        return UntimedReader(path, tolerant=True)


def _frames(video: PyAVReader, start: float, stop: float) -> tuple[np.ndarray, Fraction]:
    """Return the frames shown in [start, stop) and how many of them a second.

    Those of a variable rate are repeated or left out, so that each is shown at its time.
    """
    usual = video.rate if video.constant else frame_rate(video.shown, Fraction(1), [])[0]
    rate = min(usual, Fraction(MAX_RATE))
    if video.constant and rate == usual:
        first, last = video.frame_at(start), video.frame_at(stop - 2 * ROUNDING)
        return np.arange(first, max(first, last) + 1), rate
    return video.frame_at(start + np.arange(max(1, round((stop - start) * rate))) / float(rate)), rate


def encode_clip(hit: Hit, target: Path, height: int = 0, quality: int = 20) -> np.ndarray:
    """Encode a hit's part of its video as an MP4 file without sound, and look at the result.

    Args:
        hit: The hit.
        target: The file to write.
        height: Largest height in pixels; 0 keeps the video's size.
        quality: x264's CRF; lower is better.

    Returns:
        The middle picture, uint8 (H, W, 3), in the video's size.

    Raises:
        PrepError: The video can't be read there, or the clip doesn't show its pictures.
    """
    try:
        with contextlib.closing(_open(hit.path)) as video:
            numbers, rate = _frames(video, hit.start, hit.stop)
            stream = video.stream_frames(numbers)
            return _encode(hit, target, next(stream), stream, len(numbers), rate, height, quality)
    except VideoError as error:
        raise PrepError(str(error)) from None


def _encode(hit: Hit, target: Path, first: np.ndarray, following: Iterator[np.ndarray], length: int, rate: Fraction,
            height: int, quality: int) -> np.ndarray:
    """Encode `length` pictures and compare what was made with them; return the middle one."""
    rows, columns = first.shape[:2]
    high = max(2, min(height or rows, rows) // 2 * 2)  # yuv420p needs even sides
    wide = max(2, (columns if high >= rows - 1 else round(columns * high / rows)) // 2 * 2)
    given, reformatter, middle = [], VideoReformatter(), first

    def pictures() -> Iterator[memoryview]:
        nonlocal middle
        for number, picture in enumerate(itertools.chain([first], following)):
            pixels = np.ascontiguousarray(fit(picture, rows, columns))
            middle = pixels if number == length // 2 else middle
            given.append(shrink(av.VideoFrame.from_ndarray(pixels, "rgb24"), reformatter).ravel())
            yield pixels.data

    run_ffmpeg(["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{columns}x{rows}", "-r", str(rate), "-i", "-",
                "-vf", f"scale={wide}:{high}:out_color_matrix=bt709:out_range=tv,format=yuv420p,"
                "setparams=colorspace=bt709:range=tv", "-c:v", "libx264", "-preset", "veryfast", "-crf", str(quality),
                "-movflags", "+faststart", str(target.absolute())], hit.path, target, pictures())
    frames = np.arange(length)
    comparison = Comparison(np.array(given), frames, frames, np.zeros(length, bool), float(rate),
                            min(rows, columns))
    made = scan(target, look=comparison.add, matrix=UNSTATED).facts
    wrong = (f"{length} frames became {made['frames']}" if made["frames"] != length else
             comparison.finish() or squeezed({"width": columns, "height": rows}, made))
    if wrong:
        raise PrepError(f"{hit.path}: the clip of {hit.time} can't be made: {wrong}")
    return middle


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


def played(hit: Hit) -> Hit:
    """Return the part of a hit that a page plays: all of it, or of a long merged moment PLAYED seconds."""
    if not hit.best or hit.stop - hit.start <= PLAYED:
        return hit
    start = min(max(sum(hit.best) / 2 - PLAYED / 2, hit.start), hit.stop - PLAYED)
    return dataclasses.replace(hit, start=start, stop=start + PLAYED)


def encode_preview(hit: Hit) -> tuple[bytes, bytes, float]:
    """Return (MP4 of at most 240 lines, JPEG of its middle frame, height / width) for a page."""
    with temporary_folder() as folder:
        path, picture = folder / "clip.mp4", io.BytesIO()
        middle = Image.fromarray(encode_clip(played(hit), path, height=PREVIEW, quality=27))
        if middle.height > PREVIEW:
            middle = middle.resize((max(1, round(middle.width * PREVIEW / middle.height)), PREVIEW))
        middle.save(picture, "JPEG", quality=80)
        return path.read_bytes(), picture.getvalue(), middle.height / middle.width


def thumbnail(hit: Hit) -> Image.Image:
    """Return the frame in the middle of a hit's best clip, as large as fits into THUMBNAIL pixels squared.

    Raises:
        VideoError: The video can't be read there.
    """
    with reading(hit.path), contextlib.closing(_open(hit.path)) as video:
        picture = Image.fromarray(next(video.stream_frames([video.frame_at(sum(hit.scored) / 2)])))
    scale = THUMBNAIL / max(picture.size)
    return picture.resize([max(1, round(scale * side)) for side in picture.size], Image.Resampling.BICUBIC)
