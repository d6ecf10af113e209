"""The stage `encode`: the speed of evaluation by precision, and how far its scores are from float32's."""
from __future__ import annotations

import typing

import torch
import torch.nn.functional as F
import train_step
from gpu_day.common import DEVICE, REHEARSAL, SHAPE, check, clock, forget, peak_gib
from torch import Tensor

from egokit.config.schema import EvaluateConfig, ModelConfig
from egokit.data.video.transforms import normalise
from egokit.model.precision import autocast


def encode() -> None:
    """Measure EK-100's and EgoMCQ's evaluation by precision.

    Noted are the speed and how far scores are from exact float32's.
    """
    frames, clips = (4, 2) if REHEARSAL else (16, 32)
    shape = ModelConfig(**{"time_init": "zero_output"} | SHAPE | {"frames": frames})
    model = train_step.base_model(shape, DEVICE).eval()
    size = (clips, frames, 3, shape.image_size, shape.image_size)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, device=DEVICE)
    ids = torch.randint(4, 90, (clips, 15), device=DEVICE)
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def ek100() -> Tensor:
        return model.embed_video(normalise(pixels))

    def egomcq() -> tuple[Tensor, Tensor]:
        normalised = normalise(pixels)
        video, trunk = model.embed_video(normalised), model.fusion_trunk(normalised)
        states = model.fuse(trunk, model.text_trunk(tokens), tokens["attention_mask"], frames, "itm")
        return video, model.itm_from_states(*states).float()

    exact = None
    for name in typing.get_args(EvaluateConfig.__pydantic_fields__["precision"].annotation):
        forget()
        with torch.no_grad(), autocast(DEVICE, name):
            video, logits = egomcq()
            exact = exact or (video, logits)
            times = [clock(function, 3, 1) for function in (ek100, egomcq)]
        cosine = F.cosine_similarity(video, exact[0]).min().item()
        check(f"Encoding {clips} clips of {frames} frames", cosine > 0.99, precision=name,
              ek100_clips_s=1e3 * clips / times[0], egomcq_clips_s=1e3 * clips / times[1], least_cosine=cosine,
              logits_differ_by=(logits - exact[1]).abs().max().item(), gib=peak_gib())
