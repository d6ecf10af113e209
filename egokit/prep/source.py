"""Prepare all videos of a folder: list, shard, run in parallel, and write one manifest.

One video is prepared in video.py.
"""
import concurrent.futures
import dataclasses
import heapq
import json
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from egokit.config.access import exists
from egokit.config.schema import SiteConfig
from egokit.data.video.open_video import SUFFIXES
from egokit.prep.video import PrepSettings, SetupError, SourceVideo, ffmpeg, prepare_video, read_receipt
from egokit.runs.files import temporary_path, write_text

LONGEST = 255 - 4     # bytes of a file's name, less what another process's number may add to a temporary one
RECEIPT_THREADS = 16  # threads that read receipts: on a network file system each read is a wait


@dataclasses.dataclass(frozen=True)
class Unusable(SourceVideo):
    """A video that can't be prepared, whatever is in it, and the reason."""
    reason: str

    @property
    def line(self) -> dict:
        """The line of the manifest: the video fails by name, and the others are prepared."""
        return {"uid": self.uid, "status": "failed", "reason": self.reason}


def list_videos(folder: Path) -> list[SourceVideo]:
    """Return the videos of a folder, sorted by file name.

    One that has several files, or a name too long for what is made of it, is an `Unusable`.

    Raises:
        FileNotFoundError: there are none.
        PermissionError: this user may not read the folder.
    """
    videos: dict[str, SourceVideo] = {}
    is_folder = exists(folder) and folder.is_dir()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if is_folder else ():
        path = Path(entry.path)
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            # a dangling link is listed with 0 bytes, so that it fails by name later
            video = SourceVideo(path.stem, path, entry.stat().st_size if entry.is_file() else 0)
            made = temporary_path(path.with_name(f"{video.uid}.json")).name
            if (more := len(os.fsencode(made)) - LONGEST) > 0:
                video = Unusable(video.uid, path, video.bytes, f"{str(path)!r}: its name is too long for those of the "
                                 f"files that are made of it; shorten it by {more} bytes")
            earlier = videos.setdefault(video.uid, video)
            if earlier is not video:
                reason = f"{earlier.path} and {path.name} are both video {video.uid}: keep one of them"
                videos[video.uid] = Unusable(video.uid, earlier.path, earlier.bytes, reason)
    if not videos:
        raise FileNotFoundError(f"no videos in {folder}: expected <video_uid>{', '.join(SUFFIXES)}; "
                                "for the toy site run egokit.toy.make first")
    return list(videos.values())


def shard_of(videos: Iterable[SourceVideo], shard: int, shards: int) -> list[SourceVideo]:
    """Return the videos of shard number `shard` (1 … `shards`), largest first.

    Shards hold about the same number of bytes and are the same on every machine. They depend on all videos: while files
    still arrive, shards overlap or leave some out; those stay "pending".
    """
    if not 1 <= shard <= shards:
        raise ValueError(f"shard {shard}/{shards}: expected 1/{shards} to {shards}/{shards}")
    loads, own = [(0, number) for number in range(1, shards + 1)], []
    for video in sorted(videos, key=lambda video: (-video.bytes, video.uid)):
        load, number = loads[0]
        heapq.heapreplace(loads, (load + video.bytes, number))  # to the lightest so far
        if number == shard:
            own.append(video)
    return own


def site_options(site: SiteConfig) -> dict:
    """Return the arguments of `ego4d` and `PrepSettings` that a site sets.

    Raises:
        FileNotFoundError: the site names no data root.
    """
    if not site.root:
        raise FileNotFoundError(f"site {site.name!r} names no data root: "
                                f"set site.root in params/sites/{site.name}.yaml")
    return {"root": Path(site.root), "short_side": site.short_side, "chunk_seconds": site.chunk_seconds,
            "encoding": site.encoding}


def read_receipts(videos: Iterable[SourceVideo], settings: PrepSettings, check_files: bool) -> list[dict]:
    """Return the receipt of every video (see `read_receipt`), in the order of `videos`."""
    def read(video: SourceVideo) -> dict:
        return video.line if isinstance(video, Unusable) else read_receipt(video, settings, check_files)
    with concurrent.futures.ThreadPoolExecutor(RECEIPT_THREADS) as pool:
        return list(pool.map(read, videos))


def summary(lines: list[dict]) -> dict:
    """Return the manifest of the videos whose receipts are `lines`.

    Its keys: "videos" (number verified), "failed" (their reasons), "pending" (number), "frames" and "bytes" (of the
    resized files), "lines".
    """
    good = [line for line in lines if line["status"] == "ok"]
    return {"videos": len(good), "failed": [line["reason"] for line in lines if line["status"] == "failed"],
            "pending": sum(line["status"] == "pending" for line in lines),
            "frames": sum(line["resized"]["frames"] for line in good),
            "bytes": sum(line["resized"]["bytes"] for line in good), "lines": lines}


