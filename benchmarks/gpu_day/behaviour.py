"""Stages that check what a GPU computes: against the CPU, the plain equations, itself.

    python -m gpu_day.behaviour STAGE      STAGE: toy deterministic job nccl twin

They measure no time that counts, so the runner starts several at once.
"""
from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import statistics
import unittest.mock
from pathlib import Path

import torch
import train_step
from gpu_day.common import (
    DATA,
    DEVICE,
    HALF,
    REHEARSAL,
    ROOT,
    SCRATCH,
    SHAPE,
    check,
    forget,
    note,
    run,
    stage_name,
)
from torch import Tensor

from egokit import tasks
from egokit.config.resolve import resolve
from egokit.config.schema import Config, LaunchConfig
from egokit.data.loader import move_to_device
from egokit.model import checkpoints
from egokit.model.precision import float32_products
from egokit.runs.run_folder import Run
from egokit.train import distributed, loop

# a checkpoint after each of four epochs, of one step in a rehearsal and of three on a GPU
FEW_STEPS = ("site.toy=false launch.tasks_per_node=1 train.log_steps=1 train.batch_size=8 train.epochs=4 "
             f"train.evaluate_epochs=4 data.limit={8 if REHEARSAL else 24} init= ")
STEPS, KILLED_AT = (4, 2) if REHEARSAL else (12, 6)
if REHEARSAL:
    FEW_STEPS += "model.width=32 model.heads=2 model.depth=2 model.num_fused_layers=1 model.projection=linear16 "


# training on real files

def project() -> Path:
    """Make a project folder for this stage, with the data of prepare.sh, and use it."""
    folder = SCRATCH / stage_name()
    shutil.copytree(ROOT / "params", folder / "params")
    shutil.copytree(DATA, folder / "outputs/toy")
    os.environ["EGOKIT_HOME"] = str(folder)
    os.environ.pop("EGOKIT_OUTPUTS", None)
    return folder


class Dies(loop.Trainer):
    """A trainer whose process is killed as soon as a checkpoint in mid-run is on disk."""

    def save(self) -> None:
        super().save()
        if self.step == KILLED_AT:
            raise KeyboardInterrupt


def trained(name: str, overrides: str, device: torch.device,
            dies: bool = False) -> tuple[list[dict], dict[str, Tensor]]:
    """Pre-train for a few steps on the tiny data set.

    Args:
        name: of the run.
        dies: kill the run half-way and resume it.

    Returns:
        The log's steps and the final weights.
    """
    config = resolve("toy/pretrain", "toy", f"{FEW_STEPS} {overrides}")
    folder = Run(SCRATCH / stage_name() / "outputs/gpu_day" / name)
    for trainer in (Dies, loop.Trainer) if dies else (loop.Trainer,):
        with contextlib.suppress(KeyboardInterrupt), unittest.mock.patch.object(loop, "Trainer", trainer):
            loop.train(config, tasks.make(config), folder, "pretrain", device)
    steps = [event for event in folder.read_log() if event["kind"] == "step"]
    return steps, checkpoints.read(checkpoints.latest(folder.checkpoints))["state_dict"]


def toy() -> None:
    """Compare training on real files with the CPU's, and a run with itself, also resumed.

    The CPU computes in float32.
    """
    project()
    cpu = trained("cpu", "train.precision=fp32", torch.device("cpu"))[0]
    for precision in ("bf16",) if REHEARSAL else ("fp32", "fp16", "bf16"):
        steps = trained(precision, f"train.precision={precision}", DEVICE)[0]
        first, last = (abs(steps[index]["loss"] / cpu[index]["loss"] - 1) for index in (0, -1))
        check("Toy training against the CPU's float32", first < (1e-3 if precision == "fp32" else 0.02) and last < 0.1,
              precision=precision, first_loss_differs_by=first, last_loss_differs_by=last, last_loss=steps[-1]["loss"],
              skipped=steps[-1]["skipped"], scale=steps[-1]["scale"],
              step_ms=1e3 * statistics.median(step["step_s"] for step in steps[2:]))
    same_again("", expected=REHEARSAL)


def deterministic() -> None:
    """Compare a run with itself under train.deterministic.

    It is a process of its own because cuBLAS reads the size of its workspace once.
    """
    project()
    same_again("train.deterministic=true", expected=True)


def same_again(overrides: str, expected: bool) -> None:
    """Compare a run with the same one again, and with one that was killed and resumed.

    Args:
        expected: whether the weights have to be the same to the bit.
    """
    options = f"train.precision={HALF} model.dropout=0.1 data.workers=2 {overrides}"
    steps, weights = trained("once", options, DEVICE)
    for what, dies in (("the same run again", False), (f"killed and resumed at step {KILLED_AT} of {STEPS}", True)):
        steps_again, weights_again = trained("resumed" if dies else "again", options, DEVICE, dies)
        differ = max((weights[key].float() - weights_again[key].float()).abs().max().item() for key in weights)
        losses = [step["loss"] for step in steps] == [step["loss"] for step in steps_again]
        check("A run against itself", len(steps_again) == STEPS and (not expected or (differ == 0 and losses)),
              deterministic=stage_name() == "deterministic", run=what, weights_differ_by=differ, same_losses=losses)


