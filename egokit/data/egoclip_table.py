"""egoclip.csv at its full size: read once into a columnar cache, which all processes of a machine then map and share.

Here: which rows are well formed, the cache's file, what a row and its scene-aware negative are. Not here: videos, frames,
samples; those are tasks/egoclip.py's.

The cache is one file: a header of JSON, the texts of all rows, then arrays. It bears the CSV's size and time and a
checksum of itself; one that doesn't match is built anew. Videos and lists of tags are numbered: a row has their numbers.
"""
from __future__ import annotations

import ast
import collections
import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import re
import secrets
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VERBS, NOUNS = 118, 582  # classes of the tags
WINDOW = 60.0            # seconds: a scene-aware negative comes from the same window of the same video
COLUMNS = ["clip_idx", "video_uid", "video_dur", "narration_source", "narration_ind", "narration_time",
           "clip_start", "clip_end", "clip_text", "tag_verb", "tag_noun"]
TIMES, TAGS = ["narration_time", "clip_start", "clip_end"], {"tag_verb": VERBS, "tag_noun": NOUNS}
FORMAT = "egokit's egoclip.csv, 1"  # raise it when the same CSV gives another cache
HEADER = 4096                       # bytes
BLOCK = 1 << 24                     # bytes of the CSV looked at together: bounds the memory that reading takes
# fields that pandas takes for empty ones; none is longer than 8 bytes
NOTHING = frozenset(["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
                     "NA", "NULL", "NaN", "None", "n/a", "nan", "null"])


