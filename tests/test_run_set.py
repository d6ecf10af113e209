"""Several runs together: which ones are meant, their settings, mean and spread, and differences of settings."""
import inspect
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from test_curves import step_event, validation_event
from test_significance import drawn_rows

from egokit import tasks, viz
from egokit.config.build import ConfigError
from egokit.jobs import sweep
from egokit.runs import run_set
from egokit.runs.run_folder import Run
from egokit.tasks import significance
from egokit.viz.run_curves import on_common_steps


def scored(folder, seed, lr, score, section="headtune", recipe=(), **metrics):
    """A run that has trained, as its job leaves it."""
    run = Run(folder)
    run.write_metrics(section, {"finished": True, "action": "train", "score": "direct_all", "direct_all": score,
                                "init": "w/a.pt", "recipe": {"optim.lr": lr, "seed": seed, "train.epochs": 3,
                                                             "selection.validations": seed} | dict(recipe), **metrics})
    return run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three seeds at two rates, one of which lacks a seed, and one that hasn't finished."""
    monkeypatch.setenv("EGOKIT_OUTPUTS", str(tmp_path))
    made = [scored(tmp_path / f"09_x/s-{lr}-{seed}", seed, lr, score) for lr, seed, score in
            ((1e-3, 0, 40.0), (1e-3, 1, 43.0), (1e-3, 2, 47.5), (1e-2, 0, 30.0), (1e-2, 1, 34.0))]
    return [*made, Run(tmp_path / "09_x/s-unfinished")]


def test_runs_are_found_by_name_pattern_path_and_sweep(runs, tmp_path, capsys):
    names = [run.path.name for run in run_set.find_runs("09_x/s-0.001*", str(runs[3].path), runs[0])]
    assert names == ["s-0.001-0", "s-0.001-1", "s-0.001-2", "s-0.01-0"], "each once"
    listed = Run(tmp_path / "09_x/s").path / "sweep.json"
    keys = {"sweep": "s", "params": "p", "site": "t", "overrides": {}, "action": "train", "section": "headtune",
            "recipe": {}}
    listed.write_text(json.dumps(keys | {
        "runs": {"s-0.01-1": {"seed": 1}, "s-not-begun": {"seed": 9}}}))
    assert [run.path.name for run in run_set.find_runs("09_x/s")] == ["s-0.01-1"]
    for wrong, error, message in (((), ConfigError, "expected the names of runs"),
                                  (("09_x/s-0.1*",), FileNotFoundError, "no run '09_x/s-0.1.*did you mean"),
                                  ((str(tmp_path / "away"),), FileNotFoundError, "no run folder")):
        with pytest.raises(error, match=message):
            run_set.find_runs(*wrong)
    assert not (tmp_path / "away").exists() and not (tmp_path / "09_x/s-not-begun").exists()
    Run(tmp_path / "09_x/s").write_metrics("headtune", {"finished": True})
    assert not capsys.readouterr().out
    assert [run.path.name for run in run_set.find_runs("09_x/s")] == ["s-0.01-1"], "by its name, the sweep"
    assert "09_x/s names the 2 runs of a sweep; for the run of the same name, pass" in capsys.readouterr().out
    for pattern in ("09_x/*", "09_x/?"):
        assert "s" in [run.path.name for run in run_set.find_runs(pattern)], "by a pattern, the run in its folder, too"
    assert [run.path.name for run in run_set.find_runs(Run(tmp_path / "09_x/s"))] == ["s"] and \
        not capsys.readouterr().out
    for name in ("../../elsewhere", "/etc", "..", ""):
        listed.write_text(json.dumps(keys | {"runs": {name: {"seed": 1}}}))
        with pytest.raises(ValueError, match=r"sweep.json: .*expected a folder's name"):
            run_set.find_runs("09_x/s")
    listed.write_text('{"runs": 3}')
    with pytest.raises(ValueError, match=r"sweep.json: .*egokit sweep' writes it again"):
        run_set.find_runs("09_x/s")


