"""A mistake in a config is said before a job is started; the error of a job that failed is shown once."""
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from test_jobs import LOST, OWN, made

import egokit
from egokit import launch, tasks
from egokit.data.annotation_tables import EK100_ANNOTATIONS
from egokit.jobs import preflight, status
from egokit.runs.run_folder import Run


@pytest.fixture
def no_job(monkeypatch):
    monkeypatch.setattr(launch, "start_work", lambda *args: pytest.fail("a job was started"))


def with_site(config, **keys):
    return dataclasses.replace(config, site=dataclasses.replace(config.site, **keys))


MISTAKES = {
    "tokenizer folder": ({"tokenizer": "/nowhere/tokenizer"}, "site.tokenizer of site 'tiny' is '/nowhere/tokenizer'"),
    "tokenizer name": ({"tokenizer": "nobody/no-tokenizer"}, "neither cached here nor can be fetched"),
    "empty tokenizer": ({"tokenizer": "EMPTY"}, "which holds no tokenizer"),
    "root": ({"root": "/nowhere/data"}, "site.root of site 'tiny' is /nowhere/data, which does not exist"),
    "vit": ({"vit": "/nowhere/vit.pth"}, "site.vit of site 'tiny' is '/nowhere/vit.pth', which does not exist"),
    "relative vit": ({"vit": "vit.pth"}, "site.vit of site 'tiny' is 'vit.pth', which does not exist"),
    "no vit": ({"vit": ""}, "site.vit of site 'tiny' is ''"),
    "roberta": ({"roberta": "/nowhere/roberta"}, "site.roberta of site 'tiny' is '/nowhere/roberta'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_site_is_said_before_a_job(resolve, tmp_path, monkeypatch, no_job, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    keys, message = MISTAKES[name]
    keys = {key: value.replace("EMPTY", str(tmp_path)) for key, value in keys.items()}
    with pytest.raises((egokit.ConfigError, FileNotFoundError)) as raised:
        egokit.submit(with_site(resolve(), **keys), Run(tmp_path / "nb/run"))
    assert message in str(raised.value) and len(str(raised.value).splitlines()) <= 2


def test_a_missing_checkpoint_is_said_before_a_job(resolve, tmp_path, no_job):
    with pytest.raises(ValueError, match=r"checkpoint .*nothing\.pth does not exist"):
        egokit.submit(resolve(overrides="init=/nowhere/nothing.pth"), Run(tmp_path / "nb/run"))


DATA = [(task, name, provider) for task, names in {
    "pretrain": {"egoclip.csv": "showlab", "Ego4D_Chunked": "egokit prep", "egomcq.json": "showlab"},
    "egomcq": {"egomcq.json": "showlab", "Ego4D_Chunked": "egokit prep"},
    "egomq": {"moments_val.json": "ego4d-data.org", "Ego4D_256": "egokit prep"},
    "ek100_finetune": {"EK100/video_ht256px": "epic-kitchens-download-scripts",
                       f"{EK100_ANNOTATIONS}/EPIC_100_retrieval_train.csv": "git clone",
                       f"{EK100_ANNOTATIONS}/relevancy": "egokit prep"},
    "charades_finetune": {"CharadesEgo/CharadesEgo_v1_480": "CharadesEgo_v1_480.tar",
                          "CharadesEgo/CharadesEgo/Charades_v1_classes.txt": "CharadesEgo.zip",
                          "CharadesEgo/CharadesEgo/metadata_train.csv": "egokit prep"},
}.items() for name, provider in names.items()]


@pytest.mark.parametrize("task, name, provider", DATA)
def test_missing_data_are_said_before_a_job_with_who_provides_them(resolve, copied, tmp_path, no_job, checkpoint,
                                                                   task, name, provider):
    on_copy, root = copied
    config = on_copy(dataclasses.replace(resolve(f"toy/{task}"), init=str(checkpoint)))
    action = "extract" if task == "egomq" else "evaluate" if task == "egomcq" else "train"
    preflight.expect_ready(config, action)  # all is there
    shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
    with pytest.raises(egokit.ConfigError) as raised:
        egokit.submit(config, Run(tmp_path / "nb/run"), action)
    message = str(raised.value)
    assert f"{root / name} is missing" in message and provider in message and len(message.splitlines()) == 1
    assert ("egokit prep" in message) == (provider == "egokit prep")
    with pytest.raises(FileNotFoundError) as raised:
        tasks.make(config).require_file(*Path(name).parts)
    assert provider in str(raised.value)


def test_a_finished_job_is_found_without_its_data(resolve, copied, tmp_path, monkeypatch):
    on_copy, root = copied
    run, config = Run(tmp_path / "nb/run"), on_copy(resolve())
    monkeypatch.setattr(launch, "start_work", lambda folder, spec, *args: (
        folder.mkdir(parents=True, exist_ok=True), (folder / "spec.json").write_text(json.dumps(spec))))
    handle = egokit.submit(config, run)
    run.write_metrics(handle.section, {"finished": True})
    shutil.rmtree(root)
    assert egokit.submit(config, run).metrics()


LONG = "egokit.model.checkpoints.WeightsError: x.pth does not fit this model:\n  missing (1): a\n  unexpected (1): b\n"


@pytest.mark.parametrize("error, after, shown", [
    ("ValueError: no such thing", "", "ValueError: no such thing"),
    (LONG, "srun: error: node1: task 0: Exited\n", LONG.strip()),
    ("[rank0]: KeyError: 'x'", "\n[rank0]: Traceback (most", "KeyError: 'x'")])
def test_the_error_of_a_job_is_shown_once(tmp_path, error, after, shown):
    handle = made(Run(tmp_path / "nb/mine"), cluster="slurm", job_id="3")
    trace = "Traceback (most recent call last):\n" + "".join(f'  File "x.py", line {i}\n    f()\n' for i in range(40))
    for rank in range(3):
        (handle.folder / f"submitit/3_{rank}_log.err").write_text(f"starts\n{trace}{error}\n{after}")
    message = status.error_message(handle.folder)
    assert message == f"{shown}\nThe whole log: {handle.folder}/submitit/3_0_log.err"


def test_the_error_is_that_of_the_rank_that_failed_itself(tmp_path):
    handle = made(Run(tmp_path / "nb/mine"), cluster="slurm", job_id="3")
    for rank, text in enumerate((LOST, LOST + OWN, LOST)):
        (handle.folder / f"submitit/3_{rank}_log.err").write_text(text)
    assert status.error_message(handle.folder).startswith("ValueError: of the second attempt\n")
    (handle.folder / "submitit/3_1_log.err").write_text("killed\n")
    (handle.folder / "submitit/3_0_log.err").write_text(f"{LOST}egokit: not requeued: a rank was lost at step 0\n")
    assert "not requeued: a rank was lost at step 0" in status.error_message(handle.folder)


def test_a_job_without_an_error_shows_the_end_of_its_log(tmp_path):
    handle = made(Run(tmp_path / "nb/mine"), cluster="slurm", job_id="3")
    assert status.error_message(handle.folder).startswith("no log in ")
    (handle.folder / "submitit/3_0_log.err").write_text("".join(f"line {i}\n" for i in range(30)) + "Killed\n")
    message = status.error_message(handle.folder)
    assert "Killed" in message and "line 20\n" not in message and "3_0_log.err" in message
