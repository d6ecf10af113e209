"""The doctor on videos named or placed in another way, on files that may not be read, and on several faults."""
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from test_access import someone_else

from egokit.data.site_checks import Checks, Finding
from egokit.prep import doctor

EK100, CHARADES = "EK100/video_ht256px", "CharadesEgo/CharadesEgo_v1_480"
TABLES = "EK100/epic-kitchens-100-annotations/retrieval_annotations"


@pytest.fixture
def site(resolve, copied):
    """Return a config whose root is a copy of the tiny data set, and that root."""
    on_copy, root = copied
    return on_copy(resolve()), root


def faults(config, *parts) -> list[Finding]:
    return [finding for finding in doctor.examine(config, parts=parts) if finding.state in ("missing", "wrong")]


def rename(folder: Path, suffix: str, share: int = 1):
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[::share]:
        path.rename(path.with_suffix(suffix))


@pytest.mark.parametrize("task, folder, suffix, share", [
    ("ek100", EK100, ".mp4", 1), ("ek100", EK100, ".Mp4", 2), ("charades", CHARADES, ".MP4", 1),
    ("charades", CHARADES, ".MP4", 3)])
def test_another_case_of_the_suffix_is_named_and_the_command_mends_it(site, task, folder, suffix, share):
    config, root = site
    before = sorted((root / folder).rglob("*"))
    rename(root / folder, suffix, share)
    found = next(finding for finding in faults(config, task) if finding.what == folder)
    expected = {"ek100": ".MP4", "charades": ".mp4"}[task]
    assert f"videos end in {suffix} where {expected} is expected" in found.message
    subprocess.run(found.fix, shell=True, check=True)
    assert sorted((root / folder).rglob("*")) == before and not faults(config, task)


def test_another_container_is_named_and_the_command_mends_it(site):
    config, root = site
    path = sorted((root / CHARADES).glob("*.mp4"))[0]
    from egokit.prep.video import ffmpeg
    subprocess.run([ffmpeg(), "-loglevel", "error", "-i", path, "-c", "copy", path.with_suffix(".mkv")], check=True)
    path.unlink()
    found = next(finding for finding in faults(config, "charades") if finding.what == CHARADES)
    assert "1 videos end in .mkv where .mp4 is expected" in found.message and "-c copy" in found.fix
    subprocess.run(found.fix.replace("ffmpeg", ffmpeg()), shell=True, check=True, stderr=subprocess.DEVNULL)
    assert path.is_file() and not faults(config, "charades")


def nest(folder: Path, name: str):
    """Move what is in a folder into a folder in it."""
    shutil.move(folder, folder.with_name("moving"))
    folder.mkdir()
    shutil.move(folder.with_name("moving"), folder / name)


def flatten(folder: Path):
    for path in folder.glob("*/*"):
        path.rename(folder / path.name)


def per_participant(folder: Path):
    """Place EK-100's videos as its download script does."""
    for path in list(folder.glob("*/*")):
        (path.parent / "videos").mkdir(exist_ok=True)
        path.rename(path.parent / "videos" / path.name)


@pytest.mark.parametrize("task, folder, misplace", [
    ("ek100", EK100, lambda folder: nest(folder, "video_ht256px")), ("ek100", EK100, flatten),
    ("ek100", EK100, per_participant), ("ek100", EK100, lambda folder: folder.rename(folder.with_name("videos"))),
    ("charades", CHARADES, lambda folder: nest(folder, "CharadesEgo_v1_480")),
    ("charades", CHARADES, lambda folder: folder.rename(folder.with_name("Videos")))])
def test_videos_a_level_off_are_named_with_a_command(site, task, folder, misplace):
    config, root = site
    before = {path.name for path in (root / folder).rglob("*") if path.is_file()}
    misplace(root / folder)
    found = next(finding for finding in faults(config, task) if finding.what == folder)
    assert f"{len(before)} videos are elsewhere, such as " in found.message
    moved = re.search(r"mv (\S+) (\S+)", found.fix)
    subprocess.run(found.fix.partition("  (")[0], shell=True, check=True)
    place, depth = Path(moved[2]), {"ek100": 2, "charades": 1}[task]
    assert place.is_file() and place.name in before and place.parents[depth - 1] == root / folder


def test_capitals_of_a_name(site):
    config, root = site
    path = sorted((root / EK100).glob("*/*.MP4"))[0]
    path.rename(path.with_name(path.name.lower().replace(".mp4", ".MP4")))
    found = next(finding for finding in faults(config, "ek100") if "not under" in finding.message)
    assert f"mv {path.with_name(path.name.lower().replace('.mp4', '.MP4'))} {path}" in found.fix


@pytest.mark.parametrize("task, folder", [("egoclip", "Ego4D"), ("egoclip", "Ego4D_Chunked"), ("ek100", EK100),
                                          ("charades", CHARADES)])
