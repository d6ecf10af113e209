"""From decoded frames to the model's input: crop, resize, flip, normalise. One draw for all frames of a clip."""
from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def normalise(frames_TCHW: Tensor) -> Tensor:
    """uint8 (…, 3, H, W) -> float32, ImageNet mean and standard deviation."""
    # made on the CPU and copied without waiting for it: torch.tensor(…, device=…) would have the GPU's stream waited for
    mean, std = (torch.tensor(v, device="cpu").view(3, 1, 1).mul(255).to(frames_TCHW.device, non_blocking=True) for v in (MEAN, STD))
    return (frames_TCHW.float() - mean) / std


def _resize(frames_TCHW: Tensor, height: int, width: int) -> Tensor:
    if frames_TCHW.shape[-2:] == (height, width):
        return frames_TCHW
    # bytes as the decoder lays them out, channels last: a tenth of the time that float32 takes, and within one level of it
    return F.interpolate(frames_TCHW, (height, width), mode="bilinear", antialias=True, align_corners=False).contiguous()


def evaluation(frames_THWC: np.ndarray, size: int, resize: int) -> Tensor:
    """Short side to `resize`, centre crop `resize`, then `size`. uint8 (T, H, W, 3) -> uint8 (T, 3, size, size)."""
    frames = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
    height, width = frames.shape[-2:]
    # crop first, then resize once: the same region, a third of the work
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    frames = frames[..., top:top + side, left:left + side]
    return _resize(frames if resize == side else _resize(frames, resize, resize), size, size)


def training(frames_THWC: np.ndarray, size: int, scale: tuple[float, float], flip: bool, rng: np.random.Generator) -> Tensor:
    """Random resized crop (area share in `scale`, aspect 3/4 to 4/3) and flip. uint8 (T, H, W, 3) -> (T, 3, size, size)."""
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
