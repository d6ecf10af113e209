"""Annotation tables of EK-100 and Charades-Ego: read and checked, and Charades' metadata. Relevancy is relevancy.py's."""
from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

EK100_ANNOTATIONS = Path("EK100/epic-kitchens-100-annotations/retrieval_annotations")  # under the data root


def seconds(timestamp: str) -> float:
    """'00:01:02.50' -> 62.5"""
    hours, minutes, rest = str(timestamp).split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def read_csv(path: Path, needed: set[str], **options):
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
    folder = Path(root) / EK100_ANNOTATIONS
    clips = read_csv(folder / f"EPIC_100_retrieval_{split}.csv",
                   {"narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "narration",
                    "verb_class", "noun_class", "all_noun_classes"})
    return clips, read_csv(folder / f"EPIC_100_retrieval_{split}_sentence.csv", {"narration_id", "narration"})


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
    table = read_csv(Path(path), {"id", "actions"})
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
    table = read_csv(Path(csv_path), {"id", "actions"})
    return [(uid, name, start, stop, classes[name]) for uid, literal in zip(table.id, table.actions, strict=True)
            for name, start, stop in actions(literal) if stop > start]


def write_metadata(path: Path, rows: list[tuple]) -> None:
    """metadata_{train,val,test}.csv, tab-separated."""
    from egokit.runs import atomic_path
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("id", "cls", "t_start", "t_end", "narration"), *rows])


def read_metadata(path: str | Path):
    return read_csv(Path(path), {"id", "cls", "t_start", "t_end", "narration"}, sep="\t")
