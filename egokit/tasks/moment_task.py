"""MomentTask: a head that finds moments in stored features; EgoMQ and EgoNLQ derive from it.

Extraction (clip_features.py) runs the encoders once; training and evaluation then read features alone, so that a CPU
suffices.

Shapes: B samples of a batch, T features of the longest, N of one clip, E their dimension, M moments, P points.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from egokit.config.build import ConfigError
from egokit.config.schema import Config, Count, Input, NotNegative, Positive, Share, Size, TaskConfig, number
from egokit.data.annotation_json import SPLITS, list_names
from egokit.data.loader import Samples, mask_of, padded
from egokit.model import checkpoints, feature_model
from egokit.model.feature_model import FeatureModel
from egokit.model.moment_head import MomentHead, Points, decode, losses, targets
from egokit.tasks.base import Task
from egokit.tasks.feature_files import Clip, FeatureError, FeatureFiles, Grid, manifests, summary
from egokit.train import distributed

CROPS = 100        # draws of a training crop, of which the last is taken if none shows enough of a moment
SHOWN = 0.3        # the share of a moment that a training crop shows of at least one
SHORTEST = 0.05    # features: shorter candidates are dropped


class HeadParams(TaskConfig):
    """The keys of a head on stored features, and of what becomes of its candidates."""
    features: Input[str] = ""                  # features to read: a folder, or run:<notebook>/<run>
    stored_per: Literal["clip", "video"] = "clip"  # whose names the files of features have
    stored_rate: NotNegative = 0.0             # of features of others, which have no manifest: features a second
    stored_window: NotNegative = 0.0           # seconds of video behind one such feature; 0: up to the next one's start
    head_init: Input[str] = ""                 # trained head to evaluate, or to start from: a checkpoint, or a run
    dim: Count = 256                           # channels of the head
    levels: number(int, ge=1, le=12) = 8       # of its pyramid, each half as long as the one before
    stem: Size = 2                             # transformer blocks before the pyramid
    pyramid: Literal["maxpool", "attention"] = "maxpool"  # what halves a level: pooling, or a transformer block
    dropout: Share = 0.1                       # in the head
    crop: Count = 1024                         # longest stretch of a clip in training, features
    least_score: number(float, ge=0, lt=1) = 0.001  # lowest probability of a candidate
    candidates: Count = 2000                   # most candidates of a level
    sigma: Positive = 0.9                      # of the Gaussian that lowers the scores of overlapping candidates
    predict_test: bool = True                  # evaluations also predict the test split's clips, for a submission


class Entry(NamedTuple):
    """One sample: a clip, the moments to find in it, and of a question its place in the clip's list."""
    clip: Clip
    segments_M2: np.ndarray  # seconds of the clip
    classes_M: np.ndarray    # of each moment, from 0
    question: int | None = None
    source: object = None    # the annotation, for subclasses


