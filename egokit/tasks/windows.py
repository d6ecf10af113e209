"""Embeddings of a long stretch of video, window by window, and files of them for many videos.

Windows may overlap. Each frame is decoded once, in order, in bounded memory.
"""
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from egokit.config.json_file import read_json
from egokit.data.loader import Samples, build_loader, move_to_device
from egokit.data.video import frame_sampling, open_video
from egokit.data.video.timeline import VideoError, advice
from egokit.model.precision import autocast
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.tasks.base import Task
from egokit.train import distributed


class Windows(Samples):
    """The windows of one video, read once and in order.

    An item is a batch of windows. The item after the last window is empty and describes what was read. The video is
    opened in the process that reads, because a decoder may hang or crash, and decoded as windows are asked for.
    Subclasses give `indices`.

    Attributes:
        spans: Start and stop (windows,) of each window, for subclasses that set it in `indices`.

    Args:
        task: The task, for its transform and config.
        path: The video.
        batch_size: Windows in an item.
        what_there_is: Read on after damage. Otherwise the first damaged frame is a VideoError.
    """

    spans: tuple[np.ndarray, ...] = ()

    def __init__(self, task: Task, path: Path, batch_size: int, what_there_is: bool = False):
        super().__init__(0, task.config.seed, train=False)  # how many there are depends on the video's frame rate
        self.task, self.path, self.batch_size, self.stream = task, path, batch_size, None
        self.what_there_is = what_there_is

    def indices(self, video) -> np.ndarray:
        """Return the numbers of each window's frames, (windows, T).

        No frame of a row stands before the row's first, and no row's first stands before an earlier row's first.
        """
        raise NotImplementedError

    def windows(self) -> Iterator[torch.Tensor]:
        """Yield the frames of each window, uint8 (T, 3, size, size).

        Frames are resized one by one: sixteen frames of a video that has not been resized may be 400 MB.
        """
        self.video = video = open_video.open_video(self.path, self.task.config.data.reader, self.what_there_is)
        indices_WT = self.indices(video)
        # noted before reading, because a reader that meets irregular times numbers the frames anew
        self.start, self.seconds, self.time_WT = video.start, video.seconds, video.time_of(indices_WT)
        needed, kept = np.unique(indices_WT), {}
        stream = zip(needed.tolist(), video.stream_frames(needed), strict=True)
        for row in indices_WT.tolist():
            if open_video.on_open:  # the watchdog's time limit starts anew with each window
                open_video.on_open(str(self.path))
            kept = {index: frame for index, frame in kept.items() if index >= row[0]}
            while max(row) not in kept:
                index, frame = next(stream)
                kept[index] = self.task.transform(frame[None], None)
            yield torch.cat([kept[index] for index in row])

    def read(self, index: int, rng) -> dict:
        with reading(self.path):
            self.stream = self.stream or self.windows()
            windows = list(itertools.islice(self.stream, self.batch_size))
        if windows:
            return {"video": torch.stack(windows)}
        video = self.video
        return {"video": torch.empty(0), "read": {
            "spans": self.spans, "start": self.start, "seconds": self.seconds,
            "times": [list(times) for times in video.damaged],
            "share": video.damaged_frames / (video.length + video.missing),
            "damaged_WT": in_damage(video, self.time_WT)}}


