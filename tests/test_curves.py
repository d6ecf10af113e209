"""Views of a training: columns, TensorBoard's copy after kill -9, figure, live display."""
import base64
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import board_of

from egokit.runs.log import History, scalars
from egokit.runs.run_folder import Run
from egokit.viz.curves import POINTS, Display, curves, draw


def step_event(step, steps=20, **changes):
    return {"kind": "step", "step": step, "steps": steps, "epoch": 1, "loss": 3 / step, "egonce": 2 / step,
            "mlm": 1 / step, "lr": 1e-4, "lr_heads": 4e-4, "grad_norm": 1.5, "scale": 2.0, "skipped": 0, "bad": 0,
            "data_s": 0.1, "step_s": 0.4, "clips_per_s": 40.0, "eta_s": 100.0} | changes


def validation_event(step, best=True, **metrics):
    return {"kind": "validation", "step": step, "steps": 20, "epoch": 1, "best": best, "samples": 5, **metrics}


def read(run):
    history = History(run.path)
    history.update()
    return history


def test_history_reads_new_lines_and_starts_over_after_a_truncation(tmp_path):
    run = Run(tmp_path / "run")
    history = History(run.path)
    assert not history.update() and history.step is None
    run.log(validation_event(0, ensemble_intra=20.0))
    run.log(step_event(1))
    run.log(step_event(2, grad_norm=float("nan"), memory_gib=3.0))
    assert history.update() and not history.update()
    assert history.training["step"].tolist() == [1, 2] and history.training["loss/mlm"].tolist() == [1, 0.5]
    assert history.best == 0
    assert np.isnan(history.training["optimizer/grad_norm"]).tolist() == [False, True]
    assert np.isnan(history.training["speed/memory_gib"]).tolist() == [True, False]
    assert history.training.names("loss") == ["loss/loss", "loss/egonce", "loss/mlm"]
    with open(run.path / "log.jsonl", "a") as file:
        file.write('{"kind": "step", "st')  # as a killed process leaves it
    assert not history.update()
    run.truncate_log(lambda event: event["step"] <= 1)
    run.log(step_event(2, mlm=7.0))
    assert history.update() and history.training["loss/mlm"].tolist() == [1, 7] and history.validation.rows == 1


