"""The status, progress and failure of a job on SLURM, whose commands are replaced by scripts."""
import threading

import pytest
from fake_slurm import QUEUE, STEP, asked, made, put_into_path
from training import wait_for

from egokit.jobs import launch, requeue, status
from egokit.jobs.progress import ProgressFile, read_progress_file
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    return put_into_path(tmp_path / "slurm", monkeypatch)


def test_statuses_have_reasons_positions_and_starts(cluster):
    (cluster / "queue").write_text(QUEUE)
    # 5 was submitted later; 3 waits for main, too; 7 has a task left
    assert status.job_statuses(["2"]) == {"2": ("pending", "Resources, place 1 of 4")}
    assert len(asked(cluster)) == 2
    assert status.job_statuses(["1", "3", "4", "5", "6", "7", "9"]) == {
        "1": ("running", ""), "3": ("pending", "Priority, place 4 of 5, may start 2026-01-02 03:04:05"),
        "4": ("pending", "Priority, place 1 of 2"), "5": ("pending", "Dependency, place 2 of 4"), "6": ("running", ""),
        "7": ("running", "")}
    assert len(asked(cluster)) == 4  # two calls for all seven
    assert status.job_statuses(["8"])["8"].detail == "place 1 of 1"
    assert status.job_statuses(["9"]) == status.job_statuses([]) == {}
    assert [status.duration(seconds) for seconds in (7, 61, 3599, 7260, 90000)] == [
        "7 s", "1 min", "1 h 0 min", "2 h 1 min", "1 d 1 h"]


def test_a_handle_follows_its_job(cluster, tmp_path):
    run = Run(tmp_path / "outputs/02_pretrain/mine")
    assert launch.Handle(run, "pretrain").status() == ("new", "")
    assert repr(launch.Handle(run, "pretrain")).endswith("mine: new>")
    handle = made(run, cluster="slurm", job_id="3")
    (cluster / "queue").write_text(QUEUE)
    assert handle.state() == "pending" and handle.alive()
    assert repr(handle) == ("<pretrain of 02_pretrain/mine: "
                            "pending (Priority, place 4 of 5, may start 2026-01-02 03:04:05)>")
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
    assert handle.status() == ("failed", "TrainingError: no")
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
    assert status.failure_reason(handle.folder) == "ValueError: of the second attempt"
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
    assert output.index("pretrain pending: Priority, place 4 of 5") < output.index("| 40/200 [")
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
