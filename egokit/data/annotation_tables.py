"""Annotation tables of EK-100 and Charades-Ego: read and checked, and Charades' metadata. Relevancy is relevancy.py's.

A cell is parsed when its table is read, by a function that says what it expects: a damaged table is an error that names
the file, the line and the column before anything else is done.
"""
from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

EK100_ANNOTATIONS = Path("EK100/epic-kitchens-100-annotations/retrieval_annotations")  # under the data root


# what a cell may hold; each raises ValueError, saying what it expects

def text(cell: str) -> str:
    if not cell.strip() or "\n" in cell or "\r" in cell:
        raise ValueError("expected text in one line")
    return cell


def whole(cell: str) -> int:
    if not re.fullmatch(r"\s*\d+\s*", cell):
        raise ValueError("expected a whole number from 0 on")
    return int(cell)


def time(cell: str) -> float:
    """'62.5' -> 62.5 seconds"""
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ValueError("expected seconds from 0 on")
    return value


def seconds(timestamp: str) -> float:
    """'00:01:02.50' -> 62.5"""
    found = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", timestamp.strip(), re.ASCII)
    if not found:
        raise ValueError("expected hours:minutes:seconds such as 00:01:02.50")
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])


def numbers(literal: str) -> list[int]:
    """'[3, 17]' -> [3, 17]"""
    if not re.fullmatch(r"\[(\s*\d+\s*(,\s*\d+\s*)*)?\]", literal.strip(), re.ASCII):
        raise ValueError("expected a list of class numbers such as [3, 17]")
    return [int(number) for number in re.findall(r"\d+", literal)]


def classes_of(tag) -> list[int]:
    """A tag's classes: a list, or as the published table has it, its literal; none if absent or something else."""
    try:
        return tag if isinstance(tag, list) else numbers(str(tag))
    except ValueError:
        return []


def actions(literal) -> list[tuple[str, float, float]]:
    """'c152 11.0 17.1;c008 0.0 4.3' -> [(class, start, stop)]; empty where there are none."""
    if not isinstance(literal, str) or not literal.strip():
        return []
    parts = [action.split(" ") for action in literal.split(";")]
    if any(len(part) != 3 for part in parts):
        raise ValueError("expected class, start and stop of each action, such as c152 11.0 17.1;c008 0.0 4.3")
    return [(name, time(start), time(stop)) for name, start, stop in parts]


def read_csv(path: Path, columns: dict[str, Callable], unique: str = "", delimiter: str = ","):
    """The `columns` of a table with a header, each cell parsed by its column's function. unique: a column without repeats.

    Raises FileNotFoundError, or ValueError that names the file, and the line and column of what is not as expected.
    """
    import pandas as pd
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; docs/data.md says where its annotations come from")
    values: dict[str, list] = {name: [] for name in columns}
    lines: dict = {}  # value of the unique column -> its line
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, delimiter=delimiter)
            header = next(rows, [])
            if absent := [name for name in columns if name not in header]:
                kind = {",": "a comma", "\t": "a tab"}[delimiter]
                raise ValueError(f"{path}: columns {absent} are missing; expected a header with {kind} between the names, "
                                 f"found {header!r:.200}")
            places = [(name, header.index(name), parse) for name, parse in columns.items()]
            for row in filter(None, rows):
                where = f"{path}, line {rows.line_num}"
                if len(row) != len(header):
                    raise ValueError(f"{where}: {len(row)} fields, expected {len(header)} as in the header; the file may be cut off")
                for name, place, parse in places:
                    try:
                        values[name].append(parse(row[place]))
                    except ValueError as error:
                        raise ValueError(f"{where}: {name} is {row[place]!r:.80}; {error}") from None
                if unique and lines.setdefault(values[unique][-1], rows.line_num) != rows.line_num:
                    raise ValueError(f"{where}: {unique} {values[unique][-1]!r} is in line {lines[values[unique][-1]]}, too; "
                                     "expected each once")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table in UTF-8 text ({error}); download it again, or save it as UTF-8") from None
    if not values[next(iter(columns))]:
        raise ValueError(f"{path}: no rows under its header; download it again")
    return pd.DataFrame(values)


