"""EK-100's relevancy of clips and sentences: computed, kept in a compact file, and read, the widely used pickles too.

(same verb class + |nouns ∩| / |nouns ∪|) / 2 takes few distinct values: a file holds one byte a pair and the table of
values, 1.1 GB for the train split in place of 4.3, mapped into memory and so shared by all processes of a machine.
Source: EPIC-KITCHENS-100 (arXiv 2006.13256), section 4.5.
"""
from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np

from egokit.data.annotation_tables import numbers, read_csv, text, whole
from egokit.runs.files import atomic_path

ROWS = 2048  # clips worked on at once


class _ArraysOnly(pickle.Unpickler):
    """Admits one NumPy array and what it is made of; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str):
        if (module.split(".")[0], name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy", "_reconstruct"), ("numpy", "scalar")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}; a relevancy file holds one array and nothing else")


class Relevancy:
    """(clips, sentences) in 0..1. A row or the whole is float32; what lies behind is an array or bytes of a mapped file."""

    def __init__(self, path: Path, codes: np.ndarray, values: np.ndarray | None = None):
        self.path, self.codes, self.values = path, codes, values

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape

    def row(self, clip: int) -> np.ndarray:
        """(sentences,)"""
        return self._decoded(self.codes[clip])

    def pairs(self, clips: np.ndarray, sentences: np.ndarray) -> np.ndarray:
        """(len(clips), len(sentences)): every one of these clips with every one of these sentences."""
        return self._decoded(self.codes[np.ix_(clips, sentences)])

    def array(self) -> np.ndarray:
        """(clips, sentences), all of it in memory."""
        return self._decoded(self.codes)

    def _decoded(self, codes: np.ndarray) -> np.ndarray:
        try:
            decoded = np.asarray(codes, np.float32) if self.values is None else self.values[codes]
        except IndexError:
            decoded = np.full(1, np.nan)  # a code beyond the values
        if not (decoded.min() >= 0 and decoded.max() <= 1.001):
            raise ValueError(f"{self.path}: damaged: it has values outside 0..1; delete it, and 'egokit prep' makes it from the tables")
        return decoded


def file(folder: str | Path, split: str) -> Path:
    """A split's relevancy under retrieval_annotations/relevancy: ours, or else the widely used pickle, or where ours will be."""
    names = [Path(folder) / f"caption_relevancy_EPIC_100_retrieval_{split}{suffix}" for suffix in (".safetensors", ".pkl")]
    return next((path for path in names if path.is_file()), names[0])


def read(path: str | Path, shape: tuple[int, int] | None = None) -> Relevancy:
    """Relevancy of a .safetensors of ours (mapped, not read), a .pkl of one array or a .npy; executes nothing in the file.

    Raises ValueError if it is not of `shape`, where one is given.
    """
    path = Path(path)
    try:
        found = _found(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"relevancy {path} is missing; notebook 01_data_prep makes it from the annotations") from None
    except Exception as error:
        raise ValueError(f"{path}: not a relevancy file ({error})") from None
    values = found.codes if found.values is None else found.values
    if not isinstance(found.codes, np.ndarray) or found.codes.ndim != 2 or values.dtype.kind not in "fiub":
        raise ValueError(f"{path}: expected one array of numbers (clips, sentences), found {type(found.codes).__name__}"
                         + (f" {found.codes.shape} of {values.dtype}" if isinstance(found.codes, np.ndarray) else ""))
    if found.values is not None and not ((found.values >= 0) & (found.values <= 1)).all():
        raise ValueError(f"{path}: damaged: values outside 0..1; delete it, and 'egokit prep' makes it from the tables")
    if shape is not None and found.shape != shape:
        raise ValueError(f"{path} is {found.shape[0]:,} x {found.shape[1]:,}, but EPIC_100_retrieval_*.csv have {shape[0]:,} clips and "
                         f"{shape[1]:,} sentences; if those are whole, delete it, and 'egokit prep' makes it from them")
    return found


