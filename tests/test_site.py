"""What `make docs` lays out for Sphinx; tests/check_site.py looks at the pages that come of it."""
import base64
import importlib
import json
import re
import shutil

import nbformat
import pytest
from conftest import ROOT

from egokit.config.schema import TrainConfig
from egokit.jobs import requeue
from egokit.runs.run_folder import Run

PNG, MP4 = (base64.b64encode(content).decode() for content in (b"a picture", b"a video"))


@pytest.fixture
def site(monkeypatch):
    """Return a function: name -> that module of docs/site."""
    monkeypatch.syspath_prepend(ROOT / "docs/site")
    return importlib.import_module


def executed(path, outputs):
    """Write a notebook as executed, with these outputs of its first code cell."""
    book = nbformat.read(ROOT / "notebooks/00_quickstart.ipynb", as_version=4)
    cell = next(cell for cell in book.cells if cell.cell_type == "code")
    cell.outputs = [nbformat.v4.new_output("display_data", data, metadata=metadata) for data, metadata in outputs]
    path.parent.mkdir(parents=True)
    nbformat.write(book, path)
    return book


def page(site, tmp_path, ran):
    """Return the page of notebook 00, its notes, and the HTML outputs in it."""
    for folder in ("notebooks", "extra/media"):
        (tmp_path / "source" / folder).mkdir(parents=True)
    site("build_site").write_notebook(ROOT / "notebooks/00_quickstart.ipynb", ran, tmp_path / "source")
    book = nbformat.read(tmp_path / "source/notebooks/00_quickstart.ipynb", as_version=4)
    notes = [cell.source for cell in book.cells if cell.source.startswith("```{note}")]
    return book, notes, [output.data["text/html"] for cell in book.cells for output in cell.get("outputs", [])]


def test_a_notebook_that_did_not_run_says_so(site, tmp_path):
    _, (note,), outputs = page(site, tmp_path, tmp_path / "none.ipynb")
    assert "no outputs" in note and "make demo" in note and not outputs


def test_an_executed_notebook_keeps_its_pictures_and_videos_beside_the_page(site, tmp_path):
    html = f'<img alt="two" src="data:image/png;base64,{PNG}"><video src="data:video/mp4;base64,{MP4}"></video>'
    executed(tmp_path / "run/notebook.ipynb", [({"text/html": html}, {}), ({"image/png": PNG}, {}),
                                              ({"image/png": PNG}, {"image/png": {"alt": 'a "clip"'}})])
    _, notes, (first, plain, described) = page(site, tmp_path, tmp_path / "run/notebook.ipynb")
    assert not notes, "it is the notebook of today"
    for name, content in zip(re.findall(r'src="\.\./media/([\w.]+)"', first), (b"a picture", b"a video"), strict=True):
        assert (tmp_path / "source/extra/media" / name).read_bytes() == content
    assert "base64" not in first + plain + described
    assert 'alt="a figure without a description"' in plain and 'alt="a &quot;clip&quot;"' in described


def test_a_notebook_that_has_changed_since_says_so(site, tmp_path):
    path = tmp_path / "run/notebook.ipynb"
    book = executed(path, [])
    book.cells[-1].source += "\n# an earlier line"
    nbformat.write(book, path)
    _, (note,), _ = page(site, tmp_path, path)
    assert "changed since" in note


