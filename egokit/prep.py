"""Data preparation: resize and cut Ego4D, Charades-Ego metadata, EK-100 relevancy; each output verified and listed.

Interrupted at any point it goes on where it stopped: a file appears whole or not at all. What a table holds and how
relevancy is defined is tables.py's.
"""
from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from egokit import relevancy as relevancy_files
from egokit.config import Config
from egokit.relevancy import load_relevancy, relevancy  # public here: what users prepare, they also load
from egokit.runs import atomic_path, write_text
from egokit.tables import (
    EK100_ANNOTATIONS,
    charades_classes,
    charades_metadata,
    ek100_annotations,
    write_metadata,
)

__all__ = ["PrepError", "charades", "ego4d", "ek100", "load_relevancy", "prepare", "relevancy"]

# For random access: a keyframe every 25 frames, and between the frames that others refer to (every eighth) seven that nothing
# refers to, so that any frame is at most five decodes away. No deblocking, no arithmetic coding: they cost decoding time.
# benchmarks/decode.py has the measurements. faststart: opened in one read.
ENCODING = ["-c:v", "libx264", "-preset", "faster", "-crf", "23", "-pix_fmt", "yuv420p", "-g", "25", "-keyint_min", "25",
            "-sc_threshold", "0", "-bf", "7", "-b_strategy", "0", "-x264-params", "b-pyramid=none:open-gop=0", "-tune", "fastdecode",
            "-an", "-movflags", "+faststart"]


class PrepError(RuntimeError):
    """A video can't be prepared; the message names it and gives ffmpeg's reason."""


def ffmpeg() -> str:
    """The system's ffmpeg, or the one in the imageio-ffmpeg wheel."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    import imageio_ffmpeg
    return imageio_ffmpeg.get_ffmpeg_exe()


def _run(arguments: list[str], source: Path) -> None:
    done = subprocess.run([ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments],
                          capture_output=True, text=True)
    if done.returncode:
        raise PrepError(f"{source}: ffmpeg failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def count_frames(path: Path) -> tuple[int, float]:
    """(decodable frames, frames a second), by decoding the whole file."""
    import av
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            return sum(1 for _ in container.decode(stream)), float(stream.average_rate)
    except (av.error.FFmpegError, IndexError, OSError, TypeError) as error:
        raise PrepError(f"{path}: can't be decoded ({getattr(error, 'strerror', None) or error})") from None


def resize(source: Path, target: Path, short_side: int, chunk_seconds: float) -> None:
    """Short side `short_side`, aspect kept, even sizes; a keyframe at every multiple of `chunk_seconds`."""
    scale = f"scale='if(gt(iw,ih),-2,{short_side})':'if(gt(iw,ih),{short_side},-2)'"
    with atomic_path(target) as temporary:
        _run(["-i", str(source), "-vf", scale, *ENCODING, "-force_key_frames", f"expr:gte(t,n_forced*{chunk_seconds})",
              str(temporary)], source)


def chunk(source: Path, folder: Path, chunk_seconds: float) -> None:
    """Cut at the keyframes that `resize` put at the boundaries, without encoding again: 0.mp4, 1.mp4, …"""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _run(["-i", str(source), "-c", "copy", "-f", "segment", "-segment_time", str(chunk_seconds), "-reset_timestamps", "1",
              "-segment_format_options", "movflags=+faststart", str(part / "%d.mp4")], source)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def prepare_video(source: Path, root: Path, short_side: int, chunk_seconds: float) -> dict:
    """One video: resized, cut, verified. Returns its line of the manifest; never raises for a bad video."""
    uid = source.stem
    resized, folder, receipt = root / "Ego4D_256" / source.name, root / "Ego4D_Chunked" / uid, root / ".prepared" / f"{uid}.json"
    settings = {"short_side": short_side, "chunk_seconds": chunk_seconds, "encoding": " ".join(ENCODING),
                "source_bytes": source.stat().st_size}
    if receipt.is_file() and resized.is_file() and folder.is_dir():
        line = json.loads(receipt.read_text())
        if line["status"] == "ok" and line["settings"] == settings:
            return line
    line = {"uid": uid, "status": "ok", "settings": settings}
    try:
        frames, fps = count_frames(source)
        resize(source, resized, short_side, chunk_seconds)
        chunk(resized, folder, chunk_seconds)
        pieces = [count_frames(folder / f"{i}.mp4")[0] for i in range(len(list(folder.glob("*.mp4"))))]
        got, _ = count_frames(resized)
        line |= {"frames": frames, "fps": fps, "pieces": pieces, "bytes": resized.stat().st_size}
        if abs(got - frames) > 1 or sum(pieces) != got:
            raise PrepError(f"{source}: {frames} frames became {got} resized and {sum(pieces)} in pieces")
    except PrepError as error:
        line |= {"status": "failed", "reason": str(error)}
    write_text(receipt, json.dumps(line))
    return line


def sweep(root: Path) -> None:
    """Remove what killed runs left half made, once it is old enough not to be another process's work."""
    for folder in ("Ego4D_256", "Ego4D_Chunked"):
        for part in (root / folder).glob(".*.part*"):
            if time.time() - part.stat().st_mtime > 3600:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def ego4d(root: Path, short_side: int = 256, chunk_seconds: float = 600.0, workers: int | None = None,
          source: Path | None = None, progress: bool = True) -> dict:
    """Resize and cut every video of `source` (default root/Ego4D) into Ego4D_256 and Ego4D_Chunked.

    Writes root/prepared.json, the manifest, and returns it: {"videos", "failed", "frames", "bytes", "lines"}. What is
    done already stays; what failed is tried again.
    """
    from tqdm import tqdm
    root = Path(root)
    source = Path(source) if source else root / "Ego4D"
    videos = sorted(path for path in source.glob("*.mp4") if not path.name.startswith("."))
    if not videos:
        raise FileNotFoundError(f"no videos in {source}: expected <video_uid>.mp4; for the toy site run egokit.toy.make first")
    sweep(root)
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # the work is ffmpeg's and PyAV's
        jobs = [pool.submit(prepare_video, video, root, short_side, chunk_seconds) for video in videos]
        bar = tqdm(concurrent.futures.as_completed(jobs), total=len(jobs), desc="resize and cut", unit="video",
                   mininterval=2, ncols=100, disable=not progress)
        lines = sorted((job.result() for job in bar), key=lambda line: line["uid"])
    good = [line for line in lines if line["status"] == "ok"]
    manifest = {"videos": len(good), "failed": [line["reason"] for line in lines if line["status"] != "ok"],
                "frames": sum(line["frames"] for line in good), "bytes": sum(line["bytes"] for line in good), "lines": lines}
    write_text(root / "prepared.json", json.dumps(manifest, indent=1))
    return manifest


