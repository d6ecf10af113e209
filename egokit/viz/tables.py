"""Numbers and files as tables, and the published numbers as a chart."""
import collections

from egokit.notebook.safe_html import Tables, styled
from egokit.runs.ledger import registered
from egokit.runs.recipe_differences import DUAL_SOFTMAX
from egokit.runs.run_folder import FAILED_NOTEBOOK, Run
from egokit.runs.shown_text import shown

MAX_FILES = 40  # listed of a run folder
MAX_NAME = 120  # characters of a name, which is not wrapped


def results(run: Run):
    """Return a table of a run's metrics with chance and the published numbers, in %."""
    metrics = run.metrics()
    return table([(result, metrics) for task, result in registered()
                  if task.notebook == run.path.parent.name and result.in_ledger
                  and result.metric in metrics.get(result.section, {})])


def table(pairs: list[tuple]):
    """Return (Result, contents of metrics.json) pairs as a styled DataFrame, all numbers in %."""
    rows = [(result.name, metrics.get("chance", {}).get(result.chance), metrics[result.section].get(result.metric),
             None if result.metric.endswith(DUAL_SOFTMAX) else result.published) for result, metrics in pairs]
    columns = ["benchmark (%)", "chance", "this run", "published, real data"]
    return styled(rows, columns, columns[:1], dict.fromkeys(columns, "{:.1f}"))


def published(run: Run):
    """Draw the published numbers beside those of the other notebooks' runs of the same name."""
    import numpy as np

    from egokit.viz.per_class import dot_plot
    from egokit.viz.style import new_figure, save_figure
    results, seen = [], set()
    for task, result in registered():  # those of EgoVLPv2's checkpoints; the ledger has other models', too
        number = task, result.metric, result.checkpoint
        if result.checkpoint and result.published is not None and not result.metric.endswith(DUAL_SOFTMAX) \
                and number not in seen:
            results.append((task.notebook, result))
            seen.add(number)
    metrics = {name: Run(path).metrics() if (path := run.path.parents[1] / name / run.path.name).is_dir() else {}
               for name in dict.fromkeys(name for name, _ in results)}
    ours = [metrics[name].get(result.section, {}).get(result.metric) for name, result in results]
    chance = [metrics[name].get("chance", {}).get(result.chance) for name, result in results]
    series = {"published, real data": [result.published for _, result in results], "here": ours, "chance here": chance}
    figure = new_figure(figsize=(11, 0.8 + 0.42 * len(results)))
    axis = figure.subplots()
    dot_plot(axis, [result.name for _, result in results], {
        name: np.array([value if _is_percentage(value) else np.nan for value in values], float)
        for name, values in series.items()})
    for line, ((name, result), value) in enumerate(zip(results, ours, strict=True)):
        here = f"not yet here: run {name}" if value is None else \
            f"{value:.1f} here" if _is_percentage(value) else f"no percentage here: {shown(value, 20)}"
        axis.text(102, line, f"{result.published:.1f} published, {here}", va="center", fontsize=11)
    axis.set(xlabel="%", title=f"runs “{shown(run.path.name, 80)}” of the other notebooks")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    return save_figure(figure, run, "published")


def _is_percentage(value) -> bool:
    """Return whether a value of metrics.json can be drawn."""
    return isinstance(value, (int, float)) and 0 <= value <= 100


def ledger(outputs=None):
    """Return a table for each benchmark: every run's numbers beside the published ones, and how the recipes differ.

    Args:
        outputs: The folder of all runs; None is the project's outputs/.
    """
    from egokit.runs.ledger import read
    from egokit.runs.ledger_table import NOTHING, tables
    read_ledger = read(outputs)
    shows = [benchmark_table(benchmark, rows) for benchmark, rows in tables(read_ledger).items()]
    return Tables(shows, read_ledger.left_out if shows else [NOTHING, *read_ledger.left_out])


def benchmark_table(benchmark: str, rows: list):
    """Return one benchmark's rows of the ledger as a styled DataFrame."""
    metric = shown(f"{benchmark}, %", MAX_NAME)
    columns = [metric, "model", "run", "published", "here", "difference", "differs in"]
    lines = [(row.metric, row.model, row.run or None, row.published, row.value, row.difference, row.recipe)
             for row in rows]
    style = styled(lines, columns, [metric, "model", "run", "differs in"],
                   {"published": "{:.1f}", "here": "{:.1f}", "difference": "{:+.1f}"})
    return style.set_properties(subset=[metric, "model", "run"], **{"white-space": "nowrap"})


def counts(values: dict):
    """Return the counts of what was prepared, as a table."""
    return _named_numbers({"made": values})


def findings(checks: list):
    """Return what egokit.doctor.examine reports, as a table.

    Checks that are not in order come first, each with its fix; then one line for each part counts those that are.
    """
    rows = [(check.part, check.state, check.what, check.message, check.fix) for check in checks if check.state != "ok"]
    fine = collections.Counter(check.part for check in checks if check.state == "ok")
    rows += [(part, "ok", f"{count} checks", "in order", "") for part, count in fine.items()]
    columns = ["part", "state", "what", "found", "what to do"]
    return styled(rows, columns, columns)


def metrics(values: dict):
    """Return a job's metrics as a table: scores first, then what the job counted and cost."""
    numbers = {key: value for key, value in values.items()
               if isinstance(value, (int, float)) and not isinstance(value, bool)}
    job = {key: value for key, value in numbers.items() if isinstance(value, int) or key.endswith(("seconds", "hours"))}
    return _named_numbers({"score": {key: numbers[key] for key in numbers if key not in job}, "the job": job})


def _named_numbers(groups: dict[str, dict]):
    """Return {group: {name: number}} as a table; a group's name stands beside its first number."""
    rows = [("" if number else group, key.replace("_", " "), value) for group, values in groups.items()
            for number, (key, value) in enumerate(values.items())]
    return styled(rows, ["", "name", "value"], ["", "name"])


def files(run: Run):
    """Return the files of a run folder with their sizes, as a table; those of its folders last.

    What exists only while a notebook runs headless is left out, as are jobs/ and batch/.
    """
    found = sorted(run.path.rglob("*"), key=lambda path: (len(path.relative_to(run.path).parts), path))
    paths = [path for path in found if path.is_file() and not path.name.startswith(".")
             and not {"jobs", "batch", "lock", FAILED_NOTEBOOK} & set(path.relative_to(run.path).parts)]
    rows = [(str(path.relative_to(run.path)), f"{path.stat().st_size / 1024:,.0f} kB") for path in paths[:MAX_FILES]]
    rows += [(f"… and {len(paths) - MAX_FILES} more", "")] if len(paths) > MAX_FILES else []
    columns = [shown(f"in outputs/{run.path.parent.name}/{run.path.name}"), "size"]
    return styled(rows, columns, columns[:1])
