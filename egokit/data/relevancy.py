"""EK-100's relevancy of clips and sentences: computed, stored in a compact file, and read.

The relevancy of a clip and a sentence, (same verb class + |nouns ∩| / |nouns ∪|) / 2, takes few distinct values. So
our file holds one byte for each pair and a table of the values: 1.1 GB for the train split instead of 4.3. It is mapped
into memory, so all processes of a machine share it. The widely used pickles are read, too.

Source: EPIC-KITCHENS-100 (arXiv 2006.13256), section 4.5.
"""
import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from egokit.config.access import file_exists, is_there
from egokit.config.names import printable
from egokit.data.annotation_tables import numbers, read_csv, text, whole
from egokit.data.node_cache import near
from egokit.data.plain_data import Maker, Refused, kind_of
from egokit.data.safe_pickle import SafeUnpickler
from egokit.runs.files import atomic_path

ROWS = 2048  # clips that are processed at once


class _Array:
    """An array of numbers while a pickle describes it: its data type, its shape, and its bytes."""

    def __init__(self, *_):
        self.content: np.ndarray | None = None

    @classmethod
    def of(cls, content, dtype, shape, order="C", *_) -> "_Array":
        """Return an array by what NumPy's _frombuffer takes."""
        made = cls()
        content = content.encode("latin1") if isinstance(content, str) else content  # of Python 2
        made.content = np.frombuffer(content, dtype.numbers).reshape(shape, order=order)
        return made


class _DType:
    """A data type of numbers. Others, of objects for example, would make addresses of a file's bytes."""

    def __init__(self, code: str, *_):
        if not re.fullmatch(r"[<>=|]?(f[248]|[iu][1248]|b1)", code):
            raise Refused(f"it has values of the type {code[:20]!r}, which are no numbers")
        self.numbers = np.dtype(code)


def _latin1(text: str, encoding: str) -> bytes:
    """Return an array's bytes, which pickles of protocol 2 hold as a text; other encodings than latin1 have no use."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"it encodes a text as {encoding!r:.20}")
    return text.encode("latin1")


class _ArrayUnpickler(SafeUnpickler):
    """An unpickler of one NumPy array of numbers, which refuses a pickle that names anything else."""

    NAMES: ClassVar = {
        "numpy.dtype": Maker(_DType), "numpy.ndarray": Maker(_Array), "_codecs.encode": Maker(_latin1),
        **{f"numpy.{core}.{name}": Maker(maker) for core in ("core", "_core") for name, maker in (
            ("multiarray._reconstruct", _Array), ("numeric._frombuffer", _Array.of))}}

    has_array = False

    def find(self, name: str) -> Maker:
        if name not in self.NAMES:
            raise Refused(f"it names {name}; a relevancy file holds one array and nothing else")
        return self.NAMES[name]

    def build(self, target, state) -> None:
        if isinstance(target, _DType):  # (version, byte order, subtype, names, fields, …)
            if any(part is not None for part in state[2:5]):
                raise Refused("it has a data type of more than a byte order")
            target.numbers = target.numbers.newbyteorder(state[1] if state[1] in "<>" else "=")
        elif isinstance(target, _Array):
            if self.has_array:
                raise Refused("it holds more than one array")
            self.has_array = True
            _, shape, dtype, is_fortran, content = state
            target.content = _Array.of(content, dtype, shape, "F" if is_fortran else "C").content
        else:
            super().build(target, state)


class Relevancy:
    """The relevancy of every clip and sentence, 0 to 1, decoded to float32 where it is used.

    Attributes:
        codes: (clips, sentences), places in `values`; if that is None, the relevancies themselves.
        values: float32, the distinct relevancies.
    """

    def __init__(self, path: Path, codes: np.ndarray, values: np.ndarray | None = None):
        self.path, self.codes, self.values = path, codes, values

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape

    def row(self, clip: int) -> np.ndarray:
        """Return the relevancy of one clip and all sentences, float32 (sentences,)."""
        return self._decode(self.codes[clip])

    def pairs(self, clips: np.ndarray, sentences: np.ndarray) -> np.ndarray:
        """Return each of these clips with each of these sentences, float32 (clips, sentences)."""
        return self._decode(self.codes[np.ix_(clips, sentences)])

    def array(self) -> np.ndarray:
        """Return all of it in memory, float32 (clips, sentences)."""
        return self._decode(self.codes)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the float32 values of codes, or raise ValueError if they are not in 0..1."""
        try:
            decoded = np.asarray(codes, np.float32) if self.values is None else self.values[codes]
        except IndexError:
            decoded = np.full(1, np.nan)  # a code without a value
        if not (decoded.min() >= 0 and decoded.max() <= 1.001):
            raise ValueError(f"{self.path}: damaged: it has values outside 0..1; delete it, "
                             "and 'egokit prep' makes it from the tables")
        return decoded


