"""Checkpoints are written by a thread: training waits for copies alone, and nothing torn or later is ever found."""
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import MODEL, ROOT
from training import essential, run_of, wait_for, weights_of

from egokit import tasks
from egokit.model import checkpoints
from egokit.model.checkpoints import WeightsError
from egokit.runs.run_folder import Run
from egokit.train import checkpoint_writer, memory_plan
from egokit.train.checkpoint_writer import CheckpointWriter, HostCopy
from egokit.train.loop import Trainer, train

CPU = torch.device("cpu")


@pytest.fixture
def run(project, request):
    return run_of(request)


@pytest.fixture
def held(monkeypatch):
    """A disk that writes nothing until it is let go: (event to set, paths whose writing has begun)."""
    write, go, begun = checkpoints.write, threading.Event(), []

    def slow(path, content):
        begun.append(path.name)
        assert go.wait(60)
        write(path, content)
    monkeypatch.setattr(checkpoints, "write", slow)
    yield go, begun
    go.set()


def content(value: float, size: int = 1000) -> dict:
    """Return a checkpoint with tied weights, an empty tensor, moments of half precision and a list of numbers."""
    weight = torch.full((size,), value)
    return {"state_dict": {"a": weight, "tied": weight, "empty": torch.zeros(0, 2),
                           "last": weight.clone().view(-1, 10).t()},
            "optimizer": {"state": {0: {"step": torch.tensor(value), "half": torch.full((3,), value).bfloat16()}}},
            "best": {"metrics": {"curve": [value]}}}


def test_a_copy_is_reached_by_no_later_change():
    original, memory = content(1.0), HostCopy()
    copied = memory.take(original)
    original["state_dict"]["a"].fill_(2)
    original["optimizer"]["state"][0]["step"] += 1
    original["optimizer"]["state"][0]["half"].zero_()
    original["best"]["metrics"]["curve"].append(2.0)
    state, moments = copied["state_dict"], copied["optimizer"]["state"][0]
    assert (state["a"] == 1).all() and state["a"] is state["tied"] and state["empty"].shape == (0, 2)
    assert torch.equal(state["last"], torch.ones(10, 100)) and state["last"].stride() == (1, 10)
    assert moments["step"] == 1 and (moments["half"] == 1).all() and copied["best"]["metrics"]["curve"] == [1.0]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())  # files hold storages
    address, size = state["a"].data_ptr(), memory.bytes
    again = memory.take(content(3.0))  # the memory is used again, and grows with what it has to take
    assert again["state_dict"]["a"].data_ptr() == address and memory.bytes == size
    assert (memory.take(content(4.0, 2000))["state_dict"]["last"] == 4).all() and memory.bytes > size


def test_a_copys_memory_is_hardly_more_than_its_tensors(monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "CHUNK", 2**16)
    dice = random.Random(0)
    sizes = [dice.randrange(1, 8000) for _ in range(300)] + [100_000]
    memory = HostCopy()
    copied = memory.take({number: torch.full((size,), float(number)) for number, size in enumerate(sizes)})
    assert all((tensor == number).all() and len(tensor) == sizes[number] for number, tensor in copied.items())
    assert memory.bytes < 1.05 * 4 * sum(sizes) + 2**16


def test_the_file_is_that_of_a_plain_write(tmp_path):
    with CheckpointWriter() as writer:
        writer.write(tmp_path / "copied.pt", content(1.0), "step")
    checkpoints.write(tmp_path / "plain.pt", content(1.0))
    copied, plain = (checkpoints.read(tmp_path / name) for name in ("copied.pt", "plain.pt"))
    assert copied.keys() == plain.keys() and copied["best"] == plain["best"]
    assert all(torch.equal(copied["state_dict"][key], value) for key, value in plain["state_dict"].items())
    assert (tmp_path / "copied.pt").stat().st_size == (tmp_path / "plain.pt").stat().st_size


