"""Notebooks in batch, run by real papermill processes: what is saved, however they end."""
import dataclasses
import json
import re
import signal
import subprocess
import time

import nbformat
import pytest
from batch_notebooks import BROKEN, command, four_more, gone, kernel, printed

from egokit.config.build import ConfigError, to_dict
from egokit.config.resolve import resolve
from egokit.jobs import launch, starter
from egokit.notebook import batch, headless
from egokit.notebook.open_run import open_run
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run


@pytest.fixture(scope="module")
def home(project):
    with four_more(project):
        yield project


def test_everything_is_checked_before_anything_starts(home):
    def refused(message, *arguments, **options):
        with pytest.raises(ConfigError, match=message):
            batch.check_notebooks(*arguments, **options)
    refused(r"train\.epoch.*did you mean 'epochs'", ["90", "91"], {"run_name": "checked", "overrides": "train.epoch=1"})
    refused("expected a valid integer.*'many'", ["90"], {"run_name": "checked", "overrides": "train.epochs=many"})
    refused("'nowhere'", ["90", "91:nowhere"], {"run_name": "checked"})
    refused("no notebook '99'", ["90", "99"], {"run_name": "checked"})
    refused("91_fails is named twice", ["91", "90", "91_fails"], {"run_name": "checked"})
    refused("'run_name': expected a text, got 3", ["90"], {"run_name": 3})
    assert not list((home / "outputs").glob("*/checked"))
    work = batch.check_notebooks(["90", "05:egomcq"], {"run_name": "checked"}).work
    assert work == [("90_good", {"run_name": "checked"}), ("05_egomcq", {"run_name": "checked", "params": "egomcq"})]


@pytest.mark.slow
def test_a_notebook_is_found_by_its_name(home, tmp_path, monkeypatch):
    """JupyterLab's copy has another name; a notebook of the same name elsewhere is refused."""
    (home / "notebooks/90_good-Copy1.ipynb").write_bytes((home / "notebooks/90_good.ipynb").read_bytes())
    try:
        names = ("90_good", "90_good.ipynb", "notebooks/90_good.ipynb")
        assert {headless.notebook_path(name).name for name in names} == {"90_good.ipynb"}
        assert headless.notebook_path("91").stem == "91_fails"
        assert headless.notebook_path("90_good-C").stem == "90_good-Copy1"
        monkeypatch.chdir(home / "notebooks")
        assert headless.notebook_path("./90_good.ipynb") == home / "notebooks/90_good.ipynb"
        with pytest.raises(ConfigError, match="more than one notebook '90'"):
            headless.notebook_path("90")
    finally:
        (home / "notebooks/90_good-Copy1.ipynb").unlink()
    elsewhere = tmp_path / "90_good.ipynb"
    elsewhere.write_bytes((home / "notebooks/90_good.ipynb").read_bytes())
    with pytest.raises(ConfigError, match=r"is not in .*notebooks: copy it there"):
        headless.notebook_path(str(elsewhere))


UNREADABLE = "not a notebook that can be read"
ONE_PARAMETER = nbformat.v4.new_code_cell("run_name = 'x'", metadata={"tags": ["parameters"]})


@pytest.mark.parametrize("text, message", [
    ("", UNREADABLE), ("[]", UNREADABLE), ("{\"cells\"", UNREADABLE),
    (nbformat.writes(nbformat.v4.new_notebook()), "none of its cells has the tag 'parameters'"),
    (nbformat.writes(nbformat.v4.new_notebook(cells=[ONE_PARAMETER])),
     "its cell of parameters lacks params, site, overrides")])
def test_notebooks_without_parameters(home, text, message):
    path = home / "notebooks/94_other.ipynb"
    path.write_text(text)
    try:
        with pytest.raises(ConfigError, match=rf"94_other\.ipynb: {message}"):
            batch.check_notebooks(["94"], {})
    finally:
        path.unlink()


