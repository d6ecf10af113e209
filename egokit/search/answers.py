"""Questions typed in about a clip, answered in words by a model with a head; the clip plays beside the answers."""
from __future__ import annotations

import re
from typing import NamedTuple

import torch

from egokit import tasks
from egokit.config.build import ConfigError, did_you_mean
from egokit.data.video.timeline import VideoError
from egokit.model import weights
from egokit.notebook.safe_html import NO_FORMULAS, escape, page
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.search.hits import Hit
from egokit.search.page import MEGABYTES, figures
from egokit.search.questions import question_box
from egokit.tasks.taskqa.annotations import FPS, ClipName

AROUND = 200  # bytes of the element around a clip and its answers, at most
FILES = "in Python search.export([ask.film(CLIP)], FOLDER)"


class Film(Hit):
    """A clip to play; it has no score."""

    @property
    def scores(self) -> str:
        return ""


class Asked(NamedTuple):
    """A question of the annotations, with its right answer."""
    clip: str
    query: str
    answer: str


class Answerer:
    """A trained run of EgoTaskQA, ready for questions: ask("is the cup open?", clip) -> [(word, chance), …].

    Args:
        run: a run that has fine-tuned a model, or a head on vectors; of the latter `init` made the vectors.

    Attributes:
        model: the model with its head, on a GPU if there is one.
        clips: names of the clips that the evaluation's questions are about.
        examples: the evaluation's own questions about clips that are there.

    Raises:
        ConfigError: the run is of another task, or its config isn't known.
        WeightsError: the run has not trained a head, or it doesn't fit the model.
    """

    def __init__(self, run: Run):
        config = run.config
        if config is None:
            raise ConfigError(f"{run.path}: its config is not known; expected a run of egokit.open_run(params, site, "
                              "overrides, run_name)")
        if config.task.name not in ("egotaskqa", "egotaskqa_head"):
            raise ConfigError(f"{run.path}: its task is {config.task.name!r}, expected egotaskqa or egotaskqa_head; "
                              "open a run of 09_egotaskqa")
        self.run, self.task, T = run, tasks.make(config), config.data.eval_frames
        self.model = (weights.load(run.path) if config.task.name == "egotaskqa" else
                      weights.load(config.init, frames=T, head=run.path))
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.clips = list(self.task.about)
        words = self.task.vocabulary
        absent = set(self.task.files.absent(self.clips))  # data.max_bad_fraction may allow some
        self.examples = [Asked(question.clip, question.question, question.answer_text or words[question.answer])
                         for question in self.task.asked if question.clip not in absent]

    def frames(self, clip: str) -> torch.Tensor:
        """Return the frames that the model reads of a clip, uint8 (T, 3, H, W).

        Raises:
            ConfigError: there is no such clip.
            FileNotFoundError, VideoError: it can't be read.
        """
        if clip not in self.clips:
            raise ConfigError(f"clip {clip!r:.80}: {did_you_mean(clip, self.clips)}")
        return self.task.transform(self.task.read_clip(clip), None)

    @torch.no_grad()
    def __call__(self, question: str, clip: str, top: int = 5) -> list[tuple[str, float]]:
        """Return the best answers to a question, (word, chance), best first.

        Args:
            question: any text.
            clip: the name of one of `clips`.

        Raises:
            ConfigError: there is no such clip, or the question is empty.
        """
        if not re.search(r"[^\s?]", question):
            raise ConfigError("the question is empty: write one, such as "
                              f"{self.examples[0].query if self.examples else 'what is opened?'!r}")
        text = re.sub("[\ud800-\udfff]", "\ufffd", question)  # halves of characters, which no tokenizer takes
        return self.model.answer(self.model.normalise(self.frames(clip))[None], text, top)[0]

    def film(self, clip: str) -> Film:
        """Return the clip as a hit, which a page plays."""
        name, files = ClipName.parse(clip), self.task.files
        start = 0.0 if files.places == {"clip"} else name.start / FPS
        return Film(clip, start, start + name.seconds, 0.0, None, files.path(clip))


