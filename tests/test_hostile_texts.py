"""Texts that somebody else wrote are shown as they are: in every figure, table, page and widget, and in Chromium."""
import ast
import json
import sys
from types import SimpleNamespace

import hostile_tasks
import matplotlib
import pytest
from conftest import ROOT
from hostile import FILES, NAME, TEXTS, check_figure, check_html
from hostile_tasks import DRAWN, FEW, WORDS, evaluated, job_of, trained, with_files

import egokit
from egokit import search, tasks, viz
from egokit.jobs.progress import ProgressBar
from egokit.runs.ledger import Result
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import MAX_SHOWN, shown
from egokit.viz import queries
from egokit.viz.browser import SCRIPT, card, widgets

NAMED = [NAME, f"{NAME}-2"]
RESULT = Result(NAME, NAME, NAME, 1.0, chance=NAME)


def module(name):
    """Return a module of egokit.viz, whose name in the package is its function."""
    return sys.modules[f"egokit.viz.{name}"]


# every public function that shows something: how it is given hostile texts -> (what it returns, the texts to be seen,
# and what legends name); `own` has the project's fixtures

def accuracy_by_word(folder, own):
    _, task, _, run = evaluated(folder, DRAWN)
    return viz.accuracy_by_word(task, run, NAME), DRAWN[:10], DRAWN[:3]


def average_precisions(folder, own):
    task, _, run, _ = evaluated(folder, DRAWN)
    return viz.average_precisions(task, run, *NAMED), DRAWN, NAMED


def retrieval_by_word(folder, own):
    task, _, run, _ = evaluated(folder, DRAWN)
    return viz.retrieval_by_word(task, run, *NAMED), DRAWN[:10], NAMED


def batch(folder, own):
    return viz.batch(evaluated(folder, DRAWN)[0], Run(folder / NAME), count=len(DRAWN)), DRAWN, ()


def narrations(folder, own):
    config, root = own.copied[0](own.resolve()), own.copied[1]
    lines = (root / "egoclip.csv").read_text().splitlines()
    at = lines[0].split("\t").index("clip_text")
    texts = [text for text in DRAWN
             if len(text) < 999 and text != "None" and not set("\t\n\r\v\0\"\u2028\udcff") & set(text)]
    rows = [line.split("\t") for line in lines[1:]]
    rows = [row for row in rows if len(row) == len(lines[0].split("\t"))][:len(texts)]
    for row, text in zip(rows, texts, strict=False):
        row[at] = text
    (root / "egoclip.csv").write_text("\n".join([lines[0], *map("\t".join, rows)]) + "\n")
    return viz.narrations(config, count=len(rows)), [row[at] for row in rows], ()


def watched(folder, own):
    run, shows = trained(folder), []
    own.monkeypatch.setattr(module("predictions"), "pictures", lambda job: lambda number: own.grey)
    own.monkeypatch.setattr(module("curves"), "curves", lambda run: shows.append(viz.curves(run)))
    own.monkeypatch.setattr(module("curves"), "predictions", lambda job: shows.append(viz.predictions(job)))
    viz.watch(job_of(run))
    return shows


def questions(folder, own):
    _, task, _, run = evaluated(folder, DRAWN)
    return viz.questions(task, run, NAME, len(DRAWN)), DRAWN, ()


def retrieved(folder, own):
    task, _, run, _ = evaluated(folder, DRAWN)
    return viz.retrieved(task, run, NAME, len(DRAWN)), DRAWN, ()


def question(folder, own):
    task = evaluated(folder, DRAWN)[1]
    return [viz.question(task, number, Run(folder / "q")).figure for number in map(DRAWN.index, FEW)], FEW, ()


def reranked(folder, own):
    task = evaluated(folder, DRAWN)[0]
    return [viz.reranked(hostile_tasks.Model(), task, text, Run(folder / "r")) for text in FEW], FEW, ()


def fusion(folder, own):
    model = egokit.load(own.checkpoint, tokenizer=own.resolve().site.tokenizer)
    frames = viz.question(tasks.make(own.resolve()).validation(), 0).pixels[0]
    texts = [text for text in FEW if "\udcff" not in text]  # which no tokenizer takes
    return [viz.fusion(model, frames, text) for text in texts], texts, ()


def features(folder, own):
    import torch
    run = Run(folder / NAME)
    (run.path / "features").mkdir()
    torch.save(torch.rand(9, 4), run.path / "features/a.pt")
    clips = [{"clip_uid": "a", "split": text, "start": 0.0, "stop": 1.0} for text in DRAWN[:3]]
    (run.path / "features/manifest.json").write_text(json.dumps({"format": "pt", "clips": clips}))
    return viz.features(Run(folder / NAME)), DRAWN[:3], ()


