"""Jobs on a real Slurm: they train as one process does, and survive what happens to jobs.

tests/slurm/cluster.sh starts the cluster, as root, where Slurm is installed. Elsewhere the tests are skipped, except
under .ci/run, which installs Slurm and requires them.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import slurm_sweep
import yaml
from conftest import MODEL
from training import essential, rank_processes, wait_for, weights_of

import egokit
from egokit.config.resolve import outputs_folder
from egokit.jobs import launch, status
from egokit.model import checkpoints
from egokit.notebook import batch
from egokit.runs.run_folder import Run

CLUSTER = Path(__file__).parent / "slurm/cluster.sh"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, project):
    """Start a cluster, and write a site "slurm" for the tiny data set: two nodes of two ranks."""
    if os.getuid() or not shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin"):
        missing = "Slurm is not installed, or this is not root: tests/slurm/cluster.sh install"
        pytest.fail(missing) if os.environ.get("EGOKIT_SLURM") == "required" else pytest.skip(missing)
    root = tmp_path_factory.mktemp("slurm")
    cluster("start", root)
    before = dict(os.environ)
    command = f"source {root}/env && echo $SLURM_CONF && echo $PATH"
    output = subprocess.run(["bash", "-c", command], capture_output=True, text=True).stdout
    os.environ["SLURM_CONF"], os.environ["PATH"] = output.splitlines()
    site = yaml.safe_load((project / "params/sites/tiny.yaml").read_text())
    site["launch"] = {"cluster": "slurm", "nodes": 2, "tasks_per_node": 2, "cpus_per_task": 1, "gpus_per_task": 0,
                      "timeout_minutes": 60}
    (project / "params/sites/slurm.yaml").write_text(yaml.safe_dump(site))
    yield root
    os.environ.clear()
    os.environ.update(before)
    cluster("stop", root)


def cluster(action, root):
    """Run cluster.sh's `start` or `stop`."""
    # munge needs every folder above its socket to be searchable; a pytest that starts beside this one closes its folder
    for folder in (root, *root.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 0o111)
    subprocess.run([CLUSTER, action, root], check=True, timeout=150)


POLL = 0.02  # seconds: a running job is looked at 20 times less often, a pending one 40 times
RECIPE = f"data.limit=24 train.log_steps=1 train.batch_size=8 {MODEL}"


@pytest.fixture
def run(project, request):
    return Run(outputs_folder() / "slurm" / request.node.name)


@pytest.fixture
def recipe(slurm):
    from egokit.config.resolve import resolve
    return lambda overrides="", site="slurm": resolve("toy/pretrain", site, f"{RECIPE} {overrides}", "test")


