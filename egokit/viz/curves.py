"""Training as it goes on, and afterwards: one figure of losses, validation, rates, throughput and waiting, from log.jsonl."""
from __future__ import annotations

import datetime
import sys
import time

import numpy as np

from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.viz.predictions import draw_predictions, pictures, predictions
from egokit.viz.style import CYCLE, WIDTH, WRONG, finish, pyplot

POINTS = 200       # a curve of more is drawn as the means of so many stretches, with their range behind
NEWEST = 20        # lines of the log that the verdict on waiting is about
DATA_BOUND = 0.3   # share of the step time


def curves(run: Run):
    """A run's training so far: loss terms, validation, learning rates, throughput, waiting for data, gradient norm."""
    history = History(run.path)
    history.update()
    return draw(run, history, "" if history.step is None or history.step < history.steps else "finished")


def watch(job) -> dict:
    """Wait for a training job and return its metrics; in a notebook its curves grow meanwhile, and what the model predicts of a few
    held-out samples. Raises JobFailed.

    Interrupting it leaves the job running. The figures as they stood at the end are saved as figures/{curves,predictions}.png.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:  # no notebook to draw in: the progress bar
        try:
            return job.wait()
        finally:
            curves(job.run)
            predictions(job)
    return job.wait(show=Display(job))


class Display:
    """Each figure in one place of a notebook, drawn again when there is something new; drawing takes a tenth of one core at most."""

    def __init__(self, job):
        self.job, self.places, self.due, self.drawn, self.validated, self.picture = job, {}, 0.0, None, 0, pictures(job)

    def __call__(self, history: History, state: str) -> None:
        news = (state, history.training.rows, history.validation.rows)
        if news == self.drawn or (state == "running" and time.monotonic() < self.due):
            return
        began = time.process_time()
        draw(self.job.run, history, state)
        self.show("curves")
        if history.predictions and self.validated != history.validation.rows:
            draw_predictions(self.job.run, history, self.picture)
            self.show("predictions")
            self.validated = history.validation.rows
        self.drawn, self.due = news, time.monotonic() + max(3.0, 10 * (time.process_time() - began))

    def show(self, name: str) -> None:
        """Put the saved figure into its place; a figure itself would be rendered once more."""
        from IPython.display import Image, display
        image = Image(str(self.job.run.figure(f"{name}.png")))
        if name in self.places:
            self.places[name].update(image)
        else:
            self.places[name] = display(image, display_id=True)


def draw(run: Run, history: History, state: str):
    plt = pyplot()
    from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator
    figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 7.2), layout="constrained", sharex=True)
    figure.suptitle(headline(run, history, state), fontsize=14, x=0.01, ha="left")
    (losses, validation, rates), (speed, waiting, norm) = axes
    training, steps = history.training, history.training["step"]
    share = history.waiting()

    losses.set(title="loss terms" if len(steps) else "no training steps", ylabel="loss term")
    for name in training.names("loss"):
        if name != "loss/loss":
            line(losses, steps, training[name], name)
    validated(validation, history)
    rates.set(title="learning rates", ylabel="learning rate")
    line(rates, steps, training["optimizer/lr"], "backbones")
    line(rates, steps, training["optimizer/lr_heads"], "projections, heads, fusion", "--")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.set_ylim(bottom=0)

    speed.set(title=f"throughput: {middle(training['speed/clips_per_s']):.1f} clips/s", ylabel="clips/s")
    line(speed, steps, training["speed/clips_per_s"])
    speed.set_ylim(bottom=0)
    bound = middle(share) > DATA_BOUND
    verdict = "data-bound: more data.workers" if bound else "not data-bound"
    waiting.set_title(f"{100 * middle(share):.0f} % waiting for data:\n{verdict}" if len(share) else "waiting for data",
                      color=WRONG if bound else "black")
    waiting.set(ylabel="share of step time (%)", ylim=(0, 100))
    line(waiting, steps, 100 * share)
    waiting.axhline(100 * DATA_BOUND, color="grey", linestyle=":", linewidth=1)
    skipped = training["optimizer/skipped"]
    norm.set(title=f"gradient norm, {int(skipped[-1]) if len(skipped) else 0} steps skipped", ylabel="gradient norm", yscale="log")
    line(norm, steps, training["optimizer/grad_norm"])
    norm.yaxis.set_major_formatter(LogFormatter())
    norm.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))  # numbers between the powers where there are few
    for step in thinned(steps[np.diff(skipped, prepend=0) > 0]):
        norm.axvline(step, color=WRONG, linestyle="--", linewidth=1)

    for axis in axes[1]:
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axis in axes.flat:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(framealpha=0.8)
    return finish(figure, run, "curves")


def headline(run: Run, history: History, state: str) -> str:
    """'02_pretrain/demo   running: step 40 of 300, epoch 2, 0:12:30 left'."""
    name = f"{run.path.parent.name}/{run.path.name}   {state}".rstrip()
    if history.step is None:
        return f"{name}: no step yet"
    left = history.last("speed/eta_s")
    left = f", {datetime.timedelta(seconds=round(left))} left" if state == "running" and np.isfinite(left) else ""
    return f"{name}: step {history.step} of {history.steps}, epoch {history.epoch}{left}"


def validated(axis, history: History) -> None:
    """Validation scores over steps, the best checkpoint marked."""
    names = [name for name in history.validation.names("validation") if name not in ("validation/samples", "validation/seconds")]
    names = [name for name in names if "2" not in name]  # not the two directions beside their mean
    names = [name for name in names if not name.startswith(("validation/dual_", "validation/fusion_"))] or names
    axis.set(title="validation", ylabel="score (%)", ylim=(0, 100))
    for number, name in enumerate(names):
        axis.plot(history.validation["step"], history.validation[name], marker="o^sDvX"[number % 6], label=label(name))
    if history.best is not None:
        axis.axvline(history.best, color="grey", linestyle=":", linewidth=1, label="best.pt")


def line(axis, steps, values, name: str = "", style: str = "-") -> None:
    """A curve: every point, or of many the means of POINTS stretches with the range from lowest to highest behind."""
    if not np.isfinite(values).any():
        return
    colour = CYCLE[len(axis.get_lines()) % len(CYCLE)]
    if len(steps) > POINTS:
        starts = np.linspace(0, len(steps), POINTS + 1).astype(int)[:-1]
        axis.fill_between(steps[starts], np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts), color=colour, alpha=0.2,
                          linewidth=0)
        known = np.add.reduceat(np.isfinite(values).astype(float), starts)
        values = np.add.reduceat(np.nan_to_num(values), starts) / np.where(known, known, np.nan)
        steps = steps[starts]
    axis.plot(steps, values, style, color=colour, label=label(name), linewidth=1.5, marker="." if len(steps) < 20 else None)


def thinned(steps):
    """At most POINTS of the steps."""
    return steps[::-(-len(steps) // POINTS) or 1]


def middle(values) -> float:
    """The newest values' median: the first step after a start waits for loader processes to start."""
    return float(np.nanmedian(values[-NEWEST:])) if np.isfinite(values[-NEWEST:]).any() else 0.0


def label(name: str) -> str:
    return name.rpartition("/")[2].replace("_", " ")
