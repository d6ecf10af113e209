"""The retrieval browser: a page that needs no kernel, and widgets in a live notebook.

The page contains all that it shows, so that it holds as many queries as fit into MEGABYTES, and says which; browser.js
searches, sorts and filters them. The widgets cover every query and read
clips on demand. JupyterLab runs no scripts in an untrusted notebook, such as one that papermill executed; what remains
there is the page's static list, which unfolds without a script.
"""
import base64
import functools
import io
import itertools
import json
from pathlib import Path

import numpy as np

from egokit.notebook import safe_html
from egokit.notebook.open_run import is_live
from egokit.notebook.safe_html import NO_FORMULAS, escape, plain_label
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.viz import queries
from egokit.viz.style import grade_style, strip

MEGABYTES = 5.0     # of a page, by default
MAX_CLIPS = 600     # distinct clips in such a page, which have to be read; one takes about 8 kB
REST = 20_000       # bytes of a page beside its queries, pictures, script and style sheet, at most
STATIC_QUERIES = 8  # in the list that needs no script
LIVE_LINES = 500    # queries listed by the widgets
STYLE_SHEET, SCRIPT = Path(__file__).with_suffix(".css"), Path(__file__).with_suffix(".js")


def browser(task, run: Run, section: str, against=None, megabytes: float = MEGABYTES):
    """Show and save the queries of an evaluated section with their clips and scores.

    Args:
        task: The task that the section evaluates.
        run: The run; the page is saved as its figures/browser-<section>.html.
        section: The section of metrics.json whose scores are shown.
        against: What to show beside it: another section, another Run, or (run, section).
        megabytes: The largest size of the page. If the queries take more, it holds the worst, the best and some at
            random.

    Returns:
        HTML to display. In a live notebook the widgets are displayed first, and the page is folded below them.
    """
    content = queries.make_queries(task, queries.sides(run, section, against))
    picture = functools.lru_cache(int(4 * MAX_CLIPS * max(1, megabytes / MEGABYTES)))(lambda v: jpeg(content.frames(v)))
    title = f"{run.path.parent.name}/{run.path.name}: " + " against ".join(content.sides)
    part = page(content, picture, title, megabytes)
    write_text(run.figure(f"browser-{section}.html"), safe_html.page(title, part, SCRIPT.read_text()))
    from IPython.display import HTML, display
    if not is_live():
        return HTML(part)
    display(widgets(content, picture))
    return HTML(f"<details><summary>The same, for when no kernel runs</summary>{part}</details>")


def jpeg(frames_TCHW) -> str:
    """Return four frames side by side, at most 72 pixels high, as a base64 JPEG."""
    from PIL import Image
    image, buffer = Image.fromarray(strip(frames_TCHW, 4)), io.BytesIO()
    image.thumbnail((image.width, 72))
    image.save(buffer, "JPEG", quality=75)
    return base64.b64encode(buffer.getvalue()).decode()


def card(content, k: int, picture=None) -> str:
    """Return query `k` as HTML: its text, and for each side its clips.

    Styles are inline, because they must hold where no script and no style sheet is loaded.

    Args:
        content: A queries.Queries.
        k: Number of the query.
        picture: Function of a clip's number that returns its picture, which is put into the HTML; None puts the
            number there, by which browser.js finds the picture in the page's data.
    """
    sections = []
    for s, name in enumerate(content.sides):
        figures = []
        for hit in content.hits(s, k):
            _, colour, line = grade_style(hit.grade)
            what = escape(content.describe_clip(hit.clip))
            scores = ", ".join(f"{escape(name)} {score:.2f}" for name, score in hit.scores.items())
            image = f'src="data:image/jpeg;base64,{picture(hit.clip)}"' if picture else f'data-clip="{hit.clip}"'
            figures.append(f'<figure style="display:inline-block;vertical-align:top;width:205px;margin:4px">'
                           f'<img {image} alt="frames of {what}" '
                           f'style="box-sizing:border-box;width:100%;border:4px {line} {colour or "transparent"}">'
                           f'<figcaption style="font-size:13px"><b>{escape(hit.mark)}</b><br>{scores}<br>{what}'
                           f'</figcaption></figure>')
        sections.append(f"<section><p><b>{escape(name)}</b>: {escape(content.summary(s, k))}</p>"
                        f"{''.join(figures)}</section>")
    return (f'<p style="font-size:17px">“{escape(content.texts[k])}”</p>'
            f'<div class="egokit-sides egokit-{len(sections)}">{"".join(sections)}</div>')


def page(content, picture, title: str, megabytes: float = MEGABYTES) -> str:
    """Return the page's HTML.

    It has a static list, and the data from which browser.js builds the browser in the list's place.
    """
    chosen, clips = select_queries(content, picture, megabytes)
    place = {k: i for i, k in enumerate(chosen)}
    orders = {name: [place[int(k)] for k in order if int(k) in place] for name, order in content.orders.items()}
    total = f"{len(chosen):,} queries" if len(chosen) == len(content.texts) else \
        (f"{len(chosen):,} of {len(content.texts):,} queries: the worst, the best and some at random, as the page "
         f"takes at most {megabytes:g} MB; all of them in a live notebook, more of them with "
         f"megabytes={4 * megabytes:g}")
    data = {"total": total, "orders": orders, "filters": list(content.tags),
            "pictures": {v: picture(v) for v in clips}, "queries": [query_data(content, k) for k in chosen]}
    unfolding = "".join(f"<details{' open' if i == 0 else ''}><summary>{escape(content.line(k))}</summary>"
                        f"{card(content, k, picture)}</details>"
                        for i, k in enumerate(static_queries(content, place)))
    return (f'<div class="egokit-browser {NO_FORMULAS}"><style>{STYLE_SHEET.read_text()}</style>'
            f'<p role="heading" aria-level="2"><b>{escape(title)}</b></p><p>{total}. {escape(content.legend)}</p>'
            f'<div class="egokit-unfolding"><p>Scripts don\'t run here, so these are the worst and the best '
            f"{len(static_queries(content, place))}. To search, sort and filter all: trust this notebook (File, Trust "
            f"Notebook), or open the page in the run's figures.</p>{unfolding}</div>"
            f'<script type="application/json">{as_json(data)}</script></div>'
            f"<script>{SCRIPT.read_text()}</script>")