def slurm_says(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def steps(run):
    return [event["step"] for event in run.read_log() if event["kind"] == "step"]


@pytest.fixture(scope="module")
def straight(slurm, project):
    """Return an uninterrupted run of 36 steps on two nodes of two ranks."""
    from egokit.config.resolve import resolve
    run = Run(outputs_folder() / "slurm" / "straight")
    config = resolve("toy/pretrain", "slurm", f"{RECIPE} {LONG}", "test")
    egokit.submit(config, run, "train", "pretrain").wait(progress=False, poll=POLL)
    return run


LONG = "train.epochs=12 train.evaluate_epochs=12 train.checkpoint_steps=4"


def same(run, straight):
    """Assert that a run has the log and the weights of the uninterrupted one."""
    assert essential(run) == essential(straight)
    expected, weights = weights_of(straight), weights_of(run)
    assert all((expected[key] == weights[key]).all() for key in expected)


def test_two_nodes_of_two_ranks_train_as_one_process(recipe, run):
    options = "train.epochs=2 train.precision=fp32"
    four, one = Run(run.path / "four"), Run(run.path / "one")
    metrics = egokit.submit(recipe(options), four, "train", "pretrain").wait(progress=False, poll=POLL)
    config = recipe(f"{options} launch.tasks_per_node=1", "tiny")
    egokit.submit(config, one, "train", "pretrain").wait(progress=False, poll=POLL)
    losses = [[event["loss"] for event in folder.read_log() if event["kind"] == "step"] for folder in (four, one)]
    assert metrics["processes"] == 4 and len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    logs = [path.read_text() for path in sorted((four.path / "jobs/pretrain/submitit").glob("*_log.out"))]
    assert len(logs) == 4 and "node=1(2)" in logs[3]
    assert "plan: 8 samples = 4 processes x 1 micro-batch of 2" in logs[0]


def test_a_requeued_job_ends_as_an_uninterrupted_one(recipe, run, straight):
    handle = egokit.submit(recipe(LONG), run, "train", "pretrain")
    wait_for(lambda: len(steps(run)) > 2)
    slurm_says("scancel", "--signal=USR2", handle.job()["job_id"])
    wait_for(lambda: "Restarts=1" in slurm_says("scontrol", "show", "job", handle.job()["job_id"]))
    saved_step = int(checkpoints.latest(run.checkpoints).stem.rpartition("-")[2])
    assert steps(run)[-1] == saved_step  # no step is computed twice
    handle.wait(progress=False, poll=POLL)
    same(run, straight)


def test_lost_ranks_end_the_others_and_the_job_goes_on(recipe, run, straight):
    """A rank is killed, then a node's ranks, and then `scancel JOB.0` ends the job's step but not its script.

    One job suffers all three, because each start takes longer than what is tested.
    """
    handle = egokit.submit(recipe(LONG), run, "train", "pretrain")
    number, seen = handle.job()["job_id"], 2
    for attempt, lost in enumerate(([3], [2, 3], []), 1):
        wait_for(lambda seen=seen: len(steps(run)) > seen + 3)  # the new attempt is beyond the earlier one
        ranks = rank_processes(handle)
        if not lost:
            slurm_says("scancel", f"{number}.0")
        for rank in lost:
            os.kill(ranks[rank], signal.SIGKILL)
        wait_for(lambda ranks=ranks: not any(Path(f"/proc/{process}").exists() for process in ranks.values()),
                 seconds=20)
        seen = len(steps(run))
        wait_for(lambda attempt=attempt: f"Restarts={attempt} " in slurm_says("scontrol", "show", "job", number),
                 seconds=20)
        log = (handle.folder / f"submitit/{number}_0_log.err").read_text()
        assert len(ranks) == 4 and log.count("egokit: a rank or node was lost at step") == attempt, lost
    handle.wait(progress=False, poll=POLL)
    same(run, straight)


def test_a_rank_killed_twice_at_one_step_stops_the_run(recipe, run):
    config = recipe("train.epochs=12 train.log_steps=36 train.evaluate_epochs=12")
    handle = egokit.submit(config, run, "train", "pretrain")
    for restarts in (0, 1):
        wait_for(lambda restarts=restarts: f"Restarts={restarts}" in slurm_says(
            "scontrol", "show", "job", handle.job()["job_id"]) and (handle.folder / "owner").exists()
            and (handle.folder / "owner").read_text().endswith(f"-{restarts}"))
        os.kill(rank_processes(handle)[2], signal.SIGKILL)
    with pytest.raises(launch.JobFailed, match=r"a rank was lost at step 0 for the second time"):
        handle.wait(progress=False, poll=POLL)


def test_an_error_of_the_program_is_not_tried_again(recipe, run):
    handle = egokit.submit(recipe("data.max_tokens=70 model.max_positions=8"), run, "train", "pretrain")
    with pytest.raises(launch.JobFailed, match=r"(?s)but the model has 6 positions"):
        handle.wait(progress=False, poll=POLL)
    assert "Restarts=0" in slurm_says("scontrol", "show", "job", handle.job()["job_id"])


def test_cancelled_jobs_stay_cancelled(recipe, run):
    handle = egokit.submit(recipe(LONG), run, "train", "pretrain")
    wait_for(lambda: len(steps(run)) > 0)
    handle.cancel()
    wait_for(lambda: not handle.alive())
    assert "JobState=CANCELLED" in slurm_says("scontrol", "show", "job", handle.job()["job_id"])
    assert not rank_processes(handle)


def test_a_time_limit_is_survived(recipe, run, project):
    """The job asks for a minute and gets SIGUSR2 20 s before its end.

    Slurm may send it half a minute earlier.
    """
    site = yaml.safe_load((project / "params/sites/slurm.yaml").read_text())
    site["launch"] |= {"timeout_minutes": 1, "slurm": {"signal_delay_s": 20}}
    (project / "params/sites/brief.yaml").write_text(yaml.safe_dump(site))
    slower = "train.epochs=60 train.evaluate_epochs=60 train.checkpoint_steps=1000"
    handle = egokit.submit(recipe(slower, "brief"), run, "train", "pretrain")
    # the signal makes the only checkpoints; one before the first step leaves a checkpoint of step 0, or none
    wait_for(lambda: any(int(path.stem.rpartition("-")[2]) for path in run.checkpoints.glob("step-*.pt")), seconds=240)
    wait_for(lambda: "Restarts=0" not in slurm_says("scontrol", "show", "job", handle.job()["job_id"]))
    saved = int(checkpoints.latest(run.checkpoints).stem.rpartition("-")[2])
    assert steps(run) == list(range(1, saved + 1))
    # on a busy machine a minute is hardly more than a start: the rest has time
    slurm_says("scontrol", "update", f"JobId={handle.job()['job_id']}", "TimeLimit=30")
    wait_for(lambda: len(steps(run)) > saved)  # it goes on; a requeued job, above, goes on to the end
    handle.cancel()
    done = steps(run)
    assert done == list(range(1, len(done) + 1))


def test_a_node_whose_daemon_is_killed_and_comes_back(recipe, run, straight, slurm):
    handle = egokit.submit(recipe(LONG), run, "train", "pretrain")
    wait_for(lambda: len(steps(run)) > 2)
    os.kill(int((slurm / "run/slurmd.node2.pid").read_text()), signal.SIGKILL)
    subprocess.run([CLUSTER, "node", slurm, "node2"], check=True)
    handle.wait(progress=False, poll=POLL)
    same(run, straight)


def test_two_users_runs_of_one_name(recipe, run):
    """Two users submit at the same time, each to an outputs folder of their own."""
    handles = [egokit.submit(recipe("launch.tasks_per_node=1"), Run(run.path / user / "mine"), "train", "pretrain")
               for user in ("ann", "bob")]
    metrics = [handle.wait(progress=False, poll=POLL) for handle in handles]
    assert handles[0].job() != handles[1].job() and metrics[0]["processes"] == metrics[1]["processes"] == 2
    same(handles[0].run, handles[1].run)


# runs a command as a user who may read every file
NOBODY = ("setpriv --reuid=65534 --regid=65534 --clear-groups "
          "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search")


def test_submitters_of_one_name_in_one_folder(slurm, project):
    """Two equal submissions at once are one job.

    Other parameters and another user are refused and change nothing.
    """
    def command(overrides):
        return [sys.executable, "-m", "egokit.cli", "submit", "toy/pretrain", "--site", "slurm", "--run", "ours",
                "--overrides", f"{RECIPE} {overrides}"]
    both = [subprocess.Popen([*command("train.epochs=4"), "--wait"], stdout=subprocess.PIPE, text=True)
            for _ in range(2)]
    run = Run(outputs_folder() / "02_pretrain/ours")
    wait_for(lambda: len(steps(run)) > 0)

    def files():
        return {path: path.read_bytes() for path in (run.path / "params.yaml", *run.path.glob("jobs/pretrain/*.json"))}
    before = files()
    for user, overrides, message in (
            ("", "train.epochs=5", "was made with other parameters (train.epochs: 4 -> 5)"),
            (NOBODY, "train.epochs=4", "jobs/pretrain/lock can't be written: is the run another user's?")):
        refused = subprocess.run([*user.split(), *command(overrides)], capture_output=True, text=True)
        assert refused.returncode == 2 and message in refused.stderr and files() == before, refused.stderr
    shown = [text[text.index("{"):] for text, _ in (process.communicate(timeout=120) for process in both)]
    assert shown[0] == shown[1] and json.loads(shown[0])["steps"] == 12 and steps(run) == list(range(1, 13))
    assert len(before) == 3 and len(list(run.path.glob("jobs/pretrain/submitit/*_submitted.pkl"))) == 1


def test_a_notebook_as_a_job_that_submits_a_job(recipe, run, project):
    """`egokit run 02_pretrain --submit` is a job on one node, whose cells train on both.

    The job's result is the notebook.
    """
    parameters = {"params": "toy/pretrain", "site": "slurm", "overrides": f"{RECIPE} train.epochs=1",
                  "run_name": "as-a-job"}
    message = batch.submit(batch.check_notebooks(["02"], parameters))
    folder = outputs_folder() / "02_pretrain/as-a-job"
    wait_for(lambda: not status.alive(folder / "batch"), seconds=240)
    number = json.loads((folder / "batch/job.json").read_text())["job_id"]
    assert f"02_pretrain: job {number} on slurm" in message
    assert "JobState=COMPLETED" in slurm_says("scontrol", "show", "job", number)
    inner = json.loads((folder / "jobs/pretrain/job.json").read_text())["job_id"]
    assert inner != number and "NumTasks=4" in slurm_says("scontrol", "show", "job", inner)
    assert Run(folder).metrics()["pretrain"]["processes"] == 4 and (folder / "notebook.ipynb").exists()


def test_an_array_of_preparation_jobs_with_one_that_fails(recipe, project, tmp_path):
    from egokit.prep import submit_array
    config = recipe(f"site.root={tmp_path / 'root'}")
    shutil.copytree(project / "outputs/toy/Ego4D", tmp_path / "root/Ego4D")
    videos = sorted((tmp_path / "root/Ego4D").iterdir())
    videos[0].write_bytes(videos[0].read_bytes()[:2000])
    manifest = submit_array(config, 3).wait(progress=False, poll=POLL)
    assert len(manifest["failed"]) == 1 and manifest["videos"] == len(videos) - 1 and not manifest["pending"]
    shutil.copy(project / "outputs/toy/Ego4D" / videos[0].name, videos[0])
    again = submit_array(config, 3)
    assert len(again.wait(progress=False, poll=POLL)["failed"]) == 0


def test_a_sweep_is_one_array_of_ordinary_runs(recipe, monkeypatch):
    slurm_sweep.check(RECIPE, "sweep", monkeypatch)


def test_the_cluster_starts_and_stops_twice(slurm):
    """A second start and a second stop change nothing; a stopped cluster starts again."""
    def daemons(action):
        cluster(action, slurm)
        process_ids = {file.name: int(file.read_text()) for file in (slurm / "run").glob("*.pid")}
        return {name: number for name, number in process_ids.items() if Path(f"/proc/{number}").exists()
                and "zombie" not in Path(f"/proc/{number}/status").read_text()}
    before = daemons("start")
    assert len(before) == 4 and daemons("start") == before
    assert daemons("stop") == {} and daemons("stop") == {}
    assert daemons("start").keys() == before.keys()
    assert slurm_says("srun", "-N2", "--immediate=60", "hostname").count("\n") == 1
