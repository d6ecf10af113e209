"""EK-100 multi-instance retrieval, zero-shot and fine-tuned.

Source: EPIC-KITCHENS-100 (arXiv 2006.13256), section 4.5.
"""
from __future__ import annotations

import collections
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from egokit.config.access import exists
from egokit.config.schema import Config, NotNegative, Scored, Share, TaskConfig
from egokit.data import relevancy
from egokit.data.annotation_tables import EK100_ANNOTATIONS, ek100_annotations, read_csv
from egokit.data.loader import Samples
from egokit.data.site_checks import PREP, Checks, Finding
from egokit.data.video import clips, frame_sampling, open_video
from egokit.runs.ledger import Result
from egokit.runs.recipe_differences import DUAL_SOFTMAX
from egokit.tasks import class_names, losses, metrics
from egokit.tasks.metrics import cosine
from egokit.tasks.published.ek100 import PEERS
from egokit.tasks.retrieval import RetrievalTask
from egokit.train import distributed
from egokit.train.parts import Part

VIDEOS = ("https://github.com/epic-kitchens/epic-kitchens-download-scripts, then resize to 256 px on the short side "
          "(into ROOT/EK100/video_ht256px)")
ANNOTATIONS = "git clone https://github.com/epic-kitchens/epic-kitchens-100-annotations  (into ROOT/EK100/)"


class Actions(Samples):
    """Clips; in training each with a random relevant sentence and its relevancy."""

    def __init__(self, task: EK100, split: str):
        self.task, self.split = task, split
        self.clips, self.sentences = ek100_annotations(task.root, split)
        folder = task.require_file(str(EK100_ANNOTATIONS)) / "relevancy"
        self.relevancy = relevancy.read(relevancy.relevancy_path(folder, split), (len(self.clips), len(self.sentences)),
                                        task.config.site.node_cache)
        self.videos = task.require_file("EK100", "video_ht256px")
        super().__init__(task.limited(len(self.clips)) if split == "train" else len(self.clips),
                         task.config.seed, train=split == "train")

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        row, data = self.clips.iloc[index], self.task.config.data
        frames = data.eval_frames if rng is None else data.frames
        start, stop = row.start_timestamp, row.stop_timestamp
        path = self.videos / row.participant_id / f"{row.video_id}.MP4"

        def pick(length: int, fps: float) -> np.ndarray:
            first = round(start * fps)
            last = first + max(int((stop - start) * fps), frames)
            first = frame_sampling.first_frame(path, first, length, fps)
            return frame_sampling.ek100(first, min(last, length), frames, rng)

        # EK-100's protocol counts frames; at a variable rate, counting would give other moments than the table's
        constant = open_video.open_video(path, data.reader).constant
        if not constant:
            warnings.warn(f"{path}: its frame rate varies, and EK-100 counts frames: its clips are found by time; "
                          "make it anew at a constant rate with 'ffmpeg -i SOURCE -r 60 NEW.MP4'", stacklevel=1)
        pixels = clips.read(path, pick, data.reader, by="frames" if constant else "time")
        item = {"video": self.task.transform(pixels, rng), "index": index}
        if rng is not None:
            relevancy_S = self.relevancy.row(index)
            threshold = self.task.config.task.relevancy_threshold
            candidates = np.flatnonzero(relevancy_S > threshold)
            if not len(candidates):
                raise ValueError(f"{self.relevancy.path}: clip {row.narration_id} has no sentence of a relevancy above "
                                 f"task.relevancy_threshold={threshold}; "
                                 "delete the file, and 'egokit prep' makes it again")
            sentence = int(rng.choice(candidates))
            item |= {"text": self.sentences.narration.iloc[sentence], "sentence": sentence,
                     "relevancy": float(relevancy_S[sentence])}
        return item


