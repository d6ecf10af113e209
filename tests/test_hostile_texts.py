"""Texts that somebody else wrote are shown as they are: in every figure, table, page and widget."""
import ast
import sys

import hostile_tasks
import matplotlib
import pytest
from browser_pages import every
from conftest import ROOT
from hostile import NAME, TEXTS, check_figure, check_html
from hostile_answers import answerer, asked
from hostile_shows import FIGURES, HTML, NO_TEXT, SEARCH, asker, found, markup
from hostile_tasks import WORDS, evaluated, with_files

from egokit import search, viz
from egokit.jobs.progress import ProgressBar
from egokit.runs.shown_text import MAX_SHOWN, shown
from egokit.viz import queries
from egokit.viz.browser import SCRIPT, card, widgets


@pytest.fixture
def own(request, monkeypatch):
    """The project's fixtures, made when they are asked for."""
    class Own:
        grey = hostile_tasks.np.full((8, 8, 3), 100, "uint8")

        def __getattr__(self, name):
            return request.getfixturevalue(name)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    return Own()


def test_everything_public_that_shows_something_is_tried():
    assert {*FIGURES, *HTML, *NO_TEXT} == set(viz.__all__) and len(FIGURES | HTML) == len(FIGURES) + len(HTML)
    modules = [ast.parse((ROOT / f"egokit/search/{name}.py").read_text()) for name in ("page", "questions", "answers")]
    public = {node.name for module in modules for node in module.body
              if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
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
    asking, words = asked(tmp_path)
    for content in (queries.make_queries(task, queries.sides(run, NAME, f"{NAME}-2")),
                    queries.make_queries(choice, queries.sides(other, NAME, None)),
                    queries.make_queries(asking, queries.sides(words, NAME, None))):
        for k, text in enumerate(WORDS):
            check_html(f'<p class="mathjax_ignore">{card(content, k, lambda v: "")}</p>', [text])
        check_widgets(widgets(content, lambda v: ""))


def check_widgets(box) -> None:
    """Check the HTML in widgets; what a Label or a description shows must not be typeset or taken for HTML."""
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


@pytest.mark.parametrize("playing", [True, False])
def test_what_is_asked_shows_texts_as_they_are(playing, tmp_path, own, monkeypatch):
    ask, answer = asker(tmp_path)
    if playing:
        monkeypatch.setattr(sys.modules["egokit.search.page"], "_encoded", lambda hit: ("AAAA", "AAAA", 0.75))
    check_html(search.answer_table(answer).to_html(), WORDS)
    for text in WORDS:
        check_html(search.ask_browser(ask, text, text).data, [text, *WORDS])
    pages = list(ask.run.path.glob("figures/question-*.html"))
    assert len(pages) > 20
    for path in pages:
        check_html(path.read_text(), WORDS, typeset=True)
    monkeypatch.setenv("JPY_SESSION_NAME", "live.ipynb")
    live = search.ask_browser(ask, NAME, WORDS[0])
    check_widgets(live)
    live.children[0].value, live.children[1].value = WORDS[:2]
    check_widgets(live)


@pytest.mark.parametrize("playing", [True, False])
def test_what_is_answered_in_words_shows_texts_as_they_are(playing, tmp_path, own, monkeypatch):
    ask = answerer(tmp_path)
    if playing:
        monkeypatch.setattr(sys.modules["egokit.search.page"], "_encoded", lambda hit: ("AAAA", "AAAA", 0.75))
    check_html(search.answer_cards(ask, len(WORDS)).data, WORDS)
    for text in WORDS:
        check_html(search.answer_box(ask, text, text).data, [text, *WORDS])
    for path in ask.run.path.glob("figures/*.html"):
        check_html(path.read_text(), WORDS, typeset=True)
    monkeypatch.setenv("JPY_SESSION_NAME", "live.ipynb")
    live = search.answer_box(ask, NAME, WORDS[0])
    check_widgets(live)
    live.children[0].value, live.children[1].value = WORDS[:2]
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
