"""What a model in training predicts of a few held-out samples, read from log.jsonl."""
from __future__ import annotations

import functools

from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.viz.style import (
    CYCLE,
    RIGHT,
    WIDTH,
    WRONG,
    draw_frame,
    draw_heading,
    grade_style,
    pyplot,
    save_figure,
    two_by_two,
)

MARKERS = dict(zip("osD^v", "●■◆▲▼", strict=True))  # matplotlib's markers as characters


def predictions(job):
    """Draw a few held-out texts with five clips each, and their scores over the epochs.

    Args:
        job: The handle of a training job.

    Returns:
        The figure, also saved as figures/predictions.png; a sentence instead before the first validation.
    """
    history = History(job.run.path)
    history.update()
    if not history.predictions:
        return f"{job.run.path} has no validation yet: nothing to show here"
    return draw_predictions(job.run, history, pictures(job))


def pictures(job):
    """Return a function from the number of a clip to its picture.

    The number counts the clips of the job's validation data. Pictures are cached, as most clips are shown after every
    epoch.
    """
    @functools.cache
    def dataset():
        from egokit import tasks
        from egokit.config.registry import restore
        return tasks.make(restore(job.spec()["config"])).validation().dataset("test")

    return functools.lru_cache(maxsize=100)(lambda number: two_by_two(dataset()[0, number]["video"]))


def draw_predictions(run: Run, history: History, picture):
    """Draw the samples of the last validation, one row each, and save figures/predictions.png.

    Args:
        run: The training run.
        history: Its log, read, with at least one validation.
        picture: Function from the number of a clip to its picture, as `pictures` returns it.
    """
    plt = pyplot()
    from matplotlib.ticker import MaxNLocator
    epochs = [epoch for epoch, _ in history.predictions]
    samples = history.predictions[-1][1]
    figure, axes = plt.subplots(len(samples), 6, figsize=(WIDTH, 0.5 + 2.6 * len(samples)), squeeze=False,
                                layout="constrained", width_ratios=[1, 1, 1, 1, 1, 1.55])
    figure.suptitle(f"{run.path.parent.name}/{run.path.name}   held-out samples after epoch {epochs[-1]}",
                    x=0.01, ha="left")
    for number, (sample, row) in enumerate(zip(samples, axes, strict=True)):
        over_epochs = [predicted[number] for _, predicted in history.predictions]
        chosen = max(range(len(sample["clips"])), key=lambda c: sample["scores"][c])
        right = sample["relevancy"][chosen] == 1
        for c, axis in enumerate(row[:-1]):
            if c >= len(sample["clips"]):
                axis.set_axis_off()
                continue
            name, (mark, *border) = f"{c + 1}.", grade_style(sample["relevancy"][c])
            if "rank" not in sample:  # EgoMCQ: of the clips that are not the answer, only the chosen one is marked
                name = [*MARKERS.values()][c]
                mark, *border = (mark, *border) if border[0] == RIGHT else \
                    ("✗ chosen", *border) if c == chosen else ("", None)
            draw_frame(axis, picture(sample["clips"][c]), f"{name} {sample['scores'][c]:.2f}\n{mark}", *border)
        draw_heading(row[0], f"{'RIGHT' if right else 'WRONG'}: {sample['text']}", RIGHT if right else WRONG)
        (draw_ranks if "rank" in sample else draw_scores)(row[-1], epochs, over_epochs)
        row[-1].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis in axes[:-1, -1]:
        axis.sharex(axes[-1, -1])
    axes[-1, -1].set_xlabel("epoch")
    return save_figure(figure, run, "predictions")


def draw_scores(axis, epochs: list[int], over_epochs: list[dict]) -> None:
    """Draw the scores of a question's five clips over the epochs, the answer's in green."""
    for c, marker in enumerate(MARKERS):
        answer = over_epochs[-1]["relevancy"][c] == 1
        axis.plot(epochs, [sample["scores"][c] for sample in over_epochs], marker=marker,
                  markersize=5 if answer else 4, color=RIGHT if answer else "0.45", linewidth=2.5 if answer else 1,
                  linestyle="-" if answer else "--", zorder=2 + answer)
    axis.set(ylabel="ensemble score")


def draw_ranks(axis, epochs: list[int], over_epochs: list[dict]) -> None:
    """Draw the rank of the first right clip among all clips, over the epochs."""
    from matplotlib.ticker import LogFormatter
    ranks = [sample["rank"] for sample in over_epochs]
    axis.plot(epochs, ranks, marker="o", color=CYCLE[0])
    axis.set(ylabel="rank of first right", yscale="log", ylim=(1.3 * max(*ranks, 10), 0.8))
    axis.yaxis.set_major_formatter(LogFormatter())
