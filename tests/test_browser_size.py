"""The retrieval browser's page keeps to its size, whatever queries and pictures take, and says what it leaves out."""
import importlib
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from browser_pages import data_of

from egokit.notebook import safe_html
from egokit.viz.queries import ShownClip

browser = importlib.import_module("egokit.viz.browser")
COUNT = 1000  # queries


def content(clips_of, text: str):
    """Return queries, of which each shows the clips `clips_of(k)` on both of two sides."""
    numbers = np.arange(COUNT)
    return SimpleNamespace(
        texts=[f"{text} {k}" for k in numbers], sides=["mine", "another's"], legend="green: right",
        tags={"verb": [["opens", text]] * COUNT}, orders={"worst first": numbers, "best first": numbers[::-1]},
        hits=lambda s, k: [ShownClip(v, 0.5, "right", {"rank": i + 1}, {"cosine": 0.25})
                           for i, v in enumerate(clips_of(k))],
        summary=lambda s, k: f"rank 1: {text}", line=lambda k: f"✓ {text} {k}", describe_clip=lambda v: f"{text}, {v}")


@pytest.mark.parametrize("megabytes", [browser.MEGABYTES, 2.0])
@pytest.mark.parametrize("picture_bytes, text, clips", [
    (12_000, "opens the box", "own"), (800, "ボックス <b> 'x' " * 20, "own"), (9000, "opens the box " * 30, "the same"),
    (0, "#C C " + "opens the box " * 60, "none")])
def test_a_page_keeps_to_its_size_and_says_what_it_leaves_out(megabytes, picture_bytes, text, clips):
    clips_of = {"own": lambda k: range(5 * k, 5 * k + 5), "the same": lambda k: range(5), "none": lambda k: ()}[clips]
    shown = content(clips_of, text)
    part = browser.page(shown, lambda v: f"{v}".rjust(picture_bytes, "A"), "a title", megabytes)
    size = len(safe_html.page("a title", part, browser.SCRIPT.read_text()).encode())
    assert size <= megabytes * 1e6
    data = data_of(part)
    kept = len(data["queries"])
    assert 0 < kept < COUNT and f"{kept:,} of {COUNT:,} queries" in part and f"at most {megabytes:g} MB" in part
    assert f"megabytes={4 * megabytes:g}" in part, "how to get more"
    if len(data["pictures"]) + 10 < browser.MAX_CLIPS * megabytes / browser.MEGABYTES:
        assert size > 0.6 * megabytes * 1e6, "the page is as full as it may be"
    drawn = {str(hit["clip"]) for query in data["queries"] for hit in itertools.chain(*query["hits"])}
    assert drawn == set(data["pictures"]), "no clip without its picture"


def test_a_page_of_few_queries_has_all():
    shown = content(lambda k: range(k % 7), "opens the box")
    part = browser.page(shown, lambda v: "AAAA", "a title", 20.0)
    assert len(data_of(part)["queries"]) == COUNT and re.search(rf"<p>{COUNT:,} queries\. green", part)
