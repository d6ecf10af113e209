"""Conversion between Config and plain dicts, strict on names and types; comparison of configs.

A "plain" config is a nested dict of sections and keys, as YAML and JSON hold it.
A "flat" one is {"section.key": value}.
"""
import dataclasses
import difflib
import typing
import warnings

import pydantic

from egokit.config.names import shortened
from egokit.config.schema import RENAMED, Config, ModelConfig, OptimConfig, TaskConfig

PHRASES = {  # pydantic's kind of error: what was expected, in fewer words than pydantic's
    "greater_than_equal": "{ge:g} or more", "greater_than": "more than {gt:g}", "less_than_equal": "{le:g} or less",
    "tuple_type": "a list", "value_error": "{error}"}


class ConfigError(ValueError):
    """A mistake in a parameter, key or path; the message names it and says what to do."""


def did_you_mean(word: str, known) -> str:
    """Return a hint for an error message: "did you mean …?", or the list of known names.

    Args:
        word: the name that was given.
        known: an iterable of the names that exist.
    """
    names = sorted(str(name) for name in known)
    close = difflib.get_close_matches(str(word), names, n=1) or [
        name for name in names if str(word).startswith(f"{name}_")]  # a longer, older name
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names)


def build(cls, values: dict, where: str = "", source: str = "", partial: bool = False) -> typing.Any:
    """Build a section, or the whole Config, from plain values; names, types, choices and bounds are checked.

    Args:
        cls: Config, or the class of one of its sections.
        values: key -> value; keys that are absent keep their defaults.
        where: name of the section that `values` fill, for messages; "" for the whole Config.
        source: where the values stand, for messages, for example " (in overrides)".
        partial: values are only checked: keys without a default may be absent.

    Raises:
        ConfigError: a key is unknown, or its value has the wrong type or is out of bounds.
    """
    try:
        return cls(**{str(key): value for key, value in values.items()})
    except pydantic.ValidationError as error:
        for problem in error.errors():
            given = not problem["loc"] or problem["loc"][0] in values
            if given or problem["type"] != "missing" or not partial:
                source = source if given or problem["type"] == "missing" else " (its default)"
                raise ConfigError(_message(cls, problem, where, source)) from None


def _message(cls, error: dict, where: str, source: str) -> str:
    """Return what is wrong with which key, and what was expected, from pydantic's error."""
    last = error["loc"][-1] if error["loc"] else ""
    kind, names = cls, [where]
    for part in error["loc"]:  # the rest are unknown keys, and places within a value
        fields = getattr(kind, "__pydantic_fields__", {})
        if part not in fields:
            break
        kind, names = fields[part].annotation, [*names, part]
    name, value = ".".join(filter(None, names)) or "the config", shortened(repr(error["input"]))
    if error["type"] == "unexpected_keyword_argument":
        earlier = [old.partition(".")[2] for old in RENAMED if old.startswith(f"{name}.")]
        hint = did_you_mean(last, [*kind.__pydantic_fields__, *earlier])
        if hint.startswith("known"):
            hint = did_you_mean(last, kind.__pydantic_fields__)
        return f"unknown key {shortened('.'.join(filter(None, [*names, str(last)])))!r}{source}: {hint}"
    if error["type"] == "missing":
        if last == names[-1]:
            return f"{name}{source} is missing: this key has no default, so give it a value"
        return f"{name}{source}: expected {len(typing.get_args(kind))} values, got {value}"
    if error["type"] == "literal_error" and typing.get_origin(kind) is typing.Literal:
        return f"{name}{source}: {value}: {did_you_mean(error['input'], typing.get_args(kind))}"
    if error["type"] == "dataclass_type":
        keys = ", ".join(getattr(kind, "__pydantic_fields__", ()))
        return f"{name}{source}: expected a section with keys {keys}; got {value}"
    phrase = PHRASES.get(error["type"])
    expected = phrase.format(**error.get("ctx", {})) if phrase else error["msg"].removeprefix("Input should be ")
    return f"{name}{source}: expected {expected}, got {value}"


