"""YAML text, parsed with bounds: no nesting that exhausts the stack, no aliases that multiply, no key given twice.

Only resolve.py reads YAML, through this.
"""
import re
from pathlib import Path

from yaml import MappingNode, SafeLoader, ScalarNode, YAMLError, safe_dump
from yaml.composer import ComposerError
from yaml.events import AliasEvent

from egokit.config.access import exists
from egokit.config.build import to_dict
from egokit.config.json_file import DEEPEST
from egokit.config.names import shortened

LARGEST = 1 << 20  # bytes; a recipe has some thousand
MOST = 10_000      # values and keys of a file, those that aliases and merges repeat included
LONGEST, DIGITS = 10_000, 100  # characters of a text, of a number: a longer one can't even be shown
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # in no file's name either
NUMBERS = (":int", ":float")


class Loader(SafeLoader):
    """PyYAML's safe loader with the bounds."""

    def __init__(self, text: str):
        super().__init__(text)
        self.depth, self.nodes, self.sizes = 0, 0, {}

    def compose_node(self, parent, index):
        """Return the next node, and count what it holds: an alias counts as all that it stands for."""
        event, before = self.peek_event(), self.nodes
        self.depth += 1
        if self.depth > DEEPEST:
            raise ComposerError(problem=f"nested more than {DEEPEST} deep", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        # a node within itself has no size yet
        self.nodes += self.sizes.get(id(node), MOST) + 1 if isinstance(event, AliasEvent) else 1
        self.sizes[id(node)] = self.nodes - before
        if self.nodes > MOST:
            raise ComposerError(problem=f"it holds more than {MOST:,} values", problem_mark=event.start_mark)
        if isinstance(node, ScalarNode) and len(node.value) > (DIGITS if node.tag.endswith(NUMBERS) else LONGEST):
            raise ComposerError(problem=f"a value of {len(node.value):,} characters", problem_mark=event.start_mark)
        if isinstance(node, ScalarNode) and NO_TEXT.search(node.value):
            raise ComposerError(problem="a value with a character that is no text", problem_mark=event.start_mark)
        if isinstance(node, MappingNode):
            seen = set()
            for key, _ in node.value:
                if (key.tag, str(key.value)) in seen:
                    raise ComposerError(problem=f"{str(key.value)[:60]!r} is given twice", problem_mark=key.start_mark)
                seen.add((key.tag, str(key.value)))
        return node


def parse_yaml(text: str):
    """Return the value of a YAML text.

    Raises:
        ValueError: it is not YAML, or out of bounds; the message is one line, and names no file.
    """
    try:
        loader = Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except YAMLError as error:
        reason = " ".join(str(error).replace(' "<unicode string>",', "").split())
        raise ValueError(f"not valid YAML: {shortened(reason, 500)}") from None
    except Exception as error:  # PyYAML's constructors raise errors of a dozen kinds for values such as !!bool x
        reason = shortened(f"{type(error).__name__}: {error}", 500)
        raise ValueError(f"not valid YAML: a value can't be read ({reason})") from None


def read_yaml_file(path: Path):
    """Return the content of a YAML file.

    Raises:
        ValueError: it is no YAML file; the message names it.
        PermissionError: this user may not read it.
    """
    exists(path)
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path} has {size:,} bytes, expected {LARGEST:,} at most")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it in UTF-8") from None
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from None


def to_yaml(config) -> str:
    """Return a Config as the text of a YAML file."""
    return safe_dump(to_dict(config), sort_keys=False)
