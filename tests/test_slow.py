"""Why is it slow? Times of a step's phases, what the processes get of their machine, and the verdict on both."""
import contextlib
import itertools
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import MODEL, board_of
from test_curves import axes_of, read, step_event
from test_dist import ranks
from training import run_of

from egokit import tasks
from egokit.runs.bottleneck import Recent, verdict
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.train import usage
from egokit.train.loop import Trainer
from egokit.viz.curves import curves

CPU = torch.device("cpu")
MACHINE = {"kind": "machine", "step": 0, "device": "cpu", "cores": 8, "workers": 2, "ranks_on_node": 1, "nodes": 1,
           "precision": "bf16", "compile": False}
# a step of 1 s: data, forward, backward, update and waiting, and a machine with cores to spare
CALM = {"step_s": 1.0, "data_s": 0.02, "save_s": 0.0, "forward_s": 0.3, "backward_s": 0.6, "update_s": 0.05,
        "wait_s": 0.01, "cpu_share": 0.98, "cpu_cores": 1.5, "cpu_worker_cores": 0.4, "cpu_other_cores": 0.1,
        "cpu_available": 8, "host_memory_gib": 3.0, "host_memory_used": 0.4, "memory_stall": 0.0, "faults_per_s": 0.0}
RANKS = {"longest_wait_s": 0.6, "slowest_rank": 3, "slowest_wait_s": 0.02, "slowest_data_s": 0.01,
         "slowest_compute_s": 0.9, "slowest_queued": 0.02, "wait_s": 0.6, "forward_s": 0.1, "backward_s": 0.2}


def judged(tmp_path, changes, machine=()):
    """The verdict on a log whose lines differ from a calm one's by `changes`."""
    history = History(tmp_path)
    history._add(MACHINE | dict(machine))
    for step in range(1, 31):
        history._add(step_event(step, 30, **CALM | changes))
    return verdict(history)


