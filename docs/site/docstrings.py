"""Turn egokit's docstrings, plain text with names in backticks, into reStructuredText for autodoc."""
import ast
import functools
import inspect
import io
import re
import sys
import textwrap
import tokenize

from egokit.config.schema import Section

TABLE = re.compile(r"^\s*[\w/]+(\.\w+|/)\s{2,}\S")  # "loader.py   Samples, the base of all data sets"
ITEM = re.compile(r"^\s*(-|\d+\.) ")
ROLE = re.compile(r"(`[^`]*`)")
RAISED = re.compile(r"^(\s+)(\w+)(?=:)")


def prepare(app, what: str, name: str, value, options, lines: list[str]) -> None:
    """Change a docstring's lines in place, before napoleon reads them.

    What would be markup is escaped, tables of files stay as they are, and lists get the empty line that they need.
    """
    done, raises = [], False
    for block in blocks(lines):
        if what == "module" and any(map(TABLE.match, block)):
            done += ["::", "", *(f"    {line}" for line in block), ""]
            continue
        if block[0].strip() == "Example:":  # of code
            done += [block[0], "    ::", "", *(f"    {line}" for line in block[1:]), ""]
            continue
        raises = block[0].strip() == "Raises:" or (raises and block[0].startswith(" "))
        in_list = False
        for at, line in enumerate(block):
            begins = bool(ITEM.match(line)) and not in_list
            ends = in_list and not line.startswith(" ") and not ITEM.match(line)
            if at and (begins or ends):
                done.append("")
            in_list = (in_list or begins) and not ends
            done.append(escaped(full_name(line, value) if raises else line))
            if at == 0 and len(block) > 1 and line.strip() in ("Returns:", "Yields:") and is_dictionary(block[1]):
                done.append(re.match(r"\s*", block[1])[0] + "\\ ")  # napoleon takes "{key" before a colon for a type
        done.append("")
    if what == "class" and is_section(value):
        done += keys(value)
    lines[:] = done


def is_dictionary(line: str) -> bool:
    """Return whether a line's first colon stands behind the key of a dictionary, and not behind a type."""
    key = line.partition(":")[0].strip()
    return key.count("{") > key.count("}") or key.startswith('"')


def is_section(value) -> bool:
    """Return whether a value is a class of keys: a section of the configuration, or a task's own keys."""
    return isinstance(value, type) and issubclass(value, Section)


def keys(section: type) -> list[str]:
    """Return the keys of a section as a list: name, type and default as they stand in the file, and the meaning."""
    source = textwrap.dedent(inspect.getsource(section))
    comments = {token.start[0]: token.string.lstrip("# ")
                for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT}
    nodes = ast.parse(source).body[0].body
    ends = [node.lineno for node in nodes[1:]] + [len(source.splitlines()) + 1]
    lines = []
    for node, end in zip(nodes, ends, strict=True):
        if isinstance(node, ast.AnnAssign):
            meaning = " ".join(comments[line] for line in range(node.lineno, end) if line in comments)
            lines += [f"``{ast.unparse(node)}``", f"    {escaped(meaning) or '–'}", ""]
    return lines


def blocks(lines: list[str]) -> list[list[str]]:
    """Return the runs of lines between empty ones."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def escaped(line: str) -> str:
    """Escape what reStructuredText would take for markup; what stands in backticks is a name of egokit, or code.

    A constant has no place of its own to link to.
    """
    return "".join((part if re.fullmatch(r"`egokit(\.\w+)*\.\w*[a-z]\w*`", part) else f"`{part}`") if at % 2 else
                   re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for at, part in enumerate(ROLE.split(line)))


def full_name(line: str, value) -> str:
    """Return a line of "Raises:" with the full name of its error, to which the page then links."""
    return RAISED.sub(lambda match: match[1] + errors(getattr(value, "__module__", "")).get(match[2], match[2]), line)


@functools.cache
def errors(module: str) -> dict[str, str]:
    """Return {short name: full name} of egokit's errors as a module knows them, else of those with a unique name."""
    names: dict[str, set[str]] = {}
    for owner, loaded in list(sys.modules.items()):
        if owner.split(".")[0] == "egokit":
            for name, value in list(vars(loaded).items()):
                if isinstance(value, type) and issubclass(value, BaseException) and \
                        value.__module__.startswith("egokit."):
                    names.setdefault(name, set()).add(f"~{value.__module__}.{value.__qualname__}")
    own = {name: f"~{value.__module__}.{value.__qualname__}" for name, value in
           vars(sys.modules.get(module, object)).items() if name in names and isinstance(value, type)}
    return {name: found.copy().pop() for name, found in names.items() if len(found) == 1} | own
