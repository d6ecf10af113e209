"""Figures are readable in a notebook and on a slide: width, text size, labels, overlaps."""
import itertools
import json
import tracemalloc

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from test_curves import step_event, validation_event
from test_moment_figures import moment_figures
from test_predictions import asked, grey, sought
from test_slow import CALM, RANKS

import egokit
from egokit import tasks, viz
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.viz.curves import curves
from egokit.viz.per_class import by_word
from egokit.viz.predictions import draw_predictions
from egokit.viz.style import WIDTH

LONG = "#C C puts the large green chopping board down beside the sink with both hands"


def logged(tmp_path, *predictions):
    run = Run(tmp_path / "02_pretrain/a_run_of_mine")
    for step in range(1, 21):
        run.log(step_event(step, data_s=0.2))
    for epoch in range(3):
        run.log(validation_event(10 * epoch, ensemble_inter=55.0, ensemble_intra=35.0, ensemble_verb_only=30.0,
                                 predictions=[*predictions]) | {"epoch": epoch})
    history = History(run.path)
    history.update()
    return run, history


def figures(resolve, checkpoint, tmp_path):
    """Yield (name, figure) of every kind of figure, with the longest texts it may have."""
    rng, run = np.random.default_rng(0), Run(tmp_path / "run")

    def write(section, rows, prompts_KE=None):
        run.write_rows(section, {"index": np.arange(len(next(iter(rows.values()))))} | rows, prompts_KE)
    config = resolve()
    model, task = egokit.load(checkpoint, tokenizer=config.site.tokenizer), tasks.make(config).validation()
    yield "overlaid", viz.overlaid({LONG: logged(tmp_path)[0], "as a job": logged(tmp_path / "job")[0]})
    yield "reranked", viz.reranked(model, task, task.texts[0])
    yield "few candidates", viz.reranked(model, task, LONG, candidates=3)
    yield "fusion", viz.fusion(model, viz.question(task, 0).pixels[0], LONG)
    yield "published", viz.published(Run(tmp_path / "outputs/00_quickstart/a_run_of_mine"))
    yield "narrations", viz.narrations(config)
    yield "batch", viz.batch(tasks.make(config))
    task.texts = [LONG] * len(task.texts)
    yield "question", viz.question(task, 1).figure
    write("some", {"dual": rng.uniform(-1, 0, task.num_rows()), "fusion": rng.random(task.num_rows())})
    yield "questions", viz.questions(task, run, "some")
    task = tasks.make(resolve("toy/ek100_finetune", "init="))
    write("any", {"video": rng.normal(size=(len(task.test), 8))}, rng.normal(size=(len(task.prompts()), 8)))
    yield "retrieved", viz.retrieved(task, run, "any")
    task = tasks.make(resolve("toy/charades_finetune", "init="))
    write("all", {"video": rng.normal(size=(len(task.ids), 8))}, rng.normal(size=(len(task.classes), 8)))
    yield "few clips", viz.retrieved(task, run, "all")
    yield "average precisions", viz.average_precisions(task, run, "all")
    yield from moment_figures(tmp_path)
    yield "words", by_word({kind: [[f"puts large {n}"] for n in range(50)] for kind in ("verb", "noun")},
                           {"inter-video": rng.uniform(0, 100, 50)}, "ensemble accuracy, %", "questions", chance=20)
    run, history = logged(tmp_path, *[asked([-.11, .21, .31, .41, .51]) | {"text": LONG}] * 4)
    yield "curves", curves(run)
    timed = Run(tmp_path / "02_pretrain/timed")
    for step in range(1, 21):
        timed.log(step_event(step, **CALM | RANKS))
    yield "times", curves(timed)
    yield "predictions", draw_predictions(run, history, grey)
    sample = sought(1234, [.91, .81, .71, .61, .51], [1, .5, .25, 0, 0]) | {"text": LONG}
    run, history = logged(tmp_path / "other", *[sample] * 4)
    yield "best clips", draw_predictions(run, history, grey)


