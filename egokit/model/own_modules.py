"""Modules that a task adds to the model: its head, and others, such as a learnable temperature.

The model holds them as `model.head` and `model.own`, so that they are trained, averaged over ranks, saved and loaded
with it. By name, the head is the module HEAD here.
"""
import torch
from torch import Tensor, nn

from egokit.config.build import ConfigError
from egokit.model.checkpoints import WeightsError
from egokit.model.class_head import ClassHead, difference
from egokit.model.released_keys import HEAD, PREFIX
from egokit.runs.shown_text import shown

DEEPEST = 32  # modules within modules


def refuse_trained(task: type, name: str, value) -> None:
    """Raise ConfigError for a parameter, or a module with some, that is put on a task, or into its list or dict."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    for item in items:
        has_parameters = isinstance(item, nn.Module) and any(True for _ in item.parameters())
        if has_parameters or (isinstance(item, Tensor) and item.requires_grad):
            raise ConfigError(f"{task.__name__}.{name} is a {type(item).__name__} on the task, which nothing would "
                              "train or save: return it from the method `head`, and use it as model.head, or from "
                              "`modules`, and use it as model.own[name]")


def split_own(state: dict[str, Tensor], path="the checkpoint") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a state dict in two parts: the model's keys, and those of a task's modules by `<module>.<parameter>`.

    A head has the name HEAD; earlier versions had it under PREFIX.

    Raises:
        WeightsError: a key of the head is there by both names.
    """
    theirs, own = {}, {}
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        if not key.startswith((PREFIX, f"{HEAD}.")):
            theirs[key] = value
        elif name in own:
            first = shown(name, 80)
            raise WeightsError(f"{path}: {PREFIX}{first} is a second one for {first}; delete one of them")
        else:
            own[name] = value
    return theirs, own


def current(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's state dict under today's keys: earlier versions had a task's head under PREFIX."""
    old = f"{PREFIX}{HEAD}."
    return {key.removeprefix(PREFIX) if key.startswith(old) else key: value for key, value in state.items()}


def in_place(key: str) -> str:
    """Return the key that a model's state dict has for the key of a task's module."""
    return key if key.partition(".")[0] == HEAD else PREFIX + key


class Held(nn.Module):
    """The tensors of a module whose code is not at hand, as buffers by their names."""


def hold(model, own: dict[str, Tensor]) -> None:
    """Let a model hold the tensors of a task's modules whose code is not at hand.

    Raises:
        WeightsError: a key is no place in modules.
    """
    model.own = nn.ModuleDict()
    if any(key.startswith(f"{HEAD}.") for key in own):
        model.head = Held()
    for key, value in own.items():
        *path, leaf = key.split(".")
        if path[:1] == [HEAD]:
            place, path = model.head, path[1:]
        else:
            place = model.own
        try:
            for name in path if len(path) <= DEEPEST else [""]:
                if name not in place._modules:
                    place.add_module(name, Held())
                place = place._modules[name]
            place.register_buffer(leaf, value)
        except KeyError as error:  # PyTorch's, for a name that is empty or taken
            raise WeightsError(f"{in_place(key)[:80]} is no key of a task's own module ({error.args[0]}): expected "
                               f"{HEAD}.<parameter> or {PREFIX}<module>.<parameter>, of at most {DEEPEST} modules in "
                               "each other") from None


def saved_state(model) -> dict[str, Tensor]:
    """Return the tensors of a model's head and own modules, by `<module>.<parameter>`."""
    return {f"{name}.{key}": value for name, module in named(model).items()
            for key, value in module.state_dict().items()}


def named(model) -> dict[str, nn.Module]:
    """Return the modules of a model's task by name, its head as HEAD."""
    return ({HEAD: model.head} if model.head is not None else {}) | dict(model.own.items())


def attach(model, task) -> list[str]:
    """Give a model the head and modules of a task, with the weights that the model's checkpoint has for them.

    Args:
        model: an EgoVLP or a FeatureModel; what its checkpoint has of another task is left out, and named. Another
            Dual stays as it is.
        task: `task.head(model)` and `task.modules(model)` make them; the random numbers in it depend on the seed alone.

    Returns:
        The names of modules that start fresh, because the checkpoint has no weights for them.

    Raises:
        ConfigError: `task.head` or `task.modules` gives something else than a module, or modules by names.
        WeightsError: a module does not fit the checkpoint's weights.
    """
    if not getattr(model, "fuses", True):
        _expect_none(model, task)
        return []
    saved, fresh = saved_state(model), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.config.seed)
        head = task.head(model)
        made = task.modules(model)
    kind = type(task).__name__
    if head is not None and not isinstance(head, nn.Module):
        raise ConfigError(f"{kind}.head gives a {type(head).__name__}: expected a module, or None")
    if HEAD in made:
        raise ConfigError(f"{kind}.modules gives {HEAD!r}: return it from the method `head(model)` instead, and use it "
                          "as model.head")
    for name, module in made.items():
        if not isinstance(module, nn.Module) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise ConfigError(f"{kind}.modules gives {name!r}, a {type(module).__name__}: expected "
                              "names such as 'encoder' and modules (for numbers, nn.ParameterDict)")
    modules = ({} if head is None else {HEAD: head}) | made
    for name, module in modules.items():
        state = {key.partition(".")[2]: value for key, value in saved.items() if key.startswith(f"{name}.")}
        if not state:
            fresh += [name] if module.state_dict() else []
            continue
        source = getattr(model, "source", "") or task.config.init or "the checkpoint"
        if name == HEAD:
            _check_classes(model.head, module, source)
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(f"module {name!r} of task {task.config.task.name!r} does not fit its weights in "
                               f"{source}: give the keys of task with which it was trained (they are in its run's "
                               f"params.yaml); {error}") from error
    if other := sorted({key.partition(".")[0] for key in saved} - modules.keys()):
        print(f"the checkpoint's modules of another task are left out: {', '.join(other)}", flush=True)
    model.head = None if head is None else head.to(model.device)
    model.own = nn.ModuleDict(made).to(model.device)
    return fresh


def _expect_none(model, task) -> None:
    """Raise ConfigError if a task adds modules to a model that egokit neither trains nor saves."""
    head, made = task.head(model), task.modules(model)
    if head is not None or made:
        names = ", ".join([HEAD] * (head is not None) + [*made])
        raise ConfigError(f"{type(task).__name__} adds {names} to the model, which only a trained EgoVLPv2 model has, "
                          f"but init names {model.family}: use an EgoVLPv2 checkpoint, or train a head on its stored "
                          "features")


def _check_classes(saved: nn.Module, given: nn.Module, source: str) -> None:
    """Check that a head has the classes of the one whose weights it takes; without words of its own it takes these."""
    if not (isinstance(saved, ClassHead) and isinstance(given, ClassHead)):
        return
    if problem := difference(saved, given):
        raise WeightsError(f"the head in {source} is not the task's: {problem}; give the answers with which it was "
                           "trained, or start from the checkpoint without its head (docs/checkpoints.md)")
    given.classes = given.classes or saved.classes
