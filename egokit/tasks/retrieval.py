"""Retrieval tasks: every test clip is compared with every one of a list of texts."""
import numpy as np

from egokit.data.video.frame_sampling import evenly_spaced
from egokit.tasks import metrics
from egokit.tasks.base import WATCHED, Task
from egokit.tasks.metrics import cosine


class QueryTask(Task):
    """Base of both kinds of tasks with texts and test clips; its hooks are for the pictures of egokit.viz.

    Attributes:
        partly_relevant: what a relevancy between 0 and 1 means, for legends.
    """
    partly_relevant = "the number is its relevancy, from 0 (wrong) to 1 (right)"

    def describe_clip(self, v: int) -> str:
        """Return what clip number `v` of `dataset("test")` shows, in words."""
        return f"clip {v}"

    def query_tags(self) -> dict[str, list[list[str]]]:
        """Return {menu of the browser: labels of each text or question}, such as {"verb": [["cut"], ["open"]]}."""
        return {}

    def relevancy_to(self, text: str) -> np.ndarray | None:
        """Return each test clip's relevancy to a text, from 0 to 1 (right); None if the annotations don't say."""
        return None


class RetrievalTask(QueryTask):
    """Base of retrieval tasks; a subclass gives `dataset`, `prompts`, `truth` and `measure`."""
    best = "mAP"

    def truth(self) -> np.ndarray:
        """Return the (clips, prompts) relevancy in [0, 1]; 1 is right."""
        raise NotImplementedError(f"{type(self).__name__} has no truth: which prompts are right for which clips")

    def measure(self, scores_VK: np.ndarray, truth_VK: np.ndarray) -> dict[str, float]:
        """Return the metrics of (clips, prompts) scores, given `truth()`."""
        raise NotImplementedError(f"{type(self).__name__} has no measure, which makes metrics of scores and truth")

    def score_matrix(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> np.ndarray:
        """Return the (clips, prompts) scores: their cosines."""
        return cosine(rows["video"], prompts_KE)

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Return "index" and "video", the (b, E) embeddings."""
        return {"index": batch["index"].numpy(force=True),
                "video": self.embed_video(model, batch["video"]).numpy(force=True)}

    def metrics(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> dict[str, float]:
        return self.measure(self.score_matrix(rows, prompts_KE), self.truth())

    def chance(self) -> dict[str, float]:
        truth_VK = self.truth()
        return metrics.chance(self.measure, truth_VK.shape, truth_VK, draws=20 if truth_VK.size < 1e6 else 2)

    def clip_tags(self) -> dict[str, list[list[str]]]:
        """Return {"verb" or another kind: the labels of each test clip}, for `viz.retrieval_by_word`."""
        return {}

    def relevancy_to(self, text: str) -> np.ndarray | None:
        texts = self.prompts()
        return self.truth()[:, texts.index(text)] if text in texts else None

    def predictions(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> list[dict]:
        """Return some prompts, each with its five best clips and its first right clip's rank."""
        truth_VK, texts = self.truth(), self.prompts()
        picked = evenly_spaced(np.flatnonzero(truth_VK.max(0) == 1), WATCHED)
        scores_VK, entries = self.score_matrix(rows, prompts_KE), []
        for k in picked:
            scores_V = scores_VK[:, k]
            order = np.argsort(-scores_V, kind="stable")
            best, relevancy_V = order[:5], truth_VK[:, k]
            entries.append({"text": texts[k], "clips": best.tolist(),
                            "scores": scores_V[best].astype(float).round(4).tolist(),
                            "relevancy": relevancy_V[best].astype(float).round(4).tolist(),
                            "rank": int((relevancy_V[order] == 1).argmax()) + 1})
        return entries
