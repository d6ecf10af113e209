"""EgoNLQ (natural-language queries): features, and a head that finds the stretch of a clip that answers a question.

Two heads: the single-stage one that EgoMQ has, with the question's words (model/moment_head.py), and VSLNet
(task.head=span, span_task.py), with which EgoVLPv2's numbers were published.

Source: Ego4D's natural-language queries; SnAG for the single-stage head with a text.
"""
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from egokit.config.build import ConfigError
from egokit.config.schema import Config, Count, Input, Positive, Scored, Share
from egokit.data.annotation_json import choose_lists, list_of
from egokit.data.loader import move_to_device
from egokit.data.site_checks import Checks, Finding
from egokit.model.precision import autocast
from egokit.runs.files import write_text
from egokit.runs.ledger import Result
from egokit.runs.run_folder import Run
from egokit.tasks import span_task
from egokit.tasks.feature_files import Clip, FeatureError, FeatureFiles, Grid
from egokit.tasks.moment_task import Entry, HeadParams, MomentTask
from egokit.tasks.moments import nlq_annotations, nlq_results, segments, span_labels
from egokit.tasks.moments.nlq_annotations import Question
from egokit.tasks.nlq_features import NLQFeatures
from egokit.train import distributed

ANSWERS = 5  # of a question
PUBLISHED = {  # on val, in %: R@1 and R@5 at 0.3, then at 0.5; EgoVLPv2's and EgoVLP's READMEs, snag_release
    "EgoVLPv2 fused, VSLNet": (12.95, 23.80, 7.91, 16.11), "EgoVLP, VSLNet": (10.84, 18.84, 6.81, 13.45),
    "EgoVLP, SnAG": (15.53, 38.40, 10.94, 27.70)}