def _found(path: Path) -> Relevancy:
    if path.suffix == ".safetensors":
        return _mapped(path)
    if path.suffix == ".npy":
        return Relevancy(path, np.load(path, mmap_mode="r", allow_pickle=False))
    with open(path, "rb") as opened:
        return Relevancy(path, _ArraysOnly(opened).load())


def check(path: str | Path, shape: tuple[int, int]) -> None:
    """`read`, for its errors alone. A pickle of the right size is not read, as it may have 8 GB: who uses it, reads it."""
    path, values = Path(path), shape[0] * shape[1]
    if path.suffix != ".pkl" or not any(0 < path.stat().st_size - values * width < 1000 for width in (4, 8)):
        read(path, shape)


def load_relevancy(path: str | Path) -> np.ndarray:
    """(clips, sentences) float32, all of it in memory, from any relevancy file."""
    return read(path).array()


def _mapped(path: Path) -> Relevancy:
    from safetensors import safe_open
    with safe_open(path, "np") as opened:  # checks the header against the file's size
        values = opened.get_tensor("values")
    with open(path, "rb") as raw:  # its own slices are read, not mapped
        length = int.from_bytes(raw.read(8), "little")
        entry = json.loads(raw.read(length))["codes"]
    kind = {"U8": np.uint8, "U16": np.uint16}[entry["dtype"]]
    return Relevancy(path, np.memmap(path, kind, "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"])), values)


def relevancy(clips_csv: str | Path, sentences_csv: str | Path) -> np.ndarray:
    """(clips, sentences) float32. A sentence has the classes of the clip that bears its narration_id."""
    codes, values = coded(clips_csv, sentences_csv)
    return values[codes]


def coded(clips_csv: str | Path, sentences_csv: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(clips, sentences) codes, one or two bytes each, and the float32 values that they stand for."""
    clips = read_csv(Path(clips_csv), {"narration_id": text, "verb_class": whole, "all_noun_classes": numbers}, unique="narration_id")
    sentences = read_csv(Path(sentences_csv), {"narration_id": text}, unique="narration_id")
    row = {narration: i for i, narration in enumerate(clips.narration_id)}
    absent = [narration for narration in sentences.narration_id if narration not in row]
    if absent:
        raise ValueError(f"{sentences_csv}: {len(absent)} narration_ids, such as {absent[0]}, are not in {clips_csv}")
    own = np.array([row[narration] for narration in sentences.narration_id])
    verbs = clips.verb_class.to_numpy()
    nouns = [set(some) for some in clips.all_noun_classes]
    known = {noun: i for i, noun in enumerate(sorted(set().union(*nouns)))}
    hot = np.zeros((len(clips), len(known)), np.float32)
    for i, some in enumerate(nouns):
        hot[i, [known[noun] for noun in some]] = 1
    count = hot.sum(1)
    most = int(count.max())
    # a pair's value depends on three small numbers; equal values share a code
    common, united, same = np.meshgrid(np.arange(most + 1), np.arange(2 * most + 1), (0, 1), indexing="ij")
    share = common.astype(np.float32) / np.maximum(united, 1).astype(np.float32)
    table = ((share + same.astype(np.float32)) / 2)
    values, code = np.unique(table[common <= united], return_inverse=True)
    kind = np.uint8 if len(values) <= 256 else np.uint16
    codes_of = np.zeros(table.size, kind)
    codes_of[(common <= united).ravel()] = code
    codes = np.empty((len(clips), len(sentences)), kind)
    for at in range(0, len(clips), ROWS):
        some = slice(at, at + ROWS)
        shared = hot[some] @ hot[own].T
        key = (shared * (2 * most + 1) + (count[some, None] + count[own][None] - shared)) * 2
        key += verbs[some, None] == verbs[own][None]
        np.take(codes_of, key.astype(np.int32), out=codes[some])
    return codes, values


def write(path: str | Path, clips_csv: str | Path, sentences_csv: str | Path) -> tuple[int, int]:
    """Compute and keep; returns (clips, sentences)."""
    from safetensors.numpy import save_file
    codes, values = coded(clips_csv, sentences_csv)
    with atomic_path(path) as temporary:
        save_file({"codes": codes, "values": values}, temporary)
    return codes.shape
