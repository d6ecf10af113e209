"""The content of the retrieval browser: queries with their clips, grades and scores.

A query is a text and all clips, or a question and its choices. One run is shown, or two are compared; browser.py makes
pages and pictures of them.
"""
from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from egokit.config.build import did_you_mean
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.style import checked_scores, grade_style, legend

TOP = 5       # clips shown of a text
MISSED = 1    # right clips shown that are not among them


class ShownClip(NamedTuple):
    """A clip as it is shown under a query."""
    clip: int            # its number in the data set
    grade: float | None  # relevancy from 0 to 1; None where it has no meaning
    mark: str            # the grade in words
    place: dict          # its place among the query's clips, counted from 1
    scores: dict         # {name: score}


class Side(NamedTuple):
    """An evaluated section of a run, shown by itself or beside another one."""
    name: str
    run: Run
    section: str


def sides(run: Run, section: str, against) -> list[Side]:
    """Return the section to show and, if `against` is given, the one beside it.

    Args:
        run: The run to show.
        section: Its evaluated section.
        against: A section of the same run, a Run with the same section, or (run, section), where the run is a Run, a
            folder, or the name of a run beside this one. None compares with nothing.
    """
    result = [Side(section, run, section)]
    if isinstance(against, str):
        result.append(Side(against, run, against))
    elif against is not None:
        other_run, other_section = (against, section) if isinstance(against, Run) else against
        path = other_run.path if isinstance(other_run, Run) else run.path.parent / other_run
        if not path.is_dir():
            raise FileNotFoundError(f"there is no run folder {path}: "
                                    f"{did_you_mean(path.name, [p.name for p in run.path.parent.iterdir()])}")
        result.append(Side(f"{path.name}: {other_section}", Run(path), other_section))
    return result


def make_queries(task, compared: list[Side]) -> Queries:
    """Return the queries of a task with the scores of one or two sections.

    Raises:
        ValueError: The task retrieves nothing, or a section was scored on other data than the task's.
    """
    from egokit.tasks import ChoiceTask, RetrievalTask
    for base, content in ((RetrievalTask, RetrievalQueries), (ChoiceTask, QuestionQueries)):
        if isinstance(task, base):
            return content(task, compared)
    if hasattr(task, "questions_of"):
        from egokit.viz.answer_queries import AnswerQueries
        return AnswerQueries(task, compared)
    raise ValueError(f"task {task.config.task.name!r} retrieves nothing to browse: expected a class derived from "
                     "RetrievalTask or ChoiceTask of egokit.tasks")