def damages():
    """Return what is in a damaged notebook, by its kind."""
    whole = (ROOT / "notebooks/00_quickstart.ipynb").read_text()
    outputs = {"half a video": {"output_type": "display_data", "metadata": {}, "data": {
        "text/html": '<video src="data:video/mp4;base64,AAAAA"></video>'}}, "an unknown output": {"output_type": "x"}}
    changed = {name: nbformat.reads(whole, as_version=4) for name in outputs}
    for name, output in outputs.items():
        next(cell for cell in changed[name].cells if cell.cell_type == "code").outputs = [output]
    return {"half": whole[:len(whole) // 2], "empty": "", "no text": "\udcff\udcfe", "a list": "[1]", "a number": "7",
            "no cells": "{}", "no list of cells": json.dumps(json.loads(whole) | {"cells": 3}),
            "another version": json.dumps(json.loads(whole) | {"nbformat": 99}),
            **{name: json.dumps(book) for name, book in changed.items()}}


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_notebook_loses_its_outputs_alone_and_is_named(site, tmp_path, damage):
    path = tmp_path / "run/notebook.ipynb"
    path.parent.mkdir()
    path.write_text(damages()[damage], "utf-8", "surrogateescape")
    _, (note,), outputs = page(site, tmp_path, path)
    assert "was damaged" in note and "Delete it" in note and not outputs
    reason = site("build_site").write_notebook(ROOT / "notebooks/00_quickstart.ipynb", path, tmp_path / "source")
    assert reason.startswith(f"{path} is no whole notebook (") and "make demo, then make docs" in reason


def test_a_site_takes_the_place_of_a_site_alone(site, tmp_path):
    build, target, built = site("build_site"), tmp_path / "web/site", tmp_path / "built"
    for folder, text in ((target, "the user's own"), (built, "new")):
        folder.mkdir(parents=True)
        (folder / "index.html").write_text(text)
    with pytest.raises(SystemExit, match=r"something else than a site.*--to"):
        build.expect_site(target)
    (target / build.INVENTORY).touch()
    build.expect_site(target)
    build.replace(target, built)
    assert (target / "index.html").read_text() == "new" and not (target / build.INVENTORY).exists()
    assert [path.name for path in target.parent.iterdir()] == ["site"]
    build.expect_site(tmp_path / "none")


def test_documents_take_along_what_they_show(site, tmp_path):
    build = site("build_site")
    for name in ("README.md", "docs/time_attention.md", "CONTRIBUTING.md"):
        build.copy_document(ROOT / name, tmp_path)
    assert (tmp_path / "docs/time_attention.png").is_file() and (tmp_path / "CITATION.cff").is_file()
    shutil.copy(ROOT / "README.md", tmp_path / "other.md")
    assert not [path for path in tmp_path.rglob("*.md") if path.name != "other.md" and "](README.md" in
                path.read_text()], "README is the front page, index.md"


def test_every_public_name_is_in_the_reference(site):
    import egokit
    api = site("api_pages")
    top = api.top_page()
    assert all(f"egokit.{name}" in top for name in (*egokit._PUBLIC, *egokit._MODULES))
    assert {path.name for path in (ROOT / "egokit").iterdir() if (path / "__init__.py").is_file()} - {"cli"} == \
        set(api.ROOMS)
    assert ".. autofunction:: egokit.tasks.losses.egonce\n" in api.room_page("tasks")
    assert ".. autoexception:: egokit.config.build.ConfigError\n" in api.room_page("config")


def test_keys_are_listed_with_their_meanings(site):
    lines = site("docstrings").keys(TrainConfig)
    at = lines.index("``epochs: Size = 20``")
    assert lines[at + 1].strip() == "passes over the training set"
    assert len([line for line in lines if line.startswith("``")]) == len(TrainConfig.__pydantic_fields__)
    assert not [line for line in lines if line.strip() == "–"], "a key without a meaning"


def test_docstrings_become_markup(site):
    docstrings = site("docstrings")
    assert docstrings.escaped("`pixels` of **options, video_BE_ and `egokit.load`") == \
        r"``pixels`` of \*\*options, video_BE\_ and `egokit.load`"
    lines = requeue.__doc__.splitlines()
    docstrings.prepare(None, "module", "egokit.jobs.requeue", requeue, None, lines)
    first = next(at for at, line in enumerate(lines) if line.startswith("- "))
    assert not lines[first - 1], "reStructuredText wants an empty line before a list"
    lines = [*Run.__doc__.splitlines(), "", "Raises:", "    ConfigError: why."]
    docstrings.prepare(None, "class", "egokit.runs.run_folder.Run", Run, None, lines)
    assert "    ~egokit.config.build.ConfigError: why." in lines
    for first, told in (("{metric: a number}: of all.", True), ('"recall" {IoU: {R@k}}.', True),
                        ("(ids, targets): of all.", False)):
        lines = ["Say it.", "", "Returns:", f"    {first}"]
        docstrings.prepare(None, "function", "egokit.load", None, None, lines)
        expected = ["    \\ "] * told + [f"    {first}"]
        assert lines[lines.index("Returns:") + 1:][:len(expected)] == expected