class ClipWindows(Windows):
    """The windows of one clip of a ClipFeatures task, one after the other, without overlap."""

    def __init__(self, task: Task, clip: dict):
        super().__init__(task, task.videos / f"{clip['video_uid']}.mp4", task.config.evaluate.batch_size,
                         what_there_is=task.config.data.max_bad_fraction > 0)
        self.clip = clip

    def indices(self, video) -> np.ndarray:
        start, stop, own = self.clip["start"], self.clip["stop"], self.task.config.task
        if stop > video.seconds + frame_sampling.LATE:  # else the features would be of a still picture, the last frame
            raise VideoError(f"{self.path}: clip {self.clip['clip_uid']} ends at {stop:.2f} s, but the video ends at "
                             f"{video.seconds:.2f} s; has it lost its end, or is it another video?")
        T, rate = own.feature_frames, video.resolution
        indices = video.frames_of(
            frame_sampling.mq(int(start * rate), int(stop * rate), own.features_per_second, rate, T,
                              video.steps if self.task.spread else None))
        if len(indices) < T:
            raise VideoError(f"{self.path}: clip {self.clip['clip_uid']} of {stop - start:.2f} s "
                             "is too short for one feature")
        return indices[:len(indices) // T * T].reshape(-1, T)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into a VideoError; a decoder that has failed is not used again."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        open_video.forget(path)
        if isinstance(error, (VideoError, FileNotFoundError)):
            raise
        raise VideoError(f"{path}: can't be read ({type(error).__name__}: {error}); {advice(path)}") from error


def in_damage(video, time: np.ndarray) -> np.ndarray:
    """Return whether the frame that appears at each time lies in a part of the video that was found damaged."""
    time = time + 1e-4  # frames' times are computed in two ways
    return np.any([(start <= time) & (time < stop) for start, stop in video.damaged] or [np.zeros(time.shape)], axis=0)


@torch.no_grad()
def embed_windows(model, windows: Windows, what: str, embed: Callable | None = None) -> tuple[torch.Tensor, dict]:
    """Embed all windows of a video; a loader process decodes ahead if data.workers is set.

    Args:
        model: a Dual in evaluation mode.
        what: names the video in the message of a ValueError.
        embed: returns a row for each window of a batch (B, T, 3, size, size); by default model.embed_video.

    Returns:
        (embeddings, read): (windows, E) on the CPU, what `embed` returns, and what was read: "spans" of the
        windows; "start" and "seconds", where the pictures begin and end on the player's clock; "share" of the
        video's frames and "times" [start, stop] that are damaged; "damaged_WT", whether each frame of each window is.

    Raises:
        VideoError: the video cannot be read.
        FileNotFoundError: there is no such video.
        ValueError: an embedding is NaN or Inf.
    """
    config, out, embed = windows.task.config, [], embed or model.embed_video
    batches = ([(0, number)] for number in itertools.count())
    workers = min(1, config.data.workers)  # the stream of windows lives in one process
    for item in build_loader(windows, batches, lambda items: items[0], workers, config.data.read_timeout):
        if not len(item["video"]):
            break
        with autocast(model.device, config.evaluate.precision):
            out.append(embed(model.normalise(move_to_device(item["video"], model.device))).cpu())
    embedded = torch.cat(out)
    if not embedded.isfinite().all():
        raise ValueError(f"{what}: NaN or Inf in its features; evaluate.precision is {config.evaluate.precision}")
    return embedded, item["read"]


def write_each(run: Run, items: list, write: Callable, done: int = 0) -> list[tuple]:
    """Call `write` with each item of this rank's share; an item that can't be read does not end the others.

    Args:
        run: Its log tells how many items are done.
        items: All ranks' items, in the same order on each.
        write: Reads an item's video and writes its file, or raises VideoError or FileNotFoundError.
        done: The number of items that were written before and are not in `items`.

    Returns:
        (item, reason) of those of all ranks that can't be read.
    """
    rank, ranks, failed = distributed.rank(), distributed.world_size(), []
    for number, item in enumerate(items[rank::ranks], 1):
        try:
            write(item)
        except (VideoError, FileNotFoundError) as error:
            failed.append((item, reason(error)))
        if rank == 0:
            run.log({"kind": "extract", "step": done + min(number * ranks, len(items)), "steps": done + len(items)})
    return [pair for part in distributed.gather_objects(failed) for pair in part]


def reason(error: Exception) -> str:
    """Return an error's last line: that of a loader process begins with its traceback."""
    return (str(error).splitlines() or [type(error).__name__])[-1]


# A small file beside the embeddings of a video remembers its damage, because an interrupted job does not read it again.
# A video without damage has none.

TIMES = {"share": float, "times": [[float]]}
DAMAGE = {name: (shape, ...) for name, shape in TIMES.items()} | {
    "start": (float, ...), "seconds": (float, ...), "damaged": (TIMES, ...)}  # EgoMQ's or a search's


def write_damage(path: Path, damage: dict) -> None:
    """Write what is damaged in the video whose embeddings are about to be written to `path`."""
    write_text(path.with_suffix(".json"), json.dumps(damage))


def read_damage(path: Path) -> dict:
    """Return what `write_damage` wrote for the embeddings in `path`, {} where nothing is damaged."""
    path = path.with_suffix(".json")
    return read_json(path, DAMAGE, "delete it and the file beside it: they are made again") or {}
