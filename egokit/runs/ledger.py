"""The ledger: published numbers beside those of every run, and how the recipes differ.

It is read from metrics.json alone.
"""
from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import NamedTuple

from egokit.config.build import new_names
from egokit.config.resolve import outputs_folder
from egokit.runs.published import DUAL_SOFTMAX, EVALUATIONS, RESULTS, TRAININGS, WORDS, Result
from egokit.runs.run_folder import AGAIN, Run

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
            left_out.append(f"left out: {error}")
    entries.sort(key=lambda entry: RESULTS.index(entry.result) if entry.result in RESULTS else len(RESULTS))
    return Ledger(entries, left_out)


def read_run(path: Path) -> list[LedgerRow]:
    """Return the ledger's rows of one run.

    Args:
        path: the run's metrics.json.

    Raises:
        ValueError: the file is damaged; the message names the file and the field.
    """
    notebook, run, _ = path.parts[-3:]
    metrics, entries = Run(path.parent).metrics(), []
    try:
        for name, section in metrics.items():
            published = [result for result in RESULTS if (result.notebook, result.section) == (notebook, name)
                         and result.published is not None]
            if not published and "published" not in section:
                continue
            _check_fields(name, section)
            results = [_of_checkpoint(result, section) for result in published]
            for result in [*results, *_own_task_results(notebook, name, section)]:
                if (value := section.get(result.metric)) is not None:
                    value = _check_number(name, result.metric, value)
                    entries.append(LedgerRow(f"{notebook}/{run}", result, value, recipe_differences(result, section)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {AGAIN}") from None
    return entries


def _check_fields(name: str, section: dict) -> None:
    """Raise ValueError for a field of the wrong type.

    A section that an older version wrote may lack fields.
    """
    for field, kind in FIELDS.items():
        if (field in section or "recipe" in section) and type(section.get(field)) is not kind:
            value = repr(section.get(field))[:40]
            raise ValueError(f"{field!r} of section {name!r} is {value}, expected {kind.__name__}")


def _check_number(name: str, metric: str, value) -> float:
    """Return a metric's value; raise ValueError if it is not a number."""
    if type(value) not in (int, float) or not abs(value) < 1e9:  # NaN fails the comparison, too
        raise ValueError(f"{metric!r} of section {name!r} is {repr(value)[:40]}, expected a number")
    return value


def _own_task_results(notebook: str, name: str, section: dict) -> list[Result]:
    """Return the results of a user's task, whose file says which numbers are published."""
    task, published = section.get("task"), section.get("published", {})
    if type(published) is not dict or (published and type(task) is not str):
        raise ValueError(f"'task' and 'published' of section {name!r} are {repr((task, published))[:60]}, "
                         "expected a file:class and numbers")
    return [Result(f"{task.rpartition(':')[2]} {metric}, {name}", "", notebook, name, metric, "",
                   math.nan if value is None else _check_number(name, f"published {metric}", value), 0, "")
            for metric, value in published.items()]


def _of_checkpoint(result: Result, section: dict) -> Result:
    """Return the result that is published for the evaluated checkpoint, or else `result`.

    A released fine-tuned checkpoint that is only evaluated belongs beside the fine-tuned number, not the zero-shot one.
    """
    if section.get("action") != "evaluate":
        return result
    checkpoint = Path(section.get("init", "")).name
    return next((candidate for candidate in RESULTS if (candidate.notebook, candidate.metric, candidate.checkpoint)
                 == (result.notebook, result.metric, checkpoint)), result)


def recipe_differences(result: Result, section: dict) -> list[str]:
    """Return in words how a run's recipe differs from the published one.

    Args:
        result: the published result.
        section: the run's section of metrics.json.
    """
    phrases = ["toy data"] if section.get("toy") else []
    if "recipe" not in section:
        return [*phrases, "its recipe is not recorded"]
    recipe = new_names(section["recipe"])
    if result.samples and section["samples"] != result.samples:
        phrases.append(f"{section['samples']:,} {result.unit}, published on {result.samples:,}")
    if result.checkpoint:
        phrases += compare_recipes(recipe, EVALUATIONS[result.notebook])
    else:
        phrases.append(_in_words("data.eval_frames", section["frames"]))
    if result.metric.endswith(DUAL_SOFTMAX):
        phrases.append("dual softmax over the whole test set "
                       f"(temperature {recipe.get('evaluate.dual_softmax')}), published without")
    start = _checkpoint_name(section["init"])
    if section["action"] == "train":
        phrases += _training_differences(result, section, start)
    elif start != result.checkpoint:
        published = f", published for {result.checkpoint}" if result.checkpoint else ""
        phrases.append(f"checkpoint {start} ({section['init_sha256']}){published}")
    if section["precision"] != "fp32":
        phrases.append(f"evaluated in {section['precision']}")
    if not result.checkpoint:
        phrases += [] if section["data"] else ["its annotation files are not recorded"]
        phrases.append(f"defined in {Path(section['task'].rpartition(':')[0]).name} ({section.get('task_sha256')})")
    return phrases


def _training_differences(result: Result, section: dict, start: str) -> list[str]:
    """Return the same for the training from checkpoint `start`.

    The ledger always says that the checkpoint was chosen by its scores on the test set.
    """
    recipe = new_names(section["recipe"])
    published = TRAININGS.get(result.notebook, {}) if result.checkpoint else {}
    if published:
        published_start = f", published from {published['init']}" if start != published["init"] else ""
        phrases = [f"fine-tuned here from {start}{published_start}", *compare_recipes(recipe, published)]
    else:
        keys = ("train.epochs", "train.batch_size", "optim.lr")
        phrases = [f"trained here from {start}", *(_in_words(key, recipe.get(key)) for key in keys)]
    if (validations := recipe.get("selection.validations")) not in (0, 1):
        phrases.append(f"best of {validations} validations on the {recipe.get('selection.split')} set"
                       + (", the paper does not say how its checkpoint was chosen" if published else ""))
    if section.get("bad_samples"):
        phrases.append(f"{section['bad_samples']} samples could not be read")
    return phrases


def compare_recipes(recipe: dict, published: dict) -> list[str]:
    """Return in words the keys at which a recorded recipe differs from a published one.

    Args:
        recipe, published: {"section.key": value}. Keys that have WORDS come first; "init" is not compared.
    """
    keys = [key for key in dict.fromkeys([*WORDS, *published])
            if key in published and key != "init" and recipe.get(key) != published[key]]
    return [f"{_in_words(key, recipe.get(key))}, published {published[key]}" for key in keys]


def _in_words(key: str, value) -> str:
    shown = "(not recorded)" if value is None else value
    return WORDS.get(key, f"{key} {{}}").format(shown, "" if value == 1 else "s")


def _checkpoint_name(init: str) -> str:
    """Return a short name: notebook/run for a run's best.pt, else the file's name."""
    path = Path(init)
    if path.parts[-2:] == ("checkpoints", "best.pt"):
        return "/".join(path.parts[-4:-2])
    return path.name or "random weights"


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
