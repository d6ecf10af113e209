"""The callable that submitit runs, whatever kind of job it is; tests/test_slurm.py and others run real ones."""
import json
import pickle

import pytest

from egokit.jobs.worker import Work
from egokit.runs.files import write_text

MODULE = """
def work(folder, spec, *arguments):
    if "x" in arguments:
        raise ValueError("no such shard")
    (folder / "done").write_text(f"{spec['word']} {arguments}")
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Return a pickled and loaded Work whose spec names the function above, in a process of a local job."""
    (tmp_path / "of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    for key, value in {"EXECUTOR": "local", "LOCAL_JOB_ID": "7", "LOCAL_GLOBALID": "3"}.items():
        monkeypatch.setenv(f"SUBMITIT_{key}", value)
    write_text(tmp_path / "job/spec.json", json.dumps({"function": "of_a_test:work", "word": "made"}))
    return pickle.loads(pickle.dumps(Work(str(tmp_path / "job/spec.json"))))


def test_it_calls_the_function_that_its_spec_names(job, tmp_path):
    for arguments in ((), (5,)):  # of a job, and of one of an array's
        job(*arguments)
        assert (tmp_path / "job/done").read_text() == f"made {arguments}"
    assert not (tmp_path / "job/failures").exists()
    with pytest.raises(ValueError, match="no such shard"):
        job("x")
    assert "ValueError: no such shard" in (tmp_path / "job/failures/7-0-rank3.txt").read_text()


def test_what_is_queued_again_is_the_same(job, tmp_path):
    for arguments in ((), (5,)):
        again = job.checkpoint(*arguments)
        again.function(*again.args, **again.kwargs)
        assert (tmp_path / "job/done").read_text() == f"made {arguments}"
