"""How many clips fit into a GPU's memory: an estimate, trials, and the error of what does not fit."""
from __future__ import annotations

from collections.abc import Callable

import torch


def ran_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or isinstance(error.__cause__, torch.cuda.OutOfMemoryError)


def largest_batch(gib: dict[int, float], available: float) -> int:
    """Estimate how many clips fit, by a line through the smallest and the largest batch.

    Args:
        gib: the peak, by clips, of two batches at least.
        available: GiB.

    Returns:
        A multiple of 8.
    """
    few, many = min(gib), max(gib)
    slope = (gib[many] - gib[few]) / (many - few)
    return int((available - gib[few] + slope * few) / slope) // 8 * 8


def find_largest(clips: int, fits: Callable[[int], bool]) -> int:
    """Try a number of clips, then two smaller ones; return the first that fits, or 0."""
    for _ in range(3):
        if clips and fits(clips):
            return clips
        clips = int(clips * 0.92) // 8 * 8
    return 0