def _in_order(path: Path, table, start: str, stop: str, key: str) -> None:
    """Warn of rows that end before they begin: published tables may have some, and readers take frames from their start on."""
    wrong = np.flatnonzero(table[stop].to_numpy() < table[start].to_numpy())
    if len(wrong):
        row = table.iloc[wrong[0]]
        warnings.warn(f"{path}: {len(wrong)} of {len(table)} rows end before they begin, such as {key} {row[key]!r} "
                      f"({start} {row[start]:g} s, {stop} {row[stop]:g} s)", stacklevel=3)


def ek100_annotations(root: Path, split: str):
    """(clips, sentences) tables of a split; times are seconds, all_noun_classes lists."""
    folder = Path(root) / EK100_ANNOTATIONS
    path = folder / f"EPIC_100_retrieval_{split}.csv"
    clips = read_csv(path, {"narration_id": text, "participant_id": text, "video_id": text, "start_timestamp": seconds,
                            "stop_timestamp": seconds, "narration": text, "verb_class": whole, "noun_class": whole,
                            "all_noun_classes": numbers}, unique="narration_id")
    _in_order(path, clips, "start_timestamp", "stop_timestamp", "narration_id")
    return clips, read_csv(folder / f"EPIC_100_retrieval_{split}_sentence.csv", {"narration_id": text, "narration": text},
                           unique="narration_id")


def charades_classes(path: str | Path) -> dict[str, str]:
    """'c000' -> its sentence, in file order."""
    classes: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); download it again, or save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, _, sentence = line.strip().partition(" ")
            if not re.fullmatch(r"c\d+", name) or not sentence or name in classes:
                said = "is listed twice" if name in classes else "expected lines like 'c000 Holding some clothes'"
                raise ValueError(f"{path}, line {number}: {line!r:.80}: {said}")
            classes[name] = sentence
    if not classes:
        raise ValueError(f"{path}: expected lines like 'c000 Holding some clothes', found none")
    return classes


def _charades(path: str | Path, classes: dict[str, str]):
    """The table of a list of videos, whose actions are all of the classes."""
    def known(literal: str) -> list[tuple[str, float, float]]:
        found = actions(literal)
        if unknown := [name for name, _, _ in found if name not in classes]:
            raise ValueError(f"the class file doesn't know {unknown[0]!r}")
        return found
    return read_csv(Path(path), {"id": text, "actions": known}, unique="id")


def charades_videos(path: str | Path, classes: dict[str, str]) -> tuple[list[str], np.ndarray]:
    """Ids of the videos and (videos, classes) 0/1 targets; a video without actions has a row of zeros."""
    table = _charades(path, classes)
    number = {name: k for k, name in enumerate(classes)}
    targets = np.zeros((len(table), len(classes)), np.float32)
    for row, found in enumerate(table.actions):
        targets[row, [number[name] for name, _, _ in found]] = 1
    return table.id.tolist(), targets


def charades_metadata(csv_path: str | Path, classes: dict[str, str]) -> list[tuple]:
    """One row for every action: (id, cls, t_start, t_end, narration). One that ends before it begins is left out."""
    table = _charades(csv_path, classes)
    return [(uid, name, start, stop, classes[name]) for uid, found in zip(table.id, table.actions, strict=True)
            for name, start, stop in found if stop > start]


def write_metadata(path: Path, rows: list[tuple]) -> None:
    """metadata_{train,val,test}.csv, tab-separated."""
    from egokit.runs.files import atomic_path
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("id", "cls", "t_start", "t_end", "narration"), *rows])


def read_metadata(path: str | Path):
    path = Path(path)
    table = read_csv(path, {"id": text, "cls": text, "t_start": time, "t_end": time, "narration": text}, delimiter="\t")
    _in_order(path, table, "t_start", "t_end", "id")
    return table
