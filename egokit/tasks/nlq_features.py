"""EgoNLQ features: a clip's windows alone, or fused with each of its questions; and the questions' words.

Of a model without fusion encoder nothing is known of its words: each question's embedding stands for them, as one word.

Shapes: Q questions and N windows of a clip, B windows of a batch, T frames, L tokens of a question, D width.

Source: EgoVLPv2's EgoNLQ/main.py (fused_feature_extract).
"""
from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from egokit.config.build import ConfigError
from egokit.config.schema import Config, Count
from egokit.data.site_checks import PREP
from egokit.model.dual import embed_texts
from egokit.model.precision import autocast
from egokit.model.text_encoder import additive_mask
from egokit.runs.array_file import read_array
from egokit.runs.files import remove_abandoned
from egokit.runs.run_folder import Run
from egokit.tasks.clip_features import ClipFeatures, read_manifest
from egokit.tasks.extraction import save
from egokit.tasks.moments.nlq_annotations import NARRATIONS, read_questions


class NLQFeatures(ClipFeatures):
    """Extracts features of NLQ's clips, and of the words of their questions.

    features/<clip_uid>.pt or .npy holds (N, E), or (Q, N, D) where task.feature_kind is fused. questions/<clip_uid>.npy
    holds the words, (sum of L, D), question after question; of a model without fusion encoder the embeddings, (Q, E).
    The manifest lists a clip's questions in that order.

    Attributes:
        unasked: clips without a question, which have no fused features.
    """
    spread = True
    saving = "or set task.feature_dtype=float16, task.feature_kind=clip or data.limit"
    unasked: tuple[str, ...] = ()

    class Params(ClipFeatures.Params):
        feature_clips: str = "nlq_*.json"       # files that list the clips and questions, * stands for the split
        feature_frames: Count = 4               # frames of one feature
        feature_kind: Literal["clip", "fused"] = "clip"  # of a clip alone, or anew with each of its questions
        feature_layer: Literal["projection", "cls"] = "projection"  # of features of a clip alone: after the
                                                # projection, or the video's CLS before it
        feature_dtype: Literal["float32", "float16"] = "float32"  # of the files; float16 takes half the room

    @classmethod
    def needs_fusion(cls, config: Config, action: str) -> str:
        is_fused = action == "extract" and config.task.feature_kind == "fused"
        return "task.feature_kind=fused (features fused with each question)" if is_fused else ""

    def expect_fusion(self, model, action: str) -> None:
        super().expect_fusion(model, action)
        if action == "extract" and self.config.task.feature_layer == "cls" and not model.fuses:
            raise ConfigError("task.feature_layer=cls is the video's state before EgoVLPv2's projection, but "
                              f"{model.family} tells its embeddings alone: set task.feature_layer=projection")

    @property
    def axes(self) -> int:
        return 3 if self.config.task.feature_kind == "fused" else 2

    def layer(self) -> dict[str, str]:
        own = self.config.task
        layer = ("fusion_norm" if own.feature_kind == "fused" else "video_cls" if own.feature_layer == "cls" else
                 self.projection)
        described = {"kind": own.feature_kind, "layer": layer, "dtype": own.feature_dtype} | (
            {"words": "embedding"} if self.whose == "peer" else {})
        return described | ({"unasked": list(self.unasked)} if self.unasked else {})

    def clips(self) -> list[dict]:
        """Return the clips as ClipFeatures does, each with its "questions" as the manifest lists them.

        Raises:
            ValueError: the features are fused, and there is no question.
        """
        asked, longest = collections.defaultdict(list), self.config.data.eval_max_tokens
        for path in self.lists().values():
            for question in read_questions(path):
                asked[question.clip_uid].append(
                    {key: getattr(question, key) for key in ("annotation_uid", "query_idx", "query")})
        clips = super().clips()
        for clip in clips:
            clip["questions"] = asked[clip["clip_uid"]]
            for question in clip["questions"]:
                question["tokens"] = (1 if self.whose == "peer" else
                                      self.tokenizer([question["query"]], longest)["input_ids"].shape[1])
        if self.config.task.feature_kind == "fused":
            self.unasked = tuple(clip["clip_uid"] for clip in clips if not clip["questions"])
            clips = [clip for clip in clips if clip["questions"]]
            if not clips:
                raise ValueError(f"{self.config.task.feature_clips}: its clips have no questions with which they could "
                                 "be fused; set task.feature_kind=clip, or name another list in task.feature_clips")
        return clips

    def bytes_of(self, model, clip: dict) -> int:
        own, width = self.config.task, model.config.width if self.whose == "egovlpv2" else model.embed_dim
        rows = self.windows_of(clip) * (len(clip["questions"]) if own.feature_kind == "fused" else 1)
        dimension = model.embed_dim if self.layer()["layer"] == self.projection else width
        words = sum(question["tokens"] for question in clip["questions"])
        return (rows * dimension + words * width) * np.dtype(own.feature_dtype).itemsize

    def check_room(self, model, run: Run, clips: list[dict]) -> None:
        if self.unasked:
            run.log({"kind": "clips", "unasked": self.unasked})
            print(f"{len(self.unasked):,} clips have no question, and no fused features, such as {self.unasked[0]}; "
                  "the manifest lists them", flush=True)
        super().check_room(model, run, clips)

    def texts(self, model, clip: dict) -> list[tuple[Tensor, Tensor]]:
        """Return each question's states before the first fused layer (1, L, D), and its mask (1, L)."""
        texts = []
        with torch.no_grad(), autocast(model.device, self.config.evaluate.precision):
            for question in clip["questions"]:
                tokens = model.prepared_tokens(self.tokenizer([question["query"]], self.config.data.eval_max_tokens))
                texts.append((model.text_trunk(tokens), tokens["attention_mask"]))
        return texts

    def embedder(self, model, clip: dict) -> Callable[[Tensor], Tensor]:
        own = self.config.task
        if own.feature_kind == "clip":
            return {"projection": model.embed_video,
                    "cls": lambda frames_BTCHW: model.video(frames_BTCHW).float()}[own.feature_layer]
        texts = self.texts(model, clip)

        def fused(frames_BTCHW: Tensor) -> Tensor:
            """Return the video's CLS after the fusion with each question, (B, Q, D)."""
            trunk_BSD, (B, T) = model.fusion_trunk(frames_BTCHW), frames_BTCHW.shape[:2]
            attention_BSD = model.video.blocks[model.num_unfused].attention(trunk_BSD, T)
            states = [model.fuse(trunk_BSD, text_1LD.expand(B, -1, -1), mask_1L.expand(B, -1), T, "video",
                                 attention_BSD)[0] for text_1LD, mask_1L in texts]
            return model.fusion_norm(torch.cat(states, dim=1)).float()
        return fused

    def features(self, model, clip: dict) -> tuple[Tensor, dict]:
        """Return one clip's features, (N, E) or (Q, N, D), and the damage among its frames; see ClipFeatures."""
        feature, damage = super().features(model, clip)
        return self.as_stored(feature if self.axes == 2 else feature.transpose(0, 1), clip), damage

    def as_stored(self, feature: Tensor, clip: dict) -> Tensor:
        """Return features or words of a clip in the data type of the files."""
        own, evaluate = self.config.task, self.config.evaluate
        kept = feature.to(getattr(torch, own.feature_dtype)).contiguous()
        if not kept.isfinite().all():
            raise ValueError(f"clip {clip['clip_uid']}: NaN, Inf or more than {own.feature_dtype} holds in its "
                             f"features or words, up to {feature.abs().max():.4g}; set task.feature_dtype=float32, or "
                             f"another evaluate.precision, now {evaluate.precision}")
        return kept

    def words(self, model, clip: dict) -> Tensor:
        """Return the unfused text encoder's last states of all tokens of a clip's questions, (sum of L, D).

        Of a model without fusion encoder, return the embeddings (Q, E) of the questions.
        """
        if not model.fuses:
            with torch.no_grad(), autocast(model.device, self.config.evaluate.precision):
                asked = [question["query"] for question in clip["questions"]]
                embedded = embed_texts(model, asked, self.config.data.eval_max_tokens) if asked else \
                    np.empty((0, model.embed_dim), np.float32)
            return self.as_stored(torch.from_numpy(embedded), clip)
        first, last, parts = model.num_unfused, model.config.depth, [torch.empty(0, model.config.width)]
        with torch.no_grad(), autocast(model.device, self.config.evaluate.precision):
            for text_1LD, mask_1L in self.texts(model, clip):
                states_1LD = model.text.run_layers(text_1LD, additive_mask(mask_1L), first, last)
                parts.append(states_1LD[0].float().cpu())
        return self.as_stored(torch.cat(parts), clip)

    def is_made(self, run: Run, clip: dict) -> bool:
        return super().is_made(run, clip) and words_file(run, clip).exists()

    def write(self, model, run: Run, clip: dict) -> None:
        save(words_file(run, clip), self.words(model, clip))
        super().write(model, run, clip)  # last: `delete_outdated` looks at the features

    def extract(self, model, run: Run) -> dict[str, float]:
        metrics = super().extract(model, run)
        if not metrics:
            return {}
        remove_abandoned(run.path / "questions")
        clips = read_manifest(run.path / "features")["clips"]
        return metrics | {"questions": sum(len(clip["questions"]) for clip in clips)}

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        needed = super().inputs(config, action)
        return needed | ({NARRATIONS: f"{PREP} nlq-narrations"} if NARRATIONS in needed else {})


def words_file(run: Run, clip: dict) -> Path:
    """Return the path of the words of a clip's questions."""
    return run.path / "questions" / f"{clip['clip_uid']}.npy"


def stored_words(run: Run, clip: dict) -> list[np.ndarray]:
    """Return the words of each question of a clip of the manifest, (L, D) each, memory-mapped.

    Raises:
        ValueError: the file is damaged, or holds another number of words; the message names it.
    """
    path, fix = words_file(run, clip), "delete it, and extract the features again"
    words, counts = read_array(path, fix), [question["tokens"] for question in clip["questions"]]
    if words.ndim != 2 or words.dtype.kind != "f" or len(words) != sum(counts):
        raise ValueError(f"{path}: {words.dtype} of shape {words.shape}, expected ({sum(counts)} words, dimension); "
                         f"{fix}")
    return [words[stop - count:stop] for count, stop in zip(counts, np.cumsum(counts), strict=True)]
