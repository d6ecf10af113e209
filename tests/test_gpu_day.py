"""The GPU day's runner, its report, and what its stages decide by themselves.

`make gpu-day-rehearsal` runs the stages.
"""
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

os.environ["GPU_DAY_REHEARSAL"] = "1"  # gpu_day.common reads it once
sys.path.insert(0, str(ROOT / "benchmarks"))
import train_step
from gpu_day import attention_speed, common, report, runner, speed


def stage(name: str, code: str, seconds: float = 20, **options) -> runner.Stage:
    return runner.Stage(name, (sys.executable, "-c", code), seconds, **options)


def alive(process: int) -> bool:
    """Return whether a process runs; a zombie, which waits for its parent, does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_stage_that_fails_or_is_late_stops_no_other_and_is_reported(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.5)
    stubborn = ("import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
                "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
                f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(60)")
    stages = [stage("fails", "import sys; print('a number'); sys.exit('a reason')"), stage("late", stubborn, 3),
              stage("tests", "print('2 failed'); raise SystemExit(1)", alone=False, output="tests.txt"),
              stage("ends", "print('the last')", alone=False), stage("none", "print('never')", 20)]
    day = runner.Runner(tmp_path, limit=60)
    day.left = lambda left=day.left: left() if len(day.results) < 4 else 1.0
    assert day.run(stages) == 1
    output = capfd.readouterr().out
    assert "a number" in output and "the last" in output and "never" not in output
    ended = {result.name: (result.result, result.why) for result in day.results}
    assert ended == {"fails": ("failed", "exit code 1: a reason"), "late": ("stopped", "stopped after 3 s: "),
                     "tests": ("failed", "exit code 1: 2 failed"), "ends": ("ok", ""),
                     "none": ("left out", "no time left")}
    assert "4 of 5 stages did not end well: " in output
    assert not alive(int((tmp_path / "child").read_text()))
    assert "a reason" in (tmp_path / "errors.txt").read_text()
    assert "**" not in (tmp_path / "gpu.md").read_text()
    assert "| fails | failed | 0 | exit code 1: a reason |" in (tmp_path / "gpu.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} - {"child"} < set(runner.KEPT) and len(runner.KEPT) <= 8


def test_all_stages_ended_well(tmp_path, capfd):
    assert runner.Runner(tmp_path).run([stage("one", "pass"), stage("two", "pass", alone=False)]) == 0
    assert "all stages ended well" in capfd.readouterr().out


def test_nothing_is_started_after_a_stage_that_all_need(tmp_path, capfd):
    """A machine that lacks a package is not held for stages that can't run."""
    needed = dataclasses.replace(stage("imports", "raise SystemExit('no module')"), needed=True)
    assert runner.Runner(tmp_path).run([needed, stage("two", "print('two ran')")]) == 1
    out = capfd.readouterr().out
    assert "failed   imports" in out and "left out two" in out and "two ran" not in out


