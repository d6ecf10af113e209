"""Questions answered in words: the browser's content, pictures, and questions that are typed in."""
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

import egokit
from egokit import search, tasks, viz
from egokit.config.build import ConfigError
from egokit.data.video.timeline import VideoError
from egokit.data.video.transforms import normalise
from egokit.jobs import run_job
from egokit.runs.run_folder import Run
from egokit.train import loop
from egokit.viz import answer_queries
from egokit.viz.answer_attention import cls_map


@pytest.fixture(scope="module")
def trained(project, checkpoint):
    """Return (task, run) of a head that has been trained for a moment."""
    run = egokit.open_run("toy/egotaskqa_head", "tiny", "init=run:02_pretrain/random train.epochs=3 "
                          "train.evaluate_epochs=3 task.vectors=run:09_egotaskqa/words", "words")
    run_job.extract(run.config, tasks.make(run.config), run, "vectors", "cpu")
    task = tasks.make(run.config)
    run.write_metrics("chance", task.chance())
    run.write_metrics("headtune", loop.train(run.config, task, run, "headtune", torch.device("cpu")))
    return tasks.make(run.config), run


@pytest.fixture(scope="module")
def asker(trained):
    return search.Answerer(trained[1])


def test_typed_in_a_question_has_the_answers_that_the_evaluation_gave_it(trained, asker):
    task, run = trained
    answers = answer_queries.section_answers(task, run, "headtune")
    for number in range(0, len(task.asked), 7):
        question = task.asked[number]
        words, chances = zip(*asker(f"  {question.question.upper()} ", question.clip), strict=True)
        assert list(words) == [task.vocabulary[k] for k in answers.classes_Q5[number]]
        np.testing.assert_allclose(chances, answers.chances_Q5[number], rtol=1e-4, atol=1e-5)


def test_the_browser_holds_every_question_with_its_answers(trained):
    task, run = trained
    html = viz.browser(task, run, "headtune").data
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])
    assert len(data["queries"]) == len(task.asked) and data["filters"] == ["kind", "right answer", "result"]
    answers = answer_queries.section_answers(task, run, "headtune")
    in_data = [data["queries"][k] for k in data["orders"]["as in the data"]]
    for question, query, classes in zip(task.asked, in_data, answers.classes_Q5, strict=True):
        right = classes[0] == question.answer
        assert query["text"] == question.text and query["line"].startswith("✓" if right else "✗")
        assert ("right" in query["tags"]["result"]) == right and query["tags"]["kind"] == list(question.labels)
        assert f"right: {question.answer_text}; " in query["html"]
        hit, = query["hits"][0]
        words = [name.removeprefix("✓ ") for name in hit if name not in ("clip", "grade")]
        assert words == [task.vocabulary[k] for k in classes] and str(hit["clip"]) in data["pictures"]
    worst = [data["queries"][k]["tags"]["result"][0] for k in data["orders"]["worst first"]]
    assert worst == sorted(worst, reverse=True), "wrong ones come first"


def test_pictures_show_the_numbers_of_the_metrics(trained):
    task, run = trained
    metrics = run.metrics()["headtune"]
    axis, = viz.accuracy_by_kind(run, "headtune").axes
    names = [label.get_text() for label in axis.get_yticklabels()]
    shown = dict(zip(names, [bar.get_width() for bar in axis.patches], strict=True))
    assert names[:3] == ["all", "open", "binary"] and shown["all"] == metrics["direct_all"]
    kinds = {name.removeprefix("accuracy/"): value for name, value in metrics.items() if name.startswith("accuracy/")}
    assert kinds == {name: shown[name] for name in kinds} and len(shown) == len(kinds) + 3
    table = viz.confusions(task, run, "headtune", count=1000).data
    wrong = round(len(task.asked) * (1 - metrics["direct_all"] / 100))
    assert sum(table["questions"]) == wrong and (table["right answer"] != table["taken for"]).all()
    assert len(viz.asked_clips(task, run, 2, "val").axes) == 16


