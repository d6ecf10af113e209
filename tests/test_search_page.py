"""A page of many hits: one image of thumbnails, and a size that it keeps to."""
import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from search_folder import video

from egokit.config import names
from egokit.runs.run_folder import Run
from egokit.search import Hit, answer_cards, browser, grid, write_page
from egokit.search.answers import Asked, Film
from egokit.search.clip_files import PLAYED, played
from egokit.search.sprite import COLUMNS, Sprite


def test_a_sprite_has_every_picture_at_its_place():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (23, 3))
    pictures = [Image.new("RGB", (16, 8 + number % 5), tuple(map(int, colour)))
                for number, colour in enumerate(colours)]
    sprite = Sprite(pictures, 24, 8)
    data, = re.findall(r"url\(data:image/jpeg;base64,([^)]*)\)", sprite.sheet)
    image = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
    assert image.shape == (3 * 20, 24 * COLUMNS, 3)
    assert re.search(r'class="(\S+)"', sprite.attributes)[1] in sprite.sheet
    for number, colour in enumerate(colours):
        left, top = map(int, re.findall(r"-(\d+)px", sprite.position(number)))
        assert np.abs(image[top + 3, left + 12].astype(int) - colour).max() < 40
        assert image[top + 17, left + 12].max() < 30, "black below"


@pytest.fixture(scope="module")
def hits(tmp_path_factory):
    """Hits in a made-up video, one in a portrait one, and one in a file that is no video."""
    folder = tmp_path_factory.mktemp("page")
    path, upright = video(folder / "a <b>.mp4", seconds=20), video(folder / "upright.mp4", seconds=2, size="96x160")
    (folder / "noise.mp4").write_bytes(b"noise")
    hits = [Hit(path.name, number / 2, number / 2 + 1, 0.5, None, path) for number in range(30)]
    hits[3] = Hit("upright.mp4", 0, 2, 0.5, None, upright)
    hits[5] = Hit("noise.mp4", 0, 2, 0.5, None, folder / "noise.mp4")
    return hits


def test_many_hits_have_one_image_and_an_alternative_text_each(hits, tmp_path):
    page = write_page(hits, tmp_path / "hits.html", "many").read_text()
    assert page.count("data:image/jpeg") == 1 and page.count("<figure") == 30
    assert page.count('<video controls loop muted playsinline preload="none"') == 29 == page.count("data:video/mp4")
    labels = re.findall(r'aria-label="([^"]*)"', page)
    assert len(labels) == 30 + 29 and labels[0] == f"{labels[1]}: player"
    assert labels[1] == "1: a &lt;b&gt;.mp4, 0:00–0:01, cosine 0.50"
    assert len(set(re.findall(r"background-position:[^;\"]*", page))) == 29
    assert page.count("no clip: ") == 1 and "play here" not in page
    few = grid(hits[:4]).data
    assert few.count("data:image/jpeg") == 4 == few.count('preload="metadata"'), "what an untrusted notebook shows"


@pytest.mark.parametrize("megabytes", [0.16, 0.03])
def test_a_page_keeps_to_its_size_and_says_what_it_leaves_out(hits, tmp_path, megabytes):
    page = write_page(hits, tmp_path / "hits.html", "many", megabytes)
    text = page.read_text()
    playing, still, bare = text.count("<video"), len(re.findall(r'<div role="img"[^>]*class="', text)), text.count(
        "no picture: see")
    assert page.stat().st_size <= megabytes * 1e6 and playing + still + bare == 29 and still + bare > 0
    said = re.search(r"(\d+) of 30 hits play here; (\d+) are pictures(?:, and (\d+) without a picture)?, as", text)
    assert [int(number or 0) for number in said.groups()] == [playing, still, bare]
    assert f"megabytes={4 * megabytes:g}" in text and "--clips FOLDER" in text and "search.export(hits" in text
    assert playing > 0 or (megabytes < 0.1 and bare > 0)


