"""Random numbers that are computed from what they are for: the seed, the step, the purpose and the row.

A generator hands out numbers in the order in which it is asked, so that all ranks would have to draw for all rows. Here
the number of a row is a hash, which any rank can compute for any rows alone: the same bits wherever a row lies, on any
machine. NumPy computes them on the CPU, also for a GPU: they are few, and nothing has to wait for the GPU.
"""
import numpy as np

ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: its multiples differ in high and low bits


def _mix(x: np.ndarray) -> np.ndarray:
    """Return a one-to-one scramble of 64-bit numbers: each bit of x changes each bit of the result half of the time."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashes(rows: np.ndarray, *numbers: int) -> np.ndarray:
    """Return a random 64-bit number for each row; those of different rows differ.

    Args:
        rows: global numbers of the rows, from 0.
        numbers: what the numbers are for, such as seed, step and purpose; other numbers give independent hashes.

    Returns:
        uint64, of the shape of `rows`.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, doi 10.1145/2660193.2660195), applied to
        one number after the other.
    """
    state = np.zeros(1, np.uint64)  # an array, because products of single numbers warn when they overflow
    for number in numbers:
        state = _mix(state + np.uint64(number % 2**64) + ODD)
    return _mix(state + (rows.astype(np.uint64) + np.uint64(1)) * ODD)


def uniforms(rows: np.ndarray, *numbers: int) -> np.ndarray:
    """Return a random number from [0, 1) for each row: the first 53 bits of its hash.

    Args:
        rows, numbers: as of `hashes`.

    Returns:
        float64, of the shape of `rows`.
    """
    return (hashes(rows, *numbers) >> np.uint64(11)) * 2.0**-53
