"""EgoClip's table at full size: egoclip.csv in a columnar cache that processes share.

The CSV is read once (egoclip_csv.py decides which rows are well formed); then all processes of a machine map the cache.
This file holds the cache, its rows and their scene-aware negatives. Videos, frames and samples are in tasks/egoclip.py.

The cache is one file: a JSON header, the texts of all rows, then arrays. It holds the CSV's size and time, and a
checksum of itself; a cache that doesn't match is built anew. Videos and lists of tags are stored once, and rows refer
to them by number.
"""
from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import itertools
import json
import os
import secrets
import warnings
import zlib
from pathlib import Path

import numpy as np

from egokit.data.egoclip_csv import (
    NOUNS,  # noqa: F401  (the tasks take both from here)
    TAGS,
    TIMES,
    VERBS,  # noqa: F401
    TagLists,
    parse_block,
    read_blocks,
)

WINDOW = 60.0   # seconds: a scene-aware negative comes from the same window of the same video
FORMAT = "egokit's egoclip.csv, 1"  # increase the number when the same CSV gives another cache
HEADER = 4096   # bytes


class EgoClipTable:
    """The well-formed rows of egoclip.csv; other rows are counted and reported in a warning.

    A table is pickled as its path; unpickling maps the cache again.

    Args:
        path: egoclip.csv.
        warn: whether to warn of malformed rows.

    Attributes:
        videos: the distinct video_uids.
        columns: the cache's arrays, read-only, in pages that processes share; "video_uid" is a place in `videos`.
        malformed: number of rows that were left out.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no EgoClip table.
    """

    def __init__(self, path: str | os.PathLike, warn: bool = True):
        self.path = Path(path).absolute()
        data, header = _open_cache(self.path)
        self.columns = {name: data[at:at + size].view(dtype) for name, (dtype, at, size) in header["arrays"].items()}
        self.videos: list[str] = self.columns["videos"].tobytes().decode().split("\t")
        self.malformed: int = header["malformed"]
        if warn and self.malformed:
            warnings.warn(f"{path}: {self.malformed} malformed rows of {self.malformed + len(self)} left out",
                          stacklevel=2)

    def __len__(self) -> int:
        return len(self.columns["video_uid"])

    def __reduce__(self):
        return EgoClipTable, (self.path, False)

    def row(self, index: int) -> dict:
        """Return a row.

        Returns:
            video_uid and clip_text; narration_time, clip_start and clip_end in seconds; verbs and nouns, int16 arrays
            of class numbers.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has no row {index}: it has {len(self)} well-formed ones")
        columns = self.columns
        first, last = columns["text_bounds"][index:index + 2]
        row = {"video_uid": self.videos[columns["video_uid"][index]],
               "clip_text": columns["texts"][first:last].tobytes().decode()}
        row |= {name: float(columns[name][index]) for name in TIMES}
        for name, tag in (("verbs", "tag_verb"), ("nouns", "tag_noun")):
            number = columns[tag][index]
            first, last = columns[f"{tag}_bounds"][number:number + 2]
            row[name] = columns[f"{tag}_ids"][first:last]
        return row

    def negative(self, index: int, rng: np.random.Generator) -> int:
        """Draw a scene-aware negative: another row of the same video and the same WINDOW.

        A row that is alone in its scene is its own negative. The cost doesn't depend on the size of the table.

        Returns:
            The negative's index.

        Source:
            EgoVLP (arXiv 2206.01670), EgoNCE.
        """
        scene = self.columns["scene"][index]
        first, count = int(self.columns["scene_first"][scene]), int(self.columns["scene_count"][scene])
        if count == 1:
            return index
        order = self.columns["scene_order"]  # row numbers, those of one scene contiguous and in the table's order
        pick = order[first + rng.integers(count - 1)]
        return int(pick if pick != index else order[first + count - 1])


def _open_cache(path: Path) -> tuple[np.ndarray, dict]:
    """Return the cache's bytes and header, building the cache if needed.

    The cache is a file beside the CSV, else in the user's cache folder, else only in memory.
    """
    status = os.stat(path)
    stamp = {"format": FORMAT, "csv_bytes": status.st_size, "csv_mtime_ns": status.st_mtime_ns}
    places = [path.with_name(f".{path.name}.cache")]
    with contextlib.suppress(RuntimeError):  # a user without a home
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egokit"
        places.append(caches / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}-{path.name}.cache")
    for place in places:
        if cache := _map_cache(place, stamp):
            return cache
    for place in places:
        with contextlib.suppress(OSError):  # a folder that can't be written, a full disk
            _store_cache(path, place, stamp)
        if cache := _map_cache(place, stamp):
            return cache
    _build_cache(path, memory := io.BytesIO(), stamp)
    return _check_cache(np.frombuffer(memory.getbuffer(), np.uint8), stamp)


def _map_cache(place: Path, stamp: dict) -> tuple[np.ndarray, dict] | None:
    """Map the cache at `place`; None if it is missing, damaged, or of another CSV."""
    try:
        return _check_cache(np.memmap(place, np.uint8, mode="r").view(np.ndarray), stamp)
    except Exception:  # anything can be in a damaged file
        return None


def _check_cache(data: np.ndarray, stamp: dict) -> tuple[np.ndarray, dict]:
    """Return a cache's bytes and header, or raise if it is damaged or of another CSV."""
    header = json.loads(data[:HEADER].tobytes())
    checksums = header.pop("checksum"), header["rest"]
    if stamp.items() <= header.items() and checksums == (zlib.crc32(json.dumps(header).encode()),
                                                         zlib.crc32(data[HEADER:])):
        return data, header
    raise ValueError("another CSV's, or damaged")


