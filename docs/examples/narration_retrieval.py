"""A benchmark in one file: which narration belongs to a clip?

EgoMCQ's right clips are compared with the narrations of all its questions. A clip is found if its own
narration is the nearest one (R@1), or among the nearest five (R@5).
"""
import numpy as np

from egokit.data import annotation_json
from egokit.tasks import RetrievalTask, Samples, read_chunked, sample_frames


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


class NarrationRetrieval(RetrievalTask):
    best = "R@1"
    published = {"R@1": None, "R@5": None}  # the ledger shows these; a number in place of None would stand beside yours

    def __init__(self, config):
        super().__init__(config)
        questions = annotation_json.read_egomcq(self.require_file("egomcq.json"))[:1000]
        questions = questions[:self.limited(len(questions))]
        self.clips = [question["choices"][str(question["answer"])] for question in questions]
        self.narrations = [question["query"]["clip_text"] for question in questions]
        self.texts = sorted(set(self.narrations))

    def dataset(self, split):
        return RightClips(self)

    def prompts(self):
        return self.texts

    def truth(self):
        return np.array([[text == narration for text in self.texts] for narration in self.narrations], float)

    @staticmethod
    def measure(scores_VK, truth_VK):
        """Share of clips, in %, whose own narration is the nearest, or among the nearest five."""
        own_V = np.where(truth_VK == 1, scores_VK, -np.inf).max(1)
        better_V = (scores_VK > own_V[:, None]).sum(1)
        return {f"R@{k}": float(100 * (better_V < k).mean()) for k in (1, 5)}

    def describe_clip(self, v):
        return self.narrations[v]

    def tables(self):
        return [self.require_file("egomcq.json")]