def _words(asker: Answerer, question: str, clip: str, right: str, top: int, heading: bool) -> str:
    """Return a question's best answers as HTML, with their chances as bars."""
    bars = []
    for word, chance in asker(question, clip, top):
        mark = "✓ " if word == right else ""
        colour = "#009E73" if word == right else "#0072B2"
        bars.append(f'<tr><td style="text-align:right;padding:2px 8px">{mark}{escape(word)}</td><td>'
                    f'<div style="display:inline-block;height:14px;width:{2 * 100 * chance:.0f}px;'
                    f'background:{colour}"></div> {100 * chance:.1f} %</td></tr>')
    known = f"<br>right: {escape(right)}" if right else ""
    above = f"<p><b>{escape(question)}</b>{known}</p>" if heading else ""
    return f'<div>{above}<table style="border-collapse:collapse;font-size:14px">{"".join(bars)}</table></div>'


def _beside_clips(asker: Answerer, answers: list[tuple[str, str]], megabytes: float) -> str:
    """Return answers as HTML, each beside its clip.

    Args:
        answers: (clip, HTML) of each; "" stands for a clip that is not shown.
        megabytes: The largest size; below, the last clips are pictures, and a line says so.
    """
    films = [asker.film(clip) for clip, _ in answers if clip]
    around = sum(len(words.encode()) + AROUND for _, words in answers)
    shown, sheet, left_out = figures(films, megabytes, around, len(films), [1] * len(films), FILES)
    clips = iter(shown)
    content = "".join(f'<div class="{NO_FORMULAS}" style="display:flex;flex-wrap:wrap;gap:12px;align-items:center">'
                      f"{next(clips)}{words}</div>" if clip else words for clip, words in answers)
    return f"{sheet}{content}{''.join(f'<p>{escape(line)}</p>' for line in left_out)}"


def card(asker: Answerer, question: str, clip: str, right: str = "", top: int = 5, heading: bool = True,
         megabytes: float = MEGABYTES) -> str:
    """Return a question as HTML: its clip, which plays, and the best answers with their chances as bars.

    Args:
        right: the right answer, which is marked; "" if it isn't known.
        heading: whether the question, and the right answer, stand above the answers.
        megabytes: the largest size; the picture of a clip that takes more does not play.
    """
    return _beside_clips(asker, [(clip, _words(asker, question, clip, right, top, heading))], megabytes)


def answer_cards(asker: Answerer, count: int = 4, top: int = 5, megabytes: float = MEGABYTES):
    """Answer some of the evaluation's own questions, save figures/answered.html and return it for display.

    Args:
        count: how many, evenly spaced.
        megabytes: the largest size of the page; if the clips take more, the last ones are pictures that don't play.
    """
    from IPython.display import HTML
    step, answers = max(1, len(asker.examples) // max(1, count)), []
    for asked in asker.examples[step // 2::step][:count]:
        try:
            answers.append((asked.clip, _words(asker, asked.query, asked.clip, asked.answer, top, True)))
        except (FileNotFoundError, VideoError) as error:  # the other questions are answered all the same
            answers.append(("", f"<p><b>{escape(asked.query)}</b><br>no answer: {escape(error)}</p>"))
    content = _beside_clips(asker, answers, megabytes)
    write_text(asker.run.figure("answered.html"), page("questions and answers", content))
    return HTML(content)


def answer_box(asker: Answerer, question: str, clip: str, top: int = 5, megabytes: float = MEGABYTES):
    """Answer a question in words: see `questions.question_box`.

    Args:
        question: the question to begin with.
        clip: the clip to begin with.
        top: how many answers are shown.
        megabytes: the largest size; the picture of a clip that takes more does not play.
    """
    return question_box(asker, question, clip, lambda text, name: card(asker, text, name, top=top, heading=False,
                                                                       megabytes=megabytes))
