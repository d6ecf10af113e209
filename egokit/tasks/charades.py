"""Charades-Ego: action recognition as retrieval among the sentences of its classes.

Source: Charades-Ego (arXiv 1804.09627); EgoVLPv2 (arXiv 2307.05463).
"""
from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from egokit.config.schema import Config, Positive, TaskConfig
from egokit.data.annotation_tables import charades_classes, charades_videos, read_metadata
from egokit.data.loader import Samples
from egokit.data.site_checks import PREP, Checks, Finding
from egokit.data.video import clips, frame_sampling
from egokit.runs.files import write_text
from egokit.runs.ledger import Result
from egokit.runs.run_folder import Run
from egokit.tasks import losses, metrics
from egokit.tasks.published.charades import PEERS
from egokit.tasks.retrieval import RetrievalTask

FOLDER = ("CharadesEgo", "CharadesEgo")
VIDEOS = ("CharadesEgo", "CharadesEgo_v1_480")
ANNOTATIONS, ARCHIVE = (f"{file} of https://prior.allenai.org/projects/charades-ego  (into ROOT/CharadesEgo/)"
                        for file in ("CharadesEgo.zip", "CharadesEgo_v1_480.tar"))
PAPER = "EgoVLPv2's paper, table 4"
FUNCTION_WORDS = set(re.findall("[a-z]+", "someone something somewhere is are a an the some of to in into on onto at "
                                          "from with and or up down out by for their his her its it them"))


class Segments(Samples):
    """Training samples: one action of a video, with the sentence of its class."""

    def __init__(self, task: CharadesEgo):
        self.task = task
        self.rows = read_metadata(task.require_file(*FOLDER, "metadata_train.csv"))
        super().__init__(task.limited(len(self.rows)), task.config.seed, train=True)

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        row, data = self.rows.iloc[index], self.task.config.data
        path = self.task.video(row.id)

        def pick(length: int, fps: float) -> np.ndarray:
            first = frame_sampling.first_frame(path, int(row.t_start * fps), length, fps)
            last = max(first + 1, min(int(row.t_end * fps), length))
            return frame_sampling.sample_frames(first, last, data.frames, rng)

        pixels = clips.read(path, pick, data.reader)
        return {"video": self.task.transform(pixels, rng), "text": row.narration, "index": index}


class Videos(Samples):
    """Test samples: whole videos."""

    def __init__(self, task: CharadesEgo):
        self.task = task
        super().__init__(len(task.ids), task.config.seed, train=False)

    def read(self, index: int, rng) -> dict:
        data = self.task.config.data

        def pick(length: int, fps: float) -> np.ndarray:
            return frame_sampling.pad_indices(frame_sampling.whole_video(length, data.eval_frames), data.eval_frames)

        pixels = clips.read(self.task.video(self.task.ids[index]), pick, data.reader, by="frames")
        return {"video": self.task.transform(pixels, None), "index": index}


