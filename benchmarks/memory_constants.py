"""Derives the figures by which egokit/train/memory_plan.py predicts a training step's GPU memory.

    python benchmarks/memory_constants.py            (prints COUNTED and FLOAT32; five minutes)
    python benchmarks/memory_constants.py check      (prints predicted and counted GiB of the base model; ten minutes)

It needs no GPU: memory is counted as in gpu_cost.py, for the base model and for others with fewer blocks. A block that
reads no text is one in the dual encoder and one in the trunk; so differences of peaks give a block's bytes, and then a
fused block's. After a change of what is kept (another kernel for model.attention, say), run it with that
settings as further arguments, such as attention=triton half_residual=true, and put the lines into COUNTED.
"""
import dataclasses
import sys

import yaml
from gpu_cost import Cost, counted_step
from train_step import configured

from egokit.config.schema import ModelConfig
from egokit.tasks.egoclip import EgoClip
from egokit.train import memory_plan
from egokit.train.memory_plan import GIB, MODES, Activations, network_of, parameter_bytes

CLIPS, DEPTH, FUSED = 32, ModelConfig.depth, ModelConfig.num_fused_layers
CHECKED = ((16, 0, 4), (32, 0, 4), (64, 0, 4), (64, 16, 4), (64, 4, 4), (16, 0, 16), (16, 4, 16))  # clips, micro-batch
                                                                                      # (samples), frames


def peak_gib(clips: int, precision: str, checkpointing: str, micro_batch: int = 0, **model) -> float:
    counter = counted_step(clips, precision, checkpointing, micro_batch, **model)
    return sum(counter.costs.values(), Cost()).peak_bytes / GIB


def activations(checkpointing: str, **model) -> tuple[Activations, float]:
    """Derive a mode's figures from counts: in half precision, and their multiple in float32."""
    def counted(micro_batch: int = 0, precision: str = "fp16", **shape) -> float:
        """Return the bytes for each token, unit of width and clip of the batch, beside weights and moments."""
        shape = shape | model
        config = configured(precision, **shape).model
        trained = parameter_bytes(network_of(config, "all"))[1]
        tokens = 1 + config.frames * (config.image_size // 16) ** 2
        weights = trained * (3.5 if precision == "fp16" else 3)
        return (peak_gib(CLIPS, precision, checkpointing, micro_batch, **shape) * GIB - weights) / (
            CLIPS * tokens * config.width)

    base, whole, half = counted(), counted(CLIPS // 2), counted(CLIPS // 4)
    block = (base - counted(depth=DEPTH - 2)) / 4
    fused = (base - counted(num_fused_layers=FUSED - 1) + block) / 2
    one_pass = 2 * (whole - half)
    rest = base - (2 * DEPTH - FUSED) * block - 2 * FUSED * fused
    figures = block, fused, rest, one_pass - DEPTH * block
    return Activations(*(round(x, 1) for x in figures)), round(counted(precision="fp32") / base, 2)


def predicted(clips: int, checkpointing: str, micro_batch: int = 0, precision: str = "fp16", **model) -> float:
    config = configured(precision, checkpointing=checkpointing, **model)
    data = dataclasses.replace(config.data, frames=config.model.frames)
    train = dataclasses.replace(config.train, batch_size=clips // 2, micro_batch=micro_batch)
    return memory_plan.predicted_gib(dataclasses.replace(config, data=data, train=train), EgoClip, 1)


def check() -> None:
    print("clips  micro_batch  frames  checkpointing  predicted GiB  counted GiB")
    for clips, micro_batch, frames in CHECKED:
        for mode in MODES:
            print(f"{clips:5} {micro_batch:12} {frames:7} {mode:>14} "
                  f"{predicted(clips, mode, micro_batch, frames=frames):14.1f} "
                  f"{peak_gib(clips, 'fp16', mode, micro_batch, frames=frames):12.1f}", flush=True)


def main(**model) -> None:
    for mode in MODES:
        print(f'"{mode}": %s, in float32 x %s' % activations(mode, **model), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        check()
    else:
        main(**(yaml.safe_load("\n".join(setting.replace("=", ": ") for setting in sys.argv[1:])) or {}))
