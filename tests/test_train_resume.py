"""Training that is killed, stopped or out of disk goes on from its checkpoint and ends with the same bits."""
import os
import random
import resource
import signal
import time

import pytest
import torch
from conftest import MODEL, board_of
from training import essential, rank_processes, run_of, wait_for, weights_of

import egokit
from egokit.jobs import status
from egokit.model import checkpoints
from egokit.runs.run_folder import Run


@pytest.fixture
def run(project, request):
    return run_of(request)


def parts(run):
    return [*run.checkpoints.glob(".*.part.pt")]


@pytest.mark.slow
def test_killed_12_times_and_restarted_ends_with_the_same_bits(resolve, project, run):
    """Weights and log equal an uninterrupted run's, wherever kill -9 strikes.

    It also strikes during start-up and in the middle of writing a checkpoint.
    """
    config = resolve(overrides=f"{MODEL} model.dropout=0.1 train.epochs=12 train.checkpoint_steps=1 "
                               "train.batch_size=4 train.evaluate_epochs=4")
    straight = Run(run.path / "straight")
    egokit.submit(config, straight, "train", "pretrain").wait(progress=False)
    broken, dice, torn = Run(run.path / "broken"), random.Random(0), 0
    for kill in range(12):
        handle = egokit.submit(config, broken, "train", "pretrain")
        if kill % 4 == 0:
            time.sleep(dice.random() * 4)
        else:
            seen = len(broken.read_log())
            wait_for(lambda handle=handle, seen=seen: len(broken.read_log()) > seen or not handle.alive())
            if kill % 4 == 1:
                wait_for(lambda handle=handle: parts(broken) or not handle.alive(), pause=0)
            else:
                time.sleep(dice.random() * 0.3)
        killed = status.processes(handle.folder)
        assert killed, "the run ended before it had been killed 12 times: give it more epochs"
        for process in killed:
            os.kill(process, signal.SIGKILL)
        wait_for(lambda handle=handle: not handle.alive())
        torn += len(parts(broken)) > 0
    assert torn  # at least once in the middle of a write
    egokit.submit(config, broken, "train", "pretrain").wait(progress=False)
    assert essential(broken) == essential(straight)
    expected, got = weights_of(straight), weights_of(broken)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    logged = [(event["step"], pytest.approx(event["loss"])) for event in broken.read_log() if event["kind"] == "step"]
    assert board_of(broken)["loss/loss"] == logged
    names = [sorted(path.name for path in folder.checkpoints.iterdir()) for folder in (broken, straight)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_and_requeues_the_job(resolve, project, run):
    """No step is computed twice, and the result is an uninterrupted run's, to the bit."""
    config = resolve(overrides=f"{MODEL} model.dropout=0.1 train.epochs=3 train.batch_size=2 train.evaluate_epochs=3 "
                               "launch.tasks_per_node=2")
    straight, stopped = Run(run.path / "straight"), Run(run.path / "stopped")
    egokit.submit(config, straight, "train", "pretrain").wait(progress=False)
    handle = egokit.submit(config, stopped, "train", "pretrain")
    wait_for(lambda: any(event["kind"] == "step" for event in stopped.read_log()))
    os.kill(rank_processes(handle, "SUBMITIT_LOCAL_GLOBALID")[1], signal.SIGUSR2)
    wait_for(lambda: checkpoints.latest(stopped.checkpoints).stem != "step-0000000")
    stop = int(checkpoints.latest(stopped.checkpoints).stem.rpartition("-")[2])
    assert stop % 12 and max(event["step"] for event in stopped.read_log()) == stop
    handle.wait(progress=False)
    assert essential(stopped) == essential(straight)
    expected, got = weights_of(straight), weights_of(stopped)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    output = (handle.folder / "submitit" / f"{handle.job()['job_id']}_0_log.out").read_text()
    assert output.count("plan: ") == 2 and output.count("stopped by SIGUSR2, after a checkpoint") == 1


def test_a_signal_is_passed_on_after_the_checkpoint(resolve, run, monkeypatch):
    from egokit import tasks
    from egokit.train.loop import Trainer, train
    config = resolve(overrides=f"{MODEL} train.batch_size=4")
    received = []  # the newest checkpoint when the handler runs
    before = signal.signal(signal.SIGUSR2, lambda *_: received.append(checkpoints.latest(run.checkpoints).name))
    log = Trainer.log

    def at_step_2(self, *args):
        log(self, *args)
        if self.step == 2:
            signal.raise_signal(signal.SIGUSR2)
    monkeypatch.setattr(Trainer, "log", at_step_2)
    try:
        with pytest.raises(SystemExit, match=r"^0$"):
            train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
        assert received == ["step-0000003.pt"]
        signal.raise_signal(signal.SIGUSR2)
        assert len(received) == 2  # the job's own handler is back
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_seconds_are_those_of_all_starts(resolve, run, monkeypatch):
    """The clock of the first start, which is stopped, shows 1000 s; the second takes a few."""
    from egokit import tasks
    from egokit.train.loop import Trainer, train
    config, log, clock, ahead = resolve(overrides=f"{MODEL} train.batch_size=4"), Trainer.log, time.perf_counter, [0]

    def at_step_2(self, *args):
        log(self, *args)
        if self.step == 2 and not ahead[0]:
            ahead[0] = 1000
            signal.raise_signal(signal.SIGUSR2)
    monkeypatch.setattr(Trainer, "log", at_step_2)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + ahead[0])
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with pytest.raises(SystemExit):
            train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
    finally:
        signal.signal(signal.SIGUSR2, before)
    saved = checkpoints.read(checkpoints.latest(run.checkpoints))["seconds"]
    began = clock()
    metrics = train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
    assert 1000 < saved < metrics["seconds"] < saved + clock() - began
    assert 0 < metrics["evaluation_seconds"] < clock() - began


