"""A real JupyterLab: headless Chromium runs each notebook and checks what is shown.

It needs Debian's Chromium, which tests/browser.sh installs; .ci/run installs it and requires these tests.
EGOKIT_SCREENSHOTS names a folder for screenshots.
"""
import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
import types
import urllib.parse
from pathlib import Path

import nbformat
import pytest
from conftest import MODEL, ROOT, SMALL

from egokit.jobs import status

pytestmark = pytest.mark.slow

RUN = "lab"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SEARCH = next((name for name in NOTEBOOKS if name.startswith("07")), None)
TRAINED = "launch.tasks_per_node=1 init=run:02_pretrain/random"
OVERRIDES = {
    "01_data_prep": "",
    "02_pretrain": f"{SMALL} {MODEL} train.epochs=3",
    "03_ek100": f"{TRAINED} {SMALL} data.limit=16",
    "04_charades_ego": f"{TRAINED} {SMALL} data.limit=16",
    "06_egomq_features": f"{TRAINED} train.epochs=4",
    "08_egonlq": f"{TRAINED} train.epochs=4",
    "09_egotaskqa": f"{TRAINED} train.epochs=4",
    "10_change_something": f"{TRAINED} data.limit=16 train.batch_size=4",
}
SETTINGS = {  # without JupyterLab's own dialogs and requests
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
CELLS = """() => jupyterapp.shell.currentWidget.content.widgets.filter(
    cell => cell.model.type === 'code').map(cell => ({
        source: cell.model.sharedModel.getSource(), count: cell.model.executionCount,
        outputs: cell.model.outputs.toJSON().map(output => ({type: output.output_type,
            kinds: Object.keys(output.data || {}),
            error: output.output_type === 'error' ? output.traceback.join('\\n') : ''}))}))"""
KERNEL = "() => jupyterapp.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status ?? 'none'"


@pytest.fixture(scope="module")
def server(chromium, project, checkpoint, tmp_path_factory):
    """Start JupyterLab with small copies of all notebooks in lab/; yield (address, token)."""
    (project / "lab").mkdir(exist_ok=True)
    for path in (project / "notebooks").glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        cell = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
        cell.source += f'\nsite, run_name, overrides = "tiny", "{RUN}", "{OVERRIDES.get(path.stem, TRAINED)}"'
        nbformat.write(book, project / "lab" / path.name)
    home = tmp_path_factory.mktemp("jupyter")
    for name, values in SETTINGS.items():
        path = home / "lab/user-settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(home), "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
                                "JUPYTER_DATA_DIR": str(home / "data"), "IPYTHONDIR": str(home / "ipython"),
                                "JUPYTERLAB_SETTINGS_DIR": str(home / "lab/user-settings"),
                                "JUPYTERLAB_WORKSPACES_DIR": str(home / "lab/workspaces")}
    token = secrets.token_hex()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
               "--ServerApp.port=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={project}",
               "--LabApp.expose_app_in_browser=True"]
    with open(home / "server.log", "w") as log:
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log,
                                   start_new_session=True)
    try:
        yield address(process, home), token
    finally:
        process.terminate()  # the server ends its kernels
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        for job in (project / "outputs").glob(f"*/{RUN}/jobs/*"):
            status.cancel(job)


