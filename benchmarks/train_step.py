"""A training step against a plain implementation of the original's schedule.

    python benchmarks/train_step.py [clips] [turns]       (4 and 3; it prints the tables at the end of this file)

One step is the forward pass of EgoNCE + MLM + 2 ITM with hard negatives, the backward pass and AdamW, of the base model
at 224 px with 4 frames a clip, from synthetic batches. egokit's side is its own Trainer with the task EgoClip; it is
measured with and without recomputation (model.checkpointing). The plain side (plain_schedule.py) passes each clip and
text through the network three times, once for each loss, materialises every attention matrix, recomputes every block
in the backward pass, and updates parameter by parameter. The sides take turns in one run, work on the same weights, and
the losses and gradients of the first step are compared. `clips` counts all that pass through the network:
EgoClip's scene-aware negatives are half of them, so 4 clips are train.batch_size=2.

CPU: float32, 2 threads; CPU time is the fair measure if other programs run. On a GPU, the GPU day's stage `step`
measures the same step in mixed precision (benchmarks/gpu_day/).
"""
import dataclasses
import gc
import os
import subprocess
import sys
import time
import unittest.mock

os.environ["OMP_WAIT_POLICY"] = "passive"  # CPU time must not count what a thread waits for the other one
import numpy as np
import torch
from plain_schedule import PlainSchedule

from egokit.config.schema import Config, ModelConfig, OptimConfig, TrainConfig
from egokit.data.loader import Samples
from egokit.model.egovlp import EgoVLP
from egokit.tasks import base, losses
from egokit.tasks.base import Task
from egokit.tasks.egoclip import NOUNS, VERBS, EgoClip
from egokit.train import loop

TOKENS, ENDLESS = 15, 10**9
SIDES = ("plain", "recomputed", "kept")
SMALL = 1e-3  # floor of a gradient's norm, as a share of the largest norm


def without_files(task: type[Task]) -> type[Task]:
    """Make a class that has a task's loss, but needs no files."""
    class Synthetic(task):
        def __init__(self, config: Config):
            self.config = config

        def dataset(self, split: str):
            return Samples(ENDLESS, seed=0, train=True)

        def validation(self):
            return self

    return Synthetic


Synthetic = without_files(EgoClip)


def synthetic_batch(clips: int, model: ModelConfig) -> dict:
    """Make a batch like EgoClip.collate's: pixels, tokens, tags, 15 % of tokens masked."""
    size, mask_id = model.image_size, model.vocab_size - 1
    ids = torch.randint(4, mask_id, (clips, TOKENS))
    ids[:, 0], ids[:, -1] = 0, 2
    masked, labels = losses.mask_words(ids, torch.rand(clips, TOKENS, 3), [0, 1, 2, 3, mask_id], mask_id,
                                       model.vocab_size)
    return {"video": torch.randint(0, 256, (clips, model.frames, 3, size, size), dtype=torch.uint8),
            "tokens": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            "masked_ids": masked, "labels": labels,
            "verbs": (torch.rand(clips, VERBS) < 0.01).float(), "nouns": (torch.rand(clips, NOUNS) < 0.01).float()}


def base_model(config: ModelConfig, device: torch.device) -> EgoVLP:
    """Make a model with random weights, open gates and time attention that is not zero.

    Weights are drawn on the device, which is quicker for a GPU.
    """
    torch.manual_seed(0)
    with device:
        model = EgoVLP(config)
        model.reset_parameters()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
            elif ".time.proj" in name:
                parameter.normal_(std=0.02)
    return model


class Trainer(loop.Trainer):
    """egokit's own trainer, with a task that needs no files and a given or fresh model."""

    def __init__(self, config: Config, device: torch.device, model: EgoVLP | None = None,
                 task: type[Task] = Synthetic):
        initial_model = unittest.mock.patch.object(
            base, "initial_model", lambda config, frames, code=None: model or base_model(config.model, device))
        with initial_model:
            super().__init__(config, task(config), None, "benchmark", device)

    def steps_on(self, *batches: dict) -> None:
        self.epoch(0, [dict(batch) for batch in batches])


def configured(precision: str = "fp32", **model) -> Config:
    """Make the pre-training recipe's config, at a constant rate and without dropout.

    The plain equations have no dropout.
    """
    model = {"time_init": "zero_output", "dropout": 0.0, "checkpointing": "full"} | model
    return Config(task=EgoClip.Params(name="egoclip"), model=ModelConfig(**model), optim=OptimConfig(warmup_epochs=0),
                  train=TrainConfig(precision=precision, log_steps=ENDLESS))


