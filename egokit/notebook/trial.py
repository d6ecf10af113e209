"""A few training steps in a notebook's own process, before a job is spent on them.

Everything is what a job has: its model, its batches in their order, its loop (train/loop.py). So what a trial logs,
the job of the same config logs, too, up to rounding if it has more processes.
"""
import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from egokit import tasks
from egokit.config.build import ConfigError, check_rate, check_shape, flatten, nest, to_dict
from egokit.config.init_forms import find_init
from egokit.config.registry import build_config, find
from egokit.config.resolve import absolute, check_run_name, find_task, outputs_folder, parse_overrides, project_root
from egokit.config.schema import Config
from egokit.data.loader import build_loader, move_to_device
from egokit.model.precision import autocast, float32_products
from egokit.runs.run_folder import Run
from egokit.train.loop import Trainer

ALL = "all terms"  # the column of the whole loss
NEVER = 10**9  # steps between two checkpoints


def changed(config: Config, overrides) -> Config:
    """Return a config with further overrides, such as a task of one's own.

    Example:
        config = egokit.changed(run.config, f"task={run.path}/my_loss.py:MyLoss")

    Args:
        config: of an opened run.
        overrides: as `egokit.open_run` takes them. With another task, keys stay that it has, too.

    Raises:
        ConfigError: a key or value is wrong, or the task's file is missing.
    """
    values = flatten(to_dict(config))
    given = flatten(parse_overrides(overrides), " (in overrides)")
    if "task.name" in given:
        given["task.name"] = find_task(given["task.name"], project_root(), "overrides")
        known = find(given["task.name"]).Params.__pydantic_fields__
        values = {key: value for key, value in values.items()
                  if not key.startswith("task.") or key.removeprefix("task.") in known}
    new = _with_paths(build_config(nest(values | given), " (in overrides)"), given)
    check_shape(new.model)
    check_rate(new.optim)
    return new


def _with_paths(config: Config, given: dict) -> Config:
    """Return a config whose given paths, and names of runs and weights, are found as `resolve` finds them."""
    root, outputs = project_root(), outputs_folder()
    if named := [key for key, value in given.items() if "{run}" in str(value)]:
        raise ConfigError(f"{named[0]} (in overrides): the name of the run stands in a recipe alone; write it in place "
                          "of {run}")
    site = dataclasses.replace(config.site, **{key: absolute(given[f"site.{key}"], root) for key in ("root", "weights")
                                               if f"site.{key}" in given})
    runs = {key: find_init(value, site, root, outputs) for key, value in vars(config.task).items()
            if f"task.{key}" in given and isinstance(value, str) and value.startswith("run:")}
    return dataclasses.replace(config, site=site, task=dataclasses.replace(config.task, **runs), init=find_init(
        config.init, site, root, outputs) if "init" in given else config.init)


