"""What was found as files: a table as CSV, clips as MP4 (H.264, yuv420p, index first) that any browser plays."""
from __future__ import annotations

import csv
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from egokit.prep.video import run_ffmpeg
from egokit.runs.files import atomic_path
from egokit.search.searcher import Hit, timecode

INDEXED = {"mov", "mp4", "matroska", "webm", "avi", "asf", "ogg"}  # containers in which ffmpeg finds the frame of a time
BEFORE = 60.0  # seconds: in the others it lands on a later keyframe
STEM = 150  # bytes of an exported clip's name that are its video's; file systems allow 255 in all


def write_csv(hits: list[Hit], path: str | Path) -> Path:
    """video, start, stop (seconds), cosine, match (empty if the fusion encoder was not asked): one line a hit, the best first."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="",
                                                    errors="surrogateescape") as file:  # names as they are
        writer = csv.writer(file)
        writer.writerow(["video", "start", "stop", "cosine", "match"])
        writer.writerows([hit.path, f"{hit.start:.3f}", f"{hit.stop:.3f}", f"{hit.cosine:.6f}",
                          "" if hit.match is None else f"{hit.match:.6f}"] for hit in hits)
    return Path(path)


def _sought(path: Path, start: float) -> tuple[list[str], list[str]]:
    """ffmpeg's options before and after its input: from `start` seconds after the first picture, exactly."""
    import av
    from av.format import Flags
    with av.open(str(path), metadata_errors="replace") as container:
        stream, indexed = container.streams.video[0], INDEXED & set(container.format.name.split(","))
        discontinuous = container.format.flags & Flags.ts_discont.value
        timed = not discontinuous and stream.start_time is not None  # else ffmpeg's 0 is the first picture
        if timed:
            start += float(stream.start_time * stream.time_base)
    # times as the file has them: where one begins whose sound comes first, PyAV's FFmpeg and ffmpeg's may disagree
    own = ["-seek_timestamp", "1"] if timed else []
    start -= 0.001  # times are written in thousandths: a frame must not lie before its own
    if indexed:
        return [*own, "-ss", f"{start:.3f}"], []
    early = max(0.0, start - BEFORE)
    regular = ["-fps_mode", "cfr"] if discontinuous else []  # MPEG's streams have one rate, and not always a time for each frame
    return [*own, *(["-ss", f"{early:.3f}"] if early else [])], ["-ss", f"{max(0.0, start - early):.3f}", *regular]


def cut(hit: Hit, target: Path, height: int = 0, quality: int = 20) -> None:
    """Encode a hit's stretch of its video, without sound. height: at most so many pixels; 0: as it is."""
    # sides are even in yuv420p
    scale = f"scale=-2:'min({height},trunc(ih/2)*2)'" if height else "scale=trunc(iw/2)*2:trunc(ih/2)*2"
    before, after = _sought(hit.path, hit.start)
    run_ffmpeg([*before, "-i", str(hit.path), *after, "-t", f"{hit.stop - hit.start:.3f}", "-map", "0:v:0", "-an", "-vf", scale,
                "-c:v", "libx264", "-preset", "veryfast", "-crf", str(quality), "-pix_fmt", "yuv420p", "-movflags", "+faststart",
                "-map_metadata", "-1", str(target)], hit.path, target)


def export(hits: list[Hit], folder: str | Path) -> list[Path]:
    """Each hit as <rank>_<video>_<time>.mp4 in a folder, in the video's own size; of a long name, the beginning."""
    stems = [os.fsencode(hit.path.stem)[:STEM].decode(errors="ignore") for hit in hits]
    paths = [Path(folder) / f"{rank:02d}_{stem}_{timecode(hit.start).replace(':', '-')}.mp4"
             for rank, (stem, hit) in enumerate(zip(stems, hits, strict=True), 1)]

    def one(hit: Hit, path: Path) -> None:
        with atomic_path(path) as temporary:
            cut(hit, temporary)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, hits, paths))
    return paths


def small(hit: Hit) -> tuple[bytes, bytes, float]:
    """(MP4 of at most 240 lines, JPEG of its middle frame, height / width) for a page."""
    import io

    from PIL import Image

    from egokit.data.video.pyav_reader import PyAVReader
    with tempfile.TemporaryDirectory(prefix="egokit-") as folder:
        path = Path(folder) / "clip.mp4"
        cut(hit, path, height=240, quality=27)
        reader, picture = PyAVReader(path), io.BytesIO()
        middle = Image.fromarray(reader.read([reader.length // 2])[0])
        middle.save(picture, "JPEG", quality=80)
        reader.close()
        return path.read_bytes(), picture.getvalue(), middle.height / middle.width
