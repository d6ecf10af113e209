"""Pixels of a clip: find its files, pick frames by a rule, and apply the transform.

A prepared Ego4D video is a folder of chunks 0.mp4, 1.mp4, … of `chunk_seconds` each; a clip may span two of them.
"""
from pathlib import Path

import numpy as np
import torch

from egokit.data.video import frame_sampling, transforms
from egokit.data.video import open_video as video

LONGEST = 1e9  # seconds that no recording lasts: a time in a table becomes a part of a file's name


def read(path: str | Path, pick, reader: str = "pyav", by: str = "time") -> np.ndarray:
    """Read frames of one video file.

    Args:
        path: a video file.
        pick: `pick(length, rate)` returns numbers of steps, of which there are `rate` in a second and `length` in all;
            they are clamped to the video.
        reader: "pyav" or "decord".
        by: "time": steps count from the start of the player's clock, and give the frames that a player shows then.
            "frames": steps are the frames, counted from the first, for protocols that count them.

    Returns:
        uint8 (T, H, W, 3), RGB.

    Raises:
        FileNotFoundError, VideoError: the file is missing, or can't be read; the message names it.
    """
    opened = video.open_video(path, reader)
    if by == "frames":
        return _read_or_close(opened, frame_sampling.clamp_indices(pick(opened.length, opened.fps), opened.length))
    return _read_or_close(opened, opened.frames_of(pick(opened.steps, opened.resolution)))


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
    folder, start = Path(folder), min(max(start, 0.0), LONGEST)
    chunk = int(start // chunk_seconds)
    opened = video.find_video(folder / f"{chunk}.mp4", reader)
    if opened is None and chunk:  # annotations may begin just after their video's end: they get its last frame
        opened = video.find_video(folder / f"{chunk - 1}.mp4", reader)
        chunk -= opened is not None
    if opened is None:
        opened = video.open_video(folder / f"{chunk}.mp4", reader)
    offset, steps, rate = chunk * chunk_seconds, opened.steps, opened.resolution
    first = frame_sampling.first_frame(opened.path, int((start - offset) * rate), steps, rate)
    last = max(first + 1, int((stop - offset) * rate))
    goes_on = stop > offset + chunk_seconds
    following = video.find_video(folder / f"{chunk + 1}.mp4", reader) if goes_on else None
    if following is None:
        return _read_or_close(opened, opened.frames_of(pick(first, min(last, steps))))
    last = min(steps + int((stop - offset - chunk_seconds) * following.resolution), steps + following.steps)
    picked = pick(first, max(first + 1, last))
    parts = (opened, picked[picked < steps]), (following, picked[picked >= steps] - steps)
    return np.concatenate([_read_or_close(file, file.frames_of(part)) for file, part in parts if len(part)])


def _read_or_close(opened, indices: np.ndarray) -> np.ndarray:
    """Read frames; after an error, close the file, so that a failed decoder is not reused."""
    try:
        return opened.read(indices)
    except video.VideoError:
        video.forget(opened.path)
        raise


def read_clip(path: str | Path, start: float = 0.0, stop: float | None = None, frames: int | None = None,
              size: int | None = None, resize: int | None = None, reader: str = "pyav", model=None) -> torch.Tensor:
    """Read a clip of a video file as input of the model, with the evaluation transform.

    The frames are the middles of `frames` equal parts of the clip.

    Args:
        path: a video file.
        start: seconds on the player's clock; in a video of variable rate, the frames are those shown at the times.
        stop: seconds on the player's clock; None for the end of the video. A later time counts as the end.
        frames: how many frames to read; None for 16, with which the released checkpoints are evaluated, or as many as
            the model takes, if these are fewer.
        size: side of the frames in pixels; None for the model's, or 224.
        resize: side of the centre crop in pixels, before it is resized to `size`; None for size · 256 / 224.
        reader: "pyav" or "decord".
        model: the model that is to read the clip, which normalises it; None for EgoVLPv2's normalisation, ImageNet's.

    Returns:
        float32 (frames, 3, size, size) on the CPU, normalised; `model.encode_video` takes it with a batch dimension.

    Raises:
        FileNotFoundError, VideoError: the file is missing, or can't be read; the message names it.
        ValueError: the clip lies outside the video.
    """
    size = size or (224 if model is None else model.image_size)
    frames = frames or min(16, (model is not None and model.frames) or 16)

    def pick(length: int, rate: float) -> np.ndarray:
        first = int(start * rate)
        last = length if stop is None else min(length, max(first + 1, int(stop * rate)))
        if not 0 <= first < length or (stop is not None and stop <= start):
            raise ValueError(f"{path}: clip {start}-{stop} s lies outside the video (0-{length / rate:.2f} s)")
        return frame_sampling.sample_frames(first, last, frames)
    resize = round(size * 256 / 224) if resize is None else resize
    normalise = transforms.normalise if model is None else model.normalise
    return normalise(transforms.evaluation(read(path, pick, reader), size, resize))
