"""Sphinx's configuration of the site; build_site.py calls it with a copy of the documents."""
import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import docstrings  # noqa: E402 - it lies beside this file
from sphinx.util import logging  # noqa: E402

import egokit  # noqa: E402

logger = logging.getLogger(__name__)

project, version, release = "egokit", egokit.__version__, egokit.__version__
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["extra"]
nitpicky = True  # a reference to a name of egokit that doesn't exist is an error
nitpick_ignore_regex = [("py:.*", r"(?!egokit\b).*"),       # other packages' names would need the network
                        ("py:.*", r"egokit\..*\b_\w+")]     # private names have no place here

nb_execution_mode = "off"  # outputs are the demo's
myst_heading_anchors = 6  # GitHub's anchors, which the documents use
myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True  # as in JupyterLab, $$ may stand inside a paragraph

viewcode_follow_imported_members = False  # else a file's links lead to egokit's top, where few of its names stand
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "py:obj"  # docstrings have names in single backticks: a link where it is a name of egokit
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes as a list: some are documented in the class, too

html_theme = "furo"
html_title = "egokit"
html_static_path = [str(HERE / "static")]
html_favicon = str(HERE / "static/icon.svg")
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_show_search_summary = False  # it is fetched, which a browser refuses on a page opened as a file
html_math_renderer = "mathml"


def mathml(node, display: str = "inline") -> str:
    """Return a formula as MathML; a command of LaTeX that the converter doesn't know is a warning."""
    formula = convert(node.astext(), display=display)
    if "\\" in formula:
        logger.warning("no MathML for all of %r", node.astext(), location=node)
    return formula


def inline_formula(translator, node) -> None:
    """Write a formula as MathML, which browsers set without a script, a font or a request."""
    translator.body.append(mathml(node))
    raise nodes.SkipNode


def displayed_formula(translator, node) -> None:
    """Write a formula that stands on its own line."""
    translator.body.append(f'<div class="formula">{mathml(node, "block")}</div>')
    raise nodes.SkipNode


def exact_references(app, tree) -> None:
    """Make a type in a signature name only itself: `bytes` is Python's, not any class's attribute of that name."""
    for reference in tree.findall(addnodes.pending_xref):
        if reference.get("refdomain") == "py":
            reference.attributes.pop("refspecific", None)


def skip_inherited(app, what: str, name: str, value, skip: bool, options) -> bool | None:
    """Leave out what another package's base class puts into ours, such as matplotlib's `set`."""
    return None if (getattr(value, "__module__", None) or "egokit").split(".")[0] == "egokit" else True


def without_fields(app, what: str, name: str, value, options, signature, returns):
    """Leave out the signature of a class of keys, all of which are listed below it."""
    return ("", None) if docstrings.is_section(value) else None


def link_files(app, tree, name: str) -> None:
    """Make `egokit/….py` in a document a link to its source, and `docs/….md` one to its page."""
    modules = getattr(app.env, "_viewcode_modules", {})
    for literal in list(tree.findall(nodes.literal)):
        text = literal.astext()
        page = ""
        if match := re.fullmatch(r"(egokit/[\w/]+)\.py", text):
            module = match[1].replace("/", ".").removesuffix(".__init__")
            page = f"_modules/{module.replace('.', '/')}" if modules.get(module) else ""
        elif match := re.fullmatch(r"((?:docs|notebooks)/\w+)\.(?:md|ipynb)", text):
            page = match[1] if match[1] in app.env.all_docs else ""
        if page and not isinstance(literal.parent, nodes.reference) and app.builder.format == "html":
            link = nodes.reference("", "", internal=True, refuri=app.builder.get_relative_uri(name, page))
            literal.replace_self(link)
            link += literal


def level_captions(app, name: str, template: str, context: dict, tree) -> None:
    """Give the captions of the table of contents, headings to a screen reader, the level that the theme leaves out."""
    if navigation := context.get("furo_navigation_tree"):
        context["furo_navigation_tree"] = navigation.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app) -> dict:
    """Register what makes this site."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
    app.connect("autodoc-process-docstring", docstrings.prepare, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", without_fields)
    app.connect("autodoc-skip-member", skip_inherited)
    app.connect("doctree-read", exact_references)
    app.connect("doctree-resolved", link_files)
    app.connect("html-page-context", level_captions, priority=900)  # after the theme has made it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
