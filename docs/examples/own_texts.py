"""A data set of one's own: clips with a text each. Trained contrastively, and evaluated by retrieval.

Two tables, of training and of test, have a line a clip: its video, its start and end in seconds, and its text.
"""
import numpy as np

from egokit.data import annotation_tables
from egokit.data.video import clips, frame_sampling
from egokit.tasks import Positive, RetrievalTask, Samples, TaskConfig, check_name, losses, metrics
from egokit.train import distributed
from egokit.train.parts import Part


class Clips(Samples):
    def __init__(self, task, split):
        self.task, self.rows = task, task.rows[split]
        super().__init__(len(self.rows), task.config.seed, train=split == "train")

    def check_files(self):  # before training, not at the step that would read it
        if absent := [path for path in map(self.task.video, self.rows.video.unique()) if not path.exists()]:
            raise FileNotFoundError(f"{len(absent)} videos of the table are missing, such as {absent[0]}; put them "
                                    "there, or correct task.videos")

    def read(self, index, rng):
        row, data = self.rows.iloc[index], self.task.config.data
        path = self.task.video(row.video)

        def pick(length, rate):
            first = frame_sampling.first_frame(path, int(row.start * rate), length, rate)
            last = max(first + 1, min(int(row.stop * rate), length))
            return frame_sampling.sample_frames(first, last, data.eval_frames if rng is None else data.frames, rng)
        item = {"video": self.task.transform(clips.read(path, pick, data.reader), rng), "index": index}
        return item if rng is None else item | {"text": row.text, "number": self.task.number[row.text]}


class OwnTexts(RetrievalTask):
    class Params(TaskConfig):
        table: str = "{split}.csv"         # under site.root; split: train and test
        videos: str = "videos/{video}.mp4"
        columns: tuple[str, str, str, str] = ("video", "start", "stop", "text")  # their names in the tables
        delimiter: str = ","
        temperature: Positive = 0.05

    sections = {"train": "train", "evaluate": "evaluate"}  # what `egokit submit` does first, and can do
    best = "mAP"
    published = {"mAP": None, "R@1": None, "R@5": None}

    def __init__(self, config):
        super().__init__(config)
        self.rows = {split: self.read_table(path) for split, path in self.paths().items()}
        self.number = {text: number for number, text in enumerate(sorted(set(self.rows["train"].text)))}

    def paths(self):
        if "{split}" not in self.config.task.table:
            raise ValueError(f"task.table={self.config.task.table}: expected {{split}} in it, for train and test")
        return {split: self.require_file(self.config.task.table.format(split=split)) for split in ("train", "test")}

    def read_table(self, path):
        """The clips of a table; a wrong line is an error that names it."""
        own = self.config.task
        kinds = check_name, annotation_tables.time, annotation_tables.time, annotation_tables.text
        rows = annotation_tables.read_csv(path, dict(zip(own.columns, kinds, strict=True)), delimiter=own.delimiter,
                                          span=own.columns[1:3])
        rows.columns = ["video", "start", "stop", "text"]
        return rows.iloc[:self.limited(len(rows))]

    def video(self, name):
        return self.root / self.config.task.videos.format(video=name)

    def dataset(self, split):
        return Clips(self, split)

    def loss(self, model, batch, step):
        similarity = self.similarity_part(model, batch)      # this rank's texts with all clips, and its clips with all
        numbers_B = distributed.gather(batch["number"])      # texts
        same_bB = batch["number"][:, None] == numbers_B      # clips with the same text are no negatives
        positives = Part(same_bB, same_bB, similarity.first, similarity.ranks)
        return {"nce": losses.egonce(similarity, positives, self.config.task.temperature)}

    def prompts(self):
        return sorted(set(self.rows["test"].text))

    def truth(self):
        return (self.rows["test"].text.to_numpy()[:, None] == np.array(self.prompts(), object)).astype(float)

    @staticmethod
    def measure(scores_VK, truth_VK):
        """mAP, both ways; and the share of texts of which one of the nearest k clips is right, in %."""
        right_VK = np.take_along_axis(truth_VK, np.argsort(-scores_VK, axis=0, kind="stable"), axis=0)
        return {"mAP": metrics.retrieval(scores_VK, truth_VK)["mAP"]} | {
            f"R@{k}": float(100 * right_VK[:k].any(0).mean()) for k in (1, 5)}

    def describe_clip(self, v):
        row = self.rows["test"].iloc[v]
        return f"{row.text} ({row.video}, {row.start:.1f} to {row.stop:.1f} s)"

    def tables(self):
        return [self.paths()["test"]]
