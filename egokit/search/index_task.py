"""The index of a folder of videos: overlapping clips of each, embedded.

The vectors of a video are in a file named by a hash of the video's path, size and modification time, so a changed video
has no file and is embedded again. Videos are one's own, so what can be read of a damaged one is indexed, and the
manifest says which parts are damaged.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from egokit.config.build import ConfigError, differences
from egokit.config.names import printable
from egokit.config.schema import Config, Positive, TaskConfig
from egokit.data.video import frame_sampling, open_video
from egokit.data.video.open_video import VideoError
from egokit.runs.files import remove_abandoned, write_text
from egokit.runs.run_folder import Run
from egokit.search import vector_index
from egokit.search.manifest import read_manifest
from egokit.tasks.base import Task
from egokit.tasks.windows import Windows, embed_windows, in_damage, read_damage, reading, write_damage, write_each
from egokit.train import distributed

STILL = 10   # clips that may show nothing but one and the same picture
READING = 2  # version of how videos are read: raise it when the same file gives other clips, and all are embedded again


def video_folder(config: Config) -> Path:
    """Return the folder of the videos.

    Raises:
        ConfigError: The folder does not exist, or window and stride would leave gaps between clips.
    """
    if not 0 < config.task.stride <= config.task.window:
        raise ConfigError(f"task.stride={config.task.stride:g} and task.window={config.task.window:g}: "
                          "expected a stride above 0 and up to the window, or moments would lie in no clip")
    folder = Path(config.site.root) / Path(config.task.videos).expanduser()
    if not config.task.videos or not folder.is_dir():
        wrong = f"no folder {folder}" if config.task.videos else "it is empty"
        raise ConfigError(f"task.videos: {wrong}; name the folder of your videos, a path or a folder under site.root")
    return folder


def list_videos(config: Config) -> list[dict]:
    """Return all videos of the folder and its sub-folders, sorted by path.

    Returns:
        For each its path in the folder ("video"), "bytes", "modified_ns", and the "name" of its file of vectors. A
        sub-folder or file that this user may not look at stands among them, with the reason ("why").

    Raises:
        ConfigError: There is no video, or `video_folder` raises it.
    """
    folder, videos, seen = video_folder(config), [], set()

    def add(path: Path, size: int = 0, modified_ns: int = 0, **why: str) -> None:
        video = {"video": str(path.relative_to(folder)), "bytes": size, "modified_ns": modified_ns}
        key = "\0".join(map(str, (READING, *video.values()))).encode(errors="surrogateescape")
        videos.append(video | {"name": hashlib.sha256(key).hexdigest()[:24]} | why)

    def refused(error: OSError) -> None:
        why = f"{error.filename}: can't be looked at ({error.strerror}); change its permissions"
        add(Path(error.filename), why=why)
    for here, subfolders, files in os.walk(folder, followlinks=True, onerror=refused):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = Path(here, name)
            if path.suffix.lower() in open_video.SUFFIXES and not name.startswith("."):
                try:
                    if path.is_file():
                        add(path, path.stat().st_size, path.stat().st_mtime_ns)
                except OSError as error:
                    refused(error)
    if not videos:
        raise ConfigError(f"no videos in {folder}: expected files that end in {' '.join(open_video.SUFFIXES)}")
    videos.sort(key=lambda video: video["video"])
    return videos[:config.data.limit or None]


def is_up_to_date(config: Config, folder: Path) -> bool:
    """Whether the index has the folder's videos as they are now, unreadable ones included."""
    manifest = read_manifest(folder)
    indexed = {line["name"] for kind in ("videos", "unreadable") for line in manifest.get(kind, [])}
    return indexed == {video["name"] for video in list_videos(config)}


