"""Figures have alternative texts: in a notebook's output, in saved HTML, and in the PNG."""
import re

import nbformat
import numpy as np
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from test_figures import logged
from test_predictions import grey

from egokit.runs.run_folder import Run
from egokit.viz import curves
from egokit.viz.alternative_text import KEY, describe, saved_html
from egokit.viz.style import Picture, clip_grid, grade_style, new_figure, save_figure


def test_pictures_are_told_with_their_headings_and_captions():
    pictures = [Picture(grey(0), f"clip {number} {mark}", *border)
                for number, (mark, *border) in enumerate(map(grade_style, (1, 0.0)), 1)]
    figure, _ = clip_grid([("“opens the box”", True, pictures)], "two clips", charts=False)
    save_figure(figure, None, "any")
    assert describe(figure) == "2 pictures. two clips. RIGHT: “opens the box”; clip 1 ✓ right. clip 2 ✗ wrong"


def test_charts_are_told_with_their_axes_curves_and_numbers():
    figure = new_figure()
    left, right = figure.subplots(1, 2)
    left.plot([0, 1, 2], [5.25, np.nan, 1], label="EgoNCE")
    left.set(title="loss terms", xlabel="step", ylabel="loss")
    right.barh([0, 1], [10, 20])
    right.set_yticks([0, 1], ["takes", "puts"])
    for line, value in enumerate((10, 20)):
        right.text(value, line, f"{value:.1f}")
    figure.supxlabel("what to change")
    save_figure(figure, None, "any")
    assert describe(figure) == ("2 charts. what to change. loss terms; loss over step: EgoNCE from 5.25 to 1. "
                                "takes: 10.0; puts: 20.0")


def test_a_notebook_shows_a_figure_as_an_image_that_is_described(tmp_path):
    from IPython.utils.capture import capture_output
    from nbconvert import HTMLExporter
    run, _ = logged(tmp_path)
    shell = InteractiveShell.instance()
    with capture_output() as captured:
        shell.display_formatter.format(curves(run))
    shown, = captured.outputs
    alternative = re.fullmatch(r'<img alt="(.*?)" style="[^"]*" src="data:image/png;base64,[^"]+">',
                               shown.data["text/html"])[1]
    assert alternative.startswith("6 charts. 02_pretrain/a_run_of_mine")
    assert "loss terms; loss term: egonce from 2 to" in alternative
    assert "image/png" not in shown.data, "JupyterLab would save the picture twice"
    # the saved PNG says the same, from which live figures take it
    path = run.figure("curves.png")
    assert f'alt="{alternative}"' in saved_html(path)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        "figure", outputs=[nbformat.v4.new_output("display_data", dict(shown.data))])])
    page, _ = HTMLExporter().from_notebook_node(book)
    assert f'alt="{alternative}"' in page


def test_a_hostile_title_stays_a_text(tmp_path):
    title = '"><script>alert(1)</script> \u202e $x$'
    figure = new_figure()
    figure.subplots().set_title(title)
    run = Run(tmp_path)
    save_figure(figure, run, "any")
    html = saved_html(run.figure("any.png"))
    assert "<script" not in html and "&lt;script&gt;" in html and "\u202e" not in html
    assert "\\u202e" in Image.open(run.figure("any.png")).text[KEY]
