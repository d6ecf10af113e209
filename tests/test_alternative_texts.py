"""Figures have alternative texts: in a notebook's output, in saved HTML, and in the PNG."""
import base64
import io
import re

import nbformat
import numpy as np
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from test_figures import logged
from test_predictions import grey

from egokit.runs.run_folder import Run
from egokit.viz import curves
from egokit.viz.alternative_text import KEY, PHOTOGRAPHS, bundle, describe, show_saved
from egokit.viz.per_class import dot_plot
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


def test_points_bars_and_means_are_told_with_their_numbers():
    """What has a mark for each name, but no number beside it."""
    figure = new_figure()
    points, stacked, seeds, empty = figure.subplots(1, 4)
    dot_plot(points, ["takes  (3)", "puts  (2)"], {"zeroshot": [10, np.nan], "finetune": [20.25, 30]})
    points.axvline(5, color="black", label="chance")
    for label, heights, bottom in (("right", (75, 20), (0, 0)), ("wrong", (25, 80), (75, 20))):
        stacked.bar([0, 1], heights, 0.7, bottom, label=label)
        stacked.text(0, bottom[0], f"{heights[0]}")
    stacked.set_xticks([0, 1], ["best\n(5)", "rest\n(9)"])
    stacked.set_ylabel("share, %")
    for at, mean, spread in ((0.001, 26.3, [0.5]), (0.01, 38, None)):
        seeds.plot([at] * 2, [mean - 1, mean + 1], "o")
        seeds.errorbar([at], [mean], yerr=spread, fmt="_", label=f"lr {at} (2)")
    empty.set_yticks([0, 1], ["truth", "✓ 1"])
    save_figure(figure, None, "any")
    told = describe(figure)
    assert "takes (3): zeroshot 10, finetune 20.2; puts (2): finetune 30. share, %; best (5), rest (9); " in told
    assert "right 75, 20; wrong 25, 80. lr 0.001 (2) 26.3 ± 0.5; lr 0.01 (2) 38. truth; ✓ 1" in told


def displayed(show):
    """What a notebook's output has of what a call displays."""
    from IPython.utils.capture import capture_output
    with capture_output() as captured:
        show()
    shown, = captured.outputs
    return shown


def test_a_notebook_shows_a_figure_as_an_image_that_is_described(tmp_path):
    from nbconvert import HTMLExporter, LatexExporter
    run, _ = logged(tmp_path)
    shell = InteractiveShell.instance()
    shown = displayed(lambda: shell.display_formatter.format(curves(run)))
    alternative, webp = re.fullmatch(r'<img alt="(.*?)" style="[^"]*" src="data:image/webp;base64,([^"]+)">',
                                     shown.data["text/html"]).groups()
    assert alternative.startswith("6 charts. 02_pretrain/a_run_of_mine")
    assert "loss terms; loss term: egonce from 2 to" in alternative
    # the saved PNG says the same, from which live figures take it, and its WebP is the same picture in half the bytes
    path = run.figure("curves.png")
    assert displayed(lambda: show_saved(path)).data["text/html"] == shown.data["text/html"]
    with Image.open(path) as png, Image.open(io.BytesIO(base64.b64decode(webp))) as image:
        assert np.array_equal(np.asarray(png.convert("RGB")), np.asarray(image.convert("RGB")))
    assert len(base64.b64decode(webp)) < path.stat().st_size / 2
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("figure", outputs=[
        nbformat.v4.new_output("display_data", dict(shown.data), metadata=shown.metadata)])])
    page, _ = HTMLExporter().from_notebook_node(book)
    assert f'alt="{alternative}"' in page and page.count(webp) == 1 and shown.data["image/png"] not in page
    # what can't show HTML has the PNG
    _, resources = LatexExporter().from_notebook_node(book)
    assert [file[:4] for file in resources["outputs"].values()] == [b"\x89PNG"]


def test_a_figure_of_frames_is_small_in_html_and_a_very_long_one_is_shown():
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
    for size, kind in (((1000, 1000), "webp"), ((60, 20_000), "png")):
        png = io.BytesIO()
        Image.fromarray(noise).resize(size).save(png, "PNG")
        html = bundle(png.getvalue(), "frames")[0]["text/html"]
        assert len(png.getvalue()) > PHOTOGRAPHS and f"data:image/{kind};" in html
        assert (len(html) < len(png.getvalue()) / 3) == (kind == "webp")


def test_a_figure_without_a_background_is_on_white():
    """As with savefig.transparent: the edges of letters are black with an alpha, which alone makes them soft."""
    buffer = io.BytesIO()
    Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 51], [255, 0, 0, 255]]], np.uint8)).save(buffer, "PNG")
    html = bundle(buffer.getvalue(), "text")[0]["text/html"]
    with Image.open(io.BytesIO(base64.b64decode(html.partition("base64,")[2].rstrip('">')))) as image:
        assert np.asarray(image.convert("RGB")).tolist() == [[[255, 255, 255], [204, 204, 204], [255, 0, 0]]]


def test_a_hostile_title_stays_a_text(tmp_path):
    title = '"><script>alert(1)</script> \u202e $x$'
    figure = new_figure()
    figure.subplots().set_title(title)
    run = Run(tmp_path)
    save_figure(figure, run, "any")
    html = displayed(lambda: show_saved(run.figure("any.png"))).data["text/html"]
    assert "<script" not in html and "&lt;script&gt;" in html and "\u202e" not in html
    assert "\\u202e" in Image.open(run.figure("any.png")).text[KEY]