def write_manifest(videos: list[SourceVideo], settings: PrepSettings) -> dict:
    """Write root/prepared.json from the receipts of all videos, and return it.

    It does not matter which process or machine wrote the receipts.
    """
    written, lines = None, read_receipts(videos, settings, check_files=False)
    # Another shard may write receipts and its manifest meanwhile, which this one would overwrite: repeat until nothing
    # has changed.
    while lines != written:
        manifest = summary(lines)
        head = json.dumps({key: value for key, value in manifest.items() if key != "lines"}, indent=1)
        rows = ",\n".join(json.dumps(line) for line in lines)
        write_text(settings.root / "prepared.json", f'{head[:-2]},\n "lines": [\n{rows}\n ]\n}}\n')
        written, lines = lines, read_receipts(videos, settings, check_files=False)
    return manifest


def check_writable(settings: PrepSettings) -> None:
    """Raise SetupError, with the folder's name, if one of the output folders can't be written."""
    for path in (settings.resized_path("x"), settings.pieces_folder("x"), settings.receipt_path("x")):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise SetupError(f"{path.parent} can't be written ({error.strerror}): correct that, "
                             "or set another data root") from None


def ego4d(root: Path, short_side: int = 256, chunk_seconds: float = 600.0, workers: int | None = None,
          source: Path | None = None, progress: bool = True, encoding: str = "random_access",
          shard: tuple[int, int] | None = None) -> dict:
    """Resize and cut the videos of a folder into root/Ego4D_256 and root/Ego4D_Chunked.

    What is done already stays; what failed is tried again. root/prepared.json, the manifest of all videos, is written
    at the end.

    Args:
        short_side: pixels of the shorter side of the outputs.
        chunk_seconds: length of a piece.
        workers: videos prepared at once; by default one per CPU.
        source: the folder of videos; by default root/Ego4D.
        encoding: "random_access" or "original", see `egokit.prep.video.ENCODINGS`.
        shard: (3, 16) prepares the third of sixteen shards.

    Returns:
        The summary of the shard; its keys are described in `egokit.prep.source.summary`.

    Raises:
        FileNotFoundError: there are no videos.
        PrepError: nothing can be written, or there is no ffmpeg.
    """
    settings = PrepSettings(Path(root), short_side, chunk_seconds, encoding)
    folder = Path(source) if source else settings.root / "Ego4D"
    videos = list_videos(folder)
    print(describe(folder, settings), flush=True)
    own = shard_of(videos, *shard or (1, 1))
    ffmpeg()
    check_writable(settings)
    lines = dict(zip(own, read_receipts(own, settings, check_files=True), strict=True))
    _prepare_videos(lines, settings, workers or len(os.sched_getaffinity(0)), progress)
    write_manifest(videos, settings)
    return summary(sorted(lines.values(), key=lambda line: line["uid"]))


def describe(folder: Path, settings: PrepSettings) -> str:
    """Return in a line what is made of a folder of videos; it is printed before days of work."""
    return (f"videos of {folder} -> {settings.root}/Ego4D_256 and, in pieces of {settings.chunk_seconds:g} s, "
            f"Ego4D_Chunked: short side {settings.short_side} pixels, encoding {settings.encoding}")


def _prepare_one(video: SourceVideo, settings: PrepSettings, stop: threading.Event) -> dict:
    """Return a video's receipt; whatever error a file causes, the others are prepared."""
    try:
        exists(video.path)
        return prepare_video(video, settings, stop)
    except Exception as error:
        if isinstance(error, SetupError) or stop.is_set():
            raise
        line = {"uid": video.uid, "status": "failed", "settings": settings.fingerprint(video),
                "reason": str(error) if str(video.path) in str(error) else f"{video.path}: {error or repr(error)}"}
        write_text(settings.receipt_path(video.uid), json.dumps(line))
        return line


def _prepare_videos(lines: dict[SourceVideo, dict], settings: PrepSettings, workers: int, progress: bool) -> None:
    """Prepare every video whose line is not ok, and replace its line.

    The progress bar counts bytes, because the sizes of videos differ a hundredfold.
    """
    from tqdm import tqdm
    todo = [video for video, line in lines.items() if line["status"] != "ok" and not isinstance(video, Unusable)]
    total = sum(video.bytes for video in lines)
    failed, stop = sum(isinstance(video, Unusable) for video in lines), threading.Event()
    with (tqdm(total=total, initial=total - sum(video.bytes for video in todo), unit="B", unit_scale=True,
               desc=f"{len(lines) - len(todo)}/{len(lines)} videos", mininterval=2, ncols=110,
               disable=not progress) as bar,
          concurrent.futures.ThreadPoolExecutor(workers) as pool):  # threads suffice: ffmpeg and PyAV do the work
        try:
            jobs = {pool.submit(_prepare_one, video, settings, stop): video for video in todo}
            for count, job in enumerate(concurrent.futures.as_completed(jobs), len(lines) - len(todo) + 1):
                line = lines[jobs[job]] = job.result()
                failed += line["status"] != "ok"
                bar.set_description_str(f"{count}/{len(lines)} videos, {failed} failed", refresh=False)
                bar.update(jobs[job].bytes)
        except BaseException:  # Ctrl-C, a full disk: videos in progress are given up, and no other is begun
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
