"""Hits as playing clips, in a notebook and as an HTML page.

A saved notebook and the page need no kernel and no server.
"""
import base64
import functools
import re
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

from egokit.notebook.open_run import is_live
from egokit.notebook.safe_html import NO_FORMULAS, escape, live_view, page, styled
from egokit.runs.files import write_text
from egokit.search.clip_files import encode_preview
from egokit.search.searcher import Hit, Searcher
from egokit.tasks.windows import reason

WIDTH, BAR = 240, 52  # pixels of a picture, and below it for the player's controls, which would hide a part of it


@functools.lru_cache(maxsize=512)
def _encoded(hit: Hit) -> tuple[str, str, float]:
    """Return the clip and its picture in base64, and height / width."""
    *files, shape = encode_preview(hit)
    return *(base64.b64encode(data).decode() for data in files), shape


def figure(rank: int, hit: Hit) -> str:
    """Return a hit as HTML: its clip, which plays by mouse or keyboard, and a caption.

    A clip that can't be made is replaced by the reason.
    """
    name, label = escape(hit.video), escape(f"{rank}: {hit.video}, {hit.time}, {hit.scores}")
    try:
        video, picture, shape = _encoded(hit)
        height = round(WIDTH * min(shape, 1.0)) + BAR
        clip = (f'<video controls loop muted playsinline preload="metadata" aria-label="{label}" '
                f'width="{WIDTH}" height="{height}" '
                f'style="width:{WIDTH}px;height:{height}px;object-fit:contain;object-position:top;border-radius:4px;'
                'background:#000" '
                f'poster="data:image/jpeg;base64,{picture}" src="data:video/mp4;base64,{video}">{label}</video>')
    except Exception as error:  # the other clips are shown all the same
        clip = (f'<div role="img" aria-label="{label}" style="border:1px solid;border-radius:4px;padding:8px;'
                f'font-size:13px;overflow-wrap:anywhere">no clip: {escape(reason(error))}</div>')
    note = f" · {escape(hit.note)}" if hit.note else ""
    return (f'<figure style="display:inline-block;vertical-align:top;width:{WIDTH}px;margin:6px">{clip}'
            f'<figcaption style="font-size:13px;line-height:1.4;overflow-wrap:anywhere"><b>{rank}. {hit.time}</b> '
            f'{name}<br>{hit.scores}{note}</figcaption></figure>')


def _grid(hits: list[Hit]) -> str:
    with ThreadPoolExecutor(cpu_count()) as pool:
        figures = "".join(pool.map(figure, range(1, len(hits) + 1), hits))
    return f'<div class="{NO_FORMULAS}">{figures}{_notes(hits)}</div>'


def _notes(hits: list[Hit]) -> str:
    """Return an answer's notes as HTML; hits taken out of an answer have none."""
    notes = "<br>".join(map(escape, getattr(hits, "notes", [])))
    return f'<p style="font-size:13px;overflow-wrap:anywhere">{notes}</p>' if notes else ""


def grid(hits: list[Hit]):
    """Return the hits with their clips embedded, to be displayed in a notebook."""
    from IPython.display import HTML
    return HTML(_grid(hits))


def table(hits: list[Hit]):
    """Return the hits as a table."""
    rows = [(rank, hit.video, hit.time, hit.cosine, hit.match, hit.note) for rank, hit in enumerate(hits, 1)]
    columns = ["rank", "video", "time", "cosine", "match", "note"]
    if not any(hit.note for hit in hits):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    return styled(rows, columns, ["video"], {"cosine": "{:.3f}", "match": "{:.3f}"}, getattr(hits, "notes", ()))


def browser(searcher: Searcher, text: str, top: int = 12, rerank: int = 0):
    """Search, save figures/search-<text>.html and return what to display.

    Args:
        searcher: An open index.
        text: The query.
        top: How many moments to show.
        rerank: How many of the best moments the fusion encoder orders anew.

    Returns:
        In a live notebook a box for further queries; headless the hits as HTML.
    """
    from IPython.display import HTML
    content = _grid(searcher(text, top, rerank))
    title = f"{searcher.folder.name}: {text}"
    name = re.sub(r"\W+", "-", text).strip("-").lower()[:60]
    write_text(searcher.run.figure(f"search-{name}.html"), page(title, f"<h1>{escape(title)}</h1>{content}"))
    if not is_live():
        return HTML(f'<p class="{NO_FORMULAS}">{escape(text)}</p>{content}')
    import ipywidgets
    wide = {"description_width": "110px"}
    query = ipywidgets.Text(text, description="query", continuous_update=False,  # searches at Enter
                            layout={"width": "90%"}, style=wide)
    results = ipywidgets.IntSlider(top, 1, 48, description="results", continuous_update=False, style=wide)
    reranked = ipywidgets.IntSlider(rerank, 0, 200, 10, description="re-rank the best", continuous_update=False,
                                    style=wide)
    status, view = live_view((query, results, reranked), content, "searching …",
                             lambda: _grid(searcher(query.value, results.value, reranked.value)))
    sliders = [results, *([reranked] if searcher.model.fuses else [])]
    return ipywidgets.VBox([query, ipywidgets.HBox(sliders), status, view])
