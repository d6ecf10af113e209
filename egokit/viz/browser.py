"""The retrieval browser: a page that needs no kernel, and in a live notebook the same over all queries, read on demand.

The page holds everything that it shows, and browser.js searches, sorts and filters it. JupyterLab runs no script of a notebook
that it doesn't trust, such as one that papermill executed: there, the page's first part, a list that unfolds, is what remains.
"""
from __future__ import annotations

import base64
import functools
import html
import io
import json
from pathlib import Path

import numpy as np

from egokit.notebook.open_run import is_live
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.viz import queries
from egokit.viz.style import CYCLE, RIGHT, WRONG, strip, thin

PICTURES = 600  # distinct clips in a page, about 8 kB each
UNFOLDING = 8   # queries in the list that needs no script
LINES = 500     # queries in the live list
BORDERS = {"right": f"4px solid {RIGHT}", "partly": f"4px dotted {CYCLE[4]}", "wrong": f"4px dashed {WRONG}", "": "4px solid transparent"}


def browser(task, run: Run, section: str, against=None):
    """Browse the queries of an evaluated section, beside another one if `against` names it: a section, or (another run, its section).

    Saves figures/browser-<section>.html, and returns what to show: headless that page, in a live notebook widgets over every query.
    """
    found = queries.sides(run, section, against)
    content = queries.make(task, found)
    dataset = task.dataset("test")
    picture = functools.lru_cache(maxsize=4 * PICTURES)(lambda v: jpeg(dataset[0, v]["video"]))
    title = f"{run.path.parent.name}/{run.path.name}: " + " against ".join(content.sides)
    part = page(content, picture, title)
    write_text(run.figure(f"browser-{section}.html"), '<!doctype html><html lang="en"><meta charset="utf-8">'
               '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
               f"<title>{html.escape(title)}</title><body style=\"max-width:1200px;margin:1em auto;padding:0 1em\">{part}</body></html>")
    from IPython.display import HTML, display
    if not is_live():
        return HTML(part)
    display(widgets(content, picture))
    return HTML(f"<details><summary>The same, for when no kernel runs</summary>{part}</details>")


def jpeg(frames_TCHW) -> str:
    """Frames side by side, each at most 72 pixels high, in base64."""
    from PIL import Image
    image = Image.fromarray(strip(thin(frames_TCHW)))
    image.thumbnail((image.width, 72))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return base64.b64encode(buffer.getvalue()).decode()


def card(content, k: int, source) -> str:
    """One query as HTML: in each section its clips. source(clip): the picture's attribute. Styles are inline, as scripts may be missing."""
    rows = []
    for s, name in enumerate(content.sides):
        figures = []
        for one in content.hits(s, k):
            border = BORDERS["" if one.grade is None else "right" if one.grade == 1 else "partly" if one.grade else "wrong"]
            what = html.escape(content.clip(one.clip))
            figures.append(f'<figure style="display:inline-block;vertical-align:top;width:205px;margin:4px">'
                           f'<img {source(one.clip)} alt="frames of {what}" style="box-sizing:border-box;width:100%;border:{border}">'
                           f'<figcaption style="font-size:13px"><b>{one.mark}</b><br>{one.score_batch}<br>{what}</figcaption></figure>')
        rows.append(f"<section><p><b>{html.escape(name)}</b>: {content.said(s, k)}</p>{''.join(figures)}</section>")
    return (f'<p style="font-size:17px">“{html.escape(content.texts[k])}”</p>'
            f'<div class="egokit-sides egokit-{len(rows)}">{"".join(rows)}</div>')


def inside(picture):
    """The picture as part of its tag."""
    return lambda v: f'src="data:image/jpeg;base64,{picture(v)}"'