CASES = {
    "nothing": ({}, {}, "computing", "computing: 95 % of a step on 8 cores", "more cores"),
    "gpu": ({}, {"device": "cuda", "precision": "fp32"}, "gpu", "GPU: it computes 95 %", "train.precision=bf16"),
    "gpu full": ({"gpu_memory_used": 0.99, "gpu_memory_retries": 2}, {"device": "cuda"}, "memory", "GPU memory: full",
                 "train.micro_batch"),
    "no worker": ({"data_s": 0.6}, {"workers": 0}, "data", "data-bound: 60 %", "data.workers=6: 6.4 of 8 cores"),
    "few workers": ({"data_s": 0.6, "cpu_worker_cores": 1.9}, {}, "data", "data-bound", "data.workers=8"),
    "slow disk": ({"data_s": 0.6, "cpu_worker_cores": 0.1}, {}, "data", "data-bound", "wait for files"),
    "both cores compute": ({"data_s": 0.6, "cpu_cores": 1.95, "cpu_other_cores": 0.02, "cpu_available": 2},
                           {"workers": 0}, "data", "data-bound", "would take them from the computing"),
    "readers lack cores": ({"data_s": 0.6, "cpu_cores": 7.8, "cpu_share": 0.5}, {"workers": 16}, "data", "data-bound",
                           "not more data.workers"),
    "readers lack cores that others use": ({"data_s": 0.6, "cpu_cores": 1.0, "cpu_share": 0.3, "cpu_other_cores": 7.0},
                                           {}, "cpu", "CPU share: the processes get 30 %", "other programs use 7.0"),
    "a sleeping reader on a busy machine": ({"data_s": 0.9, "cpu_cores": 0.1, "cpu_share": 0.5, "cpu_other_cores": 7.5},
                                            {}, "data", "data-bound: 90 %", "all 8 cores are busy"),
    "another program": ({"cpu_share": 0.13, "cpu_cores": 0.26, "cpu_other_cores": 7.7}, {}, "cpu",
                        "CPU share: the processes get 13 %", "other programs use 7.7 of 8 cores"),
    "too many threads": ({"cpu_share": 0.4, "cpu_cores": 7.9}, {}, "cpu", "CPU share", "launch.cpus_per_task"),
    "memory": ({"host_memory_used": 0.97, "memory_stall": 0.5, "data_s": 0.9}, {}, "memory", "memory: 97 %",
               "mem_gb_per_task"),
    "a slow rank": (RANKS, {}, "ranks", "waiting for rank 3: up to 60 %", "computes longer"),
    "a rank that reads": (RANKS | {"slowest_data_s": 0.7}, {}, "ranks", "waiting for rank 3", "waits for its data"),
    "a rank without cores": (RANKS | {"slowest_queued": 0.8}, {}, "ranks", "waiting for rank 3", "too few cores"),
    "the network": (RANKS | {"slowest_wait_s": 0.58}, {}, "ranks", "communication: 60 %", "NCCL_SOCKET_IFNAME"),
    "readers that are late in turn": (RANKS | {"slowest_wait_s": 0.4, "longest_wait_s": 0.5, "wait_s": 0.46,
                                               "data_s": 0.27, "cpu_worker_cores": 1.9}, {}, "data",
                                      "data-bound: 27 %", "cores are idle"),
    "checkpoints": ({"save_s": 0.4}, {}, "saving", "checkpoints: 40 %", "train.checkpoint_steps"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_names_the_bound_and_what_to_change(tmp_path, case):
    changes, machine, bound, title, advice = CASES[case]
    found = judged(tmp_path, changes, machine)
    assert found.bound == bound and title in found.title and advice in found.advice, found


@pytest.mark.parametrize("changes", [{"slowest_rank": 1e15}, {"slowest_rank": -1.5}, {"step_s": 0}, {"cpu_cores": 0},
                                     {"cpu_available": 0, "data_s": 0.9}, {"step_s": None}])
def test_numbers_that_no_training_writes_are_judged_without_an_error(tmp_path, changes):
    assert judged(tmp_path, RANKS | {"cpu_share": 0.1} | changes, {"ranks_on_node": 0, "workers": 0}).title
    assert judged(tmp_path, {"cpu_share": 0.1} | changes, {"ranks_on_node": 0, "workers": 0}).title


def test_without_the_kernels_queues_the_other_programs_are_told_by_their_cores(tmp_path):
    busy = {"cpu_share": float("nan"), "cpu_cores": 1.0, "cpu_other_cores": 7.0}
    assert judged(tmp_path, busy).bound == "cpu"
    assert judged(tmp_path, busy | {"cpu_other_cores": 1.0}).bound == "computing"


def test_an_older_log_and_one_that_goes_on_with_new_keys_are_judged_and_drawn(tmp_path):
    run = Run(tmp_path / "02_pretrain/mine")
    for step in range(1, 11):
        run.log(step_event(step, data_s=0.2))
    assert verdict(read(run)).title == "data-bound: 50 % waiting for data"
    axis = axes_of(curves(run))["share of step time (%)"]
    assert len(axis.get_lines()) == 2 and not axis.collections
    run.log(MACHINE | {"step": 10})
    for step in range(11, 21):
        run.log(step_event(step, **CALM))
    assert verdict(read(run)).bound == "computing"
    figure = curves(run)
    axis = axes_of(figure)["share of step time (%)"]
    assert len(axis.collections) == 6 and axis.get_title().startswith("computing: 95 % of a step")
    assert "a GPU, or more cores" in figure.get_supxlabel()
    assert history_columns(run) >= {"speed/forward_s", "machine/cpu_share"} and not any(
        name.startswith("loss/") and name not in ("loss/loss", "loss/egonce", "loss/mlm", "loss/itm")
        for name in history_columns(run))


def history_columns(run):
    return set(read(run).training.columns)


@pytest.mark.parametrize("log_steps", [1, 3, 10])
def test_batches_that_come_together_are_waited_for(tmp_path, log_steps):
    """Eight readers deliver at once: of eight steps one waits 3.2 s, and all compute 0.4 s each."""
    history = History(tmp_path)
    history._add(MACHINE | {"workers": 8})
    waits = [3.2 * (step % 8 == 0) for step in range(120)]
    for step in range(log_steps, 121, log_steps):
        data = float(np.mean(waits[step - log_steps:step]))
        history._add(step_event(step, 120, **CALM | {"data_s": data, "step_s": 0.4 + data, "forward_s": 0.1,
                                                     "backward_s": 0.2}))
    found, recent = verdict(history), Recent(history)
    assert found.bound == "data" and recent.share("data_s") == pytest.approx(0.5, abs=0.06), found
    assert recent.median("speed/step_s") == pytest.approx(0.8, abs=0.1)


def test_a_run_that_goes_on_elsewhere_is_judged_there(tmp_path):
    history = History(tmp_path)
    history._add(MACHINE | {"workers": 0})
    for step in range(1, 31):
        history._add(step_event(step, 60, **CALM | {"data_s": 0.6}))
    history._add(MACHINE | {"workers": 6, "step": 30})
    assert verdict(history).bound == "data", "no step yet there"
    for step in range(31, 34):
        history._add(step_event(step, 60, **CALM))
    assert verdict(history).bound == "computing"


# Real log lines

def trained(config, run, steps=8, spoil=lambda trainer: None):
    """Train for a few steps in this process and return the history of the log."""
    trainer = Trainer(config, tasks.make(config), run, "pretrain", CPU)
    spoil(trainer)
    run.truncate_log(lambda event: False)
    trainer.log_machine()
    with trainer.clock.running():
        trainer.epoch(0, itertools.islice(trainer.loader(), steps))
    return read(run)


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(usage, "EVERY", 0.1)
    monkeypatch.setattr(usage, "RARITY", 10)


@pytest.mark.slow
def test_a_slow_reader_is_a_data_bound_run(resolve, project, request, often):
    def spoil(trainer):
        collate, ended = trainer.task.collate, [time.perf_counter()]

        def slowly(items):
            """Take three times as long as all else, however busy the machine is."""
            time.sleep(max(0.3, 3 * (time.perf_counter() - ended[0])))
            ended[0] = time.perf_counter()
            return collate(items)
        trainer.task.collate = slowly
    run = run_of(request)
    history = trained(resolve(overrides=f"{MODEL} train.batch_size=4"), run, 5, spoil)
    found = verdict(history)
    assert found.bound == "data" and found.advice, found
    assert {"speed/forward_s", "speed/wait_s", "machine/cpu_share", "machine/host_memory_gib"} <= board_of(run).keys()
    parts = sum(history.training[f"speed/{name}"] for name in (
        "data_s", "forward_s", "backward_s", "update_s", "wait_s", "save_s"))
    assert np.allclose(parts, history.training["speed/step_s"], rtol=0.1), "a step's parts add up to it"


@pytest.mark.slow
def test_another_program_on_this_core_is_named(resolve, project, request, often):
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    spin = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, allowed)
        for _ in range(4):
            program = subprocess.Popen([sys.executable, "-c", spin])
            stack.callback(program.wait)
            stack.callback(program.kill)
        os.sched_setaffinity(0, {core})
        history = trained(resolve(overrides=f"{MODEL} train.batch_size=4"), run_of(request), 6)
    found = verdict(history)
    assert found.bound == "cpu" and "other programs use" in found.advice, (found, history.training.columns)


@pytest.mark.slow
def test_the_rank_for_which_the_others_wait_is_named(tmp_path, project):
    """By DDP and by micro-batches; a rank that computes slowly, and one that reads slowly."""
    result, _ = ranks("rank_slow.py", 2, tmp_path, project)
    (computes, lines), (reads, _) = result["computes"], result["reads"]
    assert computes[0] == "ranks" and "waiting for rank 1" in computes[1] and "computes longer" in computes[2]
    assert reads[0] == "ranks" and "waiting for rank 1" in reads[1] and "waits for its data" in reads[2]
    waits = np.median([[line["wait_s"], line["slowest_wait_s"]] for line in lines], 0)
    assert waits[0] > waits[1] + 0.2, lines