@pytest.mark.parametrize("megabytes, playing", [(5.0, 30), (0.3, None), (0.06, None)])
def test_answers_beside_clips_keep_to_a_size_too(hits, tmp_path, megabytes, playing):
    """30 questions of a notebook's run, whose clips may last minutes."""

    class Asker:
        run, examples = Run(tmp_path / "run"), [Asked(str(number), "is <it> open?", "yes") for number in range(30)]

        def __call__(self, question, clip, top):
            return [("yes", 0.75), ("<no>", 0.25)]

        def film(self, clip):
            return Film(**vars(hits[0]) | {"start": int(clip) / 2})
    shown = answer_cards(Asker(), 30, megabytes=megabytes).data
    path, = tmp_path.rglob("answered.html")
    assert path.stat().st_size <= megabytes * 1e6 and shown in path.read_text()
    assert shown.count("right: yes") == 30 == shown.count("<figure") and "&lt;no&gt;" in shown
    played = shown.count("<video")
    assert played == playing if playing else 0 <= played < 30
    said = re.search(r"(\d+) of 30 hits play here; .*More of them here: megabytes=", shown)
    assert bool(said) == (playing is None) and (not said or int(said[1]) == played)
    assert not said or "ask.film(CLIP)" in said[0]


def test_of_a_long_moment_the_part_around_its_best_clip_plays():
    for best, expected in (((40, 44), (38, 46)), ((10, 14), (10, 18)), ((96, 100), (92, 100))):
        part = played(Hit("a", 10, 100, 0.5, None, "a", best=best))
        assert (part.start, part.stop) == expected and part.best == best and PLAYED == 8
    for hit in (Hit("a", 10, 100, 0.5, None, "a"), Hit("a", 10, 16, 0.5, None, "a", best=(12, 14))):
        assert played(hit) == hit


def test_texts_that_are_cut_or_replaced_name_different_files():
    """The pages of searches and questions; short texts keep the plain names that notebooks and documents tell."""
    for text, stem in (("#C C opens the box", "c-c-opens-the-box"), ("where is the red box?", "where-is-the-red-box"),
                       ("開ける 箱", "開ける-箱"), ("frames", "frames")):
        assert names.file_stem(text) == stem
    long = "#C C takes the cup from the table and puts it into the sink of the kitchen"
    texts = [long, f"{long}, slowly", f"{long}s", "open-the box", "open the box", "open, the box", "open  the box",
             "???", "like a.mp4@1:23", "like a.mp4@1-23", "like a@mp4 1:23", "\ud800", "", " ", "../a", "a\0b",
             "箱" * 61, "箱" * 60]
    stems = [names.file_stem(text) for text in texts]
    assert len(set(stems)) == len(texts) and names.file_stem(long).startswith("c-c-takes-the-cup-from-the-table-and")
    for stem in stems:
        assert names.check_name(stem) == stem and len(f"search-{stem}.html".encode()) <= names.LONGEST


def test_frames_have_a_page_of_their_own(tmp_path, monkeypatch):
    """They have no name; the second frames' page is not to overwrite the first one's."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)

    class Found(Run):
        run = property(lambda self: self)
        folder = tmp_path / "videos"

        def __call__(self, *given, **options):
            return []
    for value in (0, 1, 1):
        browser(Found(tmp_path / "07/mine"), like=torch.full((4, 3, 8, 8), value, dtype=torch.uint8))
    assert len(list(tmp_path.glob("07/mine/figures/search-like-frames-*.html"))) == 2


@pytest.mark.slow
def test_a_page_of_many_hits_in_chromium(hits, tmp_path, chromium):
    """Pictures are there at once; a click opens a clip's player, and one more plays it."""
    page, errors = chromium.new_page(viewport={"width": 1200, "height": 900}), []
    page.on("console", lambda message: errors.append(message.text))
    page.goto(write_page(hits, tmp_path / "hits.html", "many").as_uri())
    first, picture = page.locator("video").first, page.locator("summary").first
    shown = np.array(Image.open(io.BytesIO(picture.screenshot())).convert("RGB")).astype(int)
    assert shown[20:120].std() > 40, "the test pattern's colours, and no grey box"
    assert first.evaluate("video => video.readyState") == 0, "nothing is loaded that isn't played"
    picture.click()
    assert first.is_visible() and picture.bounding_box()["height"] < 40
    first.click(position={"x": 24, "y": first.bounding_box()["height"] - 48})  # the button of the player
    page.wait_for_function("video => video.currentTime > 0.2", arg=first.element_handle())
    assert not errors
    page.close()
