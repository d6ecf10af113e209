"""`egokit compare`: several models through one benchmark, then their numbers, and how sure the differences are.

Each model is an ordinary evaluation in a run folder of its own, so a second call finds what the first one has done.
"""
import argparse
import collections
import dataclasses
import hashlib
import os
import re

from egokit.config.build import ConfigError, flatten
from egokit.config.registry import find
from egokit.config.resolve import check_run_name, outputs_folder, parse_overrides, resolve
from egokit.jobs import launch
from egokit.jobs.preflight import expect_ready
from egokit.notebook import headless
from egokit.notebook.open_run import open_run
from egokit.runs import ledger
from egokit.runs.explain import explained
from egokit.runs.ledger_table import format_ledger
from egokit.runs.shown_text import shown

LONGEST = 60  # characters of a model's part of a run folder's name
ERRORS = (ValueError, OSError, launch.JobFailed, launch.NotSubmitted)  # of one model, which stop no other


@dataclasses.dataclass
class Model:
    """One of the models that are compared."""
    init: str                       # as it was given
    name: str                       # a short one, unlike the others'
    keys: dict[str, object] = dataclasses.field(default_factory=dict)  # of the recipe, as its family has them
    job: launch.Handle | None = None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared, checked."""
    notebook: str
    params: str
    site: str
    overrides: dict[str, object]    # the user's
    run_name: str
    section: str                    # of each run's metrics.json
    on_slurm: bool
    models: list[Model]

    def config(self, model: Model):
        """Return a model's config."""
        return resolve(self.params, self.site, self.values(model), self.run_of(model))

    def values(self, model: Model) -> dict[str, object]:
        """Return a model's overrides: its family's keys, the user's in place of these, and its init."""
        return model.keys | self.overrides | {"init": model.init}

    def run_of(self, model: Model) -> str:
        """Return the name of a model's run folder."""
        return f"{self.run_name}-{model.name}"


def check(arguments: argparse.Namespace) -> Comparison:
    """Check what the models have in common before anything starts.

    Args:
        arguments: notebook, init (a list), params, site, overrides and run_name, as the command line has them.

    Raises:
        ConfigError: a notebook, recipe, key or value is wrong; or a model is named twice.
    """
    path = headless.notebook_path(arguments.notebook)
    given = {key: value for key in ("site", "overrides") if (value := getattr(arguments, key)) is not None}
    defaults = headless.read_parameters(path, given)
    site, overrides = defaults["site"], flatten(parse_overrides(defaults["overrides"]))
    check_run_name(arguments.run_name)
    if "init" in overrides:
        raise ConfigError("overrides: init is what is compared; give each model as --init")
    params = arguments.params or defaults["params"]
    config = resolve(params, site, overrides, arguments.run_name)
    task = find(config.task.name)
    if not arguments.params and not config.site.toy and task.recipe:
        params = task.recipe  # the notebook's own is for the embedded data set
        config = resolve(params, site, overrides, arguments.run_name)
    if "evaluate" not in task.actions() or not task.encodes("evaluate"):
        raise ConfigError(f"notebook {path.stem}, recipe {params}: an evaluation of task {config.task.name!r} runs no "
                          "encoder, so there are no models to compare: expected a task that evaluates its `init`")
    inits = [_resolved(init, params, site, overrides) for init in arguments.init]
    places = [os.path.realpath(init) if os.path.lexists(init) else init for init in inits]  # other forms stay
    if twice := [init for init, place in zip(arguments.init, places, strict=True) if places.count(place) > 1]:
        raise ConfigError(f"--init {shown(twice[0])} is named twice{'' if len({*twice}) == 1 else ' in other words'}: "
                          "expected different models")
    names = short_names(inits)
    models = [Model(init, name) for init, name in zip(arguments.init, names, strict=True)]
    return Comparison(path.stem, params, site, overrides, arguments.run_name, task.actions()["evaluate"],
                      config.launch.cluster == "slurm", models)


def _resolved(init: str, params: str, site: str, overrides: dict) -> str:
    """Return `init` as a config has it; one that is wrong as it is, to be told with the model."""
    try:
        return resolve(params, site, overrides | {"init": init}, "compare").init
    except (ValueError, OSError):
        return init


def short_names(inits: list[str]) -> list[str]:
    """Return a short name of each model, which can be a part of a folder's name, no two alike."""
    from egokit.model import sources
    names = []
    for init in inits:
        try:
            name = sources.name(init)
        except (ValueError, OSError):  # no file can be called so, which is told with the model
            name = init
        plain = re.sub(r"(\.md5sum_\w+)?(\.(pth|pt|tar|safetensors))?$", "", name)
        names.append(re.sub(r"[^A-Za-z0-9._]+", "-", plain)[-LONGEST:].strip("-.") or "model")
    folded = collections.Counter(name.casefold() for name in names)  # some file systems don't tell A from a
    return [f"{name}-{hashlib.sha256(init.encode()).hexdigest()[:6]}" if folded[name.casefold()] > 1 else name
            for name, init in zip(names, inits, strict=True)]


