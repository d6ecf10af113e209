"""`egokit sweep`: the grid and its names, what is refused, one array on SLURM, and jobs of this machine."""
import json
import os
import re
import subprocess

import pytest
from conftest import MODEL, SMALL
from fake_slurm import ON_SLURM, asked, put_into_path

from egokit import cli
from egokit.config.build import ConfigError
from egokit.jobs import grid, launch, queue, sweep
from egokit.jobs.handle import Handle, JobFailed
from egokit.runs.run_folder import Run
from egokit.runs.run_set import find_runs, read_sweep

HERE = f"{SMALL} {MODEL}"
OVER = ["optim.lr=1e-4,3e-4", "seed=0,1"]


def made(over, overrides=HERE, name="sw", **changes):
    """A sweep's grid on the tiny data set."""
    return grid.make("toy/pretrain", "tiny", overrides, over, name, **changes)


def test_every_combination_is_a_run_whose_name_says_its_values(project):
    runs = made(OVER)
    assert [point.run for point in runs.points] == ["sw-lr0.0001-seed0", "sw-lr0.0001-seed1", "sw-lr0.0003-seed0",
                                                    "sw-lr0.0003-seed1"]
    assert [(point.config.optim.lr, point.config.seed) for point in runs.points] == [
        (1e-4, 0), (1e-4, 1), (3e-4, 0), (3e-4, 1)]
    assert all(point.config.train.batch_size == 8 for point in runs.points), "what is given for all holds for all"
    assert (runs.action, runs.section, runs.notebook) == ("train", "pretrain", "02_pretrain")
    assert made({"optim.lr": [1e-4, 3e-4], "seed": (0, 1)}).points == runs.points, "the same from Python"


@pytest.mark.parametrize("values, name", [
    ({"optim.betas": [0.9, 0.98]}, "s-betas0.9-0.98"), ({"train.precision": "bf16"}, "s-precision_bf16"),
    ({"optim.lr": 1e-5, "model.lr": -1.5}, "s-optim.lr1e-05-model.lr_-1.5"), ({"task.level2": 3}, "s-level2_3"),
    ({"data.flip": True}, "s-flip_true"), ({"optim.lr": 1e20}, "s-lr1e20")])
def test_names(values, name):
    assert grid.run_name("s", values) == name


def test_a_value_that_no_folder_can_hold_gets_a_hash():
    names = {grid.run_name("s", {"init": value}) for value in ("a/b", "a-b", "a b", "../a", "x" * 90, "x" * 91, "")}
    assert len(names) == 7 and "s-init_a-b" in names
    assert all(len(name) < 50 and "/" not in name and " " not in name for name in names)


@pytest.mark.parametrize("text, values", [
    ("seed=0,1,2", [0, 1, 2]), ("optim.betas=[0.9, 0.98],[0.9, 0.999]", [[0.9, 0.98], [0.9, 0.999]]),
    ("train.precision=fp32, bf16", ["fp32", "bf16"]), ("init=hf:a/b,'x,y'", ["hf:a/b", "x,y"]), ("seed=7", [7])])
def test_values_are_yaml(text, values):
    assert grid.read_over([text]) == {text.partition("=")[0]: values}


@pytest.mark.parametrize("over, overrides, message", [
    (["seed"], "", "'seed': write section.key=value,value"), (["seed="], "", "write section.key=value,value"),
    (["seed=0,1", "seed=2"], "", "--over seed is given twice"), (["seed=[0,1"], "", "each YAML"),
    (["seed=3,0,3"], "", "--over seed: 3 is given twice"), ([], "", "a sweep varies at least one key"),
    (["optim.lrr=1,2"], "", r"optim.lrr' \(in --over\): did you mean 'lr'"),
    (["optim.lr=fast,1e-4"], "", r"optim.lr \(in --over\): expected .*'fast'"),
    (["optim.lr=1e-4,0.0001"], "", "optim.lr=0.0001 and optim.lr=0.0001 are the same run"),
    (["seed=0,1"], "seed=3", "seed stands in --over and in --overrides"),
    (["model.fused=1,2"], "", "model.fused: this key is called model.num_fused_layers now"),
    ({"optim": [{"lr": 1e-4}, {"lr": 3e-4}]}, "", "--over optim: a section of keys"), (None, "", "over=None: expected"),
    ({3: [1]}, "", "over={3.*expected"), ("seed=0,0", "", "0 is given twice"),
    (["task=ek100,egomcq"], "", "of one task"), (["launch.nodes=1,2"], "", "launch.nodes: this key changes where"),
    (["data.workers=0,1"], "", "data.workers: this key changes where"),
    ([f"seed={','.join(map(str, range(501)))}"], "", "501 runs, expected 500 at most"),
    (["seed=0,1"], "launch.tasks_per_node=9", "sw-seed0: train.batch_size.*; correct it"),
])
def test_a_mistake_is_told_before_anything_is_made(project, over, overrides, message):
    before = sorted((project / "outputs").rglob("*"))
    with pytest.raises(ConfigError, match=message):
        sweep.submit_sweep("toy/pretrain", "tiny", f"{HERE} {overrides}", "sw", over)
    assert sorted((project / "outputs").rglob("*")) == before


