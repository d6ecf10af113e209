"""Tasks, runs and answers in which every text is hostile, and a driver of every public function that shows them."""
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import torch
from hostile import FILES, NAME, TEXTS
from test_curves import step_event, validation_event

from egokit.model.dual import Dual
from egokit.prep.doctor import Finding
from egokit.runs.run_folder import Run
from egokit.search.searcher import Answer, Hit
from egokit.tasks import ChoiceTask, RetrievalTask

WORDS = list(TEXTS)
DRAWN = [text for text in WORDS if not re.search(r"[<&(]|\$\{|^__|None|\xa0|zero", text)]  # no figure reads HTML
FEW = [text for text in DRAWN if re.match(r"\$5|one|lone|xxx", text)]


class Clips:
    """Small clips, each with one of the texts."""

    def __init__(self, texts):
        self.words = texts

    def __len__(self):
        return len(self.words)

    def __getitem__(self, place):
        return {"video": torch.full((4, 3, 16, 16), place[1] * 7 % 255, dtype=torch.uint8),
                "text": self.words[place[1]]}


class Shared:
    """What both tasks have in common: every text, label and description is hostile."""
    partly_relevant = NAME

    def __init__(self, root, words):
        self.root, self.config = root, SimpleNamespace(task=SimpleNamespace(name=NAME))
        self.words, self.count = words, len(words)

    def dataset(self, split):
        return Clips(self.words)

    def describe_clip(self, v):
        return self.words[v]

    def tables(self):
        return []

    def query_tags(self):
        return super().query_tags() | {"verb": [[text] for text in self.words],
                                         "noun": [[text, NAME] for text in self.words]}


class Retrieval(Shared, RetrievalTask):
    """Each text's right clip has its number, and the next one is partly right."""

    def truth(self):
        return np.eye(self.count) + 0.5 * np.roll(np.eye(self.count), 1, axis=0)

    def prompts(self):
        return self.words

    def num_rows(self):
        return self.count

    def clip_tags(self):
        return self.query_tags()


class Choice(Shared, ChoiceTask):
    """A question for each text."""
    deciding, meanings = NAME, {NAME: NAME}

    def __init__(self, root, words):
        super().__init__(root, words)
        self.texts, self.kinds = words, [[words[number % 3]] for number in range(len(words))]
        self.choices = (np.arange(self.count)[:, None] + np.arange(5)) % self.count
        self.answers = np.zeros(self.count, int)

    def score_matrix(self, rows):
        return {"plain": rows["plain"].reshape(-1, 5), NAME: rows["dual"].reshape(-1, 5)}

    def prompts(self):
        return []


class Model(Dual):
    """A model that encodes nothing, for `viz.reranked`."""
    fuses = True

    def encode_video(self, frames):
        return torch.eye(16)[:len(frames)]

    def encode_text(self, texts):
        return torch.ones(len(texts), 16)

    def match(self, frames, texts):
        return torch.linspace(0, 1, len(frames))


def evaluated(folder, words=WORDS):
    """Return (retrieval task, choice task, their runs): each is evaluated as sections NAME and NAME-2."""
    tasks, rng, count = [Retrieval(folder, words), Choice(folder, words)], np.random.default_rng(0), len(words)
    runs = [Run(folder / "outputs" / name / NAME) for name in ("03_ek100", "05_egomcq")]
    for section in (NAME, f"{NAME}-2"):
        runs[0].write_rows(section, {"index": np.arange(count), "video": rng.normal(size=(count, 8))},
                           rng.normal(size=(count, 8)))
        runs[1].write_rows(section, {"index": np.arange(5 * count), "plain": rng.random(5 * count),
                                     "dual": np.arange(5 * count) % 5 == 0})
    return *tasks, *runs


def trained(folder):
    """Return a run that has been trained, whose log has hostile texts and names."""
    run = Run(folder / "outputs/02_pretrain" / NAME)
    for step in range(1, 4):
        run.log(step_event(step) | {NAME: 1.0})
    for step, number in enumerate((0, 3, 7)):
        samples = [{"text": text, "clips": [0, 1, 2, 3, 4], "scores": [.1, .2, .3, .4, .5],
                    "relevancy": [1, 0, 0, 0, 0]} for text in DRAWN]
        run.log(validation_event(step, predictions=samples, **{NAME: 50.0}) | {"epoch": number})
    return run


def job_of(run):
    """Return a training job's handle that has finished."""
    return SimpleNamespace(run=run, wait=lambda **options: {}, spec=dict)


def with_files(folder):
    """Return a run in which everything is called something hostile, with a metrics.json that anybody wrote."""
    run = Run(folder / "outputs/05_egomcq" / NAME)
    for text in FILES:
        (run.path / text).touch()
    own = {"published": {text: 1.0 for text in WORDS[:-1]}, "task": f"f.py:{NAME}", "recipe": {}, "action": "evaluate",
           "toy": False, "samples": 1, "frames": 4, "precision": NAME, "init": NAME, "init_sha256": NAME, "data": {},
           **dict.fromkeys(WORDS[:-1], 5.0)}
    egomcq = {"ensemble_inter": NAME, "ensemble_intra": 1e300, "finished": True}
    (run.path / "metrics.json").write_text(json.dumps({"own": own, "egomcq": egomcq}))
    for number, text in enumerate(FILES):
        damaged = folder / "outputs/damaged" / f"{number}-{text}"
        damaged.mkdir(parents=True)
        (damaged / "metrics.json").write_bytes(os.fsencode(text))
    return run


def findings():
    return [*(Finding(text, text, "wrong", text, text) for text in WORDS),
            *(Finding(text, text, "ok", "") for text in WORDS)]


def answer(folder):
    """Return an answer whose videos, notes and errors are hostile."""
    return Answer([Hit(text, 0, 1, 0.5, None, folder / f"{number}.mp4", error=text)
                   for number, text in enumerate(WORDS)], [*WORDS])
