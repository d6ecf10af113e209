"""A job's copy of the code: its hash, its record, and the folders in which it lies."""
import os
import time

import pytest
from conftest import MODEL

from egokit import cli
from egokit.config import trust
from egokit.config.build import ConfigError
from egokit.jobs import code_snapshot, launch, starter
from egokit.runs.run_folder import Run


def test_a_copy_has_the_hash_of_its_original_until_it_is_edited(tmp_path, monkeypatch):
    """Compiled files and an editor's hidden ones don't count; names, contents and new files do."""
    original, package = code_snapshot.code_sha256(), code_snapshot.snapshot_code(tmp_path, keep=False) / "egokit"
    monkeypatch.setattr(code_snapshot, "__file__", str(package / "jobs/code_snapshot.py"))
    (package / "jobs/__pycache__").mkdir()
    (package / "jobs/__pycache__/launch.pyc").touch()
    (package / ".launch.py.swp").touch()
    assert code_snapshot.code_sha256() == original and len(original) == 12
    hashes = {original}
    (package / "viz/browser.css").write_text("/* edited */")
    hashes.add(code_snapshot.code_sha256())
    (package / "viz/browser.css").rename(package / "viz/other.css")
    hashes.add(code_snapshot.code_sha256())
    (package / "new").touch()
    hashes.add(code_snapshot.code_sha256())
    assert len(hashes) == 4


def test_the_hash_is_fast():
    seconds = []
    for _ in range(5):
        began = time.process_time()  # other tests run beside it
        code_snapshot.code_sha256()
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.03


def test_a_copy_is_not_rewritten_if_it_can_not_be_recorded(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/theirs.py").touch()
    before = (tmp_path / "code").stat().st_ino
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/nowhere")
    with pytest.raises(OSError):
        code_snapshot.trust_code(tmp_path)
    assert (tmp_path / "code").stat().st_ino == before


def test_a_record_that_others_may_write_counts_for_nothing(tmp_path, monkeypatch):
    state = tmp_path / "state/egokit/code"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    sha256 = "a" * 64
    trust.remember(sha256)
    assert trust.is_known(sha256) and not trust.is_known("b" * 64) and not trust.is_known("../code")
    state.chmod(0o777)
    assert not trust.is_known(sha256)
    with pytest.raises(PermissionError, match="XDG_STATE_HOME"):
        trust.remember(sha256)
    state.chmod(0o700)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert not trust.is_known(sha256)


def test_without_a_place_for_the_record_jobs_start_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/nowhere")
    code = code_snapshot.snapshot_code(tmp_path, keep=False)
    assert (code / "egokit/cli/__init__.py").is_file() and "no record of this job's code" in capsys.readouterr().out
    assert code_snapshot.snapshot_code(tmp_path, keep=True) == code, "the present code needs no record"


@pytest.mark.parametrize("name", ["features", "checkpoints", "jobs", "jobs/train/lock", "log.jsonl", "figures/a.png"])
def test_a_link_in_a_run_folder_leads_no_writing_elsewhere(resolve, tmp_path, name):
    outside, run = tmp_path / "outside", Run(tmp_path / "theirs")
    (outside / "train").mkdir(parents=True)
    (run.path / name).parent.mkdir(parents=True, exist_ok=True)
    (run.path / name).symlink_to(outside if "." not in name and "lock" not in name else outside / "file")
    with pytest.raises(ConfigError, match=rf"{name} is a link, and this run would write where it leads"):
        launch.submit(resolve(overrides=MODEL), run)
    assert [path.name for path in outside.rglob("*")] == ["train"]


@pytest.fixture
def start(resolve, tmp_path, monkeypatch):
    """(the run, a function that submits its job up to the start)."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(starter, "start_job", lambda *args: None)
    run = Run(tmp_path / "outputs/02_pretrain/mine")
    (run.path / "jobs/train").mkdir(parents=True)
    return run, lambda: launch.submit(resolve(overrides=MODEL), run)


PLACES = ["", "jobs", "jobs/train"]


@pytest.mark.parametrize("place", PLACES)
def test_no_job_starts_where_everybody_could_exchange_its_code(start, place):
    run, submit = start
    (run.path / place).chmod(0o777)
    with pytest.raises(ConfigError, match=f"^{run.path / place} may be written by everybody.*chmod o-w {run.path}"):
        submit()
    assert not (run.path / "params.yaml").exists() and not (run.path / "jobs/train/code").exists()
    (run.path / place).chmod(0o1777)
    submit()
    for name in PLACES:
        (run.path / name).chmod(0o2775)
    submit()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders to others")
@pytest.mark.parametrize("place", PLACES)
def test_no_job_starts_in_a_folder_of_another_user(start, place):
    run, submit = start
    os.chown(run.path / place, 12345, -1)
    with pytest.raises(ConfigError, match=f"^{run.path / place} belongs to user 12345, .*another run name"):
        submit()


def test_a_share_that_gives_all_files_to_one_user_is_no_other_users(tmp_path, monkeypatch):
    """Such as root's folders on a share for whose server root is nobody."""
    owner = os.geteuid() or 12345
    os.chown(tmp_path, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(code_snapshot, "_owner_of_new_files", lambda folder: owner)
    code_snapshot.expect_own_folders(tmp_path / "train")
    monkeypatch.undo()
    assert code_snapshot._owner_of_new_files(tmp_path) == os.geteuid() and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("place", ["", "batch"])
def test_jobs_that_run_notebooks_start_nowhere_else(tmp_path, place):
    (tmp_path / "run/batch").mkdir(parents=True)
    (tmp_path / "run" / place).chmod(0o777)
    with pytest.raises(ConfigError, match="may be written by everybody"):
        starter.start_work(tmp_path / "run/batch", {}, None)


def test_a_link_of_ones_own_may_be_trusted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = Run(tmp_path / "mine")
    (tmp_path / "scratch").mkdir()
    (run.path / "checkpoints").symlink_to(tmp_path / "scratch")
    cli.main(["trust", str(run.path)])
    assert f"checkpoints: may be followed, to {tmp_path / 'scratch'}" in capsys.readouterr().out
    run.expect_no_links()
    left = run.path / "jobs/train/submitit/.submission_file_0a.sh"
    left.parent.mkdir(parents=True)
    left.symlink_to(left.parent / "gone.sh")  # as submitit leaves them
    run.expect_no_links()
    (run.path / "checkpoints").unlink()
    (run.path / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="checkpoints is a link"):
        run.expect_no_links()
