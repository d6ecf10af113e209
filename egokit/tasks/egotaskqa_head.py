"""EgoTaskQA with a frozen model: the fused vector of each question is stored once, and the head alone is trained.

A vector is what the head reads, of the middle frames. The questions of both splits share the vectors of their clips.

Shapes: B questions, K questions of a clip, D width.

Source: EgoVLPv2 (arXiv 2307.05463), table 5, "head-tuned"; no code of it is released.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from egokit.config.build import ConfigError
from egokit.config.schema import Config, Input
from egokit.data.loader import build_loader, move_to_device
from egokit.data.site_checks import Checks, Finding
from egokit.data.video.timeline import VideoError
from egokit.model import checkpoints, feature_model, sources
from egokit.model.class_head import ClassHead
from egokit.model.feature_model import FeatureModel
from egokit.model.precision import autocast
from egokit.model.recorded_head import model_id
from egokit.model.weights import initial_model
from egokit.runs.array_file import read_array
from egokit.runs.ledger import Result
from egokit.runs.run_folder import Run
from egokit.tasks.egotaskqa import AS_PUBLISHED, CHOSEN, EgoTaskQA
from egokit.tasks.extraction import Extraction, save
from egokit.tasks.feature_files import FeatureError, summary
from egokit.tasks.taskqa import annotations, site, vocabulary
from egokit.tasks.taskqa.samples import AskedClips
from egokit.tasks.taskqa.vectors import DAMAGED, FOLDER, VectorFiles, VectorSamples, read_vectors
from egokit.train import distributed

SPLITS = ("direct", "indirect")
RECIPES = {"direct": ("egotaskqa_head", "13b21b55a1f5"), "indirect": ("egotaskqa_head_indirect", "1a2a880ab62b")}
PUBLISHED = {"direct": (26.59, 69.10, 37.87, None), "indirect": (22.11, 57.19, 35.20, None)}


class EgoTaskQAHead(Extraction, EgoTaskQA):
    """Stores each question's fused vector, and trains and scores a head on these: no video is read, a CPU suffices."""
    sections: ClassVar = {"extract": FOLDER, "train": "headtune", "evaluate": "head"}
    recipe, recipe_sha256 = RECIPES["direct"]
    stored, clips_may_fail = FOLDER, True
    figures = ("kinds-headtune.png", "answer-attention.png", "answered.html")
    published: ClassVar = [  # EgoVLPv2 (ICCV 2023), table 5
        Result(f"EgoTaskQA {split} {words}, head-tuned", section, f"{split}_{metric}", number, "EgoVLPv2.pth",
               f"{split}_{metric}", in_ledger=number is not None,
               note=AS_PUBLISHED if metric == "as_published" else CHOSEN)
        for section in ("headtune", "head") for split, numbers in PUBLISHED.items()
        for metric, words, number in zip(("open", "binary", "as_published", "all"),
                                         ("open", "binary", '"all"', "all questions"), numbers, strict=True)]

    class Params(EgoTaskQA.Params):
        head: Literal["mlp", "linear"] = "linear"  # layers: one, as in the paper's head-tuning, or two
        vectors: Input[str] = ""                # vectors to read: the run that extracts them, run:09_egotaskqa/<run>
        head_init: Input[str] = ""              # trained head to evaluate, or to start from: a checkpoint, or a run

    @classmethod
    def published_recipe(cls, recipe: dict) -> tuple[str, str]:
        return RECIPES.get(recipe.get("task.split"), RECIPES["direct"])

    @classmethod
    def encodes(cls, action: str) -> bool:
        return action == "extract"

    @classmethod
    def input_files(cls, config: Config) -> list[Path]:
        own = config.task
        paths = [Path(own.vectors, name) for name in (f"{FOLDER}/manifest.json", "manifest.json") if own.vectors]
        heads = [checkpoints.find(own.head_init)] if own.head_init else []
        return [*(path for path in paths if path.is_file()), *heads]

    # extraction
    def sources(self) -> dict[str, Path]:
        """Return the question files of both splits, as far as they are there."""
        own = self.config.task
        found = {f"{split}/{file}": path for split in SPLITS for file in map(annotations.file_of, annotations.SPLITS)
                 if (path := self.root / own.questions / split / file).is_file()}
        if not found:
            self.require_file(*self.names(own, annotations.file_of("train")))
        return found

    def clips(self) -> list[dict]:
        """Return the clips, each with its distinct "questions" as the text encoder reads them."""
        asked: dict[str, dict[str, None]] = {}
        for path in self.sources().values():
            questions = annotations.read_questions(path, len(vocabulary.read(path.with_name(vocabulary.FILE))))
            for question in questions[:self.limited(len(questions))]:
                asked.setdefault(question.clip, {})[question.text] = None
        return [{"clip_uid": name, "questions": [*asked[name]]} for name in sorted(asked)]

    def identity(self, clip: dict) -> list:
        return clip["questions"]

    @property
    def suffix(self) -> str:
        return "npy"

    def bytes_of(self, model, clip: dict) -> int:
        return len(clip["questions"]) * model.config.width * 4

    def read_ahead(self, clips: list[dict]) -> None:
        samples = AskedClips(self, [clip["clip_uid"] for clip in clips])
        samples.tolerant = True  # a clip that can't be read is told, and ends no other
        keys, data = [[(0, number)] for number in range(len(clips))], self.config.data
        self._frames = build_loader(samples, keys, self.collate, data.workers, data.read_timeout)
        self._reading = samples.clips

    @torch.no_grad()
    def write(self, model, run: Run, clip: dict) -> None:
        name = clip["clip_uid"]
        batch = next(batch for batch in self._frames if self._reading[int(batch["index"])] == name)
        if name == self._reading[-1]:
            self._frames.close()  # ends the loader's workers
        if reason := batch["unreadable"][0]:
            raise VideoError(f"clip {name} can't be read, put a whole file in its place: {reason}")
        with autocast(model.device, self.config.evaluate.precision):
            video, texts = move_to_device(batch["video"], model.device), clip["questions"]
            vectors_KD = self.fused_states(model, video, [0] * len(texts), texts)
        if not vectors_KD.isfinite().all():
            raise ValueError(f"clip {name}: NaN or Inf in its vectors; evaluate.precision is "
                             f"{self.config.evaluate.precision}: set fp32, or use another checkpoint")
        save(self.file(run, clip), vectors_KD.cpu())

    def extract(self, model, run: Run) -> dict[str, float]:
        self.model_id = model_id(model)
        return super().extract(model, run)

    def manifest(self, run: Run, clips: list[dict]) -> tuple[dict, dict]:
        first = read_array(self.file(run, clips[0]), DAMAGED)
        dimension = first.shape[1] if first.ndim == 2 else 0
        for clip in clips:
            read_vectors(self.file(run, clip), len(clip["questions"]), dimension)
        frames, asked = self.config.data.eval_frames, sum(len(clip["questions"]) for clip in clips)
        return {"frames": frames, "max_tokens": self.config.data.eval_max_tokens, "dimension": dimension,
                "model_id": self.model_id, "clips": clips}, {"clips": len(clips), "questions": asked, "frames": frames}

    # training and evaluation
    @functools.cached_property
    def vectors(self) -> VectorFiles:
        """The stored vectors.

        Raises:
            ConfigError: task.vectors is empty.
            FeatureError: they are of another checkpoint than `init`, or of another number of frames.
        """
        config = self.config
        if not config.task.vectors:
            raise ConfigError("task.vectors is empty: name the run that extracts them (action extract), "
                              f"run:{self.notebook}/<run>, or their folder")
        files = VectorFiles(Path(config.task.vectors))
        made = files.manifest
        if made["frames"] != config.data.eval_frames:
            raise FeatureError(f"{files.folder} holds vectors of {made['frames']} frames, but data.eval_frames is "
                               f"{config.data.eval_frames}: set it to {made['frames']}, or extract them again")
        present = fingerprint(config.init)
        if present and present != made["init_sha256"]:
            raise FeatureError(f"{files.folder} holds vectors of {made['init'] or 'random weights'} "
                               f"({made['init_sha256'] or 'no file'}), but init is {config.init} ({present}): extract "
                               "them again with it, or set init to the checkpoint that made them")
        return files

    def origin(self, action: str) -> str:
        return super().origin(action) if action == "extract" else self.vectors.origin

    def initial_model(self, action: str) -> nn.Module:
        if action == "extract":
            model = initial_model(self.config, self.config.data.eval_frames, self.code)
            self.expect_fusion(model, action)
            return model
        head = self.config.task.head_init
        if action == "evaluate" and not head:
            raise checkpoints.WeightsError("task.head_init is empty: give the head to evaluate, a run that has trained "
                                           f"one (run:{self.notebook}/<run>) or a checkpoint")
        return feature_model.load(head) if head else FeatureModel()

    def head(self, model) -> ClassHead | None:
        if not isinstance(model, FeatureModel):
            return None  # of the encoders of an extraction
        self.expect_same_answers(model)
        own, answers, made_by = self.config.task, self.vocabulary, self.vectors.manifest.get("model_id", "")
        trained_on = getattr(model.head, "model_id", "")
        if trained_on and made_by and trained_on != made_by:
            raise checkpoints.WeightsError(f"{model.source}: its head was trained on vectors of another model "
                                           f"({trained_on}) than those in {self.vectors.folder} ({made_by}): let "
                                           "task.vectors name those on which it was trained, or train a head on these")
        return ClassHead(self.vectors.dimension, answers, len(answers) if own.head == "mlp" else 0, own.head_dropout,
                         "fusion", made_by)

    def dataset(self, split: str) -> VectorSamples:
        trains = split == "train"
        questions = self.questions_of("train") if trains else self.asked
        self.vectors.expect([*questions, *self.asked])  # training ends with an evaluation
        clips = sorted({question.clip for question in questions})
        problems = self.vectors.problems(clips)
        if len(problems) > self.config.data.max_bad_fraction * len(clips):
            raise FeatureError(summary(problems, len(clips)))
        if problems and trains:
            kept = [question for question in questions if question.clip not in problems]
            if distributed.rank() == 0:
                print(f"train: {len(questions) - len(kept)} of {len(questions)} questions are left out: their clips "
                      "have no vectors that can be used", flush=True)
            questions = kept
        return VectorSamples(self, questions, trains)

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        """Return "cross_entropy" over the global batch: this rank's share of its mean, times the world size."""
        logits_bK = self.in_parts(lambda vectors_bD: model.head(vectors_bD).float(), batch["video"])
        return {"cross_entropy": self.cross_entropy(logits_bK, batch["answer"])}

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Answer a batch of questions; rows are as `rows_of` returns them."""
        index, unreadable = batch["index"].numpy(force=True), np.array([bool(why) for why in batch["unreadable"]], bool)
        for number, why in zip(index.tolist(), batch["unreadable"], strict=True):
            if why:
                print(f"question {self.asked[number].question_id} counts as wrong: {why}", flush=True)
        return self.rows_of(index, model.head(batch["video"]).float(), unreadable)

    def tables(self) -> list[Path]:
        return [*super().tables(), self.vectors.folder / "manifest.json"]

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        needed, own = super().inputs(config, action), config.task
        if action == "extract":  # all question files that are there
            return {name: provider for name, provider in needed.items()
                    if provider == site.CLIPS or name == "/".join(cls.names(own, vocabulary.FILE))}
        return {name: provider for name, provider in needed.items() if provider != site.CLIPS}

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        yield from ()  # EgoTaskQA's checks are all there is


def fingerprint(init: str) -> str:
    """Return the fingerprint of the checkpoint `init`; "" if it is not named, or not here."""
    try:
        return sources.fingerprint(init)
    except (checkpoints.WeightsError, FileNotFoundError):
        return ""