class EK100(RetrievalTask):
    """Retrieval between the clips and the distinct sentences of a split, both ways."""
    notebook = "03_ek100"
    sections: ClassVar = {"train": "finetune", "evaluate": "zeroshot"}
    title = "EK-100 MIR"
    recipe, recipe_sha256, samples, unit = "ek100_finetune", "9ba433326704", 9668, "clips"
    published: ClassVar = [  # EgoVLPv2 (ICCV 2023), table 3
        Result(f"EK-100 MIR {metric}, {words}{also}", section, metric + suffix, number, checkpoint, metric,
               source="EgoVLPv2's paper, table 3")
        for section, words, metric, number, checkpoint in (
            ("zeroshot", "zero-shot", "mAP", 26.7, "EgoVLPv2_smallproj.pth"),
            ("zeroshot", "zero-shot", "nDCG", 29.1, "EgoVLPv2_smallproj.pth"),
            ("finetune", "fine-tuned", "mAP", 47.3, "EK-100_finetune.pth"),
            ("finetune", "fine-tuned", "nDCG", 61.9, "EK-100_finetune.pth"))
        for suffix, also in (("", ""), (DUAL_SOFTMAX, ", dual softmax"))]
    peers = PEERS
    figures = ("browser-finetune.html",)
    partly_relevant = "the same verb, or some of the nouns"
    measure = staticmethod(metrics.retrieval)

    class Params(TaskConfig):
        retrieval_loss: Literal["max_margin", "symmetric_multi_similarity"] = "max_margin"
        margin: NotNegative = 0.2               # max_margin: times a pair's relevancy
        similarity_margin: NotNegative = 0.6    # symmetric_multi_similarity: times a difference of relevancies
        similarity_slack: NotNegative = 0.1     # symmetric_multi_similarity: slack for pairs of equal relevancy
        relevancy_threshold: Share = 0.1        # a clip is trained with the texts of a higher relevancy
        dual_softmax: Scored[NotNegative] = 0.0  # temperature of additional scores with dual softmax; 0: none

    def __init__(self, config):
        super().__init__(config)
        self.test = Actions(self, "test")

    def dataset(self, split: str) -> Actions:
        return self.test if split == "test" else self.train

    @functools.cached_property
    def train(self) -> Actions:
        return Actions(self, "train")

    def truth(self) -> np.ndarray:
        """Return the (clips, sentences) relevancy of the test split, in [0, 1]."""
        return self.test.relevancy.array()

    def prompts(self) -> list[str]:
        return self.test.sentences.narration.tolist()

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        """Return this rank's share of the loss that task.retrieval_loss names, times the number of ranks."""
        own = self.config.task
        counts = distributed.sizes(len(batch["video"]), batch["video"].device)
        similarity = self.similarity_part(model, batch, counts)
        if own.retrieval_loss == "max_margin":
            relevancy_b = batch["relevancy"].to(similarity.device)
            return {"max_margin": losses.max_margin(similarity, relevancy_b, own.margin)}
        return {"symmetric_multi_similarity": losses.symmetric_multi_similarity(
            similarity, self.relevancy_part(batch, similarity, counts), own.similarity_margin, own.similarity_slack)}

    def relevancy_part(self, batch: dict, similarity: Part, counts: list[int]) -> Part:
        """Return the relevancy of this rank's sentences to all clips, and of all sentences to its clips."""
        clips_b, sentences_b = batch["index"], batch["sentence"]
        clips_B, sentences_B = (distributed.gather(x.to(similarity.device), counts).cpu()
                                for x in (clips_b, sentences_b))

        def between(clip_ids: Tensor, sentence_ids: Tensor) -> Tensor:
            pairs = self.train.relevancy.pairs(clip_ids.numpy(), sentence_ids.numpy())
            return torch.from_numpy(pairs).to(similarity.device)

        rows_bB = between(clips_B, sentences_b.cpu()).T
        if similarity.ranks == 1:
            return Part.whole(rows_bB)
        return Part(rows_bB, between(clips_b.cpu(), sentences_B), similarity.first, similarity.ranks)

    def score_matrix(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> np.ndarray:
        """Return (cosine + 1) / 2, (clips, sentences), in [0, 1]."""
        return (cosine(rows["video"], prompts_KE) + 1) / 2

    def tables(self) -> list[Path]:
        folder = self.require_file(str(EK100_ANNOTATIONS))
        return [folder / "EPIC_100_retrieval_test.csv", folder / "EPIC_100_retrieval_test_sentence.csv",
                relevancy.relevancy_path(folder / "relevancy", "test")]

    def metrics(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> dict[str, float]:
        """Return the benchmark's metrics.

        With task.dual_softmax also those of a dual softmax, as "…_dual_softmax".
        """
        results = super().metrics(rows, prompts_KE)
        if temperature := self.config.task.dual_softmax:
            again = metrics.retrieval(self.score_matrix(rows, prompts_KE), self.truth(), temperature)
            results |= {f"{name}{DUAL_SOFTMAX}": value for name, value in again.items()}
        return results

    def per_query(self, rows: dict[str, np.ndarray], prompts_KE: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Return each clip's and each sentence's average precision and nDCG: these are the queries."""
        scores_VT, truth_VT = self.score_matrix(rows, prompts_KE), self.truth()
        each = metrics.retrieval_per_query(scores_VT, truth_VT)
        if temperature := self.config.task.dual_softmax:
            again = metrics.retrieval_per_query(scores_VT, truth_VT, temperature)
            each |= {f"{name}{DUAL_SOFTMAX}": groups for name, groups in again.items()}
        return each

    def describe_clip(self, v: int) -> str:
        row = self.test.clips.iloc[v]
        return f"{row.narration} ({row.video_id}, {row.start_timestamp:.1f} to {row.stop_timestamp:.1f} s)"

    def clip_tags(self) -> dict[str, list[list[str]]]:
        """Return the verb and the nouns of each test clip: the names of its classes, in the table's words."""
        of_clips = self.test.clips
        words = read_csv(self.tables()[0], {"verb": str, "all_nouns": functools.partial(re.findall, "[^][',\" ]+")})
        return {"verb": class_names.most_frequent([[n] for n in of_clips.verb_class], [[word] for word in words.verb]),
                "noun": class_names.most_frequent(of_clips.all_noun_classes, words.all_nouns)}

    def query_tags(self) -> dict[str, list[list[str]]]:
        """Return the tags of the clip from which each sentence is taken."""
        place = {name: v for v, name in enumerate(self.test.clips.narration_id)}
        return {tag: [labels[place[name]] for name in self.test.sentences.narration_id]
                for tag, labels in self.clip_tags().items()}

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        splits = ("test", "train") if action == "train" else ("test",)
        tables = {f"{EK100_ANNOTATIONS}/EPIC_100_retrieval_{split}{kind}.csv": ANNOTATIONS
                  for split in splits for kind in ("", "_sentence")}
        return {"EK100/video_ht256px": VIDEOS, **tables, f"{EK100_ANNOTATIONS}/relevancy": PREP,
                str(EK100_ANNOTATIONS): ANNOTATIONS}

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        """Check the videos, and each split's tables, relevancy, and clips against the videos."""
        part = "EK-100"
        folder, videos = checks.root / EK100_ANNOTATIONS, checks.root / "EK100" / "video_ht256px"
        provider = VIDEOS
        rates: collections.Counter = collections.Counter()
        varying: list[str] = []

        def seconds(path: Path) -> float:
            exists(path)
            video = open_video.open_video(path, checks.config.data.reader)
            rates[round(video.fps, 2)] += 1
            if not video.constant:
                varying.append(path.name)
            return video.seconds

        yield from checks.each(part, checks.name(videos), checks.check_videos(part, videos, "P*/*.MP4", provider))
        for split in ("train", "test"):
            tables = [checks.check_file(part, folder / f"EPIC_100_retrieval_{split}{kind}.csv",
                                        ANNOTATIONS) for kind in ("", "_sentence")]
            yield from tables
            if all(table.state == "ok" for table in tables):
                yield from checks.each(part, split, cls._check_split(checks, part, split, provider, seconds))
        if varying:
            yield Finding(part, "frame rates", "wrong", f"{len(varying)} videos have a variable frame rate, such as "
                          f"{varying[0]}; EK-100 counts frames", "ffmpeg -i IN.MP4 -vf fps=RATE OUT.MP4, for each")
        if rates:
            message = ", ".join(f"{count} videos at {rate:g} a second" for rate, count in rates.most_common())
            yield Finding(part, "frame rates", "ok",
                          f"{message} (clips are found by their times at the file's own rate)")

    @classmethod
    def _check_split(cls, checks: Checks, part: str, split: str, provider: str, seconds) -> Iterator[Finding]:
        """Check a split's tables, relevancy, and clips against the videos."""
        rows, sentences = ek100_annotations(checks.root, split)
        yield Finding(part, split, "ok", f"{len(rows):,} clips, {len(sentences):,} sentences")
        what, folder = f"relevancy of {split}", checks.root / EK100_ANNOTATIONS / "relevancy"
        yield from checks.each(part, what, cls._check_relevancy(checks, part, folder, split,
                                                                (len(rows), len(sentences))))
        yield from checks.check_rows(part, f"clips of {split}", rows.participant_id + "/" + rows.video_id + ".MP4",
                                     checks.root / "EK100" / "video_ht256px", provider, rows.stop_timestamp, seconds)

    @classmethod
    def _check_relevancy(cls, checks: Checks, part: str, folder: Path, split: str, shape) -> Iterator[Finding]:
        """Check that a split's relevancy is there, may be read, and has the size of the tables."""
        path = relevancy.relevancy_path(folder, split)
        there = checks.check_file(part, path, checks.prep)
        yield there
        if there.state == "ok":
            try:
                relevancy.check(path, shape)
                yield Finding(part, f"relevancy of {split}", "ok", f"{shape[0]:,} x {shape[1]:,}")
            except ValueError as error:
                yield Finding(part, f"relevancy of {split}", "wrong", str(error),
                              f"delete {path.name}, then {checks.prep}")
