"""The ledger: published numbers beside those of every run, and how the recipes differ.

It is read from metrics.json. The published numbers are those of the tasks' classes, and their recipes are in params/.
"""
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from egokit.config.build import ConfigError
from egokit.config.registry import TASKS, find
from egokit.config.resolve import outputs_folder
from egokit.runs.recipe_differences import Result, recipe_differences
from egokit.runs.run_folder import AGAIN, Run
from egokit.runs.shown_text import shown

# fields of a section of metrics.json that are read here, and their types; all are there if "recipe" is
FIELDS = {"recipe": dict, "action": str, "task": str, "toy": bool, "samples": int, "frames": int, "precision": str,
          "init": str, "init_sha256": str, "data": dict}


class LedgerRow(NamedTuple):
    """One number of one run beside the published one."""
    run: str                # notebook/run
    result: Result
    value: float            # %
    recipe: list[str]       # differences from the published recipe; empty: none that is recorded


class Ledger(NamedTuple):
    """The rows of all runs, and the files that could not be read."""
    entries: list[LedgerRow]    # ordered by benchmark
    left_out: list[str]         # one line per unreadable file: why, and what to do


def registered() -> list[tuple[type, Result]]:
    """Return the results of all registered tasks, each with its task's class."""
    return [(task, result) for task in map(find, TASKS) for result in task.results()]


def read(outputs: Path | None = None) -> Ledger:
    """Read the numbers of all runs that have a published counterpart.

    A damaged metrics.json leaves out its own run only.

    Args:
        outputs: folder of all runs; None: the project's.
    """
    outputs = outputs_folder() if outputs is None else Path(outputs)
    entries, left_out = [], []
    for path in sorted(outputs.glob("*/*/metrics.json")):
        try:
            entries += read_run(path)
        except (OSError, ValueError) as error:
            left_out.append(shown(f"left out: {error}"))
    order = [result for _, result in registered()]
    entries.sort(key=lambda entry: order.index(entry.result) if entry.result in order else len(order))
    return Ledger(entries, left_out)


def read_run(path: Path) -> list[LedgerRow]:
    """Return the ledger's rows of one run, from its metrics.json.

    Raises:
        ValueError: the file is damaged; the message names the file and the field.
    """
    notebook, run, _ = path.parts[-3:]
    metrics, entries = Run(path.parent).metrics(), []
    try:
        for name, section in metrics.items():
            _check_fields(name, section, section.keys() & {"task", "action"})
            task = _task_of(section, notebook)
            published = task.results() if task else _own_results(name, section)
            section_name = task.actions().get(section.get("action"), name) if task else name  # a job may have any name
            results = [result for result in published if result.section == section_name and result.in_ledger]
            if results:
                _check_fields(name, section, FIELDS if "recipe" in section else section.keys() & FIELDS.keys())
            for result in results:
                result = _of_checkpoint(result, published, section)
                if (value := section.get(result.metric)) is not None:
                    value = _check_number(name, result.metric, value)
                    differences = recipe_differences(task, result, section)
                    entries.append(LedgerRow(f"{notebook}/{run}", result, value, differences))
    except ConfigError as error:  # the published recipe's file is damaged, not this one
        raise ValueError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {AGAIN}") from None
    return entries


def _task_of(section: dict, notebook: str) -> type | None:
    """Return the class of the registered task that a section evaluates; None for a user's."""
    if "published" in section:
        return None
    if "task" in section:
        return find(section["task"]) if section["task"] in TASKS else None
    return next((task for task in map(find, TASKS) if task.notebook == notebook), None)  # an older run's section


def _check_fields(name: str, section: dict, fields: Iterable[str]) -> None:
    """Raise ValueError for a field of the wrong type.

    A section that an older version wrote may lack fields.
    """
    for field in FIELDS:
        if field in fields and type(section.get(field)) is not (kind := FIELDS[field]):
            value = repr(section.get(field))[:40]
            raise ValueError(f"{field!r} of section {name!r} is {value}, expected {kind.__name__}")


def _check_number(name: str, metric: str, value) -> float:
    """Return a metric's value; raise ValueError if it is not a number."""
    if type(value) not in (int, float) or not abs(value) < 1e9:  # NaN fails the comparison, too
        raise ValueError(f"{metric!r} of section {name!r} is {repr(value)[:40]}, expected a number")
    return value


def _own_results(name: str, section: dict) -> list[Result]:
    """Return the results of a user's task, which a job has recorded from the task's file."""
    task, published = section.get("task"), section.get("published", {})
    if type(published) is not dict or (published and type(task) is not str):
        raise ValueError(f"'task' and 'published' of section {name!r} are {repr((task, published))[:60]}, "
                         "expected a file:class and numbers")
    return [Result(f"{task.rpartition(':')[2]} {metric}, {name}", name, metric,
                   math.nan if value is None else _check_number(name, f"published {metric}", value))
            for metric, value in published.items()]


def _of_checkpoint(result: Result, published: list[Result], section: dict) -> Result:
    """Return the result that is published for the evaluated checkpoint, or else `result`.

    A released fine-tuned checkpoint that is only evaluated belongs beside the fine-tuned number, not the zero-shot one.
    """
    wanted = result.metric, Path(section.get("init", "")).name
    beside = {(other.metric, other.checkpoint) for other in published if other.section == result.section}
    if section.get("action") != "evaluate" or wanted in beside:  # the section's own row is of that checkpoint
        return result
    return next((candidate for candidate in published if (candidate.metric, candidate.checkpoint) == wanted), result)


def format_ledger(ledger: Ledger) -> str:
    """Return the ledger as text; differences between recipes are wrapped at 120 columns."""
    out = []
    if ledger.entries:
        width = max(len(entry.run) for entry in ledger.entries) + 2
        longest = max(len(entry.result.name) for entry in ledger.entries) + 2
        out.append(f"{'benchmark, %':{longest}}{'run':{width}}{'published':>10}{'this run':>10}{'difference':>12}")
        for name, run, published, value, difference, recipe in rows(ledger):
            numbers = ("–", "–") if math.isnan(published) else (f"{published:.1f}", f"{difference:+.1f}")
            out += [f"{name:{longest}}{run:{width}}{numbers[0]:>10}{value:>10.1f}{numbers[1]:>12}",
                    *textwrap.wrap(recipe, 120, initial_indent="    ", subsequent_indent="    ",
                                   break_on_hyphens=False)]
    else:
        out.append("no run has a number that was published: evaluate one with notebooks 03, 04 or 05")
    return "\n".join([*out, *ledger.left_out])


def rows(ledger: Ledger) -> list[tuple]:
    """Return the ledger's table rows.

    Returns:
        (benchmark, run, published %, this run's %, difference, differences of the recipe in words) for each entry.
    """
    return [(entry.result.name, entry.run, entry.result.published, entry.value, entry.value - entry.result.published,
             "; ".join(entry.recipe) or "the published recipe") for entry in ledger.entries]