class Queries:
    """Queries and their clips, for one or two sides; the base of both kinds of task.

    A subclass gives `deciding(scores)`, the (clips, queries) scores by which queries are answered, `summary(s, k)`, the
    sentence over a query's clips, and `hits(s, k)`, the `ShownClip`s. `s` is the number of a side, `k` of a query, `v`
    of a clip.

    Attributes:
        legend: What borders and marks mean.
        texts: The text of each query, as it is shown.
        tags: {filter: labels of each query}.
        right_SK: Whether each query is answered right, by side.
        ranks: The first right clip's rank of each query in words, by side; "" where there are no ranks.
        orders: {name: numbers of the queries, sorted}.
    """
    def __init__(self, task, compared: list[Side], texts: list[str], right_VK: np.ndarray):
        self.task, self.texts, self.sides = task, list(map(shown, texts)), [shown(side.name) for side in compared]
        self.tags = {name: [list(map(shown, labels)) for labels in labels_K]
                     for name, labels_K in task.query_tags().items()}
        self.scores_S = [checked_scores(task, side.run, side.section) for side in compared]
        ranked = [first_right(self.deciding(scores), right_VK) for scores in self.scores_S]
        self.rank_SK, self.margin_SK = zip(*ranked, strict=True)
        self.right_SK = [rank_K == 1 for rank_K in self.rank_SK]

    @functools.cached_property
    def dataset(self):
        """The task's samples, of which clips are shown."""
        return self.task.dataset("test")

    def frames(self, v: int):
        """Return the frames of a clip, uint8 (T, 3, H, W)."""
        return self.dataset[0, v]["video"]

    def describe_clip(self, v: int) -> str:
        return self.task.describe_clip(v)

    def line(self, k: int) -> str:
        """Return the query's line in a list."""
        marks = [("✓" if right_K[k] else "✗") + ranks[k]
                 for right_K, ranks in zip(self.right_SK, self.ranks, strict=True)]
        return marks[0] + "".join(f" ({self.sides[1]} {mark})" for mark in marks[1:]) + f"  {self.texts[k]}"

    def matching(self, text: str = "", order: str = "worst first", **labels: str) -> list[int]:
        """Return the queries that contain all words of `text` and have the labels, in an order.

        A word may be a part of a word of the query. An empty label matches any query.
        """
        words = text.lower().split()
        return [int(k) for k in self.orders[order] if all(word in self.texts[k].lower() for word in words)
                and all(label in self.tags[name][k] for name, label in labels.items() if label)]

    def order_by(self, error_SK: list[np.ndarray]) -> None:
        """Set `orders` from the error of each query; among equal errors the margin decides.

        Queries without a right clip come last. With two sides, there are orders and labels of what changed between
        them, too.

        Args:
            error_SK: How badly each query is answered, by side; larger is worse.
        """
        error_K, margin_K, none_K = error_SK[0], self.margin_SK[0], self.rank_SK[0] == 0
        self.orders = {"worst first": np.lexsort([margin_K, -error_K, none_K]),
                       "best first": np.lexsort([-margin_K, error_K, none_K])}
        if len(self.sides) > 1:
            against, lost_K, closer_K = self.sides[1], error_K - error_SK[1], self.margin_SK[1] - margin_K
            self.orders |= {f"gained most over {against}": np.lexsort([closer_K, lost_K, none_K]),
                            f"lost most against {against}": np.lexsort([-closer_K, -lost_K, none_K])}
            for labels, lost in zip(self.tags["result"], lost_K, strict=True):
                labels += [f"better than {against}"] if lost < 0 else [f"worse than {against}"] if lost > 0 else []
        self.orders["as in the data"] = np.arange(len(self.texts))


class RetrievalQueries(Queries):
    """Texts with their best clips, and the best right clip that is not among them."""

    def __init__(self, task, compared: list[Side]):
        self.truth_VK = task.truth()
        self.legend, self.right_K = legend(task, self.truth_VK), (self.truth_VK == 1).sum(0)
        super().__init__(task, compared, task.prompts(), self.truth_VK == 1)
        self.ranks = [[f" rank {rank:,}" if rank else " no right clip" for rank in rank_K] for rank_K in self.rank_SK]
        self.tags |= {"result": [
            ["no right clip"] if rank == 0 else ["right clip first"] if rank == 1 else
            [f"right clip in the top {TOP}"] if rank <= TOP else [f"right clip below the top {TOP}"]
            for rank in self.rank_SK[0]]}
        # logarithms of ranks: a step from 2 to 1 is as large as one from 200 to 100
        self.order_by([np.log(np.maximum(rank_K, 1)) for rank_K in self.rank_SK])

    def deciding(self, scores_VK: np.ndarray) -> np.ndarray:
        return scores_VK

    def summary(self, s: int, k: int) -> str:
        if not self.rank_SK[s][k]:
            return "no clip is right for it"
        in_top = sum(hit.grade == 1 for hit in self.hits(s, k)[:TOP])
        return (f"first right clip at rank {self.rank_SK[s][k]:,} of {len(self.truth_VK):,}; "
                f"{in_top} of {self.right_K[k]} in the top {TOP}")

    def hits(self, s: int, k: int, top: int = TOP) -> list[ShownClip]:
        scores_V, clips = self.scores_S[s][:, k], []
        order = np.argsort(-scores_V, kind="stable")
        missed = [rank for rank in np.flatnonzero(self.truth_VK[order, k] == 1).tolist() if rank >= top][:MISSED]
        for rank in [*range(min(top, len(order))), *missed]:
            v, grade = int(order[rank]), float(self.truth_VK[order[rank], k])
            mark = f"{rank + 1:,}. {grade_style(grade)[0]}" + (", missed" if rank >= top else "")
            clips.append(ShownClip(v, grade, mark, {"rank": rank + 1}, {"score": float(scores_V[v])}))
        return clips


