"""THE evaluator: every sample once over all ranks, rows gathered, ordered and counted, scored once.

It builds no optimizer and knows no benchmark. A count that is not the expected one is an error.
"""
from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from egokit.data.loader import build_loader, evaluation_batches, move_to_device
from egokit.model.egovlp import autocast, embed_texts
from egokit.train import distributed


def collect(parts: list[dict[str, np.ndarray]], expected: int) -> dict[str, np.ndarray]:
    """Rows of all ranks in the order of 'index', each once. Raises if there are not exactly `expected`."""
    if not any(parts):
        raise ValueError(f"there are no samples to evaluate (expected {expected}): does the task's list of them, or its data, hold any?")
    rows = {key: np.concatenate([part[key] for part in parts if part]) for key in next(p for p in parts if p)}
    _, first = np.unique(rows["index"], return_index=True)
    if len(first) != expected:
        raise RuntimeError(f"evaluation saw {len(first)} rows, expected {expected}: some were skipped; see the ranks' logs")
    return {key: value[first] for key, value in rows.items()}


@torch.no_grad()
def evaluate(model, task, split: str = "test",
             on_batch: Callable[[int, int], None] = lambda done, batches: None) -> tuple[dict, dict, np.ndarray | None]:
    """(metrics, rows, prompt embeddings) of a task, the same on every rank and for any number of ranks.

    metrics also has 'samples' (how many were scored) and 'seconds'. tell: called with (batches done, batches) of this rank.
    """
    began = time.perf_counter()
    config, was_training = task.config, model.training
    model.eval()
    try:
        with autocast(model.device, config.evaluate.precision):
            prompts = task.prompts()
            prompts_KE = embed_texts(model, prompts, config.data.eval_max_tokens) if prompts else None
            dataset = task.dataset(split)
            batches = evaluation_batches(len(dataset), config.evaluate.batch_size, distributed.rank(), distributed.world_size())
            scored = []
            on_batch(0, len(batches))
            for batch in build_loader(dataset, batches, task.collate, config.data.workers, config.data.read_timeout):
                scored.append(task.score_batch(model, move_to_device(batch, model.device)))
                on_batch(len(scored), len(batches))
    finally:
        model.train(was_training)
    mine = {key: np.concatenate([part[key] for part in scored]) for key in scored[0]} if scored else {}
    rows = collect(distributed.gather_objects(mine), task.num_rows())
    metrics = task.metrics(rows, prompts_KE)
    return metrics | {"samples": len(rows["index"]) // task.rows_per_sample, "seconds": time.perf_counter() - began}, rows, prompts_KE