def test_files_are_written_in_order_and_a_memory_is_waited_for(tmp_path, held):
    go, begun = held
    original, writer = content(1.0), CheckpointWriter()
    began = time.perf_counter()
    writer.write(tmp_path / "best.pt", original, "best")
    original["state_dict"]["a"].fill_(2)
    writer.write(tmp_path / "step-2.pt", original, "step", lambda: (tmp_path / "after").touch())
    assert writer.waited <= time.perf_counter() - began < 5 and not [*tmp_path.iterdir()]
    original["state_dict"]["a"].fill_(3)
    threading.Timer(0.3, go.set).start()
    writer.write(tmp_path / "step-3.pt", original, "step")  # the copy of step 2 is being written
    assert writer.waited > 0.2 and (tmp_path / "after").exists()
    writer.finish()
    assert begun == ["best.pt", "step-2.pt", "step-3.pt"]
    assert [float(checkpoints.read(tmp_path / name)["state_dict"]["a"][0]) for name in begun] == [1, 2, 3]


def test_an_error_is_raised_once_and_nothing_is_written_after_it(tmp_path, capsys):
    no_folder = tmp_path / "a file/bad.pt"
    no_folder.parent.touch()
    for leaves in (None, ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(leaves or WeightsError), CheckpointWriter() as writer:
            writer.write(no_folder, content(1.0), "best")
            if leaves:
                raise leaves
            writer.write(tmp_path / "step.pt", content(1.0), "step")
        assert ("could not be written" in capsys.readouterr().out) == bool(leaves)
    writer = CheckpointWriter(lambda: 1 / 0)  # such as a run that another attempt has taken over
    writer.write(tmp_path / "step.pt", content(1.0), "step")
    writer.wait()
    for call in (writer.raise_error, writer.finish, lambda: writer.write(tmp_path / "x.pt", content(1.0), "step")):
        with pytest.raises(ZeroDivisionError):
            call()
    assert [*tmp_path.iterdir()] == [no_folder.parent]


def test_the_programs_end_waits_for_the_file(tmp_path):
    program = f"""if True:
        import sys, time, torch
        from pathlib import Path
        from egokit.model import checkpoints
        from egokit.train.checkpoint_writer import CheckpointWriter
        write = checkpoints.write
        checkpoints.write = lambda *arguments: (time.sleep(0.5), write(*arguments))
        CheckpointWriter().write(Path({str(tmp_path / "step.pt")!r}), {{"state_dict": {{"a": torch.ones(3)}}}}, "step")
        sys.exit(3)"""
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 3 and (checkpoints.read(tmp_path / "step.pt")["state_dict"]["a"] == 1).all()


def test_steps_go_on_while_a_slow_disk_writes(resolve, run, held, monkeypatch):
    """Three steps are trained before the disk has written the first file; their log says what was waited for."""
    go, begun = held
    config = resolve(overrides=f"{MODEL} train.batch_size=4 train.ema_decay=0.9")
    update, log, written = Trainer.update, Trainer.log, []

    def updated(self, rate):
        written.append([path.name for path in self.run.checkpoints.glob("*.pt")])
        return update(self, rate)

    def logged(self, *arguments):
        log(self, *arguments)
        if self.step == 3:
            go.set()
    monkeypatch.setattr(Trainer, "update", updated)
    monkeypatch.setattr(Trainer, "log", logged)
    train(config, tasks.make(config), run, "pretrain", CPU)
    assert written[:3] == [[]] * 3 and begun[:2] == ["best.pt", "step-0000000.pt"]
    steps = [event for event in run.read_log() if event["kind"] == "step"]
    assert all(0 <= event["save_s"] < 5 and event["data_s"] >= 0 for event in steps)
    monkeypatch.undo()
    straight, memory, validate = Run(run.path / "straight"), [], Trainer.validate

    def validated(self):
        validate(self)
        memory.append((self.writer.bytes, memory_plan.copied_bytes(self.model, averages=True)))
    monkeypatch.setattr(Trainer, "validate", validated)
    train(config, tasks.make(config), straight, "pretrain", CPU)
    assert 1 <= memory[-1][0] / memory[-1][1] < 1.1  # what the plan says of the copies
    assert essential(run) == essential(straight)
    best, newest = checkpoints.read(run.checkpoints / "best.pt"), checkpoints.read(run.checkpoints / "step-0000006.pt")
    assert best["step"] == newest["step"]  # validated with the running means, which best.pt holds
    assert all(torch.equal(best["state_dict"][name], value) for name, value in newest["ema"].items())
    assert not all(torch.equal(newest["state_dict"][name], value) for name, value in newest["ema"].items())
    of_straight = checkpoints.read(straight.checkpoints / "best.pt")
    assert all(torch.equal(best["state_dict"][key], value) for key, value in of_straight["state_dict"].items())


@pytest.mark.parametrize("where", ["a step", "the validation"])
def test_a_stop_signal_waits_for_the_file_that_is_being_written(resolve, run, held, monkeypatch, where):
    go, _ = held
    go.set()
    config = resolve(overrides=f"{MODEL} train.batch_size=4")
    in_step = where == "a step"
    name, at, stops_at = ("log", 2, 3) if in_step else ("validate", 6, 6)
    received = []
    before = signal.signal(signal.SIGUSR2, lambda *_: received.append(checkpoints.latest(run.checkpoints).name))
    save, method = Trainer.save, getattr(Trainer, name)

    def saved(self):
        if self.step == stops_at:
            go.clear()
            threading.Timer(0.3, go.set).start()
        save(self)

    def stopped(self, *arguments):
        if self.step == at:
            signal.raise_signal(signal.SIGUSR2)
            if not in_step:
                raise SystemExit(0)  # as the job's own handler
        method(self, *arguments)
    monkeypatch.setattr(Trainer, "save", saved)
    monkeypatch.setattr(Trainer, name, stopped)
    try:
        with pytest.raises(SystemExit):
            train(config, tasks.make(config), run, "pretrain", CPU)
        assert received == [f"step-{stops_at:07d}.pt"] and signal.getsignal(signal.SIGUSR2) is not None
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not [*run.checkpoints.glob(".*")]


LOOP = """if True:
    import json, sys, torch
    from egokit.config.registry import restore
    from egokit import tasks
    from egokit.train import loop
    from egokit.runs.run_folder import Run
    config = restore(json.load(open(sys.argv[1])))
    torch.set_num_threads(1)
    loop.train(config, tasks.make(config), Run(sys.argv[2]), "pretrain", torch.device("cpu"))
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_writes_a_run_ends_with_the_same_bits(resolve, project, run):
    """Files that are found are whole at every kill, and best.pt is never of a later step than what is repeated."""
    from egokit.config.build import to_dict
    config = resolve(overrides=f"{MODEL} model.dropout=0.1 train.epochs=3 train.checkpoint_steps=1 train.ema_decay=0.5")
    straight, broken = Run(run.path / "straight"), Run(run.path / "broken")
    train(config, tasks.make(config), straight, "pretrain", CPU)
    (run.path / "config.json").write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-c", LOOP, str(run.path / "config.json"), str(broken.path)]
    environment, dice, torn = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"), random.Random(1), 0
    for _ in range(3):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, cwd=project)
        seen = {path.name for path in broken.checkpoints.glob("*")} if broken.checkpoints.exists() else set()
        wait_for(lambda process=process, seen=seen: process.poll() is not None or any(
            path.name not in seen and ".part" in path.name for path in broken.checkpoints.glob(".*")), pause=0)
        time.sleep(dice.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()[-2000:]
        torn += any(broken.checkpoints.glob(".*.part.pt"))
        reached = max([checkpoints.read(path)["step"] for path in checkpoints.of_steps(broken.checkpoints)], default=0)
        if (best := broken.checkpoints / "best.pt").exists():
            assert checkpoints.read(best)["step"] <= reached  # so resuming repeats the validation that chose it, if any
    assert torn
    train(config, tasks.make(config), broken, "pretrain", CPU)
    assert essential(broken) == essential(straight)
    assert all(torch.equal(weights_of(straight)[key], value) for key, value in weights_of(broken).items())
    both = [checkpoints.read(each.checkpoints / "best.pt") for each in (broken, straight)]
    assert both[0]["step"] == both[1]["step"]
    assert all(torch.equal(both[0]["state_dict"][key], value) for key, value in both[1]["state_dict"].items())
