"""Predictions of a few held-out samples: what each validation logs, and how it is drawn."""
import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest
from test_curves import read, step_event, validation_event

from egokit import tasks
from egokit.config.build import to_dict
from egokit.runs.run_folder import Run
from egokit.viz.curves import Display
from egokit.viz.predictions import draw_predictions, pictures, predictions


def test_questions_of_both_kinds_with_the_scores_that_are_evaluated(resolve):
    task = tasks.make(resolve()).validation()
    rng = np.random.default_rng(0)
    count = task.num_rows()
    rows = {"index": np.arange(count), "dual": rng.random(count), "fusion": rng.random(count)}
    samples, kinds = task.predictions(rows, None), []
    assert len(samples) == 4 and samples == task.predictions(rows, None) and len(json.dumps(samples)) < 2000
    for sample in samples:
        q = task.choices.tolist().index(sample["clips"])
        assert sample["text"] == task.texts[q]
        assert sample["relevancy"].index(1) == task.answers[q] and sum(sample["relevancy"]) == 1
        assert sample["scores"] == pytest.approx(task.score_matrix(rows)["ensemble"][q], abs=1e-4)
        kinds.append(task.types[q])
    assert set(kinds) == {1, 2}


@pytest.mark.parametrize("params", ["toy/ek100_finetune", "toy/charades_finetune"])
def test_texts_with_their_best_clips_and_the_first_right_ones_rank(resolve, params):
    task = tasks.make(resolve(params, "init="))
    rng = np.random.default_rng(0)
    truth_VK, texts = task.truth(), task.prompts()
    rows = {"index": np.arange(len(truth_VK)), "video": rng.normal(size=(len(truth_VK), 8)).astype(np.float32)}
    prompts_KE = rng.normal(size=(len(texts), 8)).astype(np.float32)
    scores_VK, samples = task.score_matrix(rows, prompts_KE), task.predictions(rows, prompts_KE)
    assert len(samples) == len({sample["text"] for sample in samples}) == 4 and len(json.dumps(samples)) < 2000
    for sample in samples:
        k = texts.index(sample["text"])
        assert sample["scores"] == pytest.approx(np.sort(scores_VK[:, k])[::-1][:5], abs=1e-4)
        assert sample["scores"] == pytest.approx(scores_VK[sample["clips"], k], abs=1e-4)
        assert sample["relevancy"] == pytest.approx(truth_VK[sample["clips"], k], abs=1e-4)
        assert sample["rank"] == 1 + (scores_VK[:, k] > scores_VK[truth_VK[:, k] == 1, k].max()).sum()


def asked(scores, answer=2):
    return {"text": "#C C cuts the onion", "clips": [5, 6, 7, 8, 9], "scores": scores,
            "relevancy": [int(c == answer) for c in range(5)]}


def sought(rank, scores, relevancy):
    return {"text": "cut onion", "clips": [3, 1, 2, 0, 4], "scores": scores, "relevancy": relevancy, "rank": rank}


def grey(number):
    return np.full((8, 8, 3), 20 * number, np.uint8)


def test_the_figure_shows_the_choice_of_now_and_the_scores_of_before(tmp_path):
    run = Run(tmp_path / "02_pretrain/mine")
    run.log(validation_event(0, predictions=[asked([.1, .2, .3, .4, .5])]) | {"epoch": 0})
    run.log(validation_event(9, predictions=[asked([.1, .9, .6, .4, .5])]) | {"epoch": 1})
    *clips, scores = draw_predictions(run, read(run), grey).axes
    labels = [axis.get_xlabel() for axis in clips]
    assert labels == ["● 0.10\n", "■ 0.90\n✗ chosen", "◆ 0.60\n✓ right", "▲ 0.40\n", "▼ 0.50\n"]
    assert [int(axis.images[0].get_array()[0, 0, 0]) for axis in clips] == [100, 120, 140, 160, 180]
    assert clips[0].texts[0].get_text() == "WRONG: #C C cuts the onion"
    assert [[*line.get_ydata()] for line in scores.lines] == [[.1, .1], [.2, .9], [.3, .6], [.4, .4], [.5, .5]]
    assert [[*line.get_xdata()] for line in scores.lines] == [[0, 1]] * 5 and scores.lines[2].get_linewidth() == 2.5
    assert (run.path / "figures/predictions.png").stat().st_size > 5_000


def test_a_texts_best_clips_and_their_way_up(tmp_path):
    run = Run(tmp_path / "03_ek100/mine")
    run.log(validation_event(0, predictions=[sought(40, [.9, .8, .7, .6, .5], [0, 0, 0, 0, 0])]) | {"epoch": 0})
    run.log(validation_event(9, predictions=[sought(1, [.9, .8, .7, .6, .5], [1, .5, 0, 0, 0])]) | {"epoch": 1})
    *clips, ranks = draw_predictions(run, read(run), grey).axes
    marks = [axis.get_xlabel().split("\n")[1] for axis in clips]
    assert marks == ["✓ right", "◐ partly, 0.50", "✗ wrong", "✗ wrong", "✗ wrong"]
    assert clips[0].texts[0].get_text() == "RIGHT: cut onion" and [*ranks.lines[0].get_ydata()] == [40, 1]
    assert ranks.get_ylim()[0] > ranks.get_ylim()[1], "the first rank is on top"


def test_what_was_cut_from_the_log_is_forgotten(tmp_path):
    run = Run(tmp_path / "run")
    assert "no validation yet" in predictions(SimpleNamespace(run=run))
    for step in (0, 9):
        run.log(validation_event(step, predictions=[asked([.1, .2, .3, .4, step])]))
    history = read(run)
    run.truncate_log(lambda event: event["step"] < 9)
    run.log(validation_event(9, predictions=[asked([.1, .2, .3, .4, 7])]))
    assert history.update() and [samples[0]["scores"][4] for _, samples in history.predictions] == [0, 7]


def test_live_they_have_a_place_of_their_own(tmp_path, monkeypatch, resolve):
    """They are drawn after a validation, not every step, with clips of the job's own config."""
    shown = []

    def display(data, display_id, **options):
        place = [data]
        shown.append(place)
        return SimpleNamespace(update=lambda data, **options: place.append(data))

    monkeypatch.setattr("egokit.viz.alternative_text.display", display)
    run = Run(tmp_path / "run")
    job = SimpleNamespace(run=run, spec=lambda: {"config": to_dict(resolve(overrides="data.limit=2"))})
    task, live = tasks.make(resolve(overrides="data.limit=2")).validation(), Display(job)
    rows = {"index": np.arange(10), "dual": np.arange(10.0), "fusion": np.zeros(10)}
    for event in (step_event(1), validation_event(2, predictions=task.predictions(rows, None)), step_event(3)):
        run.log(event)
        live.due = 0.0
        live(read(run), "running")
    assert [len(images) for images in shown] == [3, 1], "the curves three times, the predictions once"
    assert base64.b64decode(shown[1][0]["image/png"]) == (run.path / "figures/predictions.png").read_bytes()
    assert pictures(job)(len(task.clips) - 1).shape[2] == 3
