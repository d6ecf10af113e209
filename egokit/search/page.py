"""Hits as playing clips, in a notebook and as an HTML page.

A saved notebook and the page need no kernel and no server. A page stays under MEGABYTES: the best hits play, the others
are pictures, and it says so. The pictures of many hits are one image.
"""
from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike, cpu_count
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from egokit.config.names import file_stem
from egokit.notebook.open_run import is_live
from egokit.notebook.safe_html import NO_FORMULAS, escape, live_view, page, styled
from egokit.runs.files import write_text
from egokit.search.clip_files import THUMBNAIL, encode_preview, played, thumbnail
from egokit.search.hits import Hit
from egokit.search.searcher import Searcher
from egokit.search.sprite import Sprite
from egokit.tasks.windows import reason

WIDTH, BAR = THUMBNAIL, 52  # pixels of a picture, and below it for the player's controls, which would hide a part of it
MEGABYTES = 5.0  # of a page, by default
FEW = 24         # hits that have a picture each: JupyterLab takes a sprite's style sheet out of an untrusted notebook
PICTURED = 0.5   # share of a page that pictures may take
MOST = 1000      # pictures in a page
ELEMENT, PAGE = 500, 5000  # bytes of an element around a picture or clip, and of what surrounds all hits, at most
FILES = "--clips FOLDER, in Python search.export(hits, FOLDER)"
NO_PICTURE = "no picture: see the last lines of this page"


class Look(NamedTuple):
    """How a hit is shown: a clip that plays, or else a picture, or the reason why there is none."""
    clip: str = ""      # MP4 in base64
    picture: str = ""   # attributes of an element that shows its picture
    css: str = ""       # CSS of that element
    height: int = 0     # of the picture, pixels
    problem: str = ""


@functools.lru_cache(maxsize=512)
def _encoded(hit: Hit) -> tuple[str, str, float]:
    """Return the clip and its picture in base64, and height / width."""
    *files, shape = encode_preview(hit)
    return *(base64.b64encode(data).decode() for data in files), shape


@functools.lru_cache(maxsize=2048)
def _thumbnail(hit: Hit) -> tuple[bytes, int]:
    """Return a hit's thumbnail, a JPEG, and its height."""
    picture, buffer = thumbnail(hit), io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), picture.height


def _or_reason(make, hit: Hit):
    """Return what `make` gives of a hit, or in words why it can't: the other hits are shown all the same."""
    try:
        return make(hit)
    except Exception as error:
        return reason(error)


def _show(rank: int, hit: Hit, look: Look, preload: str = "metadata") -> str:
    """Return a hit as HTML: its clip, which plays by mouse or keyboard, and a caption."""
    name, label = escape(hit.video), escape(f"{rank}: {hit.video}, {hit.time}, {hit.scores}")
    if look.clip:
        height = look.height + BAR
        clip = (f'<video controls loop muted playsinline preload="{preload}" aria-label="{label}" '
                f'width="{WIDTH}" height="{height}" '
                f'style="width:{WIDTH}px;height:{height}px;object-fit:contain;object-position:top;border-radius:4px;'
                f'{look.css}" {look.picture} src="data:video/mp4;base64,{look.clip}">{label}</video>')
        if preload == "none":  # a player's controls take longest to make, so they are made when it is opened
            clip = (f'<details class="egokit-clip"><summary {look.picture} aria-label="{label}: player" style='
                    f'"width:{WIDTH}px;height:{look.height}px;{look.css}"></summary>{clip}</details>')
    elif look.picture:
        clip = (f'<div role="img" aria-label="{label}" style="width:{WIDTH}px;height:{look.height}px;border-radius:4px;'
                f'{look.css}" {look.picture}></div>')
    else:
        clip = (f'<div role="img" aria-label="{label}" style="border:1px solid;border-radius:4px;padding:8px;'
                f'font-size:13px;overflow-wrap:anywhere">{escape(look.problem)}</div>')
    note = f" · {escape(hit.note)}" if hit.note else ""
    part = played(hit)
    if look.clip and part != hit:
        note = f" · plays {part.time}{note}"
    return (f'<figure style="display:inline-block;vertical-align:top;width:{WIDTH}px;margin:6px">{clip}'
            f'<figcaption style="font-size:13px;line-height:1.4;overflow-wrap:anywhere"><b>{rank}. {hit.time}</b> '
            f'{name}<br>{hit.scores}{note}</figcaption></figure>')


def _playing(hit: Hit) -> Look:
    """Return the look of a hit with a clip and a picture of its own."""
    encoded = _or_reason(_encoded, hit)
    if isinstance(encoded, str):
        return Look(problem=f"no clip: {encoded}")
    clip, picture, shape = encoded
    return Look(clip, f'poster="data:image/jpeg;base64,{picture}"', "background:#000", round(WIDTH * min(shape, 1.0)))


