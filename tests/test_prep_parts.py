"""Preparation of what is independent: whatever fails, everything else is made, and the failures are listed."""
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from egokit import cli, prep

EK100 = "EK100/epic-kitchens-100-annotations/retrieval_annotations"
CHARADES = "CharadesEgo/CharadesEgo"
MADE = {f"charades {split}": f"{CHARADES}/metadata_{split}.csv" for split in ("train", "val", "test")}
MADE |= {f"ek100 {split}": f"{EK100}/relevancy/caption_relevancy_EPIC_100_retrieval_{split}.safetensors"
         for split in ("train", "test")}


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def two_files(folder):
    file = sorted(folder.glob("*.mp4"))[0]
    shutil.copy(file, file.with_suffix(".mkv"))


# what is damaged: the path, how, the part that fails, and words of its reason
DAMAGES = {
    "no videos": ("Ego4D", empty, ["ego4d"], "no videos in"),
    "a bad video": ("Ego4D", lambda folder: sorted(folder.glob("*.mp4"))[1].write_bytes(b"x"), ["ego4d"], ".mp4"),
    "two files of a video": ("Ego4D", two_files, ["ego4d"], "keep one of them"),
    "a dangling link": ("Ego4D", lambda folder: (folder / "x.mp4").symlink_to("nowhere"), ["ego4d"], "x.mp4"),
    "no table": (f"{EK100}/EPIC_100_retrieval_train.csv", os.remove, ["ek100 train"], "train.csv is missing"),
    "no sentences": (f"{EK100}/EPIC_100_retrieval_test_sentence.csv", os.remove, ["ek100 test"], "is missing"),
    "a malformed table": (f"{EK100}/EPIC_100_retrieval_test.csv", lambda path: path.write_text("a,b\n1,2\n"),
                          ["ek100 test"], "columns"),
    "a table that is a folder": (f"{EK100}/EPIC_100_retrieval_train.csv", lambda path: (os.remove(path), path.mkdir()),
                                 ["ek100 train"], "train.csv"),
    "no classes": (f"{CHARADES}/Charades_v1_classes.txt", os.remove,
                   ["charades train", "charades val", "charades test"], "Charades_v1_classes.txt is missing"),
    "no list": (f"{CHARADES}/CharadesEgo_v1_train_only1st.csv", os.remove, ["charades train"], "is missing"),
    "a list that is no text": (f"{CHARADES}/CharadesEgo_v1_test_only1st.csv",
                               lambda path: path.write_bytes(b"\xff\xfe"), ["charades val", "charades test"], "UTF-8"),
    "another size": (MADE["ek100 test"], lambda path: save_file({"codes": np.zeros((2, 1), np.uint8),
                                                                 "values": np.zeros(1, np.float32)}, path),
                     ["ek100 test"], "delete it"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_bad_part_does_not_keep_another_from_being_made(copied, resolve, capsys, name):
    on_copy, root = copied
    config = on_copy(resolve())
    for file in MADE.values():
        (root / file).unlink()
    path, damage, failing, reason = DAMAGES[name]
    damage(root / path)
    for _ in range(2):  # a repeat is no different
        with pytest.raises(prep.PrepError) as raised:
            prep.prepare(config, progress=False)
        message, printed = str(raised.value), capsys.readouterr().out
        assert reason in message and message.splitlines()[0].startswith(f"{len(failing)} failed")
        assert [line.partition(":")[0].strip() for line in message.splitlines()[1:]] == failing
        for part, file in MADE.items():
            assert (root / file).is_file() == (part not in failing or name == "another size"), part
            assert (f'"{part.replace(" ", "_")}_' in printed) == (part not in failing), part
        assert ('"ego4d_videos": ' in printed) == (name != "no videos")
        if "ego4d" not in failing:
            assert len(list((root / "Ego4D_256").glob("*.mp4"))) == len(list((root / "Ego4D").glob("*.mp4")))


def test_a_data_set_alone(copied, resolve, capsys, project):
    _, root = copied
    empty(root / "Ego4D")
    for file in MADE.values():
        (root / file).unlink()
    arguments = ["--site", "tiny", "--root", str(root)]
    cli.main(["prep", "ek100", *arguments])
    assert [(root / file).is_file() for file in MADE.values()] == [False] * 3 + [True] * 2
    assert '"ek100_test_sentences": ' in capsys.readouterr().out
    cli.main(["prep", "charades", *arguments])
    assert all((root / file).is_file() for file in MADE.values())
    with pytest.raises(SystemExit, match="1"):
        cli.main(["prep", *arguments])
    printed = capsys.readouterr()
    assert '"charades_train_actions": ' in printed.out and "1 failed" in printed.err and "no videos in" in printed.err
    shutil.rmtree(root / "EK100")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["prep", "ek100", *arguments])
    assert "nothing to prepare" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected one of ego4d, charades, ek100"):
        prep.prepare(resolve(), parts=["ek55"])


def test_the_splits_of_one_data_set(copied):
    _, root = copied
    for file in MADE.values():
        (root / file).unlink()
    (root / EK100 / "EPIC_100_retrieval_train.csv").unlink()
    (root / CHARADES / "CharadesEgo_v1_test_only1st.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"retrieval_train\.csv is missing"):
        prep.ek100(root)
    with pytest.raises(FileNotFoundError, match=r"test_only1st\.csv is missing"):
        prep.charades(root)
    made = [part for part, file in MADE.items() if (root / file).is_file()]
    assert made == ["charades train", "ek100 test"]
    (root / CHARADES / "CharadesEgo_v1_train_only1st.csv").write_text("id,actions\nx,y\n")
    with pytest.raises(prep.PrepError, match=r"3 failed[^\n]*\n  train: [^\n]*\n  val: [^\n]*\n  test: "):
        prep.charades(root)
