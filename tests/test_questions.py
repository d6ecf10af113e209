"""Questions typed in about clips of a trained EgoNLQ run: answers, mistakes, the page and the live box."""
import base64
import json
import re
import shutil

import numpy as np
import pytest
import torch
from accessibility import serious
from browser_pages import every
from hostile import TEXTS, check_html
from moment_site import make_nlq
from test_search import decoded

import egokit
from egokit import search, tasks
from egokit.config.build import ConfigError
from egokit.jobs import run_job
from egokit.model.checkpoints import WeightsError
from egokit.runs.run_folder import Run
from egokit.tasks.feature_files import FeatureError
from egokit.train import loop

SMALL = "init=run:02_pretrain/random task.dim=16 task.levels=3 train.epochs=2 train.evaluate_epochs=2"
KINDS = {"clip": "", "fused": "task.feature_kind=fused", "span": "task.head=span task.positions=32"}


def open_small(name: str, overrides: str = ""):
    """Open a run of EgoNLQ on the tiny data set."""
    return egokit.open_run("toy/egonlq", "tiny", f"{SMALL} {overrides}", name)


@pytest.fixture(scope="module")
def trained(project, checkpoint):
    """Return a function: kind of KINDS -> a run that has extracted and trained, made once."""
    made = {}

    def run_of(kind: str):
        if kind not in made:
            run = made[kind] = open_small(f"asked-{kind}", KINDS[kind])
            run_job.extract(run.config, tasks.make(run.config), run, "features", "cpu")
            loop.train(run.config, tasks.make(run.config), run, "grounding", torch.device("cpu"))
        return made[kind]
    return run_of


@pytest.fixture
def asker(trained):
    return search.Questioner(trained("clip"))


@pytest.mark.parametrize("kind", KINDS)
def test_typed_in_a_question_has_the_answers_that_the_evaluation_gave_it(trained, kind):
    """All of the validation split's, on the clock of the video; those of length 0 at the clip's edges included."""
    run = trained(kind)
    asker = search.Questioner(run)
    results = json.loads((run.path / "nlq_predictions.json").read_text())["results"]
    truth = {(row["clip_uid"], row["annotation_uid"], row["query_idx"]): row
             for row in json.loads((run.path / asker.task.truth_name).read_text())["questions"]}
    assert len(results) == len(truth) > 10
    lengths = set()
    for row in results:
        known = truth[row["clip_uid"], row["annotation_uid"], row["query_idx"]]
        hits = asker(f"  {known['query'].upper()}? ", row["clip_uid"])
        lengths.add(len(hits))
        assert {(hit.video, hit.path) for hit in hits} == {
            (known["video_uid"], asker.task.videos / f"{known['video_uid']}.mp4")}
        found = np.array([[hit.start, hit.stop] for hit in hits]) - known["clip_start"]
        np.testing.assert_allclose(found, row["predicted_times"], atol=1e-4)
    assert lengths == {5}


def test_answers_lie_in_the_clip_and_are_sorted(asker):
    assert {example.clip for example in asker.examples} < asker.clips.keys(), "the test split's can be asked about, too"
    seen = set()
    for uid, clip in asker.clips.items():
        hits = asker("where is the red box?", uid)
        scores = [hit.cosine for hit in hits]
        assert 0 < len(hits) <= 5 and scores == sorted(scores, reverse=True)
        assert all(clip.start <= hit.start < hit.stop <= clip.stop for hit in hits)
        assert hits.notes == [f"clip {uid}: {clip.start:.1f} to {clip.stop:.1f} s of its video"]
        assert asker("where is the red box?", uid, top=2) == hits[:2]
        seen |= {tuple(scores)}
    other = asker("what colour is the cup?", uid)
    assert len(seen) == len(asker.clips) and [hit.cosine for hit in other] != scores, "clip and words decide"


@pytest.mark.parametrize("question", ["", " ", "???", " ? ", "\n\t ?"])
def test_an_empty_question_is_refused_with_an_example(asker, question):
    with pytest.raises(ConfigError, match="the question is empty") as raised:
        asker(question, asker.examples[0].clip)
    assert asker.examples[0].query in str(raised.value)


