"""Pictures of EgoMQ's detections and EgoNLQ's answers: what is drawn, and what is said of missing or damaged files."""
import itertools
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba

from egokit import viz
from egokit.runs.run_folder import Run
from egokit.tasks.moments import mq_errors
from egokit.tasks.moments.mq_annotations import Moment
from egokit.tasks.moments.mq_metrics import mean_average_precision
from egokit.tasks.moments.mq_results import Rows
from egokit.viz.moment_files import detected
from egokit.viz.moments import KIND_COLOURS
from egokit.viz.style import CYCLE, RIGHT, WRONG

QUOTED = '"repair_(mower,_trimmer_etc.)"'
MOMENTS = {"a": [[0, 10, "wash"], [20, 30, "cut"], [25, 35, QUOTED]], "b": [[5, 15, "wash"]], "empty": []}
DETECTIONS = {"a": [("wash", .9, [0, 9]), ("wash", .8, [1, 10]), ("cut", .7, [0, 10]), ("cut", .6, [28, 36]),
                    ("wash", .5, [15, 24]), ("cut", .4, [36, 40]), (QUOTED, .3, [25, 35])],
              "b": [("wash", .75, [5, 15])], "empty": [("wash", 1.0, [0, 1])]}
QUESTION = {"clip_uid": "a", "annotation_uid": "n", "query_idx": 0, "query": "where is the cup?", "template": "Place",
            "start": 10.0, "stop": 20.0, "duration": 60.0}


def mq_run(folder, moments=None, detections=None) -> Run:
    """Return a run with the files of an evaluation of EgoMQ; clips are of 40 seconds."""
    run = Run(folder)
    clips = {uid: {"video_uid": f"video-{uid}", "start": 100.0, "stop": 140.0, "moments": rows}
             for uid, rows in (MOMENTS if moments is None else moments).items()}
    results = {uid: [{"label": label, "score": score, "segment": segment} for label, score, segment in rows]
               for uid, rows in (DETECTIONS if detections is None else detections).items()}
    (run.path / "ground_truth.json").write_text(json.dumps({"task": "mq", "clips": clips}))
    (run.path / "detections_postNMS.json").write_text(json.dumps({"version": "EGO4D", "external_data": {},
                                                                  "results": results}))
    return run


def nlq_run(folder, questions: list[dict], spans: list) -> Run:
    """Return a run with the files of an evaluation of EgoNLQ; None in `spans` is a question without an answer."""
    run, questions = Run(folder), [QUESTION | question | {"query_idx": i} for i, question in enumerate(questions)]
    names = ("clip_uid", "annotation_uid", "query_idx")
    results = [{name: question[name] for name in names} | {"predicted_times": times}
               for question, times in zip(questions, spans, strict=True) if times is not None]
    (run.path / "ground_truth.json").write_text(json.dumps({"task": "nlq", "questions": questions}))
    (run.path / "nlq_predictions.json").write_text(json.dumps({"version": "1.0", "challenge": "ego4d_nlq_challenge",
                                                               "results": results}))
    return run


def moment_figures(folder):
    """Yield (name, figure) of every kind, with more classes, longer names and more lanes than are drawn."""
    rng, label = np.random.default_rng(0), "put_away_(or_take_out)_dishes_/_utensils_in_storage_{}"
    starts = rng.uniform(0, 30, (40, 30)).tolist()
    moments = {f"{i:08d}-aaaa-bbbb-cccc-dddddddddddd": [[start, start + 9, label.format((i + k) % 110)]
                                                        for k, start in enumerate(row)] for i, row in enumerate(starts)}
    detections = {uid: [(row[2], 1 / (k + 1), [row[0] + .5, row[1]]) for k, row in enumerate(rows)]
                  for uid, rows in moments.items()}
    run = mq_run(folder / "mq", moments, detections)
    yield "detections", viz.detections(run)
    yield "detections per class", viz.detections_per_class(run)
    yield "false positives", viz.false_positives(run)
    long = "where is the large green chopping board that i put down beside the sink after i washed it with both hands? "
    run = nlq_run(folder / "nlq", [{"query": long * 2}] * 5, [[[0, 5], [10, 20], [1, 2], [30, 40], [50, 60]]] * 5)
    yield "answers", viz.answers(run)