def differences(trainer: Trainer, plain: PlainSchedule, batch: dict) -> tuple[float, float, str]:
    """Compare the two sides' losses and gradients.

    Differences are float32's rounding: in float64 there are none (tests/test_train_step.py). Rounding shows most in a
    gradient whose large terms cancel, as for attention's keys and queries; hence the floor for small norms.

    Returns:
        The largest relative difference of a loss, that of a parameter's gradient in norm, and that parameter's name.
    """
    parameters, sides = dict(trainer.model.named_parameters()), []
    for loss in (lambda: trainer.task.loss(trainer.model.train(), batch, 0), lambda: plain.loss(batch, 0)):
        terms = loss()
        sum(terms.values()).backward()
        sides.append(({name: term.item() for name, term in terms.items()},
                      {name: parameter.grad for name, parameter in parameters.items()}))
        trainer.optimizer.zero_grad(set_to_none=True)
    (terms, grads), (plain_terms, plain_grads) = sides
    norms = {name: grad.norm().item() for name, grad in plain_grads.items()}
    floor = SMALL * max(norms.values())
    of_gradients = {name: (grads[name] - plain_grads[name]).norm().item() / max(norm, floor)
                    for name, norm in norms.items()}
    name = max(of_gradients, key=of_gradients.get)
    return max(abs(terms[term] / plain_terms[term] - 1) for term in terms), of_gradients[name], name


def same_step(trainer: Trainer, plain: PlainSchedule, batch: dict) -> tuple[float, float, str]:
    """Return the `differences`; larger ones than rounding are a SystemExit."""
    of_losses, of_gradients, name = differences(trainer, plain, batch)
    if not (of_losses < 1e-5 and of_gradients < 1e-3):
        raise SystemExit(f"the two sides don't compute the same step: losses differ by {of_losses:.1e}, "
                         f"gradients of {name} by {of_gradients:.1e}")
    return of_losses, of_gradients, name


def clock(function) -> tuple[float, float]:
    """Measure the wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def status(field: str) -> float:
    """Read this process's memory in MiB: VmRSS is now, VmHWM its peak."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def memory(side: str, clips: int) -> None:
    """Print the MiB before a step, at its peak, and of gradients; in a process of its own.

    Weights and AdamW's moments exist before the step.
    """
    trainer = Trainer(configured(), torch.device("cpu"))
    stepper = PlainSchedule(trainer.model, trainer.config) if side == "plain" else keep(trainer, side == "kept")
    batch = synthetic_batch(clips, trainer.model.config)
    stepper.optimizer.zero_grad(set_to_none=True)
    for parameter in trainer.model.parameters():  # the moments, without the cost of a step
        stepper.optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": torch.ones_like(parameter) * 0,
                                              "exp_avg_sq": torch.ones_like(parameter) * 0}
    gc.collect()
    rest = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts again from VmRSS
    stepper.steps_on(batch)
    gradients = sum(p.numel() * p.element_size() for p in trainer.model.parameters()) / 2**20
    print(rest, status("VmHWM"), gradients)


def measured_memory(side: str, clips: int) -> list[float]:
    """Run `memory` in a process; return what it prints."""
    # Large blocks are mapped, and given back when they are freed: the allocator's fragmentation must not count
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, __file__, str(clips), "1", side], env=environment, check=True,
                          stdout=subprocess.PIPE, text=True)
    return [float(value) for value in done.stdout.split()]


