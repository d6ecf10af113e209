"""The retrieval browser: its content, its errors, and the page in Chromium."""
import functools
import io
import re

import numpy as np
import pytest
from browser_pages import data_of, evaluate, every, lines, listed, pages
from PIL import Image

from egokit import tasks
from egokit.notebook import open_run
from egokit.runs.run_folder import Run
from egokit.viz import browser, queries
from egokit.viz.browser import select_queries, widgets


@pytest.fixture(scope="module")
def evaluated(project, checkpoint):
    """Return a function of a benchmark's name -> (task, run), as `evaluate` has made them once."""
    return functools.cache(functools.partial(evaluate, project))


@pytest.fixture
def opened(chromium, evaluated):
    with pages(chromium, evaluated) as open_page:
        yield open_page


@pytest.mark.parametrize("name", ["ek100", "charades"])
def test_the_page_holds_the_scores_and_grades_of_the_files(evaluated, name):
    task, run = evaluated(name)
    html = browser(task, run, "zeroshot", against="perfect").data
    assert html in (run.path / "figures/browser-zeroshot.html").read_text()
    data, truth_VK, texts = data_of(html), task.truth(), task.prompts()
    assert sorted(query["text"] for query in data["queries"]) == sorted(texts), "every text is in the toy's page"
    numbers = {query["text"]: at for at, query in enumerate(data["queries"])}
    for side, section in enumerate(("zeroshot", "perfect")):
        scores_VK = task.score_matrix(*run.read_rows(section))
        for k, text in enumerate(texts):
            if texts.count(text) > 1:
                continue
            query, order = data["queries"][numbers[text]], np.argsort(-scores_VK[:, k], kind="stable")
            top, missed = query["hits"][side][:5], query["hits"][side][5:]
            assert [hit["clip"] for hit in top] == order[:5].tolist()
            assert [hit["rank"] for hit in top] == [1, 2, 3, 4, 5][:len(order)]
            for hit in [*top, *missed]:
                assert hit["score"] == pytest.approx(scores_VK[hit["clip"], k])
                assert order[hit["rank"] - 1] == hit["clip"]
                assert hit["grade"] == truth_VK[hit["clip"], k] and str(hit["clip"]) in data["pictures"]
            right = np.flatnonzero(truth_VK[order, k] == 1) + 1
            assert [hit["rank"] for hit in missed] == right[right > 5][:1].tolist()
            if side == 0:
                assert query["line"].startswith(f"{'✓' if right[0] == 1 else '✗'} rank {right[0]} (perfect ✓ rank 1)"
                                                if len(right) else "✗ no right clip")
    first = [next((hit["rank"] for hit in query["hits"][0] if hit["grade"] == 1), 0) for query in data["queries"]]
    worst = [first[at] for at in data["orders"]["worst first"]]
    possible = [rank for rank in worst if rank]
    assert possible == sorted(possible, reverse=True) and worst[len(possible):] == [0] * (len(worst) - len(possible))
    assert [first[at] for at in data["orders"]["best first"]][:len(possible)] == possible[::-1]
    lost = [first[at] for at in data["orders"]["lost most against perfect"]]  # `perfect` has rank 1 everywhere
    assert lost[:len(possible)] == possible
    gained = [first[at] for at in data["orders"]["gained most over perfect"]]
    assert gained[:len(possible)] == possible[::-1]
    for rank, query in zip(first, data["queries"], strict=True):
        assert ("worse than perfect" in query["tags"]["result"]) == (rank > 1)
        assert "better than perfect" not in query["tags"]["result"]
    words, text = data["queries"][0]["tags"], data["queries"][0]["text"]
    assert words["verb"] and words["noun"] and all(word in text for word in words["noun"][0].split())


