"""The content of the retrieval browser: queries with their clips, grades and scores.

A query is a text and all clips (EK-100, Charades-Ego), or a narration and five clips (EgoMCQ). One run is shown, or two
are compared. Pages and pictures are made in browser.py.
"""
from __future__ import annotations

import textwrap
from typing import NamedTuple

import numpy as np

from egokit.config.build import did_you_mean
from egokit.runs.run_folder import Run
from egokit.viz.per_class import query_words
from egokit.viz.style import checked_rows

TOP = 5       # clips shown of a text
MISSED = 1    # right clips shown that are not among them
SCORES = ("dual", "fusion", "ensemble")


class ShownClip(NamedTuple):
    """A clip as it is shown under a query."""
    clip: int            # its number in the data set
    grade: float | None  # relevancy from 0 to 1; None where it has no meaning
    mark: str            # the grade in words
    scores: str          # the scores as text
    data: dict           # the exact numbers, for the page's data


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
    if not hasattr(task, "truth") and not hasattr(task, "questions"):
        raise ValueError(f"task {task.config.task.name!r} retrieves nothing to browse: ek100, charades and egomcq do")
    return (RetrievalQueries if hasattr(task, "truth") else QuestionQueries)(task, compared)


class Queries:
    """Queries and their clips, for one or two sides; the base of both kinds of task.

    A subclass fills in `legend`, `texts` (of each query), `tags` ({filter: labels of each query}) and `orders` ({name:
    numbers of the queries, sorted}), and gives right, rank_text, summary, hits and clip. `s` is the number of a side,
    `k` of a query, `v` of a clip.
    """
    legend: str
    texts: list[str]
    tags: dict[str, list[list[str]]]
    orders: dict[str, np.ndarray]

    def __init__(self, compared: list[Side]):
        self.sides = [side.name for side in compared]

    def right(self, s: int, k: int) -> bool:
        """Whether the query is answered right."""
        raise NotImplementedError

    def rank_text(self, s: int, k: int) -> str:
        """Return the first right clip's rank for the list; "" where there are no ranks."""
        raise NotImplementedError

    def summary(self, s: int, k: int) -> str:
        """Return the sentence that stands over the query's clips."""
        raise NotImplementedError

    def hits(self, s: int, k: int) -> list[ShownClip]:
        """Return the clips shown under the query."""
        raise NotImplementedError

    def clip(self, v: int) -> str:
        """Return what a clip shows, in words."""
        raise NotImplementedError

    def line(self, k: int) -> str:
        """Return the query's line in a list."""
        marks = [f"{'✓' if self.right(s, k) else '✗'}{self.rank_text(s, k)}" for s in range(len(self.sides))]
        return marks[0] + (f" ({self.sides[1]} {marks[1]})" if len(marks) > 1 else "") + f"  {self.texts[k]}"

    def matching(self, text: str = "", order: str = "worst first", **labels: str) -> list[int]:
        """Return the queries that contain all words of `text` and have the labels, in an order.

        A word may be a part of a word of the query. An empty label matches any query.
        """
        words = text.lower().split()
        return [int(k) for k in self.orders[order] if all(word in self.texts[k].lower() for word in words)
                and all(label in self.tags[name][k] for name, label in labels.items() if label)]

    def order_by(self, error_SK: list[np.ndarray], margin_SK: list[np.ndarray],
                 none_K: np.ndarray | None = None) -> None:
        """Set `orders` from the error of each query.

        With two sides, there are orders and labels of what changed between them, too.

        Args:
            error_SK: How badly each query is answered, by side; larger is worse.
            margin_SK: How far the right clip's score is above the best wrong one's; it decides among equal errors.
            none_K: Whether a query has no right clip; these queries come last.
        """
        none_K = np.zeros(len(self.texts)) if none_K is None else none_K
        error_K, margin_K = error_SK[0], margin_SK[0]
        self.orders = {"worst first": np.lexsort([margin_K, -error_K, none_K]),
                       "best first": np.lexsort([-margin_K, error_K, none_K])}
        if len(self.sides) > 1:
            against, lost_K, closer_K = self.sides[1], error_K - error_SK[1], margin_SK[1] - margin_K
            self.orders |= {f"gained most over {against}": np.lexsort([closer_K, lost_K, none_K]),
                            f"lost most against {against}": np.lexsort([-closer_K, -lost_K, none_K])}
            for labels, lost in zip(self.tags["result"], lost_K, strict=True):
                labels += [f"better than {against}"] if lost < 0 else [f"worse than {against}"] if lost > 0 else []
        self.orders["as in the data"] = np.arange(len(self.texts))


