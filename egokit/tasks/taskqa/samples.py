"""EgoTaskQA's samples: questions with their clips in training, and clips with their questions in evaluation."""
import numpy as np
import torch

from egokit.data.loader import Samples
from egokit.data.video.timeline import VideoError


class TrainingQuestions(Samples):
    """Training samples: a question with its clip, of which only the frames are random."""

    def __init__(self, task):
        self.task, self.questions = task, task.questions_of("train")
        super().__init__(len(self.questions), task.config.seed, train=True)

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        question, data = self.questions[index], self.task.config.data
        pixels = self.task.files.read(question.clip, data.frames, rng)
        return {"video": self.task.transform(pixels, None), "text": question.text, "answer": question.answer,
                "index": index}


class AskedClips(Samples):
    """Evaluation samples: each clip once, however many questions are asked about it."""

    def __init__(self, task, clips: list[str]):
        self.task, self.clips = task, clips
        self.tolerant = task.config.data.max_bad_fraction > 0
        super().__init__(len(clips), task.config.seed, train=False)

    def read(self, index: int, rng) -> dict:
        size, T = self.task.config.model.image_size, self.task.config.data.eval_frames
        try:
            frames, unreadable = self.task.transform(self.task.read_clip(self.clips[index]), None), ""
        except (VideoError, FileNotFoundError) as error:
            if not self.tolerant:
                raise
            frames, unreadable = torch.zeros((T, 3, size, size), dtype=torch.uint8), str(error)
        return {"video": frames, "index": index, "unreadable": unreadable}