def shares(step) -> dict[str, float]:
    """Measure the seconds of one step in linear layers, attention, optimizer and the rest.

    Operators are told apart by their names and shapes.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        step()
    seconds = dict.fromkeys(("linear layers", "attention", "optimizer", "the rest"), 0.0)
    events = profile.key_averages(group_by_input_shape=True)
    for event in events:
        # einsum computes a linear layer as a batch of one
        batched = "bmm" in event.key and event.input_shapes[0][0] > 1
        if event.key.startswith("Optimizer.step"):
            seconds["optimizer"] += event.cpu_time_total / 1e6
        elif batched or "softmax" in event.key or "scaled_dot_product" in event.key:
            seconds["attention"] += event.self_cpu_time_total / 1e6
        elif any(name in event.key for name in ("bmm", "::mm", "addmm", "_linear_pointwise", "convolution")):
            seconds["linear layers"] += event.self_cpu_time_total / 1e6
    seconds["the rest"] = sum(event.self_cpu_time_total for event in events) / 1e6 - sum(seconds.values())
    return seconds


def keep(trainer: Trainer, kept: bool) -> Trainer:
    """Return the same trainer, with activations kept or recomputed."""
    trainer.model.compute_as(dataclasses.replace(trainer.model.config, checkpointing="none" if kept else "full"))
    return trainer


def row(name: str, plain: float, recomputed: float, kept: float, faster: bool = False) -> None:
    ratios = [plain / ours if faster else ours / plain for ours in (recomputed, kept)]
    print(f"{name:36} {plain:9.1f} {recomputed:9.1f} {ratios[0]:5.2f} x {kept:9.1f} {ratios[1]:5.2f} x", flush=True)


def compare_time(clips: int, turns: int) -> None:
    trainer = Trainer(configured(), torch.device("cpu"))
    plain, batch = PlainSchedule(trainer.model, trainer.config), synthetic_batch(clips, trainer.model.config)
    of_losses, of_gradients, worst = same_step(trainer, plain, batch)
    plain.optimizer.state = trainer.optimizer.state  # one set of moments for all
    trainer.steps_on(batch)
    steps = {"plain": lambda: plain.steps_on(batch), "recomputed": lambda: keep(trainer, False).steps_on(batch),
             "kept": lambda: keep(trainer, True).steps_on(batch)}
    # (turns, sides, wall and CPU)
    seconds = np.array([[clock(step) for step in steps.values()] for _ in range(turns)])
    for kind, name in enumerate(("seconds a step, wall", "seconds a step, CPU time")):
        ratios = np.median(seconds[:, :1, kind] / seconds[:, :, kind], axis=0)
        middle = np.median(seconds[:, 0, kind])
        row(name, middle, *middle / ratios[1:], faster=True)
    profiled = {name: shares(step) for name, step in steps.items()}
    for name in profiled["plain"]:
        row("  of one, profiled: " + name, *(profiled[side][name] for side in steps), faster=True)
    print(f"largest relative difference of the first step: losses {of_losses:.1e}, "
          f"gradients {of_gradients:.1e} ({worst})")


def compare_memory(clips: int) -> None:
    measured = np.array([measured_memory(side, clips) for side in SIDES])  # (sides, [rest, peak, gradients])
    rest, peak, gradients = measured.T
    row("MiB at the peak of a step", *peak)
    row("  above weights and moments", *(peak - rest))
    row("  above weights, moments, gradients", *(peak - rest - gradients))


if __name__ == "__main__":
    torch.set_num_threads(2)
    clips, turns, *side = int((sys.argv[1:] or [4])[0]), int((sys.argv[2:] or [3])[0]), *sys.argv[3:]
    if side:
        memory(*side, clips)
    else:
        print(f"CPU, 2 threads, torch {torch.__version__}, float32, {clips} clips of 4 frames "
              "(scene-aware negatives included)")
        print(f"{'':36} {'plain':>9} {'egokit, recomputed':>17} {'egokit, kept':>17}", flush=True)
        compare_memory(clips)
        compare_time(clips, turns)

# Printed on a machine of 2 cores (AMD EPYC) that others used, too: CPU time is the figure to read. One turn.
#
# CPU, 2 threads, torch 2.15.0+cu132, float32, 4 clips of 4 frames (scene-aware negatives included)
#                                          plain egokit, recomputed      egokit, kept
# MiB at the peak of a step               7054.5    6715.2  0.95 x   13682.7  1.94 x
#   above weights and moments             1944.3    1604.9  0.83 x    8572.6  4.41 x
#   above weights, moments, gradients      488.6     149.2  0.31 x    7116.8 14.57 x
# seconds a step, wall                      89.8      24.4  3.68 x      36.5  2.46 x
# seconds a step, CPU time                 105.5      43.6  2.42 x      43.9  2.40 x
#   of one, profiled: linear layers         65.5      18.6  3.53 x      18.9  3.46 x
#   of one, profiled: attention              7.3       2.8  2.59 x       2.8  2.62 x
#   of one, profiled: optimizer              1.6       0.2  7.51 x       0.2  7.66 x
#   of one, profiled: the rest              11.2       6.4  1.76 x       6.1  1.83 x
# largest relative difference of the first step: losses 1.8e-07, gradients 6.4e-05 (text_projection.4.bias)
#
# Weights, gradients and moments are 5823 MiB on either side: no schedule can do anything about those.
# Before linear layers trained by oneDNN, and the word embedding's gradient was made dense once a step:
#   1.28 x in CPU time at 0.61 x the memory above weights, moments and gradients (484 and 297 MiB, an idle machine).
# What oneDNN gives, in CPU seconds of one other run: plain 110.6; egokit without it 78.3, with it 45.9. It multiplies
#   at 200 to 240 GFLOP/s a core, MKL at 110 here, in all three products of a layer.
# 2 of 12 blocks, recomputed: float32 5.0, bfloat16 3.4; as much if 2 or 4 clips are recomputed at once.
