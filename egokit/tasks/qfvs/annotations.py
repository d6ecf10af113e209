"""QFVS's annotations: concepts of every shot, and the shots that an oracle and three people chose for each query.

ROOT/Dense_per_shot_tags/Dictionary.txt                                     concepts, each in quotes
ROOT/Dense_per_shot_tags/P01/P01.txt                                        line s: the concepts of shot s
ROOT/Query-Focused_Summaries/Oracle_Summaries/P01/<A>_<B>_oracle.txt        numbers of shots, from 1
ROOT/Query-Focused_Summaries/User_Summaries/P01/<A>_<B>_user1.txt, …        the same, of people

A shot lasts 5 s. Numbers of shots count from 1 in files, and from 0 in everything that this module returns.

Source: Sharghi et al., Query-focused video summarization, CVPR 2017.
"""
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egokit.config.access import exists, file_exists
from egokit.config.names import check_name

LARGEST = 8 << 20        # bytes of a text file
MOST_CONCEPTS = 10_000
TAGS, SUMMARIES = "Dense_per_shot_tags", "Query-Focused_Summaries"
FIX = "docs/qfvs.md says which files belong there"


class Query(NamedTuple):
    """A query about a video: two concepts, and the shots that answer it."""
    concepts: tuple[int, int]       # columns of the video's tags
    oracle: np.ndarray              # (n,) shots from 0, rising
    users: tuple[np.ndarray, ...]   # the same of each person


class Video(NamedTuple):
    """A video's tags, and its queries by name ("Book_Street")."""
    tags: np.ndarray  # (shots, concepts) bool
    queries: dict[str, Query]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without what is blank at their ends.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, or not UTF-8 text.
    """
    if not file_exists(path):
        raise FileNotFoundError(f"{path} is missing; {FIX}")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path}: {size:,} bytes, expected {LARGEST:,} at most; {FIX}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); fetch it again") from None
    lines = text.split("\n")
    return [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]


def read_dictionary(path: Path) -> dict[str, int]:
    """Read Dictionary.txt: a concept a line, in quotes or not.

    Returns:
        Each concept's number, from 0, in the file's order.

    Raises:
        ValueError: a line is damaged; the message names it.
    """
    concepts: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        name = line.strip("'\"‘’“” ")
        if not line:
            continue
        if not re.fullmatch(r"[^\W_][\w -]*", name) or name in concepts or len(concepts) == MOST_CONCEPTS:
            raise ValueError(f"{path}, line {number}: {line!r:.80}; expected a concept in quotes that no earlier line "
                             f"has, such as 'Book', and {MOST_CONCEPTS:,} lines at most")
        concepts[name] = len(concepts)
    if not concepts:
        raise ValueError(f"{path}: it is empty; expected a concept a line, in quotes, such as 'Book'")
    return concepts


def read_tags(path: Path, concepts: dict[str, int]) -> np.ndarray:
    """Read a video's tags: line s has the concepts of shot s, with commas between them; none for an empty line.

    Returns:
        (shots, concepts) bool.

    Raises:
        ValueError: a line is damaged; the message names it.
    """
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{path}: it is empty; expected a line a shot, such as Book,Hands")
    tags = np.zeros((len(lines), len(concepts)), dtype=bool)
    for shot, line in enumerate(lines):
        for name in filter(None, map(str.strip, line.split(","))):
            if name not in concepts:
                raise ValueError(f"{path}, line {shot + 1}: {name!r:.80} is no concept of Dictionary.txt; expected "
                                 "concepts with commas between them, such as Book,Hands")
            tags[shot, concepts[name]] = True
    return tags


def read_summary(path: Path, shots: int) -> np.ndarray:
    """Read a summary: numbers of shots, from 1, one a line.

    Args:
        shots: how many the video has.

    Returns:
        (n,) the shots, from 0, rising.

    Raises:
        ValueError: a line is damaged, or no shot is named; the message says where.
    """
    chosen: dict[int, None] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line:
            continue
        shot = int(line) if re.fullmatch(r"[0-9]{1,9}", line) else 0
        if not 1 <= shot <= shots or shot - 1 in chosen:
            raise ValueError(f"{path}, line {number}: {line!r:.40}; expected the number of a shot, 1 to {shots}, that "
                             "no earlier line has")
        chosen[shot - 1] = None
    if not chosen:
        raise ValueError(f"{path}: it names no shot; expected numbers of shots from 1, one a line")
    return np.array(sorted(chosen))


def read_query(path: Path, name: str, concepts: dict[str, int], shots: int) -> Query:
    """Read a query's oracle, and its users' summaries as far as they are there.

    Args:
        path: <A>_<B>_oracle.txt in Oracle_Summaries/<video>.
        name: <A>_<B>.
    """
    parts = name.split("_")
    if len(parts) != 2 or not concepts.keys() >= set(parts):
        raise ValueError(f"{path}: query {name!r:.80}; expected two concepts of Dictionary.txt with _ between them, "
                         "such as Book_Street_oracle.txt")
    people = path.parents[2] / "User_Summaries" / path.parent.name
    users = sorted(people.glob(f"{name}_user*.txt")) if exists(people) else []
    return Query((concepts[parts[0]], concepts[parts[1]]), read_summary(path, shots),
                 tuple(read_summary(user, shots) for user in users))


def read_videos(root: Path) -> dict[str, Video]:
    """Read all annotations of a folder; see the module for its files.

    Returns:
        The videos that have oracles, by name, in the order of their names; so are their queries.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a line is damaged; the message names the file and the line.
    """
    oracles = root / SUMMARIES / "Oracle_Summaries"
    for folder in (root / TAGS, oracles):
        if not exists(folder):
            raise FileNotFoundError(f"{folder} is missing; give --root the folder that has {TAGS} and {SUMMARIES}: "
                                    f"{FIX}")
    concepts = read_dictionary(root / TAGS / "Dictionary.txt")
    videos: dict[str, Video] = {}
    for folder in sorted(path for path in oracles.iterdir() if path.is_dir() and path.name[0] != "."):
        name = check_name(folder.name)
        tags = read_tags(root / TAGS / name / f"{name}.txt", concepts)
        files = {file.name.removesuffix("_oracle.txt"): file for file in sorted(folder.glob("[!.]*_oracle.txt"))}
        if not files:
            raise ValueError(f"{folder}: it has no <A>_<B>_oracle.txt; expected one a query, or remove the folder")
        videos[name] = Video(tags, {query: read_query(file, query, concepts, len(tags))
                                    for query, file in files.items()})
    if not videos:
        raise ValueError(f"{oracles}: it has no folder of a video, such as P01; {FIX}")
    return videos