class Trial:
    """A training of a config that goes step by step, in this process, on one device.

    Example:
        trial = egokit.Trial(run.config, run)
        trial.task.loss(trial.model, trial.batch, step=0)     # the loss's terms, with gradients
        viz.gradients(trial)                                  # which term moves which part of the model
        trial.train(50)                                       # logged in the run folder's here/
        viz.overlaid({"here": trial.run, "as a job": run})

    Attributes:
        run: the folder of its log, `here/` in that of the run.
        task, model: as a job has them; the model is in training mode.
        trainer: the job's own, whose `step` counts.
    """

    def __init__(self, config: Config, run: Run, samples: int = 0, device: str = "cpu", name: str = "here"):
        """Load the model and prepare the samples; nothing is read yet.

        Args:
            config: of a recipe that trains.
            run: its run; nothing of it is changed but the folder `name` in it.
            samples: of a batch; 0 takes train.batch_size.
            device: where the steps compute. On a GPU this process holds its memory until the notebook is closed.
            name: the folder of the trial's log.

        Raises:
            ConfigError, WeightsError, FileNotFoundError: as the job would.
        """
        if config.train.precision == "fp16" and device == "cpu":  # CPUs have no half precision but bf16
            config = changed(config, "train.precision=bf16")
        size = min(samples or config.train.batch_size, config.train.batch_size)
        train = dataclasses.replace(config.train, batch_size=size, log_steps=1, compile=False, checkpoint_steps=NEVER,
                                    epochs=max(1, config.train.epochs))  # of none there would be no batch
        self.config = dataclasses.replace(config, train=train)
        check_run_name(name)  # the run's own log would be written anew
        self.run = Run(run.path / name)
        self.task = tasks.make(self.config)
        self.trainer = Trainer(self.config, self.task, self.run, name, torch.device(device))
        self.model = self.trainer.model
        self.trainer.objective.training_mode()

    @functools.cached_property
    def batch(self) -> dict:
        """The training's first batch, as the task's `collate` makes it, on the device."""
        return move_to_device(next(iter(self._batches(0))), self.trainer.device)

    def _batches(self, step: int):
        return build_loader(self.trainer.dataset, self.trainer.batches(step), self.task.collate, workers=0)

    @contextlib.contextmanager
    def _as_many_threads(self) -> Iterator[None]:
        """Compute with as many threads as a process of the job; on busy cores, more of them wait for one another."""
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, self.config.launch.cpus_per_task))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def terms(self) -> dict[str, Tensor]:
        """Return the terms of the loss of `batch` by name, with gradients.

        Calls between two steps draw the same random numbers, so they return the same values.
        """
        with self._as_many_threads(), torch.random.fork_rng(), float32_products(self.model.device, tf32=False), \
                autocast(self.model.device, self.config.train.precision):
            torch.manual_seed(self.config.seed)
            return self.task.loss(self.model, self.batch, self.trainer.step)

    def gradient_norms(self) -> dict[str, dict[str, float]]:
        """Return the norm of each loss term's gradient in each part of the model, for `batch`.

        Each term is computed and differentiated for itself. The weights stay as they are.

        Returns:
            {part of the model: {term: norm}}; the term ALL is the whole loss.
        """
        return self.measured()[1]

    def measured(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return the value of each term of the loss of `batch`, and `gradient_norms`; the model stays as it is."""
        parts, norms = parts_of(self.model), {}
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        values = {name: term.item() for name, term in self.terms().items()}
        for term in [*values, ALL] if len(values) > 1 else [ALL]:
            self.model.zero_grad(set_to_none=True)
            terms = self.terms()
            loss = sum(terms.values()) if term == ALL else terms[term]
            if loss.requires_grad:
                with self._as_many_threads():
                    loss.backward()
            for part, parameters in parts.items():
                grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
                norm = torch.nn.utils.get_total_norm(grads).item() if grads else 0.0
                norms.setdefault(part, {})[term] = norm
        self.model.zero_grad(set_to_none=True)
        for buffer, before in buffers:  # running means of a task's modules
            buffer.copy_(before)
        return values, norms

    def train(self, steps: int) -> None:
        """Do the next steps of the training by the job's own loop, and log each in `run`.

        Epochs end without a validation, and nothing is saved but the log.

        Args:
            steps: how many; fewer are done where the recipe has fewer left.

        Raises:
            ConfigError: no step is left: train.epochs are over.
        """
        trainer = self.trainer
        left = min(steps, trainer.steps - trainer.step)
        if left <= 0:
            raise ConfigError(f"all {trainer.steps} steps of the recipe are done: make a new Trial, or raise "
                              "train.epochs")
        if trainer.step == 0:
            self.run.truncate_log(lambda event: False)
        began, stop = time.perf_counter(), trainer.step + left
        batches = self._batches(trainer.step)
        with self._as_many_threads(), trainer.clock.running():
            while trainer.step < stop:
                epoch, first = divmod(trainer.step, trainer.steps_per_epoch)
                count = min(stop - trainer.step, trainer.steps_per_epoch - first)
                trainer.epoch(epoch, itertools.islice(batches, count))
        losses = [event["loss"] for event in self.run.read_log() if event["kind"] == "step"]
        print(f"{left} steps in {time.perf_counter() - began:.0f} s: loss {losses[0]:.2f} -> {losses[-1]:.2f}")


def parts_of(model) -> dict[str, list[Tensor]]:
    """Return the trained parameters of a model by part.

    Returns:
        Parameters of the encoders, projections, fusion, and of a task's head and own modules; empty parts are absent.
    """
    parts: dict[str, list[Tensor]] = {}
    names = {name: role for role, names in model.parameters_by_role().items() for name in names}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role, (first, *rest) = names[name], name.split(".")
            part = {"fusion": "fusion", "head": "head", "own": f"own module {rest[0] if rest else ''}",
                    "projection": "projections"}.get(role, f"{first} encoder")
            parts.setdefault(part, []).append(parameter)
    return parts
