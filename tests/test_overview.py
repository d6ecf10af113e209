"""`egokit` without arguments, and what `egokit demo` tells while it runs."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import made

from egokit import cli
from egokit.notebook import demo
from egokit.notebook.telling import Telling
from egokit.prep import PARTS, overview
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project's folder with nothing done yet."""
    for name in ("params/sites/toy.yaml", "params/sites/example.yaml", "notebooks/00_quickstart.ipynb",
                 "notebooks/01_data_prep.ipynb"):
        write_text(tmp_path / name, (Path(__file__).parents[1] / name).read_text())
    monkeypatch.setenv("EGOKIT_HOME", str(tmp_path))
    monkeypatch.delenv("EGOKIT_OUTPUTS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # neither nvidia-smi nor SLURM
    return tmp_path


def lines_of(text: str) -> dict[str, list[str]]:
    """The printed lines by their labels."""
    found, label = {}, ""
    width = len(text.splitlines()[0]) - len(text.splitlines()[0].partition(" ")[2].lstrip())
    for line in text.splitlines():
        label = line[:width].strip() or label
        found.setdefault(label, []).append(line[width:])
    return found


def finished(home, notebook):
    write_text(home / "outputs" / notebook / "demo/notebook.ipynb", "{}")


def test_the_first_five_minutes_go_on(home, capsys):
    """At each step of a new user the next command is another one."""
    cli.main([])
    told = lines_of(capsys.readouterr().out)
    assert told["GPU"][0].startswith("none") and told["project"] == [str(home)] and told["runs"] == ["none yet"]
    assert told["site toy"] == ["the embedded data set, not made yet"]
    assert [line.split("  ")[0] for line in told["next"]] == [
        "make demo", "cp params/sites/example.yaml params/sites/local.yaml", "egokit --help"]
    finished(home, "01_data_prep")
    write_text(home / "outputs/toy/prepared.json", "{}")
    told = lines_of(overview.overview())
    assert told["next"][0].endswith("1 of 2 are done, and it goes on") and "prepared: ego4d" in told["site toy"][0]
    finished(home, "00_quickstart")
    site = home / "params/sites/local.yaml"
    write_text(site, f"site: {{root: {home / 'data'}}}\n")
    told = lines_of(overview.overview())
    assert told["site local"] == [f"{home / 'data'}: no such folder"]
    assert [line.split("  ")[0] for line in told["next"]] == ["make lab", "egokit doctor --site local", "egokit --help"]
    for part in PARTS.values():
        (home / "data" / part).mkdir(parents=True)
    assert lines_of(overview.overview())["site local"] == [f"{home / 'data'}; to prepare: ego4d, charades, ek100"]
    write_text(home / "data" / PARTS["charades"] / "metadata_test.csv", "")
    told = lines_of(overview.overview())
    assert told["site local"] == [f"{home / 'data'}; prepared: charades; to prepare: ego4d, ek100"]
    assert told["next"][1].startswith("egokit compare 04_charades_ego --site local --init EgoVLPv2_smallproj_epoch1")
    write_text(home / "data/prepared.json", "{}")
    assert lines_of(overview.overview())["next"][1].startswith("egokit run 05_egomcq --params egomcq --site local")


@pytest.mark.parametrize("text, told", [
    ("site: {rooot: /data}", "site.rooot"), ("site:\n  # root: /data", "site.root is not set"), ("", "is not set"),
    ("site: [1]", "expected keys with values below it"), ("site.root: /away", "/away: no such folder"),
    ("- 1", "expected sections and keys"), ("site: {root: 3}", "site.root .*expected"), ("site: {", "local.yaml")])
def test_any_site_file_gives_a_line(home, text, told):
    write_text(home / "params/sites/local.yaml", text)
    assert re.search(told, lines_of(overview.overview())["site local"][0])


def test_runs_that_need_somebody_come_first(home):
    running, failed = (Run(home / "outputs/02_pretrain" / name) for name in ("mine", "broken"))
    made(running, cluster="local", job_id=str(os.getpid()), host="elsewhere")
    made(failed, cluster="local", job_id="1", host=os.uname().nodename)
    told = lines_of(overview.overview())
    assert any(line.startswith("02_pretrain/broken, pretrain: failed") for line in told["runs"])
    assert told["next"][0].startswith("egokit runs") and "troubleshooting" in told["next"][0]
    (failed.path / "metrics.json").write_text("{")
    assert any("unreadable" in line for line in lines_of(overview.overview())["runs"])


def test_pytorch_is_not_imported(home):
    code = "from egokit import cli; cli.main([]); import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_the_demo_tells_what_a_job_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EGOKIT_OUTPUTS", str(tmp_path))
    run = Run(tmp_path / "02_pretrain/demo")
    old = run.figure("old.png")
    write_text(old, "of an earlier run")
    os.utime(old, (1, 1))
    telling = Telling(run)
    assert telling.lines() == []
    job = made(run, cluster="local", job_id="1", host="elsewhere")
    first = telling.lines()
    assert len(first) == 1 and first[0].startswith("pretrain: ") and telling.lines() == [], "told once"
    run.log({"kind": "validation", "step": 20, "steps": 200, "best": True, "ensemble_intra": 41.25})
    job.run.write_metrics("pretrain", {"finished": True, "ensemble_intra": 41.25, "score": "ensemble_intra"})
    assert telling.lines() == ["pretrain: finished; ensemble_intra 41.2 %"]
    write_text(run.figure("curves.png"), "new")
    write_text(run.path / "notebook.ipynb", json.dumps({}))
    assert telling.pictures().split() == ["look", "at", "outputs/02_pretrain/demo/notebook.ipynb",
                                          "look", "at", "outputs/02_pretrain/demo/figures/curves.png"]


def test_every_notebook_has_a_purpose():
    for name in demo.notebook_names():
        assert 20 < len(demo.purpose(name)) < 200 and not set("\n$*") & set(demo.purpose(name)), name