class EgoNLQ(MomentTask, NLQFeatures):
    """Extracts features, and trains and scores a head that answers questions by a stretch of their clip."""
    notebook = "08_egonlq"
    sections: ClassVar = {"extract": "features", "train": "grounding", "evaluate": "grounding_scored"}
    title = "EgoNLQ"
    recipe, recipe_sha256 = "egonlq", "44c145810c84"
    unit, samples = "questions", 0
    best = "R@1_mean"
    published: ClassVar = [
        Result("EgoNLQ clips with features", "features", "clips", key="clips", in_ledger=False),
        *(Result(f"EgoNLQ {metric.replace('_', ', ')} ({whose})", section, metric, number,
                 "EgoVLPv2.pth" if "v2" in whose else "", metric,
                 "" if section == "grounding" else f"{section}.{metric}")
          for section in ("grounding", "grounding_scored") for whose, numbers in PUBLISHED.items()
          for metric, number in zip(("R@1_0.3", "R@5_0.3", "R@1_0.5", "R@5_0.5"), numbers, strict=True))]
    figures = ("answers.png",)

    class Params(HeadParams, NLQFeatures.Params):
        head: Literal["single_stage", "span"] = "single_stage"  # span: VSLNet, as published with EgoVLPv2
        words: Input[str] = ""                  # run whose extraction holds the questions' words; "": `features`
        train_lists: str = "train"              # lists of feature_clips whose questions are trained on, such as
                                                # nlq_narrations, or train,nlq_narrations
        sigma: Scored[Positive] = 0.75          # of the Gaussian that lowers the scores of overlapping candidates
        vote: Scored[Share] = 0.9               # least IoU of the candidates whose mean an answer becomes
        positions: Count = 256                  # most positions of a clip that the span head sees
        highlight_weight: Positive = 5.0        # of the span head's highlight loss
        span_dropout: Share = 0.2               # in the span head

    def __init__(self, config: Config):
        super().__init__(config)
        self._questions: dict[str, list[Question]] = {}

    @functools.cached_property
    def word_files(self) -> FeatureFiles:
        """The extraction that holds the questions' words."""
        return FeatureFiles(Path(self.config.task.words)) if self.config.task.words else self.files

    @functools.cached_property
    def place_of(self) -> dict[tuple, tuple[int, str]]:
        """A question's key -> its place in its clip's stored words, and its text there."""
        return places(self.word_files)

    @property
    def num_classes(self) -> int:
        return 1

    @property
    def text(self) -> int:
        return self.word_files.word_dimension

    @property
    def is_span(self) -> bool:
        """Whether the head is VSLNet."""
        return self.config.task.head == "span"

    @property
    def crops(self) -> bool:
        return not self.is_span

    @property
    def lengths(self) -> dict[str, int]:
        """The span head's convolutions see padding: its batches all have one length."""
        own = self.config.task
        tokens = min(own.positions, self.config.data.eval_max_tokens)
        return {"video": own.positions, "words": tokens} if self.is_span else {}

    def fresh_head(self) -> nn.Module:
        return span_task.make(self) if self.is_span else super().fresh_head()

    def seen(self, feature: np.ndarray) -> np.ndarray:
        return span_labels.resample(feature, self.config.task.positions) if self.is_span else feature

    def grid(self, entry: Entry, N: int) -> Grid:
        return span_task.grid(entry.source, N) if self.is_span else super().grid(entry, N)

    def labels(self, entry: Entry, N: int) -> dict[str, np.ndarray]:
        return span_task.labels(entry.source, N) if self.is_span else {}

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        return (span_task.loss(self, model.head, batch) if self.is_span else super().loss(model, batch, step))

    def candidates(self, model, batch: dict) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return (span_task.candidates(model.head, batch, ANSWERS) if self.is_span else
                super().candidates(model, batch))

    def questions(self, split: str) -> list[Question]:
        """Return the questions of a list: "train", "val" or "test_unannotated", or others of task.feature_clips."""
        if split not in self._questions:
            path = self.require_file(list_of(split, self.config.task.feature_clips))
            self._questions[split] = nlq_annotations.read_questions(path)
        return self._questions[split]

    def entries(self, split: str) -> list[Entry]:
        own, splits = self.config.task, ["val", "test_unannotated"]
        splits = choose_lists(own.train_lists, own.feature_clips) if split == "train" else splits[:1 + own.predict_test]
        questions = [question for each in splits for question in self.questions(each)]
        if split == "train" and distributed.rank() == 0 and (
                empty := nlq_annotations.count_empty(questions, cut=self.is_span)):
            print(f"train: {empty} of {len(questions)} answers have length 0: " + (
                "cut to features, their label is the clip's beginning, as in the original" if self.is_span else
                "they claim no point, so nothing is learnt of them"), flush=True)
        if not self.place_of:
            raise ConfigError(f"{self.word_files.folder} holds no words of questions: let task.words name the run of "
                              f"{self.notebook} that has extracted them")
        absent = [question for question in questions if question.key not in self.place_of]
        other = [question for question in questions
                 if self.place_of.get(question.key, ("", question.query))[1] != question.query]
        for problem, found in (("is not among the stored words", absent), ("is another question there", other)):
            if found:
                raise FeatureError(f"{self.word_files.folder}/manifest.json: question {found[0].key} "
                                   f"({found[0].query!r:.80}) {problem}, like {len(found) - 1} others: extract the "
                                   "features again, from the same annotations")
        if self.files.axes == 3 and self.files is not self.word_files:
            listed = places(self.files)
            moved = [question for question in questions if listed.get(question.key) != self.place_of[question.key]]
            if moved:
                raise FeatureError(f"{self.files.folder}/manifest.json: question {moved[0].key} has another place than "
                                   f"in {self.word_files.folder}/manifest.json, or is absent, like {len(moved) - 1} "
                                   "others: extract features and words from the same annotations, or leave task.words "
                                   "empty")
        return [self.entry(question) for question in questions]

    def entry(self, question: Question) -> Entry:
        """Return the sample of a question."""
        times = np.array([[question.start, question.stop]] if question.start is not None else [], float).reshape(-1, 2)
        return Entry(Clip(question.clip_uid, question.video_uid, question.clip_start, question.clip_stop), times,
                     np.zeros(len(times), np.int64), self.place_of[question.key][0], question)

    def question_words(self, entry: Entry) -> np.ndarray:
        return self.word_files.words(entry.clip, entry.question)

    def found(self, entry: Entry, segments_N2, scores_N, classes_N) -> dict[str, np.ndarray]:
        """Return "answers", (5, 3): start, stop and score, the best first; NaN after the last one."""
        own, kept, scores = self.config.task, segments_N2, scores_N
        if not self.is_span:
            kept, scores, _ = segments.soft_nms(segments_N2, scores_N, own.sigma, own.least_score, 3 * ANSWERS)
            if own.vote and len(kept):
                kept = segments.vote(kept, segments_N2, scores_N, own.vote)
                different = segments.nms(kept, scores, own.vote)  # votes make the same answer of near ones
                kept, scores = kept[different], scores[different]
            kept, scores = kept[:ANSWERS], scores[:ANSWERS]
        rows = np.full((ANSWERS, 3), np.nan)
        rows[:len(kept)] = np.column_stack([kept, scores])
        return {"answers": rows}

    @torch.no_grad()
    def answer(self, head, encoders, clip: Clip, query: str) -> np.ndarray:
        """Return up to 5 answers to any question about a clip with stored features: start, stop and score, (k, 3).

        Args:
            head: a FeatureModel with this task's head.
            encoders: the model that made the features.

        Raises:
            FeatureError: the clip's features are damaged.
            VideoError: they are fused, and the clip can't be read.
            ValueError: the head finds NaN or Inf.
        """
        question = nlq_annotations.typed_in(clip.uid, clip.video, query, clip.start, clip.stop)
        asked = {"clip_uid": clip.uid, "video_uid": clip.video, "start": clip.start, "stop": clip.stop,
                 "questions": [{"query": question.query}]}
        feature = self.seen(self.features(encoders, asked)[0][0].float().numpy() if self.files.axes == 3 else
                            self.files.read(clip))
        entry = Entry(clip, np.zeros((0, 2)), np.zeros(0, np.int64), 0, question)
        batch = self.collate([{"video": feature, "words": self.words(encoders, asked).float().numpy(), "index": 0,
                               "unreadable": ""}])
        with autocast(head.device, self.config.evaluate.precision):  # as an evaluation
            found = next(iter(self.candidates(head, move_to_device(batch, head.device))))
        rows = self.found(entry, *self.in_seconds(entry, len(feature), found))["answers"]
        return rows[~np.isnan(rows[:, 0])]

    def predictions_of(self, rows: dict[str, np.ndarray], split: str) -> tuple[dict, list[Question]]:
        """Return a split's predictions by the questions' keys, and the questions that were asked."""
        entries, wanted = self.dataset("test").entries, {question.key for question in self.questions(split)}
        answers = {entries[index].source: part[~np.isnan(part[:, 0])]
                   for index, part in zip(rows["index"], rows["answers"], strict=True)
                   if entries[index].source.key in wanted}
        return {question.key: part[:, :2] for question, part in answers.items()}, list(answers)

    def metrics(self, rows: dict[str, np.ndarray], prompts_KE) -> dict[str, float]:
        """Return recalls in % (challenge's way, and the original's), the mean IoU of first answers, and counts."""
        predictions, questions = self.predictions_of(rows, "val")
        clips = {question.clip_uid for question in questions}
        return nlq_results.percentages(predictions, questions) | self.counts(rows, clips)

    def chance(self) -> dict[str, float]:
        """Return the metrics of five random answers, as long as the training split's."""
        questions, random = self.questions("val"), np.random.default_rng(0)
        lengths = np.array([question.stop - question.start for question in self.questions("train")])
        predictions = {}
        for question in questions:
            seconds = question.clip_stop - question.clip_start
            length = np.minimum(random.choice(lengths, ANSWERS), seconds)
            start = random.uniform(0, 1, ANSWERS) * (seconds - length)
            predictions[question.key] = np.stack([start, start + length], 1)
        return nlq_results.percentages(predictions, questions)

    def save_outputs(self, run: Run, section: str, rows: dict[str, np.ndarray], prompts_KE) -> None:
        """Write the validation split's predictions and truth, and the test split's submission."""
        super().save_outputs(run, section, rows, prompts_KE)
        predictions, questions = self.predictions_of(rows, "val")
        keys = ("clip_uid", "video_uid", "annotation_uid", "query_idx", "query", "template", "clip_start", "start",
                "stop", "duration")
        truth = [{key: getattr(question, key) for key in keys} for question in questions]
        for name, document in (("nlq_predictions.json", nlq_results.submission(predictions)),
                               (self.truth_name, {"task": "nlq", "questions": truth})):
            write_text(run.path / name, json.dumps(document))
        if self.config.task.predict_test:
            predictions, _ = self.predictions_of(rows, "test_unannotated")
            write_text(run.path / "submission.json", json.dumps(nlq_results.submission(predictions)))

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        """Check the nlq_*.json, and their clips against the resized Ego4D videos."""
        part, clips = "EgoNLQ", []

        def read(path: Path) -> Iterator[Finding]:
            found = nlq_annotations.read_clips(path)
            clips.extend((clip.video_uid, clip.stop) for clip in found)
            skipped, empty = (sum(counts) for counts in zip(*(
                (clip.skipped, nlq_annotations.count_empty(clip.questions)) for clip in found), strict=True))
            yield Finding(part, f"{path.name} questions", "ok", f"{sum(len(clip.questions) for clip in found):,}")
            if skipped or empty:
                yield Finding(part, f"{path.name} questions", "note",
                              f"{skipped:,} have no text and are left out; {empty:,} have an answer of length 0")
        yield from checks.check_clip_lists(part, "nlq_*.json", read, clips)


def places(files: FeatureFiles) -> dict[tuple, tuple[int, str]]:
    """Return each listed question's key -> its place in its clip's list, and its text."""
    return {(uid, entry["annotation_uid"], entry["query_idx"]): (place, entry["query"])
            for uid, clip in files.listed.items() for place, entry in enumerate(clip.get("questions", ()))}
