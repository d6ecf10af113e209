"""The alternative text of a figure: what a reader who can't see it is told, made from what is written in it.

JupyterLab shows a picture of a notebook without its alternative text, unless it is an <img> in HTML. So figures are
displayed as that, in JupyterLab, in saved pages and on the site. What can't show HTML, such as a PDF made with LaTeX,
takes the PNG that stands beside it. A saved PNG carries the text as its description.
"""
import base64
import io
from pathlib import Path

import numpy as np
from IPython.display import DisplayHandle, display
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from PIL import Image

from egokit.notebook.safe_html import escape
from egokit.runs.shown_text import shown

KEY = "Description"  # of a PNG's texts, as its standard names it
PHOTOGRAPHS = 300_000   # bytes of a PNG from which it has frames of videos, whose WebP need not be lossless
LONGEST = 16_383        # pixels of a side of a WebP, at most


def describe(figure: Figure) -> str:
    """Return a figure's alternative text: its kind, its title, and of each picture or chart what is written there."""
    pictures = [axis for axis in figure.axes if axis.images]
    charts = [axis for axis in figure.axes if axis.axison and not axis.images]
    kinds = [f"{len(axes)} {name}{'s' * (len(axes) > 1)}" for axes, name in ((pictures, "picture"), (charts, "chart"))
             if axes]
    parts = [" and ".join(kinds), figure.get_suptitle(), figure.get_supxlabel(), *map(_describe_axis, figure.axes),
             *(f"legend: {', '.join(_texts(legend.get_texts()))}" for legend in figure.legends)]
    return shown(". ".join(text.strip(" .") for part in parts if (text := " ".join(part.split()))))


def show(figure: Figure) -> None:
    """Display a figure in a notebook, with its alternative text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight", dpi=100, format="png")
    data, metadata = bundle(buffer.getvalue(), describe(figure))
    display(data, metadata=metadata, raw=True)


def show_saved(path: Path, place: DisplayHandle | None = None) -> DisplayHandle:
    """Display a figure that `save_figure` saved, with its alternative text; in an earlier one's place, if given."""
    with Image.open(path) as opened:
        data, metadata = bundle(path.read_bytes(), opened.text.get(KEY, path.stem))
    if place is None:
        return display(data, metadata=metadata, raw=True, display_id=True)
    place.update(data, metadata=metadata, raw=True)
    return place


def bundle(png: bytes, alternative: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return what a notebook's output holds of a PNG, and its metadata, by MIME type.

    The HTML has it as WebP, at about half of its bytes, never wider than its page and on white in a dark theme, too.
    """
    buffer, kind = io.BytesIO(png), "png"
    with Image.open(buffer) as opened:
        if max(opened.size) <= LONGEST:
            buffer, kind = io.BytesIO(), "webp"
            on_white = Image.new("RGBA", opened.size, "white")  # as the PNG is shown; RGB alone forgets the shades
            on_white.alpha_composite(opened.convert("RGBA"))
            on_white.convert("RGB").save(buffer, kind, lossless=len(png) < PHOTOGRAPHS, quality=90, method=2)
    html = (f'<img alt="{escape(alternative)}" style="max-width:100%;height:auto;background:white" '
            f'src="data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}">')
    data = {"text/html": html, "image/png": base64.b64encode(png).decode(), "text/plain": alternative}
    return data, {"image/png": {"alt": alternative}}


def _texts(artists) -> list[str]:
    return [text for artist in artists if (text := " ".join(artist.get_text().split()))]


def _describe_axis(axis) -> str:
    """Return what is written in one picture or chart."""
    if not axis.axison:  # no chart: only what is written in its place
        return "; ".join([axis.get_title(), *_texts(axis.texts)])
    written = [axis.get_title(), axis.get_title("left"), *([] if axis.images else [_plotted(axis)])]
    labels, texts = _texts(axis.get_yticklabels()), _texts(axis.texts)
    named = isinstance(axis.yaxis.get_major_locator(), FixedLocator)
    if texts and named and len(labels) == len(texts):  # a number beside each name
        texts = [f"{label}: {text}" for label, text in zip(labels, texts, strict=True)]
    elif axis.images:
        texts.append(axis.get_xlabel())
    elif named and not texts:  # only their names, where no point stands beside them
        texts = _points(axis, labels)
    elif bars := _bars(axis):  # their numbers alone don't tell which is which
        texts = bars
    texts += _means(axis)
    return "; ".join(text.strip() for text in [*written, *texts] if text.strip())


def _points(axis, labels: list[str]) -> list[str]:
    """Return each name of the vertical axis with the points of its line."""
    ticks, told = axis.get_yticks(), {label: [] for label in labels}
    for line in axis.lines:
        if line.get_linestyle() == "None" and len(labels) == len(ticks) and np.array_equal(line.get_ydata(), ticks):
            name = "" if line.get_label().startswith("_") else line.get_label()
            for label, value in zip(labels, np.asarray(line.get_xdata(), dtype=float), strict=True):
                told[label] += [f"{name} {value:.3g}".strip()] if np.isfinite(value) else []
    return [f"{label}: {', '.join(values)}" if values else label for label, values in told.items()]


def _bars(axis) -> list[str]:
    """Return the numbers of each labelled kind of upright bars, in the order of what they stand over."""
    kinds = [bars for bars in axis.containers if isinstance(bars, BarContainer) and not bars.get_label().startswith("_")
             and bars.orientation == "vertical"]
    told = [f"{bars.get_label()} {', '.join(f'{bar.get_height():.3g}' for bar in bars)}" for bars in kinds]
    return [", ".join(_texts(axis.get_xticklabels())), *told] if told else []


def _means(axis) -> list[str]:
    """Return each labelled mean with its spread."""
    told = []
    for bars in axis.containers:
        if isinstance(bars, ErrorbarContainer) and not bars.get_label().startswith("_"):
            mean = float(np.ravel(bars.lines[0].get_ydata())[0])
            low_high = [segment[:, 1] for lines in bars.lines[2] for segment in lines.get_segments()]
            spread = f" ± {np.ptp(low_high[0]) / 2:.3g}" if low_high else ""
            told.append(f"{bars.get_label()} {mean:.3g}{spread}")
    return told


def _plotted(axis) -> str:
    """Return what a chart plots over what, and where each labelled curve begins and ends."""
    plotted = " over ".join(label for label in (axis.get_ylabel(), axis.get_xlabel()) if label)
    ends = []
    for line in axis.lines:
        values = np.asarray(line.get_ydata(orig=False), dtype=float)
        values = values[np.isfinite(values)]
        is_curve = line.get_linestyle() != "None" and line.get_transform() == axis.transData  # no rule across the chart
        if is_curve and len(values) > 1:
            name = "" if line.get_label().startswith("_") else f"{line.get_label()} ".lstrip()
            ends.append(f"{name}from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{plotted}: {', '.join(ends)}" if ends else plotted