def _looks(hits: list[Hit], room: float, few: int) -> tuple[list[Look], str]:
    """Return how each hit is shown in so many bytes, and the style sheet that it needs.

    At most `few` hits whose clips all fit have a picture each. Otherwise the pictures are one image, and the best hits
    play.
    """
    with ThreadPoolExecutor(cpu_count()) as pool:
        if len(hits) <= few:
            looks = list(pool.map(_playing, hits))
            if sum(len(look.clip) + len(look.picture) for look in looks) <= room:
                return looks, ""
        thumbs = list(pool.map(functools.partial(_or_reason, _thumbnail), hits[:MOST]))
        looks = [Look(problem=f"no clip: {thumb}" if isinstance(thumb, str) else NO_PICTURE) for thumb in thumbs]
        looks += [Look(problem=NO_PICTURE)] * (len(hits) - len(thumbs))
        there = [number for number, thumb in enumerate(thumbs) if not isinstance(thumb, str)]
        sizes = itertools.accumulate(len(thumbs[number][0]) for number in there)
        pictured = [number for number, size in zip(there, sizes, strict=True) if size * 4 / 3 <= PICTURED * room]
        if not pictured:
            return looks, ""
        sprite = Sprite([Image.open(io.BytesIO(thumbs[number][0])) for number in pictured], WIDTH, BAR)
        for place, number in enumerate(pictured):
            looks[number] = Look("", sprite.attributes, sprite.position(place), thumbs[number][1])
        room -= len(sprite.sheet)
        for first in range(0, len(pictured), 2 * cpu_count()):
            numbers = pictured[first:first + 2 * cpu_count()]
            for number, encoded in zip(numbers, pool.map(functools.partial(_or_reason, _encoded), [
                    hits[number] for number in numbers]), strict=True):
                if isinstance(encoded, str):
                    looks[number] = Look(problem=f"no clip: {encoded}")
                    continue
                room -= len(encoded[0])
                if room < 0:
                    return looks, sprite.sheet
                looks[number] = looks[number]._replace(clip=encoded[0])
        return looks, sprite.sheet


class Figures(NamedTuple):
    """Hits as HTML, and what belongs beside them."""
    shown: list[str]     # each with its clip, which plays by mouse or keyboard, and a caption
    sheet: str           # the style sheet that they need, "" for none
    left_out: list[str]  # lines that say what is left out to keep to the size


def figures(hits: list[Hit], megabytes: float = MEGABYTES, around: int = 0, few: int = FEW,
            ranks: Sequence[int] | None = None, files: str = FILES) -> Figures:
    """Return hits as HTML of a bounded size: the first ones play, and if not all fit, others are pictures.

    A clip that can't be made is replaced by the reason.

    Args:
        hits: The hits, the most important first.
        megabytes: The largest size of the page.
        around: Bytes of what stands around them.
        few: So many hits have a picture each if all play, and more of them one image.
        ranks: The number of each in its caption; by default 1, 2, ….
        files: How to get all as files, for the line that says what is left out.
    """
    ranks = range(1, len(hits) + 1) if ranks is None else ranks
    bare = "".join(_show(rank, hit, Look(problem=NO_PICTURE)) for rank, hit in zip(ranks, hits, strict=True))
    looks, sheet = _looks(hits, megabytes * 1e6 - len(bare.encode()) - around - ELEMENT * len(hits) - PAGE, few)
    preload = "none" if sheet else "metadata"
    shown = [_show(rank, hit, look, preload) for rank, hit, look in zip(ranks, hits, looks, strict=True)]
    return Figures(shown, sheet, _left_out(looks, megabytes, files))


def _grid(hits: list[Hit], megabytes: float = MEGABYTES) -> str:
    shown, sheet, left_out = figures(hits, megabytes, len(_notes(hits, []).encode()))
    return f'<div class="{NO_FORMULAS}">{sheet}{"".join(shown)}{_notes(hits, left_out)}</div>'


def _left_out(looks: list[Look], megabytes: float, files: str) -> list[str]:
    """Return what a page leaves out to stay small, and how to get it."""
    playing, bare = sum(bool(look.clip) for look in looks), [look.problem for look in looks].count(NO_PICTURE)
    still = sum(bool(look.picture) for look in looks) - playing
    if not still + bare:
        return []
    without = f", and {bare:,} without a picture" if bare else ""
    return [f"{playing:,} of {len(looks):,} hits play here; {still:,} are pictures{without}, as this takes at most "
            f"{megabytes:g} MB. All of them as files that play: {files}. More of them here: "
            f"megabytes={4 * megabytes:g}"]