def test_egomcq_has_five_clips_with_three_scores(evaluated):
    task, run = evaluated("egomcq")
    data, scores = data_of(browser(task, run, "zeroshot").data), task.score_matrix(run.read_rows("zeroshot")[0])
    assert len(data["queries"]) == len(task.texts)
    chosen, _ = select_queries(queries.make_queries(task, queries.sides(run, "zeroshot", None)))
    for k, query in zip(chosen, data["queries"], strict=True):
        assert query["text"] == task.texts[k]
        assert [[hit[name] for name in scores] for hit in query["hits"][0]] == \
            [pytest.approx([scores[name][k, c] for name in scores]) for c in range(5)]
        right, dual = (scores[name][k].argmax() == task.answers[k] for name in ("ensemble", "dual"))
        assert [hit["grade"] == 1 for hit in query["hits"][0]] == [c == task.answers[k] for c in range(5)]
        assert ("right" if right else "wrong") in query["tags"]["result"]
        assert ("fusion corrects dual" in query["tags"]["result"]) == (right and not dual)
        assert query["tags"]["kind"] == [{1: "inter-video", 2: "intra-video"}[task.types[k]],
                                         *(["verb-only"] if task.verb_only[k] else [])]
    best = [data["queries"][at]["tags"]["result"][0] for at in data["orders"]["best first"]]
    assert best == sorted(best), "right before wrong"


def test_a_page_of_many_clips_is_bounded_and_says_so(evaluated, monkeypatch):
    task, run = evaluated("egomcq")
    monkeypatch.setitem(select_queries.__globals__, "MAX_CLIPS", 20)
    html = browser(task, run, "zeroshot").data
    data = data_of(html)
    assert 3 <= len(data["queries"]) < len(task.texts) and len(data["pictures"]) <= 20
    assert f"{len(data['queries'])} of {len(task.texts)} queries: the worst, the best and some at random" in html
    assert all(sorted(order) == list(range(len(data["queries"]))) for order in data["orders"].values())


def test_two_runs_of_the_same_data(evaluated, tmp_path):
    task, run = evaluated("ek100")
    second = Run(run.path.parent / "other")
    rows, prompts = run.read_rows("perfect")
    second.write_rows("finetune", rows, prompts)
    second.write_rows("zeroshot", rows, prompts)
    for against in (("other", "finetune"), (second, "finetune"), (str(second.path), "finetune"), second):
        data = data_of(browser(task, run, "zeroshot", against=against).data)
        assert f"gained most over other: {'zeroshot' if against is second else 'finetune'}" in data["orders"]
        assert len(data["queries"][0]["hits"]) == 2


def test_wrong_names_and_other_data_are_errors_that_say_what_to_do(evaluated, resolve):
    task, run = evaluated("ek100")
    egomcq, questions = evaluated("egomcq")
    with pytest.raises(FileNotFoundError, match="section 'zeroshort': did you mean 'zeroshot'"):
        browser(task, run, "zeroshort")
    with pytest.raises(FileNotFoundError, match=r"(?s)no run folder .*never"):
        browser(task, run, "zeroshot", against=("never", "zeroshot"))
    assert not (run.path.parent / "never").exists()
    with pytest.raises(FileNotFoundError, match="nothing in this run has been evaluated"):
        browser(task, Run(run.path.parent / "empty"), "zeroshot")
    for wrong_task, wrong_run in ((task, questions), (egomcq, run)):
        with pytest.raises(ValueError, match="another benchmark"):
            browser(wrong_task, wrong_run, "zeroshot")
    rows, prompts = run.read_rows("zeroshot")
    run.write_rows("short", {key: value[:-1] for key, value in rows.items()}, prompts)
    count = len(rows["index"])
    with pytest.raises(ValueError, match=rf"(?s){count - 1} rows .* have {count}.*evaluate it again"):
        browser(task, run, "zeroshot", against="short")
    run.write_rows("stale", rows, prompts)
    run.write_metrics("stale", {"data": {path.name: "0" * 12 for path in task.tables()}})
    with pytest.raises(ValueError, match=r"another EPIC_100_retrieval_test\.csv \(000000000000\)"):
        browser(task, run, "stale")
    with pytest.raises(ValueError, match="'mq' retrieves nothing to browse"):
        browser(tasks.make(resolve("toy/egomq", "init=")), run, "zeroshot")


