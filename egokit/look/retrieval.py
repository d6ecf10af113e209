"""Questions and retrieval results as frame strips, right and wrong marked."""
from __future__ import annotations

import dataclasses

import numpy as np

from egokit.look.base import RIGHT, WIDTH, WRONG, finish, frame, graded, heading, pyplot, strip, thin
from egokit.runs import Run
from egokit.sampling import spread


def questions(task, run: Run, section: str, count: int = 6):
    """EgoMCQ questions: the narration, its five clips with their scores; the answer and the model's choice marked.

    Half of the questions shown were answered right, half wrong, as far as there are such.
    """
    plt = pyplot()
    rows, _ = run.read_rows(section)
    scores = task.scores(rows)
    right = scores["ensemble"].argmax(1) == task.answers
    wrong_count = min(count // 2, int((~right).sum()))
    picked = [*spread(np.flatnonzero(right), count - wrong_count), *spread(np.flatnonzero(~right), wrong_count)]
    dataset = task.dataset("test")
    figure, axes = plt.subplots(len(picked), 5, figsize=(WIDTH, 1.45 * len(picked) + 0.4), squeeze=False, layout="constrained")
    from egokit.tasks.egomcq import clip_key
    for q, line in zip(picked, axes, strict=True):
        chosen = int(scores["ensemble"][q].argmax())
        for c, axis in enumerate(line):
            pixels = dataset[0, task.number[clip_key(task.choices[q][c])]]["video"]
            values = " ".join(f"{name[0]} {scores[name][q, c]:.2f}" for name in ("dual", "fusion", "ensemble"))
            answer = c == task.answers[q]
            mark = "✓ answer" if answer else "✗ chosen" if c == chosen else ""
            frame(axis, strip(pixels), f"{values}\n{mark}", RIGHT if answer else WRONG if c == chosen else None, not answer)
        kind = "verb only" if task.verb_only[q] else {1: "inter-video", 2: "intra-video"}[int(task.types[q])]
        heading(line[0], f"{'RIGHT' if right[q] else 'WRONG'} ({kind}): {task.texts[q]}", RIGHT if right[q] else WRONG)
    figure.suptitle("d: dual (cosine), f: fusion (matching probability), e: ensemble (their sum)", fontsize=11)
    return finish(figure, run, f"questions-{section}")


def retrieved(task, run: Run, section: str, count: int = 6, top: int = 5, seed: int = 0):
    """Texts with their best clips as frame strips; right (relevancy 1), partly right and wrong marked."""
    plt = pyplot()
    rows, prompts_KE = run.read_rows(section)
    scores_VK, relevancy_VK = task.scores(rows, prompts_KE), task.truth()
    dataset, texts = task.dataset("test"), task.prompts()
    possible = np.flatnonzero(relevancy_VK.max(0) == 1)
    picked = np.sort(np.random.default_rng(seed).choice(possible, min(count, len(possible)), replace=False))
    figure, axes = plt.subplots(len(picked), top, figsize=(WIDTH, 1.3 * len(picked)), squeeze=False, layout="constrained")
    for k, line in zip(picked, axes, strict=True):
        for rank, (axis, v) in enumerate(zip(line, np.argsort(-scores_VK[:, k], kind="stable"), strict=False)):
            mark, *border = graded(relevancy_VK[v, k])
            frame(axis, strip(thin(dataset[0, int(v)]["video"])), f"{rank + 1}. {mark}   {scores_VK[v, k]:.2f}", *border)
        heading(line[0], f"“{texts[k]}”")
    return finish(figure, run, f"retrieved-{section}")


@dataclasses.dataclass
class Question:
    """One EgoMCQ question, read: pixels (5, T, 3, size, size) uint8, frames the same normalised, answer from 0."""
    text: str
    pixels: object
    frames: object
    answer: int
    figure: object


def question(task, number: int, run: Run | None = None) -> Question:
    """Read and draw question `number` of an EgoMCQ task."""
    import torch

    from egokit.tasks.egomcq import clip_key
    from egokit.transforms import normalise
    plt = pyplot()
    dataset = task.dataset("test")
    pixels = torch.stack([dataset[0, task.number[clip_key(clip)]]["video"] for clip in task.choices[number]])
    figure, axes = plt.subplots(1, len(pixels), figsize=(WIDTH, 1.5), layout="constrained")
    for c, axis in enumerate(axes):
        frame(axis, strip(thin(pixels[c])), f"clip {c + 1}")
    figure.suptitle(f"Which clip is “{task.texts[number]}”?")
    return Question(task.texts[number], pixels, normalise(pixels), int(task.answers[number]), finish(figure, run, "question"))
