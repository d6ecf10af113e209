"""What a model in training predicts of a few held-out samples, read from log.jsonl."""
import functools

from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.style import CYCLE, RIGHT, Picture, clip_grid, grade_style, save_figure, strip

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

    return functools.lru_cache(maxsize=100)(
        lambda number: strip(dataset()[0, number]["video"], count=4, rows=2))


def draw_predictions(run: Run, history: History, picture):
    """Draw the samples of the last validation, one row each, and save figures/predictions.png.

    Args:
        run: The training run.
        history: Its log, read, with at least one validation.
        picture: Function from the number of a clip to its picture, as `pictures` returns it.
    """
    from matplotlib.ticker import MaxNLocator
    epochs, rows = [epoch for epoch, _ in history.predictions], []
    samples = history.predictions[-1][1]
    for sample in samples:
        pictures, scores, grades = [], sample["scores"], sample["relevancy"]
        chosen = scores.index(max(scores))
        for c, (clip, score, grade) in enumerate(zip(sample["clips"], scores, grades, strict=True)):
            mark, *border = grade_style(grade)
            name = f"{c + 1}."
            if "rank" not in sample:  # a question: of the clips that are not the answer, only the chosen one is marked
                name = [*MARKERS.values()][c]
                if grade != 1:
                    mark, *border = ("✗ chosen", *border) if c == chosen else grade_style(None)
            pictures.append(Picture(picture(clip), f"{name} {score:.2f}\n{mark}", *border))
        rows.append((sample["text"], grades[chosen] == 1, pictures))
    name = shown(f"{run.path.parent.name}/{run.path.name}", 80)
    figure, charts = clip_grid(rows, f"{name}   held-out samples after epoch {epochs[-1]}", charts=True)
    for number, (sample, chart) in enumerate(zip(samples, charts, strict=True)):
        over_epochs = [predicted[number] for _, predicted in history.predictions]
        (draw_ranks if "rank" in sample else draw_scores)(chart, epochs, over_epochs)
        chart.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if number < len(charts) - 1:
            chart.sharex(charts[-1])
    charts[-1].set_xlabel("epoch")
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
    from matplotlib.ticker import LogFormatter, NullFormatter
    ranks = [sample["rank"] for sample in over_epochs]
    axis.plot(epochs, ranks, marker="o", color=CYCLE[0])
    axis.set(ylabel="rank of first right", yscale="log", ylim=(1.3 * max(*ranks, 10), 0.8))
    axis.yaxis.set_major_formatter(LogFormatter())
    axis.yaxis.set_minor_formatter(NullFormatter())
