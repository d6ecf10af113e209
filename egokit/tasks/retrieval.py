"""What retrieval tasks share: each row is a clip's embedding, scored against the prompts."""
from __future__ import annotations

import numpy as np

from egokit.data.video.frame_sampling import evenly_spaced
from egokit.tasks.base import WATCHED, Task


class RetrievalTask(Task):
    """Base of retrieval tasks; subclasses also give `truth` and `score_matrix`."""
    best = "mAP"

    def truth(self) -> np.ndarray:
        """Return the (clips, prompts) relevancy in [0, 1]; 1 is right."""
        raise NotImplementedError

    def score_matrix(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> np.ndarray:
        """Return the (clips, prompts) scores."""
        raise NotImplementedError

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Return "index" and "video", the (b, E) embeddings."""
        return {"index": batch["index"].numpy(force=True),
                "video": self.embed_video(model, batch["video"]).numpy(force=True)}

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
