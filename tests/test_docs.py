"""The documents: links lead somewhere, commands parse, keys exist, snippets compile, and every error message is explained."""
import argparse
import ast
import dataclasses
import functools
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from egokit import cli
from egokit.config import Config
from egokit.resolve import build, merge, parse_overrides

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
each = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)

# what no user's input can cause: a cache that is made again, and what reads numbers out of the toy's own frames
INTERNAL = ("another CSV's, or damaged", "does not fit", "expected a uint8 frame", "no frame number here", "the frame number is unreadable",
            "has no attribute")


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in re.findall(r"```(\w*)\n(.*?)```", text.replace("\n   ", "\n"), re.DOTALL) if language in languages]


def prose(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """GitHub's names of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{path.name}: {target}: {sorted(anchors(there))}"


@each
def test_files_that_are_named_exist(path):
    """`docs/x.md`, `egokit/x.py` and the like in backticks; placeholders and globs are left out."""
    for name in re.findall(r"`((?:docs|egokit|params|tests|benchmarks|notebooks)/[\w./-]+\.\w+)`", path.read_text()):
        made_by_users = re.fullmatch(r"params/sites/(local|mycluster|…)\.yaml|params/(mine|my_recipe)\.yaml", name)
        assert made_by_users or (ROOT / name).exists(), f"{path.name}: {name}"


def commands(text: str) -> list[str]:
    """Every command line of egokit: in shell blocks, and in backticks."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", prose(text))
    return [line.split(" #")[0].strip() for line in lines if re.match(r"(\.venv/bin/)?egokit [a-z]", line.strip())]


@each
def test_commands_parse(path, monkeypatch):
    monkeypatch.setattr(argparse.ArgumentParser, "error", lambda self, said: pytest.fail(f"{path.name}: {command}: {said}"))
    for command in commands(path.read_text()):
        words = shlex.split(command.replace("…", ""))[1:]
        if len(words) == 1 and words[0] not in ("demo", "doctor", "prep", "runs", "ledger"):
            assert words[0] in cli.parser()._subparsers._group_actions[0].choices, command  # only the name of a command
            continue
        parsed = cli.parser().parse_args(words)
        if overrides := getattr(parsed, "overrides", ""):
            build(Config, parse_overrides(overrides))


@functools.cache
def keys() -> dict[str, set[str]]:
    return {field.name: {one.name for one in dataclasses.fields(kind)} for field in dataclasses.fields(Config)
            if dataclasses.is_dataclass(kind := type(getattr(Config(), field.name)))}


@each
def test_keys_exist(path):
    """`section.key`, with or without a value, and YAML blocks."""
    for section, key in re.findall(rf"`({'|'.join(keys())})\.(\w+)(?=[`=: ])", path.read_text()):
        assert key in keys()[section] or (section, key) in {("model", "match"), ("model", "py"), ("evaluate", "py")}, f"{section}.{key}"
    for block in blocks(path.read_text(), "yaml"):
        for one in yaml.safe_load_all(block):
            if isinstance(one, dict) and one.keys() <= {field.name for field in dataclasses.fields(Config)}:
                build(Config, merge({}, one))


@each
def test_python_compiles(path):
    for block in blocks(path.read_text(), "python"):
        compile(block, str(path), "exec")


def messages() -> dict[str, list[str]]:
    """Where an exception is made -> the constant parts of its message."""
    found = {}
    for path in sorted((ROOT / "egokit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.search(r"(Error|Failed|NotSubmitted|LostRun)$", ast.unparse(node.func)) and node.args:
                text = re.sub(r"\s+", " ", constant(node.args[0]))
                if parts := [part.strip() for part in text.split("\0") if len(part.strip()) > 3]:
                    found[f"{path.relative_to(ROOT)}:{node.lineno}"] = parts
    return found


def constant(node) -> str:
    """A message with \\0 in place of what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(constant, node.values))
    if isinstance(node, ast.BinOp):
        return constant(node.left) + constant(node.right)
    return "\0"


def test_every_error_message_is_explained():
    explained, found = (ROOT / "docs/troubleshooting.md").read_text(), messages()
    assert len(found) > 150
    absent = []
    for place, parts in found.items():
        if any(internal in part for part in parts for internal in INTERNAL):
            continue
        others = [part for other, theirs in found.items() if other != place for part in theirs]
        own = [part for part in parts if not any(part in other for other in others)] or parts  # what tells it from the others
        if not any(part in explained for part in own if len(part) >= min(12, max(map(len, own)))):
            absent.append(f"{place}: {' … '.join(parts)}")
    assert not absent, "not in docs/troubleshooting.md:\n" + "\n".join(absent)


def test_every_command_and_key_is_in_the_documents():
    said = "\n".join(path.read_text() for path in DOCUMENTS)
    for command in cli.parser()._subparsers._group_actions[0].choices:
        assert f"egokit {command}" in said, command
