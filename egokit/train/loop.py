"""The one training loop, for any task and any number of processes.

A run that is resumed from its newest checkpoint gives what an uninterrupted run gives: sample order and augmentation
depend on (seed, epoch, index), dropout on (seed, step, rank), and the log is cut back to the checkpoint. Mixed
precision is autocast's (step.py) and GradScaler's. egokit/jobs/launch.py starts the processes.
"""
import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator

import torch

from egokit.config.schema import Config
from egokit.data.loader import build_loader, move_to_device, steps_in_epoch, training_batches
from egokit.model import checkpoints, weights
from egokit.model.own_modules import attach
from egokit.model.precision import deterministic
from egokit.runs.run_folder import Run
from egokit.train import distributed, memory_plan, nodes, optim, timing, training_state
from egokit.train.checkpoint_writer import CheckpointWriter
from egokit.train.evaluate import evaluate, score_held_out
from egokit.train.preemption import StopSignal
from egokit.train.step import Objective
from egokit.train.training_state import TrainingError
from egokit.train.usage import Usage, of_node
from egokit.train.weight_average import WeightAverage

BEST_OF = "{}_of_best_validation"  # name of the best validation's metric, beside the last one's
KEPT_CHECKPOINTS = 2  # of steps, on disk


class Trainer:
    """One rank's training: model, optimizer, data and progress; `fit` runs it.

    Attributes:
        step: optimizer steps done.
        validated: the step of the newest validation, -1 before the first.
        best: {"step", "metrics"} of the best validation so far.
        skipped: steps left out because of NaN or Inf gradients.
        bad, bad_in_epoch: samples that could not be read and have been logged, in all and of this epoch.
        unreported: messages of this rank's bad samples that are not logged yet.
    """

    def __init__(self, config: Config, task, run: Run, section: str, device: torch.device):
        self.config, self.task, self.run, self.section, self.device = config, task, run, section, device
        task.fixed_length = device.type == "cuda"
        self.validation = task.validation()
        self.dataset = task.dataset("train")
        nodes.once(self.dataset.check_files)
        self.dataset.tolerant = config.data.max_bad_fraction > 0
        with checkpoints.read_by(nodes.once_a_node):
            self.model = task.initial_model("train").to(device)
        attach(self.model, task)
        self.objective = Objective(config, self.model, task)
        self.optimizer = optim.optimizer(self.model, config.optim)
        self.average = WeightAverage(self.model, config.train.ema_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        self.writer = CheckpointWriter(lambda: self.run.check_owner())
        self.stop, self.clock, self.usage = StopSignal(), self.objective.clock, Usage(device)
        self.step, self.validated, self.best, self.skipped = 0, -1, None, 0
        self.bad, self.bad_in_epoch, self.unreported = 0, 0, []
        self.steps_per_epoch = steps_in_epoch(len(self.dataset), config.train.batch_size, distributed.world_size())
        self.steps = self.steps_per_epoch * config.train.epochs
        if not self.steps_per_epoch:
            raise TrainingError(f"{len(self.dataset)} training samples are too few for the processes: use fewer")

    def batches(self, step: int) -> Iterator[list]:
        """Yield this rank's batches, lists of (epoch, index), from a step on through all epochs."""
        for epoch in range(step // self.steps_per_epoch, self.config.train.epochs):
            first = max(0, step - epoch * self.steps_per_epoch)
            yield from training_batches(len(self.dataset), self.config.train.batch_size, epoch, self.config.seed,
                                        distributed.rank(), distributed.world_size(), first)

    def save(self) -> None:
        """Copy this step's checkpoint; a thread of rank 0 writes it, and then deletes older ones."""
        self.report_bad()
        if distributed.rank() == 0:
            path = self.run.checkpoints / f"step-{self.step:07d}.pt"
            self.writer.write(path, weights.content_of(self.model, path, **training_state.content(self)), "step",
                              self.delete_old)
        distributed.barrier()  # others would else wait in collectives, which have a time limit

    def delete_old(self) -> None:
        """Delete checkpoints of steps that are older than those to be kept."""
        for old in checkpoints.of_steps(self.run.checkpoints)[KEPT_CHECKPOINTS:]:
            old.unlink()

    def finish_writing(self) -> None:
        """Wait on all ranks until rank 0 has written all checkpoints."""
        self.writer.finish()
        distributed.barrier()

    def fit(self) -> dict[str, float]:
        """Train to the end; return the best validation's metrics and what all starts cost."""
        self.began = time.perf_counter()
        with self.writer, self.stop.after(self.writer.wait):
            training_state.resume(self)
            self.log_plan()
            self.log_machine()
            self.epochs()
            self.finish_writing()
        result = score_held_out(self.model, self.task, self.run, self.section, self.best["metrics"])
        return result | {"step": self.best["step"], "steps": self.steps, "skipped_steps": self.skipped,
                         "bad_samples": self.bad, "evaluation_seconds": self.best["metrics"]["seconds"],
                         "seconds": time.perf_counter() - self.began}

    def loader(self) -> Iterator[dict]:
        """Return this rank's batches from the present step on, collated."""
        data = self.config.data
        if self.task.encodes("train") and data.workers:
            _ = self.task.tokenizer  # loaded once, before the loader's workers are forked
        return build_loader(self.dataset, self.batches(self.step), self.task.collate, data.workers, data.read_timeout)

    def epochs(self) -> None:
        """Train on the epochs that are left, with the validations between them."""
        batches = self.loader()
        while True:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            due = epoch % self.config.train.evaluate_epochs == 0 or self.step == self.steps
            if first == 0 and self.validated < self.step and due:
                with self.average.in_place():
                    self.validate()
                self.save()
            if self.step == self.steps:
                break
            if first == 0:
                self.bad_in_epoch = 0
            with self.stop.deferred(), self.clock.running():
                self.epoch(epoch, itertools.islice(batches, self.steps_per_epoch - first))
                self.save()

    def log_plan(self) -> None:
        """Log how the batch is spread, if that differs from the log's last entry."""
        if distributed.rank() == 0:
            plan = self.objective.plan
            needs = memory_plan.told(self.config, self.task, plan, self.model)
            needs |= memory_plan.told_copies(self.model, bool(self.average.trained))
            logged = [event["plan"] for event in self.run.read_log() if event["kind"] == "plan"]
            if logged[-1:] != [str(plan)]:
                self.run.log({"kind": "plan", "step": self.step, "plan": str(plan), "micro_batches": plan.micro_batches,
                              **dataclasses.asdict(plan), **needs})

    def log_machine(self) -> None:
        """Log what this start computes on and with, if that differs from the log's last entry."""
        config, on_gpu = self.config, self.device.type == "cuda"
        event = {"kind": "machine", "device": self.device.type, "cores": self.usage.cores, "workers":
                 config.data.workers, "ranks_on_node": config.launch.tasks_per_node, "nodes": config.launch.nodes,
                 "precision": config.train.precision, "compile": config.train.compile,
                 **({"gpu": torch.cuda.get_device_name(self.device)} if on_gpu else {})}
        self.usage.take()  # the first sample begins here
        if distributed.rank() == 0:
            earlier = [event for event in self.run.read_log() if event["kind"] == "machine"]
            if not earlier or any(earlier[-1].get(name) != value for name, value in event.items()):
                self.run.log(event | {"step": self.step})

    def report_bad(self) -> None:
        """Log what no rank could read since the last report; too much of it is an error."""
        if not self.dataset.tolerant:
            return
        messages = [message for part in distributed.gather_objects(self.unreported) for message in part]
        self.unreported = []
        self.bad += len(messages)
        self.bad_in_epoch += len(messages)
        for message in messages if distributed.rank() == 0 else []:
            self.run.log({"kind": "bad", "step": self.step, "said": message})
        limit = self.config.data.max_bad_fraction
        if self.bad_in_epoch / len(self.dataset) > limit:
            raise TrainingError(f"step {self.step}: {self.bad_in_epoch} of this epoch's {len(self.dataset)} samples "
                                f"could not be read, more than data.max_bad_fraction={limit}; log.jsonl lists them "
                                f"(kind \"bad\"), the last one: {messages[-1] if messages else 'before this start'}")

    def epoch(self, epoch: int, batches: Iterable[dict]) -> None:
        """Train on the batches left of an epoch; end the process after a stop signal."""
        previous, waited = time.perf_counter(), self.writer.waited
        window = collections.Counter()  # sums since the last logged step
        nonfinite_in_a_row = 0
        for batch in batches:
            arrived = time.perf_counter()
            self.writer.raise_error()
            self.unreported += batch.pop("bad", [])
            batch = move_to_device(batch, self.device)
            self.objective.training_mode()
            stop_requested = self.stop.ask_ranks()
            rate = optim.learning_rate(self.step, self.steps, self.steps_per_epoch, self.config.optim,
                                       self.objective.plan.peak_lr)
            try:
                self.objective.warm_up_ddp(batch, self.step, self.scaler)
                torch.manual_seed(hash((self.config.seed, self.step, distributed.rank())) % 2**63)
                terms = self.objective.gradient(batch, self.step, self.scaler)
                with self.clock.phase("update"):
                    norm = self.update(rate)
            except torch.cuda.OutOfMemoryError as error:
                advice = memory_plan.what_would_fit(self.config, distributed.world_size(), self.task, self.model)
                raise TrainingError(f"step {self.step + 1}: out of GPU memory. {advice}") from error
            self.step += 1
            self.average.update(self.step)
            self.clock.end_step()
            nonfinite_in_a_row = 0 if math.isfinite(norm) else nonfinite_in_a_row + 1
            self.skipped += not math.isfinite(norm)
            if nonfinite_in_a_row >= self.config.train.nonfinite_limit:
                values = {name: round(value.item(), 4) for name, value in terms.items()}
                samples = next(self.batches(self.step - 1))[:8]
                raise TrainingError(f"step {self.step}: {nonfinite_in_a_row} steps in a row had NaN or Inf gradients; "
                                    f"terms {values}; samples of this rank {samples}; lower optim.lr")
            now = time.perf_counter()
            save_s = self.writer.waited - waited
            window.update({"data_s": arrived - previous - save_s, "step_s": now - previous, "n": 1, "save_s": save_s,
                           "clips": len(batch["video"]) * distributed.world_size()})
            previous, waited = now, self.writer.waited
            if self.step % self.config.train.log_steps == 0 or self.step == self.steps:
                self.log(epoch, terms, rate, norm, window)
                window.clear()
            stopping = stop_requested()
            if stopping or (self.step % self.config.train.checkpoint_steps == 0 and self.step % self.steps_per_epoch):
                self.save()
            if stopping:
                self.finish_writing()
                self.stop.deliver()

    def update(self, rate: float) -> float:
        """Do one optimizer step, unless the gradient has NaN or Inf; return its norm."""
        self.scaler.unscale_(self.optimizer)
        # .item() waits for the GPU, because the norm decides whether this step is skipped
        norm = optim.clip_grad_norm(self.model, self.config.optim.clip_grad_norm).item()
        optim.set_rate(self.optimizer, rate)
        if self.scaler.is_enabled() or math.isfinite(norm):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def log(self, epoch: int, terms: dict, rate: float, norm: float, window: collections.Counter) -> None:
        """Log a step: the terms' means over ranks, rates, and the window's mean times per step."""
        self.report_bad()
        values = distributed.mean(torch.stack([*terms.values()]).float())
        means = {name: window[name] / window["n"] for name in ("data_s", "step_s", "save_s")}
        rows = distributed.gather_objects(means | self.clock.take() | self.usage.take() | {
            "node": distributed.patient_group(of_node=True)[0]})
        if distributed.rank() == 0:
            memory = {"memory_gib": torch.cuda.max_memory_allocated() / 2**30} if self.device.type == "cuda" else {}
            watched = {name: float(value.detach() if isinstance(value, torch.Tensor) else value)
                       for name, value in self.task.watched(self.model).items()}
            self.run.log({"kind": "step", "step": self.step, "steps": self.steps, "epoch": epoch + 1,
                          "loss": values.sum().item(), **dict(zip(terms, values.tolist(), strict=True)), "lr": rate,
                          "lr_heads": rate * self.config.optim.head_lr_scale,
                          "grad_norm": norm, "scale": self.scaler.get_scale(), "skipped": self.skipped, "bad": self.bad,
                          **means, **timing.of_ranks(rows), **(of_node(rows) if self.usage.is_new else {}),
                          "clips_per_s": window["clips"] / window["step_s"], "watched": watched,
                          "eta_s": (self.steps - self.step) * means["step_s"], **memory})

    def validate(self) -> None:
        """Score the validation task; keep the weights and outputs of the best model, or of the last."""
        distributed.broadcast_in_place(self.model.buffers())  # ranks differ in a BatchNorm's means; rank 0's are saved
        metrics, rows, prompts_KE = evaluate(self.model, self.validation)
        score, self.validated = metrics[self.validation.best], self.step
        best = self.best["metrics"][self.validation.best] if self.best else math.nan
        # NaN replaces no number, and any number replaces NaN; while there is no number, the newest model is kept.
        # Step 0 is the start: any trained model is preferred to it.
        better = not math.isfinite(best) or (math.isfinite(score) and (self.best["step"] == 0 or score > best))
        if self.validation.reports_last:  # the best one is only told beside the last
            told = self.best["metrics"] if self.best else {}
            beside = BEST_OF.format(self.validation.best), "best_validation_step"
            highest = told.get(beside[0], math.nan)
            metrics |= (dict(zip(beside, (highest, told[beside[1]]), strict=True)) if highest >= score else
                        dict(zip(beside, (score, self.step), strict=True)))
            better = True
        if better:
            self.best = {"step": self.step, "metrics": metrics}
        if distributed.rank() == 0:
            self.run.log({"kind": "validation", "step": self.step, "steps": self.steps,
                          "epoch": self.step // self.steps_per_epoch, "best": better, **metrics,
                          "score": self.validation.best, "predictions": self.validation.predictions(rows, prompts_KE)})
            if better:
                path = self.run.checkpoints / "best.pt"
                self.writer.write(path, weights.content_of(self.model, path, step=self.step, metrics=metrics), "best")
                self.validation.save_outputs(self.run, self.section, rows, prompts_KE)
        distributed.barrier()


def train(config: Config, task, run: Run, section: str, device: torch.device) -> dict[str, float]:
    """Train a task in a run folder, from its newest checkpoint if there is one.

    Args:
        section: names the outputs of the best validation in the run folder.
        device: where this rank computes.

    Returns:
        The best validation metrics with what training cost; see `Trainer.fit`.
    """
    if config.train.precision == "fp16" and device.type == "cpu":
        raise TrainingError("train.precision is fp16, but this process sees no GPU: "
                            "give it one, or set train.precision=bf16")
    run.checkpoints.mkdir(exist_ok=True)
    with deterministic(config.train.deterministic):
        return Trainer(config, task, run, section, device).fit()