class QuestionQueries(Queries):
    """Questions with their choices and the scores of each; the deciding score's choice counts."""

    def __init__(self, task, compared: list[Side]):
        super().__init__(task, compared, task.texts, np.arange(task.choices.shape[1])[:, None] == task.answers)
        named = {name for scores in self.scores_S for name in scores}
        meanings = ", ".join(f"{name}: {words}" for name, words in task.meanings.items() if name in named)
        deciding = " or ".join(dict.fromkeys(map(task.decides, self.scores_S)))
        self.legend = f"Solid green ✓: the answer. Dashed red ✗: what {deciding} chose. {meanings}"
        self.ranks = [[""] * len(self.texts) for _ in compared]
        self.tags |= {"result": [["right" if right else "wrong"] for right in self.right_SK[0]]}
        plain, *corrected = self.scores_S[0]
        if corrected:
            plain_right_Q = self.scores_S[0][plain].argmax(1) == task.answers
            for q in np.flatnonzero(plain_right_Q != self.right_SK[0]):
                verb = "misleads" if plain_right_Q[q] else "corrects"
                self.tags["result"][q].append(f"{corrected[0]} {verb} {plain}")
        self.order_by([1.0 - right_Q for right_Q in self.right_SK])

    def deciding(self, scores: dict[str, np.ndarray]) -> np.ndarray:
        return scores[self.task.decides(scores)].T

    def summary(self, s: int, k: int) -> str:
        kinds = f"{', '.join(self.task.kinds[k])}; " if self.task.kinds else ""
        return kinds + ", ".join(f"{name} {'✓' if scores_QC[k].argmax() == self.task.answers[k] else '✗'}"
                                 for name, scores_QC in self.scores_S[s].items())

    def hits(self, s: int, k: int) -> list[ShownClip]:
        deciding = self.task.decides(self.scores_S[s])
        chosen, clips = self.scores_S[s][deciding][k].argmax(), []
        for c, v in enumerate(self.task.choices[k].tolist()):
            scores = {name: float(scores_QC[k, c]) for name, scores_QC in self.scores_S[s].items()}
            answer = c == self.task.answers[k]
            choice = (("," if answer else " ✗") + " chosen") if c == chosen else ""
            mark = f"{c + 1}." + (" ✓ answer" if answer else "") + choice
            grade = 1.0 if answer else 0.0 if c == chosen else None
            clips.append(ShownClip(v, grade, mark, {"choice": c + 1}, scores))
        return clips


def first_right(scores_VK: np.ndarray, right_VK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each text's first right clip, and its margin.

    Args:
        scores_VK: Scores of every clip for every text.
        right_VK: Which clips are right.

    Returns:
        (ranks (K,), margins (K,)): ranks count from 1 and are 0 where no clip is right; a margin is how far the best
        right clip's score is above the best other one's, a very large number where one of them is missing.
    """
    best_K = np.where(right_VK, scores_VK, -np.inf)
    at_K, best_K = best_K.argmax(0), best_K.max(0)
    before_VK = (scores_VK > best_K) | ((scores_VK == best_K) & (np.arange(len(scores_VK))[:, None] < at_K))
    other_K = np.where(right_VK, -np.inf, scores_VK).max(0)
    return np.where(right_VK.any(0), 1 + before_VK.sum(0), 0), np.nan_to_num(best_K - other_K)
