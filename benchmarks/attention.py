"""Time a training step of the toy model on a CPU with attention in float32 or bfloat16.

    OMP_NUM_THREADS=1 python benchmarks/attention.py          (the end of this file has the table that it printed)

It shows why attention runs in float32 under bfloat16 autocast on a CPU (egokit/model/cpu_fast_paths.py). Three ways
take turns.
"""
import statistics
import time

import torch
import torch.nn.functional as F

from egokit.config.schema import ModelConfig
from egokit.model import video_encoder
from egokit.model.egovlp import EgoVLP

torch.set_num_threads(1)
config = ModelConfig(image_size=64, patch_size=16, width=96, heads=4, depth=4, num_fused_layers=2, vocab_size=400,
                     max_positions=64, projection="linear64", dropout=0.0, time_init="zero_output")
model = EgoVLP(config)
model.reset_parameters()
frames = torch.randn(32, 4, 3, 64, 64)
ours = video_encoder.attend


def as_autocast_does(query, key, value, mask=None, dropout=0.0):
    """Return PyTorch's fused attention in whatever type autocast gives."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=None if mask is None else mask.to(query.dtype))


def step(attend, half: bool) -> float:
    """Return the seconds of a forward and a backward pass of the video encoder."""
    video_encoder.attend = attend
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        loss = model.video_projection(model.video(frames)).float().square().mean()
    loss.backward()
    return time.perf_counter() - start


ways = {"float32": (ours, False), "bfloat16, attention too": (as_autocast_does, True),
        "bfloat16, attention in float32": (ours, True)}
for way in ways.values():
    step(*way)
times = {name: [] for name in ways}
for _ in range(8):
    for name, way in ways.items():
        times[name].append(step(*way))
print(f"{'video encoder, forward and backward, 32 clips':48} ms (median of 8)")
for name, seconds in times.items():
    ratio = statistics.median(a / b for a, b in zip(times["float32"], seconds, strict=True))
    print(f"{name:48} {1000 * statistics.median(seconds):6.0f}   {ratio:.2f} x float32's speed")

# Printed on a shared machine of 2 cores (AMD EPYC with AVX-512 BF16), torch 2.15.0:
#
# video encoder, forward and backward, 32 clips    ms (median of 8)
# float32                                             196   1.00 x float32's speed
# bfloat16, attention too                             271   0.73 x float32's speed
# bfloat16, attention in float32                      144   1.34 x float32's speed
