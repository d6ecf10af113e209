"""The ledger: published numbers beside those of every run, and how the recipes differ.

It is read from metrics.json. The published numbers are those of the tasks' classes, and their recipes are in params/.
"""
import functools
import hashlib
import json
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from egokit.config.build import ConfigError, comparable, flatten, marked
from egokit.config.registry import TASKS, build_config, find
from egokit.config.resolve import outputs_folder, project_root, read_yaml
from egokit.runs.run_folder import AGAIN, Run
from egokit.runs.shown_text import shown

# fields of a section of metrics.json that are read here, and their types; all are there if "recipe" is
FIELDS = {"recipe": dict, "action": str, "task": str, "toy": bool, "samples": int, "frames": int, "precision": str,
          "init": str, "init_sha256": str, "data": dict}
WORDS = {  # wording for a value; the second {} is the plural's s. Other keys appear under their own names
    "data.eval_frames": "{} frame{}", "model.image_size": "frames of {} px", "data.eval_resize": "resized to {} px",
    "train.epochs": "trained {} epoch{}", "train.batch_size": "batch {}", "optim.lr": "learning rate {}",
    "data.frames": "trained on {} frame{}", "train.precision": "trained in {}"}
NOT_PUBLISHED = {"evaluate.precision", "data.reader",  # EgoVLPv2's paper doesn't give them
                 "task.dual_softmax"}  # its numbers are rows of their own
DUAL_SOFTMAX = "_dual_softmax"  # suffix of metrics that are computed with dual softmax; EgoVLPv2's numbers are without


class Result(NamedTuple):
    """A metric of a benchmark that tables show: where a run's metrics.json has it, and what is published."""
    name: str                     # as readers know it
    section: str                  # section of the run's metrics.json
    metric: str                   # key in that section
    published: float | None = None  # %, on the real data set; None: nothing is
    checkpoint: str = ""          # released file that has the published number
    chance: str = ""              # key of the chance level, in the section "chance"
    key: str = ""                 # key in the demo's summary.json
    in_ledger: bool = True        # whether the ledger shows it, too


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


class Recipe(NamedTuple):
    """A published recipe, a file of params/."""
    values: dict        # its config, flat
    stated: set[str]    # the keys that the file states; others have their defaults
    sha256: str         # 12 digits of the hash of what it states; comments, and keys that change no number, don't count


@functools.cache
def published_recipe(name: str, params: Path) -> Recipe:
    """Return the recipe `name` of the folder params/."""
    plain = read_yaml(name, params, "recipe")
    local = marked("local")
    counted = {key: value for key, value in flatten(plain).items() if key not in local}
    digest = hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]
    return Recipe(comparable(build_config(plain, f" (in {name})")), set(flatten(plain)), digest)


def recipe_differences(task: type | None, result: Result, section: dict) -> list[str]:
    """Return in words how a run's recipe differs from that of a published result.

    Args:
        task: the class of a registered task; None for a user's.
        section: the run's section of metrics.json.
    """
    phrases = ["toy data"] if section.get("toy") else []
    if "recipe" not in section:
        return [*phrases, "its recipe is not recorded"]
    recipe, trained = flatten(section["recipe"]), section["action"] == "train"
    if task and task.samples and section["samples"] != task.samples:
        phrases.append(f"{section['samples']:,} {task.unit}, published on {task.samples:,}")
    if task:
        if published_recipe(task.recipe, project_root() / "params").sha256 != task.recipe_sha256:
            phrases.append(f"compared with params/{task.recipe}.yaml as edited here, which is not the published recipe")
        phrases += compare_recipes(recipe, task, trained=False)
    else:
        phrases += [_in_words("data.eval_frames", section["frames"]), *(
            f"{key} {value}" for key, value in section["recipe"].items()
            if key.startswith("task.") and key not in ("task.name", "task.head_init"))]
    if result.metric.endswith(DUAL_SOFTMAX):
        phrases.append("dual softmax over the whole test set "
                       f"(temperature {recipe.get('task.dual_softmax')}), published without")
    encodes = not task or task.encodes(section["action"])
    start = ("" if encodes else "features of ") + _checkpoint_name(section["init"])
    if trained:
        phrases += _training_differences(task, section, recipe, start, encodes)
    elif _checkpoint_name(section["init"]) != result.checkpoint:
        published = f", published for {result.checkpoint}" if result.checkpoint else ""
        phrases.append((f"checkpoint {start} ({section['init_sha256']})" if encodes else start) + published)
    if head := recipe.get("task.head_init"):
        phrases.append(f"head {'started from' if trained else 'of'} {_checkpoint_name(head)}")
    if section.get("fresh_modules"):
        phrases.append(f"modules with random weights: {', '.join(section['fresh_modules'])}")
    if section["precision"] != "fp32":
        phrases.append(f"evaluated in {section['precision']}")
    if not task:
        phrases += [] if section["data"] else ["its annotation files are not recorded"]
        phrases.append(f"defined in {Path(section['task'].rpartition(':')[0]).name} ({section.get('task_sha256')})")
    return phrases


def _training_differences(task: type | None, section: dict, recipe: dict, start: str, encodes: bool) -> list[str]:
    """Return the same for the training from checkpoint `start`.

    The ledger always says that the checkpoint was chosen by its scores on the test set.
    """
    if task:
        init = published_recipe(task.recipe, project_root() / "params").values["init"]
        published_start = f", published from {init}" if start != init else ""
        begun = f"fine-tuned here from {start}{published_start}" if encodes else f"a head trained here on {start}"
        phrases = [begun, *compare_recipes(recipe, task, trained=True)]
    else:
        keys = ("train.epochs", "train.batch_size", "optim.lr")
        phrases = [f"trained here from {start}", *(_in_words(key, recipe.get(key)) for key in keys)]
    if (validations := recipe.get("selection.validations")) not in (0, 1):
        phrases.append(f"best of {validations} validations on the {recipe.get('selection.split')} set"
                       + (", the paper does not say how its checkpoint was chosen" if task else ""))
    if section.get("bad_samples"):
        phrases.append(f"{section['bad_samples']} samples could not be read")
    return phrases


def compare_recipes(recipe: dict, task: type, trained: bool) -> list[str]:
    """Return in words the keys at which a recorded recipe, {"section.key": value}, differs from the published one.

    Args:
        task: the task's class, which names the published recipe.
        trained: compare the keys of the training; otherwise those that an evaluation depends on.
    """
    values, stated, _ = published_recipe(task.recipe, project_root() / "params")
    training = {key for key in values if key.startswith(("data.", "optim.", "train.", "task.", "model.half_residual"))}
    scored = marked("scored", task.Params)
    keys = training - scored - {"task.name"} - marked("input", task.Params) if trained else scored
    # a default that was not recorded is older than the key
    different = {key for key in keys - NOT_PUBLISHED if recipe.get(key) != values[key]
                 and (key in recipe or key in stated)}
    return [f"{_in_words(key, recipe.get(key))}, {'published' if key in stated else 'by default'} {values[key]}"
            for key in dict.fromkeys([*WORDS, *values]) if key in different]


def _in_words(key: str, value) -> str:
    shown = "(not recorded)" if value is None else value
    return WORDS.get(key, f"{key} {{}}").format(shown, "" if value == 1 else "s")


def _checkpoint_name(init: str) -> str:
    """Return a short name: notebook/run for a run or its best.pt, else the file's name."""
    path = Path(init.removesuffix("/checkpoints/best.pt"))
    return "/".join(path.parts[-1 if path.suffix in (".pt", ".pth", ".safetensors") else -2:]) or "random weights"


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
