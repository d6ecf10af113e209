"""Texts that somebody else wrote run nothing in Chromium, in JupyterLab and in executed notebooks."""
import html
import json
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from accessibility import FRAGMENT, serious
from conftest import ROOT
from hostile import NAME, OUT, TEXTS
from hostile_shows import HTML, asker, found, markup
from hostile_tasks import WORDS
from test_hostile_texts import own as own
from test_jupyterlab import lab as lab
from test_jupyterlab import run_all, visit
from test_jupyterlab import server as server

from egokit import search
from egokit.notebook import safe_html

pytestmark = pytest.mark.slow

NARRATION = r"<img src=x onerror=document.title='ran'> pays $5^{ and $\frac 10"
VIDEO = "<img src=x onerror=document.title='ran'> $1 $2.mp4"
CELLS = {  # of a notebook in JupyterLab, and whether it shows all texts
    "from IPython.display import HTML\nHTML('<p>a formula: $x^2$</p>')": False,
    "viz.findings(hostile_tasks.findings())": True,
    "search.table(hostile_tasks.answer(folder))": True,
    "search.grid(hostile_tasks.answer(folder))": True,
    "viz.browser(hostile_tasks.evaluated(folder)[0], hostile_tasks.evaluated(folder)[2], hostile_tasks.NAME)": False,
}


@pytest.fixture(scope="module")
def executed(project, checkpoint, tmp_path_factory):
    """Return the notebooks 05 and 07, executed on hostile narrations and names of videos, and their run folders."""
    root = tmp_path_factory.mktemp("hostile")
    shutil.copytree(project / "outputs/toy", root / "toy")
    questions = json.loads((root / "toy/egomcq.json").read_text())
    for question in questions.values():
        for clip in (question["query"], *question["choices"].values()):
            clip["clip_text"] = NARRATION
    (root / "toy/egomcq.json").write_text(json.dumps(questions))
    (root / "videos").mkdir()
    for number, path in enumerate(sorted((root / "toy/Ego4D").glob("*.mp4"))[:2]):
        shutil.copy(path, root / "videos" / f"{number}{VIDEO}")
    site = yaml.safe_load((project / "params/sites/tiny.yaml").read_text())
    site["site"]["root"] = str(root / "toy")
    (project / "params/sites/hostile.yaml").write_text(yaml.safe_dump(site))
    books = {}
    for name, overrides in (("05_egomcq", ""), ("07_search_your_videos", f"task.videos={root / 'videos'}")):
        overrides = f"launch.tasks_per_node=1 init=run:02_pretrain/random data.limit=0 {overrides}"
        # in a process of its own: papermill's event loop and Chromium's don't run in one
        subprocess.run([sys.executable, "-m", "egokit.cli", "run", name, "--site=hostile", "--run=hostile",
                        f"--overrides={overrides}"], check=True, timeout=280)
        run = project / "outputs" / name / "hostile"
        books[name] = nbformat.read(run / "notebook.ipynb", as_version=4), run
    return books


@pytest.mark.parametrize("name", ["05_egomcq", "07_search_your_videos"])
def test_executed_notebooks_run_nothing_in_chromium(executed, name, chromium, tmp_path):
    book, run = executed[name]
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    parts = ["".join(output["data"]["text/html"]) for output in outputs if "text/html" in output.get("data", {})]
    pages = [path.read_text() for path in (run / "figures").glob("*.html")]
    text = NARRATION if name.startswith("05") else VIDEO
    hostile = [part for part in [*parts, *pages] if html.escape(text) in part]
    assert len(hostile) >= 2 and set(pages) <= set(hostile)
    for part in [*parts, *pages]:
        open_page(chromium, tmp_path / "shown.html", part, [text] if part in hostile else [], complete=True)


OWN = "document.body.dataset.own = 'ran'"


@pytest.mark.parametrize("script", ["", OWN])
def test_a_saved_page_runs_no_script_but_its_own(script, chromium, tmp_path):
    """Even if something were not escaped, the page could neither run nor ask for it."""
    other = f"<script>document.title = 'ran'</script><img src={OUT} onerror=\"document.title='ran'\">"
    (tmp_path / "page.html").write_text(safe_html.page("mine", f"<p>text</p>{other}<script>{OWN}</script>", script))
    page, acts = chromium.new_page(), []
    page.on("requestfailed", lambda request: acts.append(request.failure))
    page.on("response", lambda response: acts.append(response.url))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_timeout(200)
    assert page.title() == "mine" and (page.evaluate("document.body.dataset.own") == "ran") == bool(script)
    assert all("csp" in act or act.startswith("file:") for act in acts), acts


