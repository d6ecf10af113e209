"""The documents: links lead somewhere, commands parse, keys exist, names exist, snippets compile."""
import argparse
import dataclasses
import functools
import importlib.util
import re
import shlex
import types
import warnings
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import egokit
from egokit import cli
from egokit.config.build import build, flatten, nest, to_dict
from egokit.config.registry import TASKS, build_config, find
from egokit.config.resolve import parse_overrides
from egokit.config.schema import RENAMED, Config

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
each = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def blocks(text: str, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [body for language, body in found if language in languages]


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
        document = (path.parent / name).resolve() if name else path
        assert document.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(document), f"{path.name}: {target}: {sorted(anchors(document))}"


@each
def test_lines_are_short(path):
    """Tables and links to the web may be longer."""
    assert not [line for line in path.read_text().splitlines()
                if len(line) > 120 and not line.startswith("|") and "https://" not in line]


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


@functools.cache
def task_classes() -> list[type]:
    """All registered tasks, and those of the examples."""
    recipes = [flatten(yaml.safe_load(file.read_text())) for file in (ROOT / "docs/examples").glob("*.yaml")]
    files = [recipe["task.name"] for recipe in recipes]
    return [find(name) for name in (*TASKS, *(str(ROOT / file) for file in files))]


def check_config(plain: dict) -> None:
    """Raise an error for what no config takes, and for earlier names of keys.

    Without the task's name, its keys may be those of any task.
    """
    own = nest(flatten(plain)).get("task", {})
    fitting = [task for task in task_classes() if own.keys() <= task.Params.__pydantic_fields__.keys()]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        build_config(plain, " (here)", None if "name" in own or not fitting else fitting[0])


@each
def test_commands_parse(path, monkeypatch):
    def fail(parser, message):
        pytest.fail(f"{path.name}: {command}: {message}")

    monkeypatch.setattr(argparse.ArgumentParser, "error", fail)
    monkeypatch.chdir(ROOT)
    for command in commands(path.read_text()):
        words = shlex.split(command.replace("…", "x"))[1:]
        if len(words) == 1 and words[0] not in ("demo", "doctor", "prep", "runs", "ledger"):
            assert words[0] in cli.parser()._subparsers._group_actions[0].choices, command  # only the name of a command
            continue
        parsed = cli.parser().parse_args(words)
        if overrides := getattr(parsed, "overrides", ""):
            check_config(parse_overrides(overrides))


@functools.cache
def keys() -> dict[str, set[str]]:
    """The keys of each section; those of all tasks for `task`, and none for a section that is gone."""
    found = {section.name: {key.name for key in dataclasses.fields(kind)} for section in dataclasses.fields(Config)
             if dataclasses.is_dataclass(kind := type(getattr(Config(), section.name)))}
    for task in task_classes():
        found["task"] |= task.Params.__pydantic_fields__.keys()
    return {name.partition(".")[0]: set() for name in RENAMED} | found


@each
def test_keys_exist(path, monkeypatch):
    """`section.key`, with or without a value, and YAML blocks."""
    monkeypatch.chdir(ROOT)
    for span in re.findall(r"`([^`\n]+)`", prose(path.read_text())):
        for section, key in re.findall(rf"(?<![\w./])({'|'.join(keys())})\.(\w+)", span):
            earlier = path.name == "CHANGELOG.md" and f"{section}.{key}" in RENAMED
            attribute = section == "model" and key in ("own", "head", "answer")
            assert key in keys()[section] or key in ("py", "pkl") or earlier or attribute, span
    for block in blocks(path.read_text(), "yaml"):
        for values in yaml.safe_load_all(block):
            if isinstance(values, dict) and values.keys() <= {field.name for field in dataclasses.fields(Config)}:
                check_config(values)


@each
def test_python_compiles(path):
    for block in blocks(path.read_text(), "python"):
        compile(block, str(path), "exec")


@each
def test_names_of_the_package_exist(path):
    """`egokit.a.b` in backticks and in Python snippets, except the old names in the changelog's table of imports."""
    text = re.sub(r"^\| `from egokit[^|]*\|", "|", path.read_text(), flags=re.MULTILINE)
    for span in [*re.findall(r"`([^`\n]+)`", prose(text)), *blocks(text, "python")]:
        for name in re.findall(r"(?<![\w/.])egokit\.((?:\w+\.)*\w+)(?!\.?\w)", span):
            value = egokit
            for part in name.split("."):
                submodule = f"{value.__name__}.{part}" if isinstance(value, types.ModuleType) else ""
                if not hasattr(value, part) and submodule and importlib.util.find_spec(submodule):
                    importlib.import_module(submodule)
                assert hasattr(value, part), f"egokit.{name}"
                value = getattr(value, part)


def test_imports_of_the_changelog_work():
    rows = re.findall(r"^\| `(from egokit.*?)` \| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    for before, now in rows:
        lines = re.findall(r"`(from egokit.*?)`", now)
        for line in [*lines, *([before] if not lines or "old name" in now else [])]:
            exec(line, {})
    assert len(rows) > 15


def test_every_command_is_in_the_documents():
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    for command in cli.parser()._subparsers._group_actions[0].choices:
        assert f"egokit {command}" in text, command


def test_the_layout_is_what_the_toy_and_preparation_make(project):
    """Every path of docs/data.md's layout table is in the tiny data set; names of videos and splits are filled in."""
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
    from egokit.config.resolve import resolve
    text = (ROOT / "docs/recipes.md").read_text()
    names = "pretrain", "ek100_finetune", "charades_finetune", "egotaskqa_direct", "egotaskqa_indirect"
    rows = re.findall(r"^\| `(\w+)\.(\w+)`" + r" \| (.*?)" * len(names) + r" \|", text, re.MULTILINE)
    resolved = [resolve(name, "example") for name in names]
    assert len(rows) > 20
    for section, key, *cells in rows:
        for config, cell in zip(resolved, cells, strict=True):
            if cell != "–":
                documented = to_dict(build(type(getattr(config, section)), {key: yaml.safe_load(cell)}))
                assert to_dict(config)[section][key] == documented[key], (key, cell)


def test_published_numbers_are_the_ledgers():
    from egokit.runs.ledger import registered
    from egokit.runs.recipe_differences import DUAL_SOFTMAX
    text = "\n".join((ROOT / "docs" / name).read_text() for name in ("recipes.md", "moments.md"))
    rows = re.findall(r"^\| (.*?) \| (?:16 frames|val) \| `?(.*?)`? \| (.*?) \|", text, re.MULTILINE)
    assert {(name, checkpoint.strip("–"), float(number)) for name, checkpoint, number in rows} == {
        (result.name, result.checkpoint, result.published) for _, result in registered()
        if result.published is not None and not result.metric.endswith(DUAL_SOFTMAX)}


def test_the_examples_are_quoted_word_for_word():
    text = "".join((ROOT / "docs" / name).read_text() for name in ("extending.md", "examples.md"))
    files = [*(ROOT / "docs/examples").glob("*.*")]
    assert {file.suffix for file in files} == {".py", ".yaml"}
    for file in files:
        assert file.read_text() in blocks(text, "python" if file.suffix == ".py" else "yaml"), file.name


def test_examples_that_are_trained_are_submitted_to_train():
    text, trained = "\n".join(path.read_text() for path in DOCUMENTS), 0
    for recipe in sorted((ROOT / "docs/examples").glob("*.yaml")):
        keys, name = yaml.safe_load(recipe.read_text()), f"docs/examples/{recipe.name}"
        task = keys["task"] if isinstance(keys["task"], str) else keys["task"]["name"]
        for command in re.findall(rf"^\.venv/bin/egokit submit {name} (.*)", text, re.MULTILINE)[:1]:
            action = re.search(r"--action (\w+)", command)
            main = action[1] if action else next(iter(find(task).actions()))
            assert main == ("train" if "train" in keys else "evaluate"), f"{name}: {command}"
            trained += main == "train"
    assert trained >= 3


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    from egokit import __version__
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    assert citation["authors"] and citation["message"]
    paper, = citation["references"]
    assert paper["year"] == 2023 and [author["family-names"] for author in paper["authors"]] == [
        "Pramanick", "Song", "Nag", "Lin", "Shah", "Shou", "Chellappa", "Zhang"]


def test_readme_is_short_and_names_what_is_there():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 140
    for folder in ("notebooks", "egokit"):
        row = re.search(rf"^\| `{folder}/` \| (.*) \|$", text, re.MULTILINE)[1]
        for name in re.findall(r"`([^`]+)`", row):
            path = ROOT / folder / name
            assert path.exists() or path.with_name(f"{name}.ipynb").exists() or name == "egokit", name


def test_these_tests_read_something():
    found = [command for path in DOCUMENTS for command in commands(path.read_text())]
    assert len(found) > 35 and len({command.split()[1] for command in found}) >= 9


def test_the_example_of_a_loss_is_that_loss(resolve, checkpoint, tmp_path):
    import torch

    from egokit import losses, tasks
    from egokit.data.loader import build_loader
    from egokit.runs.run_folder import Run
    from egokit.train.loop import Trainer
    config = resolve("toy/charades_finetune", f"task={ROOT / 'docs/examples/margin.py'}:MaxMargin", run="random")
    task = tasks.make(config)
    trainer = Trainer(config, task, Run(tmp_path), "train", torch.device("cpu"))
    batch = next(iter(build_loader(trainer.dataset, trainer.batches(0), task.collate, 0)))
    video_BE, text_BE = task.embeddings(trainer.model.eval(), batch)
    terms = trainer.objective.gradient(batch, 0, trainer.scaler)
    expected = losses.max_margin(egokit.similarity(text_BE, video_BE), margin=0.2)
    assert terms.keys() == {"max_margin"} and terms["max_margin"] == pytest.approx(expected.item(), rel=0.02)  # in bf16


def test_every_promise_names_a_test_that_is_there():
    """Each row of the table in docs/trust.md."""
    rows = [line for line in (ROOT / "docs/trust.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r"`(tests/\w+\.py)::(\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert f"def {name}(" in (ROOT / file).read_text(), (file, name)


def test_published_numbers_of_other_models_are_the_ledgers():
    from egokit.runs.ledger import registered
    text = (ROOT / "docs/compare.md").read_text()
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (\d+) \| ([\d.]+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    peers = [peer for task in {task for task, _ in registered()} for peer in task.peers if peer.published is not None]
    assert len(rows) == len(peers) > 40
    assert {(name, model, int(frames), float(number), source) for name, model, frames, number, _, source in rows} == {
        (peer.name, peer.model, peer.frames, peer.published, peer.source) for peer in peers}
    for name, model, frames, _, file, source in rows:
        peer, = (peer for peer in peers if peer[0] == name and (peer.model, peer.frames, peer.source) == (
            model, int(frames), source))
        assert (peer.checkpoint or peer.md5) in file
