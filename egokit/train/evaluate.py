"""The one evaluator: from a task's samples, shared out over all ranks, to its metrics.

Every sample is scored once; rows are gathered, ordered and counted; metrics are computed from all rows at once. A wrong
number of rows is an error. This module builds no optimizer and knows no benchmark.
"""
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from egokit.data.loader import build_loader, evaluation_batches, move_to_device
from egokit.model import checkpoints
from egokit.model.dual import embed_texts
from egokit.model.precision import autocast
from egokit.runs.run_folder import Run
from egokit.train import distributed, nodes


def collect(parts: list[dict[str, np.ndarray]], expected: int) -> dict[str, np.ndarray]:
    """Return the rows of all ranks, each once, in the order of their "index".

    Args:
        parts: rows of each rank; {} of a rank without samples.
        expected: number of rows that a complete evaluation has.

    Raises:
        ValueError: no rank has any rows.
        RuntimeError: there are not exactly `expected` different rows.
    """
    if not any(parts):
        raise ValueError(f"there are no samples to evaluate (expected {expected}): "
                         "does the task's list of them, or its data, hold any?")
    keys = next(part for part in parts if part)
    rows = {key: np.concatenate([part[key] for part in parts if part]) for key in keys}
    _, first = np.unique(rows["index"], return_index=True)
    if len(first) != expected:
        raise RuntimeError(f"evaluation saw {len(first)} rows, expected {expected}: "
                           "some were skipped; see the ranks' logs")
    return {key: value[first] for key, value in rows.items()}


@torch.no_grad()
def evaluate(model, task, split: str = "test", on_batch: Callable[[int, int], None] = lambda done, batches: None,
             ) -> tuple[dict, dict, np.ndarray | None]:
    """Evaluate a model on a task.

    The result is the same on every rank and for any number of ranks.

    Args:
        model: an EgoVLP, or another Dual; it is put into evaluation mode and back.
        task: a Task; its `score_batch` and `metrics` do the work.
        split: which `task.dataset` to score.
        on_batch: called with (batches done, all batches) of this rank: first with 0, then after each batch.

    Returns:
        (metrics, rows, prompts_KE). metrics: the task's, with "samples" (how many were scored) and "seconds". rows:
        what `score_batch` gave, ordered and complete. prompts_KE: embeddings of the task's prompts, None without any.
    """
    task.expect_fusion(model, "evaluate")
    began = time.perf_counter()
    config, was_training = task.config, model.training
    rank, ranks = distributed.rank(), distributed.world_size()
    model.eval()
    try:
        with autocast(model.device, config.evaluate.precision):
            prompts = task.prompts()
            prompts_KE = embed_texts(model, prompts, config.data.eval_max_tokens) if prompts else None
            dataset = task.dataset(split)
            batches = evaluation_batches(len(dataset), config.evaluate.batch_size, rank, ranks)
            on_batch(0, len(batches))

            def on_device() -> Iterator[dict]:
                loader = build_loader(dataset, batches, task.collate, config.data.workers, config.data.read_timeout)
                for done, batch in enumerate(loader, 1):
                    yield move_to_device(batch, model.device)
                    on_batch(done, len(batches))  # the next one is asked for when this one is scored
            scored = list(task.score_batches(model, on_device()))
    finally:
        model.train(was_training)
    own_rows = {key: np.concatenate([part[key] for part in scored]) for key in scored[0]} if scored else {}
    rows = collect(distributed.gather_objects(own_rows), task.num_rows())
    metrics = task.metrics(rows, prompts_KE)
    samples = len(rows["index"]) // task.rows_per_sample
    return metrics | {"samples": samples, "seconds": time.perf_counter() - began}, rows, prompts_KE


def score_held_out(model, task, run: Run, section: str, chosen: dict) -> dict:
    """Return what a training reports: `chosen`; where its task holds samples out, the best model's metrics on them.

    Args:
        model: takes the weights of the run's best.pt if there are samples to score.
        task: its `held_out` is scored, once, and its outputs are saved.
        chosen: metrics of the validation that chose the model; they then get the prefix "val_".
    """
    held_out = task.held_out()
    if held_out is None:
        return chosen
    with checkpoints.read_by(nodes.once_a_node):
        checkpoints.restore(model, run.checkpoints / "best.pt")
    metrics, *outputs = evaluate(model, held_out)
    if distributed.rank() == 0:
        held_out.save_outputs(run, section, *outputs)
    return metrics | {f"val_{name}": value for name, value in chosen.items()}
