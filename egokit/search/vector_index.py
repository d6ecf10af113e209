"""Unit vectors of millions of clips on disk, and the search for those nearest to a query.

    folder/<name>.npy       one video's clips: start and stop in seconds, a unit vector in float16; memory-mapped
    folder/approximate/     written by `build_faiss`: index.faiss, and the files whose clips it contains

Small indexes are searched exactly. In larger ones, faiss proposes candidates whose cosines are then computed exactly.
What a clip is and where its vector comes from is not known here.
"""
from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np

from egokit.config import trust
from egokit.config.json_file import COUNT, read_json
from egokit.runs.array_file import read_array
from egokit.runs.files import atomic_folder, atomic_path, file_sha256, write_text

EXACT = 1 << 28      # bytes searched exactly, in some tenths of a second: 32,000 clips of 4096 numbers; above, by faiss
BLOCK = 32 << 20     # bytes read at once
REDUCED, CODE = 128, 32  # a vector in faiss: its dimensions after reduction by `directions`, and bytes of its code
GONE = np.iinfo(np.int64).min  # in place of a distance: the clip's file is gone
MADE_AGAIN = "delete it: the same command, or cell, makes it again"
CANDIDATES = 2000    # that faiss proposes for a query; their cosines are computed from the files


def record(dimension: int) -> np.dtype:
    """Return the dtype of a clip in a file."""
    return np.dtype([("start", "<f8"), ("stop", "<f8"), ("vector", "<f2", (dimension,))])


def save(path: Path, start_N: np.ndarray, stop_N: np.ndarray, vector_NE: np.ndarray) -> None:
    """Write one video's clips, atomically.

    Args:
        path: The file to write.
        start_N: Start of each clip, in seconds.
        stop_N: Stop of each clip, in seconds.
        vector_NE: Vectors of any length but zero; they are normalised.
    """
    rows = np.empty(len(vector_NE), record(vector_NE.shape[1]))
    rows["start"], rows["stop"] = start_N, stop_N
    rows["vector"] = unit(vector_NE)
    with atomic_path(path) as temporary:
        np.save(temporary, rows)


def load(path: Path) -> np.ndarray:
    """Return one video's clips, memory-mapped.

    Raises:
        ValueError: The file is damaged; the message names it.
    """
    return read_array(path, MADE_AGAIN, lambda dtype: dtype.names and "vector" in dtype.names
                      and len(dtype["vector"].shape) == 1 and dtype == record(dtype["vector"].shape[0]))


def unit(query_QE: np.ndarray) -> np.ndarray:
    """Return vectors scaled to length 1, in float32."""
    query_QE = np.asarray(query_QE, np.float32)
    return query_QE / np.maximum(np.linalg.norm(query_QE, axis=-1, keepdims=True), 1e-8)


