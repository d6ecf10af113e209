"""Annotation tables of EK-100 and Charades-Ego: read, checked, and what is derived from them (relevancy, metadata)."""
from __future__ import annotations

import ast
import csv
import pickle
from pathlib import Path

import numpy as np


class _ArraysOnly(pickle.Unpickler):
    """Admits one NumPy array and what it is made of; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str):
        if (module.split(".")[0], name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy", "_reconstruct"), ("numpy", "scalar")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}; a relevancy file holds one array and nothing else")


def load_relevancy(path: str | Path) -> np.ndarray:
    """(clips, sentences) float32 from a .pkl of one array or a .npy; executes nothing in the file."""
    path = Path(path)
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with open(path, "rb") as file:
                array = _ArraysOnly(file).load()
    except FileNotFoundError:
        raise FileNotFoundError(f"relevancy {path} is missing; notebook 01_data_prep makes it from the annotations") from None
    except Exception as error:
        raise ValueError(f"{path}: not a relevancy file ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        raise ValueError(f"{path}: expected one array (clips, sentences), found {type(array).__name__}")
    return np.asarray(array, np.float32)


def seconds(timestamp: str) -> float:
    """'00:01:02.50' -> 62.5"""
    hours, minutes, rest = str(timestamp).split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def _table(path: Path, needed: set[str], **options):
    import pandas as pd
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; docs of the data set say where its annotations come from")
    table = pd.read_csv(path, **options)
    absent = needed - set(table.columns)
    if absent:
        raise ValueError(f"{path}: columns {sorted(absent)} are missing; found {', '.join(map(str, table.columns))[:200]}")
    return table


def ek100_annotations(root: Path, split: str):
    """(clips, sentences) tables of a split."""
    folder = Path(root) / "EK100" / "epic-kitchens-100-annotations" / "retrieval_annotations"
    clips = _table(folder / f"EPIC_100_retrieval_{split}.csv",
                   {"narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "narration",
                    "verb_class", "noun_class", "all_noun_classes"})
    return clips, _table(folder / f"EPIC_100_retrieval_{split}_sentence.csv", {"narration_id", "narration"})


def relevancy(clips_csv: str | Path, sentences_csv: str | Path) -> np.ndarray:
    """(clips, sentences) float32: (same verb class + |nouns ∩| / |nouns ∪|) / 2. Source: EK-100, section 4.5.

    A sentence has the classes of the clip that bears its narration_id.
    """
    clips = _table(Path(clips_csv), {"narration_id", "verb_class", "all_noun_classes"})
    sentences = _table(Path(sentences_csv), {"narration_id"})
    row = {narration: i for i, narration in enumerate(clips.narration_id)}
    absent = [narration for narration in sentences.narration_id if narration not in row]
    if absent:
        raise ValueError(f"{sentences_csv}: {len(absent)} narration_ids, such as {absent[0]}, are not in {clips_csv}")
    own = np.array([row[narration] for narration in sentences.narration_id])
    verbs = clips.verb_class.to_numpy()
    nouns = [set(ast.literal_eval(str(literal))) for literal in clips.all_noun_classes]
    known = {noun: i for i, noun in enumerate(sorted(set().union(*nouns)))}
    hot = np.zeros((len(clips), len(known)), np.float32)
    for i, some in enumerate(nouns):
        hot[i, [known[noun] for noun in some]] = 1
    count = hot.sum(1)
    out = hot @ hot[own].T
    out /= np.maximum(count[:, None] + count[own][None] - out, 1)
    out += verbs[:, None] == verbs[own][None]
    out /= 2
    return out


def charades_classes(path: str | Path) -> dict[str, str]:
    """'c000' -> its sentence, in file order."""
    classes = dict(line.split(" ", 1) for line in Path(path).read_text().splitlines() if line.strip())
    if not classes:
        raise ValueError(f"{path}: expected lines like 'c000 Holding some clothes'")
    return classes


def actions(literal) -> list[tuple[str, float, float]]:
    """'c152 11.0 17.1;c008 0.0 4.3' -> [(class, start, stop)]; empty where there are none."""
    if not isinstance(literal, str) or not literal.strip():
        return []
    parts = [action.split(" ") for action in literal.split(";")]
    return [(name, float(start), float(stop)) for name, start, stop in parts]


def charades_videos(path: str | Path, classes: dict[str, str]) -> tuple[list[str], np.ndarray]:
    """Ids of the videos and (videos, classes) 0/1 targets; a video without actions has a row of zeros."""
    table = _table(Path(path), {"id", "actions"})
    number = {name: k for k, name in enumerate(classes)}
    targets = np.zeros((len(table), len(classes)), np.float32)
    for row, literal in enumerate(table.actions):
        for name, _, _ in actions(literal):
            if name not in number:
                raise ValueError(f"{path}: video {table.id.iloc[row]} has class {name!r}, which the class file doesn't know")
            targets[row, number[name]] = 1
    return table.id.astype(str).tolist(), targets


def charades_metadata(csv_path: str | Path, classes: dict[str, str]) -> list[tuple]:
    """One row for every action: (id, cls, t_start, t_end, narration)."""
    table = _table(Path(csv_path), {"id", "actions"})
    return [(uid, name, start, stop, classes[name]) for uid, literal in zip(table.id, table.actions, strict=True)
            for name, start, stop in actions(literal) if stop > start]


def write_metadata(path: Path, rows: list[tuple]) -> None:
    """metadata_{train,val,test}.csv, tab-separated."""
    from egokit.runs import atomic_path
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("id", "cls", "t_start", "t_end", "narration"), *rows])


def read_metadata(path: str | Path):
    return _table(Path(path), {"id", "cls", "t_start", "t_end", "narration"}, sep="\t")