class EgoClipTable:
    """The well-formed rows of egoclip.csv; the others are counted (`malformed`) and reported in a warning.

    videos: the distinct video_uids. columns: the cache's arrays, read-only, in pages that processes share; "video_uid" is
    a place in `videos`. A table is pickled as its path: whoever unpickles it maps the cache.
    """

    def __init__(self, path: str | os.PathLike, warn: bool = True):
        self.path = Path(path).absolute()
        data, header = _open(self.path)
        self.columns = {name: data[at:at + size].view(dtype) for name, (dtype, at, size) in header["arrays"].items()}
        self.videos: list[str] = self.columns["videos"].tobytes().decode().split("\t")
        self.malformed: int = header["malformed"]
        if warn and self.malformed:
            warnings.warn(f"{path}: {self.malformed} malformed rows of {self.malformed + len(self)} left out", stacklevel=2)

    def __len__(self) -> int:
        return len(self.columns["video_uid"])

    def __reduce__(self):
        return EgoClipTable, (self.path, False)

    def row(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has no row {index}: it has {len(self)} well-formed ones")
        columns = self.columns
        first, last = columns["text_bounds"][index:index + 2]
        row = {"video_uid": self.videos[columns["video_uid"][index]], "clip_text": columns["texts"][first:last].tobytes().decode()}
        row |= {name: float(columns[name][index]) for name in TIMES}
        for name, tag in (("verbs", "tag_verb"), ("nouns", "tag_noun")):
            number = columns[tag][index]
            first, last = columns[f"{tag}_bounds"][number:number + 2]
            row[name] = columns[f"{tag}_ids"][first:last]
        return row

    def negative(self, index: int, rng: np.random.Generator) -> int:
        """Another row of the same scene (video and window); the row itself where it is alone. Looks at no other row."""
        scene = self.columns["scene"][index]
        first, count = int(self.columns["scene_first"][scene]), int(self.columns["scene_count"][scene])
        if count == 1:
            return index
        order = self.columns["scene_order"]  # a scene's rows are contiguous in it, in the order of the table
        pick = order[first + rng.integers(count - 1)]
        return int(pick if pick != index else order[first + count - 1])


def _open(path: Path) -> tuple[np.ndarray, dict]:
    """(bytes of the cache, its header): beside the CSV, else among the user's caches, else only in memory."""
    status = os.stat(path)
    stamp = {"format": FORMAT, "csv_bytes": status.st_size, "csv_mtime_ns": status.st_mtime_ns}
    places = [path.with_name(f".{path.name}.cache")]
    with contextlib.suppress(RuntimeError):  # a user without a home
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egokit"
        places.append(caches / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}-{path.name}.cache")
    for place in places:
        if found := _mapped(place, stamp):
            return found
    for place in places:
        with contextlib.suppress(OSError):  # a folder that can't be written, a full disk
            _store(path, place, stamp)
        if found := _mapped(place, stamp):
            return found
    _build(path, memory := io.BytesIO(), stamp)
    return _checked(np.frombuffer(memory.getbuffer(), np.uint8), stamp)


def _mapped(place: Path, stamp: dict) -> tuple[np.ndarray, dict] | None:
    """The cache at `place`, if it is there, whole, and this CSV's."""
    try:
        return _checked(np.memmap(place, np.uint8, mode="r").view(np.ndarray), stamp)
    except Exception:  # anything can be in a damaged file
        return None


def _checked(data: np.ndarray, stamp: dict) -> tuple[np.ndarray, dict]:
    header = json.loads(data[:HEADER].tobytes())
    checksums = header.pop("checksum"), header["rest"]
    if stamp.items() <= header.items() and checksums == (zlib.crc32(json.dumps(header).encode()), zlib.crc32(data[HEADER:])):
        return data, header
    raise ValueError("another CSV's, or damaged")


def _store(path: Path, place: Path, stamp: dict) -> None:
    """Ranks may do this at the same time, on several machines: each writes a file of its own, under a name of its own."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            _build(path, file, stamp)
        if _mapped(place, stamp) is None:  # else another was first, and all share the pages of that one
            os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _build(path: Path, file, stamp: dict) -> None:
    """Write the cache of the CSV. Texts are written as they are read; 60 bytes a row are kept until the end."""
    rest, malformed, parts = 0, 0, []
    videos: dict[str, int] = collections.defaultdict(itertools.count().__next__)  # numbered as they come
    tags = {tag: _Tags(classes) for tag, classes in TAGS.items()}

    def put(data: np.ndarray) -> None:
        nonlocal rest
        rest = zlib.crc32(data, rest)
        file.write(data)

    file.seek(HEADER)
    for block in _blocks(path):
        part, texts, left_out = _read(block, videos, tags)
        put(texts)
        parts.append(part)
        malformed += left_out
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    if not len(columns["video_uid"]):
        raise ValueError(f"{path}: none of its {malformed} rows is well formed; is this an EgoClip table?")
    columns |= {"text_bounds": _bounds(columns.pop("text_length")), "videos": np.frombuffer("\t".join(videos).encode(), np.uint8)}
    for tag, numbers in tags.items():
        columns[f"{tag}_bounds"] = _bounds([len(ids) for ids in numbers.lists])
        columns[f"{tag}_ids"] = np.array([number for ids in numbers.lists for number in ids], np.int16)
    columns |= _scenes(columns["video_uid"], columns["narration_time"])

    arrays = {"texts": ("u1", HEADER, file.tell() - HEADER)}
    for name, array in columns.items():
        put(np.zeros(-file.tell() % 64, np.uint8))  # aligned, so that it is read in place
        arrays[name] = (array.dtype.str, file.tell(), array.nbytes)
        put(array)
    header = {**stamp, "malformed": malformed, "arrays": arrays, "rest": rest}
    file.seek(0)
    file.write(json.dumps({**header, "checksum": zlib.crc32(json.dumps(header).encode())}).encode().ljust(HEADER))


def _bounds(lengths) -> np.ndarray:  # of pieces that stand one after another: where each begins, and the end of the last
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _scenes(video: np.ndarray, time: np.ndarray) -> dict[str, np.ndarray]:
    """A row's scene; of a scene, where its rows begin in `scene_order`, and how many they are."""
    import pandas as pd
    window, windows = pd.factorize(time // WINDOW)
    scene = pd.factorize(video * np.int64(len(windows)) + window)[0]
    count = np.bincount(scene)
    arrays = {"scene": scene, "scene_order": np.argsort(scene, kind="stable"), "scene_first": np.cumsum(count) - count,
              "scene_count": count}
    return {name: array.astype(np.int32) for name, array in arrays.items()}


class _Tags(dict):
    """Literals of lists of ids -> their place in `lists`, -1 for what is no such literal. Ids of no class are left out."""

    def __init__(self, classes: int):
        self.classes, self.lists = classes, []

    def __missing__(self, literal: str) -> int:
        number = -1
        if re.fullmatch(r"\[[\d,\s]*\]", literal):
            with contextlib.suppress(SyntaxError):
                self.lists.append([i for i in ast.literal_eval(literal) if i < self.classes])
                number = len(self.lists) - 1
        return self.setdefault(literal, number)


def _numbered(column, numbers: dict[str, int]) -> np.ndarray:
    """A category column in numbers that hold for all blocks; -1 where there is nothing."""
    return np.array([*map(numbers.__getitem__, column.cat.categories.tolist()), -1], np.int32)[column.cat.codes.to_numpy()]


def _blocks(path: Path) -> Iterator[bytes]:
    """Whole lines after the header, about BLOCK bytes at a time."""
    with open(path, "rb") as file:
        found = file.readline().decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
        if found != COLUMNS:
            raise ValueError(f"{path}: expected the tab-separated columns {', '.join(COLUMNS)}; found {', '.join(found)[:200]}")
        rest = b""
        while block := file.read(BLOCK):
            lines, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield lines + newline
        yield rest + b"\n"


def _read(block: bytes, videos: dict[str, int], tags: dict[str, _Tags]) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """(columns of the well-formed rows, their texts one after another, how many rows are malformed)."""
    import pandas as pd
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        block.decode()
    except UnicodeDecodeError:  # tabs for a byte that is no UTF-8: its row then has too many fields
        block = re.sub("[\udc80-\udcff]", "\t" * len(COLUMNS), block.decode(errors="surrogateescape")).encode()
    buffer = np.frombuffer(block, np.uint8)
    separators = np.flatnonzero((buffer == ord("\t")) | (buffer == ord("\n")))
    last = np.flatnonzero(buffer[separators] == ord("\n"))  # of each line, the number of its last separator
    whole = np.diff(last, prepend=-1) == len(COLUMNS)
    stop = separators[last]
    start = np.concatenate([[0], stop[:-1] + 1])
    torn = np.flatnonzero(~whole)
    lines = [block[a:b] for a, b in zip([0, *stop[torn] + 1], [*start[torn], len(block)], strict=True)]  # the whole ones
    text_start, text_stop = separators[last[whole] - 3] + 1, separators[last[whole] - 2]  # two fields follow the text

    # pandas guesses types, of categories too: a row of fractions and words before the others leaves it nothing to guess
    lines.insert(0, ("\t".join("0.5" if name in TIMES else "x" for name in COLUMNS) + "\n").encode())
    rows = pd.read_csv(io.BytesIO(b"".join(lines)), sep="\t", header=None, names=COLUMNS, usecols=["video_uid", *TIMES, *TAGS],
                       quoting=csv.QUOTE_NONE, skip_blank_lines=False, keep_default_na=False, na_values=list(NOTHING),
                       low_memory=False, dtype=dict.fromkeys(["video_uid", *TAGS], "category"))[1:]
    part = {name: np.asarray(pd.to_numeric(rows[name], errors="coerce"), np.float64) for name in TIMES}
    part |= {tag: _numbered(rows[tag], numbers) for tag, numbers in tags.items()} | {"text_length": text_stop - text_start}
    good = rows.video_uid.notna().to_numpy() & (part["clip_end"] > part["clip_start"])
    good &= np.all([np.isfinite(part[name]) for name in TIMES] + [part[tag] >= 0 for tag in TAGS], axis=0)
    for row in np.flatnonzero(good & (part["text_length"] <= 8)):
        good[row] = block[text_start[row]:text_stop[row]].decode() not in NOTHING
    part = {name: array[good] for name, array in part.items()}
    part["video_uid"] = _numbered(rows.video_uid[good].cat.remove_unused_categories(), videos)

    edges = np.stack([text_start[good], text_stop[good]], axis=1).ravel()  # outside and inside of the texts that are kept, by turns
    inside = np.repeat(np.arange(len(edges) + 1) % 2 == 1, np.diff(edges, prepend=0, append=len(block)))
    bad = np.ones(len(whole), bool)
    bad[np.flatnonzero(whole)[good]] = False
    malformed = sum(not block[a:b + 1].isspace() for a, b in zip(start[bad], stop[bad], strict=True))  # a blank line is no row
    return part, buffer[inside], malformed
