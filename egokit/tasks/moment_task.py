"""MomentTask: a head that finds moments in stored features; EgoMQ and EgoNLQ derive from it.

Extraction (clip_features.py) runs the encoders once; training and evaluation then read features alone, so that a CPU
suffices.

Shapes: B samples of a batch, T features of the longest, N of one clip, E their dimension, M moments, P points.
"""
from __future__ import annotations

import functools
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from egokit.config.schema import Config, Count, NotNegative, Positive, Share, Size, TaskConfig, number
from egokit.data.loader import Samples
from egokit.model import checkpoints, feature_model
from egokit.model.feature_model import FeatureModel
from egokit.model.moment_head import MomentHead, decode, losses, targets
from egokit.tasks.base import Task
from egokit.tasks.feature_files import Clip, FeatureError, FeatureFiles, Grid, summary
from egokit.train import distributed

CROPS = 100        # draws of a training crop, of which the last is taken if none shows enough of a moment
SHOWN = 0.3        # the share of a moment that a training crop shows of at least one
SHORTEST = 0.05    # features: shorter candidates are dropped


class HeadParams(TaskConfig):
    """The keys of a head on stored features, and of what becomes of its candidates."""
    features: str = ""                         # features to read: a folder, or run:<notebook>/<run>
    stored_per: Literal["clip", "video"] = "clip"  # whose names the files of features have
    stored_rate: NotNegative = 0.0             # of features of others, which have no manifest: features a second
    stored_window: NotNegative = 0.0           # seconds of video behind one such feature; 0: up to the next one's start
    head: str = ""                             # head to evaluate, or to start from: a checkpoint, or a run
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


