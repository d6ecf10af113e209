"""Published numbers against every run's, with the difference and in what their recipes differ. Read from metrics.json alone."""
from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import NamedTuple

from egokit.config.build import new_names
from egokit.config.resolve import outputs_folder
from egokit.runs.published import DUAL_SOFTMAX, EVALUATIONS, RESULTS, TRAININGS, WORDS, Result
from egokit.runs.run_folder import AGAIN, Run

# fields of a section that are read here, each there if "recipe" is
FIELDS = {"recipe": dict, "action": str, "task": str, "toy": bool, "samples": int, "frames": int, "precision": str, "init": str,
          "init_sha256": str, "data": dict}


class LedgerRow(NamedTuple):
    run: str                # notebook/run
    result: Result
    value: float
    recipe: list[str]       # in what it differs from the published one; empty: in nothing that is recorded


class Ledger(NamedTuple):
    entries: list[LedgerRow]    # benchmark by benchmark
    left_out: list[str]     # a line for each file that can't be read: why, and what to do


def read(outputs: Path | None = None) -> Ledger:
    """Every published number that a run under `outputs` has a counterpart of. A damaged file leaves out its own run alone."""
    outputs = outputs_folder() if outputs is None else Path(outputs)
    found, left_out = [], []
    for path in sorted(outputs.glob("*/*/metrics.json")):
        try:
            found += entries(path)
        except (OSError, ValueError) as error:
            left_out.append(f"left out: {error}")
    found.sort(key=lambda entry: RESULTS.index(entry.result) if entry.result in RESULTS else len(RESULTS))
    return Ledger(found, left_out)


def entries(path: Path) -> list[LedgerRow]:
    """Those of one run's metrics.json. Raises ValueError, which names the file and what is wrong in it."""
    notebook, run, _ = path.parts[-3:]
    metrics, found = Run(path.parent).metrics(), []
    try:
        for name, section in metrics.items():
            known = [one for one in RESULTS if (one.notebook, one.section) == (notebook, name) and one.published is not None]
            if known or "published" in section:
                check(name, section)
                results = [*(counterpart(one, section) for one in known), *own(notebook, name, section)]
                found += [LedgerRow(f"{notebook}/{run}", one, number(name, one.metric, section[one.metric]), differences(one, section))
                          for one in results if section.get(one.metric) is not None]
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {AGAIN}") from None
    return found


def check(name: str, section: dict) -> None:
    """Raises ValueError for a field of another type than is written; a section of an older version may lack it."""
    for field, kind in FIELDS.items():
        if (field in section or "recipe" in section) and type(section.get(field)) is not kind:
            raise ValueError(f"{field!r} of section {name!r} is {repr(section.get(field))[:40]}, expected {kind.__name__}")


def number(name: str, metric: str, value) -> float:
    """The value, of a metric. Raises ValueError if it is none."""
    if type(value) not in (int, float) or not abs(value) < 1e9:  # not NaN, either
        raise ValueError(f"{metric!r} of section {name!r} is {repr(value)[:40]}, expected a number")
    return value


def own(notebook: str, name: str, section: dict) -> list[Result]:
    """The results of a task that is a user's file, which says what is published."""
    task, there = section.get("task"), section.get("published", {})
    if type(there) is not dict or (there and type(task) is not str):
        raise ValueError(f"'task' and 'published' of section {name!r} are {repr((task, there))[:60]}, expected a file:class and numbers")
    return [Result(f"{task.rpartition(':')[2]} {metric}, {name}", "", notebook, name, metric, "",
                   math.nan if published is None else number(name, f"published {metric}", published), 0, "")
            for metric, published in there.items()]


def counterpart(result: Result, section: dict) -> Result:
    """The result that is published of the checkpoint that was scored: a fine-tuned one evaluated as it is is not zero-shot."""
    name = Path(section.get("init", "")).name
    same = [one for one in RESULTS if (one.notebook, one.metric, one.checkpoint) == (result.notebook, result.metric, name)]
    return same[0] if same and section.get("action") == "evaluate" else result


