"""Questions that are answered in words: clips with their questions, accuracy by kind of question, confusions."""
import collections

import numpy as np

from egokit.notebook.safe_html import styled
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.answer_queries import clip_frames, confused, section_answers
from egokit.viz.style import MAX_NAME, NEUTRAL, WIDTH, Picture, clip_grid, new_figure, save_figure

LISTED = 6     # questions under a clip
PICTURES = 8   # frames of a clip
KINDS = 40     # of questions that are drawn, the most frequent


def asked_clips(task, run: Run, count: int = 2, split: str = "train"):
    """Draw some clips with their questions and right answers, and save figures/asked-<split>.png.

    Args:
        task: a task whose questions are answered in words.
        count: how many clips, those with the most questions first.
        split: "train", "val" or "test".
    """
    about = collections.defaultdict(list)
    for question in task.questions_of(split):
        about[question.clip].append(question)
    chosen = sorted(about, key=lambda clip: (-len(about[clip]), clip))[:count]
    rows = []
    for clip in chosen:
        frames = clip_frames(task, clip)
        numbers = np.linspace(0, len(frames) - 1, min(PICTURES, len(frames))).round().astype(int)
        lines = [f"{question.text} — {question.answer_text or task.vocabulary[question.answer]}"
                 for question in about[clip][:LISTED]]
        more = len(about[clip]) - len(lines)
        rows.append((" · ".join(lines) + (f" · and {more} more" if more else ""), None, [
                     Picture(frames[number], f"frame {number + 1}") for number in numbers]))
    title = f"{len(chosen)} of {len(about):,} clips of {split} with their questions and right answers"
    figure, _ = clip_grid(rows, title)
    return save_figure(figure, run, f"asked-{split}")


def accuracy_by_kind(run: Run, section: str):
    """Draw the accuracy of each kind of question, with the number of questions, and save figures/kinds-<section>.png.

    Args:
        run: its metrics.json has "accuracy/<kind>" and "questions/<kind>" in this section and in "chance".

    Raises:
        ValueError: The section has no such metrics.
    """
    metrics, chance = run.metrics().get(section, {}), run.metrics().get("chance", {})
    split = next((name.removesuffix("_all") for name in metrics
                  if name.endswith("_all") and not name.startswith("val_")), None)
    if split is None:
        raise ValueError(f"{run.path / 'metrics.json'}: section {section!r:.80} has no accuracy of all questions; "
                         "expected a section of an evaluated run of 09_egotaskqa: run the notebook's cells in order")
    # a list, as a label may be called like a form
    lines_of = [("all", f"{split}_all", "samples")]
    lines_of += [(form, f"{split}_{form}", f"questions_{form}") for form in ("open", "binary")
                 if f"{split}_{form}" in metrics]
    kinds = sorted((name.removeprefix("accuracy/") for name in metrics if name.startswith("accuracy/")),
                   key=lambda kind: (-metrics[f"questions/{kind}"], kind))
    lines_of += [(kind, f"accuracy/{kind}", f"questions/{kind}") for kind in kinds[:KINDS]]
    names, keys, counts = zip(*lines_of, strict=True)
    values = [metrics[key] for key in keys]
    figure = new_figure(figsize=(WIDTH, 1.4 + 0.36 * len(names)))
    axis, lines = figure.subplots(), np.arange(len(names))
    axis.barh(lines, values, height=0.6, color=NEUTRAL, label="this run")
    axis.plot([chance.get(key, np.nan) for key in keys], lines, "|", color="black", markersize=16,
              markeredgewidth=2, label="chance: the most frequent answer of training, to open or binary questions")
    axis.set_yticks(lines, [shown(name, MAX_NAME) for name in names])
    for line, (value, key, counted) in enumerate(zip(values, keys, counts, strict=True)):
        axis.text(max(value, chance.get(key, 0)) + 1.5, line, f"{value:.1f}   of {int(metrics.get(counted, 0)):,}",
                  va="center", fontsize=11)
    axis.axhline(len(names) - len(kinds[:KINDS]) - 0.5, color="0.6", linewidth=1)
    axis.invert_yaxis()
    axis.set(xlim=(0, 115), xlabel="questions answered right, %")
    axis.set_title("above the line: by form of the answer; below: by label, of which a question has several",
                   loc="left", fontsize=12)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return save_figure(figure, run, f"kinds-{section}")


def confusions(task, run: Run, section: str, count: int = 12):
    """Return a table of the answers that are most often taken for others.

    Args:
        task: the task that the section evaluates.
        count: how many pairs.
    """
    answers = section_answers(task, run, section)
    pairs, asked = confused(task, answers), collections.Counter(question.answer for question in task.asked)

    def word(number: int) -> str:
        return shown(task.vocabulary[number]) if number >= 0 else "no answer"
    rows = [(word(right), word(said), often, 100 * often / asked[right])
            for (right, said), often in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:count]]
    wrong = sum(pairs.values())
    columns = ["right answer", "taken for", "questions", "% of the right answer's"]
    return styled(rows, columns, columns[:2], below=[f"{wrong:,} of {len(task.asked):,} questions are answered wrong"])
