"""The documents: links lead somewhere, commands parse, keys exist, snippets compile, and every error message is explained."""
import argparse
import ast
import dataclasses
import functools
import importlib.util
import re
import shlex
import types
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import egokit
from egokit import cli
from egokit.config.build import build, merge
from egokit.config.resolve import parse_overrides
from egokit.config.schema import Config

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
each = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)

# what no user's input can cause: a cache that is made again, and what reads numbers out of the toy's own frames
INTERNAL = ("another CSV's, or damaged", "does not fit", "expected a uint8 frame", "no frame number here", "the frame number is unreadable",
            "has no attribute")


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if language in languages]


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
        words = shlex.split(command.replace("…", "x"))[1:]
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
    for span in re.findall(r"`([^`\n]+)`", prose(path.read_text())):
        for section, key in re.findall(rf"(?<![\w./])({'|'.join(keys())})\.(\w+)", span):
            assert key in keys()[section] or key in ("py", "pkl"), span
    for block in blocks(path.read_text(), "yaml"):
        for one in yaml.safe_load_all(block):
            if isinstance(one, dict) and one.keys() <= {field.name for field in dataclasses.fields(Config)}:
                build(Config, merge({}, one))


@each
def test_python_compiles(path):
    for block in blocks(path.read_text(), "python"):
        compile(block, str(path), "exec")


@each
def test_names_of_the_package_exist(path):
    """`egokit.a.b` in backticks and in Python snippets."""
    text = path.read_text()
    for span in [*re.findall(r"`([^`\n]+)`", prose(text)), *blocks(text, "python")]:
        for name in re.findall(r"(?<![\w/.])egokit\.((?:\w+\.)*\w+)(?!\.?\w)", span):
            found = egokit
            for part in name.split("."):
                submodule = f"{found.__name__}.{part}" if isinstance(found, types.ModuleType) else ""
                if not hasattr(found, part) and submodule and importlib.util.find_spec(submodule):
                    importlib.import_module(submodule)
                assert hasattr(found, part), f"egokit.{name}"
                found = getattr(found, part)


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


def test_every_command_is_in_the_documents():
    said = "\n".join(path.read_text() for path in DOCUMENTS)
    for command in cli.parser()._subparsers._group_actions[0].choices:
        assert f"egokit {command}" in said, command


def test_the_layout_is_what_the_toy_and_preparation_make(project):
    """Every path of docs/data.md's layout table, in the tiny data set, where names of videos and splits are filled in."""
    table = (ROOT / "docs/data.md").read_text().partition("## The layout")[2].partition("\n## ")[0]
    root, checked = project / "outputs/toy", 0
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row)
        folder = names[0].rpartition("/")[0]
        for name in names:
            name = name.replace("…", Path(names[0]).stem.removesuffix("_train"))
            pattern = re.sub(r"<\w+>", "*", name if name.startswith(folder) else f"{folder}/{name}").strip("/")
            assert [*root.glob(pattern)], f"{name}: {pattern}"
            checked += 1
    assert checked > 20


def test_the_table_of_recipes_is_what_resolves(project):
    from egokit.config.build import to_dict
    from egokit.config.resolve import resolve
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| (.*?) \| (.*?) \| (.*?) \|", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
    resolved = [to_dict(resolve(name, "example")) for name in ("pretrain", "ek100_finetune", "charades_finetune")]
    assert len(rows) > 20
    for section, key, *cells in rows:
        for config, cell in zip(resolved, cells, strict=True):
            if cell != "–":
                assert config[section][key] == to_dict(build(Config, {section: {key: yaml.safe_load(cell)}}))[section][key], (key, cell)


def test_published_numbers_are_the_ledgers():
    from egokit.runs.published import DUAL_SOFTMAX, RESULTS
    rows = re.findall(r"^\| (.*?) \| 16 frames \| `(.*?)` \| (.*?) \|", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
    assert {(name, checkpoint, float(number)) for name, checkpoint, number in rows} == {
        (result.name, result.checkpoint, result.published) for result in RESULTS
        if result.published is not None and not result.metric.endswith(DUAL_SOFTMAX)}


def test_the_example_is_quoted_word_for_word():
    text = (ROOT / "docs/extending.md").read_text()
    for language in ("python", "yaml"):
        file = ROOT / f"docs/examples/narration_retrieval.{language.replace('python', 'py')}"
        assert file.read_text() in blocks(text, language), file.name


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    from egokit import __version__
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    paper, = citation["references"]
    assert paper["year"] == 2023 and [one["family-names"] for one in paper["authors"]] == [
        "Pramanick", "Song", "Nag", "Lin", "Shah", "Shou", "Chellappa", "Zhang"]


def test_readme_is_short_and_names_what_is_there():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 140
    for folder in ("notebooks", "egokit"):
        row = re.search(rf"^\| `{folder}/` \| (.*) \|$", text, re.MULTILINE)[1]
        for name in re.findall(r"`([^`]+)`", row):
            assert (ROOT / folder / name).exists() or (ROOT / folder / f"{name}.ipynb").exists() or name == "egokit", name


def test_these_tests_read_something():
    found = [command for path in DOCUMENTS for command in commands(path.read_text())]
    assert len(found) > 35 and len({command.split()[1] for command in found}) >= 9