def as_json(data) -> str:
    """Return data as JSON that may stand in a script element."""
    return json.dumps(data).replace("<", chr(92) + "u003c")


def query_data(content, k: int) -> dict:
    """Return what browser.js knows of query `k`."""
    return {"text": content.texts[k], "line": content.line(k),
            "tags": {name: labels[k] for name, labels in content.tags.items()},
            "hits": [[{"clip": hit.clip, "grade": hit.grade} | hit.place | hit.scores for hit in content.hits(s, k)]
                     for s in range(len(content.sides))],
            "html": card(content, k)}


def static_queries(content, chosen) -> list[int]:
    """Return the queries of the list that needs no script: the worst and the best of those that are chosen."""
    ends = [[int(k) for k in content.orders[name] if int(k) in chosen][:STATIC_QUERIES // 2]
            for name in ("worst first", "best first")]
    return list(dict.fromkeys(itertools.chain(*ends)))


def select_queries(content, picture=None, megabytes: float = MEGABYTES) -> tuple[list[int], list[int]]:
    """Return the queries and the clips of a page.

    Worst, best and random queries are taken in turn until the page is full or has its share of MAX_CLIPS.

    Args:
        content: A queries.Queries.
        picture: Function of a clip's number that returns its picture; None takes no account of bytes.
        megabytes: The page's largest size.
    """
    shuffled = np.random.default_rng(0).permutation(len(content.texts))
    candidates = np.stack([content.orders["worst first"], content.orders["best first"], shuffled], axis=1)
    room = megabytes * 1e6 - REST - len(STYLE_SHEET.read_bytes()) - 2 * len(SCRIPT.read_bytes())
    if picture:
        room -= sum(len(card(content, k, picture).encode()) for k in static_queries(content, range(len(content.texts))))
    chosen, clips = [], {}  # clips is a dict as an ordered set
    for k in dict.fromkeys(candidates.ravel().tolist()):
        more = clips | dict.fromkeys(hit.clip for s in range(len(content.sides)) for hit in content.hits(s, k))
        if len(more) > MAX_CLIPS * megabytes / MEGABYTES:
            break
        if picture:
            # a query stands in every order, too, by its number
            room -= len(as_json(query_data(content, k))) + 8 * len(content.orders)
            room -= sum(len(picture(v)) + 16 for v in itertools.islice(more, len(clips), None))
            if room < 0:
                break
        chosen.append(k)
        clips = more
    return chosen, list(clips)


def widgets(content, picture):
    """Return widgets over every query for a live notebook; clips are read when first shown."""
    import ipywidgets
    wide = {"layout": {"width": "98%"}, "style": {"description_width": "70px"}}
    text = ipywidgets.Text(description="text", placeholder="part of a query", **wide)
    order = ipywidgets.Dropdown(description="order", options=list(content.orders), **wide)
    options = {name: sorted({(label, label) for labels in labels_K for label in labels})
               for name, labels_K in content.tags.items()}
    filters = {name: ipywidgets.Dropdown(description=name, options=[("any", ""), *labels], **wide)
               for name, labels in options.items()}
    random = ipywidgets.Button(description="Random query", layout={"flex": "0 0 auto", "width": "auto"})
    count = plain_label()
    listing = ipywidgets.Select(description="queries", rows=8, **wide)
    view, rng = ipywidgets.HTML(), np.random.default_rng()

    def matching() -> list[int]:
        return content.matching(text.value, order.value, **{name: menu.value for name, menu in filters.items()})

    def update_list(_=None):
        matches = matching()
        count.value = f"{len(matches):,} of {len(content.texts):,} queries" + \
            (f", of which {LIVE_LINES} are listed" if len(matches) > LIVE_LINES else "")
        listing.options = [(f"{content.line(k)}", k) for k in matches[:LIVE_LINES]]
        listing.value = matches[0] if matches else None
        show()

    def show(_=None):
        shown = "<p>No query has all that.</p>" if listing.value is None else card(content, listing.value, picture)
        # the class gives the widget the style sheet of the page below it; data-ready keeps browser.js away
        view.value = f'<div class="egokit-browser {NO_FORMULAS}" data-ready="yes">{shown}</div>'

    def show_random(_):
        matches = matching()
        if matches:
            k = int(rng.choice(matches))
            if k not in [value for _, value in listing.options]:
                listing.options = [*listing.options[:LIVE_LINES - 1], (content.line(k), k)]
            listing.value = k

    for control in (text, order, *filters.values()):
        control.observe(update_list, names="value")
    listing.observe(show, names="value")
    random.on_click(show_random)
    update_list()
    return ipywidgets.VBox([ipywidgets.HBox([text, order, random]), ipywidgets.HBox(list(filters.values())), count,
                            listing, view, plain_label(content.legend)])
