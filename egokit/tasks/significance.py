"""The significance of a difference between two evaluated models: a paired bootstrap over the queries of a benchmark.

It needs what evaluations leave in their run folders, and no model: `Task.per_query` says what each query contributes
to a metric. A draw takes as many queries as there are, with replacement, and both models' contributions of each, so
that queries which are hard for both make no difference uncertain.

Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
"""
from itertools import combinations
from typing import NamedTuple

import numpy as np

from egokit.runs.run_folder import Run

DRAWS, SEED = 10_000, 0
AT_ONCE = 4_000_000  # numbers drawn at once, which bounds the memory
AS_RECORDED = 0.01   # points of % by which what the rows give may differ from the metric that is recorded
ALL_PAIRS = 4        # up to so many models, each is compared with each; more are compared with the first


class NotPaired(ValueError):
    """Two evaluations are not of the same queries."""


class Difference(NamedTuple):
    """How much higher one model's metric is than another's, and how sure that is."""
    value: float    # points of %
    low: float      # the 95 % interval of it
    high: float
    p: float        # two-sided: how often a difference of 0 would look like this one
    queries: int


def paired_bootstrap(first: list[np.ndarray], second: list[np.ndarray], draws: int = DRAWS,
                     seed: int = SEED) -> Difference:
    """Return the difference second - first of a metric.

    Args:
        first: what each query contributes, in groups: the metric is the mean of the groups' means. Queries are drawn
            within their group.
        second: the same of the other model, in the same order of queries.
        draws: how many samples of the queries are drawn.
        seed: of the draws; the same one gives the same result.

    Raises:
        NotPaired: the numbers of queries differ, or there are none.
        ValueError: a query contributes no finite number.
    """
    sizes = [[len(group) for group in groups] for groups in (first, second)]
    if sizes[0] != sizes[1] or not sizes[0] or not all(sizes[0]):
        raise NotPaired(f"{sizes[0]} and {sizes[1]} queries: expected the same ones of both models, at least one")
    if not all(np.isfinite(group).all() for groups in (first, second) for group in groups):
        raise ValueError("what a query contributes is NaN or Inf: expected numbers of the queries that count alone")
    rng = np.random.default_rng(seed)
    differences = [np.asarray(b, np.float64) - np.asarray(a, np.float64) for a, b in zip(first, second, strict=True)]
    drawn = np.mean([_drawn_means(group, draws, rng) for group in differences], axis=0)
    value = float(np.mean([group.mean() for group in differences]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    # the draw that was observed counts, too, so that no p is 0
    tail = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    # a few queries that agree by chance give draws that all agree: no p is below that of the sign test, if all of the
    # queries whose answers differ spoke for one model
    differing = sum(map(np.count_nonzero, differences))
    p = max(2 * (tail + 1) / (draws + 1), 2.0 ** (1 - min(differing, 1000)))
    return Difference(value, float(low), float(high), min(1.0, float(p)), sum(sizes[0]))


def _drawn_means(values_Q: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return the means of `draws` samples of as many values, drawn with replacement."""
    count, means = len(values_Q), np.empty(draws)
    step = max(1, AT_ONCE // count)
    for at in range(0, draws, step):
        part = means[at:at + step]
        part[:] = values_Q[rng.integers(0, count, (len(part), count), np.int32)].mean(1)
    return means


def queries_of(task, run: Run, section: str) -> dict[str, list[np.ndarray]]:
    """Return what each query contributes to the metrics of an evaluation that a run has made.

    Args:
        task: the task that was evaluated, with the annotations of that evaluation.
        run: the run.
        section: its section of metrics.json, and of its rows.

    Raises:
        NotPaired: the evaluation was made on other annotations than the task's.
        FileNotFoundError, ValueError: the section has not been evaluated, or its files are damaged.
    """
    from egokit.model import checkpoints
    values = run.metrics().get(section)
    if not values:
        raise FileNotFoundError(f"section {section!r} of {run.path} has not been evaluated")
    recorded = values.get("data")
    present = {path.name: checkpoints.fingerprint(path) for path in task.tables()}
    if recorded != present:
        recorded = recorded if isinstance(recorded, dict) else {"none is recorded": ""}
        changed = [name for name in present if recorded.get(name) != present[name]]
        raise NotPaired(f"{section} in {run.path} was evaluated on other annotations "
                        f"({', '.join(changed or map(str, recorded))}) than those that are here: evaluate it again, "
                        "under another run name")
    rows, prompts_KE = run.read_rows(section)
    count = len(next(iter(rows.values()), ()))
    if count != task.num_rows():
        raise NotPaired(f"{section} in {run.path} has {count:,} rows, this recipe {task.num_rows():,}: data.limit or "
                        "the data differ; evaluate it again with this recipe, under another run name")
    if len(index := np.asarray(rows.get("index", ()))) and np.any(np.diff(index) < 0):
        raise NotPaired(f"the rows of {section} in {run.path} are not in the order of the samples: evaluate it again")
    return _checked(task, rows, prompts_KE, values, f"the rows of {section} in {run.path}")


def _checked(task, rows: dict, prompts_KE, values: dict, where: str) -> dict[str, list[np.ndarray]]:
    """Return what `Task.per_query` makes of rows; raise ValueError unless that is numbers, and gives the metrics.

    Args:
        values: the metrics that the evaluation has recorded.
        where: the rows' place, for messages.
    """
    try:
        each = {metric: [np.asarray(group, np.float64) for group in groups]
                for metric, groups in task.per_query(rows, prompts_KE).items()}
    except Exception as error:  # the file lacks a part, or a user's per_query is wrong: other models are still compared
        raise ValueError(f"{where} don't suit {type(task).__name__}.per_query ({type(error).__name__}: {error}): "
                         "evaluate it again, or correct per_query") from error
    for metric, groups in each.items():
        if not all(group.ndim == 1 and np.isfinite(group).all() for group in groups):
            raise ValueError(f"{type(task).__name__}.per_query gives {metric!r} of {where} other than finite numbers, "
                             "one a query: leave queries out that don't count")
        mean = np.mean([group.mean() for group in groups]) if groups and all(map(len, groups)) else None
        told = values.get(metric)
        if mean is not None and isinstance(told, (int, float)) and abs(mean - told) > AS_RECORDED:
            raise ValueError(f"{where} give {metric} {mean:.2f} by {type(task).__name__}.per_query, but metrics.json "
                             f"has {told:.2f}: evaluate it again, or correct per_query")
    return each


def of_runs(task, evaluated: dict[str, tuple[Run, str]], metrics: list[str]) -> list[tuple[str, str, str, Difference]]:
    """Return the differences between evaluations of one benchmark.

    Args:
        task: the benchmark's task.
        evaluated: {name: (run, section)}.
        metrics: those to compare, if the task says what a query contributes to them.

    Returns:
        (metric, name, other name, how much higher the other's is) for each pair of up to `ALL_PAIRS` evaluations, and
        for the first one and each other of more. None for a metric that one of the two lacks.

    Raises:
        NotPaired, FileNotFoundError, ValueError: as `queries_of`.
    """
    return differences({name: queries_of(task, *at) for name, at in evaluated.items()}, metrics)


def of_settings(task, settings: dict[str, list[Run]], section: str,
                metrics: list[str]) -> list[tuple[str, str, str, Difference]]:
    """Return the differences between settings, each of one or several runs that differ in their seed alone.

    What a query contributes is the mean over a setting's runs. So a difference is that of the means, and its interval
    says how it depends on the queries; how it depends on the seeds, the spread over the runs says.

    Args:
        task: the benchmark's task.
        settings: {name: runs}.
        section: the runs' section of metrics.json.
        metrics: those to compare; metrics that a run lacks are left out.

    Returns:
        As `of_runs`.

    Raises:
        NotPaired, FileNotFoundError, ValueError: as `queries_of`.
    """
    each = {}
    for name, runs in settings.items():
        first, *rest = [queries_of(task, run, section) for run in runs]
        each[name] = {metric: [np.mean(parts, axis=0) for parts in zip(groups, *(other[metric] for other in rest),
                                                                       strict=True)]
                      for metric, groups in first.items() if all(metric in other for other in rest)}
    return differences(each, metrics)


def differences(each: dict[str, dict[str, list[np.ndarray]]],
                metrics: list[str]) -> list[tuple[str, str, str, Difference]]:
    """Return the same from {name: what its queries contribute}, as `queries_of` returns that."""
    pairs = [*combinations(each, 2)] if len(each) <= ALL_PAIRS else [(next(iter(each)), other) for other in
                                                                     [*each][1:]]
    return [(metric, first, second, paired_bootstrap(each[first][metric], each[second][metric]))
            for metric in metrics for first, second in pairs if metric in each[first] and metric in each[second]]


def title(found: list[tuple[str, str, str, Difference]]) -> str:
    """Return what a table of differences shows, in words."""
    queries = sorted({difference.queries for *_, difference in found})
    count = f"{queries[0]:,}" + (f" to {queries[-1]:,}" if len(queries) > 1 else "")
    return f"paired bootstrap over {count} queries, {DRAWS:,} draws; differences in points of %"


def format_differences(found: list[tuple[str, str, str, Difference]]) -> str:
    """Return the differences as a table of text."""
    if not found:
        return ""
    lines = [(metric, f"{_shortened(second)} – {_shortened(first)}", f"{difference.value:+.2f}",
              f"[{difference.low:+.2f}, {difference.high:+.2f}]", p_value(difference.p))
             for metric, first, second, difference in found]
    heads = ("metric", "models", "difference", "95 % interval", "p")
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    text = ["  ".join(cell.ljust(width) if number < 2 else cell.rjust(width)
                      for number, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in (heads, *lines)]
    return "\n".join([f"{title(found)}:", *text])


def _shortened(name: str) -> str:
    """Return a name of at most 42 characters: its beginning and its end, which tell models of a family apart."""
    return name if len(name) <= 42 else f"{name[:19]}…{name[-22:]}"


def p_value(p: float) -> str:
    """Return a p as text."""
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"