def test_a_label_called_like_a_form_of_answers_has_a_line_of_its_own(trained, tmp_path):
    metrics = trained[1].metrics()["headtune"] | {"accuracy/open": 1.0, "questions/open": 3}
    run = Run(tmp_path / "09_egotaskqa/labels")
    run.write_metrics("headtune", metrics)
    axis, = viz.accuracy_by_kind(run, "headtune").axes
    names, widths = [label.get_text() for label in axis.get_yticklabels()], [bar.get_width() for bar in axis.patches]
    assert names.count("open") == 2 and widths[1] == metrics["direct_open"] and widths[-1] == 1.0
    for section in ("finetune", "chance"):
        run.write_metrics("chance", {})
        with pytest.raises(ValueError, match=f"metrics.json: section '{section}' has no accuracy of all questions"):
            viz.accuracy_by_kind(run, section)


def test_a_clip_that_cannot_be_read_hides_no_other(trained, asker, monkeypatch):
    task, run = trained
    lost, read = asker.clips[0], type(task).read_clip

    def read_clip(self, name):
        if name == lost:
            raise VideoError(f"{name}: broken <b>")
        return read(self, name)
    monkeypatch.setattr(type(task), "read_clip", read_clip)
    with pytest.raises(VideoError, match="broken"):
        viz.browser(task, run, "headtune")
    data = dataclasses.replace(task.config.data, max_bad_fraction=0.5)
    tolerant = tasks.make(dataclasses.replace(task.config, data=data))
    assert json.loads(re.search(r'json">(.*?)</script>', viz.browser(tolerant, run, "headtune").data, re.DOTALL)[1])
    assert viz.asked_clips(tolerant, run, 100, "test").axes
    html = search.answer_cards(asker, len(asker.examples)).data
    assert "no answer: " in html and "broken &lt;b&gt;" in html and html.count("<video") < len(asker.examples)


def test_attention_is_of_the_clip_that_is_asked_about(asker):
    frames = normalise(asker.frames(asker.clips[0]))[None]
    one, answer = cls_map(asker.model, frames, "which object is opened?")
    assert one.shape == (8, 4, 4) and one.sum() == pytest.approx(1, abs=1e-5) and (one > 0).all()
    assert answer == asker("which object is opened?", asker.clips[0], top=3)
    other, _ = cls_map(asker.model, frames.flip(1), "which object is opened?")
    assert np.abs(one - other).max() > 1e-4
    assert not asker.model.video.blocks[-1].space._forward_pre_hooks


def test_answers_play_and_the_right_one_is_marked(asker):
    example = asker.examples[0]
    html = search.answer_cards(asker, 2).data
    assert html.count("<video") == 2 and html.count("right: ") == 2
    known = {word for word, _ in asker(example.query, example.clip)}
    assert ("✓" in search.answers.card(asker, example.query, example.clip, example.answer)) == (example.answer in known)
    html = search.answer_box(asker, "<b>Is it $open$?", example.clip).data
    assert "<b>Is" not in html and "&lt;b&gt;Is it $open$?" in html and "tex2jax_ignore" in html
    page, = asker.run.path.glob("figures/question-b-is-it-open-??????.html")
    assert "&lt;b&gt;Is it $open$?" in page.read_text()


def test_what_cannot_be_asked_is_refused(asker, project, checkpoint):
    with pytest.raises(ConfigError, match=r"the question is empty: write one, such as '.+\?'"):
        asker(" ? ", asker.clips[0])
    with pytest.raises(ConfigError, match=rf"did you mean '{re.escape(asker.clips[0])}'"):
        asker("is it open?", f"{asker.clips[0]}0")
    with pytest.raises(ConfigError, match="expected egotaskqa or egotaskqa_head; open a run of 09_egotaskqa"):
        search.Answerer(egokit.open_run("toy/egomq", "tiny", "init=run:02_pretrain/random", "words"))
    with pytest.raises(ConfigError, match="its config is not known"):
        search.Answerer(Run(asker.run.path))
