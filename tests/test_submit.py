"""What SLURM is asked for, with its commands replaced by scripts: printed, submitted, refused."""
import os

import pytest
from conftest import MODEL, SMALL
from fake_slurm import ON_SLURM, put_into_path

import egokit
from egokit import cli
from egokit.config.build import ConfigError
from egokit.config.resolve import outputs_folder
from egokit.config.schema import LaunchConfig
from egokit.jobs import launch, slurm, starter
from egokit.notebook.open_run import open_run
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run


@pytest.fixture
def run(project, request):
    return Run(outputs_folder() / "tests" / f"jobs-{abs(hash(request.node.name))}")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    return put_into_path(tmp_path / "slurm", monkeypatch)


def test_what_is_printed_is_what_is_submitted(resolve, run, cluster):
    config = resolve(overrides=f"{MODEL} {ON_SLURM} launch.mem_gb_per_task=1.5")
    script = launch.sbatch_script(config, run)
    assert not (run.path / "jobs").exists() and not (cluster / "submitted").exists()
    handle = egokit.submit(config, run)
    assert (cluster / "submitted").read_text() == script
    assert "#SBATCH --mem=1536MB\n" in script and "--partition=main\n" in script
    assert handle.job()["job_id"] == "42" and (handle.folder / "code/egokit/jobs/worker.py").is_file()
    (cluster / "queue").write_text("42|PENDING|main|1|N/A|Priority")
    assert repr(egokit.submit(config, run)).endswith("pending (Priority, place 1 of 1)>")  # attached
    handle.cancel()
    assert (cluster / "cancelled").read_text() == "42\n" and handle.state() == "failed"
    handle.cancel()
    assert (cluster / "cancelled").read_text() == "42\n", "an ended job is left alone, because its id may be another's"
    for name in ("failures.json", "failures/42-0-rank0.txt", "progress.json"):
        write_text(handle.folder / name, "[]")
    egokit.submit(config, run)
    left = {path.name for path in handle.folder.iterdir()}
    assert not {"failures.json", "failures", "progress.json"} & left, "an earlier job's files are removed"
    assert "job.json" in left


def test_a_refused_submission_changes_nothing(resolve, run, cluster):
    """A second user of a run name must not change the params.yaml of the running job."""
    handle = egokit.submit(resolve(overrides=f"{MODEL} {ON_SLURM}"), run)
    (cluster / "queue").write_text("42|RUNNING|main|1|N/A|None")
    kept = [(run.path / "params.yaml").read_text(), (handle.folder / "spec.json").read_text()]
    overrides = f"{SMALL} {MODEL} {ON_SLURM} optim.lr=0.5"
    config = open_run("toy/pretrain", "tiny", overrides, run.path.name, notebook="tests").config
    with pytest.raises(ConfigError, match=r"other parameters \(optim.lr: 0.001 -> 0.5\)"):
        egokit.submit(config, run)
    assert [(run.path / "params.yaml").read_text(), (handle.folder / "spec.json").read_text()] == kept
    (cluster / "queue").write_text("")
    egokit.submit(config, run)  # the first job has ended without leaving anything
    assert "lr: 0.5" in (run.path / "params.yaml").read_text()


def test_print_in_the_shell_writes_nothing(project, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM here
    command = ["submit", "toy/pretrain", "--site", "tiny", "--run", "never", "--overrides"]
    cli.main([*command, ON_SLURM.replace("gpus_per_task=0", "gpus_per_task=1"), "--print"])
    output = capsys.readouterr().out
    folder = outputs_folder() / "02_pretrain/never"
    assert output.startswith("#!/bin/bash") and "#SBATCH --gpus-per-node=2\n" in output
    assert f"{folder}/jobs/pretrain/code" in output
    assert not folder.exists()
    for overrides, flag, expected in (("", "--print", "launch.cluster of site 'tiny' is local"),
                                      (ON_SLURM, "--wait", "this machine has no sbatch")):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*command, overrides, flag])
        assert expected in capsys.readouterr().err


def test_a_refusal_shows_slurms_message(resolve, run, cluster):
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: nope' >&2; exit 1\n")
    message = r"^train could not be submitted to slurm:\nsbatch: error: invalid partition: nope$"
    with pytest.raises(launch.NotSubmitted, match=message):
        egokit.submit(resolve(overrides=f"{MODEL} {ON_SLURM}"), run)
    assert launch.Handle(run, "train").state() == "new"