def test_the_first_right_rank_is_that_of_a_stable_sort():
    """Ties go to the earlier clip, as in the metrics; a text without a right clip has rank 0."""
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 4, (30, 40)) / 4, rng.random((30, 40)) < 0.1
    right[:, 3] = False
    ranks, _ = queries.first_right(scores, right)
    for k in range(40):
        hits = np.flatnonzero(right[np.argsort(-scores[:, k], kind="stable"), k])
        assert ranks[k] == (hits[0] + 1 if len(hits) else 0)
    assert ranks[3] == 0


def test_live_widgets_choose_and_show_what_the_page_does(evaluated):
    task, run = evaluated("egomcq")
    content = queries.make_queries(task, queries.sides(run, "zeroshot", None))
    read = []
    box = widgets(content, lambda v: read.append(v) or f"picture-{v}")
    assert len(set(read)) == 5, "what isn't shown isn't read"
    named = {widget.description: widget for widget in every(box) if getattr(widget, "description", "")}
    worst = content.orders["worst first"][0]
    assert named["queries"].options[0] == (content.line(worst), worst)
    named["text"].value = "c the"
    fitting = [k for k, text in enumerate(content.texts) if "c" in text.lower() and "the" in text]
    assert sorted(k for _, k in named["queries"].options) == fitting
    noun = content.tags["noun"][fitting[0]][0]
    named["noun"].value = noun
    with_noun = [k for k in fitting if noun in content.tags["noun"][k]]
    assert sorted(k for _, k in named["queries"].options) == with_noun != fitting
    view = next(widget for widget in every(box) if type(widget).__name__ == "HTML")
    shown = named["queries"].value
    assert content.texts[shown] in view.value and f"picture-{content.hits(0, shown)[4].clip}" in view.value
    named["text"].value = "no such query"
    assert "No query has all that" in view.value
    named["Random query"].click()
    named["text"].value = named["noun"].value = ""
    named["order"].value = "best first"
    assert named["queries"].value == content.orders["best first"][0]
    named["Random query"].click()
    assert content.texts[named["queries"].value] in view.value


def test_live_there_are_widgets_and_the_page_folded_for_later(evaluated, monkeypatch, capsys):
    task, run = evaluated("charades")
    monkeypatch.setattr(open_run, "injected_cells", list)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not browser(task, run, "zeroshot").data.startswith("<details>")
    monkeypatch.setenv("JPY_SESSION_NAME", "someone's.ipynb")
    shown = browser(task, run, "zeroshot").data
    assert capsys.readouterr().out.startswith("VBox(") and shown.startswith("<details><summary>")
    assert len(data_of(shown)["queries"]) > 0
    monkeypatch.setattr(open_run, "injected_cells", lambda: ["# Parameters\nrun = 'x'"])
    assert not browser(task, run, "zeroshot").data.startswith("<details>"), "papermill in JupyterLab is not live"


@pytest.mark.slow
def test_searching_sorting_and_filtering_in_chromium(opened, evaluated):
    task, _ = evaluated("ek100")
    texts, page = task.prompts(), opened("ek100", "perfect")
    data = data_of(page.content())
    assert len(listed(page)) == len(texts) and listed(page) == lines(data, "worst first")
    assert page.locator(".egokit-unfolding").count() == 0, "the static list has been replaced"
    page.get_by_label("text").press_sequentially("pick up")
    fitting = [text for text in texts if "pick" in text and "up" in text]
    assert len(listed(page)) == len(fitting) > 0 and all("pick up" in line for line in listed(page))
    assert page.locator("output").inner_text() == f"{len(fitting)} of {len(texts)} queries"
    page.get_by_role("button", name="Reset").click()
    assert len(listed(page)) == len(texts)
    for name in ("verb", "noun", "result"):
        menu = page.get_by_label(name, exact=True)
        value = data["queries"][0]["tags"][name][0]
        menu.select_option(value)
        assert len(listed(page)) == sum(value in query["tags"][name] for query in data["queries"]) > 0
        menu.select_option("")
    for order in data["orders"]:
        page.get_by_label("order").select_option(order)
        assert listed(page) == lines(data, order)
    page.get_by_label("text").fill(f"{texts[0].split()[0]} and-nothing")
    assert listed(page) == [] and "No query has all that" in page.locator(".egokit-view").inner_text()


