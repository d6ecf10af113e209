"""What a safe pickle may become: plain data of bounded size, and stand-ins for names of packages."""
import pickle
from collections.abc import Callable
from typing import NamedTuple

NESTING, CONTAINERS, EXPANDED = 64, 600_000, 20_000_000
SIMPLE = (str, int, float, bool, bytes, type(None))
OWN_HASH = 2**61 - 1  # whole numbers below it have hashes of their own; larger ones can be chosen to have equal ones


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
            Refused: the container becomes too deep or large.
        """
        known = self.facts.get(id(container))
        if known and not values:
            return container  # such as (), of which there is one
        nesting, expanded = (known.nesting, known.expanded) if known else (1, 1)
        for value in values:
            if inner := self.facts.get(id(value)):
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


    def without_cycles(self, container, values: list) -> list:
        """Return the values that are added to a container, without what would put it into itself.

        A container that another one holds already gets no further containers: any of them may hold the other one.
        """
        is_held = id(container) in self.held
        return [Dropped("a cycle") if value is container or (is_held and value in self) else value for value in values]


def is_key(value) -> bool:
    """Return whether a value may be hashed: its hash is quick, and nobody can choose many of equal hashes.

    Raises:
        Refused: no pickle of Python's has such a key.
    """
    if type(value) in (list, dict, set, bytearray):
        raise Refused(f"{kind_of(value)} is no key")
    if type(value) is tuple:
        return len(value) <= NESTING and all(type(part) in (str, bytes, type(None)) for part in value)
    return type(value) in SIMPLE and (type(value) is not int or abs(value) < OWN_HASH)


def make_dict(items=()) -> dict:
    """Return a dict of pairs, in place of an OrderedDict; what is no key is left out with its value."""
    return {key: value for key, value in items if is_key(key)}


def make_set(values=()) -> set:
    """Return a set of values, without those that can't be hashed."""
    return {value for value in values if is_key(value)}


def kind_of(value) -> str:
    """Return in words what a value is, without its content."""
    return value.name if isinstance(value, Dropped) else f"a {type(value).__name__}"
