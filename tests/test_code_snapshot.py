"""The hash by which two versions of egokit's code are told apart."""
import time

from egokit.jobs import code_snapshot


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