def page(content, picture, title: str) -> str:
    """The page's HTML: a list that unfolds, and the data from which browser.js makes the browser in its place."""
    chosen, pictures = selected(content)
    place = {k: i for i, k in enumerate(chosen)}
    orders = {name: [place[int(k)] for k in order if int(k) in place] for name, order in content.orders.items()}
    said = f"{len(chosen):,} queries" if len(chosen) == len(content.texts) else \
        f"{len(chosen):,} of {len(content.texts):,} queries: the worst, the best and some at random; all of them in a live notebook"
    data = {"said": said, "orders": orders, "filters": list(content.tags), "pictures": {v: picture(v) for v in pictures}, "queries": [
        {"text": content.texts[k], "line": content.line(k), "tags": {name: labels[k] for name, labels in content.tags.items()},
         "hits": [[{"clip": one.clip, "grade": one.grade} | one.data for one in content.hits(s, k)] for s in range(len(content.sides))],
         "html": card(content, k, lambda v: f'data-clip="{v}"')} for k in chosen]}
    some = list(dict.fromkeys([*orders["worst first"][:UNFOLDING // 2], *orders["best first"][:UNFOLDING // 2]]))
    unfolding = "".join(f"<details{' open' if i == 0 else ''}><summary>{html.escape(content.line(chosen[q]))}</summary>"
                        f"{card(content, chosen[q], inside(picture))}</details>" for i, q in enumerate(some))
    here = Path(__file__).parent
    return (f'<div class="egokit-browser"><style>{(here / "browser.css").read_text()}</style>'
            f'<p role="heading" aria-level="2"><b>{html.escape(title)}</b></p><p>{said}. {content.legend}</p>'
            f'<div class="egokit-unfolding"><p>Scripts don\'t run here, so these are the worst and the best {len(some)}. To search, sort '
            f"and filter all: trust this notebook (File, Trust Notebook), or open the page in the run's figures.</p>{unfolding}</div>"
            f'<script type="application/json">{json.dumps(data).replace("<", chr(92) + "u003c")}</script></div>'
            f"<script>{(here / 'browser.js').read_text()}</script>")


def selected(content) -> tuple[list[int], list[int]]:
    """(queries, clips) of a page: the worst, the best and random ones in turn, until they have PICTURES clips."""
    shuffled = np.random.default_rng(0).permutation(len(content.texts))
    chosen: dict[int, None] = {}
    clips: dict[int, None] = {}
    for three in zip(content.orders["worst first"], content.orders["best first"], shuffled, strict=True):
        for k in map(int, three):
            more = {one.clip: None for s in range(len(content.sides)) for one in content.hits(s, k)}
            if len(clips | more) > PICTURES:
                return list(chosen), list(clips)
            chosen[k] = None
            clips |= more
    return list(chosen), list(clips)


def widgets(content, picture):
    """Every query in a live notebook; a clip is read when it is shown first."""
    import ipywidgets
    wide = {"layout": {"width": "98%"}, "style": {"description_width": "70px"}}
    text = ipywidgets.Text(description="text", placeholder="part of a query", **wide)
    order = ipywidgets.Dropdown(description="order", options=list(content.orders), **wide)
    filters = {name: ipywidgets.Dropdown(description=name, options=[("any", ""), *sorted({(one, one) for some in column for one in some})],
                                         **wide) for name, column in content.tags.items()}
    random, count = ipywidgets.Button(description="Random query", layout={"flex": "0 0 auto", "width": "auto"}), ipywidgets.Label()
    found = ipywidgets.Select(description="queries", rows=8, **wide)
    view, rng = ipywidgets.HTML(), np.random.default_rng()

    def choose(_=None):
        some = content.chosen(text.value, order.value, **{name: menu.value for name, menu in filters.items()})
        count.value = f"{len(some):,} of {len(content.texts):,} queries" + (f", of which {LINES} are listed" if len(some) > LINES else "")
        found.options = [(f"{content.line(k)}", k) for k in some[:LINES]]
        found.value = some[0] if some else None
        show()

    def show(_=None):
        shown = "<p>No query has all that.</p>" if found.value is None else card(content, found.value, inside(picture))
        view.value = f'<div class="egokit-browser" data-ready="yes">{shown}</div>'  # the page's style is this one's, too

    def pick(_):
        some = content.chosen(text.value, order.value, **{name: menu.value for name, menu in filters.items()})
        if some:
            k = int(rng.choice(some))
            if k not in [value for _, value in found.options]:
                found.options = [*found.options[:LINES - 1], (content.line(k), k)]
            found.value = k

    for one in (text, order, *filters.values()):
        one.observe(choose, names="value")
    found.observe(show, names="value")
    random.on_click(pick)
    choose()
    return ipywidgets.VBox([ipywidgets.HBox([text, order, random]), ipywidgets.HBox(list(filters.values())), count, found, view,
                            ipywidgets.Label(content.legend)])
