"""A job that ended with an error is queued again, or stopped with the reason."""
import json

import pytest

from egokit.jobs import requeue
from egokit.jobs.launch import Handle
from egokit.jobs.progress import ProgressFile
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run

PEER = "Traceback (most recent call last):\n  File\nRuntimeError: Connection closed by peer\n"


@pytest.fixture
def failed(tmp_path, monkeypatch):
    """Return a run whose log holds 40 steps of another section, and a function.

    The function loses a rank of the action's job and returns what `decide` says.
    """
    run = Run(tmp_path / "nb/mine")
    run.log({"kind": "step", "step": 40, "steps": 40})
    run.log({"kind": "extract", "step": 40, "steps": 40})
    starts = iter(range(100))

    def lose(action, words=PEER, limit=100):
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(next(starts)))
        folder = Handle(run, action).folder
        if words:
            write_text(folder / "failures" / f"{requeue.attempt_id()}-rank1.txt", words)
        return requeue.decide(folder, run, action, limit)
    return run, lose


@pytest.mark.parametrize("action", ["train", "extract", "evaluate"])
def test_a_job_is_measured_by_its_own_steps(failed, action):
    """Another section got further; its steps, in the log that all sections share, don't count."""
    run, lose = failed

    def reach(step):
        if action == "evaluate":
            ProgressFile(Handle(run, action).folder, every=0)(step, 9)
        else:
            run.log({"kind": {"train": "step"}.get(action, action), "step": step, "steps": 9})
    for number, step in enumerate((3, 5, 4)):  # the third attempt resumed from a checkpoint before step 4
        reach(step)
        assert lose(action) == (True, f"a rank or node was lost at step {step}: requeued, attempt {number + 2}")
    run.log({"kind": "validation" if action == "extract" else "extract", "step": 99})
    requeued, reason = lose(action)
    assert not requeued and reason.startswith("not requeued: a rank was lost at step 4 for the second time")


def test_own_errors_and_too_many_failures_stop(failed):
    run, lose = failed
    assert lose("train", "Traceback (most recent call last):\n  File\nValueError: no such clip")[1].startswith(
        "not requeued: ValueError: no such clip (")
    for step in (41, 42):
        run.log({"kind": "step", "step": step})
        requeued, reason = lose("train", limit=2)
    assert not requeued and reason == "not requeued: 3 failures are more than launch.requeues=2"


def test_the_specs_action_and_limit_are_those_of_the_script(failed, tmp_path, monkeypatch, capsys):
    """The batch script runs requeue.main. SLURM's commands are replaced by scripts."""
    run, _ = failed
    for name, command in (("squeue", "echo RUNNING"), ("scontrol", f"echo $@ >> {tmp_path}/asked")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    folder = Handle(run, "features").folder
    spec = {"run": str(run.path), "action": "extract", "config": {"launch": {"requeues": 1}}}
    write_text(folder / "spec.json", json.dumps(spec))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for step in (2, 3):
        run.log({"kind": "extract", "step": step})
        requeue.main(str(folder))
    messages = capsys.readouterr().err.splitlines()
    write_text(folder / "spec.json", json.dumps({"array": [1, 2]}))  # neither a shard nor notebooks are judged
    requeue.main(str(folder))
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert messages == ["egokit: a rank or node was lost at step 2: requeued, attempt 2",
                        "egokit: not requeued: 2 failures are more than launch.requeues=1"]
