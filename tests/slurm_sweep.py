"""A sweep on a real Slurm, for test_slurm.py: an array of ordinary runs, one of them requeued and one cancelled."""
import os
import subprocess

import pytest
from training import wait_for

from egokit.jobs import sweep as sweeps
from egokit.jobs.handle import JobFailed

LONG = "train.epochs=12 train.evaluate_epochs=12 train.checkpoint_steps=4 launch.nodes=1 launch.tasks_per_node=1"


def check(recipe: str, name: str, monkeypatch) -> None:
    """Submit three runs, disturb two, and submit what is left once more."""
    monkeypatch.setattr(sweeps, "POLL", 0.02)

    def submitted():
        return sweeps.submit_sweep("toy/pretrain", "slurm", f"{recipe} {LONG}", name, ["seed=0,1,2"])
    sweep = submitted()
    handles = [sweep.handle(point) for point in sweep.grid.points]
    ids = [handle.job()["job_id"] for handle in handles]
    array = ids[0].partition("_")[0]
    assert ids == [f"{array}_{place}" for place in range(3)]
    for handle in handles[1:]:
        wait_for(lambda run=handle.run: any(event["kind"] == "step" for event in run.read_log()))
        assert handle.state() == "running"
    handles[1].cancel()
    subprocess.run(["scancel", "--signal=USR2", ids[2]], check=True)
    with pytest.raises(JobFailed, match=rf"1 of 3 runs have no result(.|\n)*{name}-seed1: .*CANCELLED"):
        sweep.wait()
    assert [handle.state() for handle in handles] == ["finished", "failed", "finished"]
    shown = subprocess.run(["scontrol", "show", "job", ids[2]], capture_output=True, text=True, check=True).stdout
    assert "Restarts=1" in shown, "a job of the array was requeued alone"
    for handle, job_id in zip(handles, ids, strict=True):
        logs = {path.name for path in (handle.folder / "submitit").glob("*_log.*")}
        assert logs == {f"{job_id}_0_log.err", f"{job_id}_0_log.out"}
    again = submitted()
    again.wait()
    assert [handle.job()["job_id"] == old for handle, old in zip(handles, ids, strict=True)] == [True, False, True]
    assert os.listdir(sweep.grid.folder / "arrays") and all(handle.metrics()["steps"] == 36 for handle in handles)
