"""Which of a machine's GPUs a job sees and takes, and its messages where there are none.

nvidia-smi is replaced by a script; CUDA is not needed.
"""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import MODEL
from training import wait_for

import egokit
from egokit.config.build import ConfigError
from egokit.config.resolve import outputs_folder
from egokit.config.schema import LaunchConfig
from egokit.jobs import devices, runs_table, status
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.train import loop

UUIDS = [f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "abcd"]


def smi(folder: Path, *used_mib: int, names: str = "NVIDIA H100") -> None:
    """Write an nvidia-smi to `folder` that lists a GPU for each number of MiB in use."""
    lines = [f"{index}, {UUIDS[index]}, {names.format(index)}, {mib}, 81559" for index, mib in enumerate(used_mib)]
    (folder / "nvidia-smi").write_text("#!/bin/sh\n" + "".join(f'echo "{line}"\n' for line in lines))
    (folder / "nvidia-smi").chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Imitate four idle H100 that PyTorch doesn't see; return the folder of nvidia-smi."""
    folder = tmp_path / "bin"
    folder.mkdir()
    smi(folder, 4, 4, 4, 4)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv(devices.VISIBLE_DEVICES, raising=False)
    monkeypatch.setattr(devices, "gpu_count", lambda: 0)  # also where the tests' machine has a GPU
    return folder


def test_visible_gpus(machine):
    gpus = devices.list_gpus()
    assert [gpu.uuid for gpu in gpus] == UUIDS and gpus[3].index == 3
    assert gpus[0].total_gib == pytest.approx(79.65, abs=0.01)

    def numbers(value=None, gpus=gpus, **more):
        environment = more | ({} if value is None else {devices.VISIBLE_DEVICES: value})
        return [gpu.index for gpu in devices.visible_gpus(gpus, environment)]

    assert numbers() == [0, 1, 2, 3] and numbers("") == [] and numbers("3, 1") == [3, 1]
    assert numbers("GPU-cc,GPU-aaaaaaaa") == [2, 0] and numbers("1,7,2") == [1], "CUDA stops at the first unknown item"
    assert numbers("MIG-1/2/3") == []
    smi(machine, 4, 4, names="Card {}")
    different = devices.list_gpus()
    assert numbers("1", different) == [] and numbers("GPU-b", different) == [1], "CUDA counts the fastest GPU first"
    assert numbers("1", different, CUDA_DEVICE_ORDER="PCI_BUS_ID") == [1]


@pytest.mark.parametrize("output, expected", [
    ("NVIDIA-SMI has failed because it couldn't communicate", []), ("No devices were found", []), ("", []),
    (f"0, {UUIDS[0]}, NVIDIA GB10, [N/A], [N/A]", [(0, UUIDS[0], "NVIDIA GB10", 0.0, 0.0)]),
    (f"0, {UUIDS[0]}, A, B, 1024, 2048\n\nWARNING: infoROM is corrupted at gpu 0000:00:00.0, or so, it, seems",
     [(0, UUIDS[0], "A, B", 1.0, 2.0)]),
    (f"Unable to determine the device handle for GPU1: Unknown Error\n1, {UUIDS[1]}, A, 1024, 2048",
     [(1, UUIDS[1], "A", 1.0, 2.0)])])
@pytest.mark.parametrize("code", [0, 14])
def test_any_output_of_nvidia_smi(machine, output, expected, code):
    (machine / "output").write_text(output)
    (machine / "nvidia-smi").write_text(f"#!/bin/sh\ncat {machine}/output; exit {code}\n")
    assert devices.list_gpus() == expected