def rows_of(uid) -> Rows:
    labels, scores, segments = zip(*DETECTIONS[uid], strict=True)
    return Rows(np.array(segments, float), np.array(scores), np.array(labels, dtype=object))


def bars(axis):
    """Return (start, stop, face colour) of every bar of a timeline, in the order in which they were drawn."""
    found = []
    for collection in axis.collections:
        corners = collection.get_paths()[0].vertices
        found.append((corners[:, 0].min(), corners[:, 0].max(), tuple(collection.get_facecolor()[0])))
    return found


def test_detections_are_right_or_wrong_in_one_of_five_ways():
    moments = [Moment(*moment) for moment in MOMENTS["a"]]
    assert [mq_errors.KINDS[kind] for kind in mq_errors.kinds_of_clip(rows_of("a"), moments)] == [
        "right", "double detection", "wrong label", "wrong label", "confusion", "background", "right"]
    cases = {(0, 4): "localisation", (0, 5): "right", (10, 20): "background", (9, 19): "background",
             (8, 12): "localisation"}
    for segment, kind in cases.items():
        rows = Rows(np.array([segment], float), np.ones(1), np.array(["wash"], dtype=object))
        assert mq_errors.KINDS[mq_errors.kinds_of_clip(rows, moments).item()] == kind, segment
    nothing = Rows(np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=object))
    assert not len(mq_errors.kinds_of_clip(nothing, moments))


def test_of_two_moments_each_is_taken_once():
    """The best takes the moment that it overlaps most; the next one takes the other."""
    moments = [Moment(0, 10, "cut"), Moment(1, 11, "cut")]
    rows = Rows(np.array([[1, 11], [1, 11], [1, 11]], float), np.array([.3, .9, .5]), np.array(["cut"] * 3, object))
    assert [mq_errors.KINDS[kind] for kind in mq_errors.kinds_of_clip(rows, moments)] == [
        "double detection", "right", "right"]


def test_timelines_show_moments_and_as_many_detections(tmp_path):
    run = mq_run(tmp_path)
    figure = viz.detections(run)
    assert (tmp_path / "figures/detections.png").is_file() and len(figure.axes) == 2, "a clip without moments is none"
    a, b = figure.axes
    assert a.get_title(loc="left") == "clip a: 3 moments, 3 detections, 1 of them right"
    assert b.get_title(loc="left") == "clip b: 1 moments, 1 detections, 1 of them right"
    assert a.get_xlim() == (0, 40)
    drawn = bars(a)
    assert [bar[:2] for bar in drawn] == [(0, 10), (20, 30), (25, 35), (0, 9), (1, 10), (0, 10)]
    colours = {"wash": CYCLE[0], QUOTED: CYCLE[2], "cut": CYCLE[1]}
    for (_, _, face), label in zip(drawn, ["wash", "cut", QUOTED, "wash", "wash", "cut"], strict=True):
        assert face[:3] == to_rgba(colours[label])[:3]
    opacities = [face[3] for _, _, face in drawn]
    assert opacities[:4] == [1] * 4 and 1 > opacities[4] > opacities[5] > 0.25
    borders = [collection.get_linewidth()[0] for collection in a.collections]
    assert borders == [0.8, 0.8, 0.8, 2, 0.8, 0.8], "the right one has one"
    legend, = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["wash", "cut", QUOTED]


def test_classes_beyond_the_colours_and_lanes_are_counted(tmp_path):
    labels = [f"class {i}" for i in range(24)]
    moments = {"a": [[i / 10, 40 - i / 10, label] for i, label in enumerate(labels)]}
    figure = viz.detections(mq_run(tmp_path, moments, {"b": []}))
    assert figure.axes[0].get_title(loc="left") == "clip a: 24 moments, 0 detections, 0 of them right, 19 not drawn"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == 22 and texts[-1] == "3 other classes"


