"""The span head (VSLNet) in EgoNLQ's task: its labels, its loss and its answers; the original's rules.

Source: EgoVLPv2's EgoNLQ, with Ego4D's episodic-memory.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from egokit.model.span_head import SpanHead, best_spans, highlight_loss, span_loss
from egokit.tasks.feature_files import Grid
from egokit.tasks.moments import span_labels
from egokit.tasks.moments.nlq_annotations import Question
from egokit.train import distributed


def make(task) -> SpanHead:
    """Return a fresh head for a task's features and words."""
    own = task.config.task
    return SpanHead(task.files.dimension, task.text, positions=own.positions, dropout=own.span_dropout)


def grid(question: Question, P: int) -> Grid:
    """Return the clock of P positions that share the clip's length, as the original cuts it."""
    seconds = _seconds(question)
    return Grid(P / seconds, seconds / P / 2)


def _seconds(question: Question) -> float:
    """Return the clip's length as the original cuts it; its own, where it is shorter than a feature."""
    return question.duration or question.clip_stop - question.clip_start


def labels(question: Question, P: int) -> dict[str, np.ndarray]:
    """Return "span", the answer's first and last position (2,), and "highlight" (P,); (0, 0) without an answer."""
    first, last = span_labels.span_label(question.grid_start, question.grid_stop, P, _seconds(question))
    return {"span": np.array([first, last]), "highlight": span_labels.highlight_label(first, last, P)}


def loss(task, head: SpanHead, batch: dict) -> dict[str, Tensor]:
    """Return "span" and "highlight", this rank's share of the mean over all questions, times the world size."""
    def compute(*inputs: Tensor) -> tuple[Tensor, ...]:
        return head(*inputs)
    start_BP, end_BP, highlight_BP = task.in_parts(compute, *_inputs(batch))
    rows = torch.tensor(float(len(start_BP)), device=start_BP.device)
    share = rows / distributed.mean(rows.clone())  # 1, unless ranks have different shares of the batch
    real = batch["video_mask"]
    positions = real.sum().float()
    return {"span": share * span_loss(start_BP, end_BP, *batch["span"].unbind(1)),
            "highlight": positions / distributed.mean(positions.clone()) * task.config.task.highlight_weight
            * highlight_loss(highlight_BP, batch["highlight"], real)}


def candidates(head: SpanHead, batch: dict, answers: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each question's best spans: segments (N, 2) in positions, chances (N,) and classes (N,), which are 0."""
    start_BP, end_BP, _ = head(*_inputs(batch))
    for first, last, chance in zip(*best_spans(start_BP, end_BP, batch["video_mask"], answers), strict=True):
        real = first >= 0
        yield torch.stack([first - 0.5, last + 0.5], 1)[real], chance[real], first[real] * 0


def _inputs(batch: dict) -> list[Tensor]:
    return [batch[key] for key in ("video", "video_mask", "words", "words_mask")]