def relevancy_path(folder: str | Path, split: str) -> Path:
    """Return the path of a split's relevancy file.

    Args:
        folder: retrieval_annotations/relevancy.
        split: "train" or "test".

    Returns:
        Our .safetensors if it exists, else the widely used .pkl if that exists, else the path where ours will be.
    """
    paths = [Path(folder) / f"caption_relevancy_EPIC_100_retrieval_{split}{suffix}"
             for suffix in (".safetensors", ".pkl")]
    return next((path for path in paths if is_there(path)), paths[0])


def read(path: str | Path, shape: tuple[int, int] | None = None, node_cache: str = "") -> Relevancy:
    """Open a relevancy file without executing anything in it.

    Args:
        path: our .safetensors (mapped, not read), a .pkl of one array, or a .npy.
        shape: the (clips, sentences) that the file must have, if given.
        node_cache: site.node_cache, where the node's processes share a copy of a mapped file; "" for none.

    Raises:
        FileNotFoundError: the file is missing.
        PermissionError: this user may not read it.
        ValueError: it is not a relevancy file, is damaged, or has another shape.
    """
    path = Path(path)
    if not file_exists(path):
        raise FileNotFoundError(f"relevancy {path} is missing; "
                                "'egokit prep ek100' or notebook 01_data_prep makes it from the annotations")
    try:
        matrix = _read_file(near(path, node_cache) if path.suffix in (".safetensors", ".npy") else path)
        matrix.path = path
    except Exception as error:
        raise ValueError(f"{path}: not a relevancy file ({printable(str(error))})") from None
    codes = matrix.codes
    values = codes if matrix.values is None else matrix.values
    if matrix.values is not None and not (values.ndim == 1 and codes.dtype.kind == "u"):
        raise ValueError(f"{path}: expected whole codes without a sign, of a list of values; found {codes.dtype} of "
                         f"values of shape {values.shape}; delete it, and 'egokit prep' makes it from the tables")
    if not isinstance(codes, np.ndarray) or codes.ndim != 2 or not codes.size or values.dtype.kind not in "fiub":
        raise ValueError(f"{path}: expected one array of numbers (clips, sentences), found {type(codes).__name__}"
                         + (f" {codes.shape} of {values.dtype}" if isinstance(codes, np.ndarray) else ""))
    if matrix.values is not None and not ((matrix.values >= 0) & (matrix.values <= 1)).all():
        raise ValueError(f"{path}: damaged: values outside 0..1; delete it, and 'egokit prep' makes it from the tables")
    if shape is not None and matrix.shape != shape:
        raise ValueError(f"{path} is {matrix.shape[0]:,} x {matrix.shape[1]:,}, but EPIC_100_retrieval_*.csv have "
                         f"{shape[0]:,} clips and {shape[1]:,} sentences; if those are whole, delete it, "
                         "and 'egokit prep' makes it from them")
    return matrix


