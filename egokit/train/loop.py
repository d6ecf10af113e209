"""THE loop: any task, any number of processes, mixed precision, checkpoints, resumption.

A run resumed from its newest checkpoint gives what an uninterrupted one gives: sample order and augmentation come from
(seed, epoch, index), dropout from (seed, step, rank), and the log is cut back to the checkpoint. Processes are started
by launch.py.
"""
from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator

import torch

from egokit.config.schema import Config
from egokit.data.loader import loader, move, steps_in_epoch, training_batches
from egokit.model import checkpoints, weights
from egokit.model.precision import deterministic
from egokit.model.text_encoder import load_tokenizer
from egokit.runs.run_folder import Run
from egokit.train import distributed, optim
from egokit.train.batch_plan import what_would_fit
from egokit.train.evaluate import evaluate
from egokit.train.preemption import StopSignal
from egokit.train.step import Objective

KEEP = 2  # step checkpoints on disk


class TrainingError(RuntimeError):
    """Training can't go on; the message says at which step and why."""


def initial_model(config: Config, frames: int | None = None):
    """The model that training (or an evaluation) starts from: the checkpoint `init`, or fresh weights.

    frames: capacity of the temporal embedding, if not model.frames; a checkpoint's is resized to it.
    """
    tokenizer = load_tokenizer(config.site.tokenizer)
    if config.init:
        model = weights.load(config.init, frames=frames or config.model.frames, tokenizer=config.site.tokenizer)
        if model.config.image_size != config.model.image_size:
            raise ValueError(f"{config.init} takes frames of {model.config.image_size} px, but model.image_size is "
                             f"{config.model.image_size}: set it to {model.config.image_size}")
        model.config = dataclasses.replace(model.config, checkpointing=config.model.checkpointing)
        model.video.config = model.text.config = model.config
        return model
    shape = config.model if config.model.vocabulary else dataclasses.replace(config.model, vocabulary=tokenizer.vocabulary)
    return weights.initialise(shape, config.site.tokenizer, config.seed, config.site.vit, config.site.roberta)


