"""A job's copy of the code: its hash, its record, and the folders in which it lies."""
import os
import time

import pytest
from conftest import MODEL

from egokit.config import trust
from egokit.config.build import ConfigError
from egokit.jobs import code_snapshot, launch
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
        began = time.perf_counter()
        code_snapshot.code_sha256()
        seconds.append(time.perf_counter() - began)
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
    assert (code / "egokit/cli.py").is_file() and "no record of this job's code" in capsys.readouterr().out
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
