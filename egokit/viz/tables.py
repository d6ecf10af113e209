"""Numbers and files as tables, and the published numbers as a chart."""
import collections

from egokit.runs.ledger import DUAL_SOFTMAX, registered
from egokit.runs.run_folder import FAILED_NOTEBOOK, Run

MAX_FILES = 40  # listed of a run folder


def results(run: Run):
    """Return a table of a run's metrics with chance and the published numbers, in %."""
    metrics = run.metrics()
    return table([(result, metrics) for task, result in registered()
                  if task.notebook == run.path.parent.name and result.metric in metrics.get(result.section, {})])


def table(pairs: list[tuple]):
    """Return (Result, contents of metrics.json) pairs as a styled DataFrame, all numbers in %."""
    import pandas as pd
    rows = [(result.name, metrics.get("chance", {}).get(result.chance), metrics[result.section].get(result.metric),
             None if result.metric.endswith(DUAL_SOFTMAX) else result.published) for result, metrics in pairs]
    frame = pd.DataFrame(rows, columns=["benchmark (%)", "chance", "this run", "published, real data"])
    return _align_left(frame.style.format(precision=1, na_rep="–").hide(axis="index"), ["benchmark (%)"])


def published(run: Run):
    """Draw the published numbers beside those of the other notebooks' runs of the same name."""
    import numpy as np

    from egokit.viz.per_class import dot_plot
    from egokit.viz.style import pyplot, save_figure
    shown = [(task.notebook, result) for task, result in registered()
             if result.published is not None and not result.metric.endswith(DUAL_SOFTMAX)]
    metrics = {name: Run(path).metrics() if (path := run.path.parents[1] / name / run.path.name).is_dir() else {}
               for name in dict.fromkeys(name for name, _ in shown)}
    ours = [metrics[name].get(result.section, {}).get(result.metric) for name, result in shown]
    chance = [metrics[name].get("chance", {}).get(result.chance) for name, result in shown]
    series = {"published, real data": [result.published for _, result in shown], "here": ours, "chance here": chance}
    figure, axis = pyplot().subplots(figsize=(11, 0.8 + 0.42 * len(shown)), layout="constrained")
    dot_plot(axis, [result.name for _, result in shown],
             {name: np.array(values, float) for name, values in series.items()})
    for line, ((name, result), value) in enumerate(zip(shown, ours, strict=True)):
        text = f"{result.published:.1f} published, " + \
            (f"{value:.1f} here" if value is not None else f"not yet here: run {name}")
        axis.text(102, line, text, va="center", fontsize=11)
    axis.set(xlabel="%", title=f"runs “{run.path.name}” of the other notebooks")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    return save_figure(figure, run, "published")


def ledger(outputs=None):
    """Return every run's numbers beside the published ones, and how the recipes differ.

    Args:
        outputs: The folder of all runs; None is the project's outputs/.
    """
    import html

    import pandas as pd

    from egokit.runs.ledger import read, rows
    entries = read(outputs)
    frame = pd.DataFrame(rows(entries), columns=["benchmark (%)", "run", "published", "this run", "difference",
                                                 "differs in"])
    style = frame.style.format({"published": "{:.1f}", "this run": "{:.1f}", "difference": "{:+.1f}"}, na_rep="–")
    style.hide(axis="index")
    style.set_table_styles([{"selector": "caption", "props": "caption-side: bottom; text-align: left"}])
    style.set_caption("<br>".join(map(html.escape, entries.left_out)))
    style.set_properties(subset=["benchmark (%)", "run"], **{"white-space": "nowrap"})
    return _align_left(style, ["benchmark (%)", "run", "differs in"])


def counts(values: dict):
    """Return the counts of what was prepared, as a table."""
    return _named_numbers({"made": values})


def findings(checks: list):
    """Return what egokit.doctor.examine reports, as a table.

    Checks that are not in order come first, each with its fix; then one line for each part counts those that are.
    """
    import pandas as pd
    rows = [(check.part, check.state, check.what, check.message, check.fix) for check in checks if check.state != "ok"]
    fine = collections.Counter(check.part for check in checks if check.state == "ok")
    rows += [(part, "ok", f"{count} checks", "in order", "") for part, count in fine.items()]
    frame = pd.DataFrame(rows, columns=["part", "state", "what", "found", "what to do"])
    return _align_left(frame.style.hide(axis="index"), list(frame.columns))


def metrics(values: dict):
    """Return a job's metrics as a table: scores first, then what the job counted and cost."""
    numbers = {key: value for key, value in values.items()
               if isinstance(value, (int, float)) and not isinstance(value, bool)}
    job = {key: value for key, value in numbers.items() if isinstance(value, int) or key.endswith(("seconds", "hours"))}
    return _named_numbers({"score": {key: numbers[key] for key in numbers if key not in job}, "the job": job})


def _named_numbers(groups: dict[str, dict]):
    """Return {group: {name: number}} as a table; a group's name stands beside its first number."""
    import pandas as pd
    rows = [("" if number else group, key.replace("_", " "), value) for group, values in groups.items()
            for number, (key, value) in enumerate(values.items())]
    # dtype object: a column of floats would turn whole numbers into floats, too
    frame = pd.DataFrame(rows, columns=["", "name", "value"], dtype=object)
    style = frame.style.format({"value": lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"})
    return _align_left(style.hide(axis="index"), ["", "name"])


def _align_left(style, columns: list[str]):
    """Align columns of text and their headings to the left."""
    style.set_table_styles({name: [{"selector": "th", "props": "text-align: left"}] for name in columns},
                           overwrite=False)
    return style.set_properties(subset=columns, **{"text-align": "left"})


def files(run: Run):
    """Return the files of a run folder with their sizes, as a table.

    What exists only while a notebook runs headless is left out, as are jobs/ and batch/.
    """
    import pandas as pd
    paths = [path for path in sorted(run.path.rglob("*")) if path.is_file() and not path.name.startswith(".")
             and not {"jobs", "batch", "lock", FAILED_NOTEBOOK} & set(path.relative_to(run.path).parts)]
    rows = [(str(path.relative_to(run.path)), f"{path.stat().st_size / 1024:,.0f} kB") for path in paths[:MAX_FILES]]
    rows += [(f"… and {len(paths) - MAX_FILES} more", "")] if len(paths) > MAX_FILES else []
    frame = pd.DataFrame(rows, columns=[f"in outputs/{run.path.parent.name}/{run.path.name}", "size"])
    return _align_left(frame.style.hide(axis="index"), [frame.columns[0]])
