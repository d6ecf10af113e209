"""EgoClip: pre-training with EgoNCE, masked words (MLM) and image-text matching (ITM).

`EgoClip.loss` is the place to change the pre-training loss; its formulas are in losses.py.

Source: EgoVLPv2 (arXiv 2307.05463), sections 3-4.
"""
from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egokit.config.build import ConfigError
from egokit.config.schema import Config, Count, NotNegative, Positive, Share, TaskConfig
from egokit.data.egoclip_table import NOUNS, VERBS, EgoClipTable
from egokit.data.loader import Samples
from egokit.data.site_checks import EGOCLIP, EGOMCQ, PREP, Checks, Finding
from egokit.data.video import clips, frame_sampling
from egokit.tasks import losses
from egokit.tasks.base import Task
from egokit.train import distributed, moving
from egokit.train.parts import Part

WHOLE_BATCH = {"similarity_BB", "positives_BB", "text_index_B", "video_index_B", "label_B"}  # names that parts replaced


def multi_hot(ids: np.ndarray, classes: int) -> np.ndarray:
    """Return a vector (classes,) of bytes that is 1 at `ids`."""
    vector = np.zeros(classes, np.uint8)
    vector[ids] = 1
    return vector


class Clips(Samples):
    """Training samples: a clip and its scene-aware negative, each with text and tags."""

    def __init__(self, task: EgoClip):
        self.task = task
        self.table = EgoClipTable(task.require_file("egoclip.csv"), node_cache=task.config.site.node_cache)
        self.chunked = task.require_file("Ego4D_Chunked")
        super().__init__(task.limited(len(self.table)), task.config.seed, train=True)

    def check_files(self) -> None:
        """Raise FileNotFoundError if a video of the table is not prepared; the folder is listed once."""
        there = set(os.listdir(self.chunked))
        absent = sorted(uid for uid in set(self.table.videos) - there if not (self.chunked / uid).exists())  # a/b
        if absent:
            raise FileNotFoundError(f"{len(absent)} videos of {self.table.path} are not under {self.chunked}, such "
                                    f"as {absent[0]}; prepare them with notebook 01_data_prep")

    def negative(self, index: int, rng: np.random.Generator) -> int:
        """Draw another clip of the same scene; the clip itself if it is alone there."""
        return self.table.negative(index, rng)

    def read_clip(self, index: int, rng: np.random.Generator) -> dict:
        """Read a clip's frames, text and tags, and draw the numbers that mask its words."""
        row = self.table.row(index)
        config = self.task.config

        def pick(first: int, last: int) -> np.ndarray:
            return frame_sampling.sample_frames(first, last, config.data.frames, rng)

        pixels = clips.read_chunked(self.chunked / row["video_uid"], row["clip_start"], row["clip_end"], pick,
                                    config.site.chunk_seconds, config.data.reader)
        return {"video": self.task.transform(pixels, rng), "text": row["clip_text"],
                "verbs": multi_hot(row["verbs"], VERBS), "nouns": multi_hot(row["nouns"], NOUNS),
                "uniforms": rng.random((config.data.max_tokens, 3), dtype=np.float32)}

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        return {"pair": [self.read_clip(index, rng), self.read_clip(self.negative(index, rng), rng)], "index": index}


