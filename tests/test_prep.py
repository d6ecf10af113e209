"""Preparation on the tiny embedded data set: resized, cut, verified, resumed."""
import json
import os

import av
import numpy as np
import pytest

from egokit import prep, relevancy, tables


def test_everything_is_resized_and_verified(project):
    root = project / "outputs/toy"
    manifest = json.loads((root / "prepared.json").read_text())
    assert manifest["failed"] == [] and manifest["videos"] == len(list((root / "Ego4D").glob("*.mp4")))
    for line in manifest["lines"]:
        assert sum(line["pieces"]) == line["frames"] and all(count <= 300 for count in line["pieces"])
    with av.open(str(next((root / "Ego4D_256").glob("*.mp4")))) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (96, 72)


def test_a_second_run_does_nothing_and_a_lost_file_is_made_again(project):
    root = project / "outputs/toy"
    files = sorted((root / "Ego4D_256").glob("*.mp4"))
    before = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    prep.ego4d(root, 72, 30, progress=False)
    assert files[0].exists() and [file.stat().st_mtime_ns for file in files[1:]] == before[1:]


def test_a_broken_video_is_listed_with_its_reason_and_the_others_are_done(project, tmp_path):
    source = tmp_path / "full"
    source.mkdir()
    good = sorted((project / "outputs/toy/Ego4D").glob("*.mp4"))[0]
    (source / "good.mp4").write_bytes(good.read_bytes())
    (source / "bad.mp4").write_bytes(good.read_bytes()[:2000])
    manifest = prep.ego4d(tmp_path / "root", 72, 30, source=source, progress=False)
    assert manifest["videos"] == 1 and len(manifest["failed"]) == 1 and "bad.mp4" in manifest["failed"][0]
    (source / "bad.mp4").write_bytes(good.read_bytes())
    assert prep.ego4d(tmp_path / "root", 72, 30, source=source, progress=False)["videos"] == 2
    assert not list((tmp_path / "root").rglob("*part*"))


def test_relevancy_equals_its_formula(project):
    folder = project / "outputs/toy/EK100/epic-kitchens-100-annotations/retrieval_annotations"
    paths = [folder / f"EPIC_100_retrieval_train{end}.csv" for end in ("", "_sentence")]
    import ast

    import pandas as pd
    clips, sentences = pd.read_csv(paths[0]), pd.read_csv(paths[1])
    rows = clips.set_index("narration_id").loc[sentences.narration_id]
    matrix = prep.relevancy(*paths)
    for i in range(0, len(clips), 7):
        mine = set(ast.literal_eval(clips.all_noun_classes[i]))
        for j in range(0, len(sentences), 5):
            other = set(ast.literal_eval(rows.all_noun_classes.iloc[j]))
            expected = ((clips.verb_class[i] == rows.verb_class.iloc[j]) + len(mine & other) / len(mine | other)) / 2
            assert matrix[i, j] == pytest.approx(expected)
    path = relevancy.file(folder / "relevancy", "train")
    saved, kept = prep.load_relevancy(path), relevancy.read(path)
    assert path.suffix == ".safetensors" and saved.dtype == np.float32 and np.array_equal(saved, matrix)
    assert kept.shape == matrix.shape and np.array_equal(kept.row(3), matrix[3]) and isinstance(kept.codes, np.memmap)


def test_relevancy_files_of_every_kind(tmp_path):
    import pickle
    matrix = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(matrix.astype(np.float64)))
    np.save(tmp_path / "b.npy", matrix)
    for name in ("a.pkl", "b.npy"):
        assert np.allclose(prep.load_relevancy(tmp_path / name), matrix)
        relevancy.check(tmp_path / name, (5, 4))
        with pytest.raises(ValueError, match=rf"{name} is 5 x 4, but .*csv have 50 clips and 40 sentences; if those are whole, delete it"):
            relevancy.check(tmp_path / name, (50, 40))
    (tmp_path / "c.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"c\.safetensors: not a relevancy file"):
        prep.load_relevancy(tmp_path / "c.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("clips, sentences, seconds, gigabytes", [(9668, 3842, 10, 1), (67217, 16000, 120, 4)])
def test_relevancy_at_full_size(tmp_path, clips, sentences, seconds, gigabytes):
    """EK-100's test and train tables, generated: measured 1 s and 13 s on one core, 0.4 and 2.4 GB."""
    import csv
    import subprocess
    import sys
    rng = np.random.default_rng(0)
    verbs = rng.zipf(1.6, clips) % 97
    nouns = [sorted(set((rng.zipf(1.5, rng.integers(1, 7)) % 300).tolist())) for _ in range(clips)]
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([("narration_id", "verb_class", "all_noun_classes"),
                                    *((f"n{i}", verbs[i], nouns[i]) for i in range(clips))])
    own = rng.choice(clips, sentences, replace=False)
    with open(tmp_path / "sentences.csv", "w", newline="") as file:
        csv.writer(file).writerows([("narration_id", "narration"), *((f"n{i}", "words") for i in own)])
    code = ("import re, sys, time, pandas\nfrom egokit import relevancy\nbegan = time.perf_counter()\n"
            "relevancy.write(*sys.argv[1:])\n"
            "print(time.perf_counter() - began, re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])")
    paths = [str(tmp_path / name) for name in ("out.safetensors", "clips.csv", "sentences.csv")]
    said = subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True, text=True).stdout
    took, peak = map(float, said.split())
    print(f"{clips} x {sentences}: {took:.1f} s, {peak / 2**20:.2f} GiB, file {os.path.getsize(paths[0]) / 2**30:.2f} GiB")
    assert took < seconds and peak < gigabytes * 2**20
    kept = relevancy.read(tmp_path / "out.safetensors")
    for i, j in rng.integers(0, (clips, sentences), (200, 2)):
        mine, other = set(nouns[i]), set(nouns[own[j]])
        expected = (np.float32(verbs[i] == verbs[own[j]]) + np.float32(len(mine & other)) / np.float32(len(mine | other))) / 2
        assert kept.row(i)[j] == np.float32(expected)


def test_a_relevancy_pickle_executes_nothing(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))
    path = tmp_path / "relevancy.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"relevancy\.pkl: not a relevancy file"):
        prep.load_relevancy(path)
    assert not (tmp_path / "made").exists()


def test_charades_metadata_has_a_row_for_every_action(project):
    folder = project / "outputs/toy/CharadesEgo/CharadesEgo"
    rows = tables.read_metadata(folder / "metadata_train.csv")
    classes = tables.charades_classes(folder / "Charades_v1_classes.txt")
    import pandas as pd
    listed = pd.read_csv(folder / "CharadesEgo_v1_train_only1st.csv")
    assert len(rows) == sum(len(tables.actions(text)) for text in listed.actions)
    assert (rows.narration == rows.cls.map(classes)).all()
    assert tables.actions("c152 11.0 17.1;c008 0.0 4.3") == [("c152", 11.0, 17.1), ("c008", 0.0, 4.3)]
    assert tables.actions(float("nan")) == []


def test_missing_root_says_what_makes_it(project, tmp_path):
    from egokit.resolve import resolve
    config = resolve("toy/pretrain", "tiny", f"site.root={tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match=r"data root .*nowhere.*params/sites/tiny\.yaml"):
        prep.prepare(config)
    from egokit import tasks
    with pytest.raises(FileNotFoundError, match="01_data_prep"):
        tasks.make(config).dataset("train")