def test_nothing_runs_and_no_formula_is_made_in_jupyterlab(lab, project, tmp_path):
    head = (f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
            f"import hostile_tasks\nfrom egokit import search, viz\nfolder = Path({str(tmp_path)!r})")
    kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernelspec})
    book.cells = [nbformat.v4.new_code_cell(source) for source in (head, *CELLS)]
    nbformat.write(book, project / "lab/90_hostile.ipynb")
    opened, acts = lab("90_hostile"), []
    opened.page.on("dialog", lambda dialog: (acts.append(dialog.message), dialog.dismiss()))
    opened.page.on("request", lambda request: acts.append(request.url) if ":9/" in request.url else None)
    run_all(opened)
    opened.page.locator("mjx-container").first.wait_for(timeout=30_000)  # MathJax is there and has been at work
    opened.page.wait_for_timeout(1000)
    for number, (source, shows_all) in enumerate(CELLS.items()):
        cell = visit(opened, source)
        cell.locator(".jp-OutputArea-output").first.wait_for()
        opened.page.wait_for_timeout(300)
        assert (cell.locator("mjx-container").count() > 0) == (number == 0), source
        if shows_all:
            seen = " ".join(cell.locator(".jp-OutputArea").inner_text().split())
            missing = [word[:60] for word in WORDS if " ".join(TEXTS[word].split()) not in seen]
            assert not missing, (source, missing, seen[:500])
    assert not acts and opened.page.title() != "ran"


@pytest.mark.parametrize("name", [*HTML, "search", "questions"])
def test_nothing_runs_in_chromium(name, tmp_path, own, chromium):
    if name == "search":
        searcher, answer = found(tmp_path)
        shows = [search.table(answer), search.grid(answer), search.browser(searcher, NAME)]
        shows += [path.read_text() for path in searcher.run.path.glob("figures/*.html")]
        texts = WORDS
    elif name == "questions":
        ask, answer = asker(tmp_path)
        shows, texts = [search.answer_table(answer), search.ask_browser(ask, NAME, WORDS[0])], WORDS
        shows += [path.read_text() for path in ask.run.path.glob("figures/*.html")]
    else:
        shows, texts, _ = HTML[name](tmp_path, own)
    for text in markup(shows):
        open_page(chromium, tmp_path / "shown.html", text, texts)


def open_page(chromium, path, text: str, texts, complete: bool = False) -> None:
    """Open a page, or a part of one; check that it shows texts to everybody, and neither does nor asks for anything.

    Args:
        complete: Whether all its pictures and videos must be there, too.
    """
    is_page = text.startswith("<!doctype")
    path.write_text(text if is_page else f"<!doctype html><meta charset=utf-8><title>mine</title><body>{text}")
    context = chromium.new_context()
    page, acts = context.new_page(), []
    page.on("dialog", lambda dialog: (acts.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: acts.append(request.url))
    page.on("popup", lambda popup: acts.append(popup.url))
    page.goto(path.as_uri())
    page.evaluate("""document.querySelectorAll('*').forEach(node => {
        for (const name of ['mouseover', 'focus', 'click']) node.dispatchEvent(new Event(name));
        if (node.localName === 'details') node.open = true })""")
    page.wait_for_timeout(200)
    if complete:
        page.wait_for_function("""[...document.querySelectorAll('img, video')].every(
            node => node.naturalWidth > 0 || node.readyState > 0)""")
    acts = [act for act in acts if not act.startswith(("data:", path.as_uri()))]
    assert not acts and page.title() != "ran" and (is_page or page.title() == "mine")
    alternatives = page.evaluate("[...document.images].map(image => image.alt)")  # of pictures of texts
    seen = " ".join(" ".join([page.locator("body").inner_text(), *alternatives]).split())
    missing = [word[:60] for word in texts if " ".join(TEXTS.get(word, word).split()) not in seen]
    assert not missing, missing
    assert not serious(page, left_out=() if is_page else FRAGMENT)
    context.close()
