"""EgoClip's table at full size: egoclip.csv in a columnar cache that processes share.

The CSV is parsed once; then all processes of a machine map the cache. This file holds the table, its scene-aware
negatives, and the parsing. Videos, frames and samples are in tasks/egoclip.py.

The cache is one Arrow file and its checksum. It names the CSV's size and time; a cache that doesn't match is built
anew. Videos and lists of tags are stored once, and rows refer to them by number.
"""
import ast
import contextlib
import glob
import hashlib
import json
import os
import re
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from egokit.config.access import file_exists
from egokit.config.names import check_path, printable
from egokit.data.node_cache import near
from egokit.runs.files import atomic_path, remove_abandoned

VERBS, NOUNS = 118, 582  # classes of the tags
COLUMNS = ["clip_idx", "video_uid", "video_dur", "narration_source", "narration_ind", "narration_time",
           "clip_start", "clip_end", "clip_text", "tag_verb", "tag_noun"]
LISTS = ("tag_verb", "tag_noun", "scene")  # columns that refer to lists, each of which is stored once
TIMES, TAGS = ["narration_time", "clip_start", "clip_end"], {"tag_verb": VERBS, "tag_noun": NOUNS}
# fields that pandas takes for missing values
MISSING = ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
           "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
TAG_LIST = r"^\[\s*(N\s*(,\s*N\s*)*,?\s*)?\]$".replace("N", "(0{1,99}|[1-9][0-9]{0,99})")  # such as [3, 17]
NUMBER = r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"
WINDOW = 60.0    # seconds: a scene-aware negative comes from the same window of the same video
BLOCK = 1 << 24  # bytes of the CSV that are parsed at once: bounds the memory
FORMAT = "egokit's egoclip.csv, 2"  # increase the number when the same CSV gives another cache
CHECKSUM = 4     # bytes of CRC-32 at the cache's end
TAG = pa.dictionary(pa.int32(), pa.list_(pa.int16()))
SCHEMA = pa.schema({"video_uid": pa.dictionary(pa.int32(), pa.large_string()), **dict.fromkeys(TIMES, pa.float64()),
                    "clip_text": pa.large_string(), "tag_verb": TAG, "tag_noun": TAG,
                    "scene": pa.dictionary(pa.int32(), pa.list_(pa.int32()))})


