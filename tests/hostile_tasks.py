"""Tasks, runs and answers in which every text is hostile, and a driver of every public function that shows them."""
import json
import os
from types import SimpleNamespace

import numpy as np
import torch
from hostile import FILES, NAME, TEXTS
from test_curves import step_event, validation_event

from egokit.prep.doctor import Finding
from egokit.runs.run_folder import Run
from egokit.search.searcher import Answer, Hit
from egokit.tasks import ChoiceTask, RetrievalTask

WORDS = list(TEXTS)
COUNT = len(WORDS)


class Clips:
    """Small clips, each with one of the texts."""

    def __len__(self):
        return COUNT

    def __getitem__(self, place):
        return {"video": torch.full((4, 3, 16, 16), place[1] * 7 % 255, dtype=torch.uint8), "text": WORDS[place[1]]}


class Shared:
    """What both tasks have in common: every text, label and description is hostile."""
    partly_relevant = NAME

    def __init__(self, root):
        self.root, self.config = root, SimpleNamespace(task=SimpleNamespace(name=NAME))

    def dataset(self, split):
        return Clips()

    def describe_clip(self, v):
        return WORDS[v]

    def tables(self):
        return []

    def query_tags(self):
        return super().query_tags() | {"verb": [[text] for text in WORDS], "noun": [[text, NAME] for text in WORDS]}


class Retrieval(Shared, RetrievalTask):
    """Each text's right clip has its number, and the next one is partly right."""

    def truth(self):
        return np.eye(COUNT) + 0.5 * np.roll(np.eye(COUNT), 1, axis=0)

    def prompts(self):
        return WORDS

    def num_rows(self):
        return COUNT

    def clip_tags(self):
        return self.query_tags()


class Choice(Shared, ChoiceTask):
    """A question for each text."""
    deciding, meanings = NAME, {NAME: NAME}
    kinds = [[WORDS[number % 3]] for number in range(COUNT)]  # noqa: RUF012
    texts = WORDS

    def __init__(self, root):
        super().__init__(root)
        self.choices = (np.arange(COUNT)[:, None] + np.arange(5)) % COUNT
        self.answers = np.zeros(COUNT, int)

    def score_matrix(self, rows):
        return {"plain": rows["plain"].reshape(COUNT, 5), NAME: rows["dual"].reshape(COUNT, 5)}

    def prompts(self):
        return []


class Model:
    """A model that encodes nothing, for `viz.reranked`."""

    def encode_video(self, frames):
        return torch.eye(COUNT)[:len(frames)]

    def encode_text(self, texts):
        return torch.ones(len(texts), COUNT)

    def match(self, frames, texts):
        return torch.linspace(0, 1, len(frames))


def evaluated(folder):
    """Return (retrieval task, choice task, run): both are evaluated in the run as sections named NAME and NAME-2."""
    run, other, rng = Run(folder / "outputs/03_ek100" / NAME), Run(folder / "outputs/05_egomcq" / NAME), \
        np.random.default_rng(0)
    for section in (NAME, f"{NAME}-2"):
        run.write_rows(section, {"index": np.arange(COUNT), "video": rng.normal(size=(COUNT, 8))},
                       rng.normal(size=(COUNT, 8)))
        other.write_rows(section, {"index": np.arange(5 * COUNT), "plain": rng.random(5 * COUNT),
                                   "dual": np.arange(5 * COUNT) % 5 == 0})
    return Retrieval(folder), Choice(folder), run, other


def trained(folder):
    """Return a run that has been trained, whose log has hostile texts and names."""
    run = Run(folder / "outputs/02_pretrain" / NAME)
    for step in range(1, 4):
        run.log(step_event(step) | {NAME: 1.0})
    for step, number in enumerate(range(0, COUNT, 4)):
        samples = [{"text": text, "clips": [0, 1, 2, 3, 4], "scores": [.1, .2, .3, .4, .5],
                    "relevancy": [1, 0, 0, 0, 0]} for text in WORDS]
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