class VectorIndex:
    """The clips of some files of a folder, numbered consecutively through the files.

    Neither files nor numbers are held in memory, because a folder may be larger than the memory.

    Args:
        folder: The folder of the files.
        names: The files, without suffix, in the order of numbering.
        clips: The number of clips in each file.
        dimension: Length of a vector.
    """

    def __init__(self, folder: Path, names: list[str], clips: list[int], dimension: int):
        self.folder, self.names, self.dimension = Path(folder), names, dimension
        # number of each file's first clip, and of the end
        self.first = np.concatenate([[0], np.cumsum(clips, dtype=np.int64)])
        self._faiss_index, self._foreign = None, False

    def __len__(self) -> int:
        return int(self.first[-1])

    @property
    def bytes(self) -> int:
        """Size of all clips on disk."""
        return len(self) * record(self.dimension).itemsize

    def rows(self, file: int) -> np.ndarray:
        """Return one file's clips, memory-mapped."""
        path, clips = self.folder / f"{self.names[file]}.npy", self.first[file + 1] - self.first[file]
        rows = load(path)
        if rows.shape != (clips,) or rows["vector"].shape[1] != self.dimension:
            raise ValueError(f"{path}: {rows.shape} vectors of {rows['vector'].shape[-1]} numbers, expected {clips} of "
                             f"{self.dimension}; {MADE_AGAIN}")
        return rows

    def locate(self, number: int) -> tuple[int, int]:
        """Return the file of a clip, and its row there."""
        file = int(np.searchsorted(self.first, number, side="right")) - 1
        return file, int(number - self.first[file])

    def blocks(self, files=None, share: int = 1):
        """Yield (number of the first clip, vectors (n, E) float32) through all files or some.

        With `share`, only every `share`-th clip is read.
        """
        step = share * max(1, BLOCK // (4 * self.dimension))
        for file in range(len(self.names)) if files is None else files:
            rows = self.rows(file)
            for first in range(-int(self.first[file]) % share, len(rows), step):
                yield int(self.first[file]) + first, rows["vector"][first:first + step:share].astype(np.float32)

    def search(self, query_QE: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the clips nearest to each query, best first, equal cosines by number.

        Args:
            query_QE: Queries of any length but zero, (Q, E) or (E,).
            count: At most so many clips for each.

        Returns:
            (cosines (Q, n), numbers (Q, n)).
        """
        query_QE, faiss_index = unit(np.atleast_2d(query_QE)), self.faiss_index()
        cosine_QN = np.empty((len(query_QE), 0), np.float32)
        number_QN = np.empty((len(query_QE), 0), np.int64)
        for number, vector_NE in self.blocks(self.files_outside_faiss() if faiss_index else None):
            block_QN = np.broadcast_to(np.arange(number, number + len(vector_NE)), (len(query_QE), len(vector_NE)))
            cosine_QN, number_QN = highest(count, (cosine_QN, query_QE @ vector_NE.T), (number_QN, block_QN))
        if faiss_index and len(self):
            number_QC = faiss_index.candidates(query_QE, max(CANDIDATES, 4 * count))
            cosine_QC = np.stack([self.vectors(number_C.clip(0)) @ query_E
                                  for number_C, query_E in zip(number_QC, query_QE, strict=True)])
            cosine_QC[number_QC < 0] = -np.inf
            cosine_QN, number_QN = highest(count, (cosine_QN, cosine_QC), (number_QN, number_QC))
        found_N = (cosine_QN > -np.inf).all(0)
        return cosine_QN[:, found_N], number_QN[:, found_N]

    def vectors(self, number_C: np.ndarray) -> np.ndarray:
        """Return the vectors (C, E) float32 of some clips, read in the order they have on disk."""
        out, order = np.empty((len(number_C), self.dimension), np.float32), np.argsort(number_C)
        file_C = np.searchsorted(self.first, number_C[order], side="right") - 1
        for file in np.unique(file_C):
            in_file = order[file_C == file]
            out[in_file] = self.rows(file)["vector"][number_C[in_file] - self.first[file]]
        return out

    # faiss

    def faiss_index(self) -> FaissIndex | None:
        """Return the index that `build_faiss` wrote for this user, if it did.

        faiss follows what is in its file, so that one of others is not opened: all clips are compared then.
        """
        if self._faiss_index is None and (self.folder / "approximate/files.json").exists() and not self._foreign:
            path = self.folder / "approximate/index.faiss"
            self._foreign = not (path.is_file() and trust.is_known(file_sha256(path)))
            if self._foreign:
                print(f"{self.folder / 'approximate'} was not made by this user's egokit, or is damaged, and is not "
                      f"used: all clips are compared. To have it made again, delete {self.folder / 'manifest.json'}",
                      flush=True)
            else:
                self._faiss_index = FaissIndex(self)
        return self._faiss_index

    def files_outside_faiss(self) -> list[int]:
        """Return the files that faiss's index doesn't contain; they are searched exactly."""
        inside = set(self.faiss_index().names) if self.faiss_index() else set()
        return [file for file, name in enumerate(self.names) if name not in inside]

    def needs_faiss(self) -> bool:
        """Whether so many clips are outside faiss that its index should be built (again)."""
        clips = sum(self.first[file + 1] - self.first[file] for file in self.files_outside_faiss())
        return clips * record(self.dimension).itemsize > EXACT

    def build_faiss(self, on_progress=lambda done: None) -> None:
        """Build the faiss index of all clips: an inverted file (IVF) with product quantisation.

        Each clip's reduced vector is assigned to its nearest centre, and the rest is coded in CODE bytes. Memory: about
        70 bytes a clip, and 2 GB for the training.

        Args:
            on_progress: Called with the share of the clips that are done.
        """
        import faiss
        share = max(1, len(self) // 262_144)  # train on every share-th clip
        reduce_DE = self.directions(max(1, len(self) // 65_536))
        sample_ND = np.concatenate([vector_NE @ reduce_DE.T for _, vector_NE in self.blocks(share=share)])
        lists = 1 << int(np.clip(np.log2(len(self)) / 2 + 0.5, 0, 12))
        lists = max(1, min(lists, len(sample_ND) // 39))  # faiss wants 39 training vectors a centre
        D = len(reduce_DE)
        quantizer = faiss.IndexFlatIP(D)
        code_bytes = next(m for m in range(min(CODE, D), 0, -1) if D % m == 0)
        bits = 8 if len(sample_ND) >= 39 * 256 else 4
        index = faiss.IndexIVFPQ(quantizer, D, lists, code_bytes, bits, faiss.METRIC_INNER_PRODUCT)
        index.cp.spherical = True
        index.train(sample_ND)
        for number, vector_NE in self.blocks():
            index.add(vector_NE @ reduce_DE.T)
            on_progress((number + len(vector_NE)) / len(self))
        with atomic_folder(self.folder / "approximate") as temporary:
            faiss.write_index(index, str(temporary / "index.faiss"))
            np.save(temporary / "reduce.npy", reduce_DE)
            write_text(temporary / "files.json", json.dumps({"names": self.names, "first": self.first.tolist()}))
            with contextlib.suppress(OSError, RuntimeError):  # no place for it: the index is not used, which is said
                trust.remember(file_sha256(temporary / "index.faiss"))
        self._faiss_index, self._foreign = None, False

    def directions(self, share: int) -> np.ndarray:
        """Return (D, E) orthonormal rows: the clips' principal directions, randomly rotated.

        They are not centred, because a query's cosine is with the vector, not with its difference from a mean. They
        are rotated so that every byte of a code carries equally much.
        """
        moment_EE = np.zeros((self.dimension, self.dimension), np.float64)
        for _, vector_NE in self.blocks(share=share):
            moment_EE += vector_NE.T @ vector_NE
        kept = np.linalg.eigh(moment_EE)[1][:, ::-1][:, :REDUCED].T
        rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((len(kept), len(kept))))[0]
        return np.ascontiguousarray(rotation @ kept, np.float32)


class FaissIndex:
    """A built faiss index in memory.

    Inside, clips have the numbers that they had when it was built; `candidates` returns their present ones.

    Raises:
        ValueError: One of its files is damaged; the message names it.
    """

    def __init__(self, vectors: VectorIndex):
        import faiss
        folder = vectors.folder / "approximate"
        fix = f"delete {folder}: all clips are searched exactly then, until the index is brought up to date"
        files = read_json(folder / "files.json", {"names": [str], "first": [COUNT]}, fix)
        self.index = faiss.read_index(str(folder / "index.faiss"))
        self.reduce_DE = read_array(folder / "reduce.npy", fix, lambda dtype: dtype.kind == "f")
        self.names, self.first = files["names"], np.array(files["first"], np.int64)
        place = {name: file for file, name in enumerate(vectors.names)}
        built, present = np.diff(self.first), np.diff(vectors.first)
        if (self.reduce_DE.shape, len(built)) != ((self.index.d, vectors.dimension), len(self.names)) \
                or self.first[0] or self.index.ntotal != self.first[-1] or (built < 0).any() \
                or any(count != present[place[name]] for name, count in zip(self.names, built, strict=True)
                       if name in place):
            raise ValueError(f"{folder}: its files don't belong together; {fix}")
        # what to add to a built number to get the same clip's present one
        self.moved = np.array([vectors.first[place[name]] - first if name in place else GONE
                               for name, first in zip(self.names, self.first, strict=False)], np.int64)
        self.index.nprobe = min(self.index.nlist, 64)

    def candidates(self, query_QE: np.ndarray, count: int) -> np.ndarray:
        """Return the present numbers (Q, C) of the clips that faiss proposes for each query; -1 stands for none."""
        number_QC = self.index.search(query_QE @ self.reduce_DE.T, min(count, self.index.ntotal))[1]
        moved_QC = self.moved[np.searchsorted(self.first, number_QC, side="right") - 1]
        return np.where((number_QC < 0) | (moved_QC == GONE), -1, number_QC + moved_QC)


def highest(count: int, cosines: tuple[np.ndarray, ...], numbers: tuple[np.ndarray, ...]
            ) -> tuple[np.ndarray, np.ndarray]:
    """Return the `count` highest cosines of each query and their clips' numbers, equal cosines by number.

    Args:
        cosines: arrays (Q, n), of some clips each.
        numbers: the clips' numbers, arrays of the same shapes.
    """
    cosine_QN, number_QN = np.concatenate(cosines, 1), np.concatenate(numbers, 1)
    if cosine_QN.shape[1] > count:  # only clips that may be among the highest of a query are sorted
        least_Q1 = -np.partition(-cosine_QN, count - 1)[:, count - 1:count]
        hopeful_N = (cosine_QN >= least_Q1).any(0)
        cosine_QN, number_QN = cosine_QN[:, hopeful_N], number_QN[:, hopeful_N]
    order_QN = np.lexsort((number_QN, -cosine_QN))[:, :count]
    return np.take_along_axis(cosine_QN, order_QN, 1), np.take_along_axis(number_QN, order_QN, 1)
