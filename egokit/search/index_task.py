"""One's own videos, for text search: every video of a folder cut into overlapping clips, and these embedded.

A video's file of vectors is named by the video's path, size and time of change: one that was changed has none.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from egokit.config.build import ConfigError, differences
from egokit.config.schema import Config
from egokit.data.video import frame_sampling, open_video
from egokit.data.video.open_video import VideoError
from egokit.model import checkpoints
from egokit.runs.files import is_abandoned, write_text
from egokit.runs.run_folder import Run
from egokit.search import vector_index
from egokit.tasks.base import Task
from egokit.tasks.windows import Windows, embed_windows
from egokit.train import distributed

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv",
            ".vob")  # in capitals, too


@dataclass(frozen=True)
class Source:
    """A video of the folder."""
    video: str  # its path in the folder
    bytes: int
    modified_ns: int

    @property
    def name(self) -> str:
        """Of its file of vectors."""
        return hashlib.sha256(f"{self.video}\0{self.bytes}\0{self.modified_ns}".encode(errors="surrogateescape")).hexdigest()[:24]


def printable(name: str) -> str:
    """A file's name as it can be shown: bytes that are no text become question marks."""
    return os.fsencode(name).decode(errors="replace")


def folder_of(config: Config) -> Path:
    """The folder of the videos. Raises ConfigError if there is none, or if its videos can't be cut as asked."""
    if not 0 < config.search.stride <= config.search.window:
        raise ConfigError(f"search.stride={config.search.stride:g} and search.window={config.search.window:g}: expected a stride above 0 "
                          "and up to the window, or moments would lie in no clip")
    if not config.search.videos:
        raise ConfigError("search.videos is empty: name the folder of your videos, a path or a folder under site.root")
    folder = Path(config.site.root) / Path(config.search.videos).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"search.videos: no folder {folder}; name the folder of your videos, a path or a folder under site.root")
    return folder