def run(comparison: Comparison, wait: bool = False, abreast: int = 1) -> int:
    """Evaluate the models, print their table, and return the exit code: 1 if one failed.

    On SLURM all are submitted at once. Elsewhere they run one after another, and are waited for.

    Args:
        comparison: see `check`.
        wait: whether to wait for SLURM's jobs, too.
        abreast: how many run at once on this machine.
    """
    for model in comparison.models:
        prepare(comparison, model)
    models = [model for model in comparison.models if not model.error]
    at_once = max(1, len(models)) if comparison.on_slurm else abreast
    for first in range(0, len(models), at_once):
        part = models[first:first + at_once]
        for model in part:
            submit(comparison, model)
        for model in part if wait or not comparison.on_slurm else []:
            if model.job:
                finish(model)
    print(report(comparison), flush=True)
    return int(any(model.error for model in comparison.models))


def prepare(comparison: Comparison, model: Model) -> None:
    """Set a model's own keys; what is wrong with it stands in `error`, before another one's hours begin."""
    try:
        model.keys = own_keys(comparison, model)
        if not (outputs_folder() / comparison.notebook / comparison.run_of(model) / "metrics.json").is_file():
            expect_ready(comparison.config(model), "evaluate")
    except ERRORS as error:
        failed(model, error)


def submit(comparison: Comparison, model: Model) -> None:
    """Start a model's evaluation, or attach to it; what is wrong with it stands in `error`."""
    try:
        opened = open_run(comparison.params, comparison.site, comparison.values(model), comparison.run_of(model),
                          comparison.notebook)
        model.job = launch.submit(opened.config, opened, "evaluate", comparison.section)
        print(f"{model.name}: {model.job}", flush=True)
    except ERRORS as error:
        failed(model, error)


def finish(model: Model) -> None:
    """Wait for a model's evaluation."""
    try:
        model.job.wait()
    except ERRORS as error:
        failed(model, error)


def failed(model: Model, error: Exception) -> None:
    """Record why a model has no numbers, and say it."""
    model.error = shown(" ".join(str(explained(error)).split()))
    print(f"{model.name}: failed: {model.error}", flush=True)


def own_keys(comparison: Comparison, model: Model) -> dict[str, object]:
    """Return the keys that a model's family has for its own evaluation, and the user doesn't state.

    For a released file, the number of frames is one for which a number is published, if the recipe's is none of these.
    """
    from egokit.model import sources
    config = comparison.config(model)
    described = sources.describe(config.init)
    keys = dict(described.recommended)
    task = find(config.task.name)
    section = {"init": config.init, "family": described.family}
    published = {peer.frames for peer in task.peers if peer.is_of(section)}
    if published and config.data.eval_frames not in published:
        keys["data.eval_frames"] = max(published)
    flat = flatten(keys)
    return {key: value for key, value in flat.items() if key not in comparison.overrides}


def report(comparison: Comparison) -> str:
    """Return the table of the models, what failed or goes on, their own keys, and the significance."""
    finished = [model for model in comparison.models if model.job and not model.error and model.job.metrics()]
    entries = ledger.read_runs(model.job.run.path / "metrics.json" for model in finished)
    out = [format_ledger(entries, unmeasured=False)] if entries.entries or entries.left_out else []
    lines = [f"{model.name}: failed: {model.error}" if model.error else f"{model.name}: {model.job}"
             for model in comparison.models if model not in finished]
    lines += [f"{model.name}: {' '.join(f'{key}={value}' for key, value in model.keys.items())}, as its family's "
              "own evaluation has it" for model in finished if model.keys]
    return "\n\n".join(["", *out, *(["\n".join(lines)] if lines else []), *significance_of(comparison, finished,
                                                                                           entries)])


def significance_of(comparison: Comparison, finished: list[Model], entries: ledger.Ledger) -> list[str]:
    """Return how sure the differences between the models are, as text; or why that can't be said."""
    from egokit import tasks
    from egokit.tasks import significance
    if len(finished) < 2:
        return []
    names = {row.result.name for row in entries.entries}  # what the table shows
    metrics = list(dict.fromkeys(row.result.metric for row in [*entries.entries, *entries.beside]
                                 if row.result.name in names))
    task, each, lines = tasks.make(comparison.config(finished[0])), {}, []
    labels = labels_of(finished, entries)
    for model in finished:
        try:
            each[labels[model.name]] = significance.queries_of(task, model.job.run, comparison.section)
        except ERRORS as error:
            lines.append(f"{model.name}: {shown(explained(error))}")
    found = []
    try:
        found = significance.differences(each, metrics) if each else []
    except ValueError as error:  # the models' own numbers stand above
        lines.append(f"the significance of the differences is not known: {shown(error)}")
    if found:
        lines.append(significance.format_differences(found))
    elif not lines:
        lines.append(f"task {task.config.task.name} doesn't say what a query contributes to a metric (per_query): the "
                     "significance of the differences is not known")
    return ["\n".join(lines)]


def labels_of(models: list[Model], entries: ledger.Ledger) -> dict[str, str]:
    """Return each model's name in the table, by its short name; the short one where two would be alike."""
    named = {row.run.partition("/")[2]: row.model for row in reversed(entries.entries)}
    labels = [named.get(model.job.run.path.name, model.name) for model in models]
    return {model.name: label if labels.count(label) == 1 else model.name
            for model, label in zip(models, labels, strict=True)}
