"""Jobs on SLURM: what SLURM is asked for, the status of a job, and the table of all runs.

SLURM's commands are replaced by scripts.
"""
import json
import os
import sys
import threading
import time

import pytest
from conftest import MODEL, SMALL
from test_train import wait_for

import egokit
from egokit import cli
from egokit.config.build import ConfigError
from egokit.config.resolve import outputs_folder
from egokit.config.schema import LaunchConfig
from egokit.jobs import launch, requeue, runs_table, slurm, status
from egokit.jobs.progress import ProgressFile, read_progress_file
from egokit.notebook.open_run import open_run
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run

# prints the lines of the file `queue`, one "%F|%T|%P|%Q|%S|%r" for each job, that -j, -t and -p select; appends its
# arguments to the file `asked`
SQUEUE = """#!{python} -IS
import sys
folder, arguments = {folder!r}, sys.argv[1:]
open(folder + "/asked", "a").write(" ".join(arguments) + "\\n")
given = dict(zip(arguments, arguments[1:]))
assert given["-o"] == "%F|%T|%P|%Q|%S|%r" and "-h" in arguments
lines = [line.split("|") for line in open(folder + "/queue").read().splitlines()]
if lines == [["away"]]:
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
jobs = given["-j"].split(",") if "-j" in given else None
shown = [line for line in lines if (jobs is None or line[0] in jobs) and line[1] == given.get("-t", line[1])
         and ("-p" not in given or set(given["-p"].split(",")) & set(line[2].split(",")))]
if jobs and len(jobs) == 1 and not shown:
    sys.exit("slurm_load_jobs error: Invalid job id specified")
print(*map("|".join, shown), sep="\\n")
"""
SBATCH = """#!/bin/sh
cp "$1" {folder}/submitted && echo Submitted batch job 42
"""
SCANCEL = """#!/bin/sh
echo "$@" >> {folder}/cancelled; : > {folder}/queue
"""
ON_SLURM = "launch.cluster=slurm launch.gpus_per_task=0 launch.partition=main"


@pytest.fixture
def run(project, request):
    return Run(outputs_folder() / "tests" / f"jobs-{abs(hash(request.node.name))}")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Put replacements of SLURM's commands into PATH; return their folder."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("squeue", SQUEUE), ("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(python=sys.executable, folder=str(folder)))
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def asked(cluster):
    """Return the arguments of each call of squeue."""
    return (cluster / "asked").read_text().splitlines() if (cluster / "asked").exists() else []


QUEUE = """\
1|RUNNING|main|50|2026-01-01T10:00:00|None
2|PENDING|main|70|N/A|Resources
3|PENDING|main,high|60|2026-01-02T03:04:05|Priority
4|PENDING|high|90|N/A|Priority
5|PENDING|main|70|N/A|Dependency
6|COMPLETING|main|50|2026-01-01T10:00:00|None
7|PENDING|main|1|N/A|JobArrayTaskLimit
7|RUNNING|main|1|2026-01-01T10:00:00|None
8|PENDING|other|999|N/A|None
"""


