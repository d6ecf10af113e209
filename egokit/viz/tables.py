"""Numbers and files, as tables and a chart."""
from __future__ import annotations

from egokit.runs.published import DUAL_SOFTMAX, RESULTS
from egokit.runs.run_folder import FAILED_NOTEBOOK, Run


def results(run: Run):
    """Table of a run's metrics: chance, this run and the number published for the real data set."""
    metrics = run.metrics()
    return table([(result, metrics) for result in RESULTS
                  if result.notebook == run.path.parent.name and result.metric in metrics.get(result.section, {})])


def table(found: list[tuple]):
    """(Result, metrics.json) pairs as a styled DataFrame; every number in %."""
    import pandas as pd
    rows = [(result.name, metrics.get("chance", {}).get(result.chance), metrics[result.section].get(result.metric),
             None if result.metric.endswith(DUAL_SOFTMAX) else result.published) for result, metrics in found]
    frame = pd.DataFrame(rows, columns=["benchmark (%)", "chance", "this run", "published, real data"])
    return _left(frame.style.format(precision=1, na_rep="–").hide(axis="index"), ["benchmark (%)"])


def published(run: Run):
    """Chart of the published numbers beside those of the runs of the same name in the other notebooks, where they exist."""
    import numpy as np

    from egokit.viz.per_class import dots
    from egokit.viz.style import finish, pyplot
    results = [one for one in RESULTS if one.published is not None and not one.metric.endswith(DUAL_SOFTMAX)]
    found = {name: Run(path).metrics() if (path := run.path.parents[1] / name / run.path.name).is_dir() else {}
             for name in dict.fromkeys(one.notebook for one in results)}
    ours = [found[one.notebook].get(one.section, {}).get(one.metric) for one in results]
    chance = [found[one.notebook].get("chance", {}).get(one.chance) for one in results]
    series = {"published, real data": [one.published for one in results], "here": ours, "chance here": chance}
    figure, axis = pyplot().subplots(figsize=(11, 0.8 + 0.42 * len(results)), layout="constrained")
    dots(axis, [one.name for one in results], {name: np.array(values, float) for name, values in series.items()})
    for line, (one, value) in enumerate(zip(results, ours, strict=True)):
        text = f"{one.published:.1f} published, " + (f"{value:.1f} here" if value is not None else f"not yet here: run {one.notebook}")
        axis.text(102, line, text, va="center", fontsize=11)
    axis.set(xlabel="%", title=f"runs “{run.path.name}” of the other notebooks")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    return finish(figure, run, "published")


def ledger(outputs=None):
    """Published numbers against those of every run so far, and in what their recipes differ."""
    import html

    import pandas as pd

    from egokit.runs.ledger import read, rows
    found = read(outputs)
    frame = pd.DataFrame(rows(found), columns=["benchmark (%)", "run", "published", "this run", "difference", "differs in"])
    style = frame.style.format({"published": "{:.1f}", "this run": "{:.1f}", "difference": "{:+.1f}"}, na_rep="–").hide(axis="index")
    style.set_table_styles([{"selector": "caption", "props": "caption-side: bottom; text-align: left"}])
    style.set_caption("<br>".join(map(html.escape, found.left_out)))
    style.set_properties(subset=["benchmark (%)", "run"], **{"white-space": "nowrap"})
    return _left(style, ["benchmark (%)", "run", "differs in"])


def counts(values: dict):
    """Counts of what was prepared, as a table."""
    return _pairs("made", values)


def findings(found: list):
    """What egokit.doctor found: everything that is not in order, with what to do, and how much is, part by part."""
    import pandas as pd
    rows = [(one.part, one.state, one.what, one.said, one.fix) for one in found if one.state != "ok"]
    for part in dict.fromkeys(one.part for one in found):
        fine = sum(one.part == part and one.state == "ok" for one in found)
        rows += [(part, "ok", f"{fine} checks", "in order", "")] if fine else []
    frame = pd.DataFrame(rows, columns=["part", "state", "what", "found", "what to do"])
    return _left(frame.style.hide(axis="index"), list(frame.columns))


def metrics(values: dict):
    """A job's metrics: scores in %, and what they cost."""
    numbers = {key: value for key, value in values.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return _pairs("metric", numbers)


def _pairs(name: str, values: dict):
    import pandas as pd
    frame = pd.DataFrame([(key.replace("_", " "), value) for key, value in values.items()], columns=[name, "value"],
                         dtype=object)  # a whole number stays one beside others
    style = frame.style.format({"value": lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"}).hide(axis="index")
    return _left(style, [name])


def _left(style, columns: list[str]):
    """Columns of text, with their headings, begin at the left."""
    style.set_table_styles({name: [{"selector": "th", "props": "text-align: left"}] for name in columns}, overwrite=False)
    return style.set_properties(subset=columns, **{"text-align": "left"})


def files(run: Run):
    """What the run folder holds, with sizes; without what is there while a notebook runs headless."""
    import pandas as pd
    found = [path for path in sorted(run.path.rglob("*")) if path.is_file() and not path.name.startswith(".")
             and not {"jobs", "batch", "lock", FAILED_NOTEBOOK} & set(path.relative_to(run.path).parts)]
    rows = [(str(path.relative_to(run.path)), f"{path.stat().st_size / 1024:,.0f} kB") for path in found[:40]]
    rows += [(f"… and {len(found) - 40} more", "")] if len(found) > 40 else []
    frame = pd.DataFrame(rows, columns=[f"in outputs/{run.path.parent.name}/{run.path.name}", "size"])
    return _left(frame.style.hide(axis="index"), [frame.columns[0]])
