"""The table of all runs, with SLURM's commands replaced by scripts, and of a real one."""
import json
import os
import time

import pytest
from conftest import MODEL
from fake_slurm import QUEUE, STEP, asked, made, put_into_path
from training import wait_for

import egokit
from egokit import cli
from egokit.config.resolve import outputs_folder
from egokit.jobs import runs_table
from egokit.jobs.progress import PROGRESS_FILE
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run


@pytest.fixture
def run(project, request):
    return Run(outputs_folder() / "tests" / f"jobs-{abs(hash(request.node.name))}")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    return put_into_path(tmp_path / "slurm", monkeypatch)


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
        "queued": ["notebook", "pending: Priority, place 4 of 5, may start 2026-01-02 03:04:05", "0/2"],
        "done": ["notebook", "finished", "2/2"],
        "stopped": ["notebook", "failed: 03_ek100.ipynb, cell In[4] (x): ValueError: no", "1/2"],
        "cancelled": ["notebook", "failed: slurmstepd: error: *** JOB 9 ON node1 CANCELLED AT noon ***", "0/2"]}
    assert len(asked(cluster)) == 2, "SLURM is asked once for all runs, and once for the queue"
    waits, torn = rows.pop("02_pretrain/waits"), rows.pop("05_egomcq/torn")
    assert waits[1].startswith("pending: Priority, place 4 of 5") and torn[1].startswith("unreadable: ")
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


def test_profiles_are_listed_as_other_jobs_are(cluster, tmp_path):
    """A profile has a run folder of its own in that of the run, which may hold nothing else."""
    (cluster / "queue").write_text(QUEUE)
    for number, name in (("1", "runs"), ("3", "waits"), ("9", "died"), ("9", "ended")):
        handle = made(Run(tmp_path / "02_pretrain" / name / "profile"), "profile", "profile", cluster="slurm",
                      job_id=number)
        write_text(handle.folder / PROGRESS_FILE, json.dumps({"step": 3, "steps": 26, "time": 9.0, "eta_s": 60}))
    handle.run.write_metrics("profile", {"finished": True, "verdict": "data", "advice": "", "table": "profile.txt"})
    write_text(tmp_path / "02_pretrain/damaged/profile/jobs/profile/spec.json", "{")
    rows = {row.run: row for row in runs_table.job_rows(tmp_path)}
    assert {row[0::2][:2] for row in rows.values()} == {("02_pretrain", "profile")}
    assert {name: row.state for name, row in rows.items()} == {
        "runs": "running", "waits": "pending", "died": "failed", "ended": "finished", "damaged": "unreadable"}
    assert (rows["runs"].step, rows["runs"].steps, rows["runs"].left_s) == (3, 26, 60)
    assert len(asked(cluster)) == 2, "SLURM is asked once for all jobs, and once for the queue"


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
