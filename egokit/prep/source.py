"""All videos of a folder: listed, shared out, prepared in parallel, and put into one manifest. One video is video.py's."""
from __future__ import annotations

import concurrent.futures
import heapq
import json
import os
import tempfile
import threading
from pathlib import Path

from egokit.config.schema import SiteConfig
from egokit.prep.measure import PrepError
from egokit.prep.video import PrepSettings, SetupError, SourceVideo, ffmpeg, prepare_video, receipt
from egokit.runs.files import write_text

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")  # in capitals, too; the video_uid is the name before it
READERS = 16  # threads that look at receipts: on a network file system each look is a wait


def list_videos(folder: Path) -> list[SourceVideo]:
    """The videos of a folder by uid. Raises FileNotFoundError if there are none, PrepError if two have one uid."""
    found: dict[str, SourceVideo] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else ():
        path = Path(entry.path)
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise PrepError(f"{found[path.stem].path} and {path.name} are both video {path.stem}: keep one of them")
            found[path.stem] = SourceVideo(path.stem, path, entry.stat().st_size if entry.is_file() else 0)  # a dangling link fails, named
    if not found:
        raise FileNotFoundError(f"no videos in {folder}: expected <video_uid>{', '.join(SUFFIXES)}; "
                                "for the toy site run egokit.toy.make first")
    return list(found.values())


def share(videos: list[SourceVideo], shard: int, shards: int) -> list[SourceVideo]:
    """Shard `shard` of 1 … `shards`, largest videos first: shares of about as many bytes, the same on every machine.

    They depend on all videos: while files still arrive, shares overlap or leave some out, which then stay "pending".
    """
    if not 1 <= shard <= shards:
        raise ValueError(f"shard {shard}/{shards}: expected 1/{shards} to {shards}/{shards}")
    loads, mine = [(0, number) for number in range(1, shards + 1)], []
    for video in sorted(videos, key=lambda video: (-video.bytes, video.uid)):
        load, number = loads[0]
        heapq.heapreplace(loads, (load + video.bytes, number))  # to the lightest so far
        if number == shard:
            mine.append(video)
    return mine


def site_options(site: SiteConfig) -> dict:
    """The arguments of `ego4d` and `Plan` that a site sets. Raises FileNotFoundError if it names no data root."""
    if not site.root:
        raise FileNotFoundError(f"site {site.name!r} names no data root: set site.root in params/sites/{site.name}.yaml")
    return {"root": Path(site.root), "short_side": site.short_side, "chunk_seconds": site.chunk_seconds, "encoding": site.encoding}


def receipts(videos: list[SourceVideo], plan: PrepSettings, files: bool) -> list[dict]:
    """The line of every video (see `receipt`), in the order of `videos`."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda video: receipt(video, plan, files), videos))


def summary(lines: list[dict]) -> dict:
    """{"videos" (verified), "failed" (reasons), "pending", "frames", "bytes" (of the resized), "lines"}."""
    good = [line for line in lines if line["status"] == "ok"]
    return {"videos": len(good), "failed": [line["reason"] for line in lines if line["status"] == "failed"],
            "pending": sum(line["status"] == "pending" for line in lines), "frames": sum(line["resized"]["frames"] for line in good),
            "bytes": sum(line["resized"]["bytes"] for line in good), "lines": lines}


def merge(videos: list[SourceVideo], plan: PrepSettings) -> dict:
    """Write root/prepared.json from the receipts of all videos, whoever made them, and return it."""
    written, lines = None, receipts(videos, plan, files=False)
    while lines != written:  # receipts may come in while this writes, and their shard's manifest would be lost under this one
        manifest = summary(lines)
        head = json.dumps({key: value for key, value in manifest.items() if key != "lines"}, indent=1)
        rows = ",\n".join(json.dumps(line) for line in lines)
        write_text(plan.root / "prepared.json", f'{head[:-2]},\n "lines": [\n{rows}\n ]\n}}\n')
        written, lines = lines, receipts(videos, plan, files=False)
    return manifest


def check_target(plan: PrepSettings) -> None:
    """Raises SetupError, naming the folder, if one of those that outputs go to can't be written."""
    for path in (plan.resized("x"), plan.pieces("x"), plan.receipt("x")):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise SetupError(f"{path.parent} can't be written ({error.strerror}): correct that, or set another data root") from None


def ego4d(root: Path, short_side: int = 256, chunk_seconds: float = 600.0, workers: int | None = None, source: Path | None = None,
          progress: bool = True, encoding: str = "random_access", shard: tuple[int, int] | None = None) -> dict:
    """Resize and cut the videos of `source` (default root/Ego4D) into Ego4D_256 and Ego4D_Chunked.

    shard: (3, 16) does the third of sixteen shares. What is done already stays; what failed is tried again. Returns the
    summary of the share, and writes root/prepared.json, that of all videos: `egokit.prep.source.summary` says what is in it.
    Raises FileNotFoundError if there are no videos, PrepError if nothing can be written or there is no ffmpeg.
    """
    plan = PrepSettings(Path(root), short_side, chunk_seconds, encoding)
    videos = list_videos(Path(source) if source else plan.root / "Ego4D")
    mine = share(videos, *shard or (1, 1))
    ffmpeg()
    check_target(plan)
    lines = dict(zip(mine, receipts(mine, plan, files=True), strict=True))
    _prepare(lines, plan, workers or len(os.sched_getaffinity(0)), progress)
    merge(videos, plan)
    return summary(sorted(lines.values(), key=lambda line: line["uid"]))


def _prepare(lines: dict[SourceVideo, dict], plan: PrepSettings, workers: int, progress: bool) -> None:
    """Prepare every video whose line is not ok and put its new line in. The bar counts bytes: videos differ a hundredfold."""
    from tqdm import tqdm
    done = {video: line for video, line in lines.items() if line["status"] == "ok"}
    failed, stop = 0, threading.Event()
    bar = tqdm(total=sum(video.bytes for video in lines), initial=sum(video.bytes for video in done), unit="B", unit_scale=True,
               desc=f"{len(done)}/{len(lines)} videos", mininterval=2, ncols=110, disable=not progress)
    pool = concurrent.futures.ThreadPoolExecutor(workers)  # threads: the work is ffmpeg's and PyAV's
    try:
        jobs = {pool.submit(prepare_video, video, plan, stop): video for video in lines if video not in done}
        for job in concurrent.futures.as_completed(jobs):
            video, line = jobs[job], job.result()
            lines[video] = line
            failed += line["status"] != "ok"
            done[video] = line
            bar.set_description_str(f"{len(done)}/{len(lines)} videos, {failed} failed", refresh=False)
            bar.update(video.bytes)
    except BaseException:  # Ctrl-C, a full disk: the videos at work are given up, no other is begun
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