def check_shape(shape: ModelConfig) -> None:
    """Raise ConfigError if a network's dimensions don't fit together."""
    if shape.width % shape.heads or shape.image_size % shape.patch_size or shape.num_fused_layers > shape.depth:
        raise ConfigError(f"model: expected width ({shape.width}) a multiple of heads ({shape.heads}), "
                          f"image_size ({shape.image_size}) of patch_size ({shape.patch_size}), "
                          f"and num_fused_layers ({shape.num_fused_layers}) at most depth ({shape.depth})")


def check_rate(optim: OptimConfig) -> None:
    """Raise ConfigError if the learning rate is to be scaled, but not from which batch."""
    if optim.scale_lr != "none" and not optim.lr_batch_size:
        raise ConfigError(f"optim.scale_lr={optim.scale_lr} needs optim.lr_batch_size, the batch that optim.lr="
                          f"{optim.lr:g} is for (256 in params/pretrain.yaml): set it, or optim.scale_lr=none")


def flatten(plain: dict, source: str = "", rename: bool = True) -> dict:
    """Return a plain config, or a part of one, as {"section.key": value}; renamed keys have their present names.

    Args:
        plain: from a recipe, a run folder or a checkpoint; it may be flat already.
        source: where the values stand, for one FutureWarning per old name; "" gives no warning.
        rename: give renamed keys their present names.

    Raises:
        ConfigError: a key is given under both its old and its present name.
    """
    flat = {}
    for section, content in plain.items():
        if isinstance(content, dict) and "." not in str(section):
            flat |= {f"{section}.{key}": value for key, value in content.items()}
        else:
            flat["task.name" if section == "task" else section] = content
    for old in [name for name in flat if name in RENAMED and rename]:
        present = RENAMED[old]
        if present in flat:
            raise ConfigError(f"{old}{source} is called {present} now, which is given, too: remove {old}")
        if source:  # with no line of code: the place to mend is in `source`
            warnings.warn_explicit(f"{old}{source} is called {present} now", FutureWarning, "egokit", 0)
        flat[present] = flat.pop(old)
    return flat


def nest(flat: dict) -> dict:
    """Return a flat config as sections of keys: the opposite of `flatten`."""
    plain: dict = {}
    for name, value in flat.items():
        section, dot, key = str(name).partition(".")
        if dot:
            plain.setdefault(section, {})[key] = value
        else:
            plain[section] = value
    return plain


def merge(base: dict, over: dict) -> dict:
    """Return `base` updated by `over`, section by section; neither is changed."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def to_dict(config) -> dict:
    """Return a Config as nested dicts (tuples as lists), for YAML, checkpoints and comparison."""
    return _lists(dataclasses.asdict(config))


def _lists(value):
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def differences(before: dict, after: dict) -> list[str]:
    """Return the keys at which two flat configs differ, as "key: old -> new", with long values cut."""
    return [f"{shortened(name)}: {shortened(before.get(name))} -> {shortened(after.get(name))}" for name in
            sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]


def marked(mark: str, params: type = TaskConfig) -> set[str]:
    """Return the keys that are marked "local", "scored" or "input"; a marked section stands for all its keys.

    Args:
        params: the class of the section `task`.
    """
    names = set()
    for section, field in Config.__pydantic_fields__.items():
        kind = params if section == "task" else field.annotation
        for key, inner in getattr(kind, "__pydantic_fields__", {}).items():
            names |= {f"{section}.{key}"} if mark in (*field.metadata, *inner.metadata) else set()
    return names


def comparable(config: Config) -> dict:
    """Return the part of a config on which a run's numbers depend, flat."""
    local = marked("local", type(config.task))
    return {name: value for name, value in flatten(to_dict(config)).items() if name not in local}
