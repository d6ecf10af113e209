"""JSON files, read with bounds on size, nesting and numbers, and checked for the shape that their reader expects.

A shape is a type, or one of these:
    {"name": shape}      an object with these fields; others are not looked at. {...: shape}: a field of any name
    [shape]              a list of these
    range(0, 9)          a whole number in it; TIME: any number in it
    (shape, None)        a value that may be null; (shape, ...): a field that may be absent
"""
import json
from collections.abc import Callable
from pathlib import Path

from egokit.config.access import exists

LARGEST = 8 << 20    # bytes of a run's file
LARGEST_LIST = 1 << 30  # and of one that lists all videos or clips
MOST = 5_000_000     # lists and objects of a file: each takes thirty times its brackets' memory
DEEPEST = 64         # lists and objects in one another: what is deeper can't be compared or shown without recursion
TIME = range(0, 10 ** 11)  # seconds, of a clock or left; later ones are no dates
COUNT = range(0, 1 << 63)
HUGE = 1e300            # larger numbers overflow in what is computed from them
WORDS = {str: "text", bool: "true or false", dict: "an object", list: "a list", float: "a number",
         int: "a whole number"}


def parse_json(text: str | bytes, most: int | None = None, hook: Callable[[dict], object] | None = None):
    """Return the value of a JSON text.

    Args:
        most: how many lists and objects it may have; None for MOST.
        hook: called with each object as soon as it is read, it returns what takes its place; so a large text's needless
            fields never fill the memory.

    Raises:
        ValueError: it is not JSON, nested too deeply, or has too many lists and objects; the message is one line, and
            names no file.
    """
    brackets = sum(map(text.count, "[{" if isinstance(text, str) else b"[{"))
    most = MOST if most is None else most
    if brackets > most:
        raise ValueError(f"more than {most:,} lists and objects, expected fewer")
    try:
        value = json.loads(text, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON, {error}") from None
    if brackets <= DEEPEST:  # most texts
        return value
    level = [value]
    for _ in range(DEEPEST):
        level = [item for outer in level if isinstance(outer, (dict, list))
                 for item in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return value
    raise ValueError(f"lists and objects nested more than {DEEPEST} deep, expected fewer")


def read_json(path: Path, shape, fix: str, largest: int = LARGEST):
    """Return the content of a run's JSON file, or None if there is no file.

    Args:
        path: the file.
        shape: what is expected in it; see the module.
        fix: what to do about a damaged file, for the message.
        largest: bytes that it may have.

    Raises:
        ValueError: the file is damaged; the message names it and the field, and ends with `fix`.
        PermissionError: this user may not read it.
    """
    if not exists(path):
        return None
    if path.is_dir():
        raise IsADirectoryError(f"{path}: Is a directory, expected a file; {fix}")
    if not path.is_file():
        raise ValueError(f"{path}: expected a regular file; {fix}")
    if (size := path.stat().st_size) > largest:
        raise ValueError(f"{path}: {size:,} bytes, expected {largest:,} at most; {fix}")
    try:
        value = parse_json(path.read_bytes())
        check_fields(value, shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {fix}") from None
    return value


def check_fields(value, shape, name: str = "") -> None:
    """Raise ValueError unless a value has a shape; the message names the field, and what was expected.

    Args:
        value: as `parse_json` returns it.
        shape: see the module.
        name: the field's name, for the message; "" for the whole file.
    """
    if isinstance(shape, tuple):
        if value is None and None in shape:
            return
        shape = shape[0]
    kind = {dict: dict, list: list, range: float}.get(type(shape), shape)
    is_number = type(value) in (int, float) and (kind is float or type(value) is int) and abs(value) < HUGE
    matches = is_number if kind in (int, float) else isinstance(value, kind)
    if isinstance(shape, range) and matches:
        matches = shape.start <= value < shape.stop and (shape is TIME or type(value) is int)
    if not matches:
        is_range = isinstance(shape, range)
        expected = WORDS[int if is_range and shape is not TIME else kind] + " in its range" * is_range
        raise ValueError(f"{repr(name) + ' is ' if name else ''}{repr(value)[:60]}, expected {expected}")
    if isinstance(shape, list):
        for item in value:
            check_fields(item, shape[0], name)
    for field, inner in shape.items() if isinstance(shape, dict) else ():
        for key in value if field is ... else [field]:
            full = f"{name}.{key}" if name else key
            if key in value:
                check_fields(value[key], inner, full)
            elif not (isinstance(inner, tuple) and ... in inner):
                raise ValueError(f"{full!r} is missing, which is expected here")