class MomentSamples(Samples):
    """Clips, or questions about clips: features, and the moments to find."""

    def __init__(self, task: MomentTask, entries: list[Entry], train: bool):
        super().__init__(len(entries), task.config.seed, train)
        self.task, self.entries = task, entries

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        entry, task, unreadable = self.entries[index], self.task, ""
        try:
            if entry.clip.uid in task.unusable:
                raise FeatureError(task.unusable[entry.clip.uid])
            feature = task.seen(task.files.read(entry.clip, entry.question if task.files.axes == 3 else None))
            words = {} if entry.question is None else {"words": task.question_words(entry)}
        except FeatureError as error:
            if rng is not None or not task.config.data.max_bad_fraction:
                raise
            unreadable, feature = str(error), np.zeros((1, task.files.dimension), np.float32)
            words = {} if entry.question is None else {"words": np.zeros((1, task.text), np.float32)}
        more = task.labels(entry, len(feature))
        segments = task.grid(entry, len(feature)).positions(entry.segments_M2).reshape(-1, 2)
        if rng is not None and task.crops and len(feature) > task.config.task.crop:
            feature, segments = self.cropped(feature, segments, rng)
        return {"video": feature, "segments": segments, "classes": entry.classes_M, "index": index,
                "unreadable": unreadable} | words | more

    def cropped(self, feature: np.ndarray, segments_M2: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
        """Return a random stretch of a clip that shows enough of at least one moment, and the moments in it."""
        size, lengths = self.task.config.task.crop, np.diff(segments_M2, axis=1)[:, 0]
        for _ in range(CROPS):
            start = int(rng.integers(len(feature) - size + 1))
            held = np.clip(segments_M2, start - 0.5, start + size - 0.5)
            enough = np.diff(held, axis=1)[:, 0] >= SHOWN * lengths
            if not len(lengths) or (enough & (lengths > 0)).any():
                break
        held[~enough] = start  # of length 0: it claims no point
        return feature[start:start + size], held - start


class MomentTask(Task):
    """Trains and evaluates a head that finds moments.

    Subclasses give `entries`, `num_classes`, `found` and what all tasks give; their Params derive from HeadParams.

    Attributes:
        unusable: clips without features that can be used, and why; none unless data.max_bad_fraction allows some.
        left_out: how many of them are the training split's.
        text: dimension of a question's tokens; 0 without questions.
        crops: whether training sees stretches of long clips.
        lengths: least number of positions ("video") and tokens ("words") of a batch, for a head that sees padding.
    """
    Params = HeadParams
    reports_last, text, crops, truth_name = True, 0, True, "ground_truth.json"
    lengths: ClassVar[dict[str, int]] = {}

    def __init__(self, config: Config):
        super().__init__(config)
        self.unusable, self.left_out, self._datasets = {}, 0, {}

    @classmethod
    def encodes(cls, action: str) -> bool:
        return action == "extract"

    @classmethod
    def input_files(cls, config: Config) -> list[Path]:
        heads = [checkpoints.find(config.task.head_init)] if config.task.head_init else []
        return [*manifests(config.task.features, getattr(config.task, "words", "")), *heads]

    @functools.cached_property
    def files(self) -> FeatureFiles:
        """The stored features."""
        own = self.config.task
        if not own.features:
            raise ConfigError("task.features is empty: give the folder of the features, or the run that extracts them "
                              f"(run:{self.notebook}/<run>)")
        return FeatureFiles(Path(own.features), own.stored_per, own.stored_rate, own.stored_window)

    def origin(self, action: str) -> str:
        return super().origin(action) if action == "extract" else self.files.origin

    def initial_model(self, action: str) -> nn.Module:
        if action == "extract":
            return super().initial_model(action)
        head = self.config.task.head_init
        if action == "evaluate" and not head:
            raise checkpoints.WeightsError("task.head_init is empty: give the head to evaluate, a run that has trained "
                                           f"one (run:{self.notebook}/<run>) or a checkpoint")
        return feature_model.load(head) if head else FeatureModel()

    def head(self, model) -> nn.Module | None:
        return self.fresh_head() if isinstance(model, FeatureModel) else None  # not of the encoders of an extraction

    def fresh_head(self) -> nn.Module:  # for the task's features and classes, with its initial weights
        own = self.config.task
        return MomentHead(self.files.dimension, self.num_classes, dim=own.dim, levels=own.levels,
                          stem=own.stem, pyramid=own.pyramid, text=self.text, dropout=own.dropout)

    @property
    def num_classes(self) -> int:  # of the head
        raise NotImplementedError

    def entries(self, split: str) -> list[Entry]:
        """Return the samples of "train", or of "test": the validation split's, then those to predict."""
        raise NotImplementedError

    def grid(self, entry: Entry, N: int) -> Grid:
        """Return the clock of the N positions that the head sees of a sample."""
        return self.files.grid(entry.clip, N)

    def seen(self, feature: np.ndarray) -> np.ndarray:
        """Return what the head sees of a clip's features."""
        return feature

    def labels(self, entry: Entry, N: int) -> dict[str, np.ndarray]:
        """Return further labels of a sample of N positions, by name."""
        return {}

    def question_words(self, entry: Entry) -> np.ndarray:
        """Return the tokens of an entry's question, (L, D)."""
        raise NotImplementedError

    def found(self, entry: Entry, segments_N2: np.ndarray, scores_N: np.ndarray,
              classes_N: np.ndarray) -> dict[str, np.ndarray]:
        """Return the row of one sample, arrays of fixed shapes, from its candidates in seconds."""
        raise NotImplementedError

    def dataset(self, split: str) -> MomentSamples:
        if split not in self._datasets:
            entries = self.entries(split)
            clips = list({entry.clip.uid: entry.clip for entry in entries}.values())
            problems = self.files.problems(clips)
            if len(problems) > self.config.data.max_bad_fraction * len(clips):
                raise FeatureError(summary(problems, len(clips)))
            self.unusable |= problems
            if problems and distributed.rank() == 0:
                print(f"{split}: {len(problems)} of {len(clips)} clips have no features that can be used: "
                      + ("they are left out" if split == "train" else "nothing is found in them"), flush=True)
            if split == "train":
                self.left_out = len(problems)
                entries = [entry for entry in entries if entry.clip.uid not in problems]
            self._datasets[split] = MomentSamples(self, entries[:self.limited(len(entries))], split == "train")
        return self._datasets[split]

    def collate(self, items: list[dict]) -> dict:
        """Make a batch: features (B, T, E) with "video_mask" (B, T), words likewise; moments (class -1: padding)."""
        least = {"highlight": self.lengths.get("video", 0)} | self.lengths
        batch = {key: padded([item[key] for item in items], -1 if key == "classes" else 0, least.get(key, 0))
                 for key in items[0] if key not in ("index", "unreadable")}
        batch |= {f"{key}_mask": mask_of([len(item[key]) for item in items], batch[key].shape[1])
                  for key in ("video", "words") if key in items[0]}
        return batch | {"index": torch.tensor([item["index"] for item in items]),
                        "unreadable": [item["unreadable"] for item in items]}

    def points(self, model, batch: dict) -> tuple[Tensor, ...]:
        """Return the head's logits, offsets and mask for a batch, and its points (P, 4)."""
        head, T = model.head, batch["video"].shape[1]

        def compute(features_BTE: Tensor, mask_BT: Tensor, *words: Tensor):
            return tuple(head(features_BTE.transpose(1, 2), mask_BT, *words))
        inputs = [batch[key] for key in ("video", "video_mask", "words", "words_mask") if key in batch]
        return *self.in_parts(compute, *inputs), head.points(T, batch["video"].device)

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        """Return "class" (focal) and "offset" (DIoU): this rank's sums, over a running mean of all ranks' positives."""
        logits, offsets, mask, points_P4 = self.points(model, batch)
        wanted = targets(points_P4, batch["segments"], batch["classes"], self.num_classes)
        sums = losses(Points(logits, offsets, mask), *wanted)
        ranks = distributed.world_size()
        positives = distributed.mean(sums.positives.float()) * ranks
        share = ranks / model.head.normaliser(positives)
        return {"class": sums.focal * share, "offset": sums.diou * share}

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Return "index", whether features were "unreadable", and what `found` gives, a row for each sample."""
        rows, entries = [], self.dataset("test").entries
        told = batch["index"].tolist(), batch["video_mask"].sum(1).tolist(), batch["unreadable"]
        for index, N, unreadable, candidates in zip(*told, self.candidates(model, batch), strict=True):
            entry = entries[index]
            segments, scores, classes = self.in_seconds(entry, N, candidates)
            if unreadable:
                segments, scores, classes = segments[:0], scores[:0], classes[:0]
                if entry.clip.uid not in self.unusable:
                    print(f"nothing is found in clip {entry.clip.uid}: {unreadable}", flush=True)
            rows.append({"index": np.array(index), "unreadable": np.array(bool(unreadable))}
                        | self.found(entry, segments, scores, classes))
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def in_seconds(self, entry: Entry, N: int, candidates: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
        """Return a sample's candidates as `found` takes them: segments in seconds, scores and classes.

        Args:
            N: how many positions the head saw.

        Raises:
            ValueError: there are NaN or Inf among them.
        """
        segments, scores, classes = (x.cpu().double().numpy() for x in candidates)
        if not np.isfinite(segments).all() or not np.isfinite(scores).all():
            raise ValueError(f"clip {entry.clip.uid}: NaN or Inf in what the head finds (evaluate.precision "
                             f"{self.config.evaluate.precision}); its training has diverged: lower optim.lr")
        return np.clip(self.grid(entry, N).seconds(segments), 0, entry.clip.seconds), scores, classes.astype(int)

    def counts(self, rows: dict[str, np.ndarray], scored: set[str]) -> dict[str, int]:
        """Count the samples and clips in which nothing is found as their features can't be read.

        Args:
            rows: of a complete evaluation.
            scored: clip_uids of the split with annotations.

        Raises:
            FeatureError: there are more such clips than data.max_bad_fraction allows.
        """
        clips = [self.dataset("test").entries[index].clip.uid for index in rows["index"]]
        bad = [uid for uid, unreadable in zip(clips, rows["unreadable"], strict=True) if unreadable]
        limit = self.config.data.max_bad_fraction
        if len(set(bad)) > limit * len(set(clips)):
            raise FeatureError(f"{len(set(bad))} of {len(set(clips))} clips have no features that can be used, such as "
                               f"{bad[0]}, more than data.max_bad_fraction={limit:g}; the reasons are printed above")
        return {"failed": sum(uid in scored for uid in bad), "clips_without_features": len({*bad} & scored)} | (
            {"training_clips_left_out": self.left_out} if self.left_out else {})

    def candidates(self, model, batch: dict) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each sample's candidates: segments (N, 2) in positions, scores (N,) and classes (N,)."""
        own, (*outputs, points_P4) = self.config.task, self.points(model, batch)
        for logits_PC, offsets_P2, mask_P in zip(*outputs, strict=True):
            yield decode(logits_PC, offsets_P2, mask_P, points_P4, own.least_score, own.candidates, SHORTEST)

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        needed, own = super().inputs(config, action), config.task
        test = list_names(own.feature_clips).get(SPLITS[-1])
        return needed if action == "extract" else {
            name: provider + "; or task.predict_test=false, without a submission" * (name == test)
            for name, provider in needed.items() if name != own.feature_videos and (own.predict_test or name != test)}

    def tables(self) -> list[Path]:
        lists = [self.require_file(name) for name in self.inputs(self.config, "evaluate")]
        return [*lists, *([self.files.folder / "manifest.json"] if self.files.manifest else [])]