def test_ap_of_each_class(tmp_path):
    run = mq_run(tmp_path)
    axis, = viz.detections_per_class(run).axes
    clips, results = detected(run)
    scored = mean_average_precision(results, clips)
    expected = dict(zip(scored["classes"], 100 * scored["ap"].mean(axis=1), strict=True))
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert sorted(names) == sorted(["wash  (2)", "cut  (1)", f"{QUOTED}  (1)"])
    widths = [patch.get_width() for patch in axis.patches]
    assert widths == sorted(widths, reverse=True)
    assert widths == pytest.approx([expected[name.rpartition("  ")[0]] for name in names])
    assert "all 3 classes" in axis.get_title() and f"{100 * scored['average_map']:.1f}" in axis.get_title()


def test_of_many_classes_the_best_and_worst_are_named(tmp_path):
    moments = {"a": [[i / 4, i / 4 + 1, f"class {i}"] for i in range(110)]}
    detections = {"a": [(label, 1 - i / 200, [start, stop]) for i, (start, stop, label) in enumerate(moments["a"])
                        if i < 25]}
    axis, = viz.detections_per_class(mq_run(tmp_path, moments, detections)).axes
    assert axis.get_title().startswith("the 20 best and the 20 worst of 110 classes")
    assert [patch.get_width() for patch in axis.patches] == [100.0] * 20 + [0.0] * 20


def test_false_positives_by_kind(tmp_path):
    axis, = viz.false_positives(mq_run(tmp_path), times=3).axes
    assert axis.get_title().startswith("8 detections, G = 4 moments")
    share = {kind: [axis.patches[3 * k + i].get_height() for i in range(3)] for k, kind in enumerate(mq_errors.KINDS)}
    # by falling score: right, double, right (of b), wrong label | wrong label, confusion, background, right | none
    assert share["right"] == [50, 25, 0] and share["double detection"] == [25, 0, 0]
    assert share["wrong label"] == [25, 25, 0] and share["localisation"] == [0, 0, 0]
    assert share["confusion"] == share["background"] == [0, 25, 0]
    assert len(set(KIND_COLOURS)) == len(mq_errors.KINDS)
    assert [text.get_text() for text in axis.get_xticklabels()] == ["the G best\n(4)", "1 G to 2 G\n(4)",
                                                                    "2 G to 3 G\n(0)"]


def test_answers_show_the_truth_and_five_spans(tmp_path):
    spans = [[0, 5], [10, 19], [13, 16], [12, 40], [0, 60]]
    run = nlq_run(tmp_path, [{"query": "where is the cup?"}, {"query": "who?"}, {"start": 7.0, "stop": 7.0}],
                  [spans, None, [[7, 7]]])
    figure = viz.answers(run)
    first, empty = figure.axes
    assert first.get_title(loc="left") == "where is the cup?" and (tmp_path / "figures/answers.png").is_file()
    assert "2 of 3 questions (without an answer: 1)" in figure._suptitle.get_text()
    assert [bar[:2] for bar in bars(first)] == [(10, 20), *map(tuple, spans)]
    marks = [text.get_text() for text in first.get_yticklabels()]
    # an IoU of 0.3 is not above 0.3
    assert marks == ["truth", "✗ 1, IoU 0.00", "✓ 2, IoU 0.90", "✗ 3, IoU 0.30", "✗ 4, IoU 0.27", "✗ 5, IoU 0.17"]
    assert [face for *_, face in bars(first)][1:3] == [to_rgba(WRONG), to_rgba(RIGHT)]
    assert [text.get_text() for text in empty.get_yticklabels()] == ["truth", "✗ 1, IoU 0.00"], "empty spans meet none"
    assert all(collection.get_linewidth()[0] > 0 for collection in empty.collections), "which can be seen"