def listed(config: Config) -> list[Source]:
    """All videos of the folder and its sub-folders, by path. Raises ConfigError if there is none."""
    folder, found, seen = folder_of(config), [], set()
    for here, inner, files in os.walk(folder, followlinks=True):
        place = os.stat(here)
        if (place.st_dev, place.st_ino) in seen:  # a link that leads back
            inner.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            path = Path(here, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                state = path.stat()
                found.append(Source(str(path.relative_to(folder)), state.st_size, state.st_mtime_ns))
    if not found:
        raise ConfigError(f"no videos in {folder}: expected files that end in {' '.join(SUFFIXES)}")
    found.sort(key=lambda source: source.video)
    return found[:config.data.limit or None]


def manifest_of(folder: Path) -> dict | None:
    path = folder / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else None


def current(config: Config, folder: Path) -> bool:
    """Whether the index holds the folder's videos as they are now, those that can't be read included."""
    manifest = manifest_of(folder)
    known = {line["name"] for kind in ("videos", "unreadable") for line in manifest[kind]} if manifest else set()
    return known == {source.name for source in listed(config)}


def clips(seconds: float, window: float, stride: float) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop of a video's clips: one every `stride` seconds, the last one up to the video's end; a short video is one."""
    last = max(0.0, seconds - window)
    start_N = np.minimum(np.arange(1 + math.ceil(last / stride - 1e-6)) * stride, last)
    return start_N, np.minimum(start_N + window, seconds)


class VideoWindows(Windows):
    """All clips of one video."""

    def __init__(self, task: Search, path: Path):
        super().__init__(task, path, task.config.evaluate.batch_size)

    def open(self):
        return open_video.open_any(self.path, self.task.config.data.reader)

    def indices(self, video) -> np.ndarray:
        times = clips(self.seconds, self.task.config.search.window, self.task.config.search.stride)
        return np.stack([self.task.clip_indices(video, start, stop) for start, stop in zip(*times, strict=True)])


class Search(Task):
    def clip_indices(self, video, start: float, stop: float) -> np.ndarray:
        """(T,) numbers of a clip's frames: the middles of equal parts, in time, as frames may be shown for different times."""
        edges = np.array([open_video.frame_at(video, time) for time in np.linspace(start, stop, self.config.model.frames + 1)])
        edges[-1] = open_video.frame_at(video, stop - 1e-2 / video.fps) + 1
        return frame_sampling.clamp_indices((edges[:-1] + edges[1:] - 1) // 2, video.length)

    def clip(self, path: Path, start: float, stop: float) -> torch.Tensor:
        """uint8 (T, 3, size, size): a clip's frames, the same as in the index."""
        video = open_video.open_any(path, self.config.data.reader)
        turns = open_video.quarter_turns(video)
        return self.transform(np.rot90(video.read(self.clip_indices(video, start, stop)), turns, (1, 2)), None)

    def settings(self) -> dict:
        """What the vectors depend on."""
        config = self.config
        return {"folder": str(folder_of(config)), "init": config.init,
                "init_sha256": checkpoints.fingerprint(checkpoints.find(config.init)) if config.init else "",
                "window": config.search.window, "stride": config.search.stride, "frames": config.model.frames,
                "resize": config.data.eval_resize, "precision": config.evaluate.precision}

    def check(self, folder: Path) -> dict:
        """The index's manifest, {} where there is none. Raises ConfigError if it was made with other settings."""
        made, now = manifest_of(folder) or {}, self.settings()
        changed = differences({key: made[key] for key in now}, now) if made else []
        if changed:
            raise ConfigError(f"the index in {folder.parent} was made otherwise ({'; '.join(changed)}): choose another run name, or delete "
                              "that folder to make it again")
        return made

    def extract(self, model, run: Run) -> dict[str, float]:
        """Embed the clips of every video that has no file of vectors yet, this rank's share; rank 0 writes the manifest.

        A video that can't be read keeps no other from being searched; it stands in the manifest with the reason.
        """
        folder, sources, failed = run.path / "features", distributed.gather_objects(listed(self.config))[0], []
        settings, videos = self.settings(), folder_of(self.config)
        self.check(folder)
        if distributed.rank() == 0 and not manifest_of(folder):
            write_text(folder / "manifest.json", json.dumps(settings | {"videos": [], "unreadable": []}))
        pending = [source for source in sources if not (folder / f"{source.name}.npy").exists()]
        pending = sorted(distributed.gather_objects(pending)[0], key=lambda source: -source.bytes)  # the longest first: all end together
        done = len(sources) - len(pending)
        if distributed.rank() == 0:
            run.log({"kind": "extract", "step": done, "steps": len(sources)})
        for number, source in enumerate(pending[distributed.rank()::distributed.world_size()], 1):
            try:
                vector, seconds = embed_windows(model, VideoWindows(self, videos / source.video), source.video)
                vector_index.save(folder / f"{source.name}.npy", *clips(seconds, settings["window"], settings["stride"]), vector.numpy())
            except (VideoError, FileNotFoundError) as error:
                failed.append({"video": source.video, "name": source.name, "reason": printable(str(error).splitlines()[-1])})
            if distributed.rank() == 0:
                run.log({"kind": "extract", "step": done + min(number * distributed.world_size(), len(pending)), "steps": len(sources)})
        failed = [line for part in distributed.gather_objects(failed) for line in part]
        return self.publish(run, settings, sources, failed) if distributed.rank() == 0 else {}

    def publish(self, run: Run, settings: dict, sources: list[Source], failed: list[dict]) -> dict[str, float]:
        """The manifest of what is there now; files of videos that are no longer there go."""
        folder, bad = run.path / "features", {line["name"] for line in failed}
        lines = []
        for source in sources:
            if source.name not in bad:
                rows = np.load(folder / f"{source.name}.npy", mmap_mode="r")
                lines.append({"video": source.video, "name": source.name, "bytes": source.bytes, "modified_ns": source.modified_ns,
                              "seconds": float(rows["stop"][-1]), "clips": len(rows)})
                dimension = rows["vector"].shape[1]
        for line in failed:
            run.log({"kind": "bad", "said": line["reason"]})
        manifest = settings | {"dimension": dimension if lines else 0, "videos": lines, "unreadable": failed}
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
        kept = {f"{line['name']}.npy" for line in lines}
        for path in folder.glob("*.npy"):
            if not path.name.startswith(".") and path.name not in kept:
                path.unlink()
        for part in folder.glob(".*.part*"):
            if is_abandoned(part):
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        found = opened(folder, manifest)
        if found.large():
            found.build(lambda done: run.log({"kind": "faiss", "done": round(done, 3)}))
        return {"videos": len(lines), "clips": len(found), "hours": sum(line["seconds"] for line in lines) / 3600,
                "unreadable": len(failed)}


def opened(folder: Path, manifest: dict) -> vector_index.Vectors:
    """The vectors of the videos that a manifest lists, in its order."""
    lines = manifest["videos"]
    return vector_index.Vectors(folder, [line["name"] for line in lines], [line["clips"] for line in lines], manifest["dimension"])
