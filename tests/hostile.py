"""Texts that do something where they are not taken for texts, and how HTML and figures are checked for them."""
import html.parser
import json
import re
import warnings

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

OUT = "http://127.0.0.1:9/out"  # asked for by whatever gets its way
TEXTS = {  # as somebody wrote them -> as they are to be seen
    **{text: text for text in (
        f"<img src={OUT} onerror=document.title='ran'>", "\"><script>document.title='ran'</script>",
        "</td></table><script>alert(1)</script>", "</script><script>alert(2)</script>", "</style></title><h1>big</h1>",
        "<!--", "' onmouseover='alert(3)' x='", "\" autofocus onfocus=\"alert(4)", "&lt;b&gt; &amp;lt; &#60;",
        "javascript:alert(5)", f"<a href=javascript:alert(6)>a</a> url({OUT})", "[a](javascript:alert(7)) **b** # c",
        "$5^{ and $10", r"$\frac 10", r"costs $5 and \$10$", r"\(x\) \[y\] \input{x}", "${x} {{7*7}}", "_x",
        "%s %(x)d 100%", "{0} {x!r}", "#C C öffnet 開く 🥁", "__proto__", "None", "a\u00a0b")},
    "\N{RIGHT-TO-LEFT OVERRIDE}4pm.evil": r"\u202e4pm.evil",
    "\x1b]0;title\x07\x1b[8mhidden": r"\x1b]0;title\x07\x1b[8mhidden",
    "nul\0nul": r"nul\x00nul", "one\ntwo\r\nthree\u2028four\vfive": r"one\ntwo\r\nthree\u2028four\x0bfive",
    "zero\u200bwidth\ufeff": r"zero\u200bwidth\ufeff", "lone \udcff byte": "lone \ufffd byte",
    "e" + "\u0301" * 100: "e" + "\u0301" * 4 + r"\u0301" * 96, "x" * 2**20: "x" * 998 + " …"}
# what a file or folder may be called
FILES = [text for text in TEXTS if "/" not in text and "\0" not in text and len(text.encode(errors="replace")) < 200]
NAME = "_$5^{ <img src=x onerror=alert(8)> $1 %s {0}"  # of a run, a section, …
MARKUP = {"html", "head", "meta", "title", "style", "body", "script", "div", "section", "details", "summary", "h1", "p",
          "b", "br", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img", "video"}
DATA = re.compile(r"data:(image/jpeg|video/mp4);base64,[\w+/=]*$")


class Seen(html.parser.HTMLParser):
    """What a browser makes of HTML: its texts, and anything in it that could act."""

    def __init__(self, markup: str):
        super().__init__(convert_charrefs=True)
        self.texts, self.open, self.typeset, self.scripts, self.acts = [], [], [], [], []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.acts += [tag] * (tag not in MARKUP)
        self.acts += [f"{name}={value}" for name, value in attributes
                      if name.startswith("on") or name in ("href", "action", "srcdoc", "data")
                      or (name in ("src", "poster") and not DATA.match(value))]
        if tag not in ("meta", "br", "img"):
            self.open.append((tag, "mathjax_ignore" in (dict(attributes).get("class") or "").split()))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_comment(self, data):
        self.acts.append(data)

    def handle_data(self, data):
        tag = self.open[-1][0] if self.open else ""
        if tag == "script":
            self.scripts.append(data)
        elif tag not in ("style", "title"):
            self.texts.append(data)
            if "$" in data and not any(ignored for _, ignored in self.open):
                self.typeset.append(data)


def squeezed(text: str) -> str:
    """Return a text without white space, which lines are wrapped at."""
    return "".join(text.split())


def check_html(markup: str, texts, scripts=(), typeset: bool = False) -> None:
    """Check that HTML shows texts as they are and does nothing else.

    Args:
        texts: As they were written.
        scripts: The only scripts that may be in it, beside data.
        typeset: Whether formulas are no matter, as in a page without MathJax.
    """
    markup.encode()  # no lone surrogates
    seen = Seen(markup)
    assert not seen.acts, seen.acts[:3]
    assert typeset or not seen.typeset, f"MathJax would read {seen.typeset[:3]}"
    visible = " ".join(" ".join(seen.texts).split())
    missing = [text[:60] for text in texts if " ".join(TEXTS.get(text, text).split()) not in visible]
    assert not missing, missing
    assert len(visible) < 500_000
    for script in seen.scripts:
        if script not in scripts:
            for query in json.loads(script)["queries"]:
                check_html(f'<p class="mathjax_ignore">{query["html"]}</p>', ())


def check_figure(figure, texts, legends=()) -> None:
    """Check that a figure draws texts as they are, at a size that can be looked at, without a warning.

    Args:
        texts: As they were written; of long ones the beginning counts.
        legends: What its legends name, each somewhere.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.get_tightbbox(canvas.get_renderer())
    assert box.width < 30 and box.height < 250, box
    drawn = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert not any(text._preprocess_math(text.get_text())[1] for text in drawn), "no formulas, no TeX"
    assert not any(ord(character) < 32 for text in drawn for character in text.get_text() if character != "\n")
    together = squeezed(" ".join(text.get_text() for text in drawn))
    missing = [text[:60] for text in texts if squeezed(TEXTS.get(text, text))[:14] not in together]
    assert not missing, missing
    named = squeezed(" ".join(text.get_text() for axis in figure.axes if axis.get_legend()
                              for text in axis.get_legend().get_texts()))
    assert all(squeezed(text)[:14] in named for text in legends), (legends, named)
