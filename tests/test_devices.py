"""Which GPUs reach a job's processes, locally and on SLURM, and what each process computes on."""
import json
import os
import sys

import pytest
import torch
from test_gpu_choice import UUIDS

from egokit.config.build import ConfigError
from egokit.config.schema import LaunchConfig
from egokit.jobs import devices, slurm, starter, worker


@pytest.mark.parametrize("callers, gpus, expected", [
    ("3", 1, "3"), ("0, 1", 1, "0, 1"), ("3", 0, ""), (None, 1, "unset"), (None, 0, ""), ("", 1, ""),
    (f"{UUIDS[2]},{UUIDS[0]}", 1, f"{UUIDS[2]},{UUIDS[0]}")])
def test_a_local_rank_gets_the_callers_gpus(tmp_path, monkeypatch, callers, gpus, expected):
    if callers is None:
        monkeypatch.delenv(devices.VISIBLE_DEVICES, raising=False)
    else:
        monkeypatch.setenv(devices.VISIBLE_DEVICES, callers)
    python = tmp_path / "it's a=b" / "python"  # a name that a shell, or env, could misread
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    executor = worker.executor(LaunchConfig(gpus_per_task=gpus, tasks_per_node=2), tmp_path, "visible")
    job = executor.submit(os.getenv, devices.VISIBLE_DEVICES, "unset")
    assert job.results() == [expected, expected]


def test_on_slurm_gpus_are_hidden_where_none_are_wanted(tmp_path):
    def setup(**launch):
        config = LaunchConfig(cluster="slurm", setup=("module load x",), **launch)
        return slurm.options(config, tmp_path, "name")["setup"]

    hidden = "export CUDA_VISIBLE_DEVICES="
    assert setup(gpus_per_task=0)[:2] == [hidden, "module load x"]  # before the user's lines, which may show GPUs again
    assert hidden not in setup(gpus_per_task=1)
    assert hidden not in setup(gpus_per_task=0, slurm={"gres": "gpu:a100:8"})
    assert hidden not in setup(gpus_per_task=0, slurm={"additional_parameters": {"gpus-per-task": 1}})
    # whole nodes, of whose GPUs sbatch knows nothing
    whole_nodes = LaunchConfig(cluster="slurm", gpus_per_task=0, setup=("unset CUDA_VISIBLE_DEVICES",))
    assert hidden not in slurm.options(whole_nodes, tmp_path, "name")["setup"] and slurm.asks_for_gpus(whole_nodes)
    with pytest.raises(ConfigError, match=r"launch.slurm.additional_parameters: expected a mapping.*got 'gpu'"):
        setup(slurm={"additional_parameters": "gpu"})


def test_a_slurm_job_does_not_inherit_the_callers_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv(devices.VISIBLE_DEVICES, "3")
    code = tmp_path / "code"
    code.mkdir()
    (code / "prints.py").write_text(
        "import json, os, sys\n"
        "open(sys.argv[1].replace('spec', 'job'), 'w').write(json.dumps(dict(os.environ)))\n")
    (code / "sbatch").write_text("")
    (code / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{code}{os.pathsep}{os.environ['PATH']}")
    for cluster, expected in (("slurm", None), ("local", "3")):
        starter.start_job("prints", tmp_path, code, LaunchConfig(cluster=cluster))
        assert json.loads((tmp_path / "job.json").read_text()).get(devices.VISIBLE_DEVICES) == expected


def test_a_rank_finds_the_gpu_that_was_chosen_for_it(monkeypatch):
    monkeypatch.setattr(devices, "gpu_count", lambda: 4)
    # CUDA counts in another order than nvidia-smi
    monkeypatch.setattr(devices, "gpu_uuid", lambda index: UUIDS[3 - index].removeprefix("GPU-"))
    assert devices.rank_device(0, [UUIDS[1], UUIDS[2]]) == torch.device("cuda", 2)
    assert devices.rank_device(1, [UUIDS[1], UUIDS[2]]) == torch.device("cuda", 1)
    assert devices.rank_device(6, []) == torch.device("cuda", 2)
    assert devices.rank_device(0, ["GPU-gone"]) == torch.device("cuda", 0)
    monkeypatch.setattr(devices, "gpu_count", lambda: 0)
    assert devices.rank_device(0, UUIDS) == torch.device("cpu")


def test_what_a_rank_computes_on(monkeypatch):
    on_cpu = devices.describe_device(torch.device("cpu"), "bf16")
    assert on_cpu.startswith("CPU") and on_cpu.endswith(" GiB, bf16")
    free = 79 * 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    alone = devices.describe_device(torch.device("cuda", 1), "fp16")
    free = 20 * 2**30
    shared = devices.describe_device(torch.device("cuda", 1), "fp16")
    assert (alone, shared) == ("NVIDIA H100, 80 GiB, fp16", "NVIDIA H100, 80 GiB (60.0 in use by others), fp16")
    assert devices.devices_text([alone, alone, shared]) == f"2 x {alone}; 1 x {shared}"


def test_processes_have_cpus_for_their_loaders(resolve):
    from egokit.config.resolve import resolve as resolve_all
    assert resolve_all("toy/pretrain", "tiny", "launch.cpus_per_task=0 data.workers=6").launch.cpus_per_task == 7
    assert resolve(overrides="launch.cpus_per_task=3 data.workers=6").launch.cpus_per_task == 3
