"""Pictures of a notebook's own training steps: gradients by term, and curves over one another."""
import numpy as np

from egokit.notebook.safe_html import styled
from egokit.notebook.trial import ALL, Trial, parts_of
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.curves import draw_line, label
from egokit.viz.style import WIDTH, in_legend, new_figure, save_figure

MAX_PANELS = 6  # of terms, watched numbers and the gradient norm
STYLES = ("-", "--", ":", "-.")


def gradients(trial: Trial):
    """Return a table of the loss terms of one batch, and of the norms of their gradients.

    The rows are parts of the model. A dash is a part that the term doesn't reach. The weights stay as they are.

    Args:
        trial: whose `batch` is used.
    """
    terms, norms = trial.measured()
    parts = parts_of(trial.model)
    columns = [*terms, ALL] if len(terms) > 1 else [ALL]
    values = terms | {ALL: sum(terms.values())}
    rows = [("loss", None, *(values[name] for name in columns))]
    rows += [(f"gradient norm: {part}", sum(parameter.numel() for parameter in parts[part]),
              *(of_terms[name] or None for name in columns)) for part, of_terms in norms.items()]
    heads = ["of one batch", "parameters", *(shown(name, 40) for name in columns)]
    return styled(rows, heads, heads[:1], dict.fromkeys(heads[2:], "{:.3g}"))


def overlaid(runs: dict[str, Run], run: Run | None = None):
    """Draw the curves of several runs over one another.

    Each loss term, watched number, and the gradient norm has a plot of its own; at most MAX_PANELS are drawn.

    Args:
        runs: {name in the legend: a run with a log}; later ones are drawn over earlier ones, dashed.
        run: where to save the figure, as figures/overlaid.png; None saves nothing.
    """
    histories = {name: History(each.path) for name, each in runs.items()}
    for history in histories.values():
        history.update()
    logged = dict.fromkeys(name for history in histories.values() for group in ("loss", "watched")
                           for name in history.training.names(group) if name != "loss/loss")
    names = [*[*logged][:MAX_PANELS - 1], "optimizer/grad_norm"]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = new_figure(figsize=(WIDTH, 3.4 * lines))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).flat
    for axis in axes[len(names):]:
        axis.set_axis_off()
    for axis, name in zip(axes, names, strict=False):
        for number, (run_name, history) in enumerate(histories.items()):
            steps, values = history.training["step"], history.training[name]
            draw_line(axis, steps, values, f"run/{run_name}", STYLES[number % len(STYLES)])
            if np.isfinite(values).any():
                axis.get_lines()[-1].set_label(in_legend(run_name))
        title = in_legend("gradient norm" if name == "optimizer/grad_norm" else label(name))
        axis.set(title=title, xlabel="step", ylabel="loss term" if name.startswith("loss/") else title)
        axis.tick_params(labelbottom=True)  # where no plot stands below
        axis.legend()
    return save_figure(figure, run, "overlaid")
