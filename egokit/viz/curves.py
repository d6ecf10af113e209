"""Training curves from log.jsonl, live or afterwards."""
import datetime
import sys
import time

import numpy as np

from egokit.runs.bottleneck import DATA_BOUND, RECENT, verdict
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.predictions import draw_predictions, pictures, predictions
from egokit.viz.style import CYCLE, WIDTH, WRONG, in_legend, new_figure, save_figure, wrapped

POINTS = 200       # a longer curve is drawn as the means of this many stretches, with their range behind
MAX_SCORES = 8  # validation scores that are drawn, in the order of the log
TIMES = {"data_s": "data", "wait_s": "other ranks", "forward_s": "forward", "backward_s": "backward",
         "update_s": "update", "save_s": "checkpoints"}  # the parts of a step's time, as they are stacked
LABELLED = 9       # percent of a step, from which a part is labelled
HATCHES = ("//", "xx", "", "", "", "..")  # of what a step waits for; the rest computes


def curves(run: Run):
    """Draw a run's training so far and save it as figures/curves.png.

    Shows loss terms, validation, learning rates, throughput, where the time goes and the gradient norm; and below
    them what bounds the speed, and what to change (docs/slow.md).
    """
    history = History(run.path)
    history.update()
    return draw(run, history, "" if history.step is None or history.step < history.steps else "finished")


def watch(job) -> dict:
    """Wait for a training job and return its metrics; in a notebook, draw it meanwhile.

    The figures are its curves and the model's predictions of a few held-out samples; the last ones are saved as
    figures/{curves,predictions}.png. Interrupting the call leaves the job running.

    Args:
        job: The handle that egokit.submit returned; None, of `egokit.submit_training`, gives {} at once.

    Raises:
        JobFailed: The job failed; the message says why.
    """
    if job is None:
        return {}
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:  # no notebook to draw in: show the progress bar
        try:
            return job.wait()
        finally:
            curves(job.run)
            predictions(job)
    return job.wait(show=Display(job))


class Display:
    """Live figures of a training job in a notebook; drawing takes at most a tenth of one core.

    Each figure has one place in the cell's output and is drawn again when the log has something new.
    """

    def __init__(self, job):
        self.job, self.picture = job, pictures(job)
        self.places = {}  # figure name -> its IPython display handle
        self.due, self.drawn = 0.0, (None, 0, 0)  # drawn: state, rows of training and of validation

    def __call__(self, history: History, state: str) -> None:
        """Draw what is new; called by the job's `wait` at every poll."""
        news = (state, history.training.rows, history.validation.rows)
        if news == self.drawn or (state == "running" and time.monotonic() < self.due):
            return
        began = time.process_time()
        draw(self.job.run, history, state)
        self.show("curves")
        if history.predictions and self.drawn[2] != history.validation.rows:
            draw_predictions(self.job.run, history, self.picture)
            self.show("predictions")
        self.drawn, self.due = news, time.monotonic() + max(3.0, 10 * (time.process_time() - began))

    def show(self, name: str) -> None:
        """Put the saved PNG into its place; showing the figure object would render it again."""
        from egokit.viz.alternative_text import show_saved
        self.places[name] = show_saved(self.job.run.figure(f"{name}.png"), self.places.get(name))


