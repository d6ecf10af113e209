"""The doctor: a sound site, and every way in which one is not, each a finding that says what to do; never a traceback."""
import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
from conftest import ROOT

from egokit import cli
from egokit.config.schema import Config
from egokit.prep import doctor


@pytest.fixture
def site(resolve, copied):
    """A config whose root is a copy of the tiny data set."""
    on_copy, root = copied
    return on_copy(resolve()), root


def troubles(config) -> dict[str, str]:
    """'part what' -> what was said, of everything missing or wrong."""
    return {f"{one.part} {one.what}": f"{one.said} -> {one.fix}" for one in doctor.examine(config) if one.state in ("missing", "wrong")}


def test_a_sound_site(site):
    config, _ = site
    findings = doctor.examine(config)
    assert doctor.sound(findings) and not troubles(config)
    said = doctor.lines(findings)
    for expected in ("egoclip.csv: found", "narrations of", "inter-video", "relevancy of test", "frame rates: ", "without an action",
                     "malformed rows", "rows end within them"):
        assert expected in said, expected


def test_absent_videos_and_files_are_counted_and_named(site):
    config, root = site
    gone = sorted((root / "Ego4D_Chunked").iterdir())[0]
    shutil.rmtree(gone)
    next(root.glob("EK100/video_ht256px/*/*.MP4")).unlink()
    (root / "CharadesEgo/CharadesEgo/metadata_train.csv").unlink()
    (root / "moments_val.json").unlink()
    found = troubles(config)
    rows = found.get("EgoClip rows", "") + found.get("EgoMCQ choices", "")
    assert f"1 videos that are not under Ego4D_Chunked/, such as {gone.name}" in rows and "egokit prep ego4d --site tiny" in rows
    assert any(key.startswith("EK-100 clips of") and "not under video_ht256px/" in said for key, said in found.items())
    assert "egokit prep" in found["Charades-Ego CharadesEgo/CharadesEgo/metadata_train.csv"]
    assert "ego4d --datasets annotations" in found["EgoMQ moments_val.json"]
    assert not doctor.sound(doctor.examine(config))


def test_tables_that_contradict_the_videos(site):
    config, root = site
    folder = root / "EK100/epic-kitchens-100-annotations/retrieval_annotations/relevancy"
    (folder / "caption_relevancy_EPIC_100_retrieval_test.safetensors").unlink()
    (folder / "caption_relevancy_EPIC_100_retrieval_test.pkl").write_bytes(pickle.dumps(np.ones((3, 4), np.float32)))
    lines = json.loads((root / "prepared.json").read_text())
    lines["lines"][0] |= {"status": "failed", "reason": "a.mp4: no video stream"}
    lines["lines"][1] |= {"status": "pending"}
    (root / "prepared.json").write_text(json.dumps(lines))
    moments = json.loads((root / "moments_train.json").read_text())
    moments["videos"][0]["clips"][0]["video_end_sec"] = 9999.0
    (root / "moments_train.json").write_text(json.dumps(moments))
    found = troubles(config)
    assert "is 3 x 4, but EPIC_100_retrieval_*.csv have" in found["EK-100 relevancy of test"]
    assert "1 failed: a.mp4: no video stream -> egokit prep ego4d --site tiny (tries them again)" in found["EgoClip prepared.json"]
    assert "1 full videos are not prepared yet -> egokit prep ego4d --site tiny" in found["EgoClip Ego4D"]
    notes = [one.said for one in doctor.examine(config) if one.state == "note"]
    assert any("rows beyond their end" in said and "9999.0 s" in said for said in notes)


def test_damaged_files_are_findings(site):
    config, root = site
    next(root.glob("CharadesEgo/CharadesEgo_v1_480/*.mp4")).write_bytes(b"<html>")
    (root / "egomcq.json").write_text("{")
    (root / "egoclip.csv").write_text("nothing\n")
    (root / "prepared.json").write_text("[]")
    folder = root / "EK100/epic-kitchens-100-annotations/retrieval_annotations"
    (folder / "EPIC_100_retrieval_test.csv").write_text("a,b\n1,2\n")
    found = troubles(dataclasses.replace(config, site=dataclasses.replace(config.site, tokenizer=str(root / "none"))))
    assert "videos opened are damaged" in found["Charades-Ego training segments"] or "videos opened are damaged" in str(found)
    assert "egomcq.json: not JSON" in found["EgoMCQ check"] and "prepared.json: expected what" in found["EgoClip check"]
    assert "columns" in found["EK-100 check"] and "vocab.json" in found[f"models tokenizer {root / 'none'}"]


def test_parts_that_are_not_there_are_one_line(site):
    config, root = site
    shutil.rmtree(root / "CharadesEgo")
    findings = [one for one in doctor.examine(config) if one.part == "Charades-Ego"]
    assert len(findings) == 1 and findings[0].state == "note" and "allenai.org" in findings[0].fix


@pytest.mark.parametrize("root, said", [("", "not set"), ("nowhere", "no such folder")])
def test_no_root(root, said):
    config = Config()
    findings = doctor.examine(dataclasses.replace(config, site=dataclasses.replace(config.site, root=root, name="mine")))
    assert len(findings) == 1 and said in findings[0].said and "params/sites/mine.yaml" in findings[0].fix


def test_from_the_shell(project, monkeypatch, capsys):
    for site, code in (("tiny", 0), ("example", 1)):
        with pytest.raises(SystemExit) as left:
            cli.main(["doctor", "--site", site])
        assert left.value.code == code
    assert "site tiny" in capsys.readouterr().out


def test_fixes_name_commands_that_exist():
    from egokit.prep.doctor.finding import FIXES
    readme = (ROOT / "README.md").read_text()
    assert "egokit prep --site local" in readme and all("egokit prep" not in fix or "--site {site}" in fix for fix in FIXES.values())
