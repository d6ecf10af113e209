"""Several runs as tables: in what they differ, the mean and spread of each setting, and how sure differences are."""
from collections.abc import Sequence
from pathlib import Path

from egokit.config.build import ConfigError, did_you_mean
from egokit.notebook.safe_html import styled
from egokit.runs import run_set
from egokit.runs.ledger import registered
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.tasks import significance
from egokit.viz.comparison import difference_table
from egokit.viz.queries import make_queries, sides

EXAMPLES = 3   # queries that are named of each kind
MAX_VALUE = 60  # characters of a setting's value


def metric_names(runs: Sequence[Run], section: str) -> list[str]:
    """Return the metrics of a section that tables show: its score, and those of which numbers are published."""
    metrics = [values for run in runs if (values := run.metrics().get(section))]
    names = [str(values["score"]) for values in metrics if values.get("score")]
    names += [result.metric for task, result in registered() if result.section == section and result.in_ledger]
    return [name for name in dict.fromkeys(names)
            if any(isinstance(values.get(name), (int, float)) for values in metrics)]


def chosen_metrics(runs: Sequence[Run], section: str, metrics: str | Sequence[str] = ()) -> list[str]:
    """Return the metrics that are asked for, or `metric_names` if none is.

    Raises:
        ConfigError: No run has such a number in this section.
    """
    sections = [run.metrics().get(section, {}) for run in runs]
    known = {name for values in sections for name, value in values.items() if isinstance(value, (int, float))}
    asked = [metrics] if isinstance(metrics, str) and metrics else list(metrics)
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(f"metric {unknown[0]!r}: none of the {len(runs)} runs has it in the section {section!r} of "
                          f"its metrics.json; {did_you_mean(unknown[0], known)}")
    return asked or metric_names(runs, section)


def run_settings(runs: Sequence[Run], section: str = ""):
    """Return a table of runs with the settings in which they differ, and their scores.

    Args:
        runs: The runs, as `egokit.find_runs` returns them. Of those without a result the table says so.
        section: Their section of metrics.json; "" for the one that they share.

    Returns:
        A styled table; its `data` is a DataFrame.

    Raises:
        ValueError: None of them has a result.
    """
    section = section or run_set.common_section(runs)
    recipes = [run_set.recipe_of(run, section) for run in runs]
    keys, metrics = run_set.varied([recipe for recipe in recipes if recipe]), metric_names(runs, section)
    rows = [(_name(run), *(value_text(recipe.get(key)) for key in keys),
             *(run.metrics().get(section, {}).get(metric) for metric in metrics))
            for run, recipe in zip(runs, recipes, strict=True)]
    without = [_name(run) for run, recipe in zip(runs, recipes, strict=True) if not recipe]
    below = [f"no result of {section} yet: {', '.join(without)}"] if without else []
    if not keys:
        below.append("the recipes of these runs differ in nothing")
    columns = ["run", *keys, *(f"{metric}, %" for metric in metrics)]
    return styled(rows, columns, columns[:1 + len(keys)], below=below)


def by_setting(runs: Sequence[Run], section: str = "", metrics: Sequence[str] = ()):
    """Return a table of each setting's mean and spread over its runs, which differ in their seed alone.

    The spread is the standard deviation of a sample, by n - 1.

    Args:
        runs: The runs. Those without a result are left out.
        section: Their section of metrics.json; "" for the one that they share.
        metrics: The metrics to show; by default the section's score, and those of which numbers are published.

    Returns:
        A styled table; its `data` is a DataFrame.

    Raises:
        ValueError: None of them has a result.
        ConfigError: None of them has such a metric.
    """
    section = section or run_set.common_section(runs)
    groups = run_set.settings(runs, section)
    keys, rows = list(groups[0].values), []
    for metric in chosen_metrics(runs, section, metrics):
        for group in groups:
            if values := run_set.scores(group.runs, section, metric):
                mean, spread = run_set.mean_and_spread(values)
                rows.append((metric, *(value_text(group.values[key]) for key in keys), len(values), mean, spread,
                             min(values), max(values)))
    columns = ["metric, %", *keys, "runs", "mean", "spread", "lowest", "highest"]
    return styled(rows, columns, columns[:1 + len(keys)], dict.fromkeys(columns[-4:], "{:.2f}"),
                  [f"spread: standard deviation over the runs of a setting ({section})"])


def setting_differences(task, runs: Sequence[Run], section: str = "", metrics: Sequence[str] = ()):
    """Return a table of how sure the differences between settings are: a paired bootstrap over the queries.

    Each query's contribution is the mean over the runs of a setting. The interval says how a difference depends on the
    queries; how it depends on the seed, the spread in `by_setting` says.

    Args:
        task: The task that the runs were scored with.
        runs: The runs. Those without a result are left out.
        section: Their section of metrics.json; "" for the one that they share.
        metrics: The metrics to compare; by default as in `by_setting`.

    Raises:
        ValueError: There are fewer than two settings, or the task doesn't say what a query contributes.
        ConfigError: None of the runs has such a metric.
    """
    section = section or run_set.common_section(runs)
    groups = run_set.settings(runs, section)
    if len(groups) < 2:
        raise ValueError("setting_differences: expected runs of two settings at least, beside their seed; these "
                         f"{sum(len(group.runs) for group in groups)} have one")
    named: dict[str, list[Run]] = {}
    for number, group in enumerate(groups, 1):  # cut or rounded values may look alike
        name = setting_name(group)
        named[f"{name} (setting {number})" if name in named else name] = group.runs
    found = significance.of_settings(task, named, section, chosen_metrics(runs, section, metrics))
    if not found:
        raise ValueError(f"task {task.config.task.name} doesn't say what a query contributes to a metric (per_query): "
                         "the significance of the differences is not known")
    return difference_table(found)


def changed_sides(task, run: Run, other: Run | str | Path, section: str = ""):
    """Return a table of the queries that one of two runs answers right, and the other one wrong.

    `viz.browser(task, run, section, against=(other, section))` shows all of them with their clips.

    Args:
        task: The task that both were scored with.
        run: A run.
        other: Another one: a Run, a folder, or the name of a run beside it.
        section: Their section of metrics.json; "" for the one that they share.
    """
    section = section or run_set.common_section([run])
    content = make_queries(task, sides(run, section, (other, section)))
    first, second = content.right_SK
    names = [shown(_name(run).partition("/")[2]), content.sides[1].partition(":")[0]]
    rows = []
    for words, chosen in ((f"right in {names[0]} alone", first & ~second),
                          (f"right in {names[1]} alone", second & ~first), ("right in both", first & second),
                          ("wrong in both", ~first & ~second)):
        texts = [content.texts[k] for k in chosen.nonzero()[0][:EXAMPLES]]
        rows.append((words, int(chosen.sum()), 100 * float(chosen.mean()), "; ".join(texts)))
    columns = ["queries", "number", "%", "for example"]
    return styled(rows, columns, [columns[0], columns[3]])


def setting_name(group: run_set.Setting) -> str:
    """Return a setting in words, as "lr 0.003": its values' own keys, short."""
    return ", ".join(f"{key.rpartition('.')[2]} {value_text(value)}" for key, value in group.values.items()) or \
        "all runs"


def value_text(value) -> str | None:
    """Return a setting's value as it is shown."""
    if value is None:
        return None
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if len(text) > MAX_VALUE and "/" in text:  # paths differ at their ends
        text = f"… {text[2 - MAX_VALUE:]}"
    return shown(text, MAX_VALUE)


def _name(run: Run) -> str:
    """Return a run's name, "notebook/run"."""
    return shown(f"{run.path.parent.name}/{run.path.name}")
