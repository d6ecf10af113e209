"""What the retrieval browser shows: every text with its clips, their grades and scores, in one run or two. No page, no pictures.

Retrieval is EK-100's and Charades-Ego's: a text and all clips. Questions are EgoMCQ's: a narration and five clips.
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



class Shown(NamedTuple):
    """A clip under a query: grade is its relevancy from 0 to 1, if that counts; mark says it in words; data are its exact numbers."""
    clip: int
    grade: float | None
    mark: str
    score_batch: str
    data: dict


class Side(NamedTuple):
    """A section of a run: what is browsed, or what it is compared with."""
    name: str
    run: Run
    section: str


def sides(run: Run, section: str, against) -> list[Side]:
    """[what is browsed, and what with]. against: a section of the run, a Run, or (another run, its section).

    Another run is a Run, a folder, or the name of a run beside this one.
    """
    found = [Side(section, run, section)]
    if isinstance(against, str):
        found.append(Side(against, run, against))
    elif against is not None:
        other, other_section = (against, section) if isinstance(against, Run) else against
        path = other.path if isinstance(other, Run) else run.path.parent / other
        if not path.is_dir():
            raise FileNotFoundError(f"there is no run folder {path}: {did_you_mean(path.name, [p.name for p in run.path.parent.iterdir()])}")
        found.append(Side(f"{path.name}: {other_section}", Run(path), other_section))
    return found


def make(task, found: list[Side]) -> Queries:
    """The queries of a task as one or two sections score them. Raises if a section wasn't scored on this task's data."""
    if not hasattr(task, "truth") and not hasattr(task, "questions"):
        raise ValueError(f"task {task.config.task!r} retrieves nothing to browse: ek100, charades and egomcq do")
    return (RetrievalQueries if hasattr(task, "truth") else QuestionQueries)(task, found)


class Queries:
    """Subclasses give, for side s and query k: hits(s, k), said(s, k), brief(s, k), right(s, k); and fill in what is listed here.

    texts: of each query. tags: {filter: labels of each query}. orders: {name: queries, sorted}; clip(v): what clip v is.
    """
    legend: str
    texts: list[str]
    tags: dict[str, list[list[str]]]
    orders: dict[str, np.ndarray]

    def __init__(self, found: list[Side]):
        self.sides = [side.name for side in found]

    def line(self, k: int) -> str:
        """One query in a list."""
        marks = [f"{'✓' if self.right(s, k) else '✗'}{self.brief(s, k)}" for s in range(len(self.sides))]
        return marks[0] + (f" ({self.sides[1]} {marks[1]})" if len(marks) > 1 else "") + f"  {self.texts[k]}"

    def chosen(self, text: str = "", order: str = "worst first", **labels: str) -> list[int]:
        """Queries that have all words of `text`, or their beginnings, and the labels, in an order. An empty label is any."""
        words = text.lower().split()
        return [int(k) for k in self.orders[order] if all(word in self.texts[k].lower() for word in words)
                and all(label in self.tags[name][k] for name, label in labels.items() if label)]

    def order_by(self, error_SK: list[np.ndarray], margin_SK: list[np.ndarray], none_K: np.ndarray | None = None) -> None:
        """Orders: error is larger the worse a query is answered; among equals, margin is how far right and wrong are apart.

        Queries that can't be answered, `none_K`, come last.
        """
        none_K, error_K, margin_K = np.zeros(len(self.texts)) if none_K is None else none_K, error_SK[0], margin_SK[0]
        self.orders = {"worst first": np.lexsort([margin_K, -error_K, none_K]), "best first": np.lexsort([-margin_K, error_K, none_K])}
        if len(self.sides) > 1:
            other, lost_K, closer_K = self.sides[1], error_K - error_SK[1], margin_SK[1] - margin_K
            self.orders |= {f"gained most over {other}": np.lexsort([closer_K, lost_K, none_K]),
                            f"lost most against {other}": np.lexsort([-closer_K, -lost_K, none_K])}
            for labels, lost in zip(self.tags["result"], lost_K, strict=True):
                labels += [f"better than {other}"] if lost < 0 else [f"worse than {other}"] if lost > 0 else []
        self.orders["as in the data"] = np.arange(len(self.texts))


class RetrievalQueries(Queries):
    """A text, its best clips, and the best of the right ones that are not among them."""
    legend = "Solid green ✓ right. Dotted orange ◐ partly relevant. Dashed red ✗ wrong."

    def __init__(self, task, found: list[Side]):
        super().__init__(found)
        self.task, self.texts, self.truth_VK = task, task.prompts(), task.truth()
        self.scores_SVK = [task.score_matrix(*checked_rows(task, side.run, side.section)) for side in found]
        right_VK = self.truth_VK == 1
        self.right_K = right_VK.sum(0)
        ranked = [first_right(scores_VK, right_VK) for scores_VK in self.scores_SVK]
        self.rank_SK = [rank_K for rank_K, _ in ranked]
        self.tags = query_words(task) | {"result": [
            ["no right clip"] if rank == 0 else ["right clip first"] if rank == 1 else
            [f"right clip in the top {TOP}"] if rank <= TOP else [f"right clip below the top {TOP}"] for rank in self.rank_SK[0]]}
        # ranks as logarithms: from 2 to 1 is as much as from 200 to 100
        error_SK = [np.log(np.maximum(rank_K, 1)) for rank_K in self.rank_SK]
        self.order_by(error_SK, [margin_K for _, margin_K in ranked], self.rank_SK[0] == 0)

    def right(self, s: int, k: int) -> bool:
        return self.rank_SK[s][k] == 1

    def brief(self, s: int, k: int) -> str:
        return f" rank {self.rank_SK[s][k]:,}" if self.rank_SK[s][k] else " no right clip"

    def said(self, s: int, k: int) -> str:
        if not self.rank_SK[s][k]:
            return "no clip is right for it"
        inside = sum(one.grade == 1 for one in self.hits(s, k)[:TOP])
        return f"first right clip at rank {self.rank_SK[s][k]:,} of {len(self.truth_VK):,}; {inside} of {self.right_K[k]} in the top {TOP}"

    def hits(self, s: int, k: int) -> list[Shown]:
        scores_V = self.scores_SVK[s][:, k]
        order = np.argsort(-scores_V, kind="stable")
        missed = [rank for rank in np.flatnonzero(self.truth_VK[order, k] == 1) if rank >= TOP][:MISSED]
        found = []
        for rank in [*range(min(TOP, len(order))), *missed]:
            v, grade = int(order[rank]), float(self.truth_VK[order[rank], k])
            mark = "✓ right" if grade == 1 else "✗ wrong" if grade == 0 else f"◐ partly, {grade:.2f}"
            found.append(Shown(v, grade, f"{rank + 1:,}. {mark}" + (", missed" if rank >= TOP else ""), f"score {scores_V[v]:.2f}",
                               {"rank": int(rank) + 1, "score": float(scores_V[v])}))
        return found

    def clip(self, v: int) -> str:
        if hasattr(self.task, "ids"):
            actions = "; ".join(self.texts[k] for k in np.flatnonzero(self.truth_VK[v] == 1))
            return textwrap.shorten(f"{self.task.ids[v]}: {actions or 'no action'}", 100, placeholder=" …")
        row = self.task.test.clips.iloc[v]
        return f"{row.narration} ({row.video_id}, {row.start_timestamp:.1f} to {row.stop_timestamp:.1f} s)"


class QuestionQueries(Queries):
    """A narration and its five clips, each with three scores; the ensemble's choice counts."""
    legend = "Solid green ✓ the answer. Dashed red ✗ what the ensemble chose instead."

    def __init__(self, task, found: list[Side]):
        super().__init__(found)
        from egokit.tasks.egomcq import clip_key
        self.task, self.texts, self.answers = task, task.texts, task.answers
        self.scores_S = [task.score_matrix(checked_rows(task, side.run, side.section)[0]) for side in found]
        number = {key: v for v, key in enumerate(task.clips)}
        self.clips_QC = [[number[clip_key(clip)] for clip in five] for five in task.choices]
        self.names = {v: f"{clip.get('clip_text', 'a clip')} ({clip['clip_start']:.1f} to {clip['clip_end']:.1f} s)"
                      for five, numbers in zip(task.choices, self.clips_QC, strict=True) for v, clip in zip(numbers, five, strict=True)}
        kinds = [[{1: "inter-video", 2: "intra-video"}[int(kind)], *(["verb-only"] if verb else [])]
                 for kind, verb in zip(task.types, task.verb_only, strict=True)]
        right = {name: self.scores_S[0][name].argmax(1) == self.answers for name in SCORES}
        self.tags = {"kind": kinds} | query_words(task) | {"result": [
            ["right" if e else "wrong", *(["fusion corrects dual"] if e and not d else ["fusion misleads dual"] if d and not e else [])]
            for d, e in zip(right["dual"], right["ensemble"], strict=True)]}
        margin_SQ = [margins(scores["ensemble"], self.answers) for scores in self.scores_S]
        wrong_SQ = [(scores["ensemble"].argmax(1) != self.answers).astype(float) for scores in self.scores_S]
        self.order_by(wrong_SQ, margin_SQ)

    def right(self, s: int, k: int) -> bool:
        return self.scores_S[s]["ensemble"][k].argmax() == self.answers[k]

    def brief(self, s: int, k: int) -> str:
        return ""

    def said(self, s: int, k: int) -> str:
        verdicts = [f"{name} {'✓' if self.scores_S[s][name][k].argmax() == self.answers[k] else '✗'}" for name in SCORES]
        return f"{', '.join(self.tags['kind'][k])}; {', '.join(verdicts)}"

    def hits(self, s: int, k: int) -> list[Shown]:
        chosen, found = self.scores_S[s]["ensemble"][k].argmax(), []
        for c, v in enumerate(self.clips_QC[k]):
            values = {name: float(self.scores_S[s][name][k, c]) for name in SCORES}
            answer = c == self.answers[k]
            mark = f"{c + 1}." + (" ✓ answer" if answer else "") + (("," if answer else " ✗") + " chosen" if c == chosen else "")
            grade = 1.0 if answer else 0.0 if c == chosen else None
            score = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
            found.append(Shown(v, grade, mark, score, {"choice": c + 1} | values))
        return found

    def clip(self, v: int) -> str:
        return self.names[v]


def first_right(scores_VK: np.ndarray, right_VK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each text (K,): the rank of its first right clip, 0 if none is right; how far that is above the best of the others, 0 to 1."""
    best_K = np.where(right_VK, scores_VK, -np.inf)
    at_K, best_K = best_K.argmax(0), best_K.max(0)
    before_VK = (scores_VK > best_K) | ((scores_VK == best_K) & (np.arange(len(scores_VK))[:, None] < at_K))
    other_K = np.where(right_VK, -np.inf, scores_VK).max(0)
    margin_K = np.clip(np.nan_to_num(best_K - other_K, posinf=1, neginf=-1), -1, 1)
    return np.where(right_VK.any(0), 1 + before_VK.sum(0), 0), margin_K


def margins(scores_QC: np.ndarray, answers_Q: np.ndarray) -> np.ndarray:
    """(Q,) the answer's score above the best of the others: below 0 where the answer is wrong."""
    rows, others_QC = np.arange(len(answers_Q)), scores_QC.astype(float)
    others_QC[rows, answers_Q] = -np.inf
    return scores_QC[rows, answers_Q] - others_QC.max(1)
