"""The alternative text of a figure: what a reader who can't see it is told, made from what is written in it.

JupyterLab shows a picture of a notebook without its alternative text, unless it is an <img> in HTML. So figures are
displayed as that, in JupyterLab, in saved pages and on the site. A saved PNG carries the text as its description.
"""
import base64
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from egokit.notebook.safe_html import escape
from egokit.runs.shown_text import shown

KEY = "Description"  # of a PNG's texts, as its standard names it


def describe(figure: Figure) -> str:
    """Return a figure's alternative text: its kind, its title, and of each picture or chart what is written there."""
    pictures = [axis for axis in figure.axes if axis.images]
    charts = [axis for axis in figure.axes if axis.axison and not axis.images]
    kinds = [f"{len(axes)} {name}{'s' * (len(axes) > 1)}" for axes, name in ((pictures, "picture"), (charts, "chart"))
             if axes]
    parts = [" and ".join(kinds), figure.get_suptitle(), figure.get_supxlabel(), *map(_describe_axis, figure.axes),
             *(f"legend: {', '.join(_texts(legend.get_texts()))}" for legend in figure.legends)]
    return shown(". ".join(text.strip(" .") for part in parts if (text := " ".join(part.split()))))


def to_html(figure: Figure) -> str:
    """Return a figure as HTML, with its alternative text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight", dpi=100, format="png")
    return image(buffer.getvalue(), describe(figure))


def saved_html(path: Path) -> str:
    """Return a figure that `save_figure` saved as HTML, with its alternative text."""
    from PIL import Image
    with Image.open(path) as opened:
        return image(path.read_bytes(), opened.text.get(KEY, path.stem))


def image(png: bytes, alternative: str) -> str:
    """Return a PNG as an <img>, never wider than its page and on white in a dark theme, too."""
    return (f'<img alt="{escape(alternative)}" style="max-width:100%;height:auto;background:white" '
            f'src="data:image/png;base64,{base64.b64encode(png).decode()}">')


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
    return "; ".join(text.strip() for text in [*written, *texts] if text.strip())


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
