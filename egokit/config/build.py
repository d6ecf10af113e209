"""Config's dataclasses from plain nested dicts, strict on names and types, and back."""
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
    """A mistake in a parameter, a key or a path; the message says which and what to do."""


def did_you_mean(word: str, known) -> str:
    """A 'did you mean' for an error message, or the list of what there is."""
    known = sorted(str(item) for item in known)
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)


def _coerce(value, wanted, where: str):
    origin = typing.get_origin(wanted)
    if wanted is dict or origin is dict:
        if isinstance(value, dict):
            return value
    elif origin is tuple:
        inner = typing.get_args(wanted)
        if inner[-1] is ...:
            inner = inner[:1] * len(value) if isinstance(value, (list, tuple)) else ()
        if isinstance(value, (list, tuple)) and len(value) == len(inner):
            return tuple(_coerce(item, kind, where) for item, kind in zip(value, inner, strict=True))
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
    kind = str(wanted) if isinstance(wanted, types.GenericAlias) else getattr(wanted, "__name__", str(wanted))
    if typing.get_args(wanted)[-1:] == (...,):
        kind = f"a list of {typing.get_args(wanted)[0].__name__}"
    kind = "a finite number" if wanted is float else kind
    raise ConfigError(f"{where}: expected {kind}, got {value!r}")


def build(cls, values: dict, where: str = "", source: str = "") -> typing.Any:
    """A dataclass from nested mappings; strict on names and types."""
    hints = typing.get_type_hints(cls)
    given = {}
    for key, value in (values or {}).items():
        name = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise ConfigError(f"unknown key {name!r}{source}: {did_you_mean(key, hints)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                inner = ", ".join(typing.get_type_hints(hints[key]))
                raise ConfigError(f"{name}{source}: expected a section with keys {inner}; got {value!r}")
            given[key] = build(hints[key], value, name, source)
        else:
            given[key] = _coerce(value, hints[key], name + source)
            if name in CHOICES and given[key] not in CHOICES[name] and given[key] != "" and not (name == "task" and split_task_file(given[key])):
                raise ConfigError(f"{name}{source}: {given[key]!r}: {did_you_mean(given[key], CHOICES[name])}")
            for number in given[key] if isinstance(given[key], tuple) else (given[key],):
                if said := violated_bound(name, number):
                    raise ConfigError(f"{name}{source}: expected {said}, got {number}")
    return cls(**given)


def new_names(values: dict, source: str = "", where: str = "") -> dict:
    """Return plain nested values with renamed keys under their present names.

    Args:
        values: a config, or a part of one, as it stands in a recipe, a run folder or a checkpoint.
        source: where the values stand, for a FutureWarning of each old name; "" warns of none.

    Raises:
        ConfigError: a key is given by its old and by its present name.
    """
    renamed = {}
    for key, value in values.items():
        name = f"{where}{key}"
        present = RENAMED.get(name, name).removeprefix(where)
        if present != key and source:
            warnings.warn(f"{name}{source} is called {where}{present} now", FutureWarning, stacklevel=3)
        if present in renamed or (present != key and present in values):
            raise ConfigError(f"{name}{source} is called {where}{present} now, which is given, too: remove {name}")
        renamed[present] = new_names(value, source, f"{name}.") if isinstance(value, dict) and not where else value
    return renamed


def split_task_file(task: str) -> tuple[str, str] | None:
    """(file, class) of a task of the user's, which is named as 'folder/file.py:Class'; None for one of egokit's."""
    found = re.fullmatch(r"(.+\.py):(\w+)", task)
    return (found[1], found[2]) if found else None


def merge(base: dict, over: dict) -> dict:
    """`over` laid on `base`, section by section; neither is changed."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def to_dict(config) -> dict:
    """Plain nested dict of a Config (tuples as lists), for YAML, checkpoints and comparison."""
    return _lists(dataclasses.asdict(config))


def _lists(value):
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def differences(one: dict, other: dict, where: str = "") -> list[str]:
    """The dotted keys at which two plain configs differ, as 'key: old -> new'."""
    found = []
    for key in sorted(one.keys() | other.keys()):
        name, left, right = f"{where}{key}", one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, name + ".")
        elif left != right:
            found.append(f"{name}: {left} -> {right}")
    return found


def comparable(config: dict) -> dict:
    """The part of a plain config that a run's numbers depend on."""
    return {section: {key: value for key, value in values.items() if f"{section}.{key}" not in LOCAL_ONLY}
            if isinstance(values, dict) else values for section, values in config.items() if section not in LOCAL_ONLY}
