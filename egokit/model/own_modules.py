"""Modules that a task adds to the model, such as a head or a learnable temperature.

The model holds them as `model.own`, so that they are trained, averaged over ranks, saved and loaded with it.
"""
import torch
from torch import Tensor, nn

from egokit.config.build import ConfigError
from egokit.model.checkpoints import WeightsError
from egokit.model.released_keys import PREFIX

DEEPEST = 32  # modules within modules


def refuse_trained(task: type, name: str, value) -> None:
    """Raise ConfigError for a parameter, or a module with some, that is put on a task, or into its list or dict."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    for item in items:
        has_parameters = isinstance(item, nn.Module) and any(True for _ in item.parameters())
        if has_parameters or (isinstance(item, Tensor) and item.requires_grad):
            raise ConfigError(f"{task.__name__}.{name} is a {type(item).__name__} on the task, which nothing would "
                              "train or save: return it from the method `modules`, and use it as model.own[name]")


def split_own(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a state dict in two parts: the model's keys, and those of own modules without PREFIX."""
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    return {key: value for key, value in state.items() if not key.startswith(PREFIX)}, own


def hold(model, own: dict[str, Tensor]) -> None:
    """Let a model hold the tensors of own modules whose code is not at hand, as plain buffers by their names.

    Raises:
        WeightsError: a key is no place in modules.
    """
    model.own = nn.ModuleDict()
    for key, value in own.items():
        *path, leaf = key.split(".")
        place = model.own
        try:
            for name in path if len(path) <= DEEPEST else [""]:
                if name not in place._modules:
                    place.add_module(name, nn.Module())
                place = place._modules[name]
            place.register_buffer(leaf, value)
        except KeyError as error:  # PyTorch's, for a name that is empty or taken
            raise WeightsError(f"{PREFIX}{key[:80]} is no key of a task's own module ({error.args[0]}): expected "
                               f"{PREFIX}<module>.<parameter>, of at most {DEEPEST} modules in each other") from None


def attach(model, task) -> list[str]:
    """Give a model the modules of a task, with the weights that the model's checkpoint has for them.

    Args:
        model: an EgoVLP; modules that its checkpoint has of another task are left out, and named.
        task: `task.modules(model)` makes them; the random numbers in it depend on the seed alone.

    Returns:
        The names of modules that start fresh, because the checkpoint has no weights for them.

    Raises:
        ConfigError: `task.modules` gives something else than modules by names.
        WeightsError: a module does not fit the checkpoint's weights.
    """
    saved, fresh = model.own.state_dict(), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.config.seed)
        made = task.modules(model)
    for name, module in made.items():
        if not isinstance(module, nn.Module) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise ConfigError(f"{type(task).__name__}.modules gives {name!r}, a {type(module).__name__}: expected "
                              "names such as 'head' and modules (for numbers, nn.ParameterDict)")
    modules = nn.ModuleDict(made)
    for name, module in modules.items():
        state = {key.partition(".")[2]: value for key, value in saved.items() if key.startswith(f"{name}.")}
        if not state:
            fresh += [name] if module.state_dict() else []
            continue
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            source = getattr(model, "source", "") or task.config.init or "the checkpoint"
            raise WeightsError(f"module {name!r} of task {task.config.task.name!r} does not fit its weights in "
                               f"{source}: give the keys of task with which it was trained (they are in its run's "
                               f"params.yaml); {error}") from error
    if other := sorted({key.partition(".")[0] for key in saved} - modules.keys()):
        print(f"the checkpoint's modules of another task are left out: {', '.join(other)}", flush=True)
    model.own = modules.to(model.device)
    return fresh
