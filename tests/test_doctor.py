"""The doctor on a sound site, and on every kind of damage.

Each damage is a finding that says what to do, never a traceback.
"""
import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
from conftest import ROOT

from egokit import cli, tasks
from egokit.config.schema import Config
from egokit.data.annotation_tables import read_metadata
from egokit.data.site_checks import Checks
from egokit.prep import doctor


@pytest.fixture
def site(resolve, copied):
    """Return a config whose root is a copy of the tiny data set, and that root."""
    on_copy, root = copied
    return on_copy(resolve()), root


def problems(config) -> dict[str, str]:
    """Return {"part what": "message -> fix"} of everything missing or wrong."""
    return {f"{finding.part} {finding.what}": f"{finding.message} -> {finding.fix}"
            for finding in doctor.examine(config) if finding.state in ("missing", "wrong")}


def test_a_sound_site(site):
    config, _ = site
    findings = doctor.examine(config)
    assert doctor.is_sound(findings) and not problems(config)
    text = doctor.format_findings(findings)
    for expected in ("egoclip.csv: found", "narrations of", "inter-video", "relevancy of test", "frame rates: ",
                     "without an action", "malformed rows", "rows end within them"):
        assert expected in text, expected


def test_absent_videos_and_files_are_counted_and_named(site):
    config, root = site
    gone = sorted((root / "Ego4D_Chunked").iterdir())[0]
    shutil.rmtree(gone)
    next(root.glob("EK100/video_ht256px/*/*.MP4")).unlink()
    (root / "CharadesEgo/CharadesEgo/metadata_train.csv").unlink()
    (root / "moments_val.json").unlink()
    problem_of = problems(config)
    rows = problem_of.get("EgoClip rows", "") + problem_of.get("EgoMCQ choices", "")
    assert f"1 videos that are not under Ego4D_Chunked/, such as {gone.name}" in rows
    assert "egokit prep ego4d --site tiny" in rows
    assert any(key.startswith("EK-100 clips of") and "not under video_ht256px/" in text
               for key, text in problem_of.items())
    assert "egokit prep" in problem_of["Charades-Ego CharadesEgo/CharadesEgo/metadata_train.csv"]
    assert "ego4d --datasets annotations" in problem_of["EgoMQ moments_val.json"]
    assert not doctor.is_sound(doctor.examine(config))


def test_tables_that_contradict_the_videos(site):
    config, root = site
    folder = root / "EK100/epic-kitchens-100-annotations/retrieval_annotations/relevancy"
    (folder / "caption_relevancy_EPIC_100_retrieval_test.safetensors").unlink()
    (folder / "caption_relevancy_EPIC_100_retrieval_test.pkl").write_bytes(pickle.dumps(np.ones((3, 4), np.float32)))
    manifest = json.loads((root / "prepared.json").read_text())
    manifest["lines"][0] |= {"status": "failed", "reason": "a.mp4: no video stream"}
    manifest["lines"][1] |= {"status": "pending"}
    (root / "prepared.json").write_text(json.dumps(manifest))
    moments = json.loads((root / "moments_train.json").read_text())
    moments["videos"][0]["clips"][0]["video_end_sec"] = 9999.0
    (root / "moments_train.json").write_text(json.dumps(moments))
    problem_of = problems(config)
    assert "is 3 x 4, but EPIC_100_retrieval_*.csv have" in problem_of["EK-100 relevancy of test"]
    assert ("1 failed: a.mp4: no video stream -> egokit prep ego4d --site tiny (tries them again)"
            in problem_of["EgoClip prepared.json"])
    assert "1 full videos are not prepared yet -> egokit prep ego4d --site tiny" in problem_of["EgoClip Ego4D"]
    notes = [finding.message for finding in doctor.examine(config) if finding.state == "note"]
    assert any("rows beyond their end" in note and "9999.0 s" in note for note in notes)


