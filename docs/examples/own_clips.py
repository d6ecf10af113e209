"""Which class is a clip of? A head on the video encoder, for a table of one's own clips.

A table lists clips: the video, the start and the end in seconds, and the class in words. Here it is the embedded data
set's Charades-Ego; for yours, give `task.table` and `task.videos`, and the names of its columns below.
"""
import numpy as np

from egokit.data import annotation_tables
from egokit.data.video import clips, frame_sampling
from egokit.tasks import ClassHead, Samples, Task, TaskConfig, check_name, sample_frames

VIDEO, START, STOP, CLASS = "id", "t_start", "t_end", "narration"  # columns of the table


class Clips(Samples):
    def __init__(self, task, split):
        self.task, self.rows = task, task.rows[split].iloc[:task.limited(len(task.rows[split]))]
        super().__init__(len(self.rows), task.config.seed, train=split == "train")

    def check_files(self):  # before training, not at the step that would read it
        if absent := [path for path in map(self.task.video, self.rows[VIDEO].unique()) if not path.exists()]:
            raise FileNotFoundError(f"{len(absent)} videos of the table are missing, such as {absent[0]}; put them "
                                    "there, or correct task.videos")

    def read(self, index, rng):
        row, data = self.rows.iloc[index], self.task.config.data
        path = self.task.video(row[VIDEO])

        def pick(length, rate):
            first = frame_sampling.first_frame(path, int(row[START] * rate), length, rate)
            last = max(first + 1, min(int(row[STOP] * rate), length))
            return sample_frames(first, last, data.eval_frames if rng is None else data.frames, rng)
        pixels = clips.read(path, pick, data.reader)
        return {"video": self.task.transform(pixels, rng), "class": self.task.number[row[CLASS]], "index": index}


class OwnClips(Task):
    class Params(TaskConfig):
        table: str = "CharadesEgo/CharadesEgo/metadata_{split}.csv"  # under site.root; split: train and test
        videos: str = "CharadesEgo/CharadesEgo_v1_480"

    sections = {"train": "train", "evaluate": "evaluate"}  # what `egokit submit` does first, and can do
    trains = "video"                       # the loss reads the video encoder alone: all else is frozen
    best = "top1"
    published = {"top1": None, "top5": None}

    def __init__(self, config):
        super().__init__(config)
        self.videos = self.require_file(config.task.videos)
        self.rows = {split: self.read_table(path) for split, path in self.paths().items()}
        self.number = {name: number for number, name in enumerate(sorted(set(self.rows["train"][CLASS])))}
        if unknown := sorted(set(self.rows["test"][CLASS]) - set(self.number)):
            raise ValueError(f"{self.paths()['test']}: class {unknown[0]!r} is not in the training table")

    def paths(self):
        if "{split}" not in self.config.task.table:
            raise ValueError(f"task.table={self.config.task.table}: expected {{split}} in it, for train and test")
        return {split: self.require_file(self.config.task.table.format(split=split)) for split in ("train", "test")}

    def read_table(self, path):
        """The clips of a table, with a comma, semicolon or tab between its fields; a wrong line is an error."""
        kinds = {VIDEO: check_name, START: annotation_tables.time, STOP: annotation_tables.time,
                 CLASS: annotation_tables.text}
        return annotation_tables.read_csv(path, kinds, delimiter="", span=(START, STOP))

    def video(self, name):
        return self.videos / f"{name}.mp4"

    def head(self, model):
        return ClassHead(model.embed_dim, list(self.number), reads="video")

    def dataset(self, split):
        return Clips(self, split)

    def logits(self, model, frames):
        return model.head(self.in_parts(lambda part: self.embed_video(model, part), frames)).float()

    def loss(self, model, batch, step):
        return {"cross_entropy": self.cross_entropy(self.logits(model, batch["video"]), batch["class"])}

    def score_batch(self, model, batch):
        order_bK = self.logits(model, batch["video"]).argsort(-1, descending=True)
        rank_b = (order_bK == batch["class"][:, None]).float().argmax(-1)  # 0: the right class is the first
        return {"index": batch["index"].numpy(force=True), "rank": rank_b.numpy(force=True)}

    def metrics(self, rows, prompts_KE):
        return {f"top{k}": float(100 * np.mean(rows["rank"] < k)) for k in (1, 5)}

    def chance(self):
        return {f"top{k}": 100 * min(1, k / len(self.number)) for k in (1, 5)}

    def tables(self):
        return list(self.paths().values())
