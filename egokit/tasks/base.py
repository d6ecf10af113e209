"""Task: what a benchmark gives, and what all tasks share."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from egokit.config.build import ConfigError
from egokit.config.schema import Config, TaskConfig
from egokit.data.site_checks import Checks, Finding
from egokit.data.video import open_video
from egokit.model import sources
from egokit.model.own_modules import refuse_trained
from egokit.model.weights import initial_model
from egokit.runs.ledger import Result
from egokit.runs.run_folder import Run
from egokit.tasks.tools import TaskTools

RENAMED = {"score": "score_batch", "scores": "score_matrix", "expected": "num_rows", "keep": "save_outputs",
           "rows_in_sample": "rows_per_sample", "clips_in_sample": "clips_per_sample",
           "uses_fusion": 'trains ("all" for True, "embeddings" for False)'}  # earlier names
WATCHED = 4  # held-out samples whose predictions are logged at each validation


class Task(TaskTools):
    """A benchmark or a training task; subclasses override what they need.

    To be evaluated, a task gives `dataset`, `score_batch` and `metrics`; to be trained, `dataset`, `loss` and `best`.

    Attributes:
        Params: the task's own keys, the section `task` of a recipe; a class derived from TaskConfig.
        notebook: folder of its runs under outputs/, and the notebook that shows them; "": named like the user's file.
        sections: action ("train", "evaluate", "extract") -> name of its job and of its section of metrics.json. The
            first is the one that `egokit submit` starts. Empty: those that the class can do, named like the action.
        best: the metric that chooses the best checkpoint; larger is better.
        title: the benchmark's name, with which the names of its Results begin; "": the class's.
        published: {metric: published number or None} for the ledger, or Results.
        peers: Results that were published for other models' files, as tasks/published/ has them.
        recipe: the published recipe, a file under params/; recipe_sha256: its hash, so that the ledger notices an edit.
        samples: how many the real data set has, 0 if that is unknown; `unit` is what they are called.
        figures: pictures worth a look, of those that the notebook leaves in its run's figures/.
        trains: which outputs of the model the loss reads, as `EgoVLP.unused_parameters` names them; what gives none of
            them is frozen. "embeddings": the dual encoder's; "all": the fusion encoder's, too.
        selection_split: name of the split on which `validation` chooses the best checkpoint.
        fixed_length: whether training pads all texts to data.max_tokens, as on GPUs, where a new shape costs time.
        clips_per_sample, rows_per_sample: rows of batch["video"], and of `score_batch`, for each sample.
        code: a job's copy of egokit, with the files of a user's task and model; None in no job.
        reports_last: whether a training's result is its last validation, and the best one is told beside it.
    """
    Params = TaskConfig
    notebook = ""
    sections: ClassVar[dict[str, str]] = {}
    best = ""
    title = ""
    published: ClassVar[dict[str, float | None] | list[Result]] = {}
    peers: ClassVar[list[Result]] = []
    recipe, recipe_sha256, samples, unit = "", "", 0, "samples"
    figures: ClassVar[tuple[str, ...]] = ()
    trains, selection_split = "embeddings", "test"
    fixed_length = reports_last = False
    clips_per_sample = rows_per_sample = 1
    code: Path | None = None

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if not (isinstance(cls.Params, type) and issubclass(cls.Params, TaskConfig)):
            raise ConfigError(f"{cls.__name__}.Params: expected a class derived from egokit.tasks.TaskConfig, or a "
                              "task's Params")
        for name, value in vars(cls).items():
            refuse_trained(cls, name, value)
        for old, new in RENAMED.items():
            if old in vars(cls):
                raise ConfigError(f"{cls.__name__}.{old} is called {new} now: rename it, or nothing calls it")

    def __setattr__(self, name: str, value) -> None:
        refuse_trained(type(self), name, value)
        super().__setattr__(name, value)

    def __init__(self, config: Config):
        self.config = config
        self.root = Path(config.site.root)
        open_video.import_reader(config.data.reader)

    @classmethod
    def actions(cls) -> dict[str, str]:
        """Return what its jobs do, each with the job's name; the first is the main one."""
        if cls.sections:
            return cls.sections
        return {action: action for action, able in (
            ("evaluate", cls.score_batch is not Task.score_batch), ("train", cls.loss is not Task.loss),
            ("extract", hasattr(cls, "extract"))) if able}

    @classmethod
    def results(cls) -> list[Result]:
        """Return the metrics that tables show, with the published numbers."""
        if not isinstance(cls.published, dict):
            return list(cls.published)
        return [Result(f"{cls.__name__} {metric}, {section}", section, metric, number)
                for section in cls.actions().values() for metric, number in cls.published.items()]

    @classmethod
    def published_recipe(cls, recipe: dict) -> tuple[str, str]:
        """Return the name and the hash of the published recipe for a run's recipe, {"section.key": value}."""
        return cls.recipe, cls.recipe_sha256

    @classmethod
    def encodes(cls, action: str) -> bool:
        """Return whether a job runs the encoders, and so needs `init` or initial weights, and the tokenizer."""
        return True

    @classmethod
    def needs_fusion(cls, config: Config, action: str) -> str:
        """Return what of an action needs the model's fusion encoder, for messages; "" if nothing does."""
        return ""

    @classmethod
    def input_files(cls, config: Config) -> list[Path]:  # whose change makes a job without encoders another one
        return []

    def origin(self, action: str) -> str:
        """Return the checkpoint that an action's result is of: the file of `init`, "" for none."""
        return sources.origin(self.config.init)

    def init_sha256(self) -> str:
        """Return the hash of `init`, and of the code that this job executes if that is a user's class; "" for none."""
        return sources.fingerprint(self.config.init, self.code)

    @classmethod
    def outdated(cls, config: Config, run: Run) -> bool:
        """Return whether the run's finished extraction is of an earlier state of the data: it is then made anew."""
        return False

    # to be given by a task
    def dataset(self, split: str):
        """Return the samples of a split.

        Args:
            split: "train" or "test".

        Returns:
            `Samples` (egokit/data/loader.py): `read` gives a sample as a dict, of which `collate` makes batches.
        """
        raise NotImplementedError(f"{type(self).__name__} has no {split} samples")

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        """Return the loss as named terms; their sum is minimised.

        Contract under DDP: every rank calls this with its own share of the global batch, and the gradients of all ranks
        are averaged. That average must equal the gradient that one process would compute on the whole global batch. So
        compute each term in one of two ways:

        - this rank's share of the global value, times `distributed.world_size()`. For a mean over the B samples of all
          ranks that is the sum over this rank's samples, times the world size, divided by B. A loss on similarities
          takes `self.similarity_part`, this rank's rows and columns, whose `mean_of_texts` and `mean_of_videos` give
          this share. All of egokit's losses are computed so.
        - the same global value on every rank, from gathered tensors: `self.embeddings` gathers the embeddings,
          `distributed.gather` any other tensor. Memory and arithmetic then grow with the global batch on every rank.

        Random draws behind a global value must be equal on all ranks: draw from (seed, step) and a sample's number in
        the global batch, by counter_random.py. Wrap what takes memory in `self.in_parts`. Every trained parameter needs
        a gradient in every step, because DDP waits for it; see `unused`. Parameters of the task's own come
        from `head` and `modules`. What is to be logged but not minimised comes from `watched`.

        Args:
            model: an EgoVLP in training mode, under autocast in train.precision.
            batch: this rank's share, as `collate` makes it, on the model's device.
            step: number of the optimizer step, from 0.

        Returns:
            Scalars by name, which are logged averaged over ranks.
        """
        raise NotImplementedError(f"{type(self).__name__} is evaluated, not trained")

    def initial_model(self, action: str) -> nn.Module:
        """Return the model that a job ("train", "evaluate", "extract") starts with: that of `init`, or a fresh one."""
        model = initial_model(self.config, self.config.data.eval_frames if action == "evaluate" else None, self.code)
        self.expect_fusion(model, action)
        return model

    def head(self, model) -> nn.Module | None:
        """Return the task's head, or None: a `ClassHead`, or any module.

        The model holds it as model.head, and does with it what it does with `modules`. The sizes and names of a
        ClassHead stand in checkpoints, so that `egokit.load` builds it without the task.
        """
        return None

    def modules(self, model) -> dict[str, nn.Module]:
        """Return the task's other modules by name: an encoder, an nn.ParameterDict of learnable numbers.

        The model holds them as model.own[name]: trained with it, at optim.head_lr_scale times the rate, averaged over
        ranks, saved and loaded. This, or `head`, is the place to freeze parts of the model, by requires_grad_(False);
        the model has its weights.
        """
        return {}

    def unused(self, model) -> set[str]:
        """Return the names of the parameters that the loss gives no gradient: training freezes them."""
        return model.unused_parameters(self.trains)

    def watched(self, model) -> dict[str, float | Tensor]:
        """Return numbers to log beside the loss, by name, such as a learned temperature; they are not minimised."""
        return {}

    def embed_video(self, model, frames: Tensor) -> Tensor:
        """Return the embeddings (B, E) of clips, uint8 (B, T, 3, size, size), for losses and retrieval."""
        return model.embed_video(model.normalise(frames))

    def prompts(self) -> list[str]:
        """Return the K texts that every sample is compared with; an evaluation encodes them once."""
        return []

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Score one batch of an evaluation.

        Args:
            model: an EgoVLP, or another Dual, in evaluation mode, under autocast in evaluate.precision, without
                gradients.
            batch: as `collate` makes it, on the model's device.

        Returns:
            Arrays of one length, `rows_per_sample` rows for each sample. "index" numbers the rows uniquely over the
            whole data set, for any batch size and number of ranks.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def score_batches(self, model, batches: Iterable[dict]) -> Iterator[dict[str, np.ndarray]]:
        """Yield what `score_batch` returns; each row comes once, if need be with a later batch."""
        return (self.score_batch(model, batch) for batch in batches)

    def metrics(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray | None) -> dict[str, float]:
        """Return the metrics of a complete evaluation, on every rank from the same rows.

        Args:
            rows: what `score_batch` gave for all batches of all ranks, in the order of "index", each once.
            prompts_KE: embeddings of `prompts()`, (K, E); None if there are none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no metrics")

    def score_of(self, metrics: dict[str, float]) -> str:
        """Return which of an evaluation's metrics stands for its result: `best`, unless the model has it not."""
        return self.best

    def per_query(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray | None) -> dict[str, list[np.ndarray]]:
        """Return what each query contributes to the metrics in %, for the significance of differences.

        Returns:
            {metric: groups of numbers, one a query}: the metric is the mean of the groups' means. {}: it isn't said.
        """
        return {}

    def predictions(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray | None) -> list[dict]:
        """Return what the model predicts for WATCHED samples, always the same ones, for log.jsonl.

        Returns:
            Dicts of "text", "clips" (numbers of the data set), their "scores", and their "relevancy" (1: right).
        """
        return []

    def num_rows(self) -> int:
        """Return the number of rows of a complete evaluation; any other number is an error."""
        return len(self.dataset("test"))

    def tables(self) -> list[Path]:  # the annotation files on which the metrics depend; their hashes are recorded
        return []

    def save_outputs(self, run: Run, section: str, rows: dict[str, np.ndarray], prompts_KE: np.ndarray | None) -> None:
        """Write what an evaluation leaves in the run folder beside its metrics."""
        run.write_rows(section, rows, prompts_KE)

    def chance(self) -> dict[str, float]:  # the metrics of random scores on the same labels
        return {}

    def validation(self) -> Task:
        """Return the task that is evaluated between epochs of training."""
        return self

    def held_out(self) -> Task | None:
        """Return the task on which the best checkpoint is scored once, after training; None takes `validation`'s score.

        Its metrics are then the training's result, and those of the validation stand beside them as "val_…".
        """
        return None

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        """Return what a job reads under the data root, each with its provider: see `site_checks.how_to_get`."""
        return {}

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        """Yield what `egokit doctor` reports of the files that this task reads; called without an instance.

        Args:
            checks: the site's config and data root, and checks that tasks share, such as `check_file`.
        """
        yield from ()
