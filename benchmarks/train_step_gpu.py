"""A training step on a GPU, in mixed precision: clips/s, share of the card's peak, memory.

    python benchmarks/train_step_gpu.py [peak in TFLOP/s]     (989 is an H100's, dense, in half precision)

egokit's own Trainer with the task EgoClip on synthetic batches (train_step.py), base model, 4 frames at 224 px: with fp16 and
bf16, with and without recomputation (model.checkpointing) and torch.compile (train.compile), at 32 clips and at the largest
power of two that fits. FLOPs are counted in one step by torch.utils.flop_counter; what is recomputed doesn't count for the
share of the peak. Clips include the scene-aware negatives. Not run on a GPU yet: tests/test_train_step.py runs it on a CPU.
"""
import dataclasses
import gc
import statistics
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode
from train_step import Trainer, configured, synthetic_batch

from egokit.loading import move
from egokit.train import TrainingError

DEVICE = torch.device("cuda")
WARM, STEPS, LEAST, MOST = 3, 8, 32, 2048
VARIANTS = (("fp16", True, False), ("fp16", False, False), ("bf16", True, False), ("bf16", False, False),
            ("bf16", False, True), ("bf16", True, True))  # precision, recomputed, compiled


def trainer(precision: str, checkpointing: bool, compiled: bool) -> Trainer:
    config = configured(precision, checkpointing=checkpointing)
    return Trainer(dataclasses.replace(config, train=dataclasses.replace(config.train, compile=compiled)), DEVICE)


def on_gpu(one: Trainer, clips: int) -> dict:
    return move(synthetic_batch(clips, one.model.config), DEVICE)


def tflop_a_clip() -> float:
    """Of a step's forward and backward passes, without recomputation."""
    one = trainer("bf16", checkpointing=False, compiled=False)
    with FlopCounterMode(display=False) as counter:
        one.steps_on(on_gpu(one, 8))
    return counter.get_total_flops() / 8 / 1e12


def measure(one: Trainer, clips: int) -> tuple[float, float]:
    """Clips/s (the median step's) and GiB at the peak."""
    batch = on_gpu(one, clips)
    one.steps_on(*[batch] * WARM)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        one.steps_on(batch)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return clips / statistics.median(seconds), torch.cuda.max_memory_allocated() / 2**30


def fits(one: Trainer, clips: int) -> bool:
    try:
        one.steps_on(on_gpu(one, clips))
        return True
    except TrainingError as error:
        if not isinstance(error.__cause__, torch.cuda.OutOfMemoryError):
            raise
        return False
    finally:
        one.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()


def main(peak: float) -> None:
    work = tflop_a_clip()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {work:.2f} TFLOP a clip, peak {peak:.0f} TFLOP/s")
    print(f"{'precision, recomputed, compiled':34} {'clips':>6} {'clips/s':>8} {'of peak':>8} {'GiB':>6}")
    for precision, checkpointing, compiled in VARIANTS:
        one, largest = trainer(precision, checkpointing, compiled), LEAST
        while largest < MOST and fits(one, 2 * largest):
            largest *= 2
        for clips in sorted({LEAST, largest}):
            speed, memory = measure(one, clips)
            name = f"{precision}, {checkpointing}, {compiled}"
            print(f"{name:34} {clips:6} {speed:8.1f} {100 * speed * work / peak:6.1f} % {memory:6.1f}", flush=True)
        del one
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    if torch.cuda.is_available():
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 989.0)
    else:
        print("no GPU here: nothing was measured")