def test_an_unknown_clip_is_named_with_the_nearest(asker):
    uid = asker.examples[0].clip
    with pytest.raises(ConfigError, match=rf"clip '{uid}x': did you mean '{uid}'\?"):
        asker("where is it?", f"{uid}x")


def test_a_run_of_another_task_is_refused(project, checkpoint):
    run = egokit.open_run("toy/egomq", "tiny", "init=run:02_pretrain/random", "asked")
    with pytest.raises(ConfigError, match=r"its task is 'mq', expected nlq; open a run of 08_egonlq"):
        search.Questioner(run)


def test_a_run_that_was_not_opened_is_refused(trained):
    with pytest.raises(ConfigError, match=r"its config is not known; expected a run of egokit\.open_run"):
        search.Questioner(Run(trained("clip").path))


def test_a_run_without_a_trained_head_is_refused(trained):
    run = open_small("asked-untrained", f"task.features={trained('clip').path}")
    with pytest.raises(WeightsError, match=r"asked-untrained holds no checkpoint: .*a run that has trained"):
        search.Questioner(run)


def test_features_of_others_are_refused_with_what_to_do(project, checkpoint, tmp_path):
    folder = make_nlq(tmp_path)
    run = open_small("asked-theirs", f"task.features={folder} task.stored_rate=1.875")
    with pytest.raises(ConfigError, match=r"files of others.*set task\.features to a run that extracts"):
        search.Questioner(run)


@pytest.mark.parametrize("change, message", [
    ("init=", r"made by .*02_pretrain.*, but init is ''.*set init="),
    ("model.frames=2 task.feature_frames=2", "")])
def test_another_model_than_the_features_is_refused(trained, change, message):
    """The words of a question that is typed in have to be those of the model that the head was trained on."""
    run = trained("clip")
    other = open_small("asked-other", f"task.features={run.path} {change}")
    shutil.copytree(run.checkpoints, other.checkpoints, dirs_exist_ok=True)
    if message:
        with pytest.raises(ConfigError, match=message):
            search.Questioner(other)
    else:
        hits = search.Questioner(other)(*reversed(search.Questioner(run).examples[0]))
        assert hits == search.Questioner(run)(*reversed(search.Questioner(run).examples[0])), "no frame is read again"


def test_fused_features_of_another_run_have_to_be_made_alike(trained):
    run = trained("fused")
    for change, message in (("", "kind is 'fused', but task.feature_kind=clip"),
                            ("task.feature_kind=fused task.features_per_second=2", "second is 1.87, but task.feature"),
                            ("task.feature_kind=fused", "")):
        other = open_small(f"asked-fused-{bool(change)}-{bool(message)}", f"task.features={run.path} {change}")
        shutil.copytree(run.checkpoints, other.checkpoints, dirs_exist_ok=True)
        if message:
            with pytest.raises(ConfigError, match=message):
                search.Questioner(other)
        else:
            example = search.Questioner(run).examples[0]
            assert search.Questioner(other)(example.query, example.clip) == search.Questioner(run)(
                example.query, example.clip)


@pytest.mark.parametrize("kind", ["clip", "span"])
def test_a_diverged_head_is_named(trained, kind):
    asker = search.Questioner(trained(kind))
    example = asker.examples[0]
    with torch.no_grad():
        for parameter in asker.head.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match=f"clip {example.clip}: NaN or Inf in what the head finds"):
        asker(example.query, example.clip)


