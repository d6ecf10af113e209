"""Conversion between Config and nested dicts, strict on names and types; comparison.

A "plain" config is a nested dict of sections and keys, as YAML and JSON hold it.
"""
from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
import warnings

from egokit.config.schema import CHOICES, LOCAL_ONLY, RENAMED, violated_bound


class ConfigError(ValueError):
    """A mistake in a parameter, key or path; the message names it and says what to do."""


def did_you_mean(word: str, known) -> str:
    """Return a hint for an error message: "did you mean …?", or the list of known names.

    Args:
        word: the name that was given.
        known: an iterable of the names that exist.
    """
    names = sorted(str(name) for name in known)
    close = difflib.get_close_matches(str(word), names, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names)


def _coerce(value, wanted, where: str):
    """Return `value` as the type `wanted`; `where` names the key in the ConfigError."""
    origin = typing.get_origin(wanted)
    if wanted is dict or origin is dict:
        if isinstance(value, dict):
            return value
    elif origin is tuple:
        item_types = typing.get_args(wanted)
        if item_types[-1] is ...:
            item_types = item_types[:1] * len(value) if isinstance(value, (list, tuple)) else ()
        if isinstance(value, (list, tuple)) and len(value) == len(item_types):
            return tuple(_coerce(item, item_type, where) for item, item_type in zip(value, item_types, strict=True))
    elif wanted is bool:
        if isinstance(value, bool):
            return value
    elif wanted is str:
        if isinstance(value, str):
            return value
    elif not isinstance(value, bool) and isinstance(value, (int, float, str)):  # YAML reads 3e-5 as a string
        try:
            number = float(value)
            if math.isfinite(number) and (wanted is float or number == int(number)):
                return wanted(number)
        except (ValueError, OverflowError):
            pass
    expected = str(wanted) if isinstance(wanted, types.GenericAlias) else getattr(wanted, "__name__", str(wanted))
    if typing.get_args(wanted)[-1:] == (...,):
        expected = f"a list of {typing.get_args(wanted)[0].__name__}"
    expected = "a finite number" if wanted is float else expected
    raise ConfigError(f"{where}: expected {expected}, got {value!r}")


def build(cls, values: dict, where: str = "", source: str = "") -> typing.Any:
    """Build a dataclass from nested dicts; names, types, choices and bounds are checked.

    Args:
        cls: Config, or the dataclass of one of its sections.
        values: key -> value; keys that are absent keep their defaults.
        where: dotted name of the section that `values` fill, for messages; "" for the whole Config.
        source: where the values stand, for messages, for example " (in overrides)".

    Raises:
        ConfigError: a key is unknown, or its value has the wrong type or is out of bounds.
    """
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in (values or {}).items():
        name = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise ConfigError(f"unknown key {name!r}{source}: {did_you_mean(key, hints)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                keys = ", ".join(typing.get_type_hints(hints[key]))
                raise ConfigError(f"{name}{source}: expected a section with keys {keys}; got {value!r}")
            arguments[key] = build(hints[key], value, name, source)
        else:
            arguments[key] = _coerce(value, hints[key], name + source)
            _check_value(name, arguments[key], source)
    return cls(**arguments)


def _check_value(name: str, value, source: str) -> None:
    """Raise ConfigError unless `value` is a choice and within the bounds of key `name`."""
    own_task = name == "task" and split_task_file(value)
    if name in CHOICES and value not in CHOICES[name] and value != "" and not own_task:
        raise ConfigError(f"{name}{source}: {value!r}: {did_you_mean(value, CHOICES[name])}")
    for number in value if isinstance(value, tuple) else (value,):
        if bound := violated_bound(name, number):
            raise ConfigError(f"{name}{source}: expected {bound}, got {number}")


def new_names(values: dict, source: str = "", where: str = "") -> dict:
    """Return plain nested values with renamed keys under their present names.

    Args:
        values: a plain config, or a part of one, from a recipe, a run folder or a checkpoint.
        source: where the values stand, for one FutureWarning per old name; "" gives no warning.

    Raises:
        ConfigError: a key is given under both its old and its present name.
    """
    renamed = {}
    for key, value in values.items():
        name, present = f"{where}{key}", key
        if name in RENAMED:
            present = RENAMED[name].removeprefix(where)
            if present in values:
                raise ConfigError(f"{name}{source} is called {where}{present} now, which is given, too: remove {name}")
            if source:  # with no line of code: the place to mend is in `source`
                message = f"{name}{source} is called {where}{present} now"
                warnings.warn_explicit(message, FutureWarning, "egokit", 0)
        renamed[present] = new_names(value, source, f"{name}.") if isinstance(value, dict) and not where else value
    return renamed


def split_task_file(task: str) -> tuple[str, str] | None:
    """Return (file, class) of a user's task "folder/file.py:Class"; None for one of egokit's."""
    match = re.fullmatch(r"(.+\.py):(\w+)", task)
    return (match[1], match[2]) if match else None


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


def differences(before: dict, after: dict, where: str = "") -> list[str]:
    """Return the dotted keys at which two plain configs differ, as "key: old -> new"."""
    lines = []
    for key in sorted(before.keys() | after.keys()):
        name, old, new = f"{where}{key}", before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, name + ".")
        elif old != new:
            lines.append(f"{name}: {old} -> {new}")
    return lines


def comparable(config: dict) -> dict:
    """Return the part of a plain config on which a run's numbers depend."""
    return {section: {key: value for key, value in values.items() if f"{section}.{key}" not in LOCAL_ONLY}
            if isinstance(values, dict) else values for section, values in config.items() if section not in LOCAL_ONLY}