def test_in_order_up_to_the_first_that_fails(home):
    done = subprocess.run(command("90", "91", "92", "--run", "order"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"91_fails.ipynb, {BROKEN}" in done.stderr
    assert "not run: 92_hangs" in done.stderr and "Traceback" not in done.stderr
    good, fails = (home / "outputs" / name / "order" for name in ("90_good", "91_fails"))
    assert printed(good / "notebook.ipynb") == "hello order\n" and not (good / "notebook.failed.ipynb").exists()
    assert printed(fails / "notebook.failed.ipynb") == "as far as here\n" and not (fails / "notebook.ipynb").exists()
    assert not (home / "outputs/92_hangs").exists()
    log = (fails / "notebook.log").read_text()
    assert "as far as here" in log and "ValueError: broken on purpose" in log and "\x1b" not in log
    log = (good / "notebook.log").read_text()
    assert "hello order" in log and "has run to its end" in log


@pytest.mark.slow
def test_side_by_side_all_finish_and_one_that_hangs_is_ended(home):
    """The timeout is long enough for the hanging notebook to reach its cell on a slow machine."""
    done = subprocess.run(command("91", "92", "90", "93", "--run", "abreast", "--side-by-side", "3", "--timeout",
                                  "0.4"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    for line in (r"90_good +done", r"91_fails +failed, exit code 1", r"92_hangs +failed, exit code 1",
                 r"93_dies +failed, exit code 1"):
        assert re.search(line, done.stdout), done.stdout + done.stderr
    assert "92_hangs.ipynb, cell In[3] (import os, time): not finished within 0.4 minutes" in done.stderr
    assert "93_dies.ipynb, cell In[3] (import os): its kernel died" in done.stderr
    hung = home / "outputs/92_hangs/abreast"
    assert printed(hung / "notebook.failed.ipynb").startswith("kernel ") and gone(kernel(hung / "notebook.log"))


@pytest.mark.slow
@pytest.mark.parametrize("sign, code, abreast", [
    (signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 1), (signal.SIGKILL, -9, 1), (signal.SIGTERM, 143, 2),
    (signal.SIGINT, 130, 2)])
def test_the_runner_is_ended(home, sign, code, abreast):
    """Signals to the runner alone, as a scheduler's: the notebook is saved, its kernel ends."""
    name = f"ended-{sign.name}-{abreast}"
    process = subprocess.Popen(command("92", "90", "--run", name, "--side-by-side", str(abreast)),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    folder = home / "outputs/92_hangs" / name
    number = kernel(folder / "notebook.log")
    if sign == signal.SIGKILL:
        time.sleep(1)
    process.send_signal(sign)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert gone(number) and not (folder / "notebook.ipynb").exists()
    assert nbformat.read(folder / "notebook.failed.ipynb", as_version=4).cells
    if sign != signal.SIGKILL:
        assert printed(folder / "notebook.failed.ipynb").startswith("kernel ")
        ended_by = "SIGTERM" if abreast == 2 else sign.name  # side by side, the runner ends its notebooks by SIGTERM
        assert f"cell In[3] (import os, time): ended by {ended_by}" in (folder / "notebook.log").read_text()


def test_a_finished_run_of_other_parameters_keeps_its_notebook(home):
    run = Run(home / "outputs/90_good/theirs")
    run.write_metrics("egomcq", {"finished": True})
    config = to_dict(resolve("toy/egomcq", "tiny", "evaluate.batch_size=3 seed=7", "theirs"))
    spec = {"action": "evaluate", "config": config, "init_sha256": "a"}
    write_text(run.path / "jobs/egomcq/spec.json", json.dumps(spec))
    write_text(run.path / "notebook.ipynb", "theirs")
    for start in (lambda **given: batch.check_notebooks(["90"], given), lambda **given: headless.execute("90", given)):
        message = r"egomcq in .*90_good/theirs was made with other parameters \(seed: 7 -> 0\)"
        with pytest.raises(ConfigError, match=message):
            start(run_name="theirs")
    assert (run.path / "notebook.ipynb").read_text() == "theirs" and not (run.path / "notebook.failed.ipynb").exists()
    assert batch.check_notebooks(["90"], {"run_name": "theirs", "overrides": "seed=7"}).work


def test_a_sweeps_notebook_runs_again(home, monkeypatch):
    """A sweep's jobs have other parameters than its notebook, whose own four are compared."""
    run = open_run("toy/egomcq", "tiny", "", "sweep", notebook="90_good")
    config = run.config
    monkeypatch.setattr(launch, "starting_point", lambda config: "a")  # no model was trained in this project
    monkeypatch.setattr(launch, "expect_ready", lambda config, action: None)
    monkeypatch.setattr(starter, "start_job", lambda *job: None)
    for seed in (1, 2):
        launch.submit(dataclasses.replace(config, seed=seed), run, "evaluate", f"seed{seed}")
        run.write_metrics(f"seed{seed}", {"finished": True})
    assert "seed: 0" in (run.path / "params.yaml").read_text()
    assert batch.check_notebooks(["90"], {"run_name": "sweep"}).work
    with pytest.raises(ConfigError, match=r"seed1 in .*90_good/sweep was made with other parameters \(seed: 0 -> 5\)"):
        batch.check_notebooks(["90"], {"run_name": "sweep", "overrides": "seed=5"})


@pytest.mark.slow
def test_a_notebook_that_is_being_run_is_waited_for(home):
    folder = home / "outputs/90_good/turns"
    with launch.locked(folder):
        process = subprocess.Popen(command("90", "--run", "turns"), stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline(), process.stdout.readline()]
        time.sleep(1)
        assert lines[1] == "90_good: waits for another process that runs it as turns\n"
        assert {file.name for file in folder.iterdir()} == {"lock"}
    assert not process.wait(timeout=120) and printed(folder / "notebook.ipynb") == "hello turns\n"


def test_a_failing_kernel_start_is_a_failed_notebook(home, monkeypatch):
    import papermill

    def refuses(*arguments, **options):
        raise RuntimeError("Kernel didn't respond in 120 seconds")
    monkeypatch.setattr(papermill, "execute_notebook", refuses)
    with pytest.raises(headless.NotebookFailed, match="before the first cell: Kernel didn't respond"):
        headless.execute("90", {"run_name": "no-kernel"})