def test_interrupted_it_stops_its_stages_and_reports(tmp_path):
    code = ("import signal, sys; from pathlib import Path; from gpu_day import runner; "
            "signal.signal(signal.SIGTERM, signal.default_int_handler); "
            "sleep = f\"import os, time; open({sys.argv[1]!r} + '/started', 'w').write(str(os.getpid())); "
            "time.sleep(60)\"; "
            "stages = [runner.Stage(name, (sys.executable, '-c', sleep), 60) for name in ('one', 'two')]; "
            "runner.Runner(Path(sys.argv[1])).run(stages)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")})
    started = tmp_path / "started"
    while not (started.exists() and started.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "left out two" in " ".join(process.communicate(timeout=20)[0].split())
    assert process.returncode and not alive(int(started.read_text())) and (tmp_path / "gpu.md").exists()


def test_the_day_is_the_same_stages_everywhere(tmp_path):
    """In a rehearsal nothing is installed; every module and test that is named exists."""
    gpu, cpu = ([listed.name for listed in runner.stages(cpu, tmp_path)] for cpu in (False, True))
    assert gpu == ["wheels", *cpu] and len(set(gpu)) == len(gpu)
    for listed in runner.stages(False, tmp_path):
        for word in listed.command:
            assert not word.startswith("tests/") or (ROOT / word).exists(), word
            module = (ROOT / "benchmarks" / word.replace(".", "/")).with_suffix(".py")
            assert not word.startswith("gpu_day.") or module.exists(), word


def test_a_failed_check_fails_the_stage_after_its_last_measurement(tmp_path, monkeypatch):
    def counts() -> None:
        common.check("Sums", False, one_and_one=3)
        common.check("Sums", True, two_and_two=4)
    monkeypatch.setattr(common, "OUT", tmp_path)
    monkeypatch.setattr(common, "failures", [])
    monkeypatch.setattr(sys, "argv", ["behaviour.py", "counts"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            common.run(counts)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert str(ended.value) == "1 check failed, first Sums: {'one_and_one': 3}"
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["passed"] for row in rows] == [False, True] and rows[0]["stage"] == "counts"
    assert common.measured("Sums", "two_and_two", passed=True) == 4
    assert common.measured("Sums", "two_and_two", passed=False) is None


def test_the_report_is_tables():
    rows = [{"stage": "card", "table": "Machine", "card": "Card X", "torch": "2.11"},
            {"stage": "step", "table": "Training step", "clips": 64, "clips_s": 123.456, "compiled": False,
             "problem": ""},
            {"stage": "step", "table": "Training step", "clips": 128, "problem": "out | of\nmemory"},
            {"stage": "job", "table": "Jobs", "uuids": [], "passed": False},
            {"table": "Stages", "stage": "step", "result": "ok"}]
    text = report.markdown(rows, "abc")
    assert text.startswith("## Card X, PyTorch 2.11\n") and "commit abc" in text
    assert text.index("### Stages") < text.index("### Machine") < text.index("### Training step")
    assert "| clips | clips/s | compiled | problem |\n| --- | --- | --- | --- |\n| 64 | 123.5 | no | – |\n" in text
    assert "| 128 | – | – | out \\| of memory |" in text and "| none | **no** |" in text


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Give a tiny model, and a function that returns the rows that were noted."""
    monkeypatch.setattr(common, "OUT", tmp_path)
    monkeypatch.setattr(common, "failures", [])
    (tmp_path / "results.jsonl").touch()
    model = speed.trainer(speed.Variant("bf16", "full", 4)).model
    return model, lambda: [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]


def test_a_batch_that_does_not_fit_is_no_failure_and_another_error_is(tiny, monkeypatch):
    model, rows = tiny
    loss = train_step.Synthetic.loss

    def bounded(task, model, batch, step):
        if len(batch["video"]) >= 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        if task.config.train.micro_batch:
            raise RuntimeError("CUDA error: invalid configuration argument\nand more")
        return loss(task, model, batch, step)

    monkeypatch.setattr(train_step.Synthetic, "loss", bounded)
    peaks = [speed.measure(speed.Variant("bf16", "none", clips, micro), 1.0, model)
             for clips, micro in ((4, 0), (8, 0), (4, 1))]
    assert peaks == [0.0, None, None]
    fitted, too_many, broken = rows()
    assert fitted["clips_s"] > 0 and too_many["problem"] == "out of memory" and "passed" not in too_many
    assert broken["problem"] == "CUDA error: invalid configuration argument" and len(common.failures) == 1
    assert model.config.checkpointing == "none" and all(parameter.grad is None for parameter in model.parameters())


def test_the_largest_batch_is_found():
    measured = {48: 10 + 48 * 1.2, 64: 10 + 64 * 1.2}
    assert speed.largest_batch(measured, 80.0) == 56 and speed.largest_batch({64: 13.3, 128: 21.6}, 77.0) == 552
    tried = []

    def fits(most: int):
        tried.clear()
        return lambda clips: tried.append(clips) or clips <= most
    assert speed.find_largest(552, fits(1000)) == 552 and tried == [552]
    assert speed.find_largest(552, fits(470)) == 456 and tried == [552, 504, 456]
    assert speed.find_largest(552, fits(1)) == 0 and len(tried) == 3


def test_attention_by_sums_is_attention():
    query, key, value = (torch.randn(6, 2, n, 8, dtype=torch.float64, requires_grad=True) for n in (4, 5, 5))
    grad = torch.randn_like(query)
    sides = []
    for way in (attention_speed.by_sums, torch.nn.functional.scaled_dot_product_attention):
        out = way(query, key, value)
        sides.append([out, *torch.autograd.grad(out, (query, key, value), grad)])
    for by_sums, fused in zip(*sides, strict=True):
        torch.testing.assert_close(by_sums, fused, rtol=1e-5, atol=1e-6)  # the sums are float32


def test_a_trainer_computes_as_its_variant_says(tiny):
    model, _ = tiny
    speed.trainer(speed.Variant("bf16", "cheap", 4, attention="triton", half_residual=True), model)
    assert (model.config.checkpointing, model.config.attention, model.config.half_residual) == ("cheap", "triton", True)
    assert model.video.blocks[0].time.fused_on == ("cuda",)
    speed.trainer(speed.Variant("bf16", "none", 4, attention="without cuDNN"), model)
    assert (model.config.checkpointing, model.config.attention, model.config.half_residual) == ("none", "sdpa", False)
    assert model.video.blocks[0].time.fused_on == ()