class EgoClipTable:
    """The well-formed rows of egoclip.csv; other rows are counted and reported in a warning.

    A table is pickled as its path; unpickling maps the cache again.

    Args:
        path: egoclip.csv.
        warn: whether to warn of malformed rows.
        node_cache: site.node_cache, where the node's processes share a copy of the cache; "" for none.

    Attributes:
        videos: the distinct video_uids.
        columns: arrays (rows,), read-only, in pages that processes share: TIMES, places in `videos`, and in `lists`.
        lists: (bounds, values) of each of LISTS; list i is values[bounds[i]:bounds[i + 1]].
        texts: the narrations, an Arrow array.
        malformed: number of rows that were left out.

    Raises:
        FileNotFoundError: the file is missing.
        PermissionError: this user may not read it.
        ValueError: it is no EgoClip table, or a video_uid is no name of a folder.
    """

    def __init__(self, path: str | os.PathLike, warn: bool = True, node_cache: str = ""):
        self.path, self.node_cache = Path(path).absolute(), node_cache
        file_exists(self.path)  # its cache may be readable where the table is not
        cache = _open_cache(self.path, node_cache)
        arrays = {name: cache[name].chunk(0) for name in cache.column_names}
        self.videos: list[str] = arrays["video_uid"].dictionary.to_pylist()
        self.texts = arrays["clip_text"]
        self.columns = {name: _view(arrays[name]) for name in TIMES}
        self.columns |= {name: _view(arrays[name].indices) for name in ("video_uid", *LISTS)}
        lists = {name: arrays[name].dictionary for name in LISTS}
        self.lists = {name: (_view(array.offsets), _view(array.values)) for name, array in lists.items()}
        self._check_names()
        self.malformed: int = json.loads(cache.schema.metadata[b"egokit"])["malformed"]
        if warn and self.malformed:
            warnings.warn(f"{path}: {self.malformed} malformed rows of {self.malformed + len(self)} left out",
                          stacklevel=2)

    def _check_names(self) -> None:
        """Raise ValueError if a video_uid leads out of the folder of videos; a cache may come from others, too."""
        for number, uid in enumerate(self.videos):
            try:
                check_path(uid)
            except ValueError as error:
                row = int((self.columns["video_uid"] == number).argmax())
                raise ValueError(f"{self.path}, row {row} of those that are well formed: video_uid is {uid!r:.80}; "
                                 f"{error}") from None

    def __len__(self) -> int:
        return len(self.columns["video_uid"])

    def __reduce__(self):
        return EgoClipTable, (self.path, False, self.node_cache)

    def row(self, index: int) -> dict:
        """Return a row.

        Returns:
            video_uid and clip_text; narration_time, clip_start and clip_end in seconds; verbs and nouns, int16 arrays
            of class numbers.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has no row {index}: it has {len(self)} well-formed ones")
        return {"video_uid": self.videos[self.columns["video_uid"][index]], "clip_text": self.texts[index].as_py(),
                **{name: float(self.columns[name][index]) for name in TIMES},
                "verbs": self._list("tag_verb", index), "nouns": self._list("tag_noun", index)}

    def negative(self, index: int, rng: np.random.Generator) -> int:
        """Draw a scene-aware negative: another row of the same video and the same WINDOW.

        A row that is alone in its scene is its own negative. The cost doesn't depend on the size of the table.

        Returns:
            The negative's index.

        Source:
            EgoVLP (arXiv 2206.01670), EgoNCE.
        """
        scene = self._list("scene", index)
        if len(scene) == 1:
            return index
        pick = scene[rng.integers(len(scene) - 1)]
        return int(pick if pick != index else scene[-1])

    def _list(self, name: str, index: int) -> np.ndarray:
        """Return the list that a row refers to in a column of LISTS."""
        bounds, values = self.lists[name]
        number = self.columns[name][index]
        return values[bounds[number]:bounds[number + 1]]


def _view(numbers: pa.Array) -> np.ndarray:
    """Return an array of numbers without a copy; its own to_numpy would import pandas."""
    data = np.frombuffer(numbers.buffers()[1], numbers.type.to_pandas_dtype())
    return data[numbers.offset:numbers.offset + len(numbers)]


def _open_cache(path: Path, node_cache: str = "") -> pa.Table:
    """Return the cache, which is built if needed.

    It is a file beside the CSV, else in the user's cache folder, else only in memory; of the file, the node's copy.
    """
    status = os.stat(path)
    stamp = {"format": FORMAT, "csv_bytes": status.st_size, "csv_mtime_ns": status.st_mtime_ns}
    places = [path.with_name(f".{path.name}.cache")]
    with contextlib.suppress(RuntimeError):  # a user without a home
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egokit"
        places.append(caches / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}-{path.name}.cache")
    for place in places:
        if cache := _map_cache(place, stamp, node_cache):
            return cache
    built = _build_cache(path, stamp)
    for place in places:
        with contextlib.suppress(OSError):  # a folder that can't be written, a full disk, or another rank was first
            _store_cache(built, place, stamp)
        if cache := _map_cache(place, stamp, node_cache):
            return cache
    return built


def _map_cache(place: Path, stamp: dict, node_cache: str = "") -> pa.Table | None:
    """Map the cache at `place`, or its copy; None if it is missing, damaged, or of another CSV."""
    try:
        if node_cache and place.is_file():
            place = near(place, node_cache)
        data = pa.memory_map(str(place)).read_buffer()
        if zlib.crc32(data[:-CHECKSUM]) != int.from_bytes(data[-CHECKSUM:], "little"):
            return None
        cache = pa.ipc.open_file(data[:-CHECKSUM]).read_all()
        fits = stamp.items() <= json.loads(cache.schema.metadata[b"egokit"]).items() and _is_sound(cache)
        return cache if fits else None
    except (OSError, ValueError, TypeError, KeyError):  # pyarrow's errors are ValueErrors or OSErrors
        return None


def _is_sound(cache: pa.Table) -> bool:
    """Return whether all places in a cache, which may be others', lie in it; without that, memory would be read."""
    cache.validate(full=True)  # offsets and indices
    if cache.schema != SCHEMA or any(column.null_count or column.num_chunks != 1 for column in cache.columns):
        return False
    lists = {name: cache[name].chunk(0).dictionary for name in ("video_uid", *LISTS)}
    values = {name: _view(lists[name].values) for name in LISTS}
    stops = {**TAGS, "scene": len(cache)}
    return not any(array.null_count for array in lists.values()) and all(
        array.min(initial=0) >= 0 and array.max(initial=0) < stops[name] for name, array in values.items())


def _store_cache(cache: pa.Table, place: Path, stamp: dict) -> None:
    """Write the cache to `place`.

    Raises:
        FileExistsError: another rank has written it meanwhile; all then share that file's pages.
    """
    remove_abandoned(place.parent, glob.escape(place.stem))
    with atomic_path(place) as temporary:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, cache.schema) as writer:
            writer.write_table(cache)
        checksum = zlib.crc32(pa.memory_map(str(temporary)).read_buffer())
        with open(temporary, "ab") as file:
            file.write(checksum.to_bytes(CHECKSUM, "little"))
        if _map_cache(place, stamp):
            raise FileExistsError(place)


