"""Which frames make a clip: one rule on frame numbers for each benchmark.

No video is read here. `rng` is None in evaluation (the middle frame of each part) and a numpy Generator in training
(a random frame of each part). Indices are ascending; stops are exclusive.
"""
import numpy as np

from egokit.data.video.open_video import VideoError

LATE = 5.0  # seconds after a video's end within which annotations may still begin


def first_frame(path, first: int, length: int, fps: float) -> int:
    """Return the number of a clip's first frame, held inside a video of `length` frames.

    A clip that begins up to LATE seconds after its video gets the last frame; annotations are that imprecise.

    Raises:
        VideoError: the clip begins later than that: the file has lost its end, or is another video.
    """
    if first > length + LATE * fps:
        raise VideoError(f"{path}: a clip begins at {first / fps:.2f} s, but the video ends at {length / fps:.2f} s; "
                         "has it lost its end, or is it another video?")
    return max(0, min(first, length - 1))


def sample_frames(start: int, stop: int, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return one frame from each of `frames` equal parts of [start, stop).

    A clip shorter than `frames` repeats frames. In evaluation, an empty part of it gives the frame before the part, as
    in the original; that may be start - 1, so readers apply `clamp_indices`.

    Args:
        start: number of the clip's first frame.
        stop: number of the frame after its last.
        frames: how many frames to pick.
        rng: None for the middle of each part, a Generator for a random frame of each.

    Returns:
        int (frames,), ascending.

    Source:
        EgoVLP's video reader.
    """
    edges = np.linspace(start, stop, frames + 1).astype(int)
    low, high = edges[:-1], edges[1:] - 1
    if rng is None:
        return (low + high) // 2
    return rng.integers(low, np.maximum(low, high) + 1)


def whole_video(length: int, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return one frame from each equal part of a whole video: Charades-Ego's rule.

    Returns:
        int (min(frames, length),): a video shorter than `frames` gives each frame once; `pad_indices` fills the rest.
    """
    return sample_frames(0, length, min(frames, length), rng)


def ek100(start: int, stop: int, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return one frame from each of `frames` segments of [start, stop): EK-100's rule.

    The ends of segments are rounded, and neighbouring segments share the frame on their border.

    Returns:
        int (frames,), ascending.

    Source:
        LaViLa's loader, which the original uses.
    """
    size = (stop - start - 1) / frames
    edges = np.round(size * np.arange(frames + 1)).astype(int) + start
    low, high = edges[:-1], np.minimum(edges[1:], stop)
    if rng is None:
        return (low + high) // 2
    return rng.integers(low, high + 1)


def mq(start: int, stop: int, per_second: float, fps: float, feature_frames: int,
       length: int | None = None) -> np.ndarray:
    """Return the middles of equal parts of [start, stop): EgoMQ's and EgoNLQ's rule.

    Args:
        start: first frame, or time step, of the clip.
        stop: the one after its last.
        per_second: features per second of video.
        fps: frames, or time steps, per second.
        feature_frames: frames from which one feature is computed.
        length: frames, or time steps, of the video. The frames of a clip that ends later are then spread over what
            there is of it, as in the original; without it they lie where they would, beyond the video's end.

    Returns:
        int (n,), n = int(seconds · per_second · feature_frames + 1), also where the video ends earlier.
    """
    samples = (stop - start) / fps * per_second * feature_frames + 1
    return sample_frames(start, stop if length is None else max(start, min(stop, length)), int(samples))


def pad_indices(indices: np.ndarray, frames: int) -> np.ndarray:
    """Repeat the last index until there are `frames` of them.

    A batch needs clips of one length, and a blank frame would be one that was never filmed.
    """
    return np.concatenate([indices, np.full(max(0, frames - len(indices)), indices[-1])])


def clamp_indices(indices: np.ndarray, length: int) -> np.ndarray:
    """Clamp indices to a video of `length` frames, as annotations may end a little later."""
    return np.clip(indices, 0, length - 1)


def evenly_spaced(items: np.ndarray, count: int) -> list[int]:
    """Return `count` of the items, evenly spaced from first to last; all if there are fewer."""
    if not len(items) or count < 1:
        return []
    return items[np.unique(np.linspace(0, len(items) - 1, count).astype(int))].tolist()
