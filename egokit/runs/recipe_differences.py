"""How a run's recipe differs from that of a published result, in words.

The published recipes are files of params/, which the tasks' classes name.
"""
import functools
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from egokit.config.build import comparable, flatten, marked
from egokit.config.registry import build_config
from egokit.config.resolve import project_root, read_yaml

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
    note: str = ""                # in what the published number itself differs from any run here


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


def _recipe_for(task: type, recipe: dict) -> Recipe:
    """Return the published recipe that a run's is compared with."""
    return published_recipe(task.published_recipe(recipe)[0], project_root() / "params")


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
        name, sha256 = task.published_recipe(recipe)
        if _recipe_for(task, recipe).sha256 != sha256:
            phrases.append(f"compared with params/{name}.yaml as edited here, which is not the published recipe")
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
        phrases += _training_differences(task, result, section, recipe, start, encodes)
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
    return [*phrases, result.note] if result.note else phrases


def _training_differences(task: type | None, result: Result, section: dict, recipe: dict, start: str,
                          encodes: bool) -> list[str]:
    """Return the same for the training from checkpoint `start`.

    It always says on which set's scores the checkpoint was chosen.
    """
    if task:
        init = _recipe_for(task, recipe).values["init"]
        published_start = f", published from {init}" if start != init else ""
        begun = f"fine-tuned here from {start}{published_start}" if encodes else f"a head trained here on {start}"
        phrases = [begun, *compare_recipes(recipe, task, trained=True)]
    else:
        keys = ("train.epochs", "train.batch_size", "optim.lr")
        phrases = [f"trained here from {start}", *(_in_words(key, recipe.get(key)) for key in keys)]
    if (validations := recipe.get("selection.validations")) not in (0, 1):
        phrases.append(f"best of {validations} validations on the {recipe.get('selection.split')} set"
                       + (", the paper does not say how its checkpoint was chosen" if task and not result.note else ""))
    if section.get("bad_samples"):
        phrases.append(f"{section['bad_samples']} samples could not be read")
    return phrases


def compare_recipes(recipe: dict, task: type, trained: bool) -> list[str]:
    """Return in words the keys at which a recorded recipe, {"section.key": value}, differs from the published one.

    Args:
        task: the task's class, which names the published recipe.
        trained: compare the keys of the training; otherwise those that an evaluation depends on.
    """
    values, stated, _ = _recipe_for(task, recipe)
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
    is_file = path.suffix in (".pt", ".pth", ".tar", ".safetensors")
    return "/".join(path.parts[-1 if is_file else -2:]) or "random weights"
