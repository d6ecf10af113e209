"""A run folder may be somebody else's work: nothing that only it holds or names is executed."""
import importlib.util
import json
import os
import shlex
import shutil

import pytest
from conftest import MODEL

import egokit
from egokit import cli, tasks
from egokit.config.build import ConfigError, to_dict
from egokit.jobs import code_snapshot, launch, starter
from egokit.notebook import headless
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run
from egokit.viz.predictions import pictures


@pytest.fixture
def state(tmp_path, monkeypatch):
    """An empty record of this user's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/egokit/code"


@pytest.fixture
def mark(tmp_path):
    """Return a file, and the Python line that makes it: it exists if the line was executed."""
    return tmp_path / "executed", f"open({str(tmp_path / 'executed')!r}, 'w').close()\n"


@pytest.fixture
def unfinished(state, tmp_path, monkeypatch):
    """(config, fields of the spec -> handle of its interrupted run), and what a new start would get; none is started.

    The copy of the code is the present egokit, without a record.
    """
    started = []

    def begin(config, name="theirs", **spec):
        run = Run(tmp_path / "outputs/02_pretrain" / name)
        (run.path / "checkpoints").mkdir(parents=True)
        (run.path / "checkpoints/step-0000001.pt").touch()
        handle = launch.Handle(run, "pretrain")
        write_text(handle.folder / "spec.json", json.dumps(
            {"config": to_dict(config), "action": "train", "init_sha256": "", **spec}))
        code_snapshot.snapshot_code(handle.folder, keep=False, task=config.task.name)
        shutil.rmtree(state)
        return handle

    def refuse(module, folder, code, *args):
        started.append({path.relative_to(code).as_posix(): path.read_bytes()
                        for path in code.rglob("*") if path.is_file()})
        raise launch.NotSubmitted("no")
    monkeypatch.setattr(starter, "start_job", refuse)
    return begin, started


def resume(config, handle, error=launch.NotSubmitted, match=None):
    with pytest.raises(error, match=match) as caught:
        egokit.submit(config, handle.run, "train", "pretrain")
    return str(caught.value)


def edited(code, line):
    path = code / "egokit/jobs/worker.py"
    path.write_text(path.read_text() + line)


def added(code, line):
    (code / "json.py").write_text(line)  # the starter's path begins there, before Python's own


def linked(code, line):
    (code.parent / "elsewhere.py").write_text(line)
    (code / "egokit/jobs/worker.py").unlink()
    (code / "egokit/jobs/worker.py").symlink_to(code.parent / "elsewhere.py")


def replaced_by_a_link(code, line):
    edited(code, line)
    code.rename(code.parent / "elsewhere")
    code.symlink_to(code.parent / "elsewhere")


def piped(code, line):
    os.mkfifo(code / "egokit/pipe.py")


def enormous(code, line):
    with open(code / "egokit/large.py", "w") as file:
        file.truncate(2**40)


def nested(code, line):
    (code / "/".join(["a"] * 300)).mkdir(parents=True)


PLANTED = [edited, added, linked, replaced_by_a_link, piped, enormous, nested]


@pytest.mark.parametrize("plant", PLANTED)
def test_code_that_is_not_this_users_is_not_executed(resolve, unfinished, mark, plant):
    (begin, started), (made, line) = unfinished, mark
    config = resolve(overrides=MODEL)
    handle = begin(config)
    plant(handle.folder / "code", line)
    sha256 = "" if plant in (linked, replaced_by_a_link, piped, enormous, nested) else code_snapshot.content_sha256(
        code_snapshot.read_copy(handle.folder / "code"))
    write_text(handle.folder / "spec.json", json.dumps(handle.spec() | {"code_sha256": sha256, "code": sha256[:12]}))
    before = {path: path.read_bytes() for path in handle.run.path.rglob("*.json")}
    message = resume(config, handle, ConfigError, match=str(handle.folder / "code"))
    assert "\n" not in message and "delete " in message and not made.exists() and started == []
    assert before == {path: path.read_bytes() for path in handle.run.path.rglob("*.json")}
    assert not (handle.run.path / "params.yaml").exists() and not list(handle.folder.glob(".*"))
    path = handle.folder / "code"
    path.unlink() if path.is_symlink() else shutil.rmtree(path)
    resume(config, handle)  # as the message says
    assert list(started[0]) and "egokit/jobs/worker.py" in started[0] and not made.exists()


def test_the_present_code_and_ones_own_earlier_code_go_on_wherever_the_run_lies(resolve, unfinished, tmp_path, capsys):
    begin, started = unfinished
    config = resolve(overrides=MODEL)
    handle = begin(config)
    resume(config, handle)
    edited(handle.folder / "code", "# of an earlier version\n")
    resume(config, handle, ConfigError, match="egokit trust")
    code_snapshot.remember(code_snapshot.read_copy(handle.folder / "code"))  # as the earlier version did
    shutil.copytree(handle.run.path, tmp_path / "elsewhere/02_pretrain/mine")
    resume(config, launch.Handle(Run(tmp_path / "elsewhere/02_pretrain/mine"), "pretrain"))
    assert started[1]["egokit/jobs/worker.py"].endswith(b"# of an earlier version\n")
    assert "is made by another version of egokit's code" in capsys.readouterr().out


def test_what_runs_is_a_private_copy_without_compiled_files(resolve, unfinished):
    """Python executes a compiled file whose header fits its source without a look at the source."""
    begin, started = unfinished
    config = resolve(overrides=MODEL)
    handle = begin(config)
    worker = handle.folder / "code/egokit/jobs/worker.py"
    compiled = importlib.util.cache_from_source(worker)
    os.makedirs(os.path.dirname(compiled))
    with open(compiled, "wb") as file:
        file.write(b"planted")
    for path in [handle.folder / "code", *(handle.folder / "code").rglob("*")]:
        path.chmod(0o777)
    before = os.umask(0)
    try:
        resume(config, handle)
    finally:
        os.umask(before)
    assert "egokit/jobs/worker.py" in started[0] and not [name for name in started[0] if name.endswith(".pyc")]
    assert not [path for path in [handle.folder / "code", *worker.parents[1].rglob("*")] if path.stat().st_mode & 0o022]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_whose_files_they_are_matters_not_but_what_they_hold(resolve, unfinished):
    """On a share, or after a container of root's, one's own copy may be of another user."""
    begin, started = unfinished
    config = resolve(overrides=MODEL)
    code = begin(config).folder / "code"
    handle = launch.Handle(Run(code.parents[2]), "pretrain")
    for path in [code, *code.rglob("*")]:
        os.chown(path, 12345, -1)
    resume(config, handle)
    assert "egokit/jobs/worker.py" in started[0] and code.stat().st_uid == 0
    edited(code, "# theirs\n")
    os.chown(code / "egokit/jobs/worker.py", 12345, -1)
    resume(config, handle, ConfigError, match="in files of user 12345, .*egokit trust")


def test_what_the_refusal_says_to_do_keeps_the_run(resolve, unfinished, tmp_path):
    """The folder to delete is the copy of the code, and the command can be pasted."""
    begin, _ = unfinished
    config = resolve(overrides=MODEL)
    handle = begin(config, "my $(run)")
    edited(handle.folder / "code", "# theirs\n")
    message = resume(config, handle, ConfigError, match="or made before egokit kept a record of it")
    assert f"delete {handle.folder / 'code'} alone; " in message
    assert shlex.split(message.partition("command: ")[2]) == ["egokit", "trust", str(handle.run.path)]


def test_trusted_by_command(resolve, unfinished, capsys):
    begin, started = unfinished
    config = resolve(overrides=MODEL)
    handle = begin(config)
    edited(handle.folder / "code", "# theirs\n")
    cli.main(["trust", str(handle.run.path)])
    sha256 = code_snapshot.content_sha256(code_snapshot.read_copy(handle.folder / "code"))[:12]
    assert capsys.readouterr().out == f"{handle.folder / 'code'}: may be executed (hash {sha256})\n"
    resume(config, handle)
    assert started[0]["egokit/jobs/worker.py"].endswith(b"# theirs\n")
    edited(handle.folder / "code", "# and more\n")
    resume(config, handle, ConfigError, match="egokit trust")
    for folder in (handle.run.path / "checkpoints", handle.run.path / "nowhere"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["trust", str(folder)])
        assert "no job has left a copy" in capsys.readouterr().err


TASK = "from egokit.tasks.egoclip import EgoClip\nclass Mine(EgoClip):\n    notebook = '02_pretrain'\n"


def test_comparing_a_run_executes_no_task_of_its_folder(resolve, unfinished, mark, tmp_path):
    """Neither the copy of this user's task nor a task that the run's spec names."""
    (begin, _), (made, line) = unfinished, mark
    mine, theirs = tmp_path / "mine.py", tmp_path / "theirs.py"
    mine.write_text(TASK)
    theirs.write_text(TASK + line)
    config = resolve(overrides=f"{MODEL} task={mine}:Mine")
    handle = begin(config, task_sha256=code_snapshot.task_sha256(config.task.name), opened=to_dict(config))
    (handle.folder / "code/task/mine.py").write_text(TASK + line)
    headless.expect_same_jobs(config, handle.run.path)
    resume(config, handle, ConfigError, match="holds code that this user's egokit has not made")
    plain = to_dict(config)
    plain["task"]["name"] = f"{theirs}:Mine"
    write_text(handle.folder / "spec.json", json.dumps(handle.spec() | {"config": plain, "opened": plain}))
    for check in (lambda: resume(config, handle, ConfigError, match=f"task.name: {theirs}:Mine -> {mine}:Mine"),
                  lambda: resume(resolve(overrides=MODEL), handle, ConfigError, match="task.name: .*theirs.py:Mine")):
        check()
    with pytest.raises(ConfigError, match=r"task.name: .*theirs.py:Mine"):
        headless.expect_same_jobs(config, handle.run.path)
    with pytest.raises(ConfigError, match=r"names the task '.*theirs\.py:Mine'.*not executed"):
        pictures(handle)(0)
    assert not made.exists()


def test_a_run_of_ones_own_task_is_shown(resolve, state, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(TASK)
    config = resolve(overrides=f"{MODEL} task={mine}:Mine")
    handle = launch.Handle(Run(tmp_path / "02_pretrain/mine"), "pretrain")
    code_snapshot.snapshot_code(handle.folder, keep=False, task=config.task.name)
    write_text(handle.folder / "spec.json", json.dumps({"config": to_dict(config)}))
    assert pictures(handle)(0).shape[2] == 3 and tasks.find(config.task.name).__name__ == "Mine"


def test_a_spec_adds_no_line_to_a_jobs_script(resolve):
    """The config of a run that goes on with an earlier egokit has that egokit's keys, and this user's values."""
    config = to_dict(resolve(overrides=MODEL))
    earlier = {"launch": {"setup": ["evil"], "prolog": "evil"}, "launch.setup": ["evil"], "launch.other": "evil",
               "task": {"name": "egoclip", "margin_of_another": 0.2}}
    kept = launch.downgrade_config(config, earlier)
    assert "evil" not in json.dumps(kept) and kept["task"]["margin_of_another"] == 0.2


@pytest.mark.parametrize("mode, earlier", [("none", False), ("cheap", True), ("full", True)])
def test_an_earlier_egokit_is_told_whether_to_recompute_by_true_or_false(resolve, mode, earlier):
    config = to_dict(resolve(overrides=f"{MODEL} model.checkpointing={mode}"))
    kept = launch.downgrade_config(config, {"model": {"checkpointing": True, "depth": 1}, "model.checkpointing": True})
    assert kept["model"] == {"checkpointing": earlier, "depth": config["model"]["depth"]}
    same = launch.downgrade_config(config, {"model": {"checkpointing": "full"}})
    assert same["model"]["checkpointing"] == mode


def test_what_an_earlier_job_left_is_not_loaded_by_the_next(state, tmp_path, monkeypatch):
    """submitit loads <job id>_submitted.pkl, ranks meet by what meeting-<job id> says, and ids can be guessed."""
    monkeypatch.setattr(starter, "start_job", lambda *args: None)
    folder, elsewhere = tmp_path / "jobs/train", tmp_path / "elsewhere"
    for name in ("submitit/7_submitted.pkl", "submitit/7_0_result.pkl", "meeting-7-0", "submitit/7_0_log.err"):
        write_text(folder / name, "theirs")
    starter.start_work(folder, {}, None)
    assert [path.name for path in (folder / "submitit").iterdir()] == ["7_0_log.err"]
    assert not (folder / "meeting-7-0").exists()
    write_text(elsewhere / "mine.pkl", "mine")
    shutil.rmtree(folder / "submitit")
    (folder / "submitit").symlink_to(elsewhere)
    starter.start_work(folder, {}, None)
    assert (elsewhere / "mine.pkl").exists() and not (folder / "submitit").exists()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_its_trusted_copy(resolve, state, tmp_path):
    """Real processes: killed, its copy edited and refused, then trusted and executed to the end."""
    from training import wait_for
    run = Run(tmp_path / "outputs/02_pretrain/theirs")
    config = resolve(overrides=f"{MODEL} train.checkpoint_steps=1 train.epochs=3 launch.cpus_per_task=1")
    job = egokit.submit(config, run)
    wait_for(lambda: [*run.checkpoints.glob("step-*.pt")])
    job.cancel()
    assert not job.metrics()
    edited(job.folder / "code", f"open({str(tmp_path / 'executed')!r}, 'w').close()\n")
    with pytest.raises(ConfigError, match="egokit trust"):
        egokit.submit(config, run)
    assert not (tmp_path / "executed").exists()
    code_snapshot.trust_code(run.path)
    assert egokit.submit(config, run).wait(progress=False)["finished"] and (tmp_path / "executed").exists()
