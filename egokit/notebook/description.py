"""The description of a config: what differs from the defaults, and its checkpoint's shape."""
from egokit.config.build import flatten, nest, to_dict
from egokit.config.init_forms import split_hub
from egokit.config.names import printable, shortened
from egokit.config.own_code import split_model_file
from egokit.config.registry import find
from egokit.config.resolve import project_root
from egokit.config.schema import Config, ModelConfig
from egokit.train.batch_plan import plan_batch

ORDER = ("task", "init", "seed", "model", "data", "optim", "train", "evaluate", "launch", "site")
WIDTH = 110  # characters of a line, which JupyterLab shows without a scroll bar
INDENT = 10  # of what belongs to a section


def describe(config: Config) -> str:
    """Return what a config changes of the defaults, a paragraph for each section.

    Below `init` stands what its file says of the model, because a checkpoint brings its own shape, whatever the section
    `model` says. The last line says how training spreads its batch. Files in the project's folder are named from there.

    Args:
        config: of an opened run.

    Returns:
        Lines of at most WIDTH characters, unless a single value is longer.
    """
    lines = []
    for section, values in _changed(config).items():
        if isinstance(values, dict):
            named = [f"{values.pop('name')}"] if "name" in values else []
            lines += _listed(section, [*named, *(f"{key}={value}" for key, value in values.items())])
        else:
            lines += _listed(section, [str(values)])
        if section == "init":
            lines += _listed("", _checkpoint(config.init))
    if "train" in find(config.task.name).actions():
        lines.append(f"{'plan':{INDENT - 1}} {plan_batch(config)}")
    return "\n".join(map(printable, lines))


def _changed(config: Config) -> dict:
    """Return the sections with keys that differ from their defaults, or have none, in ORDER."""
    own = type(config.task)
    required = {key: getattr(config.task, key) for key, field in own.__pydantic_fields__.items() if field.is_required()}
    defaults = flatten(to_dict(Config(task=own(**required))))
    root = f"{project_root()}/"
    changed = nest({key: value.removeprefix(root) if isinstance(value, str) else value
                    for key, value in flatten(to_dict(config)).items()
                    if value != defaults[key] or key.removeprefix("task.") in required})
    return {section: changed[section] for section in sorted(changed, key=ORDER.index)}


def _listed(head: str, items: list[str]) -> list[str]:
    """Return items as lines of at most WIDTH, the first behind a section's name; no item is broken."""
    lines, line = [], f"{head:{INDENT - 1}}"
    for number, item in enumerate(items):
        item += "," if number < len(items) - 1 and not item.endswith(":") else ""
        if len(line) >= INDENT and len(line) + 1 + len(item) > WIDTH:
            lines.append(line)
            line = " " * (INDENT - 1)
        line += f" {item}"
    return [*lines, line]


def _checkpoint(init: str) -> list[str]:
    """Return what the file of `init` says of its model: its family, and its shape where it isn't the default."""
    if split_hub(init) or split_model_file(init):
        return ["of the Hugging Face hub" if split_hub(init) else "a class of your own file"]
    from egokit.model import sources
    try:
        told = sources.describe(init)
    except (ValueError, OSError) as error:
        return [shortened(f"not read: {error}".partition(": give")[0], 200)]  # the job's error says what to do
    if not told.shape:
        return [f"a model of the family {sources.WRITTEN[told.family]}", f"image_size={told.image_size}"]
    default, computed = ModelConfig(), {"checkpointing", "attention", "half_residual"}
    differs = [f"{key}={value}" for key, value in vars(told.shape).items()
               if key not in computed and value != getattr(default, key)]
    return ["an EgoVLPv2 model of the default shape"] if not differs else ["an EgoVLPv2 model of its own shape:",
                                                                            *differs]
