"""Which GPUs a job sees, takes and shares, and its messages where there are none.

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
from egokit.config.build import ConfigError, to_dict
from egokit.config.resolve import outputs_folder
from egokit.config.schema import LaunchConfig
from egokit.jobs import devices, launch, runs_table, slurm, status, worker
from egokit.model.precision import deterministic, float32_products
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
    assert hidden not in slurm.options(whole_nodes, tmp_path, "name")["setup"] and devices.asks_for_gpus(whole_nodes)
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
        launch.start_job("prints", tmp_path, code, LaunchConfig(cluster=cluster))
        assert json.loads((tmp_path / "job.json").read_text()).get(devices.VISIBLE_DEVICES) == expected


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
            chosen.claim(tmp_path)
        assert "which GPUs your other jobs have taken can't be told" in capsys.readouterr().out
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
    """A job that has just started holds no memory yet, so its claim is recorded."""
    folder = tmp_path / "outputs/05_egomcq/mine/jobs/egomcq"
    living = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "submitit", str(folder)])
    write_text(folder / "job.json", json.dumps({"job_id": str(living.pid)}))
    with devices.choose_gpus(LaunchConfig()) as first:
        first.claim(folder)
    with devices.choose_gpus(LaunchConfig()) as second:
        assert (first.uuids, second.uuids, second.notice) == (UUIDS[:1], UUIDS[1:2], "")
    monkeypatch.setenv(devices.VISIBLE_DEVICES, "0")
    with devices.choose_gpus(LaunchConfig()) as same:  # as the caller asked, with a notice
        assert same.uuids == UUIDS[:1] and same.notice.endswith(f"80 GiB in use), taken by the job in {folder}")
    living.kill()
    living.wait()
    with devices.choose_gpus(LaunchConfig()) as alone:
        assert alone.uuids == UUIDS[:1] and alone.notice == ""


def test_a_choice_waits_for_the_one_before(machine):
    """The second choice waits until the first has started its job and recorded its claim."""
    second = ("from egokit.jobs import devices; from egokit.config.schema import LaunchConfig\n"
              "print('ready', flush=True)\n"
              "with devices.choose_gpus(LaunchConfig()) as chosen: print(*chosen.uuids)")
    with devices.choose_gpus(LaunchConfig()):
        process = subprocess.Popen([sys.executable, "-c", second], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        assert process.poll() is None
    assert process.communicate(timeout=30)[0] == f"{UUIDS[0]}\n"


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


def test_processes_have_cpus_for_their_loaders(resolve):
    from egokit.config.resolve import resolve as resolve_all
    assert resolve_all("toy/pretrain", "tiny", "launch.cpus_per_task=0 data.workers=6").launch.cpus_per_task == 7
    assert resolve(overrides="launch.cpus_per_task=3 data.workers=6").launch.cpus_per_task == 3


def test_a_run_of_an_older_egokit_goes_on_with_it(resolve, tmp_path, monkeypatch, capsys):
    """The run's copy of egokit refuses unknown keys, so it gets none.

    The run's spec survives a job that can't start.
    """
    run = Run(tmp_path / "02_pretrain/old")
    config, started = resolve(overrides=MODEL), {}
    (run.path / "checkpoints").mkdir(parents=True)
    (run.path / "checkpoints/step-0000001.pt").touch()
    handle = launch.Handle(run, "pretrain")

    def refused(module, *args):
        started["config"], started["module"] = handle.spec()["config"], module
        raise launch.NotSubmitted("no")

    monkeypatch.setattr(launch, "start_job", refused)
    earlier = to_dict(config)
    del earlier["train"]["deterministic"]
    earlier["launch"]["processes"] = earlier["launch"].pop("tasks_per_node")
    earlier["data"]["tokens"] = earlier["data"].pop("max_tokens")
    earlier_spec = {"config": earlier, "action": "train", "init_sha256": ""}
    write_text(handle.folder / "spec.json", json.dumps(earlier_spec))
    (handle.folder / "code").mkdir()
    with pytest.raises(launch.NotSubmitted):
        egokit.submit(config, run, "train", "pretrain")
    assert started["config"] == earlier and started["module"] == "egokit.job" and handle.spec() == earlier_spec
    assert "the copy of egokit that it began with, which doesn't know deterministic" in capsys.readouterr().out


def test_float32_products_are_exact_or_rounded_and_put_back():
    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = now()
    for tf32, expected in ((True, ("high", True)), (False, ("highest", False))):
        with pytest.raises(KeyError), float32_products(torch.device("cuda"), tf32):
            assert now() == expected
            raise KeyError
        assert now() == before
    with float32_products(torch.device("cpu"), True):
        assert now() == before


def test_deterministic_settings_are_made_and_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def now():
        return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.backends.cuda.cudnn_sdp_enabled())

    before = now()
    with deterministic(False):
        assert now() == before and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with pytest.raises(KeyError), deterministic(True):
        assert now() == (True, False, False) and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise KeyError
    assert now() == before


def test_a_deterministic_training_is_the_same_on_a_cpu(resolve, tmp_path):
    """All operations of training have a deterministic form; GPUs run the same operations."""
    from egokit import tasks
    logs = []
    for wanted in ("true", "false"):
        config = resolve(overrides=f"{MODEL} train.precision=fp32 train.deterministic={wanted}")
        run = Run(tmp_path / wanted)
        loop.train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
        logs.append([event["loss"] for event in run.read_log() if event["kind"] == "step"])
    assert logs[0] == logs[1] and len(logs[0]) == 3