def browser(folder, own):
    task, choice, run, other = evaluated(folder)
    pages = [viz.browser(task, run, NAME, f"{NAME}-2"), viz.browser(choice, other, NAME)]
    return [*pages, *(file.read_text() for file in folder.glob("outputs/*/*/figures/browser*.html"))], [NAME], ()


FIGURES = {
    "accuracy_by_word": accuracy_by_word, "average_precisions": average_precisions, "batch": batch,
    "curves": lambda folder, own: (viz.curves(trained(folder)), [NAME], [NAME.replace("_", "")]),
    "features": features, "fusion": fusion, "narrations": narrations,
    "predictions": lambda folder, own: (watched(folder, own)[1], [NAME, *DRAWN], ()),
    "published": lambda folder, own: (viz.published(with_files(folder)), [NAME], ()),
    "question": question,
    "questions": questions,
    "reranked": reranked, "retrieval_by_word": retrieval_by_word,
    "retrieved": retrieved,
    "watch": lambda folder, own: (watched(folder, own), [], ()),
}
HTML = {
    "browser": browser,
    "counts": lambda folder, own: (viz.counts(dict.fromkeys(WORDS, 1)), [word.replace("_", " ") for word in WORDS], ()),
    "files": lambda folder, own: (viz.files(with_files(folder)), [*FILES, NAME], ()),
    "findings": lambda folder, own: (viz.findings(hostile_tasks.findings()), WORDS, ()),
    "ledger": lambda folder, own: (viz.ledger(with_files(folder).path.parents[1]), [NAME], ()),
    "metrics": lambda folder, own: (viz.metrics(dict.fromkeys(WORDS, 1.5)), [word.replace("_", " ") for word in WORDS],
                                    ()),
    "results": lambda folder, own: (viz.results(with_files(folder)), [NAME], ()),
    "table": lambda folder, own: (viz.table([(RESULT, {NAME: {NAME: text}, "chance": {NAME: [text]}})
                                             for text in WORDS]), [NAME, *WORDS], ()),
}
NO_TEXT = {"strip"}
SEARCH = {"browser", "grid", "table"}


@pytest.fixture
def own(request, monkeypatch):
    """The project's fixtures, made when they are asked for."""
    class Own:
        grey = hostile_tasks.np.full((8, 8, 3), 100, "uint8")

        def __getattr__(self, name):
            return request.getfixturevalue(name)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    return Own()


def markup(shows) -> list[str]:
    """Return tables and pages as HTML."""
    return [show if isinstance(show, str) else show.to_html() if hasattr(show, "to_html") else show.data
            for show in (shows if isinstance(shows, list) else [shows])]


def found(folder) -> tuple:
    """Return what `searcher(...)` needs for search.browser, with hostile answers."""
    searcher = SimpleNamespace(folder=folder / NAME, run=Run(folder / "outputs/07" / NAME))
    answer = hostile_tasks.answer(folder)

    class Searcher(SimpleNamespace):
        def __call__(self, text, top, rerank):
            return answer
    return Searcher(**vars(searcher)), answer


def test_everything_public_that_shows_something_is_tried():
    assert {*FIGURES, *HTML, *NO_TEXT} == set(viz.__all__) and len(FIGURES | HTML) == len(FIGURES) + len(HTML)
    module = ast.parse((ROOT / "egokit/search/page.py").read_text())
    public = {node.name for node in module.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
    assert public == SEARCH


def test_html_and_figures_are_made_in_one_place_each():
    """Whoever adds a table or a figure takes `styled` and `new_figure`, or a text in it is not shown as it is."""
    html, figures = {}, {}
    for path in sorted((ROOT / "egokit").rglob("*.py")):
        name = str(path.relative_to(ROOT / "egokit"))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imported = {alias.name for alias in node.names}
                if imported & {"html", "Markdown"}:
                    html.setdefault(name, []).append(node.lineno)
                if "matplotlib.pyplot" in imported:
                    figures.setdefault(name, []).append(node.lineno)
            if isinstance(node, ast.Attribute) and node.attr in ("style", "Label", "HTMLMath", "to_html"):
                html.setdefault(name, []).append(node.lineno)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("plt.figure", "plt.subplots",
                                                                               "pyplot().figure", "pyplot().subplots")):
                figures.setdefault(name, []).append(node.lineno)
    assert set(html) == {"notebook/safe_html.py"} and set(figures) == {"viz/style.py"}, (html, figures)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for word in ("Markdown", "HTML(", ".style", "to_html", "plt."):
            assert word not in path.read_text(), (path, word)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_texts_as_they_are(name, tmp_path, own):
    figures, texts, legends = FIGURES[name](tmp_path, own)
    if not isinstance(figures, list):
        check_figure(figures, texts, legends)
    elif len(figures) == len(texts):
        for figure, text in zip(figures, texts, strict=True):
            check_figure(figure, [text])
    else:
        for figure in figures:
            check_figure(figure, ())
    assert all(file.stat().st_size < 20 << 20 for file in tmp_path.rglob("figures/*.png"))