def test_statuses_have_reasons_positions_and_starts(cluster):
    (cluster / "queue").write_text(QUEUE)
    # 5 was submitted later; 3 waits for main, too; 7 has a task left
    assert status.job_statuses(["2"]) == {"2": ("pending", "Resources, 1st of 4")}
    assert len(asked(cluster)) == 2
    assert status.job_statuses(["1", "3", "4", "5", "6", "7", "9"]) == {
        "1": ("running", ""), "3": ("pending", "Priority, 4th of 5, may start 2026-01-02 03:04:05"),
        "4": ("pending", "Priority, 1st of 2"), "5": ("pending", "Dependency, 2nd of 4"), "6": ("running", ""),
        "7": ("running", "")}
    assert len(asked(cluster)) == 4  # two calls for all seven
    assert status.job_statuses(["8"])["8"].detail == "1st of 1"
    assert status.job_statuses(["9"]) == status.job_statuses([]) == {}
    assert [status.ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"]
    assert [status.duration(seconds) for seconds in (7, 61, 3599, 7260, 90000)] == [
        "7 s", "1 min", "1 h 0 min", "2 h 1 min", "1 d 1 h"]


def made(run, section="pretrain", action="train", **job):
    """Write a job's folder as submit leaves it; return its handle."""
    handle = launch.Handle(run, section)
    (handle.folder / "submitit").mkdir(parents=True)
    write_text(handle.folder / "spec.json", json.dumps({"action": action}))
    if job:
        write_text(handle.folder / "job.json", json.dumps(job))
    return handle


STEP = {"kind": "step", "step": 40, "steps": 200, "eta_s": 4000, "loss": 3.0, "clips_per_s": 9, "data_s": 1,
        "step_s": 4}


def test_a_handle_follows_its_job(cluster, tmp_path):
    run = Run(tmp_path / "outputs/02_pretrain/mine")
    assert launch.Handle(run, "pretrain").status() == ("new", "")
    assert repr(launch.Handle(run, "pretrain")).endswith("mine: new>")
    handle = made(run, cluster="slurm", job_id="3")
    (cluster / "queue").write_text(QUEUE)
    assert handle.state() == "pending" and handle.alive()
    assert repr(handle) == ("<pretrain of 02_pretrain/mine: "
                            "pending (Priority, 4th of 5, may start 2026-01-02 03:04:05)>")
    (cluster / "queue").write_text("3|RUNNING|main|60|N/A|None")
    assert repr(handle).endswith("mine: running>")
    run.log(STEP)
    run.log({"kind": "extract", "step": 1, "steps": 2})  # of another section
    assert repr(handle).endswith("mine: running (step 40 of 200, 1 h 7 min left)>")
    (cluster / "queue").write_text("away")
    assert handle.state() == "unknown" and "Unable to contact" in repr(handle)
    assert handle.alive(), "an unknown state must not start a second copy"
    (cluster / "queue").write_text("")
    cancelled = "slurmstepd: error: *** JOB 3 ON node1 CANCELLED AT noon ***"
    (handle.folder / "submitit/3_0_log.err").write_text(f"{cancelled}\nsrun: forcing job termination\n")
    assert handle.status() == ("failed", cancelled) and not handle.alive()
    (handle.folder / "submitit/3_1_log.err").write_text(
        "Traceback (most recent call last):\n  File\n[rank1]: egokit.train.loop.TrainingError: no\n"
        "srun: Force Terminated StepId=3.0\n")
    assert handle.status() == ("failed", "[rank1]: egokit.train.loop.TrainingError: no")
    run.write_metrics("pretrain", {"finished": True})
    assert handle.status() == ("finished", "")


# the end of an attempt's log, of a rank that lost its peer (an error raised in a handler) and of one that failed itself
LOST = ("Traceback (most recent call last):\n  File\ntorch.distributed.DistNetworkError: no\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n  File\nRuntimeError: could not leave the group\n")
OWN = "[rank1]: Traceback (most recent call last):\n[rank1]:   File\n[rank1]: ValueError: of the second attempt\n"


def test_the_last_attempt_says_why_a_job_failed(tmp_path):
    """All attempts write to one file; rank 1 lost its peer first, and failed itself later."""
    handle = made(Run(tmp_path / "nb/mine"), cluster="slurm", job_id="3")
    for rank, text in enumerate((OWN.replace("second", "first") + LOST, LOST + OWN, LOST + LOST)):
        (handle.folder / f"submitit/3_{rank}_log.err").write_text(f"starts\n{text}srun: error\n")
    assert handle.log_tail(2).splitlines()[1] == "[rank1]: ValueError: of the second attempt"
    assert status.failure_reason(handle.folder) == "[rank1]: ValueError: of the second attempt"
    ranks = LOST.replace("\n", "\n[rank0]: ")
    assert [requeue.last_error(text) for text in ("none", OWN + "x\n" + LOST, "x\n" + ranks)] == ["", LOST, ranks]


def test_without_squeue_and_on_another_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    handle = made(Run(tmp_path / "nb/one"), cluster="slurm", job_id="3")
    assert handle.status() == ("unknown", "this machine has no squeue") and handle.alive()
    handle = made(Run(tmp_path / "nb/two"), cluster="local", job_id="3", host="elsewhere")
    assert handle.status() == ("unknown", "was started on elsewhere: ask there") and not handle.alive()


def test_wait_shows_the_queue_then_the_steps(cluster, tmp_path, capsys):
    run = Run(tmp_path / "02_pretrain/mine")
    handle = made(run, cluster="slurm", job_id="3")
    (cluster / "queue").write_text(QUEUE)

    def run_job():
        wait_for(lambda: len(asked(cluster)) >= 4)
        run.log(STEP)
        write_text(cluster / "queue", "3|RUNNING|main|60|N/A|None")
        before = len(asked(cluster))
        wait_for(lambda: len(asked(cluster)) >= before + 2)
        write_text(cluster / "queue", "")  # the job has left the queue; its files show a moment later
        before = len(asked(cluster))
        wait_for(lambda: len(asked(cluster)) > before)
        run.write_metrics("pretrain", {"finished": True, "loss": 1.0})
    thread = threading.Thread(target=run_job)
    thread.start()
    assert handle.wait(poll=0.02) == {"finished": True, "loss": 1.0}
    thread.join()
    output = capsys.readouterr().out
    assert output.index("pretrain pending: Priority, 4th of 5") < output.index("| 40/200 [")
    assert "pending" not in output[output.index("| 40/200 ["):]


def test_an_evaluation_reports_its_own_batches_not_the_steps_of_its_runs_training(cluster, tmp_path, capsys):
    run = Run(tmp_path / "03_ek100/mine")
    run.log(STEP)
    handle = made(run, "zeroshot", "evaluate", cluster="slurm", job_id="3")
    write_text(cluster / "queue", "3|RUNNING|main|60|N/A|None")
    assert handle.progress() == {}
    report = ProgressFile(handle.folder, every=0)

    def run_job():
        for done in (0, 1, 7):
            before = len(asked(cluster))
            wait_for(lambda before=before: len(asked(cluster)) >= before + 2)
            report(done, 7)
        run.write_metrics("zeroshot", {"finished": True, "mAP": 1.0})
    thread = threading.Thread(target=run_job)
    thread.start()
    handle.wait(poll=0.02)
    thread.join()
    output = capsys.readouterr().out
    assert output.index("zeroshot starts") < output.index("| 7/7 [") and "40/200" not in output and "loss" not in output
    assert handle.progress()["step"] == handle.progress()["steps"] == 7
    handle.wait()
    assert capsys.readouterr().out == "", "the job had finished before"


def test_progress_is_written_now_and_then_and_anew_at_each_start(tmp_path):
    report = ProgressFile(tmp_path, every=60)
    for done in (0, 1):
        report(done, 2)
    assert read_progress_file(tmp_path)["step"] == 0
    report(2, 2)
    assert read_progress_file(tmp_path)["step"] == 2 and read_progress_file(tmp_path)["eta_s"] == 0
    ProgressFile(tmp_path)
    assert not read_progress_file(tmp_path)["steps"]


def test_a_job_that_is_gone_for_good_fails_the_wait(cluster, tmp_path):
    handle = made(Run(tmp_path / "02_pretrain/mine"), cluster="slurm", job_id="3")
    with pytest.raises(launch.JobFailed, match="ended without a result"):
        handle.wait(progress=False, poll=0.001)
    assert len(asked(cluster)) == 2


def test_what_is_printed_is_what_is_submitted(resolve, run, cluster):
    config = resolve(overrides=f"{MODEL} {ON_SLURM} launch.mem_gb_per_task=1.5")
    script = launch.sbatch_script(config, run)
    assert not (run.path / "jobs").exists() and not (cluster / "submitted").exists()
    handle = egokit.submit(config, run)
    assert (cluster / "submitted").read_text() == script
    assert "#SBATCH --mem=1536MB\n" in script and "--partition=main\n" in script
    assert handle.job()["job_id"] == "42" and (handle.folder / "code/egokit/jobs/worker.py").is_file()
    (cluster / "queue").write_text("42|PENDING|main|1|N/A|Priority")
    assert repr(egokit.submit(config, run)).endswith("pending (Priority, 1st of 1)>")  # attached
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
    config, _ = open_run("tests", "toy/pretrain", "tiny", f"{SMALL} {MODEL} {ON_SLURM} optim.lr=0.5", run.path.name)
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
    order = ["module load cuda", "export A='b c'", f"export PYTHONPATH={tmp_path}/job/code PYTHONSAFEPATH=1"]
    assert [line for line in lines if line in order] == order
    assert not (tmp_path / "job").exists()
    whole = slurm.options(LaunchConfig(gpus_per_task=0, exclusive=True), tmp_path, "name")
    assert whole["exclusive"] is True and whole["mem"] == "0"
    assert not {"gpus_per_node", "partition", "account"} & whole.keys()
    shard = slurm.one_process(LaunchConfig("slurm", nodes=2, tasks_per_node=4, gpus_per_task=0, exclusive=True,
                                           slurm={"gres": "gpu:4", "exclude": "n7"}))
    assert shard == LaunchConfig("slurm", gpus_per_task=0, slurm={"exclude": "n7"})
    assert slurm.one_process(LaunchConfig(gpus_per_task=0)).gpus_per_task == 1, (
        "jobs that a notebook's local job submits inherit what it sees")


@pytest.mark.parametrize("override, message", [
    ("launch.setup=module", r"launch.setup \(in overrides\): expected a list of str, got 'module'"),
    ("launch.setup=[1]", r"launch.setup \(in overrides\): expected str, got 1"),
    ("launch.partition=[a,b]", r"launch.partition \(in overrides\): expected str"),
    ("launch.exclusive=2", "launch.exclusive .*expected bool"),
    ("launch.gpus_per_task=4", r"launch.gpus_per_task \(in overrides\): 4: known: 0, 1"),
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


def notebooks(outputs):
    """Write jobs of two notebooks each, with their results, over an earlier run's results."""
    for name, number, results in (
            ("queued", "3", ()),
            ("done", "9", ("05_egomcq/done/notebook.ipynb", "03_ek100/done/notebook.ipynb")),
            ("stopped", "9", ("05_egomcq/stopped/notebook.ipynb", "03_ek100/stopped/notebook.failed.ipynb")),
            ("cancelled", "9", ())):
        folders = [outputs / book / name for book in ("05_egomcq", "03_ek100")]
        for folder in folders:
            write_text(folder / "notebook.ipynb", "of an earlier job")
            write_text(folder / "notebook.failed.ipynb", "of a still earlier one")
            message = f"{folder.parent.name}.ipynb, cell In[4] (x): ValueError: no\nthe executed notebook: …\n"
            write_text(folder / "notebook.log", f"2026-01-01 10:00:00,123 {message}")
        batch = folders[0] / "batch"
        times = {f"{folder.parent.name}/{name}": runs_table.result_times(folder) for folder in folders}
        write_text(batch / "spec.json", json.dumps({"before": times}))
        write_text(batch / "job.json", json.dumps({"cluster": "slurm", "job_id": number}))
        write_text(batch / "submitit/9_0_log.err", "slurmstepd: error: *** JOB 9 ON node1 CANCELLED AT noon ***\n")
        for path in results:
            write_text(outputs / path, "of this job")


def test_the_table_of_runs(cluster, tmp_path, capsys):
    (cluster / "queue").write_text(QUEUE)
    for number, name in enumerate(("running", "waits", "gone")):
        made(Run(tmp_path / "02_pretrain" / name), cluster="slurm", job_id=str((1, 3, 9)[number]))
    run = Run(tmp_path / "02_pretrain/running")
    run.log({"kind": "validation", "step": 20, "steps": 200, "best": True, "ensemble_intra": 41.25})
    run.log(STEP)
    done = made(Run(tmp_path / "03_ek100/mine"), "zeroshot", "evaluate", cluster="local", job_id="1", host="elsewhere")
    done.run.write_metrics("zeroshot", {"finished": True, "mAP": 26.0})
    torn = made(Run(tmp_path / "05_egomcq/torn"), "egomcq", "evaluate", cluster="slurm", job_id="2")
    (torn.run.path / "metrics.json").write_text("{")
    notebooks(tmp_path)
    specs = sorted([*tmp_path.glob("*/*/jobs/*/spec.json"), *tmp_path.glob("*/*/batch/spec.json")])
    for age, spec in enumerate(specs):
        os.utime(spec, (time.time() - 3600 * (age + 1),) * 2)
    rows = {f"{row.notebook}/{row.run}": runs_table.cells(row)[2:7] for row in runs_table.job_rows(tmp_path)}
    notebook_rows = {run.removeprefix("05_egomcq/"): rows.pop(run)[:3] for run in list(rows)
                     if rows[run][0] == "notebook"}
    assert notebook_rows == {
        "queued": ["notebook", "pending: Priority, 4th of 5, may start 2026-01-02 03:04:05", "0/2"],
        "done": ["notebook", "finished", "2/2"],
        "stopped": ["notebook", "failed: 03_ek100.ipynb, cell In[4] (x): ValueError: no", "1/2"],
        "cancelled": ["notebook", "failed: slurmstepd: error: *** JOB 9 ON node1 CANCELLED AT noon ***", "0/2"]}
    assert len(asked(cluster)) == 2, "SLURM is asked once for all runs, and once for the queue"
    waits, torn = rows.pop("02_pretrain/waits"), rows.pop("05_egomcq/torn")
    assert waits[1].startswith("pending: Priority, 4th of 5") and torn[1].startswith("unreadable: ")
    assert rows["02_pretrain/running"] == ["pretrain", "running", "40/200", "1 h 7 min", "ensemble_intra 41.2"]
    assert rows["03_ek100/mine"] == ["zeroshot", "finished", "", "", "mAP 26.0"]
    assert rows["02_pretrain/gone"][1].startswith("failed: no log in")
    cli.main(["runs", "--outputs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [name in lines[0] for name in runs_table.COLUMNS] == [True] * 9 and len(lines) == 10
    table = egokit.runs_table(tmp_path)
    assert list(table["run"]) == [line.split()[1] for line in lines[1:]]
    assert table["run"][0] == "running"  # the newest, because it logs
    assert runs_table.format_table(runs_table.job_rows(tmp_path / "none")).startswith("no run has had a job")


@pytest.mark.slow
def test_the_table_of_a_real_run(resolve, run, monkeypatch):
    handle = egokit.submit(resolve(overrides=f"{MODEL} train.epochs=4"), run, "train", "pretrain")

    def entry():
        return next(row for row in runs_table.job_rows(run.path.parents[1]) if row.run == run.path.name)
    wait_for(lambda: entry().step)
    assert entry().state == "running" and entry().steps == 12 and "step " in repr(handle)
    metrics = handle.wait(progress=False)
    assert entry()[:8] == ("tests", run.path.name, "pretrain", "finished", "", 12, 12, None)
    assert (entry().metric, entry().value) == ("ensemble_intra", metrics["ensemble_intra"])
