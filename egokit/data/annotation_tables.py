"""CSV annotations of EK-100 and Charades-Ego, read and checked; Charades-Ego's metadata.

Each cell is parsed when its table is read, by a function that says what it expects. So a damaged table is an error that
names the file, the line and the column, before anything else is done. relevancy.py holds EK-100's relevancy.
"""
import csv
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from egokit.config.access import file_exists
from egokit.config.names import check_name

EK100_ANNOTATIONS = Path("EK100/epic-kitchens-100-annotations/retrieval_annotations")  # under the data root


# parsers of cells; each raises ValueError, which says what it expects

def text(cell: str) -> str:
    """Return a cell of text as it is; it is not empty and has one line."""
    if not cell.strip() or "\n" in cell or "\r" in cell:
        raise ValueError("expected text in one line")
    return cell


def whole(cell: str) -> int:
    """Parse a whole number, 0 or more."""
    if not re.fullmatch(r"\s*\d+\s*", cell):
        raise ValueError("expected a whole number from 0 on")
    return int(cell)


def time(cell: str) -> float:
    """Parse seconds, 0 or more: '62.5' -> 62.5."""
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ValueError("expected seconds from 0 on")
    return value


def seconds(timestamp: str) -> float:
    """Parse a timestamp to seconds: '00:01:02.50' -> 62.5."""
    parts = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", timestamp.strip(), re.ASCII)
    if not parts:
        raise ValueError("expected hours:minutes:seconds such as 00:01:02.50")
    return int(parts[1]) * 3600 + int(parts[2]) * 60 + float(parts[3])


def numbers(literal: str) -> list[int]:
    """Parse a list of class numbers: '[3, 17]' -> [3, 17]."""
    if not re.fullmatch(r"\[(\s*\d+\s*(,\s*\d+\s*)*)?\]", literal.strip(), re.ASCII):
        raise ValueError("expected a list of class numbers such as [3, 17]")
    return [int(number) for number in re.findall(r"\d+", literal)]


def classes_of(tag) -> list[int]:
    """Return the classes of a tag, or [] if it is absent or something else.

    A tag is a list, or the text of one, as in the published table.
    """
    try:
        return [item for item in tag if isinstance(item, int | str)] if isinstance(tag, list) else numbers(str(tag))
    except ValueError:
        return []


def actions(literal) -> list[tuple[str, float, float]]:
    """Parse 'c152 11.0 17.1;c008 0.0 4.3' to [(class, start, stop)], in seconds; [] if empty."""
    if not isinstance(literal, str) or not literal.strip():
        return []
    parts = [action.split(" ") for action in literal.split(";")]
    if any(len(part) != 3 for part in parts):
        raise ValueError("expected class, start and stop of each action, such as c152 11.0 17.1;c008 0.0 4.3")
    return [(name, time(start), time(stop)) for name, start, stop in parts]


def read_csv(path: Path, columns: dict[str, Callable], unique: str = "", delimiter: str = ",",
             span: tuple[str, str] | None = None):
    """Read some columns of a table with a header.

    Args:
        columns: the columns to read, each with the function that parses its cells.
        unique: a column in which no value may repeat.
        delimiter: the character between two fields; "" for the one of ",", ";" and tab that the header has most.
        span: two columns of times; in each row the second is later.

    Returns:
        A pandas DataFrame of the parsed cells.

    Raises:
        FileNotFoundError: the file is missing.
        PermissionError: this user may not read it.
        ValueError: something is not as expected; the message names the file, and the line and column.
    """
    if not file_exists(path):
        raise FileNotFoundError(f"{path} is missing; docs/data.md says where its annotations come from")
    if len(delimiter) > 1 or delimiter in ('"', "\r", "\n"):
        raise ValueError(f"{path}: the delimiter between its cells is {delimiter!r}; expected one character. In YAML, "
                         'a tab is "\\t", with the double quotes')
    import pandas as pd
    values: dict[str, list] = {name: [] for name in columns}
    lines: dict = {}  # value of the unique column -> its line
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            if not delimiter:
                delimiter = max(",;\t", key=file.readline().count)
                file.seek(0)
            rows = csv.reader(file, delimiter=delimiter)
            header = next(rows, [])
            if absent := [name for name in columns if name not in header]:
                kind = {",": "a comma", "\t": "a tab"}.get(delimiter, repr(delimiter))
                raise ValueError(f"{path}: columns {absent} are missing; expected a header with {kind} between "
                                 f"the names, found {header!r:.200}")
            parsers = [(name, header.index(name), parse) for name, parse in columns.items()]
            for row in filter(None, rows):
                where = f"{path}, line {rows.line_num}"
                if len(row) != len(header):
                    raise ValueError(f"{where}: {len(row)} fields, expected {len(header)} as in the header; "
                                     "the file may be cut off")
                for name, column, parse in parsers:
                    try:
                        values[name].append(parse(row[column]))
                    except ValueError as error:
                        raise ValueError(f"{where}: {name} is {row[column]!r:.80}; {error}") from None
                if unique and lines.setdefault(values[unique][-1], rows.line_num) != rows.line_num:
                    raise ValueError(f"{where}: {unique} {values[unique][-1]!r} is in line "
                                     f"{lines[values[unique][-1]]}, too; expected each once")
                if span and not values[span[0]][-1] < values[span[1]][-1]:
                    raise ValueError(f"{where}: {span[1]} is {values[span[1]][-1]:g}, {span[0]} "
                                     f"{values[span[0]][-1]:g}; expected that it ends after it begins: correct the "
                                     "line, or remove it")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table in UTF-8 text ({error}); "
                         "download it again, or save it as UTF-8") from None
    if not values[next(iter(columns))]:
        raise ValueError(f"{path}: no rows under its header; download it again")
    return pd.DataFrame(values)


