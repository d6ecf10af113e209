"""Multiple-choice tasks: each question is a text, and one of its clips is the answer."""
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from egokit.data.video.frame_sampling import evenly_spaced
from egokit.tasks.base import WATCHED
from egokit.tasks.retrieval import QueryTask


class ChoiceTask(QueryTask):
    """Base of multiple-choice tasks; a subclass gives `dataset`, `score_batch`, `metrics` and `score_matrix`.

    Its `__init__` sets `texts`, `choices` and `answers`.

    Attributes:
        texts: the text of each of the Q questions.
        choices: (Q, C) numbers of the clips, in `dataset("test")`, among which a question asks.
        answers: (Q,) which of the C choices is right.
        kinds: labels of each question, the first of which is its kind; () if all are of one.
        deciding: the score of `score_matrix` whose highest value is the model's choice; see `decides`.
        meanings: {score: what it is, in words}, for pictures.
    """
    kinds: Sequence[list[str]] = ()
    deciding = "ensemble"
    meanings: ClassVar[dict[str, str]] = {}

    def score_matrix(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return (Q, C) scores by name: one, or a plain one, one that corrects it, and what becomes of both."""
        raise NotImplementedError(f"{type(self).__name__} has no score_matrix: {{name: (questions, choices) scores}}")

    def decides(self, scores: dict[str, np.ndarray]) -> str:
        """Return the name of the score that decides: `deciding`, or the plain one, the first, of a model without it."""
        return self.deciding if self.deciding in scores else next(iter(scores))

    def num_rows(self) -> int:
        return self.choices.size

    def query_tags(self) -> dict[str, list[list[str]]]:
        return {"kind": self.kinds} if self.kinds else {}

    def predictions(self, rows: dict[str, np.ndarray], prompts_KE) -> list[dict]:
        """Return questions of all kinds, evenly spaced, with the deciding scores."""
        scores = self.score_matrix(rows)
        scores_QC = scores[self.decides(scores)]
        by_kind = np.argsort([labels[0] for labels in self.kinds], kind="stable") if self.kinds else \
            np.arange(len(self.texts))
        return [{"text": self.texts[q], "clips": self.choices[q].tolist(),
                 "scores": scores_QC[q].astype(float).round(4).tolist(),
                 "relevancy": (np.arange(self.choices.shape[1]) == self.answers[q]).astype(int).tolist()}
                for q in evenly_spaced(by_kind, WATCHED)]
