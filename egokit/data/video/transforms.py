"""From decoded frames to the model's input: crop, resize, flip and normalise.

All frames of a clip get the same random crop and flip.
"""
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of R, G and B in 0..1


def normalise(frames_TCHW: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Normalise pixels by a mean and a standard deviation, ImageNet's unless others are given.

    Args:
        frames_TCHW: uint8 (…, 3, H, W), RGB, 0 to 255, on any device.
        mean: of red, green and blue, in 0..1; `std` are the standard deviations.

    Returns:
        float32 of the same shape, on the same device: (pixel / 255 - mean) / std for each channel.
    """
    # built on the CPU and copied asynchronously: torch.tensor(…, device=…) would wait for the GPU's stream
    mean_C11, std_C11 = (
        torch.tensor(v, dtype=torch.float32, device="cpu").view(3, 1, 1).mul(255).to(frames_TCHW.device,
                                                                                     non_blocking=True)
        for v in (mean, std))
    return (frames_TCHW.float() - mean_C11) / std_C11


def _resize(frames_TCHW: Tensor, height: int, width: int) -> Tensor:
    if frames_TCHW.shape[-2:] == (height, width):
        return frames_TCHW
    # uint8, channels last, as the decoder gives it: a tenth of float32's time, and within one level (of 255) of it
    return F.interpolate(frames_TCHW, (height, width), mode="bilinear", antialias=True,
                         align_corners=False).contiguous()


def evaluation(frames_THWC: np.ndarray, size: int, resize: int) -> Tensor:
    """Apply the evaluation transform: short side to `resize`, centre crop, then `size`.

    Args:
        frames_THWC: uint8 (T, H, W, 3), RGB.
        size: side of the output in pixels.
        resize: side of the centre crop in pixels, before it is resized to `size`.

    Returns:
        uint8 (T, 3, size, size), not normalised.
    """
    frames = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
    height, width = frames.shape[-2:]
    # cropped before it is resized: the same region, a third of the work
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    frames = frames[..., top:top + side, left:left + side]
    return _resize(frames if resize == side else _resize(frames, resize, resize), size, size)


def training(frames_THWC: np.ndarray, size: int, scale: tuple[float, float], flip: bool,
             rng: np.random.Generator) -> Tensor:
    """Apply the training transform: random resized crop and horizontal flip.

    If none of ten random crops fits into the frame, the crop is a square of the short side, at a random place.

    Args:
        frames_THWC: uint8 (T, H, W, 3), RGB.
        size: side of the output in pixels.
        scale: smallest and largest share of the frame's area that is cropped; the aspect ratio is 3/4 to 4/3.
        flip: whether to mirror the clip with probability 0.5.
        rng: drawn from once for the clip, not once for each frame.

    Returns:
        uint8 (T, 3, size, size), not normalised.
    """
    frames = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
    height, width = frames.shape[-2:]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            break
    else:
        h = w = min(height, width)
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    frames = _resize(frames[..., top:top + h, left:left + w], size, size)
    return frames.flip(-1) if flip and rng.random() < 0.5 else frames