def test_settings_are_runs_that_differ_in_their_seed_alone(runs):
    groups = run_set.settings(runs)
    assert [(group.values, [run.path.name for run in group.runs]) for group in groups] == [
        ({"optim.lr": 1e-3}, ["s-0.001-0", "s-0.001-1", "s-0.001-2"]), ({"optim.lr": 1e-2}, ["s-0.01-0", "s-0.01-1"])]
    assert len(run_set.settings(runs[:3])) == 1 and run_set.settings(runs[:3])[0].values == {}
    with pytest.raises(ValueError, match="none of the 1 runs has finished"):
        run_set.settings(runs[-1:])


def test_a_key_that_older_runs_did_not_record_is_no_difference(tmp_path):
    old = scored(tmp_path / "a/old", 0, 1e-3, 1.0)
    new = scored(tmp_path / "a/new", 0, 1e-3, 2.0, recipe={"train.ema": 0.5})
    assert len(run_set.settings([old, new])) == 1
    assert run_set.varied([{"a": 1, "b": 2}, {"a": 1}, {"a": 3, "b": 2}]) == ["a"]


@pytest.mark.parametrize("first, second", [
    ({"init": "a/checkpoints/step-0000100.pt", "init_sha256": "1"},
     {"init": "b/checkpoints/step-0000100.pt", "init_sha256": "2"}),
    ({"data": {"a.csv": "1"}}, {"data": {"a.csv": "2"}}), ({"task_sha256": "1"}, {"task_sha256": "2"})])
def test_files_of_one_name_and_other_content_are_other_settings(tmp_path, first, second):
    name = {"task.name": "/home/x/mine.py:Mine"}
    runs = [scored(tmp_path / f"a/{seed}", seed, 1e-3, 1.0, "headtune", name, **facts)
            for seed, facts in enumerate((first, first, second))]
    groups = run_set.settings(runs)
    assert [len(group.runs) for group in groups] == [2, 1]
    assert len({text for group in groups for text in group.values.values()}) == 2
    copied = scored(tmp_path / "a/copy", 3, 1e-3, 1.0, "headtune", {"task.name": "/y/mine.py:Mine"}, **first)
    if "task_sha256" in first:
        assert len(run_set.settings([*runs, copied])) == 2, "a copy of the file is the same one"


def test_the_table_of_settings_has_mean_and_spread_as_the_naive_twin(runs):
    frame = viz.by_setting(runs).data
    for line, scores in zip(frame.to_dict("records"), ([40.0, 43.0, 47.5], [30.0, 34.0]), strict=True):
        mean = sum(scores) / len(scores)
        spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
        assert line["mean"] == pytest.approx(mean, rel=1e-12) and line["spread"] == pytest.approx(spread, rel=1e-12)
        assert (line["runs"], line["lowest"], line["highest"]) == (len(scores), scores[0], scores[-1])
    assert frame["optim.lr"].tolist() == ["0.001", "0.01"] and set(frame["metric, %"]) == {"direct_all"}
    alone = viz.by_setting(runs[:1])
    assert math.isnan(alone.data["spread"][0]) and "–" in alone.to_html()


def test_a_metric_that_no_run_has_is_an_error(runs):
    """It was an empty table, and a figure without points."""
    assert set(viz.by_setting(runs, metrics="direct_all").data["metric, %"]) == {"direct_all"}
    for draw in (lambda: viz.by_setting(runs, metrics=["direct_al"]),
                 lambda: viz.setting_scores(runs, metric="direct_al")):
        with pytest.raises(ConfigError, match=r"metric 'direct_al': .*'headtune'.*did you mean 'direct_all'"):
            draw()


def test_the_table_of_runs_names_what_differs_and_what_is_missing(runs):
    table = viz.run_settings(runs)
    assert list(table.data.columns) == ["run", "optim.lr", "seed", "direct_all, %"]
    assert table.data["direct_all, %"].tolist()[:5] == [40.0, 43.0, 47.5, 30.0, 34.0]
    assert "no result of headtune yet: 09_x/s-unfinished" in table.to_html()


def test_mean_and_spread_of_curves_equal_the_naive_twin():
    values = np.random.default_rng(0).normal(size=(4, 9))
    values[1, 3:] = np.nan
    values[1:, 8] = np.nan
    mean, spread = run_set.mean_and_spread(values)
    for place in range(9):
        there = [value for value in values[:, place].tolist() if not math.isnan(value)]
        average = sum(there) / len(there)
        assert mean[place] == pytest.approx(average, rel=1e-12)
        wanted = math.sqrt(sum((value - average) ** 2 for value in there) / (len(there) - 1)) if len(there) > 1 else \
            math.nan
        assert spread[place] == pytest.approx(wanted, rel=1e-12, nan_ok=True)