def _warn_if_reversed(path: Path, table, start: str, stop: str, key: str) -> None:
    """Warn of rows that end before they begin.

    They are no error: published tables may have some, and the readers take frames from the start on.
    """
    wrong = np.flatnonzero(table[stop].to_numpy() < table[start].to_numpy())
    if len(wrong):
        row = table.iloc[wrong[0]]
        warnings.warn(f"{path}: {len(wrong)} of {len(table)} rows end before they begin, such as {key} {row[key]!r} "
                      f"({start} {row[start]:g} s, {stop} {row[stop]:g} s)", stacklevel=3)


def ek100_annotations(root: Path, split: str):
    """Read EK-100's retrieval annotations.

    Args:
        root: the data root.
        split: "train" or "test".

    Returns:
        (clips, sentences), two DataFrames. Times of clips are in seconds; all_noun_classes are lists of numbers.
    """
    folder = Path(root) / EK100_ANNOTATIONS
    path = folder / f"EPIC_100_retrieval_{split}.csv"
    clips = read_csv(path, {"narration_id": text, "participant_id": check_name, "video_id": check_name,
                            "start_timestamp": seconds, "stop_timestamp": seconds, "narration": text,
                            "verb_class": whole, "noun_class": whole, "all_noun_classes": numbers},
                     unique="narration_id")
    _warn_if_reversed(path, clips, "start_timestamp", "stop_timestamp", "narration_id")
    return clips, read_csv(folder / f"EPIC_100_retrieval_{split}_sentence.csv",
                           {"narration_id": text, "narration": text}, unique="narration_id")


def charades_classes(path: str | Path) -> dict[str, str]:
    """Read Charades' list of classes: {"c000": its sentence, …}, in file order."""
    classes: dict[str, str] = {}
    if not file_exists(path):
        raise FileNotFoundError(f"{path} is missing; docs/data.md says where its annotations come from")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); download it again, or save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, _, sentence = line.strip().partition(" ")
            if not re.fullmatch(r"c\d+", name) or not sentence or name in classes:
                reason = "is listed twice" if name in classes else "expected lines like 'c000 Holding some clothes'"
                raise ValueError(f"{path}, line {number}: {line!r:.80}: {reason}")
            classes[name] = sentence
    if not classes:
        raise ValueError(f"{path}: expected lines like 'c000 Holding some clothes', found none")
    return classes


def _charades(path: str | Path, classes: dict[str, str]):
    """Read a list of videos as a DataFrame of id and actions, with all classes in `classes`."""
    def checked_actions(literal: str) -> list[tuple[str, float, float]]:
        parsed = actions(literal)
        if unknown := [name for name, _, _ in parsed if name not in classes]:
            raise ValueError(f"the class file doesn't know {unknown[0]!r}")
        return parsed
    return read_csv(Path(path), {"id": check_name, "actions": checked_actions}, unique="id")


def charades_videos(path: str | Path, classes: dict[str, str]) -> tuple[list[str], np.ndarray]:
    """Read the videos and their classes.

    Returns:
        (ids, targets): the videos' names, and float32 (videos, classes) of 0 and 1. A video without actions has a row
        of zeros.
    """
    table = _charades(path, classes)
    number = {name: k for k, name in enumerate(classes)}
    targets = np.zeros((len(table), len(classes)), np.float32)
    for row, video_actions in enumerate(table.actions):
        targets[row, [number[name] for name, _, _ in video_actions]] = 1
    return table.id.tolist(), targets


def charades_metadata(csv_path: str | Path, classes: dict[str, str]) -> list[tuple]:
    """Return one row for every action: (id, cls, t_start, t_end, narration), in seconds.

    An action that ends before it begins is left out.
    """
    table = _charades(csv_path, classes)
    return [(uid, name, start, stop, classes[name])
            for uid, video_actions in zip(table.id, table.actions, strict=True)
            for name, start, stop in video_actions if stop > start]


def write_metadata(path: Path, rows: list[tuple]) -> None:
    """Write `charades_metadata`'s rows to a tab-separated metadata_{train,val,test}.csv."""
    from egokit.runs.files import atomic_path
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        header = ("id", "cls", "t_start", "t_end", "narration")
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])


def read_metadata(path: str | Path):
    """Read what `write_metadata` wrote, as a DataFrame."""
    path = Path(path)
    table = read_csv(path, {"id": check_name, "cls": text, "t_start": time, "t_end": time, "narration": text},
                     delimiter="\t")
    _warn_if_reversed(path, table, "t_start", "t_end", "id")
    return table
