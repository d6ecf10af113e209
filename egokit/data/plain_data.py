"""What a safe pickle may become: plain data of bounded size, and stand-ins for names of packages."""
import pickle
from collections.abc import Callable
from typing import NamedTuple

NESTING, CONTAINERS, EXPANDED = 64, 300_000, 20_000_000
SIMPLE = (str, int, float, bool, bytes, type(None))  # what may be a key, also in a tuple


class Refused(pickle.UnpicklingError):
    """A pickle holds what this reader does not build; the message says what, and names no file."""


class Dropped:
    """Stands for a foreign package's class or object: it accepts any content, keeps none and does nothing."""
    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<dropped {self.name}>"

    def __deepcopy__(self, memo) -> "Dropped":
        return self


class Maker(NamedTuple):
    """Stands for a function or class that a pickle may call with arguments."""
    make: Callable


class _Facts(NamedTuple):
    """What is known of a container; it is kept, so that its id stays its own."""
    container: object
    nesting: int    # levels, itself included
    expanded: int   # values in it, at all levels


class Containers:
    """The containers of one pickle, with their sizes at any time."""

    def __init__(self):
        self.facts: dict[int, _Facts] = {}
        self.held: set[int] = set()  # ids of containers that another one holds: they are complete

    def __contains__(self, value) -> bool:
        return id(value) in self.facts

    def put(self, container, values):
        """Record that a container holds values, new or further ones; return it.

        Raises:
            Refused: the container becomes too deep or large, or is changed though another one holds it already.
        """
        known = self.facts.get(id(container))
        if known and not values:
            return container  # such as (), of which there is one
        nesting, expanded = (known.nesting, known.expanded) if known else (1, 1)
        if known and id(container) in self.held:
            raise Refused("it changes a container that another one holds")
        for value in values:
            if inner := self.facts.get(id(value)):
                if value is container:
                    raise Refused("it has a container that holds itself")
                nesting, expanded = max(nesting, inner.nesting + 1), expanded + inner.expanded
                self.held.add(id(value))
            else:
                expanded += 1
        if nesting > NESTING:
            raise Refused(f"it is nested more than {NESTING} levels deep")
        if expanded > EXPANDED or len(self.facts) >= CONTAINERS:
            raise Refused(f"it has more than {CONTAINERS:,} containers or {EXPANDED:,} values")
        self.facts[id(container)] = _Facts(container, nesting, expanded)
        return container


def expect_simple(keys: list) -> None:
    """Raise Refused for keys whose hash is more than that of a number, a text or a short tuple of these."""
    for key in keys:
        parts = key if type(key) is tuple and len(key) <= NESTING else [key]
        if not all(type(part) in SIMPLE for part in parts):
            raise Refused(f"{kind_of(key)} is no key")


def make_dict(items=()) -> dict:
    """Return a dict of pairs, in place of an OrderedDict."""
    expect_simple([key for key, _ in items])
    return dict(items)


def make_set(values=()) -> set:
    """Return a set of values."""
    expect_simple(values)
    return set(values)


def kind_of(value) -> str:
    """Return in words what a value is, without its content."""
    return value.name if isinstance(value, Dropped) else f"a {type(value).__name__}"