def test_recalls_by_template(tmp_path):
    right, late = [10, 20], [30, 40]
    run = nlq_run(tmp_path, [{}, {}, {}, {"template": None}],
                  [[right], [late] * 4 + [right], None, [late] * 5 + [right]])
    table = viz.recalls_by_template(run)
    assert table.data.iloc[:, :2].to_numpy().tolist() == [["Place", 3], ["no template", 1], ["all", 4]]
    assert table.data.iloc[:, 2].tolist() == pytest.approx([100 / 3, 0, 25])
    assert table.data.iloc[:, 3].tolist() == pytest.approx([200 / 3, 0, 50]), "the sixth span doesn't count"
    assert "without an answer, which count as wrong: 1" in table.to_html()


def test_a_missing_file_names_the_job_that_writes_it(tmp_path):
    for name, functions in (("ground_truth.json", [viz.detections, viz.answers]),
                            ("detections_postNMS.json", [viz.detections_per_class, viz.false_positives]),
                            ("nlq_predictions.json", [viz.answers, viz.recalls_by_template])):
        for function in functions:
            is_nlq = function in (viz.answers, viz.recalls_by_template)
            folder = tmp_path / f"{name}-{function.__name__}"
            run = nlq_run(folder, [{}], [[[0, 1]]]) if is_nlq else mq_run(folder)
            (folder / name).unlink()
            job = "evaluates EgoNLQ" if is_nlq else "evaluates EgoMQ"
            with pytest.raises(FileNotFoundError, match=f"{name} is missing.*{job}"):
                function(run)


def test_a_run_of_the_other_task_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'task' is 'mq', expected 'nlq'.*viz\.false_positives"):
        viz.answers(mq_run(tmp_path / "mq"))
    with pytest.raises(ValueError, match=r"'task' is 'nlq', expected 'mq'.*viz\.recalls_by_template"):
        viz.detections(nlq_run(tmp_path / "nlq", [{}], [None]))


@pytest.mark.parametrize(("rows", "message"), [
    ([[0, 1]], "not enough values"), ([[0, "1", "cut"]], "'stop' is '1'"), ([[0, 1, None]], "'label' is None"),
    ([[9, 3, "cut"]], "stops at 3 s and starts at 9 s"), ([[0, float("nan"), "cut"]], "'stop' is nan"),
    ([], "no clip has a moment")])
def test_damaged_moments_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=rf"ground_truth\.json.*{message}.*evaluate EgoMQ again"):
        viz.detections(mq_run(tmp_path, {"a": rows}))


def test_damaged_questions_and_answers_are_named(tmp_path):
    for name, questions, spans, message in (
            ("empty", [], [], "'questions' is empty"),
            ("order", [{"start": 30.0}], [None], "question 0: it stops at 20"),
            ("no length", [{"duration": 0}], [None], "question 0: it stops at 0"),
            ("text", [{"query": None}], [None], "'questions.query' is None")):
        with pytest.raises(ValueError, match=rf"ground_truth\.json.*{message}.*evaluate EgoNLQ again"):
            viz.answers(nlq_run(tmp_path / name, questions, spans))
    with pytest.raises(ValueError, match=r"nlq_predictions\.json.*\[1\]; expected \[start, end\]"):
        viz.answers(nlq_run(tmp_path / "one time", [{}], [[[1]]]))


def test_legends_and_titles_stay_in_their_figures(tmp_path):
    for name, figure in moment_figures(tmp_path):
        FigureCanvasAgg(figure).draw()
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0, name
            assert not any(box.overlaps(axis.get_tightbbox()) for axis in figure.axes), name
        below = [axis.get_tightbbox() for axis in figure.axes]
        assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(below)), name


def test_many_features_do_not_hide_the_result_files(tmp_path):
    run = Run(tmp_path / "06_egomq_features/run")
    (run.path / "features").mkdir(parents=True)
    for name in ("submission.json", *(f"features/{number}.pt" for number in range(60))):
        (run.path / name).touch()
    shown = viz.files(run).to_html()
    assert "submission.json" in shown and "and 21 more" in shown