class Trainer:
    def __init__(self, config: Config, task, run: Run, section: str, device: torch.device):
        self.config, self.task, self.run, self.section, self.device = config, task, run, section, device
        task.fixed_length = device.type == "cuda"
        self.validation = task.validation()
        self.dataset = task.dataset("train")
        self.dataset.tolerant = config.data.max_bad_fraction > 0
        self.model = initial_model(config).to(device)
        self.objective = Objective(config, self.model, task)
        self.optimizer = optim.optimizer(self.model, config.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        self.stop = StopSignal()
        self.step, self.validated, self.best, self.skipped = 0, -1, None, 0
        self.bad, self.bad_in_epoch, self.unreported = 0, 0, []  # samples that could not be read
        self.steps_per_epoch = steps_in_epoch(len(self.dataset), config.train.batch_size, distributed.world_size())
        self.steps = self.steps_per_epoch * config.train.epochs
        if not self.steps_per_epoch:
            raise TrainingError(f"{len(self.dataset)} training samples: too few for {distributed.world_size()} processes")

    def batches(self, step: int) -> Iterator[list]:
        """This rank's batches from a step on, through all epochs."""
        for epoch in range(step // self.steps_per_epoch, self.config.train.epochs):
            yield from training_batches(len(self.dataset), self.config.train.batch_size, epoch, self.config.seed,
                                        distributed.rank(), distributed.world_size(), first=max(0, step - epoch * self.steps_per_epoch))

    # checkpoints
    def content(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "step": self.step,
                "validated": self.validated, "best": self.best, "skipped": self.skipped, "bad": self.bad, "bad_in_epoch": self.bad_in_epoch,
                "world_size": distributed.world_size(), "seconds": time.perf_counter() - self.began,
                "recipe": {"task": self.config.task, "steps": self.steps, "batch_size": self.config.train.batch_size}}

    def save(self) -> None:
        self.report_bad()
        if distributed.rank() == 0:
            self.run.check_owner()
            weights.save(self.model, self.run.checkpoints / f"step-{self.step:07d}.pt", **self.content())
            for old in sorted(self.run.checkpoints.glob("step-*.pt"))[:-KEEP]:
                old.unlink()
        distributed.barrier()

    def resume(self) -> None:
        path = checkpoints.latest(self.run.checkpoints)
        if distributed.rank() == 0:
            for part in self.run.checkpoints.glob(".*.part.pt"):  # a kill in the middle of a write
                part.unlink()
        if path is None:
            self.truncate_log()
            return
        saved = checkpoints.read(path)
        recipe = self.content()["recipe"]
        if saved["recipe"] != recipe:
            raise TrainingError(f"{path} belongs to another recipe ({saved['recipe']}, now {recipe}): "
                                "choose another run name, or delete the run's folder to start again")
        weights.check(self.model, saved["state_dict"], [], path)
        self.model.load_state_dict(saved["state_dict"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step, self.best, self.skipped = saved["step"], saved["best"], saved["skipped"]
        self.validated = saved["validated"]
        self.bad, self.bad_in_epoch = saved.get("bad", 0), saved.get("bad_in_epoch", 0)
        self.began -= saved.get("seconds", 0)  # of all starts together
        self.truncate_log()

    def truncate_log(self) -> None:
        """Drop what was logged after the checkpoint: it comes again."""
        if distributed.rank() == 0:
            self.run.truncate_log(lambda event: event["step"] <= (self.validated if event["kind"] == "validation" else self.step))

    # the loop
    def fit(self) -> dict[str, float]:
        """Train to the end and return the best validation metrics with what training cost."""
        self.began = time.perf_counter()
        self.resume()
        self.log_plan()
        data = self.config.data
        batches = loader(self.dataset, self.batches(self.step), self.task.collate, data.workers, data.read_timeout)
        while True:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            if first == 0 and self.validated < self.step and (epoch % self.config.train.evaluate_epochs == 0 or self.step == self.steps):
                self.validate()
                self.save()
            if self.step == self.steps:
                break
            if first == 0:
                self.bad_in_epoch = 0
            with self.stop.held():
                self.epoch(epoch, itertools.islice(batches, self.steps_per_epoch - first))
                self.save()
        return self.best["metrics"] | {"step": self.best["step"], "steps": self.steps, "skipped_steps": self.skipped,
                                       "bad_samples": self.bad, "evaluation_seconds": self.best["metrics"]["seconds"],
                                       "seconds": time.perf_counter() - self.began}

    def log_plan(self) -> None:
        """How the batch is spread, in log.jsonl when it is another than before."""
        if distributed.rank() == 0:
            plan = self.objective.plan
            told = [event["plan"] for event in self.run.read_log() if event["kind"] == "plan"]
            if told[-1:] != [str(plan)]:
                self.run.log({"kind": "plan", "step": self.step, "plan": str(plan), "micro_batches": plan.micro_batches,
                              **dataclasses.asdict(plan)})

    def report_bad(self) -> None:
        """Log what could not be read since the last report, on any rank; stop at more than an epoch's bounded share."""
        if not self.dataset.tolerant:
            return
        said = [one for part in distributed.gather_objects(self.unreported) for one in part]
        self.unreported = []
        self.bad += len(said)
        self.bad_in_epoch += len(said)
        for one in said if distributed.rank() == 0 else []:
            self.run.log({"kind": "bad", "step": self.step, "said": one})
        share, most = self.bad_in_epoch / len(self.dataset), self.config.data.max_bad_fraction
        if share > most:
            raise TrainingError(f"step {self.step}: {self.bad_in_epoch} of this epoch's {len(self.dataset)} samples could not be "
                                f"read, more than data.max_bad_fraction={most}; log.jsonl lists them (kind \"bad\"), "
                                f"the last one: {said[-1] if said else 'before this start'}")

    def epoch(self, epoch: int, batches: Iterable[dict]) -> None:
        waiting = time.perf_counter()
        window = collections.defaultdict(float)
        in_a_row = 0
        for batch in batches:
            got = time.perf_counter()
            self.unreported += batch.pop("bad", [])
            batch = move(batch, self.device)
            self.model.train()
            stop = self.stop.ask()
            rate = optim.learning_rate(self.step, self.steps, self.steps_per_epoch, self.config.optim)
            try:
                self.objective.settle(batch, self.step, self.scaler)
                torch.manual_seed(hash((self.config.seed, self.step, distributed.rank())) % 2**63)
                terms = self.objective.gradient(batch, self.step, self.scaler)
                norm = self.update(rate)
            except torch.cuda.OutOfMemoryError as error:
                raise TrainingError(f"step {self.step + 1}: out of GPU memory. {what_would_fit(self.config, distributed.world_size())}") from error
            self.step += 1
            in_a_row = 0 if math.isfinite(norm) else in_a_row + 1
            self.skipped += not math.isfinite(norm)
            if in_a_row >= self.config.train.nonfinite_limit:
                raise TrainingError(f"step {self.step}: {in_a_row} steps in a row had NaN or Inf gradients; terms "
                                    f"{ {k: round(v.item(), 4) for k, v in terms.items()} }; samples of this rank "
                                    f"{next(self.batches(self.step - 1))[:8]}; lower optim.lr")
            now = time.perf_counter()
            for key, value in (("data_s", got - waiting), ("step_s", now - waiting), ("n", 1),
                               ("clips", len(batch["video"]) * distributed.world_size())):
                window[key] += value
            waiting = now
            if self.step % self.config.train.log_steps == 0 or self.step == self.steps:
                self.log(epoch, terms, rate, norm, window)
                window.clear()
            told = stop()
            if told or (self.step % self.config.train.checkpoint_steps == 0 and self.step % self.steps_per_epoch):
                self.save()
            if told:
                self.stop.obey()

    def update(self, rate: float) -> float:
        """One optimizer step at `rate`; returns the gradient's norm. A step with NaN or Inf is left out."""
        self.scaler.unscale_(self.optimizer)
        norm = optim.clip(self.model, self.config.optim.clip_grad_norm).item()  # waits for the GPU: is this step to be skipped?
        optim.set_rate(self.optimizer, rate)
        if self.scaler.is_enabled() or math.isfinite(norm):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def log(self, epoch: int, terms: dict, rate: float, norm: float, window: dict) -> None:
        self.report_bad()
        values = distributed.mean(torch.stack([*terms.values()]).float())
        if distributed.rank() == 0:
            step_s = window["step_s"] / window["n"]
            self.run.log({"kind": "step", "step": self.step, "steps": self.steps, "epoch": epoch + 1,
                          "loss": values.sum().item(), **dict(zip(terms, values.tolist(), strict=True)), "lr": rate,
                          "lr_heads": rate * self.config.optim.heads_multiplier,
                          "grad_norm": norm, "scale": self.scaler.get_scale(), "skipped": self.skipped, "bad": self.bad,
                          "data_s": window["data_s"] / window["n"], "step_s": step_s,
                          "clips_per_s": window["clips"] / window["step_s"], "eta_s": (self.steps - self.step) * step_s,
                          **({"memory_gib": torch.cuda.max_memory_allocated() / 2**30} if self.device.type == "cuda" else {})})

    def validate(self) -> None:
        metrics, rows, prompts_KE = evaluate(self.model, self.validation)
        score, self.validated = metrics[self.validation.best], self.step
        before = self.best["metrics"][self.validation.best] if self.best else math.nan
        # nothing compares with NaN: it replaces no number, and any replaces it; while there is none, the newest model is kept
        better = not math.isfinite(before) or (math.isfinite(score) and (self.best["step"] == 0 or score > before))
        if better:
            self.best = {"step": self.step, "metrics": metrics}
        if distributed.rank() == 0:
            self.run.log({"kind": "validation", "step": self.step, "steps": self.steps,
                          "epoch": self.step // self.steps_per_epoch, "best": better, **metrics,
                          "predictions": self.validation.predictions(rows, prompts_KE)})
            if better:
                weights.save(self.model, self.run.checkpoints / "best.pt", step=self.step, metrics=metrics)
                self.validation.keep(self.run, self.section, rows, prompts_KE)
        distributed.barrier()


def train(config: Config, task, run: Run, section: str, device: torch.device) -> dict[str, float]:
    """Train `task` in the run folder, from its newest checkpoint if there is one; returns the best metrics."""
    if config.train.precision == "fp16" and device.type == "cpu":
        raise TrainingError("train.precision is fp16, but this process sees no GPU: give it one, or set train.precision=bf16")
    run.checkpoints.mkdir(exist_ok=True)
    with deterministic(config.train.deterministic):
        return Trainer(config, task, run, section, device).fit()
