"""Questions typed in about a clip with stored features: the head's best answers, and where they lie in the video."""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from egokit import tasks
from egokit.config.build import ConfigError, did_you_mean
from egokit.config.names import file_stem
from egokit.model import feature_model
from egokit.model.own_modules import attach
from egokit.notebook.open_run import is_live
from egokit.notebook.safe_html import NO_FORMULAS, escape, live_view, page, styled
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.search.hits import Answer, Hit
from egokit.search.page import MEGABYTES, grid
from egokit.tasks.feature_files import Clip

MADE_BY = {"kind": "feature_kind", "frames": "feature_frames",  # keys of a manifest, and of the config
           "features_per_second": "features_per_second"}


class Stretch(Hit):
    """A stretch of a video that answers a question; `cosine` holds the head's score."""

    @property
    def scores(self) -> str:
        return f"score {self.cosine:.2f}"


class Asked(NamedTuple):
    """A question of the annotations, as an example to ask."""
    clip: str
    query: str


class Questioner:
    """A trained run of EgoNLQ, ready for questions: ask("where is the red box?", clip) -> the best stretches.

    Args:
        run: a run whose job "grounding" has ended; its config names the features and the model that made them.

    Attributes:
        clips: clip_uid -> Clip, of the validation and the test split, with features that can be used.
        examples: the validation split's own questions.

    Raises:
        ConfigError: the run is of another task; no model is known that makes a question's words, or fused features, as
            those that the head was trained on.
        WeightsError: the run has not trained a head.
    """

    def __init__(self, run: Run):
        config = run.config
        if config is None:
            raise ConfigError(f"{run.path}: its config is not known; expected a run of egokit.open_run(params, site, "
                              "overrides, run_name)")
        if config.task.name != "nlq":
            raise ConfigError(f"{run.path}: its task is {config.task.name!r}, expected nlq; open a run of 08_egonlq")
        self.run, self.task = run, tasks.make(config)
        self._check_model()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.head = feature_model.load(run.path)
        attach(self.head, self.task)
        self.head.to(device).eval()
        self.encoders = self.task.initial_model("extract").to(device).eval()
        entries = self.task.dataset("test").entries
        self.clips: dict[str, Clip] = {entry.clip.uid: entry.clip for entry in entries
                                       if entry.clip.uid not in self.task.unusable}
        self.examples = [Asked(entry.clip.uid, entry.source.query) for entry in entries
                         if len(entry.segments_M2) and entry.clip.uid in self.clips]

    def _check_model(self) -> None:
        """Raise ConfigError unless `init` and the config would make the stored words, and fused features, again."""
        config, files, spoken = self.task.config, self.task.files, self.task.word_files
        if not spoken.manifest:
            raise ConfigError("task.features are files of others: a question that is typed in needs the model that "
                              "made the questions' words; set task.features to a run that extracts, or, to read "
                              "features of others, task.words to such a run")
        digest = self.task.init_sha256()
        for made in [spoken, *([files] if files.axes == 3 else [])]:
            if made.manifest.get("init_sha256") != digest:
                by = made.manifest.get("init")
                raise ConfigError(f"{made.folder} was made by init {by!r} ({made.manifest.get('init_sha256')}), but "
                                  f"init is {config.init!r} ({digest}): set init={by}, or, if that file has changed "
                                  "since, extract and train again")
        for key, name in MADE_BY.items():
            if files.axes == 3 and files.manifest.get(key) != getattr(config.task, name):
                raise ConfigError(f"{files.folder} holds features that are fused with questions: its {key} is "
                                  f"{files.manifest.get(key)!r}, but task.{name}={getattr(config.task, name)}; set it "
                                  "as there, because a question that is typed in makes features anew")

    def __call__(self, question: str, clip: str, top: int = 5) -> Answer:
        """Return the best stretches of a clip for a question.

        Args:
            question: any text; a clip's words are those of the toy's or Ego4D's narrations.
            clip: its clip_uid.
            top: how many answers, at most.

        Raises:
            ConfigError: there is no such clip, or the question is empty.
            FeatureError, VideoError: the clip's features, or fused ones' video, can't be read.
        """
        if clip not in self.clips:
            raise ConfigError(f"clip {clip!r:.80}: {did_you_mean(clip, self.clips)}")
        if not re.search(r"[^\s?]", question):
            raise ConfigError("the question is empty: write one, such as "
                              f"{self.examples[0].query if self.examples else 'where is the red box?'!r}")
        known = self.clips[clip]
        path, name = self.task.videos / f"{known.video}.mp4", known.video
        text = re.sub("[\ud800-\udfff]", "\ufffd", question)  # halves of characters, which no tokenizer takes
        rows = self.task.answer(self.head, self.encoders, known, text)[:top]
        return Answer([Stretch(name, known.start + start, known.start + stop, float(score), None, path)
                       for start, stop, score in rows],
                      [f"clip {clip}: {known.start:.1f} to {known.stop:.1f} s of its video"])


def answer_table(hits: list[Hit]):
    """Return a question's answers as a table."""
    rows = [(rank, hit.time, round(hit.stop - hit.start, 1), hit.cosine) for rank, hit in enumerate(hits, 1)]
    return styled(rows, ["rank", "time in the video", "seconds", "score"], [], {"score": "{:.3f}", "seconds": "{:.1f}"},
                  getattr(hits, "notes", ()))


def question_box(asker, question: str, clip: str, answered: Callable[[str, str], str]):
    """Answer a question about a clip, save figures/question-<text>.html and return what to display.

    Args:
        asker: has the `clips` that can be asked about, by name, and the `run` whose figures are written.
        question: the question to begin with.
        clip: the clip to begin with.
        answered: returns the answers to a question about a clip as HTML.

    Returns:
        In a live notebook a box for further questions and clips; headless the answers, as HTML.
    """
    from IPython.display import HTML
    def asked_and_answered(text: str, name: str) -> str:  # the box may hold another text by then
        return f'<h1 class="{NO_FORMULAS}" style="font-size:1.3em">{escape(text)}</h1>{answered(text, name)}'
    content = asked_and_answered(question, clip)
    write_text(asker.run.figure(f"question-{file_stem(question)}.html"), page(question, content))
    if not is_live():
        return HTML(content)
    import ipywidgets
    wide = {"description_width": "110px"}
    box = ipywidgets.Text(question, description="question", continuous_update=False,  # answers at Enter
                          layout={"width": "90%"}, style=wide)
    chosen = ipywidgets.Dropdown(options=list(asker.clips), value=clip, description="clip", layout={"width": "60%"},
                                 style=wide)
    status, view = live_view((box, chosen), content, "looking …",
                             lambda: asked_and_answered(box.value, chosen.value))
    return ipywidgets.VBox([box, chosen, status, view])


def ask_browser(asker: Questioner, question: str, clip: str, top: int = 3, megabytes: float = MEGABYTES):
    """Answer a question by moments that play: see `question_box`.

    Args:
        asker: an open run.
        question: the question to begin with.
        clip: the clip to begin with.
        top: how many answers are played.
        megabytes: the largest size; if the answers' clips take more, the last ones are pictures that don't play.
    """
    return question_box(asker, question, clip, lambda text, name: grid(asker(text, name, top), megabytes).data)