def _notes(hits: list[Hit], more: list[str]) -> str:
    """Return an answer's notes as HTML; hits taken out of an answer have none."""
    notes = "<br>".join(map(escape, [*more, *getattr(hits, "notes", [])]))
    return f'<p style="font-size:13px;overflow-wrap:anywhere">{notes}</p>' if notes else ""


def grid(hits: list[Hit], megabytes: float = MEGABYTES):
    """Return the hits with their clips embedded, to be displayed in a notebook.

    Args:
        hits: The hits, best first.
        megabytes: The largest size; below, hits are pictures that don't play.
    """
    from IPython.display import HTML
    return HTML(_grid(hits, megabytes))


def write_page(hits: list[Hit], path: str | PathLike, title: str, megabytes: float = MEGABYTES) -> Path:
    """Write the hits as an HTML page, which needs no other file, and return the path.

    Args:
        hits: The hits, best first.
        path: The file to write.
        title: The page's title and heading.
        megabytes: The largest size; below, hits are pictures that don't play.
    """
    return _write(_grid(hits, megabytes), path, title)


def _write(content: str, path: str | PathLike, title: str) -> Path:
    write_text(Path(path), page(title, f"<h1>{escape(title)}</h1>{content}"))
    return Path(path)


def table(hits: list[Hit]):
    """Return the hits as a table."""
    rows = [(rank, hit.video, hit.time, hit.cosine, hit.match, hit.note) for rank, hit in enumerate(hits, 1)]
    columns = ["rank", "video", "time", "cosine", "match", "note"]
    if not any(hit.note for hit in hits):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    return styled(rows, columns, ["video"], {"cosine": "{:.3f}", "match": "{:.3f}"}, getattr(hits, "notes", ()))


def browser(searcher: Searcher, text: str = "", top: int = 12, rerank: int = 0, like=None, weight: float = 0.5,
            merge: bool = True, megabytes: float = MEGABYTES):
    """Search, save figures/search-<query>.html and return what to display.

    Args:
        searcher: An open index.
        text: The query.
        top: How many moments to show.
        rerank: How many of the best moments the fusion encoder orders anew.
        like: An example, alone or beside the text, as of the Searcher; so are `weight` and `merge`.
        megabytes: The largest size of the page; below, hits are pictures that don't play.

    Returns:
        In a live notebook a box for further queries; headless the hits as HTML.
    """
    from IPython.display import HTML
    content = _grid(searcher(text, top, rerank, like=like, weight=weight, merge=merge), megabytes)
    example = like.place if isinstance(like, Hit) else str(like) if isinstance(like, str | PathLike) else "frames"
    query = " · ".join([*([text] if text else []), *([f"like {example}"] if like is not None else [])])
    # frames have no name that tells them from others
    name = f"{query} {hashlib.sha256(like.numpy(force=True)).hexdigest()[:6]}" if hasattr(like, "numpy") else query
    _write(content, searcher.run.figure(f"search-{file_stem(name)}.html"), f"{searcher.folder.name}: {query}")
    if not is_live():
        return HTML(f'<p class="{NO_FORMULAS}">{escape(query)}</p>{content}')
    return _live(searcher, text, top, rerank, (example if like is not None else "", like), weight, merge, megabytes,
                 content)


def _live(searcher, text, top, rerank, shown_like, weight, merge, megabytes, content):
    """Return the box for further queries, which shows `content` at first."""
    import ipywidgets
    wide = {"description_width": "110px"}
    query = ipywidgets.Text(text, description="query", continuous_update=False,  # searches at Enter
                            layout={"width": "90%"}, style=wide)
    results = ipywidgets.IntSlider(top, 1, max(100, top), description="results", continuous_update=False, style=wide)
    reranked = ipywidgets.IntSlider(rerank, 0, max(200, rerank), 10, description="re-rank the best",
                                    continuous_update=False, style=wide)
    # a moment is chosen among the hits, or written
    example, given = shown_like  # frames have no name
    like = ipywidgets.Combobox(value=example, description="like", ensure_option=False, continuous_update=False,
                               placeholder="VIDEO@1:23, or a clip's or picture's file", layout={"width": "60%"},
                               style=wide)
    share = ipywidgets.FloatSlider(weight, min=0, max=1, step=0.1, description="its share", continuous_update=False,
                                   style=wide)

    def answer() -> str:
        is_text = bool(query.value.strip())
        by = given if like.value == example else like.value.strip() or None
        hits = searcher(query.value, results.value, reranked.value if is_text else 0, like=by, weight=share.value,
                        merge=merge)
        like.options = [hit.place for hit in hits]
        return _grid(hits, megabytes)
    status, view = live_view((query, results, reranked, like, share), content, "searching …", answer)
    sliders = [results, *([reranked] if searcher.model.fuses else []), like, share]
    return ipywidgets.VBox([query, ipywidgets.HBox(sliders, layout={"flex_flow": "row wrap"}), status, view])
