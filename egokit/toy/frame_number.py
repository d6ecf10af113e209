"""Write and read the frame number along the bottom edge of every frame.

The strip has sixteen cells of black or white, W/16 wide and H/16 high: a white guard, a black guard; twelve bits,
highest first; odd parity; a white guard. It survives resizing and re-encoding, so a test can prove which frame a reader
returned. Nothing here depends on what else is in the picture.
"""
import numpy as np

CELLS, BITS = 16, 12
BLACK, WHITE = 16, 235


def _cells(number: int) -> list[int]:
    bits = [number >> shift & 1 for shift in reversed(range(BITS))]
    return [1, 0, *bits, 1 - sum(bits) % 2, 1]


def strip_height(frame_height: int) -> int:
    """Return the height of the strip in pixels."""
    return max(2, round(frame_height / 16))


def write_frame_number(frame_HWC: np.ndarray, number: int) -> None:
    """Draw `number` (0..4095) into a uint8 frame, in place; its width is a multiple of 16."""
    if not 0 <= number < 1 << BITS:
        raise ValueError(f"frame number {number} does not fit {BITS} bits")
    rows = strip_height(frame_HWC.shape[0])
    row = np.repeat(np.where(_cells(number), WHITE, BLACK).astype(np.uint8), frame_HWC.shape[1] // CELLS)
    frame_HWC[-rows:] = row[None, :, None]


def read_frame_number(frame_HWC: np.ndarray) -> int:
    """Return the number that a frame carries.

    Args:
        frame_HWC: uint8, the whole picture, at any size of about 64 px or more.

    Raises:
        ValueError: the guards or the parity are wrong. The frame is not a toy frame, or it is cropped, flipped, or
            mixed from two frames.
    """
    frame_HWC = np.asarray(frame_HWC)
    if frame_HWC.ndim != 3 or frame_HWC.shape[2] != 3 or frame_HWC.dtype != np.uint8:
        raise ValueError(f"expected a uint8 frame (H, W, 3), got {frame_HWC.dtype} {frame_HWC.shape}")
    frame_height, width, _ = frame_HWC.shape
    rows = frame_height / 16
    # only the middle of each cell is trusted: resizing and compression smear the borders
    top, bottom = round(frame_height - 0.7 * rows), round(frame_height - 0.25 * rows)
    band_W = frame_HWC[top:max(bottom, top + 1)].mean(axis=(0, 2))
    cell = width / CELLS
    values = [band_W[int((i + 0.3) * cell):max(int((i + 0.7) * cell), int((i + 0.3) * cell) + 1)].mean()
              for i in range(CELLS)]
    bits = [int(value > (BLACK + WHITE) / 2) for value in values]
    number = int("".join(map(str, bits[2:2 + BITS])), 2)
    if bits != _cells(number):
        raise ValueError("no frame number here: the guard or parity cells of the bottom strip are wrong")
    if min(abs(value - (BLACK + WHITE) / 2) for value in values) < 35:
        raise ValueError("the frame number is unreadable: some cell is neither black nor white")
    return number
