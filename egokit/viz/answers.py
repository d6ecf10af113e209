"""EgoNLQ's answers: timelines of some questions, and recalls by question template."""
import numpy as np

from egokit.notebook.safe_html import styled
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.tasks.moments.segments import hull_iou
from egokit.viz.moment_files import Answered, answered
from egokit.viz.moments import evenly
from egokit.viz.style import NEUTRAL, RIGHT, WIDTH, WRONG, new_figure, save_figure, wrapped

SPANS = 5     # of a question that are drawn
IOU = 0.3     # above which a span is right
TITLE = 105   # characters of a question in one line


def _overlaps(question: Answered) -> np.ndarray:
    """Return the IoU (k,) of each span with the right answer."""
    return hull_iou(question.spans[:SPANS], question.truth)[:, 0]


def answers(run: Run, count: int = 4):
    """Draw timelines of some questions of an evaluation of EgoNLQ: the right answer, and the five best spans.

    Args:
        run: its figure `answers` is saved.
        count: how many questions, evenly spaced among those with an answer.
    """
    questions = answered(run)
    with_answer = [question for question in questions if len(question.spans)]
    chosen = evenly(with_answer or questions, count)
    titles = [wrapped(question.question["query"], TITLE, 3 * TITLE) for question in chosen]
    lines = [1 + min(len(question.spans), SPANS) for question in chosen]
    heights = [1.05 + 0.24 * number + 0.22 * title.count("\n") for number, title in zip(lines, titles, strict=True)]
    figure = new_figure(figsize=(WIDTH, sum(heights) + 0.6))
    axes = figure.subplots(len(chosen), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, question, title, number in zip(axes, chosen, titles, lines, strict=True):
        overlap = _overlaps(question)
        colours = [NEUTRAL, *[RIGHT if value > IOU else WRONG for value in overlap]]
        for line, ((start, stop), colour) in enumerate(zip([*question.truth, *question.spans[:SPANS]], colours,
                                                           strict=True)):
            # the border makes a span without length visible
            axis.broken_barh([(start, stop - start)], (line - 0.4, 0.8), facecolor=colour, edgecolor=colour,
                             linewidth=2)
        # sign and colour both say what is right
        axis.set_yticks(range(number), ["truth", *[f"{'✓' if value > IOU else '✗'} {rank}, IoU {value:.2f}"
                                                   for rank, value in enumerate(overlap, 1)]])
        axis.tick_params(axis="y", length=0)
        end = max(question.question["duration"], question.question["stop"])  # a duration is cut to whole features
        axis.set(xlim=(0, end), ylim=(number - 0.4, -0.6), xlabel="time in the clip (s)")
        axis.set_title(title, loc="left")
    missing = len(questions) - len(with_answer)
    figure.suptitle(f"{len(chosen)} of {len(questions):,} questions"
                    + (f" (without an answer: {missing:,})" if missing else "")
                    + f". Green ✓: the span is right (IoU above {IOU:g}). Red ✗: wrong.", fontsize=12)
    return save_figure(figure, run, "answers")


def recalls_by_template(run: Run):
    """Return a table of the recall by template of the question, in %; a question without an answer counts as wrong."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    questions = answered(run)
    for question in questions:
        right = _overlaps(question) > IOU
        found.setdefault(question.question["template"] or "no template", []).append((right[:1].any(), right.any()))
    rows = [(shown(template), len(values), *(100 * np.mean(values, axis=0)).tolist())
            for template, values in sorted(found.items(), key=lambda item: -len(item[1]))]
    every = [value for values in found.values() for value in values]
    rows.append(("all", len(every), *(100 * np.mean(every, axis=0)).tolist()))
    missing = sum(not len(question.spans) for question in questions)
    columns = ["template", "questions", f"R@1, IoU {IOU:g}", f"R@{SPANS}, IoU {IOU:g}"]
    return styled(rows, columns, columns[:1], dict.fromkeys(columns[2:], "{:.1f}"),
                  [f"questions without an answer, which count as wrong: {missing:,}"] if missing else ())
