"""Unit vectors of millions of clips on disk, and those nearest to a query: exactly, or of candidates that faiss proposes.

    folder/<name>.npy             one video's clips: start and stop in seconds, a unit vector in float16; read as they are looked at
    folder/approximate/           what `build` made: index.faiss, and which files' clips it holds

What a clip is, and where its vector comes from, is the business of others.
"""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from egokit.runs.files import atomic_folder, atomic_path, write_text

EXACT = 1 << 28      # bytes that are searched exactly, in some tenths of a second: 32,000 clips of 4096 numbers; beyond, faiss helps
BLOCK = 32 << 20     # bytes read at once
REDUCED, CODE = 128, 32  # of a vector in faiss: numbers, by the directions in which the clips differ most, and bytes
CANDIDATES = 2000    # of faiss for a query, whose cosines are then computed from the file


def record(dimension: int) -> np.dtype:
    return np.dtype([("start", "<f8"), ("stop", "<f8"), ("vector", "<f2", (dimension,))])


def save(path: Path, start_N: np.ndarray, stop_N: np.ndarray, vector_NE: np.ndarray) -> None:
    """Write one video's clips, whole or not at all. vector_NE: of any length but zero."""
    rows = np.empty(len(vector_NE), record(vector_NE.shape[1]))
    rows["start"], rows["stop"] = start_N, stop_N
    rows["vector"] = vector_NE / np.maximum(np.linalg.norm(vector_NE, axis=1, keepdims=True), 1e-8)
    with atomic_path(path) as temporary:
        np.save(temporary, rows)


def unit(query_QE: np.ndarray) -> np.ndarray:
    query_QE = np.asarray(query_QE, np.float32)
    return query_QE / np.maximum(np.linalg.norm(query_QE, axis=-1, keepdims=True), 1e-8)