def test_damaged_features_are_named_and_other_clips_answered(trained):
    run, tolerant = trained("clip"), "data.max_bad_fraction=0.5"
    damaged, question = search.Questioner(run).examples[0]
    copies = [open_small(f"asked-damaged-{bool(overrides)}", overrides) for overrides in ("", tolerant)]
    for copy in copies:
        shutil.copytree(run.path, copy.path, dirs_exist_ok=True)
    strict = search.Questioner(copies[0])
    for copy in copies:
        file = copy.path / f"features/{damaged}.pt"
        file.write_bytes(file.read_bytes()[:99])
    with pytest.raises(FeatureError, match=f"{damaged}.pt"):
        strict(question, damaged)
    with pytest.raises(FeatureError, match=f"(?s)data.max_bad_fraction allows.*{damaged}.pt"):
        search.Questioner(copies[0])
    lenient = search.Questioner(copies[1])
    others = set(strict.clips) - {damaged}
    assert set(lenient.clips) == others > {example.clip for example in lenient.examples}
    assert lenient(question, min(others))
    with pytest.raises(ConfigError, match=damaged):
        lenient(question, damaged)


def test_any_text_is_asked_and_shown_as_it_is(asker):
    uid = asker.examples[0].clip
    for text in TEXTS:
        if text.strip(" ?"):
            check_html(search.ask_browser(asker, text, uid, top=1).data, [text])
    pages = sorted(asker.run.path.glob("figures/question-*.html"))
    assert len(pages) > 15
    for path in pages:
        check_html(path.read_text(), [], typeset=True)


def test_the_page_and_the_live_box_play_the_answers(asker, monkeypatch):
    example = asker.examples[0]
    second = next(each for each in asker.examples if each.clip != example.clip and each.query != example.query)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    shown = search.ask_browser(asker, example.query, example.clip).data
    name = re.sub(r"\W+", "-", example.query).strip("-")
    page = (asker.run.path / f"figures/question-{name}.html").read_text()
    hits = asker(example.query, example.clip, 3)
    for text in (shown, page):
        embedded = [base64.b64decode(data) for data in re.findall(r'src="data:video/mp4;base64,([^"]+)"', text)]
        assert len(embedded) == 3 and text.count("controls") == 3 and f"clip {example.clip}: " in text
        for hit, data in zip(hits, embedded, strict=True):
            seconds, _, codec, pixels = decoded(data)
            assert (codec, pixels) == ("h264", "yuv420p") and abs(seconds - (hit.stop - hit.start)) < 0.2
            assert f"score {hit.cosine:.2f}" in text and hit.time in text
    table = search.answer_table(hits).to_html()
    check_html(table, [hits[0].time, "time in the video", "score", hits.notes[0]])
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    real, asked = search.Questioner.__call__, []
    monkeypatch.setattr(search.Questioner, "__call__", lambda *told: asked.append(told[1:]) or real(*told))
    live = search.ask_browser(asker, example.query, example.clip)
    box, clips, status, view = live.children
    assert list(clips.options) == list(asker.clips) and view.value in shown
    clips.value = second.clip
    assert f"clip {second.clip}: " in view.value and view.value.count("<video") == 3
    view.value = ""
    box.value = second.query
    assert view.value.count("<video") == 3 and status.value == ""
    view.value = "kept"
    box.value = " ?"
    assert "the question is empty" in status.value and view.value == "kept"
    box.value = "lone \udcff byte"
    assert view.value != "kept" and status.value == ""
    assert asked == [(example.query, example.clip, 3), (example.query, second.clip, 3), (second.query, second.clip, 3),
                     (" ?", second.clip, 3), ("lone \udcff byte", second.clip, 3)]
    assert not [widget for widget in every(live) if type(widget).__name__ == "HTMLMath"]


@pytest.mark.slow
def test_the_page_plays_in_chromium(asker, chromium):
    example = asker.examples[0]
    search.ask_browser(asker, example.query, example.clip)
    path, = asker.run.path.glob(f"figures/question-{re.sub(chr(92) + 'W+', '-', example.query).strip('-')}.html")
    page, errors = chromium.new_page(), []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    assert page.locator("h1").inner_text() == example.query and page.locator("video").count() == 3
    assert not serious(page)
    for number in range(3):
        video = page.locator("video").nth(number)
        video.scroll_into_view_if_needed()
        video.focus()
        page.keyboard.press("Space")
        page.wait_for_function("""video => video.videoWidth > 0 && !video.paused
            && (video.currentTime > 0.2 || video.duration < 0.4)""", arg=video.element_handle())
    assert not errors