class MomentSamples(Samples):
    """Clips, or questions about clips: features, and the moments to find."""

    def __init__(self, task: MomentTask, entries: list[Entry], train: bool):
        super().__init__(len(entries), task.config.seed, train)
        self.task, self.entries = task, entries

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        entry, task = self.entries[index], self.task
        if rng is None and entry.clip.uid in task.unusable:
            feature, grid = np.zeros((1, task.files.dimension), np.float32), Grid(1.0, 0.0)
        else:
            feature = task.files.read(entry.clip, entry.question if task.files.axes == 3 else None)
            grid = task.files.grid(entry.clip, len(feature))
        segments = grid.positions(entry.segments_M2).reshape(-1, 2)
        if rng is not None and len(feature) > task.config.task.crop:
            feature, segments = self.cropped(feature, segments, rng)
        item = {"video": torch.from_numpy(feature), "segments": torch.from_numpy(segments),
                "classes": torch.from_numpy(entry.classes_M), "index": index}
        return item | ({} if entry.question is None else {"words": torch.from_numpy(task.words(entry))})

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
        text: dimension of a question's tokens; 0 without questions.
    """
    Params = HeadParams
    reports_last = True
    text = 0
    truth_name: ClassVar[str] = "ground_truth.json"

    def __init__(self, config: Config):
        super().__init__(config)
        self.unusable: dict[str, str] = {}
        self._datasets: dict[str, MomentSamples] = {}

    @classmethod
    def encodes(cls, action: str) -> bool:
        return action == "extract"

    @functools.cached_property
    def files(self) -> FeatureFiles:
        """The stored features."""
        own = self.config.task
        return FeatureFiles(Path(own.features), own.stored_per, own.stored_rate, own.stored_window)

    def origin(self) -> str:
        return self.files.origin

    def initial_model(self, action: str) -> nn.Module:
        if action == "extract":
            return super().initial_model(action)
        if action == "evaluate" and not self.config.task.head:
            raise checkpoints.WeightsError("task.head is empty: give the head to evaluate, a run that has trained one "
                                           f"(run:{self.notebook}/<run>) or a checkpoint")
        return feature_model.load(self.config.task.head) if self.config.task.head else FeatureModel()

    def modules(self, model) -> dict[str, nn.Module]:
        if not isinstance(model, FeatureModel):  # the encoders of an extraction
            return {}
        own = self.config.task
        return {"head": MomentHead(self.files.dimension, self.num_classes, dim=own.dim, levels=own.levels,
                                   stem=own.stem, pyramid=own.pyramid, text=self.text, dropout=own.dropout)}

    # given by a subclass
    @property
    def num_classes(self) -> int:
        """How many classes the head has."""
        raise NotImplementedError

    def entries(self, split: str) -> list[Entry]:
        """Return the samples of "train", or of "test": the validation split's, then those to predict."""
        raise NotImplementedError

    def words(self, entry: Entry) -> np.ndarray:
        """Return the tokens of an entry's question, (L, D)."""
        raise NotImplementedError

    def found(self, entry: Entry, segments_N2: np.ndarray, scores_N: np.ndarray,
              classes_N: np.ndarray) -> dict[str, np.ndarray]:
        """Return the row of one sample, arrays of fixed shapes, from its candidates in seconds."""
        raise NotImplementedError

    # shared
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
                entries = [entry for entry in entries if entry.clip.uid not in problems]
            self._datasets[split] = MomentSamples(self, entries[:self.limited(len(entries))], split == "train")
        return self._datasets[split]

    def collate(self, items: list[dict]) -> dict:
        """Make a batch: features (B, T, E) with "mask" (B, T), moments padded with class -1, and tokens likewise."""
        batch = {"index": torch.tensor([item["index"] for item in items]),
                 "video": padded([item["video"] for item in items]),
                 "mask": mask_of([len(item["video"]) for item in items]),
                 "segments": padded([item["segments"] for item in items]),
                 "classes": padded([item["classes"] for item in items], -1)}
        if "words" in items[0]:
            words = [item["words"] for item in items]
            batch |= {"words": padded(words), "words_mask": mask_of([len(x) for x in words])}
        return batch

    def points(self, model, batch: dict) -> tuple[Tensor, ...]:
        """Return the head's logits, offsets and mask for a batch, and its points (P, 4)."""
        head, T = model.own["head"], batch["video"].shape[1]

        def compute(features_BTE: Tensor, mask_BT: Tensor, *words: Tensor):
            return tuple(head(features_BTE.transpose(1, 2), mask_BT, *words))
        inputs = [batch[key] for key in ("video", "mask", "words", "words_mask") if key in batch]
        return *self.in_parts(compute, *inputs), head.points(T, batch["video"].device)

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        """Return "class" (focal) and "offset" (DIoU): this rank's sums, over a running mean of all ranks' positives."""
        logits, offsets, mask, points_P4 = self.points(model, batch)
        wanted = targets(points_P4, batch["segments"], batch["classes"], self.num_classes)
        sums = losses((logits, offsets, mask), *wanted)
        ranks = distributed.world_size()
        positives = distributed.mean(sums.positives.float()) * ranks
        share = ranks / model.own["head"].normaliser(positives)
        return {"class": sums.focal * share, "offset": sums.diou * share}

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Return "index" and what `found` gives, a row for each sample."""
        logits, offsets, mask, points_P4 = self.points(model, batch)
        own, rows, entries = self.config.task, [], self.dataset("test").entries
        for at, index in enumerate(batch["index"].tolist()):
            entry = entries[index]
            if entry.clip.uid in self.unusable:
                segments, scores, classes = np.zeros((0, 2)), np.zeros(0), np.zeros(0, int)
            else:
                candidates = decode(logits[at], offsets[at], mask[at], points_P4, own.least_score, own.candidates,
                                    SHORTEST)
                segments, scores, classes = (x.cpu().numpy() for x in candidates)
                grid = self.files.grid(entry.clip, int(batch["mask"][at].sum()))
                segments = np.clip(grid.seconds(segments), 0, entry.clip.seconds)
            if not np.isfinite(segments).all() or not np.isfinite(scores).all():
                raise ValueError(f"clip {entry.clip.uid}: NaN or Inf in what the head finds (evaluate.precision "
                                 f"{self.config.evaluate.precision}); its training has diverged: lower optim.lr")
            rows.append({"index": np.array(index)} | self.found(entry, segments, scores.astype(float), classes))
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def tables(self) -> list[Path]:
        return [self.require_file(name) for name in self.inputs(self.config, "evaluate")]


def padded(parts: list[Tensor], value: float = 0.0) -> Tensor:
    """Return tensors of different lengths as one, (B, longest, …)."""
    return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)


def mask_of(lengths: list[int]) -> Tensor:
    """Return (B, longest), True where a row is real."""
    lengths_B1 = torch.tensor(lengths)[:, None]
    return torch.arange(int(lengths_B1.max())) < lengths_B1
