"""Several runs in one figure: training curves with mean and spread, and scores over the settings of a sweep."""
from collections.abc import Sequence

import numpy as np

from egokit.runs import run_set
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.run_tables import chosen_metrics, metric_names, setting_name
from egokit.viz.style import CYCLE, WIDTH, new_figure, save_figure

POINTS = 200        # a longer curve is drawn as the means of this many stretches
MAX_SETTINGS = 14   # in one figure, in seven colours and two line styles; more could not be told apart
MAX_LABEL = 60      # characters of a setting in the legend


def mean_curves(runs: Sequence[Run], run: Run | None = None, section: str = "", metric: str = ""):
    """Draw the loss and the validation score of several runs: the mean over seeds, and its spread, by setting.

    A thin line is one run, a thick one the mean of those that differ in their seed alone, and the band is one standard
    deviation on either side of it.

    Args:
        runs: The runs.
        run: The run whose figures/mean-curves.png the figure becomes; None saves nothing.
        section: Their section of metrics.json; "" for the one that they share.
        metric: The validation's metric; by default the one that chose the checkpoints.
    """
    section = section or run_set.common_section(runs)
    groups = run_set.settings(runs, section)
    metric = metric or metric_names(runs, section)[0]
    figure = new_figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots(1, 2)
    titles = ("loss", "loss"), (f"validation: {shown(metric, MAX_LABEL)}", "score (%)")
    for axis, (title, ylabel) in zip(axes, titles, strict=True):
        axis.set(xlabel="step", ylabel=ylabel, title=title)
    for number, group in enumerate(groups[:MAX_SETTINGS]):
        histories = [History(one.path) for one in group.runs]
        for history in histories:
            history.update()
        losses = [(history.training["step"], history.training["loss/loss"]) for history in histories]
        scores = [(history.validation["step"], history.validation[f"validation/{metric}"]) for history in histories]
        for axis, curves in zip(axes, (losses, scores), strict=True):
            draw_group(axis, curves, number, f"{shown(setting_name(group), MAX_LABEL)} ({len(group.runs)})")
    for axis in axes:
        if not axis.lines:
            axis.set_title(f"{axis.get_title()}: nothing is logged")
    return save_figure(with_legend(figure, axes[0], len(groups)), run, "mean-curves")


def draw_group(axis, curves: list[tuple[np.ndarray, np.ndarray]], number: int, label: str) -> None:
    """Draw one setting's curves, their mean and their spread in the setting's colour and line style."""
    steps, values_RP = on_common_steps(curves)
    if not len(steps):
        return
    colour, line = CYCLE[number % len(CYCLE)], "-" if number < len(CYCLE) else "--"
    mean, spread = run_set.mean_and_spread(values_RP)
    marker = "." if len(steps) < 20 else None
    if len(values_RP) > 1:
        for values in values_RP:
            axis.plot(steps, values, line, color=colour, linewidth=0.7, alpha=0.5)
        axis.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    axis.plot(steps, mean, line, color=colour, linewidth=2, marker=marker, label=label)


def on_common_steps(curves: list[tuple[np.ndarray, np.ndarray]],
                    most: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return curves at steps that they share.

    A curve of more than `most` points becomes the means of so many stretches. Curves with other steps than one another
    are interpolated between their own points, and are NaN before their first one and after their last.

    Args:
        curves: (steps, values) of each run; points without a finite value are left out.
        most: the largest number of common steps of curves whose own steps differ.

    Returns:
        Steps (P,), ascending, and values (R, P), R the curves that have any point.
    """
    reduced = []
    for steps, values in curves:
        steps, values = np.asarray(steps, float), np.asarray(values, float)
        steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
        if len(steps) > most:
            stretch = np.arange(len(steps)) * most // len(steps)
            size = np.bincount(stretch)
            steps, values = np.bincount(stretch, steps) / size, np.bincount(stretch, values) / size
        if len(steps):
            reduced.append((steps, values))
    if not reduced:
        return np.empty(0), np.empty((0, 0))
    common = np.unique(np.concatenate([steps for steps, _ in reduced]))
    if len(common) > most and any(len(steps) != len(common) for steps, _ in reduced):
        common = np.linspace(common[0], common[-1], most)
    return common, np.stack([np.interp(common, *curve, left=np.nan, right=np.nan) for curve in reduced])


def setting_scores(runs: Sequence[Run], run: Run | None = None, section: str = "", metric: str = ""):
    """Draw a metric of several runs over each key in which their settings differ: every run, and mean and spread.

    Args:
        runs: The runs.
        run: The run whose figures/setting-scores.png the figure becomes; None saves nothing.
        section: Their section of metrics.json; "" for the one that they share.
        metric: The metric; by default the section's score.
    """
    section = section or run_set.common_section(runs)
    groups = run_set.settings(runs, section)
    metric = chosen_metrics(runs, section, metric)[0]
    keys = list(groups[0].values) or [""]
    columns = min(3, len(keys))
    lines = -(-len(keys) // columns)
    figure = new_figure(figsize=(WIDTH if columns > 1 else 0.7 * WIDTH, 4.2 * lines))
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axis in axes[len(keys):]:
        axis.set_axis_off()
    for axis, key in zip(axes, keys, strict=False):
        place, is_number = places([group.values.get(key) for group in groups])
        axis.set(xlabel=shown(key or "all runs", MAX_LABEL), ylabel=f"{shown(metric, MAX_LABEL)}, %")
        for number, group in enumerate(groups):
            colour, at = CYCLE[number % len(CYCLE)], place[number]
            values = run_set.scores(group.runs, section, metric)
            mean, spread = run_set.mean_and_spread(values)
            axis.plot([at] * len(values), values, "o", color=colour, alpha=0.6, markersize=6)
            axis.errorbar([at], [mean], yerr=None if np.isnan(spread) else [spread], fmt="_", color=colour,
                          markersize=18, capsize=5, linewidth=1.5,
                          label=f"{shown(setting_name(group), MAX_LABEL)} ({len(values)})"
                          if number < MAX_SETTINGS else None)
        draw_places(axis, [group.values.get(key) for group in groups], place, is_number)
    return save_figure(with_legend(figure, axes[0], len(groups)), run, "setting-scores")


def places(values: list) -> tuple[list[float], bool]:
    """Return where values stand on an axis, and whether it is one of numbers; other values stand side by side."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], True
    names = list(dict.fromkeys(map(str, values)))
    return [float(names.index(str(value))) for value in values], False


def draw_places(axis, values: list, place: list[float], is_number: bool) -> None:
    """Set an axis's scale and ticks: logarithmic for positive numbers that differ tenfold or more."""
    at = dict(sorted(zip(place, values, strict=True)))
    if is_number and min(at) > 0 and max(at) >= 10 * min(at):
        axis.set_xscale("log")
        axis.minorticks_off()
    elif len(at) > 1:
        gap = 0.15 * (max(at) - min(at))
        axis.set_xlim(min(at) - gap, max(at) + gap)
    if len(at) <= 8:
        axis.set_xticks(list(at), ["" if value is None else shown(f"{value:g}" if is_number else value, 24)
                                   for value in at.values()])


def with_legend(figure, axis, settings: int):
    """Put the settings of an axis below a figure, and say how many are left out; return the figure."""
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        left_out = f", {MAX_SETTINGS} of {settings}" if settings > len(labels) else ""
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False,
                      title=f"setting (number of runs){left_out}")
    return figure
