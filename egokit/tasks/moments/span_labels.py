"""What the span head trains on: at most P positions, the span of an answer, and the highlighted positions around it.

Shapes: N features, E their size, P positions.

Source: EgoVLPv2's EgoNLQ (utils/data_util.py, utils/data_loader.py).
"""
import itertools

import numpy as np

EXTENSION = 0.1  # of a span, on each side, that is highlighted with it


def resample(features_NE: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` rows: the means of that many groups of neighbours; few features stay as they are.

    Group edges are rounded to even and end at the last row, which therefore counts only in a group of its own.
    """
    N = len(features_NE)
    if most >= N:
        return features_NE
    edges = np.minimum(np.round(np.arange(most + 1) / most * N).astype(int), N - 1)
    return np.stack([features_NE[start:max(stop, start + 1)].mean(axis=0)
                     for start, stop in itertools.pairwise(edges)]).astype(features_NE.dtype)


def _grid(positions: int, duration: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the start and the stop of each position in seconds, float32 as in the original."""
    edges = np.arange(positions + 1, dtype=np.float32) * np.float32(duration) / np.float32(positions)
    return edges[:-1], edges[1:]


def span_label(start: float, stop: float, positions: int, duration: float) -> tuple[int, int]:
    """Return the first and the last position, inclusive, of the stretch with the greatest IoU with an answer.

    Args:
        start: seconds; an answer of length 0 has no overlap with any stretch: its label is (0, 0), as in the original.
        stop: seconds.
        positions: P of the clip.
        duration: seconds of the clip.
    """
    starts, stops = (x.astype(np.float64) for x in _grid(positions, duration))
    shared = np.maximum(0.0, np.minimum(stops, stop)[None] - np.maximum(starts, start)[:, None])
    hull = np.maximum(1e-12, np.maximum(stops, stop)[None] - np.minimum(starts, start)[:, None])
    first, last = divmod(int(np.argmax(shared / hull)), positions)
    return first, last


def span_times(first: int, last: int, positions: int, duration: float) -> tuple[float, float]:
    """Return the seconds at which a span of positions, both inclusive, starts and stops."""
    starts, stops = _grid(positions, duration)
    return float(starts[first]), float(stops[last])


def highlight_label(first: int, last: int, positions: int) -> np.ndarray:
    """Return (P,), 1 in the span and a tenth of its length on each side, else 0; float32."""
    extension = round(EXTENSION * (last - first + 1))
    label = np.zeros(positions, dtype=np.float32)
    label[max(0, first - extension):last + extension + 1] = 1
    return label
