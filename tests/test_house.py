"""The package's structure: rooms, file sizes, import time, dependencies, clean notebooks."""
import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import ANY

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

import egokit
from egokit.config.registry import TASKS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "egokit"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

ROOMS = ["config", "runs", "data", "model", "train", "tasks", "jobs", "notebook", "toy", "prep", "search", "viz", "cli"]


def room(path):
    """The room of a file: the first part of its path in the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """The rooms from which a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("egokit"):
            inner = node.module.split(".")[1:]
            short = egokit._PUBLIC | egokit._MODULES  # names that the top of egokit hands on
            names = [short.get(alias.name, alias.name) for alias in node.names]
            yield from [inner[0]] if inner else [name.split(".")[0] for name in names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("egokit."))


def test_imports_run_only_downward():
    """A room imports only from itself and from rooms before it in ROOMS."""
    upward = [(str(path.relative_to(PACKAGE)), target) for path in PACKAGE.rglob("*.py") for target in imports(path)
              if target in ROOMS and room(path) in ROOMS and ROOMS.index(target) > ROOMS.index(room(path))]
    assert not upward


def test_a_benchmark_is_known_to_its_own_class_alone():
    """Nothing beside the tasks and the registry knows one."""
    modules = {target.partition(":")[0] for target in TASKS.values()} - {"egokit.search.index_task"}
    users = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if room(path) != "tasks"
             for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
             if node.module in modules}
    assert len(modules) >= 5 and not users


def test_the_top_of_egokit_is_its_rooms():
    names = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert names == {*ROOMS, "__init__"} and len(names) <= 14