class CharadesEgo(RetrievalTask):
    """Scores every test video against the sentence of every class."""
    notebook = "04_charades_ego"
    sections: ClassVar = {"train": "finetune", "evaluate": "zeroshot"}
    title = "Charades-Ego"
    recipe, recipe_sha256 = "charades_finetune", "45769b359575"
    published: ClassVar = [  # EgoVLPv2 (ICCV 2023), table 4
        Result("Charades-Ego mAP, zero-shot", "zeroshot", "mAP", 26.2, "EgoVLPv2_smallproj_epoch1.pth", "mAP",
               source=PAPER),
        Result("Charades-Ego mAP, fine-tuned", "finetune", "mAP", 34.1, "Charades-Ego_finetune.pth", "mAP",
               source=PAPER)]
    peers = PEERS
    figures = ("retrieved-finetune.png",)
    measure = staticmethod(metrics.charades)

    class Params(TaskConfig):
        temperature: Positive = 0.05  # of InfoNCE

    def __init__(self, config):
        super().__init__(config)
        self.classes = charades_classes(self.require_file(*FOLDER, "Charades_v1_classes.txt"))
        self.ids, self.targets_VK = charades_videos(self.require_file(*FOLDER, "CharadesEgo_v1_test_only1st.csv"),
                                                    self.classes)

    def video(self, uid: str) -> Path:
        """Return the path of a video's file."""
        return self.root.joinpath(*VIDEOS, f"{uid}.mp4")

    def dataset(self, split: str) -> Samples:
        return Segments(self) if split == "train" else Videos(self)

    def truth(self) -> np.ndarray:
        """Return the (videos, classes) labels, 0 or 1."""
        return self.targets_VK

    def prompts(self) -> list[str]:
        return list(self.classes.values())

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        """Return this rank's share of InfoNCE, times the number of ranks."""
        return {"infonce": losses.infonce(self.similarity_part(model, batch), self.config.task.temperature)}

    def save_outputs(self, run: Run, section: str, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> None:
        """Write also submission-<section>.txt, which the data set's own evaluation script reads.

        Each line is a video and the scores of its classes, in the order of class numbers, with as many digits as tell
        float32 numbers apart.
        """
        super().save_outputs(run, section, rows, prompts_KE)
        columns = np.argsort([int(name[1:]) for name in self.classes])
        write_text(run.path / f"submission-{section}.txt", "".join(
            f"{uid} {' '.join(f'{score:.9g}' for score in line)}\n"
            for uid, line in zip(self.ids, self.score_matrix(rows, prompts_KE)[:, columns], strict=True)))

    def tables(self) -> list[Path]:
        return [self.require_file(*FOLDER, name)
                for name in ("CharadesEgo_v1_test_only1st.csv", "Charades_v1_classes.txt")]

    def per_query(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Return the average precision of each class that occurs: the classes are the queries."""
        precision_K = metrics.each_class(self.score_matrix(rows, prompts_KE), self.truth())
        return {"mAP": [100 * precision_K[~np.isnan(precision_K)]]}

    def describe_clip(self, v: int) -> str:
        texts = self.prompts()
        actions = "; ".join(texts[k] for k in np.flatnonzero(self.targets_VK[v]))
        return textwrap.shorten(f"{self.ids[v]}: {actions or 'no action'}", 100, placeholder=" …")

    def query_tags(self) -> dict[str, list[list[str]]]:
        """Return the verb and the nouns of each sentence, guessed from its words: the first in -ing, and the others."""
        words_K = [[word for word in re.findall("[a-z]+", sentence.lower()) if word not in FUNCTION_WORDS] or [sentence]
                   for sentence in self.prompts()]
        verbs = [next((word for word in words if word.endswith("ing")), words[0]) for words in words_K]
        return {"verb": [[verb] for verb in verbs],
                "noun": [list(dict.fromkeys(word for word in words if word != verb))
                         for words, verb in zip(words_K, verbs, strict=True)]}

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        folder = "/".join(FOLDER)
        training = {f"{folder}/metadata_train.csv": PREP} if action == "train" else {}
        return {"/".join(VIDEOS): ARCHIVE, f"{folder}/Charades_v1_classes.txt": ANNOTATIONS,
                f"{folder}/CharadesEgo_v1_test_only1st.csv": ANNOTATIONS, **training, folder: ANNOTATIONS}

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        """Check the videos, the tables, and the tables' rows against the videos."""
        part = "Charades-Ego"
        folder, videos = checks.root.joinpath(*FOLDER), checks.root.joinpath(*VIDEOS)
        annotations, archive = ANNOTATIONS, ARCHIVE
        class_names = folder / "Charades_v1_classes.txt"
        segments = folder / "metadata_train.csv"
        yield from checks.each(part, checks.name(videos), checks.check_videos(part, videos, "*.mp4", archive))
        names = checks.check_file(part, class_names, annotations)
        yield names
        for split in ("train", "test"):
            table = folder / f"CharadesEgo_v1_{split}_only1st.csv"
            listed = checks.check_file(part, table, annotations)
            yield listed
            if listed.state == names.state == "ok":
                yield from checks.each(part, table.name, cls._check_videos(checks, part, split, table, archive))
        for split in ("train", "val", "test"):
            made = checks.check_file(part, folder / f"metadata_{split}.csv", checks.prep)
            yield made
            if split == "train" and made.state == "ok":
                yield from checks.each(part, segments.name, cls._check_segments(checks, part, segments, archive))

    @classmethod
    def _check_videos(cls, checks: Checks, part: str, split: str, table: Path, archive: str) -> Iterator[Finding]:
        """Check a list of videos, and that they are there."""
        ids, targets_VK = charades_videos(table, charades_classes(table.with_name("Charades_v1_classes.txt")))
        yield Finding(part, split, "ok",
                      f"{len(ids):,} videos, {int((~targets_VK.any(1)).sum()):,} of them without an action, "
                      f"{int(targets_VK.any(0).sum())} of {targets_VK.shape[1]} classes")
        yield from checks.check_rows(part, f"videos of {split}", [f"{uid}.mp4" for uid in ids],
                                     checks.root.joinpath(*VIDEOS), archive)

    @classmethod
    def _check_segments(cls, checks: Checks, part: str, segments: Path, archive: str) -> Iterator[Finding]:
        """Check the training segments against the videos."""
        rows = read_metadata(segments)
        yield from checks.check_rows(part, "training segments", rows.id + ".mp4", checks.root.joinpath(*VIDEOS),
                                     archive, rows.t_end)
