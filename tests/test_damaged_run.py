"""A damaged file in one run's folder is named in that run's row, and hides no other run."""
import json
import os
import tracemalloc
from types import SimpleNamespace

import pytest

from egokit import cli
from egokit.jobs import requeue, runs_table
from egokit.jobs.handle import Handle
from egokit.runs import ledger
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.train import training_state
from egokit.viz.curves import curves

DEEP = "[" * 100_000
NESTED = '{"a":' * 100 + "1" + "}" * 100
LOG = ["5", "[1]", '{"a": 1}', "\xff", DEEP, NESTED, '{"kind": []}', '{"kind": "step"}', '{"kind": "x", "steps": 3}',
       '{"kind": "plan", "step": 0}', '{"kind": "plan", "plan": "x"}',
       '{"kind": "step", "step": 1e400}', '{"kind": "step", "step": 1' + "0" * 400 + "}",
       '{"kind": "step", "step": 1, "time": 1e300}', '{"kind": "step", "step": 1, "watched": [1]}',
       '{"kind": "step", "step": 1, "eta_s": "soon"}', '{"kind": "validation", "step": 1, "predictions": [{}]}',
       '{"kind": "validation", "step": 1, "predictions": []}', "{" + 300 * " ", "\0"]
FILES = {
    "jobs/s/spec.json": ["5", "", "[]", DEEP, NESTED, "null", "\xff", '{"action": []}', '{"gpus": 3}', '{"run": 1}'],
    "jobs/s/job.json": ["5", "", "{}", DEEP, '{"cluster": 3, "job_id": "1"}', '{"cluster": "slurm", "job_id": "-h"}',
                        '{"cluster": "slurm", "job_id": 7}', '{"cluster": "local", "job_id": "1", "host": 5}'],
    "jobs/s/progress.json": ["5", "{}", "[]", DEEP, '{"step": 1, "steps": 1e400, "time": 1}',
                             '{"step": 1, "steps": 2, "time": 1e30}', '{"step": -1, "steps": 2, "time": 1}'],
    "metrics.json": ["5", DEEP, '{"s": 5}', '{"s": {"finished": true, "score": [1]}}',
                     '{"s": {"finished": true, "score": "R@1", "R@1": "y"}}',
                     '{"s": {"finished": true, "mAP": 1e999}}'],
}


def make(outputs, name, action="train"):
    run = Run(outputs / "nb" / name)
    (run.path / "jobs/s").mkdir(parents=True)
    (run.path / "jobs/s/spec.json").write_text(json.dumps({"action": action}))
    (run.path / "jobs/s/job.json").write_text(json.dumps({"cluster": "local", "job_id": "1", "host": "elsewhere"}))
    return run


def table(outputs, capsys):
    """The table's rows, which `egokit runs` prints too, by run."""
    cli.main(["runs", "--outputs", str(outputs)])
    printed = capsys.readouterr().out
    rows = {row.run: row for row in runs_table.job_rows(outputs)}
    assert all(f" {name} " in printed for name in rows) and rows["good"].state == "unknown"
    assert len(runs_table.runs_table(outputs)) == len(rows) and "good" in rows
    return rows


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_in_its_runs_row(tmp_path, capsys, file):
    make(tmp_path, "good")
    runs = [make(tmp_path, f"d{n}", "evaluate" if "progress" in file else "train") for n in range(len(FILES[file]) + 1)]
    for run, text in zip(runs, FILES[file], strict=False):
        (run.path / file).write_text(text, encoding="latin1")
    (runs[-1].path / file).unlink(missing_ok=True)
    (runs[-1].path / file).mkdir()
    rows = table(tmp_path, capsys)
    for run in runs:
        row = rows[run.path.name]
        assert row.state == "unreadable" and str(run.path) in row.detail and file.rpartition("/")[2] in row.detail
        assert len(row.detail.splitlines()) == 1 and len(row.detail) < 600
        assert ("unreadable" in repr(Handle(run, "s"))) >= ("job.json" in file)
    ledger.read(tmp_path)


def test_a_damaged_line_of_a_log_is_named_and_left_out(tmp_path, capsys):
    make(tmp_path, "good")
    step = json.dumps({"kind": "step", "step": 3, "steps": 9, "epoch": 1, "loss": 1.0, "time": 5})
    for number, line in enumerate(LOG):
        run = make(tmp_path, f"d{number}")
        (run.path / "log.jsonl").write_text(f"{step}\n{line}\n{step}\n", encoding="latin1")
    for number, row in table(tmp_path, capsys).items():
        if number == "good":
            continue
        run = Run(tmp_path / "nb" / number)
        assert (row.step, row.steps) == (3, 9), number
        assert f"{run.path / 'log.jsonl'}: line 2 is damaged, " in row.detail and "delete" in row.detail
        assert [event["step"] for event in run.read_log()] == [3, 3]
        history = History(run.path)
        assert history.update() and history.training.rows == 2
        run.truncate_log(lambda event: True)
        assert (run.path / "log.jsonl").read_text() == f"{step}\n{step}\n"
    curves(Run(tmp_path / "nb/d0"))


