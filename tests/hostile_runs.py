"""Drivers of the public functions that show several runs, or a trial, given hostile texts wherever texts go."""
from types import SimpleNamespace

import numpy as np
import torch
from hostile import NAME
from hostile_tasks import DRAWN, WORDS, evaluated, trained
from test_curves import step_event, validation_event

from egokit import viz
from egokit.runs.run_folder import Run

SHORT = [text for text in WORDS if 0 < len(text) < 40]  # longer values of settings are cut


def swept(folder, values, copies=1) -> list[Run]:
    """Return runs whose names, metrics, terms, keys and values are hostile: `copies` of each value."""
    runs = []
    for number, value in enumerate(np.repeat(np.array(values, dtype=object), copies)):
        run = Run(folder / "outputs/05_egomcq" / f"{NAME}-{number}")
        for step in range(1, 4):
            run.log(step_event(step) | {NAME: 1.0})
            run.log(validation_event(step, **{NAME: 10.0 * step + number}))
        run.write_metrics("own", {"finished": True, "action": "train", "score": NAME, NAME: 1.0, "init": NAME,
                                  "data": {}, "recipe": {"seed": number, "task": {NAME: value}}})
        runs.append(run)
    return runs


def mean_curves(folder, own):
    return viz.mean_curves(swept(folder, DRAWN[:4], 2), Run(folder / "m")), (), ()


def setting_scores(folder, own):
    return viz.setting_scores(swept(folder, DRAWN[:4], 2), Run(folder / "s")), (), ()


def overlaid(folder, own):
    run = trained(folder)
    return viz.overlaid({text: run for text in DRAWN[:5]}, Run(folder / "o")), (), ()


def run_settings(folder, own):
    return viz.run_settings(swept(folder, SHORT)), [NAME, *SHORT], ()


def by_setting(folder, own):
    return viz.by_setting(swept(folder, SHORT, 2)), [NAME, *SHORT], ()


def setting_differences(folder, own):
    task, runs = evaluated(folder)[0], swept(folder, WORDS[:2])
    for run in runs:
        run.write_rows("own", {"index": np.arange(task.count)})
    task.per_query = lambda rows, prompts_KE: {NAME: [np.arange(3.0)]}
    return viz.setting_differences(task, runs), [NAME], ()


def changed_sides(folder, own):
    task, _, run, _ = evaluated(folder)
    return viz.changed_sides(task, run, run, NAME), (), ()


def gradients(folder, own):
    model = torch.nn.Linear(2, 2)
    trial = SimpleNamespace(model=SimpleNamespace(parameters=model.parameters, named_parameters=model.named_parameters),
                            measured=lambda: (dict.fromkeys(SHORT, 1.0),
                                              {NAME: dict.fromkeys([*SHORT, "all terms"], 1.0)}))
    own.monkeypatch.setattr("egokit.viz.trials.parts_of", lambda model: {NAME: list(model.parameters())})
    return viz.gradients(trial), [NAME, *SHORT], ()


FIGURES = {"mean_curves": mean_curves, "overlaid": overlaid, "setting_scores": setting_scores}
HTML = {"by_setting": by_setting, "changed_sides": changed_sides, "gradients": gradients, "run_settings": run_settings,
        "setting_differences": setting_differences}
