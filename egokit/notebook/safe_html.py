"""The one place where texts become HTML: cells of tables, parts of pages, and whole pages.

What stands in a table or a page may be anybody's: a file name, a narration, a metrics.json. It is shown as it was
written; it never becomes markup, a script or a formula.
"""
import base64
import functools
import hashlib
import html
import numbers
from collections.abc import Callable, Sequence

from egokit.runs.shown_text import MAX_SHOWN, shown

NO_FORMULAS = "tex2jax_ignore mathjax_ignore"  # classes of elements in which JupyterLab takes no $ for a formula

WRAPPED = "text-align: left; overflow-wrap: anywhere"  # CSS of texts, which may be one word of 1,000 letters


def escape(value, limit: int = MAX_SHOWN) -> str:
    """Return a value as text for HTML, between tags or in a quoted attribute."""
    return html.escape(shown(value, limit))


def cell(value, number: str = "") -> str:
    """Return a table's cell or heading as HTML.

    Args:
        value: Anything; None and NaN are a dash.
        number: The format of a number; "" shows whole ones as they are and others with one decimal.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if value is None or (is_number and value != value):
        return "–"
    if is_number and abs(value) < 1e15:
        value = (number or ("{:,}" if isinstance(value, numbers.Integral) else "{:,.1f}")).format(value)
    return escape(value)


def styled(rows: list[tuple], columns: list[str], texts: Sequence[str], formats: dict[str, str] | None = None,
           below: Sequence[str] = ()):
    """Return rows as a table for a notebook; its cells may hold anything.

    Args:
        rows: The cells of each row.
        columns: The headings.
        texts: The columns of text, which are aligned to the left.
        formats: {column: the format of its numbers}, where it is not that of `cell`.
        below: Lines of text below the table.

    Returns:
        A pandas Styler; its `data` is the DataFrame.
    """
    import pandas as pd
    # dtype object: other columns of text can't hold every file name, and one of floats turns whole numbers into floats
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    style = frame.style.hide(axis="index").set_table_attributes(f'class="{NO_FORMULAS}"')
    style.format({name: functools.partial(cell, number=(formats or {}).get(name, "")) for name in frame.columns})
    style.format_index(cell, axis="columns")
    style.set_caption("<br>".join(map(escape, below)))
    style.set_table_styles([{"selector": "caption", "props": f"caption-side: bottom; {WRAPPED}"}])
    props = f"min-width: 5em; {WRAPPED}"
    style.set_table_styles({name: [{"selector": "th", "props": props}, {"selector": "td", "props": props}]
                            for name in texts}, overwrite=False)
    return style


class Tables:
    """Several tables below one another, and lines of text below them, for a notebook."""

    def __init__(self, tables: list, below: list[str] | tuple[str, ...] = ()):
        self.tables, self.below = tables, below

    def to_html(self) -> str:
        """Return them as HTML."""
        lines = [f'<p style="{WRAPPED}" class="{NO_FORMULAS}">{escape(line)}</p>' for line in self.below]
        return "".join([*(table.to_html() for table in self.tables), *lines])

    _repr_html_ = to_html


def page(title: str, body: str, script: str = "") -> str:
    """Return a whole HTML page, which can load nothing, send nothing and run no script but one.

    Args:
        title: The title, as text.
        body: The content, as HTML.
        script: The text of the one script in it that may run.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = ("default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; media-src data:; "
               "style-src 'unsafe-inline'" + (f"; script-src 'sha256-{digest}'" if script else ""))
    return ('<!doctype html><html lang="en"><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
            '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
            f"<title>{escape(title)}</title>"
            '<body style="font:16px sans-serif;max-width:1200px;margin:1em auto;padding:0 1em">'
            f"{body}</body></html>")


def live_view(controls: Sequence, content: str, busy: str, answer: Callable[[], str]) -> tuple:
    """Return two widgets, a line of status and a view, which shows `answer()` whenever a control has changed.

    Args:
        controls: Widgets with a value.
        content: HTML to begin with; `answer` gives such HTML. Its error is told in the line of status.
        busy: What the line says while `answer` works.
    """
    import ipywidgets
    status, view = plain_label(), ipywidgets.HTML(content)

    def show(change) -> None:
        status.value = busy
        try:
            view.value = answer()
            status.value = ""
        except (ValueError, RuntimeError, OSError) as error:
            status.value = shown(error)
    for control in controls:
        control.observe(show, names="value")
    return status, view


def plain_label(text: str = ""):
    """Return a widget with a line of text, in which no $ is taken for a formula."""
    import ipywidgets
    label = ipywidgets.Label(shown(text))
    for name in NO_FORMULAS.split():
        label.add_class(name)
    return label
