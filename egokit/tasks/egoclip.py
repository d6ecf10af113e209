"""EgoClip: pre-training with EgoNCE, masked words and image-text matching. Source: EgoVLPv2, sections 3-4."""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egokit.data.egoclip_table import NOUNS, VERBS, EgoClipTable
from egokit.data.loader import Samples
from egokit.data.video import clips, frame_sampling
from egokit.data.video.transforms import normalise
from egokit.model.egovlp import similarity
from egokit.tasks import losses
from egokit.tasks.base import Task
from egokit.train import distributed


def multi_hot(ids: np.ndarray, classes: int) -> np.ndarray:
    vector = np.zeros(classes, np.float32)
    vector[ids] = 1
    return vector


class Clips(Samples):
    """A clip and its scene-aware negative, each with text and tags. Leading axis 2: (clip, negative)."""

    def __init__(self, task: EgoClip):
        self.task = task
        self.table = EgoClipTable(task.need("egoclip.csv"))
        self.chunked = task.need("Ego4D_Chunked")
        absent = sorted(set(self.table.videos) - {folder.name for folder in self.chunked.iterdir()})
        if absent:
            raise FileNotFoundError(f"{len(absent)} videos of egoclip.csv are not under {self.chunked}, such as {absent[0]}; "
                                    "prepare them with notebook 01_data_prep")
        super().__init__(task.limited(len(self.table)), task.config.seed, train=True)

    def negative(self, index: int, rng: np.random.Generator) -> int:
        """Another clip of the same scene; the clip itself where it is alone."""
        return self.table.negative(index, rng)

    def one(self, index: int, rng: np.random.Generator) -> dict:
        row = self.table.row(index)
        config = self.task.config
        pixels = clips.read_chunked(self.chunked / row["video_uid"], row["clip_start"], row["clip_end"],
                                    lambda first, last: frame_sampling.egoclip(first, last, config.data.frames, rng),
                                    config.site.chunk_seconds, config.data.reader)
        return {"video": self.task.transform(pixels, rng), "text": row["clip_text"],
                "verbs": multi_hot(row["verbs"], VERBS), "nouns": multi_hot(row["nouns"], NOUNS),
                "uniforms": rng.random((config.data.tokens, 3), dtype=np.float32)}

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        return {"pair": [self.one(index, rng), self.one(self.negative(index, rng), rng)], "index": index}


class EgoClip(Task):
    best = "ensemble_intra"
    uses_fusion = True
    clips_in_sample = 2  # a clip and its negative

    def dataset(self, split: str):
        if split != "train":
            raise ValueError(f"EgoClip has only a train split, not {split!r}: it is validated on EgoMCQ")
        return Clips(self)

    def validation(self) -> Task:
        import dataclasses

        from egokit.tasks.egomcq import EgoMCQ
        data = dataclasses.replace(self.config.data, evaluation_frames=self.config.data.validation_frames)
        return EgoMCQ(dataclasses.replace(self.config, data=data))

    def collate(self, items: list[dict]) -> dict:
        batch = super().collate([one for item in items for one in item["pair"]])
        batch["sample"] = torch.tensor([item["index"] for item in items])
        length = batch["tokens"]["input_ids"].shape[1]
        ids, labels = losses.mask_words(batch["tokens"]["input_ids"], batch.pop("uniforms")[:, :length],
                                        self.tokenizer.special_ids, self.tokenizer.mask_id, self.tokenizer.vocabulary,
                                        self.config.train.mask_probability)
        return batch | {"masked_ids": ids, "labels": labels}

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        train, tokens, labels = self.config.train, batch["tokens"], batch["labels"]
        device, T, world = batch["video"].device, batch["video"].shape[1], distributed.world_size()
        counts = distributed.sizes(len(batch["video"]), device)

        video_BE, text_BE = self.embeddings(model, batch, counts)
        similarity_BB = similarity(text_BE, video_BE)
        positives = losses.positives(distributed.gather(batch["verbs"], counts), distributed.gather(batch["nouns"], counts))
        terms = {"egonce": losses.egonce(similarity_BB, positives, train.temperature)}

        # once, for masked words and for matching; the one large tensor that is kept of all clips
        trunk = self.in_parts(lambda frames: model.fusion_trunk(normalise(frames)), batch["video"])

        def fused(trunk_BSD: Tensor, ids: Tensor, mask: Tensor, read: str) -> tuple[Tensor | None, Tensor]:
            return model.fuse(trunk_BSD, model.text_trunk({"input_ids": ids, "attention_mask": mask}), mask, T, read)

        def masked_words(trunk_BSD: Tensor, ids: Tensor, mask: Tensor, labels_BL: Tensor) -> Tensor:
            """(1,) cross-entropy, summed over the words."""
            labels = labels_BL.flatten()
            chosen = (labels != -100).nonzero()[:, 0]  # once for both: a GPU waits until the CPU knows how many there are
            states = fused(trunk_BSD, ids, mask, "mlm")[1].flatten(0, 1)
            logits = model.mlm_from_states(states[chosen]).float()
            return F.cross_entropy(logits, labels[chosen], reduction="sum")[None]

        def matching(trunk_BSD: Tensor, ids: Tensor, mask: Tensor, label_B: Tensor) -> Tensor:
            """(1,) cross-entropy, summed over the pairs."""
            logits = model.itm_from_states(*fused(trunk_BSD, ids, mask, "itm")).float()
            return F.cross_entropy(logits, label_B, reduction="sum")[None]

        words = self.in_parts(masked_words, trunk, batch["masked_ids"], tokens["attention_mask"], labels).sum()
        on_average = distributed.mean((labels != -100).sum().float())  # masked words of a rank; not read, as a GPU would be waited for
        terms["mlm"] = words / on_average.clamp_min(1 / world)

        text_index, video_index, label = self.pairs(similarity_BB, positives, step)
        texts, own = self.chosen_texts(tokens, text_index, counts), label.split(counts)[distributed.rank()].to(device, non_blocking=True)
        matched = self.in_parts(matching, distributed.gather_rows(trunk, video_index, counts), *texts, own).sum()
        terms["itm"] = train.itm_weight * matched * world / sum(counts)
        return terms

    def pairs(self, similarity_BB: Tensor, positives_BB: Tensor, step: int) -> list[Tensor]:
        """Global pairs for matching; drawn by rank 0 from (seed, step), so that all ranks agree to the bit."""
        generator = torch.Generator().manual_seed(hash((self.config.seed, step)) % 2**63)
        drawn = losses.draw_pairs(similarity_BB, positives_BB, self.config.train.negative_temperature, generator)
        return distributed.broadcast(list(drawn), similarity_BB.device)

    def chosen_texts(self, tokens: dict, text_index_B: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Token rows for this rank's pairs. Texts are small: all are gathered, at one length, and stay at it if `fixed_length`."""
        pad = self.config.data.tokens - tokens["input_ids"].shape[1]
        mine = text_index_B.split(counts)[distributed.rank()].to(tokens["input_ids"].device, non_blocking=True)
        ids = distributed.gather(F.pad(tokens["input_ids"], (0, pad), value=1), counts)[mine]
        mask = distributed.gather(F.pad(tokens["attention_mask"], (0, pad)), counts)[mine]
        longest = self.config.data.tokens if self.fixed_length else int(mask.sum(1).max())
        return ids[:, :longest], mask[:, :longest]