def _read_file(path: Path) -> Relevancy:
    """Open a relevancy file by its suffix, without checking what is in it."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open
        with safe_open(path, "pt") as opened:  # checks the header against the file's size
            # PyTorch's tensors are mapped into memory; NumPy's arrays would be read
            return Relevancy(path, opened.get_tensor("codes").numpy(), opened.get_tensor("values").numpy())
    if path.suffix == ".npy":
        return Relevancy(path, np.load(path, mmap_mode="r", allow_pickle=False))
    with open(path, "rb") as opened:
        content = _ArrayUnpickler(opened, path.stat().st_size).load()
    if not isinstance(content, _Array):
        raise Refused(f"it holds {kind_of(content)}")
    return Relevancy(path, content.content)


def check(path: str | Path, shape: tuple[int, int]) -> None:
    """Raise what `read` would raise.

    A pickle of the right size is not read, as it may have 8 GB; its content is checked when it is used.
    """
    path, values = Path(path), shape[0] * shape[1]
    is_whole = file_exists(path) and any(0 < path.stat().st_size - values * width < 1000 for width in (4, 8))
    if path.suffix != ".pkl" or not is_whole:
        read(path, shape)


def load_relevancy(path: str | Path) -> np.ndarray:
    """Load a relevancy file into memory.

    Args:
        path: our .safetensors, a .pkl of one array, or a .npy; nothing in it is executed.

    Returns:
        float32 (clips, sentences), 0 to 1.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not a relevancy file, or is damaged.
    """
    return read(path).array()


def relevancy(clips_csv: str | Path, sentences_csv: str | Path) -> np.ndarray:
    """Compute the relevancy of every clip and sentence from their classes.

    It is (same verb class + |nouns ∩| / |nouns ∪|) / 2, where "same verb class" is 0 or 1. A sentence has the classes
    of the clip with its narration_id.

    Args:
        clips_csv: EPIC_100_retrieval_{split}.csv.
        sentences_csv: EPIC_100_retrieval_{split}_sentence.csv.

    Returns:
        float32 (clips, sentences), 0 to 1.

    Raises:
        FileNotFoundError, ValueError: a table is missing or damaged, or a sentence belongs to no clip.

    Source:
        EPIC-KITCHENS-100 (arXiv 2006.13256), section 4.5.
    """
    codes, values = relevancy_codes(clips_csv, sentences_csv)
    return values[codes]


def relevancy_codes(clips_csv: str | Path, sentences_csv: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Compute the relevancy as `relevancy` does, in compact form.

    Returns:
        (codes, values): codes (clips, sentences), one or two bytes each, are places in the float32 `values`.
    """
    import pandas as pd
    clips = read_csv(Path(clips_csv), {"narration_id": text, "verb_class": whole, "all_noun_classes": numbers},
                     unique="narration_id")
    sentences = read_csv(Path(sentences_csv), {"narration_id": text}, unique="narration_id")
    clip_of_sentence = pd.Index(clips.narration_id).get_indexer(sentences.narration_id)
    absent = sentences.narration_id[clip_of_sentence < 0]
    if len(absent):
        raise ValueError(f"{sentences_csv}: {len(absent)} narration_ids, such as {absent.iloc[0]}, are not in "
                         f"{clips_csv}")
    verbs, nouns = clips.verb_class.to_numpy(), clips.all_noun_classes.explode()
    has_noun = pd.get_dummies(nouns).groupby(level=0).max().to_numpy(np.float32)
    count = has_noun.sum(1)
    most = int(count.max())
    # a pair's relevancy depends on three small numbers, |nouns ∩|, |nouns ∪| and same verb; equal values share a code
    common, united, same = np.meshgrid(np.arange(most + 1), np.arange(2 * most + 1), (0, 1), indexing="ij")
    possible = np.where(common <= united, common, 0).astype(np.float32)
    share = possible / np.maximum(united, 1).astype(np.float32)
    values, code_of_key = np.unique((share + same.astype(np.float32)) / 2, return_inverse=True)
    code_of_key = code_of_key.ravel().astype(np.uint8 if len(values) <= 256 else np.uint16)
    codes = np.empty((len(clips), len(sentences)), code_of_key.dtype)
    for at in range(0, len(clips), ROWS):
        part = slice(at, at + ROWS)
        shared = has_noun[part] @ has_noun[clip_of_sentence].T
        key = (shared * (2 * most + 1) + (count[part, None] + count[clip_of_sentence][None] - shared)) * 2
        key += verbs[part, None] == verbs[clip_of_sentence][None]
        np.take(code_of_key, key.astype(np.int32), out=codes[part])
    return codes, values


def write(path: str | Path, clips_csv: str | Path, sentences_csv: str | Path) -> tuple[int, int]:
    """Compute the relevancy, write it as .safetensors, and return its (clips, sentences)."""
    from safetensors.numpy import save_file
    codes, values = relevancy_codes(clips_csv, sentences_csv)
    with atomic_path(path) as temporary:
        save_file({"codes": codes, "values": values}, temporary)
    return codes.shape
