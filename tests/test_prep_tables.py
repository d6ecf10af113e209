"""The tables and matrices that preparation derives from annotations: EK-100's relevancy, Charades-Ego's metadata."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from egokit import prep
from egokit.data import annotation_tables, relevancy


def test_relevancy_equals_its_formula(project):
    folder = project / "outputs/toy/EK100/epic-kitchens-100-annotations/retrieval_annotations"
    paths = [folder / f"EPIC_100_retrieval_train{end}.csv" for end in ("", "_sentence")]
    import ast

    import pandas as pd
    clips, sentences = pd.read_csv(paths[0]), pd.read_csv(paths[1])
    rows = clips.set_index("narration_id").loc[sentences.narration_id]
    matrix = prep.relevancy(*paths)
    for i in range(0, len(clips), 7):
        clip_nouns = set(ast.literal_eval(clips.all_noun_classes[i]))
        for j in range(0, len(sentences), 5):
            nouns = set(ast.literal_eval(rows.all_noun_classes.iloc[j]))
            iou = len(clip_nouns & nouns) / len(clip_nouns | nouns)
            assert matrix[i, j] == pytest.approx(((clips.verb_class[i] == rows.verb_class.iloc[j]) + iou) / 2)
    path = relevancy.relevancy_path(folder / "relevancy", "train")
    loaded, mapped = prep.load_relevancy(path), relevancy.read(path)
    assert path.suffix == ".safetensors" and loaded.dtype == np.float32 and np.array_equal(loaded, matrix)
    assert mapped.shape == matrix.shape and np.array_equal(mapped.row(3), matrix[3])
    assert str(path) in Path("/proc/self/maps").read_text()


def test_relevancy_files_of_every_kind(tmp_path):
    import pickle
    matrix = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(matrix.astype(np.float64)))
    np.save(tmp_path / "b.npy", matrix)
    for name in ("a.pkl", "b.npy"):
        assert np.allclose(prep.load_relevancy(tmp_path / name), matrix)
        relevancy.check(tmp_path / name, (5, 4))
        expected = rf"{name} is 5 x 4, but .*csv have 50 clips and 40 sentences; if those are whole, delete it"
        with pytest.raises(ValueError, match=expected):
            relevancy.check(tmp_path / name, (50, 40))
    (tmp_path / "c.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"c\.safetensors: not a relevancy file"):
        prep.load_relevancy(tmp_path / "c.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("clips, sentences, seconds, gigabytes", [(9668, 3842, 10, 1), (67217, 16000, 120, 4)])
def test_relevancy_at_full_size(tmp_path, clips, sentences, seconds, gigabytes):
    """Tables as large as EK-100's test and train splits stay within time and memory.

    Measured on one core: 1 s and 13 s, 0.4 and 2.4 GB.
    """
    import csv
    rng = np.random.default_rng(0)
    verbs = rng.zipf(1.6, clips) % 97
    nouns = [sorted(set((rng.zipf(1.5, rng.integers(1, 7)) % 300).tolist())) for _ in range(clips)]
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([("narration_id", "verb_class", "all_noun_classes"),
                                    *((f"n{i}", verbs[i], nouns[i]) for i in range(clips))])
    own = rng.choice(clips, sentences, replace=False)
    with open(tmp_path / "sentences.csv", "w", newline="") as file:
        csv.writer(file).writerows([("narration_id", "narration"), *((f"n{i}", "words") for i in own)])
    code = ("import re, sys, time, pandas\nfrom egokit.data import relevancy\nbegan = time.perf_counter()\n"
            "relevancy.write(*sys.argv[1:])\n"
            "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
            "print(time.perf_counter() - began, peak)")
    paths = [str(tmp_path / name) for name in ("out.safetensors", "clips.csv", "sentences.csv")]
    printed = subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True, text=True).stdout
    took, peak = map(float, printed.split())
    print(f"{clips} x {sentences}: {took:.1f} s, {peak / 2**20:.2f} GiB, "
          f"file {os.path.getsize(paths[0]) / 2**30:.2f} GiB")
    assert took < seconds and peak < gigabytes * 2**20
    mapped = relevancy.read(tmp_path / "out.safetensors")
    for i, j in rng.integers(0, (clips, sentences), (200, 2)):
        clip_nouns, sentence_nouns = set(nouns[i]), set(nouns[own[j]])
        iou = np.float32(len(clip_nouns & sentence_nouns)) / np.float32(len(clip_nouns | sentence_nouns))
        expected = (np.float32(verbs[i] == verbs[own[j]]) + iou) / 2
        assert mapped.row(i)[j] == np.float32(expected)


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
    rows = annotation_tables.read_metadata(folder / "metadata_train.csv")
    classes = annotation_tables.charades_classes(folder / "Charades_v1_classes.txt")
    import pandas as pd
    listed = pd.read_csv(folder / "CharadesEgo_v1_train_only1st.csv")
    assert len(rows) == sum(len(annotation_tables.actions(text)) for text in listed.actions)
    assert (rows.narration == rows.cls.map(classes)).all()
    assert annotation_tables.actions("c152 11.0 17.1;c008 0.0 4.3") == [("c152", 11.0, 17.1), ("c008", 0.0, 4.3)]
    assert annotation_tables.actions(float("nan")) == []
