"""The browser's content for a task whose questions are answered in words: a clip, the five best answers, the right one.

A question is a query with one clip; its answers and their chances stand where others have scores.
"""
from __future__ import annotations

import collections
from typing import NamedTuple

import numpy as np

from egokit.data.video.timeline import VideoError
from egokit.runs.shown_text import shown
from egokit.viz.queries import Queries, ShownClip, Side
from egokit.viz.style import checked_rows

BELOW = 6  # rank of a right answer that is not among the five


class Answers(NamedTuple):
    """A section's answers to all questions, by their number."""
    classes_Q5: np.ndarray  # best first; -1: none
    chances_Q5: np.ndarray


def section_answers(task, run, section: str) -> Answers:
    """Return the answers of an evaluated section, checked to be of this task's questions."""
    rows, _ = checked_rows(task, run, section)
    order = np.argsort(rows["index"], kind="stable")
    return Answers(rows["classes"][order], rows["chances"][order])


def clip_frames(task, name: str) -> np.ndarray:
    """Return the frames of a clip, uint8 (T, H, W, 3); black ones if it can't be read and the config allows that."""
    try:
        return task.read_clip(name)
    except (VideoError, FileNotFoundError):
        if not task.config.data.max_bad_fraction:
            raise
        size = task.config.model.image_size
        return np.zeros((task.config.data.eval_frames, size, size, 3), np.uint8)


class AnswerQueries(Queries):
    """Questions about clips with the five best answers of one or two sides."""

    def __init__(self, task, compared: list[Side]):
        asked = task.asked
        self.task, self.sides = task, [shown(side.name) for side in compared]
        self.texts = [shown(question.text) for question in asked]
        names = sorted({question.clip for question in asked})
        self.names, place = names, {name: v for v, name in enumerate(names)}
        self.clip_K = [place[question.clip] for question in asked]
        self.answers_S = [section_answers(task, side.run, side.section) for side in compared]
        self.right_K = np.array([question.answer for question in asked])
        self.rank_SK, self.margin_SK, self.right_SK, self.ranks = [], [], [], []
        for classes, chances in self.answers_S:
            hit_KA = classes == self.right_K[:, None]
            rank_K = np.where(hit_KA.any(1), 1 + hit_KA.argmax(1), BELOW)
            own_K, other_K = (np.where(mask, chances, 0).max(1) for mask in (hit_KA, ~hit_KA))
            self.rank_SK.append(rank_K)
            self.margin_SK.append(own_K - other_K)
            self.right_SK.append(rank_K == 1)
            self.ranks.append([f" {self.word(first)}  ·" for first in classes[:, 0]])
        self.legend = ("Solid green ✓: the best answer is right. Dashed red ✗: it is wrong. Numbers are the chances "
                       "that the model gives its five best answers.")
        self.tags = {"kind": [list(map(shown, question.labels)) for question in asked],
                     "right answer": [[self.word(question.answer)] for question in asked],
                     "result": [["right"] if rank == 1 else ["wrong", "right among the five"] if rank < BELOW else
                                ["wrong"] for rank in self.rank_SK[0]]}
        self.order_by([np.minimum(rank_K, BELOW).astype(float) for rank_K in self.rank_SK])

    def word(self, number: int) -> str:
        """Return the answer of a class as it is shown."""
        return shown(self.task.vocabulary[number]) if number >= 0 else "no answer"

    def summary(self, s: int, k: int) -> str:
        right = shown(self.task.asked[k].answer_text) or self.word(self.right_K[k])
        return f"right: {right}; {', '.join(self.tags['kind'][k])}"

    def hits(self, s: int, k: int) -> list[ShownClip]:
        classes, chances = (values[k] for values in self.answers_S[s])
        right = bool(self.right_SK[s][k])
        marked = {f"{'✓ ' if number == self.right_K[k] else ''}{self.word(number)}": float(chance)
                  for number, chance in zip(classes.tolist(), chances.tolist(), strict=True) if number >= 0}
        mark = f"{'✓' if right else '✗'} {self.word(int(classes[0]))}"
        return [ShownClip(self.clip_K[k], float(right), mark, {}, marked)]

    def frames(self, v: int):
        """Return the frames of a clip, uint8 (T, 3, H, W)."""
        return self.task.transform(clip_frames(self.task, self.names[v]), None)

    def describe_clip(self, v: int) -> str:
        return self.names[v]


def confused(task, answers: Answers) -> collections.Counter:
    """Return how often each (right answer, other answer in its place) occurs."""
    pairs = zip([question.answer for question in task.asked], answers.classes_Q5[:, 0].tolist(), strict=True)
    return collections.Counter((right, said) for right, said in pairs if right != said)
