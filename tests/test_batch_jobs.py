"""Notebooks submitted as jobs: what such a job runs, finds and reports."""
import json
import os
import shutil
import signal
import subprocess
import time

import nbformat
import pytest
from batch_notebooks import BROKEN, command, four_more, kernel, printed

from egokit.config.build import ConfigError
from egokit.jobs import runs_table, starter, status
from egokit.notebook import batch


@pytest.fixture(scope="module")
def home(project):
    with four_more(project):
        yield project


@pytest.mark.slow
def test_as_a_job(home):
    """--submit, locally: the same command finds the job, other parameters are refused."""
    notebooks = batch.check_notebooks(["90", "91"], {"run_name": "job"})
    hanging = batch.check_notebooks(["92"], {"run_name": "job"})
    assert "90_good, 91_fails: job " in batch.submit(notebooks)
    notice = batch.submit(hanging)
    number = kernel(home / "outputs/92_hangs/job/notebook.log")
    assert [row.state for row in runs_table.job_rows() if (row.notebook, row.run) == ("92_hangs", "job")] == ["running"]
    assert batch.submit(hanging) == notice
    with pytest.raises(ConfigError, match="runs other notebooks or parameters"):
        batch.submit(batch.check_notebooks(["92", "90"], {"run_name": "job"}))
    folder = home / "outputs/91_fails/job"
    deadline = time.monotonic() + 120
    while "ValueError" not in ((folder / "notebook.log").read_text() if (folder / "notebook.log").exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert printed(home / "outputs/90_good/job/notebook.ipynb") == "hello job\n"
    os.kill(number, signal.SIGKILL)
    while any(status.alive(home / f"outputs/{name}/job/batch") for name in ("90_good", "92_hangs")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    rows = {row.notebook: row for row in runs_table.job_rows() if row.run == "job" and row.section == "notebook"}
    assert rows["90_good"][3:7] == ("failed", f"91_fails.ipynb, {BROKEN}", 1, 2)
    assert rows["92_hangs"].detail == ("92_hangs.ipynb, cell In[3] (import os, time): its kernel died: was it killed, "
                                       "or out of memory?")
    errors = "".join(path.read_text() for path in (home / "outputs/90_good/job/batch/submitit").glob("*_log.err"))
    assert "a notebook failed (exit code 1)" in errors and (folder / "notebook.failed.ipynb").exists()


@pytest.mark.slow
def test_what_is_edited_later_reaches_no_queued_notebook(home, tmp_path):
    """The first notebook waits, as in a queue; the second, its recipe and site are edited."""
    book = nbformat.read(home / "notebooks/90_good.ipynb", as_version=4)
    waits = ("import time\nfrom pathlib import Path\n"
             f"while not Path({str(tmp_path / 'go')!r}).exists():\n    time.sleep(0.1)")
    prints = ("from egokit.notebook.open_run import open_run\n"
              "run = open_run(params, site, overrides, run_name)\n"
              "print(run.config.data.limit, run.config.site.root, run.path)")
    for name, cell in (("94_waits", waits), ("95_prints", prints)):
        book.cells[1].source = cell
        nbformat.write(nbformat.v4.new_notebook(metadata=book.metadata, cells=book.cells[:2]),
                       home / f"notebooks/{name}.ipynb")
    recipe, site = home / "params/toy/queued.yaml", home / "params/sites/queued.yaml"
    recipe.write_text((home / "params/toy/egomcq.yaml").read_text().replace("data: {", "data: {limit: 11, "))
    site.write_text((home / "params/sites/tiny.yaml").read_text() + "\n")
    shutil.copy(recipe, tmp_path / "own.yaml")
    for name, params in (("inside", "toy/queued"), ("outside", str(tmp_path / "own.yaml"))):
        batch.submit(batch.check_notebooks(["94", "95"], {"run_name": name, "params": params, "site": "queued"}))
    for path in (recipe, tmp_path / "own.yaml"):
        path.write_text(path.read_text().replace("limit: 11", "limit: 22"))
    site.unlink()
    edited = home / "notebooks/95_prints.ipynb"
    edited.write_text(edited.read_text().replace("print(", "print('edited', "))
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 180
    for name in ("inside", "outside"):
        while status.alive(home / f"outputs/94_waits/{name}/batch"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        folder = home / "outputs/95_prints" / name
        assert printed(folder / "notebook.ipynb") == f"11 {home / 'outputs/toy'} {folder}\n"
    for path in (*home.glob("notebooks/9[45]*.ipynb"), recipe):
        path.unlink()


@pytest.mark.slow
def test_two_who_submit_at_once_start_one_job(home):
    both = [subprocess.Popen(command("90", "--run", "once", "--submit"), stdout=subprocess.PIPE, text=True)
            for _ in range(2)]
    notices = [process.communicate(timeout=120)[0] for process in both]
    folder = home / "outputs/90_good/once"
    assert notices[0] == notices[1] and "90_good: job " in notices[0]
    assert len(list((folder / "batch/submitit").glob("*_submitted.pkl"))) == 1
    deadline = time.monotonic() + 120
    while status.alive(folder / "batch"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert printed(folder / "notebook.ipynb") == "hello once\n"
    assert [row[3:7] for row in runs_table.job_rows() if row.run == "once"] == [("finished", "", 1, 1)]


def test_a_notebooks_job_is_small():
    from egokit.config.schema import LaunchConfig
    site = LaunchConfig(cluster="slurm", nodes=8, tasks_per_node=8, cpus_per_task=12, gpus_per_task=1, exclusive=True,
                        slurm={"gres": "gpu:8", "exclude": "n7"})
    small = batch.small(site)
    assert (small.nodes, small.tasks_per_node, small.cpus_per_task, small.gpus_per_task) == (1, 1, 2, 0)
    assert (small.exclusive, small.slurm) == (False, {"exclude": "n7"})


def test_what_is_submitted_in_a_job_is_no_part_of_it(tmp_path, monkeypatch):
    """The submitting job's SLURM variables, such as its memory, must not reach the new job."""
    from egokit.config.schema import LaunchConfig
    for key, value in {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "500", "SRUN_CPUS_PER_TASK": "2",
                       "SLURM_CONF": "here"}.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "probe.py").write_text(
        "import json, os, sys\nfrom pathlib import Path\n"
        "Path(sys.argv[1]).with_name('job.json').write_text(json.dumps(dict(os.environ)))\n")
    starter.start_job("probe", tmp_path, tmp_path, LaunchConfig())
    passed = json.loads((tmp_path / "job.json").read_text())
    of_slurm = {key: value for key, value in passed.items() if key.startswith(("SLURM_", "SRUN_"))}
    assert of_slurm == {"SLURM_CONF": "here"}