KILLED = """
import os, signal, sys
from test_curves import step_event, validation_event
from egokit.runs.run_folder import Run
run = Run(sys.argv[1])
run.truncate_log(lambda event: event["step"] <= int(sys.argv[2]))
for step in range(int(sys.argv[2]) + 1, int(sys.argv[3]) + 1):
    run.log(step_event(step, loss=float(sys.argv[4])))
    if step % 3 == 0:
        run.log(validation_event(step, ensemble_intra=30.0 + step))
if sys.argv[5:]:
    run.board.writer._general_file_writer.write(b"torn")
    run.board.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_tensorboard_has_every_point_once_after_kill_and_resume(tmp_path):
    run = Run(tmp_path / "02_pretrain/mine")

    def start(*arguments):
        command = [sys.executable, "-c", KILLED, str(run.path), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)}).returncode

    assert start(0, 7, 1.0, "kill") == -signal.SIGKILL
    assert {step for step, _ in board_of(run)["loss/loss"]} == set(range(1, 8)), "flushed while it runs"
    written, = run.path.glob("events.out.tfevents.*")
    written.rename(run.path / "events.out.tfevents.9999999999.ahead.1.0")  # a machine whose clock is ahead names it so
    assert start(4, 9, 2.0, "kill") == -signal.SIGKILL and start(6, 12, 3.0) == 0
    points = board_of(run)
    assert points["loss/loss"] == [(step, 1.0 if step <= 4 else 2.0 if step <= 6 else 3.0) for step in range(1, 13)]
    assert points["validation/ensemble_intra"] == [(3, 33), (6, 36), (9, 39), (12, 42)]
    assert points.keys() >= {"loss/egonce", "loss/mlm", "optimizer/lr", "optimizer/lr_heads", "optimizer/grad_norm",
                             "optimizer/scale", "optimizer/skipped", "speed/data_s", "speed/step_s",
                             "speed/clips_per_s", "speed/eta_s"}
    assert points.keys() == {name for event in run.read_log() for name in scalars(event)}


def test_a_running_tensorboard_forgets_truncated_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = Run(tmp_path / "run")
    run.truncate_log(lambda event: False)
    for step in range(1, 9):
        run.log(step_event(step, loss=1.0))
    accumulator = EventAccumulator(str(run.path))
    assert len(accumulator.Reload().Scalars("loss/loss")) == 8
    time.sleep(1.1)  # TensorBoard orders files by the seconds in their names
    run.truncate_log(lambda event: event["step"] <= 5)
    run.log(step_event(6, loss=2.0))
    points = [(point.step, point.value) for point in accumulator.Reload().Scalars("loss/loss")]
    assert points == [(step, 1.0) for step in range(1, 6)] + [(6, 2.0)]


def axes_of(figure):
    """{label of the y-axis: axes}; a saved figure is closed, but not emptied."""
    return {axis.get_ylabel(): axis for axis in figure.axes}


def test_the_figure_shows_slow_data_and_skipped_steps(tmp_path):
    run = Run(tmp_path / "02_pretrain/mine")
    for step in range(1, 21):
        run.log(step_event(step, data_s=0.2, skipped=int(step >= 9), grad_norm=None if step == 9 else 2.0))
    run.log(validation_event(20, ensemble_intra=55.0, dual_intra=50.0))
    axes = axes_of(curves(run))
    assert axes["share of step time (%)"].get_title() == "data-bound: 50 % waiting for data"
    assert axes["gradient norm"].get_title() == "gradient norm, 1 steps skipped"
    assert [line.get_label() for line in axes["loss term"].get_lines()] == ["egonce", "mlm"]
    assert [line.get_label() for line in axes["score (%)"].get_lines()] == ["ensemble intra", "best.pt"]
    assert (run.path / "figures/curves.png").stat().st_size > 10_000
    figure = draw(run, read(run), "running")
    assert figure.get_suptitle() == "02_pretrain/mine   running: step 20 of 20, epoch 1, 0:01:40 left"
    assert curves(run).get_suptitle() == "02_pretrain/mine   finished: step 20 of 20, epoch 1"


@pytest.mark.parametrize("low, high", [(0.3, 0.45), (0.1, 20), (1e-4, 3000)])
def test_gradient_norms_have_plain_numbers(tmp_path, low, high):
    """0.4 and not 4e-01; few ticks where there are many powers of ten."""
    run = Run(tmp_path / "run")
    for step, norm in enumerate(np.geomspace(low, high, 20), 1):
        run.log(step_event(step, grad_norm=norm))
    axis = axes_of(curves(run))["gradient norm"]
    labels = [label.get_text() for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert 2 <= len(labels) <= 10 and all(re.fullmatch(r"\d+(\.\d+)?", label) for label in labels), labels


def test_a_long_log_is_drawn_with_few_points(tmp_path):
    run = Run(tmp_path / "long")
    history = History(run.path)
    for step in range(1, 10_001):
        history._add(step_event(step, steps=10_000, mlm=float(step % 2), data_s=0.04,
                                grad_norm=None if step < 5000 else 1.0))
    axes = axes_of(draw(run, history, "running"))
    lines = [line for axis in axes.values() for line in axis.get_lines()]
    assert max(len(line.get_xdata()) for line in lines) == POINTS
    assert np.allclose(axes["loss term"].get_lines()[1].get_ydata(), 0.5)  # the mean of 0 and 1
    assert np.isfinite(axes["gradient norm"].get_lines()[0].get_ydata()).sum() in (POINTS // 2, POINTS // 2 + 1)
    assert " ".join(axes["share of step time (%)"].get_title().split()) == "not data-bound: 10 % waiting for data"


def test_a_run_without_steps_is_drawn(tmp_path):
    run = Run(tmp_path / "run")
    assert draw(run, read(run), "running").get_suptitle().endswith("running: no step yet")
    run.log(validation_event(0, ensemble_intra=20.0) | {"steps": 0})
    figure = curves(run)
    assert axes_of(figure)["loss term"].get_title() == "no training steps"
    assert "finished: step 0 of 0" in figure.get_suptitle()


def test_the_live_display_is_updated_in_place(tmp_path, monkeypatch):
    shown, updates = [], []

    def display(data, display_id, **options):
        shown.append(data)
        return SimpleNamespace(update=lambda data, **options: updates.append(data))

    monkeypatch.setattr("egokit.viz.alternative_text.display", display)
    run = Run(tmp_path / "run")
    live, history = Display(SimpleNamespace(run=run)), History(run.path)
    for step in (1, 2, 3):
        run.log(step_event(step))
        history.update()
        live(history, "running")
    assert len(shown) == 1 and not updates, "not drawn again at once"
    live.due = 0.0
    live(history, "running")
    live(history, "running")
    assert len(updates) == 1
    live(history, "failed")
    assert len(shown) == 1 and len(updates) == 2, "the end is always drawn"
    assert base64.b64decode(updates[-1]["image/png"]) == (run.path / "figures/curves.png").read_bytes()


def test_many_validation_numbers_leave_room_for_the_curves(tmp_path):
    """The first ones are drawn, and the title counts those that are not; the panel keeps its height."""
    from egokit.viz.curves import MAX_SCORES, draw_validation
    from egokit.viz.style import new_figure
    run = Run(tmp_path / "run")
    run.log(validation_event(0, **{f"score_{number:x}": 10.0 + number for number in range(3, 18)}))
    history = History(run.path)
    history.update()
    axis = new_figure().subplots()
    draw_validation(axis, history)
    names = [text for text in axis.get_legend_handles_labels()[1] if text.startswith("score")]
    assert names == [f"score {number:x}" for number in range(3, 3 + MAX_SCORES)]
    assert axis.get_title() == f"validation, {MAX_SCORES} of 15 numbers"