def test_imported_names_and_module_attributes_exist():
    """A stale name fails here, not after an hour of tests or in a user's run."""
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        tree, modules = ast.parse(path.read_text()), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "egokit":
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    stem = ROOT / name.replace(".", "/")
                    if stem.with_suffix(".py").exists() or stem.is_dir():
                        modules[alias.asname or alias.name] = importlib.import_module(name)
                    else:
                        assert hasattr(importlib.import_module(node.module), alias.name), (path.name, name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                name = f"{node.value.id}.{node.attr}"
                assert hasattr(modules[node.value.id], node.attr), (path.name, node.lineno, name)


def test_only_train_uses_process_groups_and_only_resolve_reads_yaml():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert path.parent.name == "train" or "torch.distributed" not in text, path
        assert path.name == "resolve.py" or "import yaml" not in text, path


def test_no_file_has_more_than_300_lines():
    files = [path for folder in ("egokit", "tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_importing_is_quick_and_light():
    code = ("import time; t = time.perf_counter(); import egokit; took = time.perf_counter() - t; import sys; "
            "heavy = {'torch', 'transformers', 'timm', 'pandas', 'matplotlib', 'av', 'decord', 'submitit', 'numpy'}; "
            "heavy &= set(sys.modules); "
            "assert not heavy, heavy; assert took < 0.5, took")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_task_is_imported_without_pandas():
    """It takes longer than all of egokit, and only tables need it; every job and notebook imports a task."""
    code = "import sys; import egokit.tasks.ek100, egokit.tasks.egoclip; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_paths_of_a_machine_in_tracked_files():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in tracked or [str(p) for p in PACKAGE.rglob("*.py")]:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", "") and path.is_file():
            match = re.search(r"(?<![\w.$/])/(work|root|farm)/\w", path.read_text(errors="replace"))
            assert not match, (name, match)


def test_one_list_of_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    assert pip == ["-c requirements.lock", "-e .[dev]"], "environment.yml takes its packages from pyproject.toml alone"
    python = next(part for part in environment["dependencies"] if str(part).startswith("python"))
    assert python.split("=")[1] in ("3.11", "3.12") and project["requires-python"] == ">=3.11"
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pins = dict(line.split("==") for line in lock if line and line[0] != "#")
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"], *extras["docs"]]:
        required = Requirement(text)
        operators = [part.operator for part in required.specifier]
        assert operators == [">="], f"{text}: make test-lowest takes the oldest version from here"
        assert required.name in pins, f"{required.name} is not pinned in requirements.lock"
        assert required.specifier.contains(pins[required.name]), (text, pins[required.name])
    assert (pins["torch"], pins["torchvision"]) == ("2.15.0", "0.29.2"), "torch and torchvision are upgraded as a pair"


def test_every_dependency_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = ["):text.index("[project.scripts]")]
    assert all("#" in line for line in block.splitlines() if line.strip().startswith('"'))


@pytest.fixture
def committing(tmp_path, monkeypatch):
    """A repository with the project's hooks, and a function that runs the hooks.

    The repository has the notebooks that a test copies into it; the function returns (exit code, output).
    """
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # the tests themselves may be run by a hook
        monkeypatch.delenv(name)
    folder = tmp_path / "repository"
    (folder / "notebooks").mkdir(parents=True)
    (folder / ".venv").symlink_to(sys.prefix)
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)

    def run():
        subprocess.run(["git", "add", ".pre-commit-config.yaml", "notebooks"], cwd=folder, check=True)
        command = [Path(sys.executable).with_name("pre-commit"), "run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr
    return folder, run


def test_committed_notebooks_are_as_the_hook_leaves_them(committing):
    folder, run = committing
    for path in NOTEBOOKS:
        shutil.copy(path, folder / "notebooks")
    assert run() == (0, ANY)


def test_the_hook_cleans_what_was_run_and_lints_cells(committing):
    """A notebook as JupyterLab and papermill leave it, and one with an unused import."""
    folder, run = committing
    book = nbformat.read(NOTEBOOKS[0], as_version=4)
    for count, cell in enumerate(cell for cell in book.cells if cell.cell_type == "code"):
        cell.execution_count = count + 1
        cell.outputs = [nbformat.v4.new_output("stream", text="said")]
        cell.metadata |= {"execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"}, "papermill": {"duration": 1.0},
                          "scrolled": True, "ExecuteTime": {}, "jupyter": {"source_hidden": False}, "editable": True}
    book.metadata |= {"papermill": {"duration": 1.0}, "widgets": {"application/vnd.jupyter.widget-state+json": {}}}
    book.metadata.language_info |= {
        "version": "3.11.2", "mimetype": "text/x-python", "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py", "nbconvert_exporter": "python", "pygments_lexer": "ipython3"}
    dirty = folder / "notebooks" / NOTEBOOKS[0].name
    nbformat.write(book, dirty)
    code, output = run()
    assert code == 1 and "files were modified by this hook" in output
    assert dirty.read_bytes() == NOTEBOOKS[0].read_bytes() and run()[0] == 0
    book = nbformat.read(dirty, as_version=4)
    next(cell for cell in book.cells if cell.cell_type == "code").source += "\nimport os"
    nbformat.write(book, dirty)
    code, output = run()
    assert code == 1 and "F401" in output and "notebooks" in output


ORDER = ["Parameters", "The resolved configuration", "A batch", "Zero-shot", "Train", "Fine-tune", "Evaluate",
         "Extract", "Result", "The ledger", "Retrieval, before and after training",
         "By verb and by noun", "Class by class", "Questions, right and wrong", "Browse", "What was written"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_one_order_of_sections(path):
    """All notebooks have one order: purpose, parameters, config, the work, its results."""
    cells = nbformat.read(path, as_version=4).cells
    first, *texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    number, name = path.stem.split("_", 1)
    assert first.startswith(f"# {number} · "), name
    labels = re.findall(r"^\*\*(.*?)\.\*\*", first, re.MULTILINE)
    assert labels in (["Purpose", "Inputs", "Published"], ["Purpose", "Inputs", "To expect"])
    headings = [re.match("## (.*)", text)[1] for text in texts if text.startswith("## ")]
    assert len(headings) == len(texts) and headings[:2] == ORDER[:2]
    ordered = [heading for heading in headings if heading in ORDER]
    assert ordered == sorted(ordered, key=ORDER.index)
    assert [cell.cell_type for cell in cells[:5]] == ["markdown", "markdown", "code", "markdown", "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean_and_define_nothing(path):
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(code) <= 14
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = [target.id for node in ast.parse(tagged[0].source).body for target in node.targets]
    assert names == ["params", "site", "overrides", "run_name"]
    for cell in code:
        magic, _, content = cell.source.partition("\n")
        if magic.startswith('%%writefile "{run.path}/'):  # it writes what a job can read: a class of the user's
            assert len(content.splitlines()) <= 20 and ast.parse(content)
            continue
        assert len(cell.source.splitlines()) <= 12
        tree = ast.parse(cell.source)
        definitions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
        assert not definitions, "notebooks define nothing"
        assert "sys.path" not in cell.source and '"../' not in cell.source
    assert book.cells[0].cell_type == "markdown" and "**Purpose.**" in book.cells[0].source