# parsing

def _build_cache(path: Path, stamp: dict) -> pa.Table:
    """Parse the CSV into a table of one chunk."""
    lines, blocks = 0, []
    with open(path, "rb") as file:
        header = file.readline().decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
        if header != COLUMNS:
            raise ValueError(f"{path}: expected the tab-separated columns {', '.join(COLUMNS)}; "
                             f"found {printable(', '.join(header)[:200])}")
        while block := file.read(BLOCK) + file.readline():
            count, rows = _parse_block(block)
            lines += count
            blocks.append(rows)
    malformed = lines - sum(map(len, blocks))
    if malformed == lines:
        raise ValueError(f"{path}: none of its {malformed} rows is well formed; is this an EgoClip table?")
    rows = pa.concat_tables(blocks).unify_dictionaries().combine_chunks()
    blocks.clear()
    pa.default_memory_pool().release_unused()
    columns = {name: rows[name].chunk(0) for name in rows.column_names}
    for tag, classes in TAGS.items():
        lists = [[number for number in ast.literal_eval(literal) if number < classes]
                 for literal in columns[tag].dictionary.to_pylist()]
        columns[tag] = pa.DictionaryArray.from_arrays(columns[tag].indices, pa.array(lists, pa.list_(pa.int16())))
    columns["scene"] = _scenes(columns["video_uid"].indices.to_numpy(), columns["narration_time"].to_numpy())
    return pa.table(columns).replace_schema_metadata({"egokit": json.dumps({**stamp, "malformed": malformed})})


def _parse_block(block: bytes) -> tuple[int, pa.Table]:
    """Parse whole lines.

    Returns:
        (number of rows, malformed ones included; the well-formed rows).
    """
    import pyarrow.compute as pc  # here, because a cache that is there needs neither
    from pyarrow import csv
    try:
        block.decode()
    except UnicodeDecodeError:  # a byte that is not UTF-8 becomes tabs: its row then has too many fields
        block = re.sub("[\udc80-\udcff]", "\t" * len(COLUMNS), block.decode(errors="surrogateescape")).encode()
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    block = re.sub(rb"\n\s*(?=\n|\Z)", b"", b"\n" + block)  # a blank line is not a row
    lines = block.count(b"\n")
    names = ["video_uid", *TIMES, "clip_text", *TAGS]
    rows = csv.read_csv(
        pa.BufferReader(block + b"\n"),
        csv.ReadOptions(column_names=COLUMNS, use_threads=False, block_size=len(block) + 1),
        csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=_skip),
        csv.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string()), include_columns=names,
                           null_values=MISSING, strings_can_be_null=True, check_utf8=False)).drop_null()
    columns = {name: rows[name].combine_chunks() for name in names}
    columns |= {name: _parse_times(columns[name]) for name in TIMES}
    good = [np.isfinite(columns[name]) for name in TIMES] + [columns["clip_end"] > columns["clip_start"]]
    good += [pc.match_substring_regex(columns[tag], TAG_LIST).to_numpy(zero_copy_only=False) for tag in TAGS]
    rows = pa.table(columns).filter(np.all(good, axis=0))
    encoded = {name: rows[name].combine_chunks().dictionary_encode() for name in ("video_uid", *TAGS)}
    return lines, pa.table({name: encoded.get(name, rows[name]) for name in names})


def _skip(row) -> str:
    """Leave out a row that has too few or too many fields."""
    return "skip"


def _parse_times(column: pa.Array) -> np.ndarray:
    """Parse a column of seconds; NaN for what is no number."""
    try:
        return column.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        cells = column.to_pylist()
        return np.array([float(cell) if re.fullmatch(NUMBER, cell, re.ASCII) else np.nan for cell in cells])


def _scenes(video: np.ndarray, time: np.ndarray) -> pa.DictionaryArray:
    """Return each row's scene, as the list of the scene's rows in the order of the table."""
    import pandas as pd
    keys = pd.DataFrame({"video": video, "window": time // WINDOW})
    scene = keys.groupby([*keys], sort=False).ngroup().to_numpy(np.int32)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(scene))])
    rows = np.argsort(scene, kind="stable")
    lists = pa.ListArray.from_arrays(bounds.astype(np.int32), rows.astype(np.int32))
    return pa.DictionaryArray.from_arrays(scene, lists)