def test_a_run_that_this_user_may_not_look_into_is_a_row(tmp_path, monkeypatch, capsys):
    make(tmp_path, "good")
    closed = make(tmp_path, "closed").path

    def refuse(path, exists=runs_table.exists):
        if path == closed:
            raise PermissionError(f"{path} may not be read by this user")
        return exists(path)
    monkeypatch.setattr(runs_table, "exists", refuse)  # tests may run as root, who may read all
    (closed / "jobs").rename(tmp_path / "elsewhere")  # what glob finds in a closed folder: nothing
    row = table(tmp_path, capsys)["closed"]
    assert (row.notebook, row.state) == ("nb", "unreadable") and str(closed) in row.detail


def test_odd_files_beside_a_job_hide_nothing(tmp_path, capsys):
    make(tmp_path, "good")
    folder = Handle(make(tmp_path, "odd"), "s").folder
    os.mkfifo(folder / "devices.txt")
    os.utime(folder / "spec.json", (1e15, 1e15))
    assert table(tmp_path, capsys)["odd"].device == ""


def test_a_torn_last_line_is_no_damage(tmp_path):
    run = make(tmp_path, "good")
    (run.path / "log.jsonl").write_text('{"kind": "step", "step": 3, "steps": 9}\n{"kind": "st')
    assert runs_table.job_rows(tmp_path)[0].detail == "was started on elsewhere: ask there"


def test_damage_is_one_line_for_what_goes_on_with_a_job(tmp_path, monkeypatch):
    run = make(tmp_path, "good")
    folder = Handle(run, "s").folder
    (folder / "failures.json").write_text('[{"attempt": 7}]')
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(ValueError, match=r"failures.json: 'attempt' is 7"):
        requeue.decide(folder, run, "train", 3)
    with pytest.raises(ValueError, match=r"spec.json: 'config' is missing, .*; move"):
        Handle(run, "s").spec("config")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\0", bytes(100)])
def test_damaged_rows_are_named(tmp_path, content):
    run = Run(tmp_path)
    run.write_rows("s", {"a": [1, 2], "name": ["x", "y"]}, [[1.0]])
    whole = (tmp_path / "rows-s.npz").read_bytes()
    assert run.read_rows("s")[0]["name"].tolist() == ["x", "y"]
    for damaged in (content, whole[:300], whole.replace(b"(2,)", b"(9,)"), whole.replace(b"'<i8'", b"'|O8'")):
        (tmp_path / "rows-s.npz").write_bytes(damaged)
        if damaged[:4] == b"PK\x05\x06":
            assert run.read_rows("s") == ({}, None)
            continue
        with pytest.raises(ValueError, match=r"rows-s.npz: .*; delete it"):
            run.read_rows("s")


def test_a_resumed_training_keeps_what_has_no_step(tmp_path):
    """Other jobs of the run log it; events of steps after the checkpoint are dropped."""
    run = make(tmp_path, "good")
    lines = ['{"kind": "bad", "said": "x"}', '{"kind": "bad", "said": "y", "step": 7}', '{"kind": "plan", "step": 0}',
             '{"kind": "step", "step": 5}']
    (run.path / "log.jsonl").write_text("\n".join([*lines, ""]))
    training_state.drop_later_events(SimpleNamespace(run=run, validated=5, step=5))
    assert (run.path / "log.jsonl").read_text().splitlines() == [lines[0], lines[3]]


def test_files_of_a_run_are_small(tmp_path, capsys):
    make(tmp_path, "good")
    for number, name in enumerate(("jobs/s/spec.json", "jobs/s/job.json", "metrics.json")):
        (make(tmp_path, f"d{number}").path / name).write_text(json.dumps({"a": ["x" * (9 << 20)]}))
    for number, row in table(tmp_path, capsys).items():
        assert number == "good" or ("bytes, expected 8,388,608 at most" in row.detail and row.state == "unreadable")


def test_a_long_log_takes_no_memory_for_its_progress(tmp_path):
    run = make(tmp_path, "good")
    (run.path / "log.jsonl").write_text('{"kind":"step","step":3,"steps":9}\n' + '{"kind":"x"}\n' * 50_000)
    tracemalloc.start()
    try:
        assert Handle(run, "s").progress() == {"kind": "step", "step": 3, "steps": 9}
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