@pytest.mark.slow
def test_figures_are_readable(resolve, checkpoint, tmp_path):
    for name, figure in figures(resolve, checkpoint, tmp_path):
        FigureCanvasAgg(figure).draw()
        assert figure.get_figwidth() <= WIDTH, name
        texts = [text for text in figure.findobj(Text)
                 if text.get_visible() and text.get_text().strip() and text.get_figure()]
        small = [(text.get_text(), text.get_fontsize()) for text in texts if text.get_fontsize() < 10.9]
        assert not small, (name, small)
        for axis in figure.axes:
            assert axis.has_data() or axis.texts or not axis.axison, (name, "an empty plot")
            if axis.lines and axis.get_visible():
                widest = figure.bbox.width / axis.get_gridspec().ncols
                assert axis.title.get_window_extent().width <= widest, (name, axis.get_title())
                below = axis.get_subplotspec().is_last_row()
                assert axis.get_xlabel() or not below, (name, axis.get_title())
                assert axis.get_ylabel() or axis.get_yticklabels(), (name, axis.get_title())
        labels = [text for axis in figure.axes
                  for text in (axis.xaxis.label, axis.yaxis.label, axis.title, axis._left_title, *axis.texts)]
        labels += filter(None, (figure._suptitle, figure._supxlabel))
        boxes = [(text.get_text(), text.get_window_extent()) for text in labels if text.get_text().strip()]
        overlapping = [(text_a, text_b) for (text_a, a), (text_b, b) in itertools.combinations(boxes, 2)
                       if a.overlaps(b.padded(8, -2))]
        assert not overlapping, (name, overlapping)
        outside = [text for text, box in boxes if box.x0 < -1 or box.x1 > figure.bbox.width + 1]
        assert not outside, (name, outside)


def test_scores_stand_before_what_the_job_counted():
    table = viz.metrics({"samples": 304, "mAP": 26.2, "seconds": 12.5, "failed": 0, "toy": True, "init": "x"}).data
    assert table.values.tolist() == [["score", "mAP", 26.2], ["the job", "samples", 304], ["", "seconds", 12.5],
                                     ["", "failed", 0]]


def test_features_of_a_long_clip_are_means_of_stretches_in_bounded_memory(tmp_path):
    """Three hours of features would be a picture of 1.6 GB; a short clip has a point for each."""
    rng, run = np.random.default_rng(0), Run(tmp_path)
    features = {"long": rng.normal(size=(20_195, 64)).astype(np.float32),
                "short": rng.normal(size=(897, 64)).astype(np.float32)}
    (tmp_path / "features").mkdir()
    for uid, x in features.items():
        np.save(tmp_path / "features" / f"{uid}.npy", x)
    clips = [{"clip_uid": uid, "split": "test_unannotated", "start": 0.0, "stop": len(x) / 1.87}
             for uid, x in features.items()]
    clips.append(clips[1])
    (tmp_path / "features/manifest.json").write_text(json.dumps({"format": "npy", "clips": clips}))
    tracemalloc.start()
    figure = viz.features(run)
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()
    long, short = (axis.images[0].get_array() for axis in figure.axes[:2])
    assert len(long) == -(-20_195 // 21) and len(short) == 897
    means = np.array([part.mean(0) for part in np.split(features["long"], range(21, 20_195, 21))])
    for drawn, rows in ((long, means), (short, features["short"])):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        assert np.allclose(drawn, unit @ unit.T, atol=1e-5)
    assert [axis.get_title() for axis in figure.axes[:3]] == [
        "test_unannotated\n20,195 features of 10,799 s\na point: the mean of 21",
        *["test_unannotated\n897 features of 480 s"] * 2]
    FigureCanvasAgg(figure).draw()
    for axis in figure.axes[:3]:
        boxes = [text.get_window_extent() for text in (*axis.get_xticklabels(), axis.title) if text.get_text()]
        assert not any(a.padded(2).overlaps(b) for a, b in itertools.combinations(boxes, 2))
    titles = [axis.title.get_window_extent() for axis in figure.axes[:3]]
    assert not any(a.padded(4).overlaps(b) for a, b in itertools.combinations(titles, 2))
