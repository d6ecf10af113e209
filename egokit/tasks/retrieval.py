"""What retrieval tasks share: a clip's vector is its row, and a few texts' best clips tell how training goes on."""
from __future__ import annotations

import numpy as np

from egokit.data.video.frame_sampling import evenly_spaced
from egokit.data.video.transforms import normalise
from egokit.tasks.base import WATCHED, Task


class RetrievalTask(Task):
    """Subclasses give, beside what a task gives: truth(), scores(rows, prompts_KE) of any of the prompts."""
    best = "mAP"

    def truth(self) -> np.ndarray:
        """(clips, prompts) relevancy; 1 is right."""
        raise NotImplementedError

    def score_matrix(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> np.ndarray:
        """(clips, prompts)"""
        raise NotImplementedError

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        return {"index": batch["index"].numpy(force=True),
                "video": model.embed_video(normalise(batch["video"])).numpy(force=True)}

    def predictions(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> list[dict]:
        """Texts with their five best clips now, and the rank of the first right one, from 1."""
        truth_VK, texts = self.truth(), self.prompts()
        picked = evenly_spaced(np.flatnonzero(truth_VK.max(0) == 1), WATCHED)
        scores_VP, found = self.score_matrix(rows, prompts_KE[picked]), []
        for k, scores_V in zip(picked, scores_VP.T, strict=True):
            order = np.argsort(-scores_V, kind="stable")
            best, relevancy_V = order[:5], truth_VK[:, k]
            found.append({"text": texts[k], "clips": best.tolist(), "scores": scores_V[best].astype(float).round(4).tolist(),
                          "relevancy": relevancy_V[best].astype(float).round(4).tolist(),
                          "rank": int((relevancy_V[order] == 1).argmax()) + 1})
        return found