# jobs

def sees() -> dict:
    """Look which GPUs this process sees.

    It also runs in jobs, which cannot import this folder.
    """
    import os

    import torch
    return {"variable": os.environ.get("CUDA_VISIBLE_DEVICES", "unset"), "cuda": torch.cuda.is_available(),
            "uuids": [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]}


def job() -> None:
    """Check which GPUs local jobs see, and that a training and an evaluation use them."""
    import egokit
    from egokit.jobs.worker import executor
    folder = project()
    caller = sees()
    note("What a local job sees", job="the caller", **caller)
    jobs = {gpus: executor(LaunchConfig(gpus_per_task=gpus), folder / f"sees-{gpus}", "sees").submit(sees)
            for gpus in (1, 0)}
    for gpus, submitted in jobs.items():
        seen = submitted.result()
        right = seen["uuids"] == (caller["uuids"] if gpus else [])
        right &= seen["variable"] == (caller["variable"] if gpus else "")
        check("What a local job sees", right, job=f"launch.gpus_per_task={gpus}", **seen)

    local = f"launch.gpus_per_task={0 if REHEARSAL else 1} launch.timeout_minutes=3 data.workers=1"
    training = resolve("toy/pretrain", "toy", f"{FEW_STEPS} train.epochs=1 train.precision={HALF} {local}")
    answers = Run(folder / "outputs/gpu_day/job")
    section(egokit, training, answers, "train", "pretrain")
    evaluation = resolve("toy/egomcq", "toy", f"site.toy=false launch.tasks_per_node=1 init={answers.path} "
                                              f"evaluate.precision={HALF} {local}")
    section(egokit, evaluation, answers, "evaluate", "egomcq")


def section(egokit, config: Config, folder: Run, action: str, name: str) -> None:
    """Submit a job as a notebook does, wait for it, and check the devices in metrics.json."""
    handle = egokit.submit(config, folder, action, name)
    try:
        metrics = handle.wait(progress=False)
    finally:  # a job lives on when this process is stopped
        if handle.alive():
            handle.cancel()
    devices = metrics["devices"]
    check("Real local jobs", all(device.startswith("CPU") == REHEARSAL for device in devices), job=f"{action} {name}",
          devices=devices, seconds=metrics["seconds"], ensemble_inter=metrics.get("ensemble_inter"))


# collectives

def gradient(micro_batch: int) -> tuple[list[float], str]:
    """Compute the gradient of 4 samples in bf16.

    Returns:
        The loss's terms followed by the gradient's norm, and the class that computed the loss.
    """
    config = train_step.configured("bf16", **SHAPE | {"checkpointing": "full"})
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=micro_batch, batch_size=4))
    objective = train_step.Trainer(config, DEVICE).objective
    torch.manual_seed(5)
    batch = move_to_device(train_step.synthetic_batch(8, objective.model.config), DEVICE)
    terms = objective.gradient(batch, 0, torch.amp.GradScaler(DEVICE.type, enabled=False))
    grads = [parameter.grad for parameter in objective.model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads).item()
    return [*(term.item() for term in terms.values()), norm], type(objective.loss).__name__


def nccl() -> None:
    """Check that a group of one changes no gradient, by DDP and in micro-batches.

    All collectives run.
    """
    reference = None
    for kind in ("alone", "DDP", "micro-batches"):
        if kind == "DDP":  # as distributed.joined does, which makes no group of one
            torch.distributed.init_process_group("gloo" if REHEARSAL else "nccl", store=torch.distributed.HashStore(),
                                                 rank=0, world_size=1, device_id=None if REHEARSAL else DEVICE)
            distributed._uneven_group = torch.distributed.new_group(backend="gloo")
        values, module = gradient(2 if kind == "micro-batches" else 0)
        reference = reference or values
        differ = max(abs(value / expected - 1) for value, expected in zip(values, reference, strict=True))
        objects, stop = distributed.gather_objects({"rank": 0}), distributed.start_any(True)()
        distributed.barrier()
        check("A group of one", differ < 0.02 and objects == [{"rank": 0}] and stop, kind=kind, module=module,
              norm=values[-1], differs_by=differ)
        forget()
    torch.distributed.destroy_process_group()


# the plain equations

def twin() -> None:
    """Compare the base model's step with the plain equations in float32.

    In TF32 the difference is only noted.
    """
    for allowed in (False, True):
        with float32_products(DEVICE, tf32=allowed):
            trainer = train_step.Trainer(train_step.configured(**SHAPE | {"checkpointing": "none"}), DEVICE)
            plain = train_step.PlainSchedule(trainer.model, trainer.config)
            batch = move_to_device(train_step.synthetic_batch(4, trainer.model.config), DEVICE)
            of_losses, of_gradients, name = train_step.differences(trainer, plain, batch)
        check("The step against the plain equations", allowed or (of_losses < 1e-5 and of_gradients < 1e-3),
              products="TF32" if allowed else "float32", losses_differ_by=of_losses, gradients_differ_by=of_gradients,
              most_in=name)
        del trainer, plain, batch
        forget()


if __name__ == "__main__":
    run(toy, deterministic, job, nccl, twin)