def test_curves_share_their_steps():
    steps, values = on_common_steps([([1, 2, 3], [1.0, 2.0, 3.0]), ([1, 2, 3], [5.0, math.nan, 7.0]), ([], [])])
    assert steps.tolist() == [1, 2, 3] and values.tolist() == [[1, 2, 3], [5, 6, 7]], "a gap is interpolated"
    steps, values = on_common_steps([([0, 10], [0.0, 10.0]), ([5, 15], [1.0, 2.0])])
    assert steps.tolist() == [0, 5, 10, 15]
    assert values[0].tolist()[:3] == [0, 5, 10] and math.isnan(values[0, 3]), "nothing is invented beyond a run's end"
    assert math.isnan(values[1, 0]) and values[1].tolist()[1:] == [1, 1.5, 2]
    long = np.arange(1000.0)
    steps, values = on_common_steps([(long, 2 * long), (long, long)], most=10)
    assert steps.tolist() == [49.5 + 100 * place for place in range(10)], "the means of ten stretches"
    assert values[0] == pytest.approx(2 * steps) and values[1] == pytest.approx(steps)
    assert on_common_steps([([], [])])[0].size == 0


def test_figures_have_a_curve_a_run_and_a_band_a_setting(runs, tmp_path):
    for place, run in enumerate(runs[:5]):
        for step in range(1, 6):
            run.log(step_event(step, loss=place + 1 / step))
            run.log(validation_event(step, direct_all=10.0 * step + place))
    figure = viz.mean_curves(runs, run := Run(tmp_path / "11_compare/mine"))
    loss, validation = figure.axes
    assert len(loss.lines) == 5 + 2 and len(loss.collections) == 2, "five runs, two means, two bands"
    assert loss.lines[3].get_ydata().tolist() == pytest.approx([1 + 1 / step for step in range(1, 6)])
    assert validation.lines[3].get_ydata().tolist() == pytest.approx([10.0 * step + 1 for step in range(1, 6)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lr 0.001 (3)", "lr 0.01 (2)"]
    scores, = viz.setting_scores(runs, run).axes
    dots = sorted(float(y) for line in scores.lines if line.get_marker() == "o" for y in line.get_ydata())
    assert dots == [30, 34, 40, 43, 47.5] and scores.get_xscale() == "log"
    assert {path.name for path in (run.path / "figures").iterdir()} == {"mean-curves.png", "setting-scores.png"}
    viz.mean_curves(runs[:1])
    viz.setting_scores(runs[:1])


@pytest.fixture
def evaluated(resolve, tmp_path):
    """EgoMCQ's task, and four runs whose rows were drawn: two seeds at each of two settings."""
    from egokit.model import checkpoints
    task, made = tasks.make(resolve("toy/egomcq", "init=")), []
    data = {path.name: checkpoints.fingerprint(path) for path in task.tables()}
    for place in range(4):
        run = scored(tmp_path / f"05/{place}", place % 2, (1e-3, 1e-2)[place // 2], 1.0, "egomcq")
        rows, _ = drawn_rows(task, place)
        run.write_rows("egomcq", rows)
        run.write_metrics("egomcq", run.metrics()["egomcq"] | task.metrics(rows, None) | {
            "data": data, "action": "evaluate", "score": "dual_intra"})
        made.append(run)
    return task, made


def test_the_bootstrap_of_settings_is_that_of_their_seeds_means(evaluated):
    task, made = evaluated
    groups = {"a": made[:2], "b": made[2:]}
    lines = significance.of_settings(task, groups, "egomcq", ["dual_inter", "dual_intra"])
    found = {line[0]: line[3] for line in lines}
    for metric, difference in found.items():
        # the naive twin: the mean of each question over the seeds, then the bootstrap that the models' table has
        means = []
        for group in groups.values():
            each = [task.per_query(*run.read_rows("egomcq"))[metric][0].tolist() for run in group]
            means.append([np.array([(a + b) / 2 for a, b in zip(*each, strict=True)])])
        assert difference == significance.paired_bootstrap(*means)
        scores = [[run.metrics()["egomcq"][metric] for run in group] for group in groups.values()]
        assert difference.value == pytest.approx(np.mean(scores[1]) - np.mean(scores[0]))
    table = viz.setting_differences(task, made, metrics=["dual_intra"])
    assert table.data["difference"].tolist() == pytest.approx([found["dual_intra"].value])
    assert table.data["models"].tolist() == ["lr 0.01 – lr 0.001"]
    with pytest.raises(ValueError, match="expected runs of two settings"):
        viz.setting_differences(task, made[:2])


def test_the_queries_that_changed_sides_are_counted(evaluated):
    task, made = evaluated
    frame = viz.changed_sides(task, made[0], made[1], "egomcq").data
    deciding = task.decides(task.score_matrix(made[0].read_rows("egomcq")[0]))
    right = [task.score_matrix(run.read_rows("egomcq")[0])[deciding].argmax(1) == task.answers for run in made[:2]]
    counts = [0, 0, 0, 0]
    for one, other in zip(*(each.tolist() for each in right), strict=True):
        counts[0 if one and not other else 1 if other and not one else 2 if one else 3] += 1
    assert frame["number"].tolist() == counts and sum(counts) == len(task.texts) and counts[0] and counts[1]
    assert frame["queries"].tolist() == ["right in 0 alone", "right in 1 alone", "right in both", "wrong in both"]
    assert frame["%"].tolist() == pytest.approx([100 * count / sum(counts) for count in counts])


def test_what_a_question_of_egotaskqa_contributes_is_whether_it_is_right():
    from egokit.tasks.taskqa import accuracy
    from egokit.tasks.taskqa.annotations import Question
    words = ["<UNK1>", "yes", "no", "cup", "open"]
    rng = np.random.default_rng(4)
    questions = []
    for number in range(60):
        answer = int(rng.integers(1, 5))
        questions.append(Question("a clip", "what?", answer, ("direct",) if number % 3 else ("indirect",), str(number)))
    predicted = rng.integers(0, 5, 60)
    whole = accuracy.report(predicted, questions, words, "direct")
    each = accuracy.per_question(predicted, questions, words, "direct")
    assert each.keys() == {"direct_all", "direct_open", "direct_binary", "direct_as_published"}
    for name, (group,) in each.items():
        assert group.mean() == pytest.approx(whole[name], rel=1e-12) and 0 < group.mean() < 100


def test_the_documents_code_makes_the_tables(tmp_path, monkeypatch):
    """The snippets of "Several seeds" in docs/notebooks.md, on runs that are as a sweep leaves them."""
    monkeypatch.setenv("EGOKIT_OUTPUTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    submit = inspect.signature(sweep.submit_sweep)
    made = [scored(tmp_path / f"09_egotaskqa/mine-seed{seed}", seed, 1e-3, 1.0, direct_open=30.0 + seed,
                   direct_binary=60.0 + 2 * seed) for seed in (0, 1, 2)]
    (Run(tmp_path / "09_egotaskqa/demo").path / "sweep.json").write_text(json.dumps(
        {"sweep": "demo", "params": "p", "site": "t", "overrides": {}, "action": "train", "section": "headtune",
         "recipe": {}, "runs": {"mine-seed0": {}, "mine-seed1": {}}}))
    monkeypatch.setattr(sweep, "submit_sweep", lambda *given, **options: SimpleNamespace(
        wait=lambda: submit.bind(*given, **options), runs=lambda: made))
    text = (ROOT / "docs/notebooks.md").read_text().partition("## Several seeds")[2].partition("\n## ")[0]
    snippets, names = re.findall(r"```python\n(.*?)```", text, re.DOTALL), {}
    for snippet in snippets:
        exec(snippet, names)
    lines = (tmp_path / "seeds.csv").read_text().splitlines()
    assert len(snippets) == 2 and lines[0] == '"metric, %",runs,mean,spread,lowest,highest'
    assert lines[1:] == ["direct_open,3,31.0,1.0,30.0,32.0", "direct_binary,3,62.0,2.0,60.0,64.0"]