class EgoClip(Task):
    """Pre-training on EgoClip, validated on EgoMCQ."""
    notebook = "02_pretrain"
    sections: ClassVar = {"train": "pretrain"}
    figures = ("curves.png",)

    class Params(TaskConfig):
        temperature: Positive = 0.05           # of EgoNCE
        negative_temperature: Positive = 0.05  # of the draw of hard negatives; the paper uses EgoNCE's
        itm_weight: NotNegative = 2.0          # weight of the image-text matching loss
        mask_probability: Share = 0.15         # masked language modelling: share of tokens to predict
        val_frames: Count = 4                  # frames of a clip in EgoMCQ between epochs

    best = "ensemble_intra"
    trains = "all"
    clips_per_sample = 2  # a clip and its negative

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for name in ("contrastive_loss", "pairs", "matching_loss", "chosen_texts"):
            given = inspect.signature(getattr(cls, name)).parameters
            if old := [parameter for parameter in given if parameter in WHOLE_BATCH]:
                expected = ", ".join(inspect.signature(getattr(EgoClip, name)).parameters)
                raise ConfigError(
                    f"{cls.__name__}.{name}: {', '.join(old)} were of the whole batch; expected ({expected}), where "
                    "similarity and positives hold this rank's rows (.rows_bB) and columns (.columns_bB), and indices "
                    "are of this rank's pairs. Rename them, and let a loss return this rank's share times the number "
                    "of ranks, as similarity.mean_of_texts gives it (docs/extending.md)")

    @classmethod
    def needs_fusion(cls, config: Config, action: str) -> str:
        return "pre-training with masked words and matching"

    def dataset(self, split: str) -> Clips:
        if split != "train":
            raise ValueError(f"EgoClip has only a train split, not {split!r}: it is validated on EgoMCQ")
        return Clips(self)

    def validation(self) -> Task:
        from egokit.tasks.egomcq import EgoMCQ
        data = dataclasses.replace(self.config.data, eval_frames=self.config.task.val_frames)
        return EgoMCQ(dataclasses.replace(self.config, data=data))

    def collate(self, items: list[dict]) -> dict:
        """Make a batch whose rows are clips, each followed by its negative; mask its words."""
        batch = super().collate([clip for item in items for clip in item["pair"]])
        batch["sample"] = torch.tensor([item["index"] for item in items])
        length = batch["tokens"]["input_ids"].shape[1]
        ids, labels = losses.mask_words(batch["tokens"]["input_ids"], batch.pop("uniforms")[:, :length],
                                        self.tokenizer.special_ids, self.tokenizer.mask_id, self.tokenizer.vocab_size,
                                        self.config.task.mask_probability)
        return batch | {"masked_ids": ids, "labels": labels}

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        """Return "egonce", "mlm" and "itm"; see `Task.loss` for what each rank has to compute.

        Shapes: b clips of this rank, B of all ranks, S video tokens, L text tokens, D width.
        """
        counts = distributed.sizes(len(batch["video"]), batch["video"].device)  # b of every rank

        # Each rank's share of the global value, times the world size. EgoNCE, or what replaces it:
        similarity, positives = self.similarity_part(model, batch, counts), self.positives(batch, counts)
        contrastive = self.contrastive_loss(model, similarity, positives)

        # The unfused half of the video side serves MLM and ITM: the one large tensor that is kept of all clips
        trunk_bSD = self.in_parts(lambda frames: model.fusion_trunk(model.normalise(frames)), batch["video"])

        mlm = self.masked_words_loss(model, batch, trunk_bSD)
        itm = self.matching_loss(model, batch, trunk_bSD, counts, *self.pairs(similarity, positives, step))
        return {**contrastive, "mlm": mlm, "itm": itm}

    def contrastive_loss(self, model, similarity: Part, positives: Part) -> dict[str, Tensor]:
        """Return the contrastive part of the loss as named terms: this rank's share, times the number of ranks.

        Args:
            similarity: cosines of this rank's texts with all clips of the global batch (rows_bB), and of its clips with
                all texts (columns_bB), with gradients.
            positives: which of them share a verb and a noun, or are the same sample.
        """
        return {"egonce": losses.egonce(similarity, positives, self.config.task.temperature)}

    def positives(self, batch: dict, counts: list[int]) -> Part:
        """Return which texts and clips share a verb and a noun, or are the same sample: this rank's rows and columns.

        Both are the same tensor, as the whole matrix is symmetric.
        """
        verbs_bC, nouns_bC = batch["verbs"], batch["nouns"]
        verbs_BC, nouns_BC = (distributed.gather(x, counts) for x in (verbs_bC, nouns_bC))
        first = sum(counts[:distributed.rank()])
        rows_bB = losses.positives(verbs_bC, nouns_bC, verbs_BC, nouns_BC, first)
        return Part(rows_bB, rows_bB, first, len(counts))

    def masked_words_loss(self, model, batch: dict, trunk_bSD: Tensor) -> Tensor:
        """Return this rank's share of the mean over all masked words, times the world size."""
        frames, labels_bL = batch["video"].shape[1], batch["labels"]

        def summed(trunk_bSD: Tensor, ids: Tensor, mask: Tensor, labels_bL: Tensor) -> Tensor:
            """Return the cross-entropy, (1,), summed over masked words."""
            labels = labels_bL.flatten()
            chosen = (labels != -100).nonzero()[:, 0]  # once for both uses: the CPU waits for the GPU to count them
            words_bLD = model.text_trunk({"input_ids": ids, "attention_mask": mask})
            _, states_bLD = model.fuse(trunk_bSD, words_bLD, mask, frames, "mlm")
            logits = model.mlm_from_states(states_bLD.flatten(0, 1)[chosen]).float()
            return F.cross_entropy(logits, labels[chosen], reduction="sum")[None]

        mask = batch["tokens"]["attention_mask"]
        total = self.in_parts(summed, trunk_bSD, batch["masked_ids"], mask, labels_bL).sum()
        # a rank's mean number of masked words; it stays on the GPU, because the CPU would wait for it
        words_per_rank = distributed.mean((labels_bL != -100).sum().float())
        return total / words_per_rank.clamp_min(1 / distributed.world_size())

    def matching_loss(self, model, batch: dict, trunk_bSD: Tensor, counts: list[int], text_index_b: Tensor,
                      video_index_b: Tensor, label_b: Tensor) -> Tensor:
        """Return this rank's share of the mean over all pairs, times weight and world size.

        Args:
            text_index_b, video_index_b, label_b: this rank's pairs, as `pairs` draws them.
        """
        frames = batch["video"].shape[1]

        def summed(trunk_bSD: Tensor, ids: Tensor, mask: Tensor, label_b: Tensor) -> Tensor:
            """Return the cross-entropy, (1,), summed over pairs."""
            words_bLD = model.text_trunk({"input_ids": ids, "attention_mask": mask})
            states = model.fuse(trunk_bSD, words_bLD, mask, frames, "itm")
            return F.cross_entropy(model.itm_from_states(*states).float(), label_b, reduction="sum")[None]

        text_moves, video_moves = moving.plan_moves(counts, text_index_b, video_index_b)
        ids, mask = self.chosen_texts(batch["tokens"], text_moves)
        chosen_trunk_bSD = moving.move_rows(trunk_bSD, video_moves)
        total = self.in_parts(summed, chosen_trunk_bSD, ids, mask, label_b).sum()
        return self.config.task.itm_weight * total * distributed.world_size() / sum(counts)

    def pairs(self, similarity: Part, positives: Part, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw this rank's pairs for matching, by random numbers made of (seed, step, row); see `losses.draw_pairs`.

        Returns:
            (text index, video index, label), each (b,); indices are global numbers.
        """
        return losses.draw_pairs(similarity, positives, self.config.task.negative_temperature, self.config.seed, step)

    def chosen_texts(self, tokens: dict, moves: moving.Moves) -> tuple[Tensor, Tensor]:
        """Return ids and mask, each (b, L), of the texts of this rank's pairs.

        The result is cut to its longest text, unless `fixed_length`.
        """
        length = self.config.data.max_tokens  # ranks' texts are padded to different lengths
        padding = (0, length - tokens["input_ids"].shape[1])
        ids, mask = F.pad(tokens["input_ids"], padding, value=1), F.pad(tokens["attention_mask"], padding)
        ids, mask = moving.move_rows(torch.stack([ids, mask], 1), moves).unbind(1)
        longest = length if self.fixed_length else int(mask.sum(1).max())
        return ids[:, :longest], mask[:, :longest]

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        return {"egoclip.csv": EGOCLIP, "Ego4D_Chunked": PREP, "egomcq.json": EGOMCQ}

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        """Check the prepared Ego4D videos, egoclip.csv, and its rows against the videos."""
        part, path = "EgoClip", checks.root / "egoclip.csv"
        yield from checks.each(part, "Ego4D", checks.check_prepared(part))
        table = checks.check_file(part, path, EGOCLIP)
        yield table
        if table.state == "ok":
            yield from checks.each(part, path.name, cls._check_rows(checks, part, path))

    @classmethod
    def _check_rows(cls, checks: Checks, part: str, path: Path) -> Iterator[Finding]:
        """Check the table's rows against the videos."""
        table = EgoClipTable(path, warn=False)
        yield Finding(part, "rows", "ok", f"{len(table):,} narrations of {len(table.videos):,} videos")
        if table.malformed:
            yield Finding(part, "rows", "note", f"{table.malformed:,} malformed rows are left out")
        names = np.array(table.videos, object)[table.columns["video_uid"]]
        yield from checks.check_rows(part, "rows", names, checks.root / "Ego4D_Chunked", checks.prep_ego4d,
                                     table.columns["clip_end"])
