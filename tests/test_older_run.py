"""A run that an older egokit began goes on with its own copy of egokit, and is shown by this one."""
import json

import pytest
from conftest import MODEL

import egokit
from egokit import tasks
from egokit.config.build import ConfigError, to_dict
from egokit.jobs import launch, starter
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.viz.predictions import pictures

OLD_TASK = "from egokit.loading import Samples\nfrom egokit.tasks.base import Task\n\n\nclass Mine(Task):\n    pass\n"


def older(config) -> dict:
    """Return the plain config as an older egokit wrote it: a key less, some by earlier names, those of all tasks."""
    plain = to_dict(config)
    del plain["train"]["deterministic"]
    own = plain.pop("task")
    plain |= {"task": own.pop("name"), "search": {"videos": "", "window": 4.0}}
    plain["data"]["validation_frames"] = own.pop("val_frames")
    plain["train"] |= own | {"margin": 0.2}
    plain["launch"]["processes"] = plain["launch"].pop("tasks_per_node")
    plain["data"]["tokens"] = plain["data"].pop("max_tokens")
    return plain


@pytest.fixture
def began(tmp_path, monkeypatch):
    """(config -> handle of its interrupted run, what a new start would get); no job is started."""
    started = {}

    def begin(config, **spec):
        run = Run(tmp_path / "02_pretrain/old")
        (run.path / "checkpoints").mkdir(parents=True)
        (run.path / "checkpoints/step-0000001.pt").touch()
        handle = launch.Handle(run, "pretrain")
        spec = {"config": older(config), "action": "train", "init_sha256": "", **spec}
        write_text(handle.folder / "spec.json", json.dumps(spec))

        def refuse(module, *args):
            started["config"], started["module"] = handle.spec()["config"], module
            raise launch.NotSubmitted("no")
        monkeypatch.setattr(starter, "start_job", refuse)
        return handle
    return begin, started


def test_a_run_of_an_older_egokit_goes_on_with_it(resolve, began, capsys):
    """The run's copy of egokit refuses unknown keys, so it gets none.

    The run's spec survives a job that can't start.
    """
    begin, started = began
    config = resolve(overrides=MODEL)
    handle = begin(config)
    before = handle.spec()
    (handle.folder / "code").mkdir()
    with pytest.raises(launch.NotSubmitted):
        egokit.submit(config, handle.run, "train", "pretrain")
    assert started == {"config": before["config"], "module": "egokit.job"} and handle.spec() == before
    assert "the copy of egokit that it began with, which doesn't know train.deterministic" in capsys.readouterr().out


def test_without_its_copy_it_goes_on_with_this_egokit(resolve, began):
    begin, started = began
    config = resolve(overrides=MODEL)
    handle = begin(config)
    with pytest.raises(launch.NotSubmitted):
        egokit.submit(config, handle.run, "train", "pretrain")
    assert started == {"config": to_dict(config), "module": "egokit.jobs.worker"}


def test_a_task_file_by_earlier_names_is_refused_with_the_way_out(resolve, tmp_path):
    """Its keys can't be known before it is imported, so the error comes before any run is touched."""
    file = tmp_path / "mine.py"
    file.write_text(OLD_TASK)
    with pytest.raises(ConfigError, match=r"mine.py can't be imported: No module named 'egokit.loading'.*CHANGELOG.md"):
        resolve(overrides=f"{MODEL} task={file}:Mine")


def test_an_older_training_is_shown(resolve, began):
    """Notebook 02 on a run of before: the pictures beside its predictions are of its own config."""
    begin, _ = began
    config = resolve(overrides=MODEL)
    clips = tasks.make(config).validation().dataset("test")
    assert pictures(begin(config))(0).shape[2] == 3 and len(clips)


LONG = "x" * 2**20
DAMAGED = [
    *(("task", {"name": bad}) for bad in (5, ["x"], {"a": 1}, [], True, LONG, "\0.py:A", f"{LONG}.py:A")),
    *(("task", bad) for bad in (5, [])), ("data", {"frames": {"a": 1}}), ("data", {"frames": LONG}),
    ("data", {LONG: 1}), ("site", {"name": LONG}), (LONG, 1), ("train", [1]), ("optim", 3),
    ("data", {"tokens": 1, "max_tokens": 2}),
]


@pytest.mark.parametrize("number", range(len(DAMAGED)))
def test_a_damaged_config_of_a_run_is_one_short_line(resolve, began, number):
    """It says which file, or what differs."""
    config, (section, content) = resolve(overrides=MODEL), DAMAGED[number]
    handle = began[0](config)
    spec = handle.spec() | {"config": to_dict(config) | {section: content}}
    write_text(handle.folder / "spec.json", json.dumps(spec))
    with pytest.raises(ConfigError) as raised:
        egokit.submit(config, handle.run, "train", "pretrain")
    message = str(raised.value)
    assert (f"{handle.folder / 'spec.json'}: " in message and "move" in message) or "other parameters" in message
    assert len(message.splitlines()) == 1 and len(message) < 1200, message[:3000]


def test_a_long_hash_of_a_run_is_cut(resolve, began):
    config = resolve(overrides=MODEL)
    handle = began[0](config, init_sha256=LONG, task_sha256=LONG)
    with pytest.raises(ConfigError, match=r"itself: x+… -> ") as raised:
        egokit.submit(config, handle.run, "train", "pretrain")
    assert len(str(raised.value)) < 1200