def test_a_mistake_on_the_command_line_is_one_line(project, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sweep", "toy/pretrain", "--site", "tiny", "--over", "optim.lrr=1,2"])
    error = capsys.readouterr().err
    assert error.startswith("egokit: unknown key 'optim.lrr'") and error.count("\n") == 1


@pytest.fixture
def cluster(project, tmp_path, monkeypatch):
    """SLURM's commands, and an outputs folder of this test's own."""
    monkeypatch.setenv("EGOKIT_OUTPUTS", str(tmp_path / "outputs"))
    return put_into_path(tmp_path / "slurm", monkeypatch)


def submitted(capsys, over=(*OVER,), overrides=""):
    """Call the command; return what it prints."""
    cli.main(["sweep", "toy/pretrain", "--site", "tiny", "--run", "sw", "--overrides",
              f"{HERE} {ON_SLURM} {overrides}", *(part for one in over for part in ("--over", one))])
    return capsys.readouterr().out


def test_one_array_holds_the_runs_and_a_second_call_submits_what_is_left(cluster, tmp_path, capsys):
    told = submitted(capsys)
    folder = tmp_path / "outputs/02_pretrain"
    names = ["sw-lr0.0001-seed0", "sw-lr0.0001-seed1", "sw-lr0.0003-seed0", "sw-lr0.0003-seed1"]
    assert "4 runs of optim.lr x seed: 4 new" in told and "4 submitted as job array 42" in told
    script = (cluster / "submitted").read_text()
    assert "#SBATCH --array=0-3%4\n" in script and "--job-name=egokit-sw\n" in script
    jobs = [folder / name / "jobs/pretrain" for name in names]
    for place, job in enumerate(jobs):
        assert json.loads((job / "job.json").read_text())["job_id"] == f"42_{place}"
        assert (job / f"submitit/42_{place}_submitted.pkl").is_file() and (job / "code/egokit/jobs/worker.py").is_file()
        assert json.loads((job / "spec.json").read_text())["config"]["seed"] == place % 2
    # bash does what the script says, for the third of them; srun and the judge of failures are replaced
    for name in ("srun", "python"):
        (cluster / name).write_text(f'#!/bin/sh\necho {name} "$@" path $PYTHONPATH\n[ {name} != srun ] || exit 3\n')
        (cluster / name).chmod(0o755)
    lines = [line.replace(os.sys.executable, "python") for line in script.splitlines()]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env=os.environ | {
        "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "1", "PYTHONPATH": "/lib"},
        capture_output=True, text=True)
    log = (jobs[2] / "submitit/42_2_0_log.out").read_text().splitlines()
    assert done.returncode == 3 and not done.stdout and len(log) == 2
    assert log[0].startswith(f"srun --unbuffered --output {jobs[2]}/submitit/%A_%a_%t_log.out --error ")
    assert log[0].endswith(f"submitit.core._submit {jobs[2]}/submitit path {jobs[2]}/code:/lib")
    assert log[1].startswith(f"python -m egokit.jobs.requeue {jobs[2]} ")

    # one has finished, one runs, one waits, one has failed: only that one is submitted again, with two new ones
    Run(folder / names[0]).write_metrics("pretrain", {"finished": True, "score": "m", "m": 1.0})
    (cluster / "queue").write_text("42_1|RUNNING|main|1|N/A|None\n42_2|PENDING|main|1|N/A|Priority")
    states = [Handle(Run(folder / name), "pretrain").state() for name in names]
    assert states == ["finished", "running", "pending", "failed"]
    told = submitted(capsys, (OVER[0], "seed=0,1,2"))
    assert "6 runs of optim.lr x seed: 1 finished, 1 running already, 1 queued already, 1 failed before, submitted " \
        "again, 2 new" in told and "3 submitted as job array 42" in told
    script = (cluster / "submitted").read_text()
    assert "--array=0-2%3\n" in script and names[3] in script and "seed2" in script and names[1] not in script
    assert len(read_sweep(folder / "sw")["runs"]) == 6
    assert [run.path.name for run in find_runs("02_pretrain/sw")][:2] == names[:2], "a sweep's name stands for its runs"

    # another recipe is refused in words, and so are other keys
    for over, overrides, message in (((*OVER,), "optim.weight_decay=0.3", "optim.weight_decay: .* -> 0.3"),
                                     (("seed=0,1",), "", "it varies optim.lr, seed, this one seed")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["sweep", "toy/pretrain", "--site", "tiny", "--run", "sw", "--overrides",
                      f"{HERE} {ON_SLURM} {overrides}", *(part for one in over for part in ("--over", one))])
        error = capsys.readouterr().err
        assert re.search(message, error) and "made with another recipe" in error, error


def test_slurm_is_asked_as_often_for_many_jobs_as_for_one(cluster, capsys):
    calls = []
    for count in (1, 6):
        over = ["optim.lr=1e-4", f"seed={','.join(map(str, range(count)))}"]
        submitted(capsys, over)
        (cluster / "queue").write_text("\n".join(f"42_{place}|PENDING|main|1|N/A|Priority" for place in range(6)))
        before = len(asked(cluster))
        submitted(capsys, over)
        calls.append(len(asked(cluster)) - before)
    assert calls == [6, 6], "check, record and show, each with a look at the queue"


def test_no_run_at_once_is_a_mistake(project):
    with pytest.raises(ConfigError, match="side_by_side=0: expected"):
        sweep.submit_sweep("toy/pretrain", "tiny", HERE, "sw", ["seed=0,1"], side_by_side=0)


def test_nothing_is_submitted_where_all_have_finished(cluster, tmp_path, capsys):
    for seed in (0, 1):
        Run(tmp_path / f"outputs/02_pretrain/sw-seed{seed}").write_metrics("pretrain", {"finished": True})
    told = submitted(capsys, ["seed=0,1"])
    assert "2 runs of seed: 2 finished\n" in told and not (cluster / "submitted").exists()


def test_a_refused_array_leaves_no_job(cluster, tmp_path, capsys):
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: no such partition' >&2; exit 1\n")
    with pytest.raises(SystemExit, match="2"):
        submitted(capsys, ["seed=0,1"])
    assert "no such partition" in capsys.readouterr().err
    for seed in (0, 1):
        assert Handle(Run(tmp_path / f"outputs/02_pretrain/sw-seed{seed}"), "pretrain").state() == "new"


def test_print_shows_the_script_and_makes_nothing(cluster, tmp_path, capsys):
    cli.main(["sweep", "toy/pretrain", "--site", "tiny", "--run", "sw", "--over", "seed=0,1", "--print",
              "--overrides", f"{ON_SLURM} launch.slurm={{array_parallelism: 1}}"])
    told = capsys.readouterr().out
    assert told.startswith("# sw-seed0  seed=0\n# sw-seed1  seed=1\n#!/bin/bash") and "--array=0-1%1\n" in told
    assert not (tmp_path / "outputs").exists()


def test_the_status_of_one_job_of_an_array(cluster):
    (cluster / "queue").write_text("7_0|RUNNING|main|1|N/A|None\n7_1|PENDING|main|1|N/A|Priority\n"
                                   "8_4|PENDING|main|1|N/A|Priority")
    statuses = queue.job_statuses(["7_0", "7_1", "7_2", "8", "7"])
    assert {job: one.state for job, one in statuses.items()} == {
        "7_0": "running", "7_1": "pending", "8": "pending", "7": "running"}


class Job:
    """A job of this machine that ends, as it should, after some looks."""
    alive, most = 0, 0

    def __init__(self, run, looks):
        self.run, self.looks, self.why = run, looks, "boom" if run.endswith("seed1") else ""
        Job.alive += 1
        Job.most = max(Job.most, Job.alive)

    def job(self):
        return {"cluster": "local", "job_id": "1"}

    def metrics(self):
        return None if self.looks > 0 or self.why else {"score": "mAP", "mAP": 12.34}

    def status(self, statuses):
        self.looks -= 1
        Job.alive -= self.looks == 0
        return ("running", "") if self.looks > 0 else ("failed", self.why) if self.why else ("finished", "")


@pytest.mark.parametrize("abreast", [1, 2, 9])
def test_on_this_machine_jobs_run_so_many_at_once_and_one_that_fails_stops_no_other(project, monkeypatch, tmp_path,
                                                                                    capsys, abreast):
    monkeypatch.setenv("EGOKIT_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(sweep, "POLL", 0)
    Job.alive = Job.most = 0
    order = []

    def submit(config, run, action, section):
        order.append(run.path.name)
        if config.seed == 3:
            raise launch.NotSubmitted("no room")
        return Job(run.path.name, 1 + config.seed % 2)
    monkeypatch.setattr(launch, "submit", submit)
    done = sweep.submit_sweep("toy/pretrain", "tiny", HERE, "sw", {"seed": [0, 1, 2, 3, 4]}, side_by_side=abreast)
    assert order == [f"sw-seed{seed}" for seed in range(5)] and Job.most == min(abreast, 4) and not Job.alive
    assert done.failed == {"sw-seed1": "boom", "sw-seed3": "no room"} and len(done.ended) == 5
    told = capsys.readouterr().out
    assert "sw-seed1: failed: boom\n" in told and "sw-seed4: finished, mAP 12.3\n" in told
    with pytest.raises(JobFailed, match=r"2 of 5 runs have no result(.|\n)*sw-seed3: no room"):
        done.wait()
    with pytest.raises(SystemExit, match="1"):
        cli.main(["sweep", "toy/pretrain", "--site", "tiny", "--run", "sw", "--over", "seed=0,1", "--overrides", HERE])
