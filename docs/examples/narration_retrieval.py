"""A benchmark in one file: which narration belongs to a clip?

EgoMCQ's right clips are compared with the narrations of all its questions. A clip is found if its own
narration is the nearest one (R@1), or among the nearest five (R@5).
"""
import numpy as np

from egokit.data import annotation_json
from egokit.tasks import Samples, Task, cosine, metrics, normalise, read_chunked, sample_frames


class RightClips(Samples):
    def __init__(self, task):
        self.task = task
        self.videos = task.require_file("Ego4D_Chunked")
        super().__init__(len(task.clips), task.config.seed, train=False)

    def read(self, index, rng):
        clip, config = self.task.clips[index], self.task.config

        def middles(first, last):
            return sample_frames(first, last, config.data.eval_frames)
        pixels = read_chunked(self.videos / clip["video_uid"], float(clip["clip_start"]), float(clip["clip_end"]),
                              middles, config.site.chunk_seconds, config.data.reader)
        return {"video": self.task.transform(pixels, None), "index": index}


class NarrationRetrieval(Task):
    best = "R@1"
    published = {"R@1": None, "R@5": None}  # the ledger shows these; a number in place of None would stand beside yours

    def __init__(self, config):
        super().__init__(config)
        questions = annotation_json.read_egomcq(self.require_file("egomcq.json"))[:1000]
        questions = questions[:self.limited(len(questions))]
        self.clips = [question["choices"][str(question["answer"])] for question in questions]
        texts = [question["query"]["clip_text"] for question in questions]
        self.texts = sorted(set(texts))
        self.answers = np.array([self.texts.index(text) for text in texts])

    def dataset(self, split):
        return RightClips(self)

    def prompts(self):
        return self.texts

    def score_batch(self, model, batch):
        return {"index": batch["index"].numpy(force=True),
                "video": model.embed_video(normalise(batch["video"])).numpy(force=True)}

    def metrics(self, rows, prompts_KE):
        return recall(cosine(rows["video"], prompts_KE), self.answers)

    def chance(self):
        return metrics.chance(recall, (len(self.answers), len(self.texts)), self.answers)

    def tables(self):
        return [self.require_file("egomcq.json")]


def recall(scores_VK, answers_V):
    """Share of clips, in %, whose own narration is the nearest, or among the nearest five."""
    own_V = np.take_along_axis(scores_VK, answers_V[:, None], 1)
    better_V = (scores_VK > own_V).sum(1)
    return {f"R@{k}": float(100 * (better_V < k).mean()) for k in (1, 5)}