def test_an_empty_folder_is_not_in_order(site, task, folder):
    config, root = site
    shutil.rmtree(root / folder)
    (root / folder).mkdir()
    (root / folder / ".hidden.mp4").touch()
    if folder == "Ego4D":
        shutil.rmtree(root / "Ego4D_Chunked")  # full videos may be gone after they are prepared
    (root / folder / ".hidden.mp4").unlink()
    found = [finding for finding in faults(config, task) if finding.what == folder]
    assert found and found[0].message.startswith("0 ") and found[0].state == "wrong" and found[0].fix
    assert not [finding for finding in doctor.examine(config, parts=[task]) if finding.state == "ok"
                and re.match(r"(all )?0 ", finding.message)]


def test_full_videos_a_level_below(site):
    config, root = site
    nest(root / "Ego4D", "full_scale")
    shutil.rmtree(root / "Ego4D_Chunked")
    found = next(finding for finding in faults(config, "egoclip") if finding.what == "Ego4D")
    assert "elsewhere, such as Ego4D/full_scale/" in found.message
    assert re.search(rf"mv {root}/Ego4D/full_scale/(\S+) {root}/Ego4D/\1", found.fix)


def test_nothing_of_something_is_never_ok():
    assert [Finding("x", "y", "ok", message).state for message in
            ("0 videos", "0 videos verified", "all 0 videos are there", "10 videos", "9 videos, 0 without an action")] \
        == ["wrong"] * 3 + ["ok"] * 2


def test_every_fault_is_found_whatever_else_is_wrong(site):
    """Each line of damage would end the check of its data set."""
    config, root = site
    (root / TABLES / "EPIC_100_retrieval_train.csv").write_text("a,b\n1,2\n")
    (root / TABLES / "relevancy/caption_relevancy_EPIC_100_retrieval_test.safetensors").write_bytes(b"x")
    for path in (root / EK100).glob("*/*.MP4"):
        path.write_bytes(b"x")
    (root / "CharadesEgo/CharadesEgo/CharadesEgo_v1_train_only1st.csv").write_bytes(b"\xff\xfe\xff")
    (root / "CharadesEgo/CharadesEgo/metadata_train.csv").write_text("x")
    (root / "prepared.json").write_text("[")
    (root / "egoclip.csv").write_text("nothing\n")
    (root / "egomcq.json").write_text("{")
    (root / "moments_train.json").write_text("{}")
    found = [f"{finding.part} {finding.what}: {finding.message}" for finding in faults(config)]
    for expected in ("EK-100 train: .*columns", "EK-100 relevancy of test: .*not a relevancy file",
                     "EK-100 clips of test: .*can't be read", r"Charades-Ego .*train_only1st\.csv: .*UTF-8",
                     r"Charades-Ego metadata_train\.csv: ", r"EgoClip prepared\.json: ", r"EgoClip egoclip\.csv: ",
                     r"EgoMCQ egomcq\.json: ", r"EgoMQ moments_train\.json: "):
        assert [line for line in found if re.match(expected, line)], (expected, found)
    sound = [f"{finding.part} {finding.what}" for finding in doctor.examine(config) if finding.state == "ok"]
    for expected in ("EK-100 test", "Charades-Ego test", "Charades-Ego videos of test", "EgoMQ clips",
                     "Charades-Ego CharadesEgo/CharadesEgo/metadata_val.csv"):
        assert expected in sound, expected


def test_a_check_that_fails_in_an_unforeseen_way(site, monkeypatch):
    config, _ = site
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1 / 0)
    monkeypatch.setattr(Checks, "video_seconds", lambda self, path: [][1])
    findings = doctor.examine(config, parts=["machine", "egoclip", "egomcq"])
    assert {f"{finding.part} {finding.what}": finding.message for finding in findings}["machine GPUs"] \
        == "ZeroDivisionError: division by zero"
    assert [finding for finding in findings if finding.what == "disk"]
    unread = [finding.what for finding in findings if "can't be read: list index" in finding.message]
    assert unread == ["rows", "choices"]


def test_what_may_not_be_read_is_wrong_and_neither_found_nor_missing(site):
    import pandas  # noqa: F401  imports may need this user's rights
    config, root = site
    open_root = Path(tempfile.mkdtemp(prefix="egokit-doctor-"))
    try:
        shutil.copytree(root, open_root / "root")
        for path in (open_root, *open_root.rglob("*")):
            path.chmod(0o755)
        import dataclasses
        config = dataclasses.replace(config, site=dataclasses.replace(config.site, root=str(open_root / "root")))
        assert not faults(config, "ek100", "egomcq", "charades")  # imports all that is needed
        relevancy = f"{TABLES}/relevancy/caption_relevancy_EPIC_100_retrieval_test.safetensors"
        video = sorted((open_root / "root" / CHARADES).glob("*.mp4"))[0]
        for path in (open_root / "root" / relevancy, open_root / "root/egomcq.json", video):
            path.chmod(0)
        with someone_else():
            found = faults(dataclasses.replace(config), "ek100", "egomcq", "charades")
        messages = {finding.what: f"{finding.message} -> {finding.fix}" for finding in found}
        for name in (relevancy, "egomcq.json"):
            assert "may not be read by this user (mode 0000, owner " in messages[name]
            assert "chmod a+r " in messages[name]
        assert not [finding for finding in found if finding.state == "missing" or "not there" in finding.message]
    finally:
        shutil.rmtree(open_root)
