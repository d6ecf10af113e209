"""A long stretch of video as windows, overlapping or not: each frame decoded once, in order, in bounded memory, and embedded."""
from __future__ import annotations

import itertools
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
    """The windows of one video, an item a batch of them, read in order, once; after the last item come empty ones.

    The video is opened in the process that reads, as decoders may hang or die there, too, and decoded as windows are asked for.
    """

    def __init__(self, task: Task, path: Path, batch_size: int):
        super().__init__(0, task.config.seed, train=False)  # how many there are depends on the video's frame rate
        self.task, self.path, self.batch_size, self.stream = task, path, batch_size, None

    def indices(self, video) -> np.ndarray:
        """(windows, T) numbers of frames, none of a row before the row's first, and no row's first before an earlier one's."""
        raise NotImplementedError

    def open(self):
        """The video's reader."""
        return open_video.open_video(self.path, self.task.config.data.reader)

    def windows(self):
        """(T, 3, size, size) of each window. Frame by frame: sixteen of a video that has not been resized may be 400 MB."""
        video = self.open()
        self.seconds = open_video.duration(video)
        indices_WT = self.indices(video)
        wanted, held, turns = np.unique(indices_WT), {}, open_video.quarter_turns(video)
        stream = zip(wanted.tolist(), video.stream_frames(wanted), strict=True)
        for row in indices_WT.tolist():
            if open_video.on_open:
                open_video.on_open(str(self.path))
            held = {index: frame for index, frame in held.items() if index >= row[0]}
            while max(row) not in held:
                index, frame = next(stream)
                held[index] = self.task.transform(np.rot90(frame[None], turns, (1, 2)), None)
            yield torch.cat([held[index] for index in row])

    def read(self, index: int, rng) -> dict:
        try:
            self.stream = self.stream or self.windows()
            windows = list(itertools.islice(self.stream, self.batch_size))
        except VideoError:
            open_video.forget(self.path)  # a decoder that has failed is not asked again
            raise
        return {"video": torch.stack(windows) if windows else torch.empty(0), "seconds": self.seconds}


@torch.no_grad()
def embed_windows(model, windows: Windows, what: str) -> tuple[torch.Tensor, float]:
    """((windows, E) float32, the video's seconds); a loader process, if there are any, decodes ahead, in order.

    Raises VideoError, FileNotFoundError, and ValueError for embeddings that are no numbers, of `what`.
    """
    config, out = windows.task.config, []
    items = ([(0, number)] for number in itertools.count())
    for item in build_loader(windows, items, lambda items: items[0], min(1, config.data.workers), config.data.read_timeout):
        if not len(item["video"]):
            break
        with autocast(model.device, config.evaluate.precision):
            out.append(model.embed_video(normalise(move_to_device(item["video"], model.device))).cpu())
    embedded = torch.cat(out)
    if not embedded.isfinite().all():
        raise ValueError(f"{what}: NaN or Inf in its features; evaluate.precision is {config.evaluate.precision}")
    return embedded, item["seconds"]