def clip_times(stop: float, window: float, stride: float, start: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and stop (N,) of a video's clips, in seconds on the player's clock.

    A clip starts every `stride` seconds; the last one ends with the video. A video shorter than `window` is one clip.

    Args:
        stop: The end of the video's last picture.
        window, stride: The recipe's task.window and task.stride.
        start: The time of its first picture.
    """
    last = max(start, stop - window)
    start_N = np.minimum(start + np.arange(1 + math.ceil((last - start) / stride - 1e-6)) * stride, last)
    return start_N, np.minimum(start_N + window, stop)


class VideoWindows(Windows):
    """All clips of one video."""

    def __init__(self, task: Search, path: Path):
        super().__init__(task, path, task.config.evaluate.batch_size, what_there_is=True)

    def indices(self, video) -> np.ndarray:
        """Return the frame indices (windows, T) of every clip.

        Where one picture stands still, the first STILL clips of it alone are kept: an hour of it would fill an answer.
        The last clip of a video is always kept.
        """
        own = self.task.config.task
        start_N, stop_N = clip_times(video.seconds, own.window, own.stride, video.start)
        indices_NT = np.stack([self.task.clip_indices(video, *times) for times in zip(start_N, stop_N, strict=True)])
        kept_N = np.ones(len(start_N), bool)
        kept_N[STILL:-1] = (indices_NT[STILL:-1] != indices_NT[:-1 - STILL]).any(1)
        self.spans = start_N[kept_N], stop_N[kept_N]
        return indices_NT[kept_N]


class Search(Task):
    """The task that indexes a folder of videos; its only action is `extract`."""
    notebook = "07_search_your_videos"
    sections: ClassVar = {"extract": "index"}
    figures = ("search-c-c-pushes-the-green-phone.html",)

    class Params(TaskConfig):
        videos: str = ""           # folder of videos, searched recursively: a path, or a name under site.root
        window: Positive = 4.0     # length of a clip of model.frames frames, seconds
        stride: Positive = 2.0     # seconds from the start of one clip to the start of the next

    @classmethod
    def outdated(cls, config: Config, run: Run) -> bool:
        return not is_up_to_date(config, run.path / "features")

    def clip_indices(self, video, start: float, stop: float) -> np.ndarray:
        """Return (T,): the frames in the middle of T equal parts of a clip.

        Parts are equal in time, because frames of a variable-rate video are shown for different times.
        """
        edges = video.frame_at(np.linspace(start, stop, self.config.model.frames + 1))
        edges[-1] = max(edges[-2], video.frame_at(stop - 2e-3) + 1)  # times are rounded to milliseconds
        middles = np.maximum(edges[:-1], (edges[:-1] + edges[1:] - 1) // 2)  # while one picture stands, that one
        return frame_sampling.clamp_indices(middles, video.length)

    def clip(self, path: Path, start: float, stop: float) -> torch.Tensor:
        """Return a clip's frames, uint8 (T, 3, size, size), as the index was made from.

        Raises:
            VideoError: None of its frames can be read, or the video ends before it.
        """
        with reading(path):
            video = open_video.open_video(path, self.config.data.reader, tolerant=True)
            indices_T = self.clip_indices(video, start, stop)
            time_T = video.time_of(indices_T)
            pixels = video.read(indices_T)
        if start >= video.seconds or in_damage(video, time_T).all():
            raise VideoError(f"{path}: no frame from {start:.1f} to {stop:.1f} s can be read, and it ends at "
                             f"{video.seconds:.1f} s; if it has changed since it was indexed, index the folder again")
        return self.transform(pixels, None)

    def settings(self) -> dict:
        """Return what the vectors depend on."""
        config = self.config
        return {"folder": str(video_folder(config)), "init": config.init,
                "init_sha256": self.init_sha256(),
                "window": config.task.window, "stride": config.task.stride, "frames": config.model.frames,
                "resize": config.data.eval_resize, "precision": config.evaluate.precision}

    def check_settings(self, folder: Path) -> dict:
        """Return the manifest of an index, {} where there is none.

        Raises:
            ConfigError: The index was made with other settings.
        """
        manifest, settings = read_manifest(folder), self.settings()
        changed = differences({key: manifest.get(key) for key in settings}, settings) if manifest else []
        if changed:
            raise ConfigError(f"the index in {folder.parent} was made otherwise ({'; '.join(changed)}): choose another "
                              "run name, or delete that folder to make it again")
        return manifest

    def extract(self, model, run: Run) -> dict[str, float]:
        """Embed this rank's share of the videos that have no file of vectors yet.

        Rank 0 writes the manifest. A video that can't be read is listed there with the reason, and the others are
        indexed.

        Returns:
            On rank 0: the number of videos and clips, their hours, and the number of unreadable videos.
        """
        folder = run.path / "features"
        videos = distributed.gather_objects(list_videos(self.config))[0]
        settings, source, rank = self.settings(), video_folder(self.config), distributed.rank()
        self.check_settings(folder)
        if rank == 0 and not read_manifest(folder):
            write_text(folder / "manifest.json", json.dumps(settings | {"videos": [], "unreadable": []}))
        pending = [video for video in videos if not (folder / f"{video['name']}.npy").exists()]
        # the longest first, so that all ranks end at about the same time
        pending = sorted(distributed.gather_objects(pending)[0], key=lambda video: -video["bytes"])
        done = len(videos) - len(pending)
        if rank == 0:
            run.log({"kind": "extract", "step": done, "steps": len(videos)})

        def write(video: dict) -> None:
            if "why" in video:
                raise VideoError(video["why"])
            self.embed(model, source / video["video"], folder / f"{video['name']}.npy")
        failed = write_each(run, pending, write, done)
        failed = [{"video": video["video"], "name": video["name"], "reason": printable(why)} for video, why in failed]
        return self.write_index(run, settings, videos, failed) if rank == 0 else {}

    def embed(self, model, path: Path, target: Path) -> None:
        """Write the vectors of a video's clips, without those clips of which no frame can be read.

        Raises:
            VideoError: The video can't be opened, or no clip has a frame that can be read.
        """
        vector_NE, read = embed_windows(model, VideoWindows(self, path), path.name)
        start_N, stop_N = read["spans"]
        kept_N = ~read["damaged_WT"].all(1)
        if not kept_N.any():
            raise VideoError(f"{path}: no clip of it has a frame that can be read; replace it, or remove it")
        if read["times"]:
            write_damage(target, {"start": read["start"], "seconds": read["seconds"] - read["start"],
                                  "damaged": {"share": round(read["share"], 6), "times": read["times"]}})
        vector_index.save(target, start_N[kept_N], stop_N[kept_N], vector_NE.numpy()[kept_N])

    def write_index(self, run: Run, settings: dict, videos: list[dict], failed: list[dict]) -> dict[str, float]:
        """Write the manifest and return the numbers of `extract`.

        Files of videos that are gone are deleted, and faiss's index is built if it is needed.
        """
        folder, unreadable = run.path / "features", {line["name"] for line in failed}
        lines, dimension = [], 0
        for video in videos:
            if video["name"] not in unreadable:
                rows = vector_index.load(folder / f"{video['name']}.npy")
                start, stop = float(rows["start"][0]), float(rows["stop"][-1])
                lines.append(video | {"start": start, "seconds": stop - start, "clips": len(rows)}
                             | read_damage(folder / f"{video['name']}.npy"))
                dimension = rows["vector"].shape[1]
        for line in failed:
            run.log({"kind": "bad", "said": line["reason"]})
        manifest = settings | {"reading": READING, "dimension": dimension, "videos": lines, "unreadable": failed}
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
        kept = {"manifest", *(line["name"] for line in lines)}
        for path in (*folder.glob("*.npy"), *folder.glob("*.json")):
            if not path.name.startswith(".") and path.stem not in kept:
                path.unlink()
        remove_abandoned(folder)
        index = open_vectors(folder, manifest)
        if index.needs_faiss():
            index.build_faiss(lambda done: run.log({"kind": "faiss", "done": round(done, 3)}))
        return {"videos": len(lines), "clips": len(index), "hours": sum(line["seconds"] for line in lines) / 3600,
                "unreadable": len(failed)}


def open_vectors(folder: Path, manifest: dict) -> vector_index.VectorIndex:
    """Return the vectors of the videos in a manifest, in its order."""
    lines = manifest["videos"]
    return vector_index.VectorIndex(folder, [line["name"] for line in lines], [line["clips"] for line in lines],
                                    manifest["dimension"])
