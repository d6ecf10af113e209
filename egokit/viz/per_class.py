"""Numbers by class: average precision of actions, scores by verb and by noun.

Where there are more classes than lines on a page, the figure names some and says how many there are.
"""
import numpy as np

from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.tasks import metrics
from egokit.viz.style import CYCLE, MAX_LEGEND, MAX_NAME, WIDTH, checked_scores, in_legend, new_figure, save_figure

LINES = 20  # classes in one plot; the best and the worst have as many each
MARKERS = "osD^"


def average_precisions(task, run: Run, *sections: str):
    """Draw the average precision of each text, such as a class's sentence, in evaluated sections.

    The left plot has all classes, each section sorted by itself; the right one names the best and the worst classes of
    the last section.
    """
    truth_VK = task.truth()
    precisions = {section: 100 * metrics.each_class(checked_scores(task, run, section), truth_VK)
                  for section in sections}
    share_K = 100 * truth_VK[truth_VK.any(1)].mean(0)  # the metric ranks a video without labels last, for every class
    last = precisions[sections[-1]]
    order = np.argsort(-last, kind="stable")[:int(np.isfinite(last).sum())]  # classes that don't occur are NaN, last
    named = order if len(order) <= 2 * LINES else np.concatenate([order[:LINES], order[-LINES:]])
    height = 1.6 + 0.3 * max(len(named), 10)
    figure = new_figure(figsize=(WIDTH, height))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
    for number, (section, values) in enumerate(precisions.items()):
        ranked = np.sort(values[order])[::-1]
        left.step(np.arange(1, len(ranked) + 1), ranked, where="mid", color=CYCLE[number % len(CYCLE)],
                  linestyle=["-", "--", "-.", ":"][number % 4], label=f"{in_legend(section)}: mAP {ranked.mean():.1f}")
    left.set(xlabel="classes, the best first", ylabel="average precision, %", ylim=(0, 101),
             xlim=(0.5, len(order) + 0.5), title=f"all {len(last)} classes occur" if len(order) == len(last) else
             f"{len(order)} of {len(last)} classes occur, {len(last) - len(order)} have no value")
    left.legend()
    names = task.prompts()
    dot_plot(right, [names[k] for k in named], {section: values[named] for section, values in precisions.items()})
    right.plot(share_K[named], range(len(named)), "|", color="black", markersize=11,
               label="chance: share of labelled videos with it")
    last_name = shown(sections[-1], MAX_LEGEND)
    right.set(xlabel="average precision, %", title=f"all of them, sorted by {last_name}"
              if len(named) == len(order) else f"the {LINES} best and the {LINES} worst of {last_name}")
    if len(named) < len(order):
        right.axhline(LINES - 0.5, color="black", linewidth=1)
    right.legend()
    return save_figure(figure, run, "average-precisions")


def accuracy_by_word(task, run: Run, section: str):
    """Draw the accuracy of a multiple-choice task by verb and by noun, kinds of questions apart.

    Verbs and nouns are the classes that each question is tagged with (`query_tags`).
    """
    scores = checked_scores(task, run, section)
    deciding = task.decides(scores)
    scores_QC = scores[deciding]
    right_Q = 100.0 * (scores_QC.argmax(1) == task.answers)
    tags = task.query_tags()
    kinds_Q = np.array([labels[0] for labels in tags.pop("kind", [[deciding]] * len(right_Q))])
    series = {kind: np.where(kinds_Q == kind, right_Q, np.nan) for kind in np.unique(kinds_Q).tolist()}
    figure = by_word(tags, series, f"{deciding} accuracy, %", "questions", chance=100 / task.choices.shape[1])
    return save_figure(figure, run, f"words-{section}")


def retrieval_by_word(task, run: Run, *sections: str):
    """Draw the nDCG from a clip to texts, by the labels of the clip (`clip_tags`)."""
    series = {section: 100 * metrics.each_query(checked_scores(task, run, section), task.truth())[1]
              for section in sections}
    return save_figure(by_word(task.clip_tags(), series, "nDCG of clip to sentences, %", "clips"), run, "words")


def by_word(tags: dict[str, list[list[str]]], series: dict[str, np.ndarray], label: str, unit: str,
            chance: float | None = None):
    """Return a figure of the mean of each series for the most frequent labels.

    Args:
        tags: {"verb": labels of each sample, "noun": …}; one plot each.
        series: {name: (N,) value of each sample}; NaN doesn't count.
        label: Of the x-axis.
        unit: What a sample is, in the plural.
        chance: Value at which to draw a line, if any.
    """
    import pandas as pd
    if not tags:
        raise ValueError(f"the task gives no labels of its {unit}: write its query_tags or clip_tags, which are in "
                         "docs/extending.md")
    rows = {kind: pd.DataFrame(dict(enumerate(series.values())) | {"label": [list(map(shown, labels))
                               for labels in labels_N]}).explode("label").dropna(subset="label")
            for kind, labels_N in tags.items()}
    counts = {kind: frame["label"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
              for kind, frame in rows.items()}
    most = max(min(LINES, len(counted)) for counted in counts.values())
    figure = new_figure(figsize=(WIDTH, 1.8 + 0.32 * max(most, 5)))
    axes = figure.subplots(1, len(tags), squeeze=False)
    for axis, (kind, frame) in zip(axes[0], rows.items(), strict=True):
        frequent, total = counts[kind][:LINES], f"{len(counts[kind])} {kind}s "
        if not len(frequent):
            axis.set_axis_off()
            axis.set_title(f"the annotations name no {kind}s")
            continue
        means = frame.groupby("label").mean().loc[frequent.index]
        dot_plot(axis, [f"{shown(name, MAX_NAME - 12)}  ({samples:,})" for name, samples in frequent.items()],
                 {name: means[number].to_numpy() for number, name in enumerate(series)})
        axis.set(xlabel=label, title=(total if len(frequent) == len(counts[kind]) else
                                      f"the {len(frequent)} most frequent of {total}\n") + f"(number of {unit})")
        if chance is not None:
            axis.axvline(chance, color="black", linestyle=":", label="chance")
        axis.legend()
    return figure


def dot_plot(axis, names: list[str], series: dict[str, np.ndarray]) -> None:
    """Draw one line per name and one marker per series, from 0 to 100 %."""
    for number, (label, values) in enumerate(series.items()):
        colour = CYCLE[number % len(CYCLE)]
        axis.plot(values, range(len(names)), MARKERS[number % len(MARKERS)], color=colour, markersize=8,
                  markerfacecolor="none" if number else colour, markeredgewidth=2, clip_on=False,
                  label=in_legend(label))
    axis.set_yticks(range(len(names)), [shown(name, MAX_NAME) for name in names])
    axis.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
    axis.grid(axis="both", color="0.88")
    axis.set_axisbelow(True)
