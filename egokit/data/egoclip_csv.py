"""Parsing of egoclip.csv in blocks: which rows are well formed, and their columns."""
from __future__ import annotations

import ast
import contextlib
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VERBS, NOUNS = 118, 582  # classes of the tags
COLUMNS = ["clip_idx", "video_uid", "video_dur", "narration_source", "narration_ind", "narration_time",
           "clip_start", "clip_end", "clip_text", "tag_verb", "tag_noun"]
TIMES, TAGS = ["narration_time", "clip_start", "clip_end"], {"tag_verb": VERBS, "tag_noun": NOUNS}
BLOCK = 1 << 24  # bytes of the CSV that are parsed at once: bounds the memory
# fields that pandas takes for missing values; none is longer than 8 bytes
MISSING = frozenset(["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
                     "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"])


class TagLists(dict):
    """A map from literals such as "[3, 17]" to their place in `lists`; -1 for anything else.

    Ids without a class are left out of the lists.
    """

    def __init__(self, classes: int):
        self.classes, self.lists = classes, []

    def __missing__(self, literal: str) -> int:
        number = -1
        if re.fullmatch(r"\[[\d,\s]*\]", literal):
            with contextlib.suppress(SyntaxError):
                self.lists.append([i for i in ast.literal_eval(literal) if i < self.classes])
                number = len(self.lists) - 1
        return self.setdefault(literal, number)


def number_categories(column, numbers: dict[str, int]) -> np.ndarray:
    """Return a categorical column as numbers that hold for all blocks; -1: missing value."""
    table = np.array([*map(numbers.__getitem__, column.cat.categories.tolist()), -1], np.int32)
    return table[column.cat.codes.to_numpy()]


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the lines after the header, complete ones, about BLOCK bytes at a time."""
    with open(path, "rb") as file:
        header = file.readline().decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
        if header != COLUMNS:
            raise ValueError(f"{path}: expected the tab-separated columns {', '.join(COLUMNS)}; "
                             f"found {', '.join(header)[:200]}")
        rest = b""
        while block := file.read(BLOCK):
            lines, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield lines + newline
        yield rest + b"\n"


def parse_block(block: bytes, videos: dict[str, int],
                tags: dict[str, TagLists]) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Parse a block of lines.

    Args:
        videos: number of each video_uid; grows as new ones appear.
        tags: the tag lists of each of TAGS; they grow as well.

    Returns:
        (columns of the well-formed rows, their texts one after another as uint8, number of malformed rows).
    """
    import pandas as pd
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        block.decode()
    except UnicodeDecodeError:  # a byte that is not UTF-8 becomes tabs: its row then has too many fields
        block = re.sub("[\udc80-\udcff]", "\t" * len(COLUMNS), block.decode(errors="surrogateescape")).encode()
    buffer = np.frombuffer(block, np.uint8)
    separators = np.flatnonzero((buffer == ord("\t")) | (buffer == ord("\n")))
    last = np.flatnonzero(buffer[separators] == ord("\n"))  # the number of each line's last separator
    whole = np.diff(last, prepend=-1) == len(COLUMNS)
    stop = separators[last]
    start = np.concatenate([[0], stop[:-1] + 1])
    torn = np.flatnonzero(~whole)
    # the lines with the right number of fields, in stretches
    lines = [block[a:b] for a, b in zip([0, *stop[torn] + 1], [*start[torn], len(block)], strict=True)]
    text_start, text_stop = separators[last[whole] - 3] + 1, separators[last[whole] - 2]  # two fields follow the text

    # pandas guesses types, even of categories: a first row of fractions and words leaves it nothing to guess
    lines.insert(0, ("\t".join("0.5" if name in TIMES else "x" for name in COLUMNS) + "\n").encode())
    rows = pd.read_csv(io.BytesIO(b"".join(lines)), sep="\t", header=None, names=COLUMNS,
                       usecols=["video_uid", *TIMES, *TAGS], quoting=csv.QUOTE_NONE, skip_blank_lines=False,
                       keep_default_na=False, na_values=list(MISSING), low_memory=False,
                       dtype=dict.fromkeys(["video_uid", *TAGS], "category"))[1:]
    part = {name: np.asarray(pd.to_numeric(rows[name], errors="coerce"), np.float64) for name in TIMES}
    part |= {tag: number_categories(rows[tag], numbers) for tag, numbers in tags.items()}
    part |= {"text_length": text_stop - text_start}
    good = rows.video_uid.notna().to_numpy() & (part["clip_end"] > part["clip_start"])
    good &= np.all([np.isfinite(part[name]) for name in TIMES] + [part[tag] >= 0 for tag in TAGS], axis=0)
    for row in np.flatnonzero(good & (part["text_length"] <= 8)):
        good[row] = block[text_start[row]:text_stop[row]].decode() not in MISSING
    part = {name: array[good] for name, array in part.items()}
    part["video_uid"] = number_categories(rows.video_uid[good].cat.remove_unused_categories(), videos)

    # the bytes between edges are outside and inside the texts of the good rows, by turns
    edges = np.stack([text_start[good], text_stop[good]], axis=1).ravel()
    inside = np.repeat(np.arange(len(edges) + 1) % 2 == 1, np.diff(edges, prepend=0, append=len(block)))
    bad = np.ones(len(whole), bool)
    bad[np.flatnonzero(whole)[good]] = False
    # a blank line is not a row
    malformed = sum(not block[a:b + 1].isspace() for a, b in zip(start[bad], stop[bad], strict=True))
    return part, buffer[inside], malformed
