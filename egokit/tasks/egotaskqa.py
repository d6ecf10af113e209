"""EgoTaskQA: a question about a clip, answered with one of the words of a vocabulary.

The fused state of clip and question goes through a head of classes. An evaluation reads every clip once: the unfused
half of the video side is computed once, and serves all questions about the clip.

Shapes: B clips or questions, T frames, S video tokens, D width, K answers, Q questions of an evaluation.

Source: EgoTaskQA (arXiv 2210.03929); EgoVLPv2 (arXiv 2307.05463), section 4 and appendix D.
"""
from __future__ import annotations

import collections
import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from egokit.config.schema import Config, Input, Scored, Share, TaskConfig
from egokit.data.loader import Samples
from egokit.data.site_checks import Checks, Finding
from egokit.data.video.timeline import VideoError
from egokit.model.checkpoints import WeightsError
from egokit.model.class_head import ClassHead
from egokit.model.input_checks import in_few_numbers
from egokit.runs.ledger import Result
from egokit.tasks.base import Task
from egokit.tasks.taskqa import accuracy, annotations, site, vocabulary
from egokit.tasks.taskqa.annotations import Question
from egokit.tasks.taskqa.clips import ClipFiles
from egokit.tasks.taskqa.samples import AskedClips, TrainingQuestions
from egokit.train import distributed

BEST_ANSWERS = 5   # of a question, that an evaluation keeps
PAIR_FRAMES = 16   # see `EgoTaskQA.questions_at_once`
RECIPES = {"direct": ("egotaskqa_direct", "6e510d07dabc"), "indirect": ("egotaskqa_indirect", "d2efc94387d2")}
PUBLISHED = {"direct": (35.56, 75.60, 46.26, None), "indirect": (29.14, 59.68, 42.28, None)}
CHOSEN = "published for the checkpoint of the best test accuracy, on random frames"
AS_PUBLISHED = (f"{CHOSEN}, as the accuracy of the questions whose label is the split's name; the published numbers of "
                "all, open and binary questions don't fit each other: compare open and binary first")