def test_packages_that_the_caller_has_by_pythonpath_are_the_jobs_too_after_its_copy_of_egokit(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"/opt/site{os.pathsep}/home/me/lib")
    local = LaunchConfig(cluster="local")
    assert starter.starter_environment(tmp_path, local)["PYTHONPATH"] == f"{tmp_path}:/opt/site:/home/me/lib"
    monkeypatch.setenv("PYTHONPATH", f":lib{os.pathsep}")  # as export PYTHONPATH=$PYTHONPATH:lib gives it
    assert starter.starter_environment(tmp_path, local)["PYTHONPATH"] == f"{tmp_path}:{os.path.abspath('lib')}"
    monkeypatch.delenv("PYTHONPATH")
    assert starter.starter_environment(tmp_path, local)["PYTHONPATH"] == str(tmp_path)


def test_the_script_asks_for_what_the_site_says(tmp_path):
    config = LaunchConfig(cluster="slurm", nodes=2, tasks_per_node=4, cpus_per_task=6, timeout_minutes=90,
                          mem_gb_per_task=20, partition="gpu", account="lab", qos="long", constraint="a100&ib",
                          setup=("module load cuda", "export A='b c'"), slurm={"exclude": "n7"})
    lines = slurm.script(config, tmp_path / "job", "name").splitlines()
    options = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {"nodes=2", "ntasks-per-node=4", "cpus-per-task=6", "gpus-per-node=4", "mem=81920MB", "time=90",
            "partition=gpu", "account=lab", "qos=long", "constraint='a100&ib'", "exclude=n7", "job-name=name",
            "signal=USR2@120"} <= options
    assert not any(option.startswith("exclusive") for option in options)
    order = ["module load cuda", "export A='b c'",
             f"export PYTHONPATH={tmp_path}/job/code${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1"]
    assert [line for line in lines if line in order] == order
    assert not (tmp_path / "job").exists()
    whole = slurm.options(LaunchConfig(gpus_per_task=0, exclusive=True), tmp_path, "name")
    assert whole["exclusive"] is True and whole["mem"] == "0"
    assert not {"gpus_per_node", "partition", "account"} & whole.keys()
    shard = slurm.one_process(LaunchConfig(cluster="slurm", nodes=2, tasks_per_node=4, gpus_per_task=0, exclusive=True,
                                           slurm={"gres": "gpu:4", "exclude": "n7"}))
    assert shard == LaunchConfig(cluster="slurm", gpus_per_task=0, slurm={"exclude": "n7"})
    assert slurm.one_process(LaunchConfig(gpus_per_task=0)).gpus_per_task == 1, (
        "jobs that a notebook's local job submits inherit what it sees")


@pytest.mark.parametrize("override, message", [
    ("launch.setup=module", r"launch.setup \(in overrides\): expected a list, got 'module'"),
    ("launch.setup=[1]", r"launch.setup \(in overrides\): expected a valid string, got 1"),
    ("launch.partition=[a,b]", r"launch.partition \(in overrides\): expected a valid string"),
    ("launch.exclusive=2", "launch.exclusive .*expected a valid boolean"),
    ("launch.gpus_per_task=4", r"launch.gpus_per_task \(in overrides\): expected 1 or less, got 4"),
    ("launch.nodes=0", "launch.nodes .*expected 1 or more, got 0"),
    ("launch.mem_gb_per_task=-1", "launch.mem_gb_per_task .*expected 0 or more"),
    ("launch.partitions=a", "unknown key 'launch.partitions'.*did you mean 'partition'"),
    ("launch.slurm.partition=a", r"launch.slurm.partition: set launch.partition instead"),
    ("launch.slurm.ntasks_per_node=2", r"launch.slurm.ntasks_per_node: set launch.tasks_per_node instead"),
    ("launch.slurm.cpus_per_task=2", r"launch.slurm.cpus_per_task: set launch.cpus_per_task instead"),
    ("launch.slurm.exclud=a", "unknown key 'launch.slurm.exclud': did you mean 'exclude'.*additional_parameters"),
    ("launch.slurm.gpus_per_task=1 launch.gpus_per_task=1",
     "launch.slurm.gpus_per_task: launch.gpus_per_task asks for GPUs already; set launch.gpus_per_task to 0"),
    ("launch.slurm.gres=gpu:a100:4 launch.gpus_per_task=1", "launch.slurm.gres: launch.gpus_per_task asks"),
])
def test_a_wrong_site_is_refused_before_a_job(resolve, run, override, message):
    with pytest.raises(ConfigError, match=message):
        launch.sbatch_script(resolve(overrides=f"{ON_SLURM} {override}"), run)
