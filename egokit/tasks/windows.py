"""Embeddings of a long stretch of video, window by window.

Windows may overlap. Each frame is decoded once, in order, in bounded memory.
"""
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from egokit.data.loader import Samples, build_loader, move_to_device
from egokit.data.video import open_video
from egokit.data.video.open_video import VideoError
from egokit.data.video.transforms import normalise
from egokit.model.egovlp import autocast
from egokit.tasks.base import Task


class Windows(Samples):
    """The windows of one video, read once and in order.

    An item is a batch of windows; items after the last one are empty. The video is opened in the process that reads,
    because a decoder may hang or crash, and decoded as windows are asked for. Subclasses give `indices`.
    """

    def __init__(self, task: Task, path: Path, batch_size: int):
        super().__init__(0, task.config.seed, train=False)  # how many there are depends on the video's frame rate
        self.task, self.path, self.batch_size, self.stream = task, path, batch_size, None

    def indices(self, video) -> np.ndarray:
        """Return the numbers of each window's frames, (windows, T).

        No frame of a row stands before the row's first, and no row's first stands before an earlier row's first.
        """
        raise NotImplementedError

    def open(self):
        """Return the video's reader."""
        return open_video.open_video(self.path, self.task.config.data.reader)

    def windows(self) -> Iterator[torch.Tensor]:
        """Yield the frames of each window, uint8 (T, 3, size, size).

        Frames are resized one by one: sixteen frames of a video that has not been resized may be 400 MB.
        """
        video = self.open()
        self.seconds = open_video.duration(video)
        indices_WT = self.indices(video)
        needed, kept, turns = np.unique(indices_WT), {}, open_video.quarter_turns(video)
        stream = zip(needed.tolist(), video.stream_frames(needed), strict=True)
        for row in indices_WT.tolist():
            if open_video.on_open:  # the watchdog's time limit starts anew with each window
                open_video.on_open(str(self.path))
            kept = {index: frame for index, frame in kept.items() if index >= row[0]}
            while max(row) not in kept:
                index, frame = next(stream)
                kept[index] = self.task.transform(np.rot90(frame[None], turns, (1, 2)), None)
            yield torch.cat([kept[index] for index in row])

    def read(self, index: int, rng) -> dict:
        try:
            self.stream = self.stream or self.windows()
            windows = list(itertools.islice(self.stream, self.batch_size))
        except VideoError:
            open_video.forget(self.path)  # a decoder that has failed must not be used again
            raise
        return {"video": torch.stack(windows) if windows else torch.empty(0), "seconds": self.seconds}


@torch.no_grad()
def embed_windows(model, windows: Windows, what: str) -> tuple[torch.Tensor, float]:
    """Embed all windows of a video; a loader process decodes ahead if data.workers is set.

    Args:
        model: an EgoVLP in evaluation mode.
        what: names the video in the message of a ValueError.

    Returns:
        (embeddings, seconds): (windows, E) float32 on the CPU, and the video's duration.

    Raises:
        VideoError: the video cannot be read.
        FileNotFoundError: there is no such video.
        ValueError: an embedding is NaN or Inf.
    """
    config, out = windows.task.config, []
    batches = ([(0, number)] for number in itertools.count())
    workers = min(1, config.data.workers)  # the stream of windows lives in one process
    for item in build_loader(windows, batches, lambda items: items[0], workers, config.data.read_timeout):
        if not len(item["video"]):
            break
        with autocast(model.device, config.evaluate.precision):
            out.append(model.embed_video(normalise(move_to_device(item["video"], model.device))).cpu())
    embedded = torch.cat(out)
    if not embedded.isfinite().all():
        raise ValueError(f"{what}: NaN or Inf in its features; evaluate.precision is {config.evaluate.precision}")
    return embedded, item["seconds"]
