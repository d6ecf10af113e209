"""Which frames a clip is made of: pure rules on frame numbers, one for each benchmark. No video is read here.

`rng` is None at evaluation (the middle of each part) and a numpy Generator in training (a random frame of each).
All return `frames` indices in order; stops are exclusive.
"""
from __future__ import annotations

import numpy as np

from egokit.data.video.open_video import VideoError

LATE = 5.0  # seconds after a video's end within which annotations may still begin


def first_frame(path, first: int, length: int, fps: float) -> int:
    """A clip's first frame. One that begins a moment after its video has the last frame; much later, the video has lost its end."""
    if first > length + LATE * fps:
        raise VideoError(f"{path}: a clip begins at {first / fps:.2f} s, but the video ends at {length / fps:.2f} s; has it lost its end, "
                         "or is it another video?")
    return max(0, min(first, length - 1))


def sample_frames(start: int, stop: int, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame in each of `frames` equal parts of [start, stop). Source: EgoVLP's reader; short clips repeat frames.

    At evaluation a part that is empty (a clip shorter than `frames`) gives the frame before it, as the original does.
    """
    edges = np.linspace(start, stop, frames + 1).astype(int)
    low, high = edges[:-1], edges[1:] - 1
    if rng is None:
        return (low + high) // 2
    return rng.integers(low, np.maximum(low, high) + 1)


def whole_video(length: int, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Charades-Ego: equal parts of the whole video; a video shorter than `frames` gives each frame once (see `pad`)."""
    return sample_frames(0, length, min(frames, length), rng)


def ek100(start: int, stop: int, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """EK-100: segments with rounded ends that share their borders. Source: LaViLa's loader, used by the original."""
    size = (stop - start - 1) / frames
    edges = np.round(size * np.arange(frames + 1)).astype(int) + start
    low, high = edges[:-1], np.minimum(edges[1:], stop)
    if rng is None:
        return (low + high) // 2
    return rng.integers(low, high + 1)


def mq(start: int, stop: int, per_second: float, fps: float, feature_frames: int) -> np.ndarray:
    """EgoMQ: middles of (seconds · per_second · feature_frames + 1) equal parts of [start, stop)."""
    samples = (stop - start) / fps * per_second * feature_frames + 1
    return sample_frames(start, stop, int(samples))


def pad_indices(indices: np.ndarray, frames: int) -> np.ndarray:
    """Repeat the last index up to `frames`: a batch needs clips of one length, and a frame that was never filmed is no frame."""
    return np.concatenate([indices, np.full(max(0, frames - len(indices)), indices[-1])])


def clamp_indices(indices: np.ndarray, length: int) -> np.ndarray:
    """Indices held inside a video of `length` frames: annotations may end a little after their video."""
    return np.clip(indices, 0, length - 1)


def evenly_spaced(items: np.ndarray, count: int) -> list[int]:
    """`count` of the items, evenly over them."""
    return [] if not len(items) or count < 1 else items[np.unique(np.linspace(0, len(items) - 1, count).astype(int))].tolist()
