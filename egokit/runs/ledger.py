"""The ledger: published numbers beside those of every run, and how the recipes differ.

It is read from metrics.json. The published numbers are those of the tasks' classes, and their recipes are in params/.
ledger_table.py prints it.
"""
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from egokit.config.build import ConfigError
from egokit.config.registry import TASKS, find
from egokit.config.resolve import outputs_folder
from egokit.runs.recipe_differences import Result, checkpoint_name, recipe_differences
from egokit.runs.run_folder import AGAIN, Run
from egokit.runs.shown_text import shown

# fields of a section of metrics.json that are read here, and their types; all are there if "recipe" is
FIELDS = {"recipe": dict, "action": str, "task": str, "toy": bool, "samples": int, "frames": int, "precision": str,
          "init": str, "init_sha256": str, "data": dict}
PEER = {"family": str, "init_md5": str, "frames": int}  # the same of another family's model, where they are there


class LedgerRow(NamedTuple):
    """One number of one run beside the published one."""
    run: str                # notebook/run
    result: Result
    value: float            # %
    recipe: list[str]       # differences from the published recipe; empty: none that is recorded
    section: str            # of the run's metrics.json
    model: str              # the published model's name, or else the checkpoint's
    benchmark: str          # the title of its task


class Ledger(NamedTuple):
    """The rows of all runs, and the files that could not be read."""
    entries: list[LedgerRow]    # ordered by benchmark
    left_out: list[str]         # one line per unreadable file: why, and what to do
    beside: tuple[LedgerRow, ...] = ()  # EgoVLPv2's numbers that nobody published, shown where another model's stand


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
    return read_runs(sorted(outputs.glob("*/*/metrics.json")))


def read_runs(paths: Iterable[Path]) -> Ledger:
    """Return the same of some runs' metrics.json alone."""
    rows, left_out = [], []
    for path in paths:
        try:
            rows += read_run(path, everything=True)
        except (OSError, ValueError) as error:
            left_out.append(shown(f"left out: {error}"))
    order = [(result.name, result.section) for _, result in registered()]
    rows.sort(key=lambda row: order.index(key) if (key := row.result[:2]) in order else len(order))
    return Ledger([row for row in rows if row.result.in_ledger], left_out,
                  tuple(row for row in rows if not row.result.in_ledger))


def read_run(path: Path, everything: bool = False) -> list[LedgerRow]:
    """Return the ledger's rows of one run, from its metrics.json.

    Args:
        path: the file.
        everything: also the numbers that the ledger doesn't show by itself; their results say so.

    Raises:
        ValueError: the file is damaged; the message names the file and the field.
    """
    notebook, run, _ = path.parts[-3:]
    metrics, entries = Run(path.parent).metrics(), []
    try:
        for name, section in metrics.items():
            _check_fields(name, section, section.keys() & {"task", "action", *PEER})
            task = _task_of(section, notebook)
            published = task.results() if task else _own_results(name, section)
            section_name = task.actions().get(section.get("action"), name) if task else name  # a job may have any name
            results = [result for result in published if result.section == section_name]
            if any(result.in_ledger for result in results):
                _check_fields(name, section, FIELDS if "recipe" in section else section.keys() & FIELDS.keys())
            for result in _of_model(task, published, results, section):
                if not (everything or result.in_ledger) or section.get(result.metric) is None:
                    continue
                value = _check_number(name, result.metric, section[result.metric])
                entries.append(LedgerRow(f"{notebook}/{run}", result, value, recipe_differences(task, result, section),
                                         name, _model_name(task, result, section), _title(task, section)))
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
    for field, kind in (FIELDS | PEER).items():
        if field in fields and type(section.get(field)) is not kind:
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


def _of_model(task: type | None, published: list[Result], results: list[Result], section: dict) -> list[Result]:
    """Return the results beside which a section's numbers belong.

    They are those of EgoVLPv2, unless the section evaluates another family's model: then those of the released file, if
    it is one. A metric has several if more than one paper published it. Of numbers for several frames of a clip, a
    section's own is taken, or the nearest.

    Args:
        task: the class of a registered task; None for a user's.
        published: all of the task's.
        results: those of this section.
        section: of metrics.json.
    """
    peers = task.peers if task and section.get("action") == "evaluate" else []
    of_file = [peer for peer in peers if peer.is_of(section)]
    if not of_file and "family" not in section:
        return [_of_checkpoint(result, published, section) for result in results]
    chosen, frames = [], min(max(1, section.get("frames", 1)), 10_000)  # as whoever wrote the file has it
    # EgoVLPv2's own numbers are not another model's: what stays of its results is their names
    names = {result.metric: result for result in [*reversed(peers), *reversed(results)] if result.in_ledger}
    for metric, result in sorted(names.items(), key=lambda item: item[1].name):
        beside: dict[tuple[str, str], Result] = {}
        for peer in (peer for peer in of_file if peer.metric == metric):
            other = beside.setdefault((peer.model, peer.source), peer)
            if abs(math.log(peer.frames / frames)) < abs(math.log(other.frames / frames)):
                beside[peer.model, peer.source] = peer
        unpublished = Result(result.name, result.section, metric, math.nan, model="")
        chosen += [peer if peer.published is not None else peer._replace(published=math.nan)
                   for peer in beside.values()] or [unpublished]
    return chosen


def _of_checkpoint(result: Result, published: list[Result], section: dict) -> Result:
    """Return the result that is published for the evaluated checkpoint, or else `result`.

    A released fine-tuned checkpoint that is only evaluated belongs beside the fine-tuned number, not the zero-shot one.
    """
    wanted = result.metric, Path(section.get("init", "")).name
    beside = {(other.metric, other.checkpoint) for other in published if other.section == result.section}
    if section.get("action") != "evaluate" or wanted in beside:  # the section's own row is of that checkpoint
        return result
    return next((candidate for candidate in published if (candidate.metric, candidate.checkpoint) == wanted), result)


def _model_name(task: type | None, result: Result, section: dict) -> str:
    """Return the name of the model in a row: the published one's if it is that, else the checkpoint's."""
    start = checkpoint_name(section.get("init", ""))
    if section.get("action") == "train":
        return f"{start}, trained here"
    if not result.model:
        return next((peer.model for peer in task.peers if peer.is_of(section)), start)
    return result.model if start == result.checkpoint or result.conditions else start


def _title(task: type | None, section: dict) -> str:
    """Return the name of a section's benchmark; that of a user's is its class's."""
    return task.title or task.__name__ if task else str(section.get("task", "")).rpartition(":")[2]
