"""Questions answered in words, of which every question, answer, label and clip is hostile."""
from types import SimpleNamespace

import numpy as np
import torch
from hostile import NAME
from hostile_tasks import DRAWN, FEW, WORDS, answer

import egokit
from egokit import tasks, viz
from egokit.model.class_head import ClassHead
from egokit.runs.run_folder import Run
from egokit.search.answers import Asked
from egokit.tasks.taskqa.annotations import Question


class Asking:
    """A task with a question, a clip, a label and an answer of every text."""

    def __init__(self, root, words):
        self.root, self.config, self.vocabulary = root, SimpleNamespace(task=SimpleNamespace(name=NAME)), words
        self.asked = [Question(text, text, number, (text, NAME), text, text) for number, text in enumerate(words)]

    def questions_of(self, split):
        return self.asked

    def num_rows(self):
        return len(self.asked)

    def prompts(self):
        return []

    def tables(self):
        return []

    def read_clip(self, name):
        return np.full((8, 12, 16, 3), 100, np.uint8)

    def transform(self, pixels, rng):
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def asked(folder, words=WORDS) -> tuple:
    """Return (task, run): it is evaluated as section NAME, and every answer is another question's."""
    task, run, count = Asking(folder, words), Run(folder / "outputs/09_egotaskqa" / NAME), len(words)
    classes = (np.arange(count)[:, None] + np.arange(1, 6)) % count
    run.write_rows(NAME, {"index": np.arange(count), "classes": classes, "chances": np.full((count, 5), 0.2)})
    return task, run


def accuracy_by_kind(folder, own):
    run = Run(folder / NAME)
    numbers = {f"{kind}/{text}": 5.0 for text in DRAWN for kind in ("accuracy", "questions")}
    run.write_metrics(NAME, {f"{NAME}_all": 5.0, "samples": 3, **numbers})
    return viz.accuracy_by_kind(run, NAME), DRAWN, ()


def asked_clips(folder, own):
    task, run = asked(folder, DRAWN)
    return viz.asked_clips(task, run, len(DRAWN)), DRAWN, ()


def answer_attention(folder, own):
    model = egokit.load(own.checkpoint, tokenizer=own.resolve().site.tokenizer)
    model.head = ClassHead(model.config.width, ["$x$", "<b>", "_c"])
    frames = viz.question(tasks.make(own.resolve()).validation(), 0).pixels[0]
    texts = [text for text in FEW if "\udcff" not in text]  # which no tokenizer takes
    return [viz.answer_attention(model, frames, [text]) for text in texts], texts, ()


def confusions(folder, own):
    return viz.confusions(*asked(folder), NAME, count=len(WORDS)), WORDS, ()


def answerer(folder):
    """Return what search.answer_box needs, with hostile answers and clips."""
    hits = dict(zip(WORDS, answer(folder), strict=True))

    class Answerer(SimpleNamespace):
        def __call__(self, question, clip, top):
            return [(text, 1 / len(WORDS)) for text in WORDS]

        def film(self, clip):
            return hits[clip]
    return Answerer(run=Run(folder / "outputs/09" / NAME), clips=WORDS, examples=[Asked(*[text] * 3) for text in WORDS])