def address(process, home) -> str:
    """Return the server's address; it listens on any free port."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for path in (home / "runtime").glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):
                return json.loads(path.read_text())["url"]
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start: {(home / 'server.log').read_text()[-2000:]}")


@pytest.fixture
def lab(server, chromium, tmp_path_factory):
    """Yield a function that opens a notebook by its name. Its kernel is ended after the test."""
    url, token = server
    folder = Path(os.environ.get("EGOKIT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(f"{message.text} ({message.location['url']})")
            if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def opened(name: str):
        page.goto(f"{url}lab/tree/lab/{name}.ipynb?reset&token={urllib.parse.quote(token)}")
        page.wait_for_function(f"() => window.jupyterapp && ({KERNEL})() === 'idle'", timeout=60_000)
        return types.SimpleNamespace(page=page, errors=errors, name=name, folder=folder)

    yield opened
    with contextlib.suppress(Exception):
        page.evaluate("() => jupyterapp.serviceManager.sessions.shutdownAll()")
    context.close()


def run_all(lab, seconds: float = 240, meanwhile=None) -> list[dict]:
    """Run all cells from the menu and return the code cells.

    meanwhile(cells) is called repeatedly until the last cell is done.
    """
    lab.page.get_by_role("menuitem", name="Run", exact=True).click()
    lab.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    deadline = time.monotonic() + seconds
    while True:
        cells, kernel = lab.page.evaluate(CELLS), lab.page.evaluate(KERNEL)
        failed = [output["error"] for cell in cells for output in cell["outputs"] if output["error"]]
        assert not failed, f"{lab.name}: {plain(failed[0])}"
        if kernel == "idle" and all(cell["count"] for cell in cells):
            return cells
        assert kernel not in ("dead", "none", "autorestarting") and time.monotonic() < deadline, (
            kernel, [cell["count"] for cell in cells])
        if meanwhile:
            meanwhile(cells)
        lab.page.wait_for_timeout(200)


def plain(traceback: str) -> str:
    """Return the end of a traceback without terminal colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", traceback)[-3000:]


def visit(lab, needle: str):
    """Scroll to the code cell whose source contains `needle`; return its locator."""
    number = lab.page.evaluate("""needle => { const book = jupyterapp.shell.currentWidget.content;
        const index = book.widgets.findIndex(
            cell => cell.model.type === 'code' && cell.model.sharedModel.getSource().includes(needle));
        book.activeCellIndex = index; book.scrollToItem(index, 'start'); return index }""", needle)
    assert number >= 0, f"{lab.name} has no cell with {needle!r}"
    cell = lab.page.locator(f'.jp-Notebook .jp-Cell[data-windowed-list-index="{number}"]')
    cell.wait_for(state="visible")
    return cell


def screenshot(lab, name: str) -> None:
    lab.page.screenshot(path=lab.folder / f"{lab.name}-{name}.png")


def look_through(lab, cells: list[dict]) -> None:
    """Scroll through the notebook; check that all outputs, images and widgets are drawn, and pictures described."""
    for number, cell in enumerate(cells):
        if not cell["outputs"]:
            continue
        shown = visit(lab, cell["source"])
        outputs = shown.locator(".jp-OutputArea-output")
        outputs.first.wait_for(state="visible")
        lab.page.wait_for_function("""cell => [...cell.querySelectorAll('.jp-OutputArea img')].every(
            image => image.complete && image.naturalWidth > 0)""", arg=shown.element_handle())
        alternatives = outputs.locator("img").evaluate_all("images => images.map(image => image.alt)")
        assert all(alternatives), (lab.name, cell["source"], "a picture without an alternative text")
        text = shown.locator(".jp-OutputArea").inner_text()
        assert not re.search("Error displaying widget|Loading widget|Javascript Error|model not found", text), (
            lab.name, text)
        if any("application/vnd.jupyter.widget-view+json" in output["kinds"] for output in cell["outputs"]):
            shown.locator(".jupyter-widgets").first.wait_for(state="visible")
        screenshot(lab, f"{number:02d}")


def cell_with(cells: list[dict], needle: str) -> dict:
    return next(cell for cell in cells if needle in cell["source"])


# tests below look through 02, 03 and 07 to 09, and use them; test_notebooks.py runs 11, which trains four times
@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name[:2] not in ("02", "03", "07", "08", "09", "11")])
def test_every_cell_runs_and_everything_is_shown(lab, name):
    book = lab(name)
    look_through(book, run_all(book))
    assert not book.errors


def test_curves_grow_while_it_trains(lab):
    book, pictures = lab("02_pretrain"), set()
    where = '.jp-Notebook .jp-Cell:has-text("viz.watch(") .jp-OutputArea img'

    def glance(cells):
        if not cell_with(cells, "viz.watch(")["count"]:  # the training runs
            pictures.update(book.page.locator(where).evaluate_all(
                "images => images.slice(0, 1).map(image => image.src)"))

    cells = run_all(book, meanwhile=glance)
    assert len(pictures) > 1, "drawn again before the cell was done"
    kinds = [output["kinds"] for output in cell_with(cells, "viz.watch(")["outputs"]]
    assert ["text/html" in kind for kind in kinds] == [True, True], "the curves and the predictions, each in one place"
    look_through(book, cells)
    assert not book.errors


