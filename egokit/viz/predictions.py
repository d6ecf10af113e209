"""What a model in training thinks of a few held-out samples, and how it changed its mind: log.jsonl's `predictions`."""
from __future__ import annotations

import functools

from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.viz.style import CYCLE, RIGHT, WIDTH, WRONG, finish, frame, graded, heading, pyplot, two_by_two

MARKS = dict(zip("osD^v", "●■◆▲▼", strict=True))  # matplotlib's markers as characters


def predictions(job):
    """A few held-out texts with five clips each: the model's choice at a training job's last validation, and its scores at all before."""
    history = History(job.run.path)
    history.update()
    if not history.predictions:
        return f"{job.run.path} has no validation yet: nothing to show here"
    return draw_predictions(job.run, history, pictures(job))


def pictures(job):
    """Number of a clip among those that the job validates on -> its picture, kept: most are shown after every epoch."""
    @functools.cache
    def dataset():
        from egokit import tasks
        from egokit.config.build import build
        from egokit.config.schema import Config
        return tasks.make(build(Config, job.spec()["config"])).validation().dataset("test")

    return functools.lru_cache(maxsize=100)(lambda number: two_by_two(dataset()[0, number]["video"]))


def draw_predictions(run: Run, history: History, picture):
    """The figure, saved as figures/predictions.png; picture: what `pictures` gave."""
    plt = pyplot()
    from matplotlib.ticker import MaxNLocator
    epochs = [epoch for epoch, _ in history.predictions]
    samples = history.predictions[-1][1]
    figure, axes = plt.subplots(len(samples), 6, figsize=(WIDTH, 0.5 + 2.6 * len(samples)), squeeze=False,
                                layout="constrained", width_ratios=[1, 1, 1, 1, 1, 1.55])
    figure.suptitle(f"{run.path.parent.name}/{run.path.name}   held-out samples after epoch {epochs[-1]}", x=0.01, ha="left")
    for number, (sample, line) in enumerate(zip(samples, axes, strict=True)):
        before = [predicted[number] for _, predicted in history.predictions]
        chosen = max(range(len(sample["clips"])), key=lambda c: sample["scores"][c])
        right = sample["relevancy"][chosen] == 1
        for c, axis in enumerate(line[:-1]):
            if c >= len(sample["clips"]):
                axis.set_axis_off()
                continue
            name, (mark, *border) = f"{c + 1}.", graded(sample["relevancy"][c])
            if "rank" not in sample:  # a question: of the clips that are no answer, the chosen one is marked
                name = [*MARKS.values()][c]
                mark, *border = (mark, *border) if border[0] == RIGHT else ("✗ chosen", *border) if c == chosen else ("", None)
            frame(axis, picture(sample["clips"][c]), f"{name} {sample['scores'][c]:.2f}\n{mark}", *border)
        heading(line[0], f"{'RIGHT' if right else 'WRONG'}: {sample['text']}", RIGHT if right else WRONG)
        (ranks if "rank" in sample else scores)(line[-1], epochs, before)
        line[-1].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis in axes[:-1, -1]:
        axis.sharex(axes[-1, -1])
    axes[-1, -1].set_xlabel("epoch")
    return finish(figure, run, "predictions")


def scores(axis, epochs: list[int], before: list[dict]) -> None:
    """The five clips' scores over the epochs; the answer's in green."""
    for c, mark in enumerate(MARKS):
        answer = before[-1]["relevancy"][c] == 1
        axis.plot(epochs, [sample["scores"][c] for sample in before], marker=mark, markersize=5 if answer else 4,
                  color=RIGHT if answer else "0.45", linewidth=2.5 if answer else 1, linestyle="-" if answer else "--", zorder=2 + answer)
    axis.set(ylabel="ensemble score")


def ranks(axis, epochs: list[int], before: list[dict]) -> None:
    """Where among all clips the first right one came, over the epochs."""
    from matplotlib.ticker import LogFormatter
    found = [sample["rank"] for sample in before]
    axis.plot(epochs, found, marker="o", color=CYCLE[0])
    axis.set(ylabel="rank of first right", yscale="log", ylim=(1.3 * max(*found, 10), 0.8))
    axis.yaxis.set_major_formatter(LogFormatter())