class Vectors:
    """The clips of some files of a folder, numbered on through the files in the order given.

    clips: how many each file has. Neither files nor numbers are held in memory: a folder may be larger than that.
    """

    def __init__(self, folder: Path, names: list[str], clips: list[int], dimension: int):
        self.folder, self.names, self.dimension = Path(folder), names, dimension
        self.first = np.concatenate([[0], np.cumsum(clips, dtype=np.int64)])  # number of each file's first clip, and of the end
        self._approximate = None

    def __len__(self) -> int:
        return int(self.first[-1])

    @property
    def bytes(self) -> int:
        return len(self) * record(self.dimension).itemsize

    def rows(self, file: int) -> np.ndarray:
        """One file's clips, on disk."""
        return np.load(self.folder / f"{self.names[file]}.npy", mmap_mode="r")

    def place(self, number: int) -> tuple[int, np.void]:
        """A clip's file and its record."""
        file = int(np.searchsorted(self.first, number, side="right")) - 1
        return file, self.rows(file)[number - self.first[file]]

    def blocks(self, files=None, share: int = 1):
        """(number of the first clip, vectors (n, E) float32) through all files, or some; every `share`-th clip alone."""
        step = share * max(1, BLOCK // (4 * self.dimension))
        for file in range(len(self.names)) if files is None else files:
            rows = self.rows(file)
            for at in range(-int(self.first[file]) % share, len(rows), step):
                yield int(self.first[file]) + at, rows["vector"][at:at + step:share].astype(np.float32)

    def nearest(self, query_QE: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(cosines, numbers), each (Q, at most count), the highest first; of equal ones the first number."""
        query_QE, known = unit(np.atleast_2d(query_QE)), self.approximate()
        best = Best(len(query_QE), min(count, len(self)))
        for number, vector_NE in self.blocks(self.outside() if known else None):
            best.add(query_QE @ vector_NE.T, np.arange(number, number + len(vector_NE)))
        if known:
            for row, number_C in enumerate(known.candidates(query_QE, max(CANDIDATES, 4 * count))):
                best.add((self.at(number_C) @ query_QE[row])[None], number_C, row)
        return best.sorted()

    def at(self, number_C: np.ndarray) -> np.ndarray:
        """Vectors (C, E) float32 of some clips, read in the order in which they lie."""
        out, order = np.empty((len(number_C), self.dimension), np.float32), np.argsort(number_C)
        file_C = np.searchsorted(self.first, number_C[order], side="right") - 1
        for file in np.unique(file_C):
            mine = order[file_C == file]
            out[mine] = self.rows(file)["vector"][number_C[mine] - self.first[file]]
        return out

    # faiss

    def approximate(self) -> Approximate | None:
        """What `build` made, if it did."""
        if self._approximate is None and (self.folder / "approximate/files.json").exists():
            self._approximate = Approximate(self)
        return self._approximate

    def outside(self) -> list[int]:
        """Files whose clips `build` has not seen: they are searched exactly."""
        known = set(self.approximate().names) if self.approximate() else set()
        return [file for file, name in enumerate(self.names) if name not in known]

    def large(self) -> bool:
        """Whether there are so many clips outside of faiss that it is time to build its index (again)."""
        return sum(self.first[file + 1] - self.first[file] for file in self.outside()) * record(self.dimension).itemsize > EXACT

    def build(self, say=lambda done: None) -> None:
        """Make the faiss index of all clips: for each the reduced vector's nearest of some centres, and the rest in CODE bytes.

        say: called with the share of the clips that are done. Memory: about 70 bytes a clip, and 2 GB for the training.
        """
        import faiss
        share = max(1, len(self) // 262_144)  # of the clips, for the training
        reduce_DE = self.directions(max(1, len(self) // 65_536))
        sample_ND = np.concatenate([vector_NE @ reduce_DE.T for _, vector_NE in self.blocks(share=share)])
        lists = 1 << int(np.clip(np.log2(len(self)) / 2 + 0.5, 0, 12))
        lists = max(1, min(lists, len(sample_ND) // 39))  # centres need so many clips each
        D = len(reduce_DE)
        quantizer = faiss.IndexFlatIP(D)
        inner = faiss.IndexIVFPQ(quantizer, D, lists, next(m for m in range(min(CODE, D), 0, -1) if D % m == 0),
                                 8 if len(sample_ND) >= 39 * 256 else 4, faiss.METRIC_INNER_PRODUCT)
        inner.cp.spherical = True
        inner.train(sample_ND)
        for number, vector_NE in self.blocks():
            inner.add(vector_NE @ reduce_DE.T)
            say((number + len(vector_NE)) / len(self))
        with atomic_folder(self.folder / "approximate") as temporary:
            faiss.write_index(inner, str(temporary / "index.faiss"))
            np.save(temporary / "reduce.npy", reduce_DE)
            write_text(temporary / "files.json", json.dumps({"names": self.names, "first": self.first.tolist()}))
        self._approximate = None

    def directions(self, share: int) -> np.ndarray:
        """(D, E) orthonormal rows: the directions that hold most of the clips' inner products, in a random rotation of them.

        Not centred, as a query's cosine is with the vector and not with its difference from a mean. Rotated, so that each byte
        of a code has as much to say as every other.
        """
        moment_EE = np.zeros((self.dimension, self.dimension), np.float64)
        for _, vector_NE in self.blocks(share=share):
            moment_EE += vector_NE.T @ vector_NE
        kept = np.linalg.eigh(moment_EE)[1][:, ::-1][:, :REDUCED].T
        turn = np.linalg.qr(np.random.default_rng(0).standard_normal((len(kept), len(kept))))[0]
        return np.ascontiguousarray(turn @ kept, np.float32)


class Approximate:
    """A built index in memory; its numbers are those of the files that it was built of."""

    def __init__(self, vectors: Vectors):
        import faiss
        folder = vectors.folder / "approximate"
        made = json.loads((folder / "files.json").read_text())
        self.index, self.reduce_DE = faiss.read_index(str(folder / "index.faiss")), np.load(folder / "reduce.npy")
        self.names, self.first = made["names"], np.array(made["first"], np.int64)
        place = {name: file for file, name in enumerate(vectors.names)}
        # what is added to a number to make it that of the same clip now; -1: its file has gone
        self.moved = np.array([vectors.first[place[name]] - first if name in place else np.iinfo(np.int64).min
                               for name, first in zip(self.names, self.first, strict=False)], np.int64)
        self.index.nprobe = min(self.index.nlist, 64)

    def candidates(self, query_QE: np.ndarray, count: int):
        """For each query the numbers of clips worth computing."""
        number_QC = self.index.search(query_QE @ self.reduce_DE.T, min(count, self.index.ntotal))[1]
        for number_C in number_QC:
            number_C = number_C[number_C >= 0]
            moved_C = self.moved[np.searchsorted(self.first, number_C, side="right") - 1]
            there = moved_C != np.iinfo(np.int64).min
            yield number_C[there] + moved_C[there]


class Best:
    """The highest `count` cosines of each query so far."""

    def __init__(self, queries: int, count: int):
        self.count = count
        self.found = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in range(queries)]

    def add(self, cosine_QN: np.ndarray, number_N: np.ndarray, first: int = 0) -> None:
        for row, cosine_N in enumerate(cosine_QN, first):
            cosine_M, number_M = (np.concatenate(pair) for pair in zip(self.found[row], (cosine_N, number_N), strict=True))
            if len(cosine_M) > self.count:
                # all that equal the last one stay until the end, or which of them is left out would depend on the blocks
                least = -np.partition(-cosine_M, self.count - 1)[self.count - 1]
                kept = cosine_M >= least
                cosine_M, number_M = cosine_M[kept], number_M[kept]
            self.found[row] = cosine_M, number_M

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        orders = [np.lexsort((number, -cosine))[:self.count] for cosine, number in self.found]
        shortest = min(map(len, orders))
        return tuple(np.stack([pair[part][order[:shortest]] for pair, order in zip(self.found, orders, strict=True)]) for part in (0, 1))