def test_the_retrieval_browser(lab):
    book = lab("03_ek100")
    look_through(book, run_all(book))
    browse(book)
    assert not book.errors


def browse(book) -> None:
    """Search and choose in the retrieval browser; check that its list and pictures follow."""
    cell = visit(book, "viz.browser(")
    widgets = cell.locator(".jupyter-widgets").first
    widgets.wait_for(state="visible")
    shown = widgets.locator("img")
    listed = widgets.locator("select[size] option")
    everything = listed.count()
    assert everything > 3 and shown.count() > 0
    widgets.get_by_placeholder("part of a query").fill("open")
    book.page.wait_for_function("""([widgets, before]) => {
        const options = [...widgets.querySelectorAll('select[size] option')];
        return options.length && options.length < before
            && options.every(option => option.textContent.toLowerCase().includes('open')) }""",
                                arg=[widgets.element_handle(), everything])
    screenshot(book, "browse")
    widgets.get_by_placeholder("part of a query").fill("")
    book.page.wait_for_function("([widgets, all]) => widgets.querySelectorAll('select[size] option').length === all",
                                arg=[widgets.element_handle(), everything])
    before = shown.evaluate_all("images => images.map(image => image.src).join()")
    widgets.locator("select[size]").select_option(index=everything - 1)
    book.page.wait_for_function("""([widgets, before]) => { const images = [...widgets.querySelectorAll('img')];
        return images.length && images.map(image => image.src).join() !== before
            && images.every(image => image.complete && image.naturalWidth > 0) }""",
                                arg=[widgets.element_handle(), before])


@pytest.mark.skipif(SEARCH is None, reason="there is no notebook 07 yet")
def test_a_search_plays_what_it_finds(lab):
    book = lab(SEARCH)
    look_through(book, run_all(book))
    query_and_play(book, "#C C opens the box")
    screenshot(book, "search")
    assert not book.errors


@pytest.mark.parametrize("name, box", [("08_egonlq", "search.ask_browser("), ("09_egotaskqa", "search.answer_box(")])
def test_a_question_typed_in_plays_its_answers(lab, name, box):
    book = lab(name)
    look_through(book, run_all(book))
    visit(book, box)
    if name == "08_egonlq":  # an answer in words plays the same clip, whatever the question
        query_and_play(book, "where is the blue cup?")
    screenshot(book, name)
    widgets, before = outermost(book), book.page.evaluate(PLAYED)
    widgets.locator("select").select_option(index=2)  # of another clip than the first question's
    book.page.wait_for_function(f"before => {{ const now = ({PLAYED})(); return now && now !== before }}", arg=before)
    question = widgets.locator("input[type=text]").first
    for text, shown in (("is it red, $x$?", "is it red, $x$?"), ("?", "the question is empty")):
        question.fill(text)
        question.press("Enter")
        widgets.get_by_text(shown).first.wait_for()
    assert not book.errors


PLAYED = ("() => [...document.querySelectorAll('.jp-Notebook .jp-OutputArea .jupyter-widgets video')]"
          ".map(video => video.src).join()")


def outermost(book):
    """Return the outermost widgets that have a box for a text, and clips."""
    return book.page.locator(".jp-Notebook .jp-OutputArea .jupyter-widgets:has(input[type=text]):has(video)").first


def query_and_play(book, text: str) -> None:
    """Type a text, wait for other clips, and play the first of them."""
    widgets = outermost(book)
    widgets.scroll_into_view_if_needed()
    before = book.page.evaluate(PLAYED)
    query = widgets.locator("input[type=text]").first
    query.fill(text)
    query.press("Enter")
    book.page.wait_for_function(f"before => {{ const now = ({PLAYED})(); return now && now !== before }}", arg=before)
    video = widgets.locator("video").first
    video.scroll_into_view_if_needed()
    video.click()
    book.page.wait_for_function("video => video.videoWidth > 0 && (video.currentTime > 0.2 || video.duration < 0.4)",
                                arg=video.element_handle())