def draw(run: Run, history: History, state: str):
    """Draw the six plots of a training and save them as figures/curves.png.

    Args:
        run: The run whose name the title shows.
        history: Its log, read.
        state: The job's state for the title, such as 'running'; "" shows none.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
    figure = new_figure(figsize=(WIDTH, 7.2))
    axes = figure.subplots(2, 3, sharex=True)
    figure.suptitle(headline(run, history, state), fontsize=14, x=0.01, ha="left")
    (losses, validation, rates), (speed, waiting, norm) = axes
    training, steps = history.training, history.training["step"]

    losses.set(title="loss terms" if len(steps) else "no training steps", ylabel="loss term")
    for name in training.names("loss"):
        if name != "loss/loss":
            draw_line(losses, steps, training[name], name)
    draw_validation(validation, history)
    draw_line(rates, steps, training["optimizer/lr"], "backbones")
    draw_line(rates, steps, training["optimizer/lr_heads"], "projections, heads, fusion", "--")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.set(title="learning rates", ylabel="learning rate", ylim=(0, None))

    draw_line(speed, steps, training["speed/clips_per_s"])
    speed.set(title=f"throughput: {recent_median(training['speed/clips_per_s']):.1f} clips/s", ylabel="clips/s",
              ylim=(0, None))
    draw_times(waiting, history)
    found = verdict(history)
    waiting.set_title(wrapped(found.title, 36), color=WRONG if is_held_up(found.bound) else "black")
    if found.advice:
        figure.supxlabel(wrapped(found.advice, 130), x=0.01, ha="left", fontsize=12,
                         color=WRONG if is_held_up(found.bound) else "black")
    skipped = np.nan_to_num(training["optimizer/skipped"])
    norm.set(title=f"gradient norm, {int(skipped[-1]) if len(skipped) else 0} steps skipped", ylabel="gradient norm",
             yscale="log")
    draw_line(norm, steps, training["optimizer/grad_norm"])
    low, high = norm.get_ylim()
    norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    norm.yaxis.set_major_formatter("{x:g}")
    norm.yaxis.set_minor_formatter(NullFormatter())
    skips = steps[np.diff(skipped, prepend=0) > 0]
    for step in skips[::len(skips) // POINTS + 1]:
        norm.axvline(step, color=WRONG, linestyle="--", linewidth=1)

    for axis in axes[1]:
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axis in axes.flat:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(framealpha=0.8)
    return save_figure(figure, run, "curves")


def headline(run: Run, history: History, state: str) -> str:
    """Return the title: '02_pretrain/demo   running: step 40 of 300, epoch 2, 0:12:30 left'."""
    name = f"{shown(f'{run.path.parent.name}/{run.path.name}', 60)}   {shown(state, 60)}".rstrip()
    if history.step is None:
        return f"{name}: no step yet"
    left = history.last("speed/eta_s")
    left = f", {datetime.timedelta(seconds=round(left))} left" if state == "running" and np.isfinite(left) else ""
    return f"{name}: step {history.step} of {history.steps}, epoch {history.epoch}{left}"


def draw_validation(axis, history: History) -> None:
    """Draw the first validation scores over the steps and mark the best checkpoint."""
    names = [name for name in history.validation.names("validation")  # of mAP_V2T and mAP_T2V the mean is shown
             if "2" not in name and name not in ("validation/samples", "validation/seconds")]
    names = [name for name in names if not name.startswith(("validation/dual_", "validation/fusion_"))] or names
    left_out = f", {MAX_SCORES} of {len(names)} numbers" if len(names) > MAX_SCORES else ""
    axis.set(title=f"validation{left_out}", ylabel="score (%)", ylim=(0, 100))
    if not names:
        axis.text(0.5, 0.5, "none yet", transform=axis.transAxes, ha="center", va="center", color="grey")
    for number, name in enumerate(names[:MAX_SCORES]):
        axis.plot(history.validation["step"], history.validation[name], marker="o^sDvX"[number % 6], label=label(name))
    if history.best is not None:
        axis.axvline(history.best, color="grey", linestyle=":", linewidth=1, label="best.pt")


def is_held_up(bound: str) -> bool:
    """Return whether a verdict's bound is something else than computing."""
    return bound not in ("", "gpu", "computing")


def draw_times(axis, history: History) -> None:
    """Draw the shares of a step's time, stacked; of an older log, the waiting for data alone."""
    training, steps = history.training, history.training["step"]
    axis.set(ylabel="share of step time (%)", ylim=(0, 100))
    if not np.isfinite(training["speed/forward_s"]).any():
        draw_line(axis, steps, 100 * history.waiting())
        axis.axhline(100 * DATA_BOUND, color="grey", linestyle=":", linewidth=1)
        return
    shares = {name: 100 * training[f"speed/{key}"] / training["speed/step_s"] for key, name in TIMES.items()}
    shares = {name: np.nan_to_num(values) for name, values in shares.items()}
    if len(steps) > POINTS:
        stretch = np.arange(len(steps)) * POINTS // len(steps)
        counts = np.bincount(stretch)
        shares = {name: np.bincount(stretch, values) / counts for name, values in shares.items()}
        steps = steps[np.searchsorted(stretch, range(POINTS))]
    colours = CYCLE[1], CYCLE[3], CYCLE[5], CYCLE[0], CYCLE[2], CYCLE[4]
    for part, hatch in zip(axis.stackplot(steps, *shares.values(), colors=colours), HATCHES, strict=True):
        part.set(hatch=hatch, edgecolor="white", linewidth=0)
    below = 0.0
    for name, values in shares.items():  # a legend would cover the plot
        if (mean := float(values.mean())) >= LABELLED and below + mean / 2 < 100:
            axis.text((steps[0] + steps[-1]) / 2, below + mean / 2, name, ha="center", va="center", fontsize=11,
                      bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5})
        below += mean


def draw_line(axis, steps, values, name: str = "", style: str = "-") -> None:
    """Draw a curve.

    A curve of more than POINTS points is drawn as the means of POINTS stretches, with their range behind.
    """
    if not np.isfinite(values).any():
        return
    colour = CYCLE[len(axis.get_lines()) % len(CYCLE)]
    if len(steps) > POINTS:
        import pandas as pd
        stretch = np.arange(len(steps)) * POINTS // len(steps)
        steps = pd.Series(steps).groupby(stretch).first()
        values = pd.Series(values).groupby(stretch).agg(["min", "max", "mean"])  # NaN doesn't count
        axis.fill_between(steps, values["min"], values["max"], color=colour, alpha=0.2, linewidth=0)
        values = values["mean"]
    axis.plot(steps, values, style, color=colour, label=label(name), linewidth=1.5,
              marker="." if len(steps) < 20 else None)


def recent_median(values) -> float:
    """Return the median of the newest values.

    The median ignores the first step after a start, which waits for loader processes to start.
    """
    return float(np.nanmedian(values[-RECENT:])) if np.isfinite(values[-RECENT:]).any() else 0.0


def label(name: str) -> str:
    """Return a column's name for a legend: 'loss/ego_nce' becomes 'ego nce'."""
    return in_legend((name.partition("/")[2] or name).replace("_", " "))