def test_damaged_files_are_findings(site):
    config, root = site
    uid = read_metadata(root / "CharadesEgo/CharadesEgo/metadata_train.csv").id[0]
    (root / f"CharadesEgo/CharadesEgo_v1_480/{uid}.mp4").write_bytes(b"<html>")
    (root / "egomcq.json").write_text("{")
    (root / "egoclip.csv").write_text("nothing\n")
    (root / "prepared.json").write_text("[]")
    folder = root / "EK100/epic-kitchens-100-annotations/retrieval_annotations"
    (folder / "EPIC_100_retrieval_test.csv").write_text("a,b\n1,2\n")
    no_tokenizer = dataclasses.replace(config.site, tokenizer=str(root / "none"))
    problem_of = problems(dataclasses.replace(config, site=no_tokenizer))
    assert "videos opened can't be read" in problem_of["Charades-Ego training segments"]
    assert "egomcq.json: not JSON" in problem_of["EgoMCQ egomcq.json"]
    assert "prepared.json: expected what" in problem_of["EgoClip prepared.json"]
    assert "columns" in problem_of["EK-100 test"] and "vocab.json" in problem_of[f"models tokenizer {root / 'none'}"]


def test_parts_that_are_not_there_are_one_line(site):
    config, root = site
    shutil.rmtree(root / "CharadesEgo")
    findings = [finding for finding in doctor.examine(config) if finding.part == "Charades-Ego"]
    assert len(findings) == 1 and findings[0].state == "note" and "allenai.org" in findings[0].fix


@pytest.mark.parametrize("root, message", [("", "not set"), ("nowhere", "no such folder")])
def test_no_root(root, message):
    config = Config()
    site = dataclasses.replace(config.site, root=root, name="mine")
    findings = doctor.examine(dataclasses.replace(config, site=site))
    assert len(findings) == 1 and message in findings[0].message and "params/sites/mine.yaml" in findings[0].fix


def test_from_the_shell(project, monkeypatch, capsys):
    for site, code in (("tiny", 0), ("example", 1)):
        with pytest.raises(SystemExit) as left:
            cli.main(["doctor", "--site", site])
        assert left.value.code == code
    assert "site tiny" in capsys.readouterr().out


def test_fixes_name_commands_that_exist(site, tmp_path):
    config, _ = site
    checks = Checks(dataclasses.replace(config, site=dataclasses.replace(config.site, root=str(tmp_path))))
    fixes = {finding.fix for name in tasks.TASKS for finding in tasks.find(name).check_site(checks)}
    assert len(fixes) >= 9 and "egokit prep --site tiny" in fixes and "" not in fixes
    assert all("egokit prep" not in fix or "--site tiny" in fix for fix in fixes)
    assert "egokit prep --site local" in (ROOT / "README.md").read_text()


OWN_TASK = """
from egokit.tasks import Finding, Task

class Mine(Task):
    @classmethod
    def check_site(cls, checks):
        yield checks.check_file("Mine", checks.root / "mine.csv", "https://example.org/mine")
        yield Finding("Mine", "videos", "wrong", "2 of 3 are absent", "egokit prep")
"""


def test_a_task_of_ones_own_is_a_part(site, tmp_path):
    config, root = site
    file = tmp_path / "mine.py"
    file.write_text(OWN_TASK)
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, name=f"{file}:Mine"))
    assert problems(config) == {"Mine mine.csv": "not there -> https://example.org/mine",
                                "Mine videos": "2 of 3 are absent -> egokit prep"}
    (root / "mine.csv").write_text("")
    findings = doctor.examine(config)
    assert [finding.part for finding in findings[-2:]] == ["Mine", "Mine"] and findings[0].part == "machine"
    assert "Mine\n  ok      mine.csv: found\n" in doctor.format_findings(findings)
    file.write_text("import nothing_of_this_name\n")
    assert "can't be imported" in problems(config)[f"{config.task.name} check"]


def test_two_files_of_one_video(site):
    config, root = site
    file = sorted((root / "Ego4D").iterdir())[0]
    shutil.copy(file, file.with_suffix(".MKV"))
    assert problems(config) == {"EgoClip Ego4D": f"several files are video {file.stem} -> keep one of them"}
