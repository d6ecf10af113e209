"""How a run's recipe differs from that of a published result, in words.

The published recipes are files of params/, which the tasks' classes name.
"""
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from egokit.config.build import comparable, flatten, marked
from egokit.config.own_code import split_model_file
from egokit.config.registry import build_config
from egokit.config.resolve import project_root, read_yaml

WORDS = {  # wording for a value; the second {} is the plural's s. Other keys appear under their own names
    "data.eval_frames": "{} frame{}", "model.image_size": "frames of {} px", "data.eval_resize": "resized to {} px",
    "data.eval_max_tokens": "texts of at most {} token{}",
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
    model: str = "EgoVLPv2"       # whose number it is; "": of a model of which none is published
    frames: int = 0               # of a clip, where numbers are published for several; 0: as the recipe says
    md5: str = ""                 # first digits of the released file's, by which a renamed one is recognised
    other_names: tuple[str, ...] = ()  # of the released file
    conditions: tuple[tuple[str, object], ...] = ()  # keys at which its evaluation differs from the task's recipe
    source: str = ""              # where it is published
    families: tuple[str, ...] = ()  # of models as which egokit reads the released file

    def own_recipe(self) -> dict:
        """Return the keys at which its evaluation differs from the task's recipe, with their values."""
        return dict(self.conditions) | ({"data.eval_frames": self.frames} if self.frames else {})

    def is_of(self, section: dict) -> bool:
        """Return whether a section of metrics.json evaluates the released file: by its name, or what is recorded of it.

        A suffix, and the part of its sum in a name, may have been left out. A class of a user's, a name of the hub and
        a model of another family are other models, whatever they are called; EgoVLPv2's sections have no family.
        """
        init, md5, family = (section.get(key, "") for key in ("init", "init_md5", "family"))
        given = Path(init).name
        if not family or init.startswith("hf:") or split_model_file(init):
            return False
        if self.md5 and (md5.startswith(self.md5) or f"md5sum_{self.md5}" in given):
            return True
        return family.casefold() in map(str.casefold, self.families) and _stem(given) in {
            _stem(name) for name in (self.checkpoint, *self.other_names) if name}


def _sum_differs(result: Result, section: dict) -> str:
    """Return in words that a file has a released one's name, but another sum; "" if it is not known to be so."""
    known = re.findall("md5sum_([0-9a-f]+)", " ".join((result.checkpoint, *result.other_names)))
    name, md5 = _stem(Path(section.get("init", "")).name), section.get("init_md5", "")
    named = {_stem(one) for one in (result.checkpoint, *result.other_names) if "md5sum_" in one}
    if not md5 or name not in named or md5.startswith(tuple(known)):
        return ""
    return f"a file of the released one's name, with the MD5 sum {md5[:6]}, not {', '.join(known)}"


def _stem(name: str) -> str:
    """Return a released file's name without its suffix and the part of its sum."""
    return re.sub(r"(\.md5sum_[0-9a-f]+)?(\.(pth|pt|tar|safetensors))*$", "", name).casefold()


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
    if task and not result.model:
        phrases += [_in_words(key, recipe.get(key)) for key in
                    ("data.eval_frames", "model.image_size", "data.eval_resize", "data.eval_max_tokens")]
    elif task:
        name, sha256 = task.published_recipe(recipe)
        if _recipe_for(task, recipe).sha256 != sha256:
            phrases.append(f"compared with params/{name}.yaml as edited here, which is not the published recipe")
        phrases += compare_recipes(recipe, task, trained=False, conditions=result.own_recipe())
    else:
        phrases += [_in_words("data.eval_frames", section["frames"]), *(
            f"{key} {value}" for key, value in section["recipe"].items()
            if key.startswith("task.") and key not in ("task.name", "task.head_init"))]
    if result.metric.endswith(DUAL_SOFTMAX):
        phrases.append("dual softmax over the whole test set "
                       f"(temperature {recipe.get('task.dual_softmax')}), published without")
    encodes = not task or task.encodes(section["action"])
    start = ("" if encodes else "features of ") + checkpoint_name(section["init"])
    if trained:
        phrases += _training_differences(task, result, section, recipe, start, encodes)
    elif checkpoint_name(section["init"]) != result.checkpoint and not (result.conditions and result.is_of(section)):
        published = f", published for {result.checkpoint}" if result.checkpoint else ""
        phrases.append((f"checkpoint {start} ({section['init_sha256']})" if encodes else start) + published)
    if not trained and (other := _sum_differs(result, section)):
        phrases.append(other)
    if head := recipe.get("task.head_init"):
        phrases.append(f"head {'started from' if trained else 'of'} {checkpoint_name(head)}")
    if section.get("fresh_modules"):
        phrases.append(f"modules with random weights: {', '.join(section['fresh_modules'])}")
    precision = dict(result.conditions).get("evaluate.precision")
    if section["precision"] != (precision or "fp32"):
        phrases.append(f"evaluated in {section['precision']}" + (f", published in {precision}" if precision else ""))
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


def compare_recipes(recipe: dict, task: type, trained: bool, conditions: dict | None = None) -> list[str]:
    """Return in words the keys at which a recorded recipe, {"section.key": value}, differs from the published one.

    Args:
        task: the task's class, which names the published recipe.
        trained: compare the keys of the training; otherwise those that an evaluation depends on.
        conditions: keys and values that another model's publication has in place of that recipe's.
    """
    values, stated, _ = _recipe_for(task, recipe)
    values, stated = values | (conditions or {}), stated | set(conditions or ())
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


def checkpoint_name(init: str) -> str:
    """Return a short name: notebook/run for a run or its best.pt, else the file's name."""
    if init.startswith("hf:"):
        return init
    if own := re.fullmatch(r"(.+\.py):(\w+)(:.+)?", init):  # a class of a user's file
        return f"{Path(own[1]).name}:{own[2]}" + (f":{checkpoint_name(own[3][1:])}" if own[3] else "")
    path = Path(init.removesuffix("/checkpoints/best.pt"))
    is_file = path.suffix in (".pt", ".pth", ".tar", ".safetensors")
    return "/".join(path.parts[-1 if is_file else -2:]) or "random weights"
