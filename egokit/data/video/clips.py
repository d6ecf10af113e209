"""Pixels of a clip: find its files, pick frames by a rule, and apply the transform.

A prepared Ego4D video is a folder of chunks 0.mp4, 1.mp4, … of `chunk_seconds` each; a clip may span two of them.
"""
from pathlib import Path

import numpy as np
import torch

from egokit.data.video import frame_sampling, transforms
from egokit.data.video import open_video as video


def read(path: str | Path, pick, reader: str = "pyav") -> np.ndarray:
    """Read frames of one video file.

    Args:
        path: a video file.
        pick: `pick(length, fps)` returns the frames' numbers; they are clamped to the video.
        reader: "pyav" or "decord".

    Returns:
        uint8 (T, H, W, 3), RGB.

    Raises:
        FileNotFoundError, VideoError: the file is missing, or can't be read; the message names it.
    """
    opened = video.open_video(path, reader)
    return _read_or_close(opened, frame_sampling.clamp_indices(pick(opened.length, opened.fps), opened.length))


def read_chunked(folder: str | Path, start: float, stop: float, pick, chunk_seconds: float,
                 reader: str = "pyav") -> np.ndarray:
    """Read frames of the clip [start, stop) of a video that was prepared in chunks.

    Args:
        folder: the video's folder, with its chunks 0.mp4, 1.mp4, …
        start: seconds in the whole video; a time before 0 is 0.
        stop: seconds in the whole video.
        pick: `pick(first, last)` returns frames of [first, last), such as `sample_frames`. Frames are numbered from
            the start of the chunk in which the clip begins, and on into the next chunk.
        chunk_seconds: length of a chunk (site.chunk_seconds).
        reader: "pyav" or "decord".

    Returns:
        uint8 (T, H, W, 3), RGB.

    Raises:
        FileNotFoundError: a chunk is missing.
        VideoError: a chunk can't be read, or the clip begins more than 5 s after the end of the video.
    """
    folder, start = Path(folder), max(start, 0.0)
    chunk = int(start // chunk_seconds)
    while chunk and not (folder / f"{chunk}.mp4").is_file() and (folder / f"{chunk - 1}.mp4").is_file():
        chunk -= 1  # annotations may begin just after their video's end: they get its last frame
    opened = video.open_video(folder / f"{chunk}.mp4", reader)
    offset = chunk * chunk_seconds
    first = frame_sampling.first_frame(opened.path, int((start - offset) * opened.fps), opened.length, opened.fps)
    last = max(first + 1, int((stop - offset) * opened.fps))
    second = folder / f"{chunk + 1}.mp4"
    if stop <= offset + chunk_seconds or not second.is_file():
        indices = frame_sampling.clamp_indices(pick(first, min(last, opened.length)), opened.length)
        return _read_or_close(opened, indices)
    following = video.open_video(second, reader)
    last = min(opened.length + int((stop - offset - chunk_seconds) * following.fps), opened.length + following.length)
    indices = frame_sampling.clamp_indices(pick(first, max(first + 1, last)), opened.length + following.length)
    here = indices < opened.length
    parts = (opened, indices[here]), (following, indices[~here] - opened.length)
    return np.concatenate([_read_or_close(file, part) for file, part in parts if len(part)])


def _read_or_close(opened, indices: np.ndarray) -> np.ndarray:
    """Read frames; after an error, close the file, so that a failed decoder is not reused."""
    try:
        return opened.read(indices)
    except video.VideoError:
        video.forget(opened.path)
        raise


def read_clip(path: str | Path, start: float = 0.0, stop: float | None = None, frames: int = 16, size: int = 224,
              resize: int | None = None, reader: str = "pyav") -> torch.Tensor:
    """Read a clip of a video file as input of the model, with the evaluation transform.

    The frames are the middles of `frames` equal parts of the clip.

    Args:
        path: a video file.
        start: seconds from the start of the video.
        stop: seconds from the start of the video; None for its end. A later time counts as the end.
        frames: how many frames to read; the released checkpoints are evaluated with 16.
        size: side of the frames in pixels.
        resize: side of the centre crop in pixels, before it is resized to `size`; None for size · 256 / 224.
        reader: "pyav" or "decord".

    Returns:
        float32 (frames, 3, size, size), normalised; `model.encode_video` takes it with a batch dimension.

    Raises:
        FileNotFoundError, VideoError: the file is missing, or can't be read; the message names it.
        ValueError: the clip lies outside the video.
    """
    def pick(length: int, fps: float) -> np.ndarray:
        first = int(start * fps)
        last = length if stop is None else min(length, int(stop * fps))
        if not 0 <= first < length or last <= first:
            raise ValueError(f"{path}: clip {start}-{stop} s lies outside the video (0-{length / fps:.2f} s)")
        return frame_sampling.sample_frames(first, last, frames)
    resize = round(size * 256 / 224) if resize is None else resize
    return transforms.normalise(transforms.evaluation(read(path, pick, reader), size, resize))