def differences(result: Result, section: dict) -> list[str]:
    """In what a section of metrics.json differs from the published recipe, in words."""
    said = ["toy data"] if section.get("toy") else []
    if "recipe" not in section:
        return [*said, "its recipe is not recorded"]
    recipe = new_names(section["recipe"])
    if result.samples and section["samples"] != result.samples:
        said.append(f"{section['samples']:,} {result.unit}, published on {result.samples:,}")
    said += compared(recipe, EVALUATIONS[result.notebook]) if result.checkpoint else [in_words("data.eval_frames", section["frames"])]
    if result.metric.endswith(DUAL_SOFTMAX):
        said.append(f"dual softmax over the whole test set (temperature {recipe.get('evaluate.dual_softmax')}), published without")
    start = origin(section["init"])
    if section["action"] == "train":
        said += differences_of_training(result, section, start)
    elif start != result.checkpoint:
        said.append(f"checkpoint {start} ({section['init_sha256']})" + (f", published of {result.checkpoint}" if result.checkpoint else ""))
    if section["precision"] != "fp32":
        said.append(f"evaluated in {section['precision']}")
    if not result.checkpoint:
        said += [] if section["data"] else ["its annotation files are not recorded"]
        said.append(f"defined in {Path(section['task'].rpartition(':')[0]).name} ({section.get('task_sha256')})")
    return said


def differences_of_training(result: Result, section: dict, start: str) -> list[str]:
    """The same of what was trained from `start`. That its checkpoint was chosen by the scores of the test set is always said."""
    recipe, published = new_names(section["recipe"]), TRAININGS.get(result.notebook, {}) if result.checkpoint else {}
    if published:
        other = f", published from {published['init']}" if start != published["init"] else ""
        said = [f"fine-tuned here from {start}{other}", *compared(recipe, published)]
    else:
        keys = ("train.epochs", "train.batch_size", "optim.lr")
        said = [f"trained here from {start}", *(in_words(key, recipe.get(key)) for key in keys)]
    if (validations := recipe.get("selection.validations")) not in (0, 1):
        said.append(f"best of {validations} validations on the {recipe.get('selection.split')} set"
                    + (", how the published one was chosen is not said" if published else ""))
    if section.get("bad_samples"):
        said.append(f"{section['bad_samples']} samples could not be read")
    return said


def compared(recipe: dict, published: dict) -> list[str]:
    """The keys at which a recorded recipe differs from a published one, those that have words first."""
    keys = [key for key in dict.fromkeys([*WORDS, *published]) if key in published and key != "init" and recipe.get(key) != published[key]]
    return [f"{in_words(key, recipe.get(key))}, published {published[key]}" for key in keys]


def in_words(key: str, value) -> str:
    return WORDS.get(key, f"{key} {{}}").format("(not recorded)" if value is None else value, "" if value == 1 else "s")


def origin(init: str) -> str:
    """A checkpoint's name: of a released file its own, of a run's best.pt the run's."""
    path = Path(init)
    return "/".join(path.parts[-4:-2]) if path.parts[-2:] == ("checkpoints", "best.pt") else path.name or "random weights"


def lines(ledger: Ledger) -> str:
    """The ledger as text."""
    out = []
    if ledger.entries:
        width = max(len(entry.run) for entry in ledger.entries) + 2
        longest = max(len(entry.result.name) for entry in ledger.entries) + 2
        out.append(f"{'benchmark, %':{longest}}{'run':{width}}{'published':>10}{'this run':>10}{'difference':>12}")
        for name, run, published, value, difference, recipe in rows(ledger):
            published, difference = ("–", "–") if math.isnan(published) else (f"{published:.1f}", f"{difference:+.1f}")
            out += [f"{name:{longest}}{run:{width}}{published:>10}{value:>10.1f}{difference:>12}",
                    *textwrap.wrap(recipe, 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)]
    else:
        out.append("no run has a number that was published: evaluate one with notebooks 03, 04 or 05")
    return "\n".join([*out, *ledger.left_out])


def rows(ledger: Ledger) -> list[tuple]:
    """(benchmark, run, published, this run, difference, in what the recipe differs) of each entry."""
    return [(one.result.name, one.run, one.result.published, one.value, one.value - one.result.published,
             "; ".join(one.recipe) or "the published recipe") for one in ledger.entries]