def charades(root: Path) -> dict[str, int]:
    """metadata_{train,val,test}.csv: one row for every action. val and test are both of the test list, as there is no other."""
    folder = Path(root) / "CharadesEgo" / "CharadesEgo"
    classes = charades_classes(folder / "Charades_v1_classes.txt")
    counts = {}
    for split, listed in (("train", "train"), ("val", "test"), ("test", "test")):
        rows = charades_metadata(folder / f"CharadesEgo_v1_{listed}_only1st.csv", classes)
        write_metadata(folder / f"metadata_{split}.csv", rows)
        counts[split] = len(rows)
    return counts


def ek100(root: Path) -> dict[str, tuple[int, int]]:
    """The relevancy files, where there is none; those already there stay, and must be of the tables' size."""
    folder = Path(root) / EK100_ANNOTATIONS
    shapes = {}
    for split in ("train", "test"):
        clips, sentences = ek100_annotations(Path(root), split)
        target, shape = relevancy_files.file(folder / "relevancy", split), (len(clips), len(sentences))
        if not target.is_file():
            relevancy_files.write(target, folder / f"EPIC_100_retrieval_{split}.csv", folder / f"EPIC_100_retrieval_{split}_sentence.csv")
        relevancy_files.check(target, shape)
        shapes[split] = shape
    return shapes


def prepare(config: Config, progress: bool = True) -> dict:
    """Everything a site needs before training; makes the embedded data set first where the site is the toy.

    A data set whose folder is absent is left out, and said. Returns flat counts. Raises if a video failed, naming it: a
    hole in the data is never filled in silence.
    """
    site = config.site
    root = Path(site.root)
    if not site.root:
        raise FileNotFoundError(f"site {site.name!r} names no data root: set site.root in params/sites/{site.name}.yaml")
    if site.toy:
        from egokit import toy
        toy.make(root)
    elif not root.is_dir():
        raise FileNotFoundError(f"the data root {root} of site {site.name!r} does not exist: correct site.root in "
                                f"params/sites/{site.name}.yaml")
    parts = {"Ego4D": root / "Ego4D", "CharadesEgo": root / "CharadesEgo" / "CharadesEgo",
             "EK100": root / "EK100" / "epic-kitchens-100-annotations"}
    absent = [name for name, folder in parts.items() if not folder.is_dir()]
    if len(absent) == len(parts):
        raise FileNotFoundError(f"nothing to prepare under {root}: expected one of {', '.join(map(str, parts.values()))}")
    for name in absent:
        print(f"{name}: not under {root}, left out")
    counts: dict = {}
    if "Ego4D" not in absent:
        manifest = ego4d(root, site.short_side, site.chunk_seconds, progress=progress)
        if manifest["failed"]:
            raise PrepError(f"{len(manifest['failed'])} videos failed (the others are done; run again to retry): "
                            + "; ".join(manifest["failed"][:5]))
        counts |= {f"ego4d_{key}": manifest[key] for key in ("videos", "frames", "bytes")}
    if "CharadesEgo" not in absent:
        counts |= {f"charades_{split}_actions": count for split, count in charades(root).items()}
    if "EK100" not in absent:
        for split, (clips, sentences) in ek100(root).items():
            counts |= {f"ek100_{split}_clips": clips, f"ek100_{split}_sentences": sentences}
    return counts