class RetrievalQueries(Queries):
    """Texts with their best clips, and the best right clip that is not among them."""
    legend = "Solid green ✓ right. Dotted orange ◐ partly relevant. Dashed red ✗ wrong."

    def __init__(self, task, compared: list[Side]):
        super().__init__(compared)
        self.task, self.texts, self.truth_VK = task, task.prompts(), task.truth()
        self.scores_SVK = [task.score_matrix(*checked_rows(task, side.run, side.section)) for side in compared]
        right_VK = self.truth_VK == 1
        self.right_K = right_VK.sum(0)
        ranked = [first_right(scores_VK, right_VK) for scores_VK in self.scores_SVK]
        self.rank_SK = [rank_K for rank_K, _ in ranked]
        self.tags = query_words(task) | {"result": [
            ["no right clip"] if rank == 0 else ["right clip first"] if rank == 1 else
            [f"right clip in the top {TOP}"] if rank <= TOP else [f"right clip below the top {TOP}"]
            for rank in self.rank_SK[0]]}
        # logarithms of ranks: a step from 2 to 1 is as large as one from 200 to 100
        error_SK = [np.log(np.maximum(rank_K, 1)) for rank_K in self.rank_SK]
        self.order_by(error_SK, [margin_K for _, margin_K in ranked], self.rank_SK[0] == 0)

    def right(self, s: int, k: int) -> bool:
        return self.rank_SK[s][k] == 1

    def rank_text(self, s: int, k: int) -> str:
        return f" rank {self.rank_SK[s][k]:,}" if self.rank_SK[s][k] else " no right clip"

    def summary(self, s: int, k: int) -> str:
        if not self.rank_SK[s][k]:
            return "no clip is right for it"
        in_top = sum(hit.grade == 1 for hit in self.hits(s, k)[:TOP])
        return (f"first right clip at rank {self.rank_SK[s][k]:,} of {len(self.truth_VK):,}; "
                f"{in_top} of {self.right_K[k]} in the top {TOP}")

    def hits(self, s: int, k: int) -> list[ShownClip]:
        scores_V = self.scores_SVK[s][:, k]
        order = np.argsort(-scores_V, kind="stable")
        missed = [rank for rank in np.flatnonzero(self.truth_VK[order, k] == 1) if rank >= TOP][:MISSED]
        shown = []
        for rank in [*range(min(TOP, len(order))), *missed]:
            v, grade = int(order[rank]), float(self.truth_VK[order[rank], k])
            mark = "✓ right" if grade == 1 else "✗ wrong" if grade == 0 else f"◐ partly, {grade:.2f}"
            shown.append(ShownClip(v, grade, f"{rank + 1:,}. {mark}" + (", missed" if rank >= TOP else ""),
                                   f"score {scores_V[v]:.2f}", {"rank": int(rank) + 1, "score": float(scores_V[v])}))
        return shown

    def clip(self, v: int) -> str:
        if hasattr(self.task, "ids"):
            actions = "; ".join(self.texts[k] for k in np.flatnonzero(self.truth_VK[v] == 1))
            return textwrap.shorten(f"{self.task.ids[v]}: {actions or 'no action'}", 100, placeholder=" …")
        row = self.task.test.clips.iloc[v]
        return f"{row.narration} ({row.video_id}, {row.start_timestamp:.1f} to {row.stop_timestamp:.1f} s)"