def _store_cache(path: Path, place: Path, stamp: dict) -> None:
    """Build the cache at `place`.

    Ranks on several machines may do this at the same time, so each writes a temporary file under a name of its own.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            _build_cache(path, file, stamp)
        if _map_cache(place, stamp) is None:  # else another rank was first, and all share its file's pages
            os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _build_cache(path: Path, file, stamp: dict) -> None:
    """Write the cache of the CSV into `file`.

    Texts are written as they are read; everything else, 60 bytes per row, is kept in memory until the end.
    """
    rest, malformed, parts = 0, 0, []
    videos: dict[str, int] = collections.defaultdict(itertools.count().__next__)  # numbered in order of appearance
    tags = {tag: TagLists(classes) for tag, classes in TAGS.items()}

    def put(data: np.ndarray) -> None:
        nonlocal rest
        rest = zlib.crc32(data, rest)
        file.write(data)

    file.seek(HEADER)
    for block in read_blocks(path):
        part, texts, left_out = parse_block(block, videos, tags)
        put(texts)
        parts.append(part)
        malformed += left_out
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    if not len(columns["video_uid"]):
        raise ValueError(f"{path}: none of its {malformed} rows is well formed; is this an EgoClip table?")
    columns |= {"text_bounds": _bounds(columns.pop("text_length")),
                "videos": np.frombuffer("\t".join(videos).encode(), np.uint8)}
    for tag, numbers in tags.items():
        columns[f"{tag}_bounds"] = _bounds([len(ids) for ids in numbers.lists])
        columns[f"{tag}_ids"] = np.array([number for ids in numbers.lists for number in ids], np.int16)
    columns |= _scenes(columns["video_uid"], columns["narration_time"])

    arrays = {"texts": ("u1", HEADER, file.tell() - HEADER)}
    for name, array in columns.items():
        put(np.zeros(-file.tell() % 64, np.uint8))  # aligned, so that the array can be mapped
        arrays[name] = (array.dtype.str, file.tell(), array.nbytes)
        put(array)
    header = {**stamp, "malformed": malformed, "arrays": arrays, "rest": rest}
    file.seek(0)
    file.write(json.dumps({**header, "checksum": zlib.crc32(json.dumps(header).encode())}).encode().ljust(HEADER))


def _bounds(lengths) -> np.ndarray:
    """Return where each of several contiguous pieces begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _scenes(video: np.ndarray, time: np.ndarray) -> dict[str, np.ndarray]:
    """Return each row's scene, and each scene's place in `scene_order` and number of rows."""
    import pandas as pd
    window, windows = pd.factorize(time // WINDOW)
    scene = pd.factorize(video * np.int64(len(windows)) + window)[0]
    count = np.bincount(scene)
    arrays = {"scene": scene, "scene_order": np.argsort(scene, kind="stable"), "scene_first": np.cumsum(count) - count,
              "scene_count": count}
    return {name: array.astype(np.int32) for name, array in arrays.items()}