def test_a_figure_of_ours_leaves_formulas_to_the_users(tmp_path):
    viz.published(with_files(tmp_path))
    assert matplotlib.rcParams["text.parse_math"]


@pytest.mark.parametrize("name", HTML)
def test_tables_and_pages_show_texts_as_they_are(name, tmp_path, own):
    shows, texts, _ = HTML[name](tmp_path, own)
    for text in markup(shows):
        check_html(text, texts, scripts=[SCRIPT.read_text()], typeset=text.startswith("<!doctype"))


def test_the_browsers_data_and_widgets_show_texts_as_they_are(tmp_path, own):
    task, choice, run, other = evaluated(tmp_path)
    for content in (queries.make_queries(task, queries.sides(run, NAME, f"{NAME}-2")),
                    queries.make_queries(choice, queries.sides(other, NAME, None))):
        for k, text in enumerate(WORDS):
            check_html(f'<p class="mathjax_ignore">{card(content, k, lambda v: "")}</p>', [text])
        check_widgets(widgets(content, lambda v: ""))


def check_widgets(box) -> None:
    """Check the HTML in widgets; what a Label or a description shows must not be typeset or taken for HTML."""
    from browser_pages import every
    for widget in every(box):
        kind = type(widget).__name__
        assert not getattr(widget, "description_allow_html", False) and kind != "HTMLMath"
        if kind == "HTML":
            check_html(widget.value, ())
        if kind == "Label":
            assert "mathjax_ignore" in widget._dom_classes


@pytest.mark.parametrize("playing", [True, False])
def test_what_is_searched_shows_texts_as_they_are(playing, tmp_path, own, monkeypatch):
    searcher, answer = found(tmp_path)
    if playing:
        monkeypatch.setattr(sys.modules["egokit.search.page"], "_encoded", lambda hit: ("AAAA", "AAAA", 0.75))
    check_html(search.table(answer).to_html(), WORDS)
    check_html(search.grid(answer).data, WORDS)
    for text in WORDS:
        check_html(search.browser(searcher, text).data, [text])
    pages = list(searcher.run.path.glob("figures/*.html"))
    assert pages
    for path in pages:
        check_html(path.read_text(), WORDS, typeset=True)
    monkeypatch.setenv("JPY_SESSION_NAME", "live.ipynb")
    live = search.browser(searcher, NAME)
    check_widgets(live)
    live.children[0].value = "another"
    check_widgets(live)


def test_the_progress_bar_is_one_line_of_visible_characters(capsys):
    bar = ProgressBar("\x1b[2J{0} %s\nnext")
    bar.show("pending: \x1b]0;x\x07", None, None)
    bar.show("running", 1, 2, "detail")
    bar.close()
    out = capsys.readouterr().out
    assert r"\x1b[2J{0} %s\nnext" in out and "\x1b]" not in out and "\x1b[2J" not in out


def test_shown_texts_are_bounded_visible_and_stable():
    for text, seen in TEXTS.items():
        assert shown(text) == seen and shown(seen) == seen and len(seen) <= MAX_SHOWN
    assert shown("\x1b" * 2000, 40) == "\\x1b" * 9 + "\\x" + " …" and shown(None) == "None" and shown(3) == "3"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HTML, "search"])
def test_nothing_runs_in_chromium(name, tmp_path, own, chromium):
    if name == "search":
        searcher, answer = found(tmp_path)
        shows = [search.table(answer), search.grid(answer), search.browser(searcher, NAME)]
        shows += [path.read_text() for path in searcher.run.path.glob("figures/*.html")]
        texts = WORDS
    else:
        shows, texts, _ = HTML[name](tmp_path, own)
    for text in markup(shows):
        open_page(chromium, tmp_path / "shown.html", text, texts)


def open_page(chromium, path, text: str, texts) -> None:
    """Open a page, or a part of one; check that it shows texts, and neither does nor asks for anything."""
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
    acts = [act for act in acts if not act.startswith(("data:", path.as_uri()))]
    assert not acts and page.title() != "ran" and (is_page or page.title() == "mine")
    seen = " ".join(page.locator("body").inner_text().split())
    missing = [word[:60] for word in texts if " ".join(TEXTS.get(word, word).split()) not in seen]
    assert not missing, missing
    context.close()
