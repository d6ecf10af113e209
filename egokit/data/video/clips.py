"""A clip's pixels: where its files are, which frames the rule picks, and the transform.

A prepared Ego4D video is a folder of pieces 0.mp4, 1.mp4, … of `chunk_seconds` each; a clip may span two.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from egokit.data.video import frame_sampling, transforms
from egokit.data.video import open_video as video


def read(path: str | Path, pick, reader: str = "pyav") -> np.ndarray:
    """Frames of one file, `pick(length, fps)` giving their numbers. uint8 (T, H, W, 3)."""
    opened = video.open_video(path, reader)
    return _guarded(opened, frame_sampling.clamp_indices(pick(opened.length, opened.fps), opened.length))


def read_chunked(folder: str | Path, start: float, stop: float, pick, chunk_seconds: float, reader: str = "pyav") -> np.ndarray:
    """Frames of a clip [start, stop) seconds of a chunked video. uint8 (T, H, W, 3).

    `pick(first, last)` chooses among the clip's frames, numbered on from the first piece into the second.
    """
    folder, start = Path(folder), max(start, 0.0)
    piece = int(start // chunk_seconds)
    while piece and not (folder / f"{piece}.mp4").is_file() and (folder / f"{piece - 1}.mp4").is_file():
        piece -= 1  # annotations may begin a moment after their video's end: its last frame
    opened = video.open_video(folder / f"{piece}.mp4", reader)
    offset = piece * chunk_seconds
    first = frame_sampling.first_frame(opened.path, int((start - offset) * opened.fps), opened.length, opened.fps)
    last = max(first + 1, int((stop - offset) * opened.fps))
    second = folder / f"{piece + 1}.mp4"
    if stop <= offset + chunk_seconds or not second.is_file():
        indices = frame_sampling.clamp_indices(pick(first, min(last, opened.length)), opened.length)
        return _guarded(opened, indices)
    following = video.open_video(second, reader)
    last = min(opened.length + int((stop - offset - chunk_seconds) * following.fps), opened.length + following.length)
    indices = frame_sampling.clamp_indices(pick(first, max(first + 1, last)), opened.length + following.length)
    here = indices < opened.length
    parts = []
    if here.any():
        parts.append(_guarded(opened, indices[here]))
    if not here.all():
        parts.append(_guarded(following, indices[~here] - opened.length))
    return np.concatenate(parts)


def _guarded(opened, indices: np.ndarray) -> np.ndarray:
    """Read, and close the file after an error on it: a decoder that has failed is not asked again."""
    try:
        return opened.read(indices)
    except video.VideoError:
        video.forget(opened.path)
        raise


def read_clip(path: str | Path, start: float = 0.0, stop: float | None = None, frames: int = 16, size: int = 224,
              resize: int | None = None, reader: str = "pyav") -> torch.Tensor:
    """A clip ready for the model: (frames, 3, size, size) float32, normalised, with the evaluation transform.

    `path` is a video file; `start` and `stop` are seconds (default: all of it). Middles of `frames` equal parts.
    Raises FileNotFoundError or VideoError, naming the file.
    """
    def pick(length: int, fps: float) -> np.ndarray:
        first = int(start * fps)
        last = length if stop is None else min(length, int(stop * fps))
        if not 0 <= first < length or last <= first:
            raise ValueError(f"{path}: clip {start}-{stop} s lies outside the video (0-{length / fps:.2f} s)")
        return frame_sampling.sample_frames(first, last, frames)
    resize = round(size * 256 / 224) if resize is None else resize
    return transforms.normalise(transforms.evaluation(read(path, pick, reader), size, resize))
