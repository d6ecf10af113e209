"""egokit profile: its trace, its table, its verdict, and a run that it leaves alone."""
import subprocess
from types import SimpleNamespace

import pytest
import torch
from conftest import MODEL
from test_curves import step_event
from test_slow import CALM

from egokit.runs.bottleneck import verdict
from egokit.runs.log import History


@pytest.mark.slow
def test_a_profile_has_a_trace_a_table_and_a_verdict_and_leaves_the_run_alone(resolve, project, request, capsys):
    from egokit import cli
    from egokit.config.resolve import outputs_folder
    overrides = f"{MODEL} data.limit=24 train.batch_size=4 launch.tasks_per_node=1"
    cli.main(["profile", "toy/pretrain", "--site", "tiny", "--overrides", overrides, "--run", "sluggish",
              "--steps", "2"])
    shown, run = capsys.readouterr().out, outputs_folder() / "02_pretrain/sluggish"
    assert "of a step" in shown and "forward" in shown and "operations, CPU" in shown and "aten::" in shown
    assert (run / "profile/profile.txt").read_text() in shown
    trace = subprocess.run(["gzip", "-dc", run / "profile/trace.json.gz"], capture_output=True, text=True).stdout
    assert all(f'"name": "{name}"' in trace for name in ("data", "forward", "backward", "update"))
    rows = (run / "profile/operations.csv").read_text().splitlines()
    assert rows[0] == "kind,name,calls,self_cpu_ms,self_gpu_ms" and len(rows) > 20
    assert [path.name for path in run.iterdir()] == ["profile"] and not list(run.rglob("*.pt"))


def test_operations_and_the_gpus_share_of_the_time(tmp_path):
    from egokit.train.profile import covered, format_profile, operations_of
    kinds = torch.autograd.DeviceType

    def average(key, device, cpu, gpu):
        return SimpleNamespace(key=key, device_type=device, count=4, self_cpu_time_total=cpu,
                               self_device_time_total=gpu)
    found = operations_of([average("forward", kinds.CPU, 9, 0), average("forward", kinds.CUDA, 0, 99),
                           average("aten::mm", kinds.CPU, 2000, 6000), average("gemm", kinds.CUDA, 0, 6000),
                           average("aten::add", kinds.CPU, 4000, 0)])
    assert [(each.kind, each.name) for each in found] == [("operation", "aten::mm"), ("kernel", "gemm"),
                                                          ("operation", "aten::add")]
    assert covered([(0, 10), (5, 12), (20, 25), (21, 22)]) == 17 and covered([]) == 0
    history = History(tmp_path)
    for step in range(1, 4):
        history._add(step_event(step, **CALM))
    text = format_profile(history, verdict(history), found, 2, 0.4)
    assert "the GPU computes 40 % of the time under the profiler; it waits for the CPU" in text
    assert "  backward        0.600 s    60 %" in text and "  gemm" in text.partition("kernels, GPU")[2]
    assert "  aten::add" in text.partition("operations, CPU")[2].splitlines()[1], "the longest by the CPU's time"


def test_profiling_what_does_not_train_is_refused(resolve, project, tmp_path):
    from egokit.config.build import ConfigError
    from egokit.jobs import profiling
    with pytest.raises(ConfigError, match="'egomcq' does not train"):
        profiling.submit(resolve("toy/egomcq", "init="), tmp_path, 2)


def test_a_profile_of_other_settings_is_not_taken_for_ones_own(resolve, project, tmp_path, monkeypatch):
    import json

    from egokit.config.build import ConfigError
    from egokit.jobs import profiling
    from egokit.jobs.handle import Handle
    started = []
    monkeypatch.setattr(profiling.launch, "start_work", lambda folder, spec, *rest: started.append(
        (folder / "spec.json").write_text(json.dumps(spec))))
    monkeypatch.setattr(Handle, "alive", lambda self: bool(started))
    for _ in range(2):  # the second call attaches
        profiling.submit(resolve("toy/pretrain"), tmp_path, 8)
    assert len(started) == 1
    with pytest.raises(ConfigError, match=r"data\.workers: 0 -> 3.*--run NAME"):
        profiling.submit(resolve("toy/pretrain", "data.workers=3"), tmp_path, 8)
    with pytest.raises(ConfigError, match="--steps: 8 -> 20"):
        profiling.submit(resolve("toy/pretrain"), tmp_path, 20)