def test_unknown_idle_gpus_are_reported(machine, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(devices, "gpu_count", lambda: 2)
    smi(machine, 40000, 4, names="Card {}")
    monkeypatch.setenv(devices.VISIBLE_DEVICES, "0,1")  # CUDA's numbers, which are not nvidia-smi's here
    with devices.choose_gpus(LaunchConfig()) as chosen:
        assert chosen.uuids == [] and chosen.notice.startswith("takes the first of 2 GPUs: nvidia-smi doesn't tell")
    monkeypatch.delenv(devices.VISIBLE_DEVICES)
    claims, elsewhere = tmp_path / f"egokit-gpus-{os.getuid()}", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for spoil in (lambda: claims.write_text("a file in the folder's place"), lambda: claims.symlink_to(elsewhere)):
        spoil()
        with devices.choose_gpus(LaunchConfig()) as chosen:
            assert chosen.uuids == [UUIDS[1]]
        assert "a job that is submitted at the same time may take the same GPUs" in capsys.readouterr().out
        claims.unlink()
    assert not [*elsewhere.iterdir()]


def test_a_job_takes_an_idle_gpu(machine):
    with devices.choose_gpus(LaunchConfig()) as first:
        assert first.uuids == UUIDS[:1] and first.notice == ""
    smi(machine, 40000, 4, 30000, 700)
    with devices.choose_gpus(LaunchConfig(tasks_per_node=2)) as two:
        assert two.uuids == [UUIDS[1], UUIDS[3]] and two.notice == ""
    with devices.choose_gpus(LaunchConfig(tasks_per_node=3)) as three:
        assert three.uuids == [UUIDS[1], UUIDS[2], UUIDS[3]]
        assert three.notice == "shares what others use: GPU 2 (NVIDIA H100, 29.3 of 80 GiB in use)"
    for none in (LaunchConfig(gpus_per_task=0), LaunchConfig(cluster="slurm"), LaunchConfig(tasks_per_node=5)):
        with devices.choose_gpus(none) as chosen:
            assert chosen.uuids == []


def test_two_jobs_take_two_gpus_as_long_as_both_live(machine, tmp_path, monkeypatch):
    """A job that has just started holds no memory yet, so its processes say which GPUs it has taken.

    Jobs whose spec can't be read, or is another program's, are none of the two.
    """
    folder = tmp_path / "outputs/05_egomcq/mine/jobs/egomcq"
    (tmp_path / "submitit").mkdir()
    (tmp_path / "submitit/__init__.py").touch()  # without it Python takes the installed package, which ends at once
    (tmp_path / "submitit/local.py").write_text("import time; time.sleep(300)")
    specs = {folder: {"gpus": UUIDS[:1]}, tmp_path / "list": [], tmp_path / "word": {"gpus": 3}, tmp_path / "none": {}}
    with devices.choose_gpus(LaunchConfig()) as first:
        processes = [subprocess.Popen([sys.executable, "-m", "submitit.local", f"{job}/submitit"], cwd=tmp_path,
                                      env=os.environ | {"PYTHONSAFEPATH": ""}) for job in specs]
        for job, spec in specs.items():
            write_text(job / "spec.json", json.dumps(spec))
        (tmp_path / "none/spec.json").unlink()
        wait_for(lambda: specs.keys() <= status.local_jobs().keys())
    with devices.choose_gpus(LaunchConfig()) as second:
        assert (first.uuids, second.uuids, second.notice) == (UUIDS[:1], UUIDS[1:2], "")
    monkeypatch.setenv(devices.VISIBLE_DEVICES, "0")
    with devices.choose_gpus(LaunchConfig()) as same:  # as the caller asked, with a notice
        assert same.uuids == UUIDS[:1] and same.notice.endswith(f"80 GiB in use), taken by the job in {folder}")
    for process in processes:
        process.kill()
        process.wait()
    with devices.choose_gpus(LaunchConfig()) as alone:
        assert alone.uuids == UUIDS[:1] and alone.notice == ""


def test_a_choice_waits_for_the_one_before(machine):
    """The second choice waits until the first has started its job."""
    second = ("from egokit.jobs import devices; from egokit.config.schema import LaunchConfig\n"
              "print('ready', flush=True)\n"
              "with devices.choose_gpus(LaunchConfig()) as chosen: print(*chosen.uuids)")
    with devices.choose_gpus(LaunchConfig()):
        process = subprocess.Popen([sys.executable, "-c", second], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        assert process.poll() is None
    assert process.communicate(timeout=30)[0] == f"{UUIDS[0]}\n"


FP16 = f"{MODEL} train.precision=fp16"


@pytest.mark.parametrize("overrides, count, variable, expected", [
    (f"{FP16} launch.gpus_per_task=0", 4, None,
     "train.precision is fp16, but launch.gpus_per_task=0 hides the GPUs: set launch.gpus_per_task=1"),
    (f"{FP16} launch.gpus_per_task=1", 0, None,
     "train.precision is fp16, but this machine has no GPU. On a CPU train in bf16"),
    (f"{FP16} launch.gpus_per_task=1", 4, "",
     "train.precision is fp16, but CUDA_VISIBLE_DEVICES='' hides this machine's 4 GPUs: unset it"),
    (f"{FP16} launch.gpus_per_task=1", 4, None, "train.precision is fp16, but PyTorch"),
    (f"{FP16} launch.gpus_per_task=0 launch.cluster=slurm", 0, None,
     "train.precision is fp16, but launch.gpus_per_task=0 hides")])
def test_a_recipe_for_a_gpu_is_refused_before_a_job_is_started(
        resolve, machine, tmp_path, monkeypatch, overrides, count, variable, expected):
    smi(machine, *[4] * count)
    if variable is not None:
        monkeypatch.setenv(devices.VISIBLE_DEVICES, variable)
    run = Run(tmp_path / "02_pretrain/mine")
    with pytest.raises(ConfigError) as raised:
        egokit.submit(resolve(overrides=overrides), run, "train")
    assert expected in str(raised.value)
    assert not (run.path / "params.yaml").exists(), "a refused submission leaves nothing"
    assert not [*run.path.rglob("spec.json")]


def test_more_processes_than_gpus_are_refused(resolve, monkeypatch):
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    message = (r"launch.tasks_per_node=2, but 1 GPU is visible here: set launch.tasks_per_node=1, "
               "one process for each")
    with pytest.raises(ConfigError, match=message):
        devices.check_gpus(resolve(overrides="launch.gpus_per_task=1 launch.tasks_per_node=2"), "evaluate")
    assert devices.check_gpus(resolve(overrides=f"{FP16} launch.gpus_per_task=1"), "train") == ""
    assert devices.check_gpus(resolve(overrides="launch.gpus_per_task=0 launch.tasks_per_node=2"), "evaluate") == ""


def test_fp16_in_a_process_without_a_gpu(resolve, tmp_path):
    with pytest.raises(loop.TrainingError, match="fp16, but this process sees no GPU"):
        loop.train(resolve(overrides=FP16), None, Run(tmp_path / "run"), "pretrain", torch.device("cpu"))


@pytest.mark.slow
def test_a_job_that_was_meant_for_a_gpu_says_where_it_runs(resolve, machine, monkeypatch, capsys):
    """The submission, the log, the table of runs and metrics.json name the device.

    The rank has the caller's GPUs.
    """
    monkeypatch.setenv(devices.VISIBLE_DEVICES, UUIDS[2])
    run = Run(outputs_folder() / "tests/devices")
    config = resolve(overrides=f"{MODEL} launch.gpus_per_task=1 train.precision=bf16")
    handle = egokit.submit(config, run, "train", "pretrain")
    output = capsys.readouterr().out
    assert output.startswith("pretrain computes on the CPU: PyTorch") and "can't use this machine's 4 GPUs" in output
    assert handle.spec()["gpus"] == [UUIDS[2]]
    wait_for(lambda: len(status.processes(handle.folder)) == 2)  # the controller, which was started first, and the rank
    rank = max(status.processes(handle.folder))
    assert f"\0CUDA_VISIBLE_DEVICES={UUIDS[2]}\0".encode() in b"\0" + Path(f"/proc/{rank}/environ").read_bytes()
    device = devices.describe_device(torch.device("cpu"), "bf16")
    assert handle.wait(progress=False)["devices"] == [device]
    log = next((handle.folder / "submitit").glob("*_0_log.out")).read_text()
    assert f"plan: 8 samples = 1 process x 1 micro-batch of 8, on 1 x {device}" in log
    row, = (row for row in runs_table.job_rows() if row.run == "devices")
    assert row.device == f"1 x {device}" and row.device in runs_table.format_table([row])