class QuestionQueries(Queries):
    """Narrations with five clips each and three scores a clip; the ensemble's choice counts."""
    legend = "Solid green ✓ the answer. Dashed red ✗ what the ensemble chose instead."

    def __init__(self, task, compared: list[Side]):
        super().__init__(compared)
        from egokit.tasks.egomcq import clip_key
        self.task, self.texts, self.answers = task, task.texts, task.answers
        self.scores_S = [task.score_matrix(checked_rows(task, side.run, side.section)[0]) for side in compared]
        number = {key: v for v, key in enumerate(task.clips)}
        self.clips_QC = [[number[clip_key(clip)] for clip in five] for five in task.choices]
        self.names = {v: f"{clip.get('clip_text', 'a clip')} ({clip['clip_start']:.1f} to {clip['clip_end']:.1f} s)"
                      for five, numbers in zip(task.choices, self.clips_QC, strict=True)
                      for v, clip in zip(numbers, five, strict=True)}
        kinds = [[{1: "inter-video", 2: "intra-video"}[int(kind)], *(["verb-only"] if verb else [])]
                 for kind, verb in zip(task.types, task.verb_only, strict=True)]
        right = {name: self.scores_S[0][name].argmax(1) == self.answers for name in SCORES}
        self.tags = {"kind": kinds} | query_words(task) | {"result": [
            ["right" if ensemble else "wrong", *(["fusion corrects dual"] if ensemble and not dual else
                                                 ["fusion misleads dual"] if dual and not ensemble else [])]
            for dual, ensemble in zip(right["dual"], right["ensemble"], strict=True)]}
        margin_SQ = [margins(scores["ensemble"], self.answers) for scores in self.scores_S]
        wrong_SQ = [(scores["ensemble"].argmax(1) != self.answers).astype(float) for scores in self.scores_S]
        self.order_by(wrong_SQ, margin_SQ)

    def right(self, s: int, k: int) -> bool:
        return self.scores_S[s]["ensemble"][k].argmax() == self.answers[k]

    def rank_text(self, s: int, k: int) -> str:
        return ""

    def summary(self, s: int, k: int) -> str:
        verdicts = [f"{name} {'✓' if self.scores_S[s][name][k].argmax() == self.answers[k] else '✗'}"
                    for name in SCORES]
        return f"{', '.join(self.tags['kind'][k])}; {', '.join(verdicts)}"

    def hits(self, s: int, k: int) -> list[ShownClip]:
        chosen, shown = self.scores_S[s]["ensemble"][k].argmax(), []
        for c, v in enumerate(self.clips_QC[k]):
            values = {name: float(self.scores_S[s][name][k, c]) for name in SCORES}
            answer = c == self.answers[k]
            choice = (("," if answer else " ✗") + " chosen") if c == chosen else ""
            mark = f"{c + 1}." + (" ✓ answer" if answer else "") + choice
            grade = 1.0 if answer else 0.0 if c == chosen else None
            scores = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
            shown.append(ShownClip(v, grade, mark, scores, {"choice": c + 1} | values))
        return shown

    def clip(self, v: int) -> str:
        return self.names[v]


def first_right(scores_VK: np.ndarray, right_VK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each text's first right clip, and its margin.

    Args:
        scores_VK: Scores of every clip for every text.
        right_VK: Which clips are right.

    Returns:
        (ranks (K,), margins (K,)): ranks count from 1 and are 0 where no clip is right; a margin is how far the best
        right clip's score is above the best other one's, clipped to -1 … 1.
    """
    best_K = np.where(right_VK, scores_VK, -np.inf)
    at_K, best_K = best_K.argmax(0), best_K.max(0)
    before_VK = (scores_VK > best_K) | ((scores_VK == best_K) & (np.arange(len(scores_VK))[:, None] < at_K))
    other_K = np.where(right_VK, -np.inf, scores_VK).max(0)
    margin_K = np.clip(np.nan_to_num(best_K - other_K, posinf=1, neginf=-1), -1, 1)
    return np.where(right_VK.any(0), 1 + before_VK.sum(0), 0), margin_K


def margins(scores_QC: np.ndarray, answers_Q: np.ndarray) -> np.ndarray:
    """Return (Q,): the answer's score minus the best other; negative for wrong choices."""
    rows, others_QC = np.arange(len(answers_Q)), scores_QC.astype(float)
    others_QC[rows, answers_Q] = -np.inf
    return scores_QC[rows, answers_Q] - others_QC.max(1)