class EgoTaskQA(Task):
    """Answers questions about clips, and is trained to.

    Attributes:
        vocabulary: the answers, in the order of the head's classes.
        files: where the clips are.
    """
    notebook = "09_egotaskqa"
    sections: ClassVar = {"train": "finetune", "evaluate": "egotaskqa"}
    title = "EgoTaskQA"
    recipe, recipe_sha256 = RECIPES["direct"]
    unit = "questions"
    best = "direct_all"  # of an instance: "<split>_all"
    trains, selection_split = "fused_video", "val"
    published: ClassVar = [  # EgoVLPv2 (ICCV 2023), table 5
        Result(f"EgoTaskQA {split} {words}, fine-tuned", section, f"{split}_{metric}", number,
               f"EgoTaskQA_finetune_{split}.tar", f"{split}_{metric}", in_ledger=number is not None,
               note=AS_PUBLISHED if metric == "as_published" else CHOSEN)
        for section in ("finetune", "egotaskqa") for split, numbers in PUBLISHED.items()
        for metric, words, number in zip(("open", "binary", "as_published", "all"),
                                         ("open", "binary", '"all"', "all questions"), numbers, strict=True)]

    class Params(TaskConfig):
        split: Scored[Literal["direct", "indirect"]] = "direct"  # which questions, and which vocabulary of answers
        questions: Input[str] = "EgoTaskQA/qa"  # folder of the splits' folders, under the data root
        clips: Input[str] = "EgoTaskQA/qa_videos/{clip}.mp4"  # where clips are; or LEMMA's videos, such as
                                                # LEMMA/{video}/{view}.mp4, or frames, …/{view}/img_{frame:05d}.jpg
        head: Literal["mlp", "linear"] = "mlp"  # layers: two, as fine-tuned, or one, as in the paper's head-tuning
        head_dropout: Share = 0.2               # before the head's last layer
        scored_on: Scored[Literal["test", "val"]] = "test"  # questions of an evaluation; training is validated on val,
                                                # and the chosen model is scored on these at the end

    def __init__(self, config: Config):
        super().__init__(config)
        own = config.task
        self.best = f"{own.split}_all"
        self.files = ClipFiles(self.root, own.clips, config.data.reader)
        self.vocabulary = vocabulary.read(self.require_file(*self.names(own, vocabulary.FILE)))
        self._questions: dict[str, list[Question]] = {}

    @staticmethod
    def names(own: EgoTaskQA.Params, file: str) -> tuple[str, str, str]:
        """Return the parts of the path of one of the split's files, under the data root."""
        return own.questions, own.split, file

    @classmethod
    def published_recipe(cls, recipe: dict) -> tuple[str, str]:
        return RECIPES.get(recipe.get("task.split"), RECIPES["direct"])

    @classmethod
    def needs_fusion(cls, config: Config, action: str) -> str:
        return "answering questions about clips (EgoTaskQA)" if cls.encodes(action) else ""

    def questions_of(self, split: str) -> list[Question]:
        """Return the questions of "train", "val" or "test" that are used, in the file's order."""
        if split not in self._questions:
            path = self.require_file(*self.names(self.config.task, annotations.file_of(split)))
            asked = annotations.read_questions(path, len(self.vocabulary))
            self._questions[split] = asked[:self.limited(len(asked))]
        return self._questions[split]

    @property
    def asked(self) -> list[Question]:
        """The questions of an evaluation, by the number that its rows have."""
        return self.questions_of(self.config.task.scored_on)

    @functools.cached_property
    def about(self) -> dict[str, list[int]]:
        """The clips of an evaluation, in order, each with the numbers of its questions."""
        numbers = collections.defaultdict(list)
        for number, question in enumerate(self.asked):
            numbers[question.clip].append(number)
        return {clip: numbers[clip] for clip in sorted(numbers)}

    def read_clip(self, name: str) -> np.ndarray:
        """Return the frames that an evaluation reads of a clip, uint8 (T, H, W, 3)."""
        return self.files.read(name, self.config.data.eval_frames)

    def dataset(self, split: str) -> Samples:
        trained_on = {question.clip for question in self.questions_of("train")} if split == "train" else set()
        for clips in filter(None, (trained_on, self.about)):  # training ends with an evaluation
            self.files.expect(sorted(clips), tolerant=self.config.data.max_bad_fraction > 0)
        return TrainingQuestions(self) if split == "train" else AskedClips(self, list(self.about))

    def num_rows(self) -> int:
        return len(self.asked)

    def scoring(self, split: str) -> EgoTaskQA:
        """Return this task with the questions of another split to evaluate; files are not read again."""
        task = copy.copy(self)
        task.__dict__.pop("about", None)
        task.config = dataclasses.replace(self.config, task=dataclasses.replace(self.config.task, scored_on=split))
        return task

    def validation(self) -> EgoTaskQA:
        return self.scoring("val")

    def held_out(self) -> EgoTaskQA | None:
        return None if self.config.task.scored_on == "val" else self

    # the head, its training and its answers
    def head(self, model) -> ClassHead:
        """Return the head of the vocabulary's classes.

        Raises:
            WeightsError: the model's checkpoint has a head of other answers.
        """
        own = self.config.task
        self.expect_same_answers(model)
        return ClassHead(model.config.width, self.vocabulary, len(self.vocabulary) if own.head == "mlp" else 0,
                         own.head_dropout, "fusion")

    def expect_same_answers(self, model) -> None:
        """Raise WeightsError if the head of a model's checkpoint is not of this vocabulary."""
        last = model.head.state_dict().get("fc2.weight") if model.head is not None else None
        if last is None:
            return
        words, held, size = self.vocabulary, getattr(model.head, "classes", ()), len(last)
        path = self.root.joinpath(*self.names(self.config.task, vocabulary.FILE))
        source = getattr(model, "source", "") or self.config.init or "the checkpoint"
        differs = f"{size} answers, but {path} has {len(words)}" if size != len(words) else next(
            (f"{held[k]!r:.40} as answer {k}, but {path} has {words[k]!r:.40}" for k in range(len(held))
             if held[k] != words[k]), "")
        if differs:
            raise WeightsError(f"{source}: its head has {differs}: use the questions and the answer_set.txt with which "
                               "it was trained (each split has its own, task.split); to train a new head, start from a "
                               "checkpoint without one, such as EgoVLPv2.pth")

    def loss(self, model, batch: dict, step: int) -> dict[str, Tensor]:
        """Return "cross_entropy" over the global batch: this rank's share of its mean, times the world size."""
        frames, tokens = batch["video"].shape[1], batch["tokens"]

        def logits(video: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
            trunk_BSD = model.fusion_trunk(model.normalise(video))
            return model.head(model.fused_video(trunk_BSD, {"input_ids": ids, "attention_mask": mask}, frames)).float()

        logits_bK = self.in_parts(logits, batch["video"], tokens["input_ids"], tokens["attention_mask"])
        return {"cross_entropy": self.cross_entropy(logits_bK, batch["answer"])}

    def questions_at_once(self, frames: int, device: torch.device) -> int:
        """Return how many questions go through the fused layers at once, so that memory is bounded for any clip."""
        clips = self.config.evaluate.batch_size
        return max(1, clips * PAIR_FRAMES // frames) if device.type == "cuda" else clips

    def score_batch(self, model, batch: dict) -> dict[str, np.ndarray]:
        """Answer all questions about a batch's clips; rows are as `rows_of` returns them."""
        names, reasons = list(self.about), batch["unreadable"]
        clips = [names[number] for number in batch["index"].tolist()]
        for clip, reason in zip(clips, reasons, strict=True):
            if reason:
                print(f"the questions about clip {clip} count as wrong: {reason}", flush=True)
        pairs = [(q, b) for b, clip in enumerate(clips) for q in self.about[clip]]
        index, own = np.array(pairs, int).T
        states_PD = self.fused_states(model, batch["video"], own, [self.asked[q].text for q in index])
        unreadable = np.array([bool(reasons[b]) for b in own], bool)
        return self.rows_of(index, model.head(states_PD).float(), unreadable)

    def fused_states(self, model, video: Tensor, own_P: Sequence[int], texts: list[str]) -> Tensor:
        """Return what the head reads, float32 (P, D), of P questions; each clip's unfused half is computed once.

        Args:
            video: clips, uint8 (B, T, 3, size, size).
            own_P: the clip of each question, its number in `video`.
            texts: the questions.
        """
        trunk_BSD, frames = model.fusion_trunk(model.normalise(video)), video.shape[1]
        size, longest, parts = self.questions_at_once(frames, model.device), self.config.data.eval_max_tokens, []
        for at in range(0, len(texts), size):
            part, own = texts[at:at + size], list(own_P[at:at + size])
            padded = in_few_numbers(part, model.device)
            tokens = model.tokens(padded, longest)
            rows = torch.tensor(own + own[-1:] * (len(padded) - len(part)), device=model.device)
            parts.append(model.fused_video(trunk_BSD[rows], tokens, frames)[:len(part)])
        return torch.cat(parts)

    def rows_of(self, index: np.ndarray, logits_BK: Tensor, unreadable: np.ndarray | None = None,
                ) -> dict[str, np.ndarray]:
        """Return rows of an evaluation.

        Args:
            index: numbers (B,) of questions of `asked`.
            logits_BK: the head's.
            unreadable: (B,) questions whose clip can't be read; they have no answer.

        Returns:
            "index" (B,); "classes" (B, 5), the best first, and "chances" (B, 5), their probabilities: -1 and 0 where
            there is none; "unreadable" (B,).

        Raises:
            ValueError: logits are NaN or Inf; the message names the question.
        """
        unreadable = np.zeros(len(index), bool) if unreadable is None else unreadable
        finite = torch.isfinite(logits_BK).all(1).numpy(force=True)
        for row in np.flatnonzero(~finite & ~unreadable)[:1]:
            question = self.asked[index[row]]
            raise ValueError(f"question {question.question_id}, {question.text!r:.80} of clip {question.clip}: NaN or "
                             f"Inf among the answers' scores (evaluate.precision {self.config.evaluate.precision}): "
                             "the checkpoint has diverged; train it again with a lower optim.lr")
        classes, chances = accuracy.best_answers(logits_BK, BEST_ANSWERS)
        classes[unreadable], chances[unreadable] = -1, 0
        return {"index": index, "classes": classes, "chances": chances, "unreadable": unreadable}

    def metrics(self, rows: dict[str, np.ndarray], prompts_KE) -> dict[str, float]:
        """Return accuracies in %, as `accuracy.report` names them, and counts.

        Returns:
            Also "unknown_answers", the questions whose answer the vocabulary has not, which are wrong unless the model
            says "<UNK1>"; "failed" and, if there are any, "unreadable_questions": those of clips that can't be read.

        Raises:
            VideoError: these are a larger share than data.max_bad_fraction.
        """
        asked = [self.asked[number] for number in rows["index"]]
        lost, limit = int(rows["unreadable"].sum()), self.config.data.max_bad_fraction
        if lost > limit * len(asked):
            first = asked[int(rows["unreadable"].argmax())]
            raise VideoError(f"{lost} of {len(asked)} questions are of clips that can't be read, such as {first.clip}, "
                             f"more than data.max_bad_fraction={limit:g} allows; the reasons are printed above")
        unknown = sum(question.answer == vocabulary.UNKNOWN for question in asked)
        if unknown and distributed.rank() == 0:
            print(f"{unknown} of {len(asked)} questions have an answer that is not in {vocabulary.FILE} as it is "
                  "written: they count, and are wrong", flush=True)
        report = accuracy.report(rows["classes"][:, 0], asked, self.vocabulary, self.config.task.split)
        return report | {"unknown_answers": unknown, "failed": lost} | ({"unreadable_questions": lost} if lost else {})

    def per_query(self, rows: dict[str, np.ndarray], prompts_KE) -> dict[str, list[np.ndarray]]:
        asked = [self.asked[number] for number in rows["index"]]
        return accuracy.per_question(rows["classes"][:, 0], asked, self.vocabulary, self.config.task.split)

    def chance(self) -> dict[str, float]:
        """Return the metrics of answering each question with the training split's most frequent answer.

        It is the most frequent one among questions of the same form, open or binary.
        """
        guessed = accuracy.most_frequent(self.questions_of("train"), self.asked, self.vocabulary)
        return accuracy.report(guessed, self.asked, self.vocabulary, self.config.task.split)

    def tables(self) -> list[Path]:
        own = self.config.task
        return [self.require_file(*self.names(own, name))
                for name in (annotations.file_of(own.scored_on), vocabulary.FILE)]

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        return site.inputs(config, action)

    @classmethod
    def check_site(cls, checks: Checks) -> Iterator[Finding]:
        """Check the question files and vocabularies of both splits, and the clips that they are about."""
        own = checks.config.task if isinstance(checks.config.task, cls.Params) else cls.Params()
        yield from site.check(checks, own)