@pytest.mark.slow
def test_pictures_random_keyboard_and_comparison_in_chromium(opened):
    page = opened("ek100", "perfect")
    data = data_of(page.content())
    shown = data["queries"][data["orders"]["worst first"][0]]
    assert page.locator(".egokit-view figure").count() == sum(map(len, shown["hits"]))
    assert page.locator(".egokit-view section").count() == 2, "two sections side by side"
    left, right = (page.locator(".egokit-view section").nth(i).bounding_box() for i in range(2))
    assert left["x"] + left["width"] <= right["x"] and left["y"] == right["y"]
    assert page.evaluate("[...document.querySelectorAll('.egokit-view img')].every("
                         "image => image.complete && image.naturalWidth > 50)")
    assert all(image.get_attribute("alt").startswith("frames of ") for image in page.locator(".egokit-view img").all())
    style_of = "image => getComputedStyle(image).borderTopStyle"
    styles = {hit["grade"] == 1: page.locator(".egokit-view img").nth(i).evaluate(style_of)
              for i, hit in enumerate(hit for side in shown["hits"] for hit in side)}
    assert styles[True] == "solid" and styles.get(False, "dashed") != "solid"
    page.locator(".egokit-list").focus()
    suppressed = page.locator(".egokit-list").get_attribute("data-lm-suppress-shortcuts")
    assert suppressed, "without it, pressing d twice deletes the cell in JupyterLab"
    page.keyboard.press("ArrowDown")
    second = data["queries"][data["orders"]["worst first"][1]]
    assert second["text"] in page.locator(".egokit-view p").first.inner_text()
    seen = set()
    for _ in range(20):
        page.get_by_role("button", name="Random query").click()
        seen.add(page.locator(".egokit-view p").first.inner_text())
    assert len(seen) > 5


@pytest.mark.slow
def test_texts_are_escaped_in_the_page(opened, evaluated):
    task, _ = evaluated("egomcq")
    kept, text = task.texts, "</script><img src=x onerror=alert(1)> & \"quotes\" <!--<script>"
    task.texts = [text, *kept[1:]]
    try:
        for scripts in (True, False):
            page = opened("egomcq", java_script_enabled=scripts)
            assert page.locator("img[onerror]").count() == 0
            if scripts:
                page.get_by_label("text").fill("onerror")
                assert page.locator(".egokit-view p").first.inner_text() == f"“{text}”"
    finally:
        task.texts = kept


@pytest.mark.slow
def test_kinds_of_questions_in_chromium(opened, evaluated):
    task, _ = evaluated("egomcq")
    page = opened("egomcq")
    page.get_by_label("kind").select_option("verb-only")
    assert len(listed(page)) == task.verb_only.sum() > 0
    page.get_by_label("result").select_option("right")
    assert all(line.startswith("✓") for line in listed(page))
    page.get_by_role("button", name="Reset").click()
    assert page.locator(".egokit-view figure").count() == 5
    caption = page.locator(".egokit-view figcaption").first.inner_text()
    assert re.search(r"dual -?\d\.\d\d, fusion \d\.\d\d, ensemble -?\d\.\d\d", caption)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_without_scripts_the_list_unfolds(opened, scheme):
    page = opened("charades", "perfect", java_script_enabled=False, color_scheme=scheme)
    assert "Scripts don't run here" in page.locator(".egokit-unfolding").inner_text()
    drawn = Image.open(io.BytesIO(page.screenshot())).convert("L")
    assert np.median(drawn) > 200 if scheme == "light" else np.median(drawn) < 60
    text = page.locator(".egokit-unfolding figcaption").first
    colour = {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
    assert text.evaluate("node => getComputedStyle(node).color") == colour
    assert page.locator("details").count() > 4 and page.locator("details[open] img").first.is_visible()
    page.locator("summary").nth(1).click()
    assert page.locator("details").nth(1).locator("img").first.is_visible()
    assert page.locator("form").count() == 0