def test_a_full_disk_leaves_the_checkpoint_before(resolve, run):
    """A limit on the size of files, which the kernel enforces, stands for a full disk."""
    from egokit import tasks
    from egokit.train.loop import train
    config = resolve(overrides=f"{MODEL} train.epochs=2")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    start = Run(run.path / "start")
    train(resolve(overrides=f"{MODEL} train.epochs=0"), tasks.make(config), start, "pretrain", torch.device("cpu"))
    weights_alone = checkpoints.latest(start.checkpoints).stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * weights_alone, before[1]))  # the optimizer's moments don't fit
        with pytest.raises(egokit.WeightsError, match=r"step-0000003.pt could not be written .*MiB are needed"
                                                      r".*before is whole.*run again"):
            train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["best.pt", "step-0000000.pt"]
    assert checkpoints.read(run.checkpoints / "step-0000000.pt")["step"] == 0
    train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
    straight = Run(run.path / "straight")
    train(config, tasks.make(config), straight, "pretrain", torch.device("cpu"))
    assert essential(run) == essential(straight)


def test_a_resumed_recipe_must_be_the_same(resolve, run):
    from egokit import tasks
    from egokit.train.loop import TrainingError, train
    config = resolve(overrides=MODEL)
    train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
    longer = resolve(overrides=f"{MODEL} train.epochs=2")
    with pytest.raises(TrainingError, match=r"another recipe.*choose another run name"):
        train(longer, tasks.make(longer), run, "pretrain", torch.device("cpu"))


@pytest.mark.parametrize("damage", ["cut", *(pytest.param(damage, marks=pytest.mark.slow)
                                            for damage in ("flipped", "another file", "no optimizer"))])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(resolve, run, capsys, damage):
    from egokit import tasks
    from egokit.train.loop import train
    config = resolve(overrides=f"{MODEL} train.epochs=2 train.checkpoint_steps=1")
    straight = Run(run.path / "straight")
    expected = train(config, tasks.make(config), straight, "pretrain", torch.device("cpu"))
    train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
    newest, before = checkpoints.of_steps(run.checkpoints)
    content = newest.read_bytes()
    if damage == "no optimizer":
        torch.save({key: value for key, value in checkpoints.read(newest).items() if key != "optimizer"}, newest)
    else:
        middle = len(content) // 2
        newest.write_bytes({"cut": content[:middle], "another file": b"<html>",
                            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]}[damage])
    capsys.readouterr()
    got = train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
    assert f"{newest} is damaged, and is {newest.name}.damaged now: the run goes on from {before.name}" in (
        capsys.readouterr().out)
    assert essential(run) == essential(straight) and got.keys() == expected.keys()
    assert all(torch.equal(value, weights_of(straight)[key]) for key, value in weights_of(run).items())
    assert [path.name for path in checkpoints.of_steps(run.checkpoints)] == [newest.name, before.name]
    for path in (newest, before):
        path.write_bytes(b"")
    with pytest.raises(egokit.WeightsError, match=newest.name):
        train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))


@pytest.mark.parametrize("change", [{"optimizer": {}}, {"step": "x"}, {"best": "x"}, {"scaler": None}, {"recipe": []}])
def test_a_checkpoint_of_wrong_state_is_named(resolve, run, change):
    from egokit import tasks
    from egokit.train.loop import train
    config = resolve(overrides=f"{MODEL} train.epochs=0")
    train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
    newest = checkpoints.latest(run.checkpoints)
    torch.save(checkpoints.read(newest) | change, newest)
    with pytest.raises(egokit.WeightsError, match=rf"{newest.name}.*delete it"):
        train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
