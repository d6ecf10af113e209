"""Measure search over 10 million clips: recall, seconds for a query and for merged moments, sizes.

The vectors are synthetic and clustered like the clips of a day's videos.

    python benchmarks/search.py              10 million clips of 256 numbers; takes 6 GB of disk, deleted at the end
    python benchmarks/search.py 1e5 4096     100,000 clips of 4096 numbers

What it printed stands at the end of this file.
"""
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from egokit.search.moments import combine, find_moments, sample
from egokit.search.vector_index import VectorIndex, save

CLIPS, DIMENSION = (int(float(given)) for given in (sys.argv[1:] + ["1e7", "256"][len(sys.argv) - 1:]))
FILE, CLUSTERS, QUERIES = 25_600_000 // DIMENSION, min(50_000, CLIPS // 200), 50


def draw(rng: np.random.Generator, centre_KE: np.ndarray, count: int, spread_E: np.ndarray) -> np.ndarray:
    """Draw vectors around centres.

    The k-th most frequent centre has a share proportional to 1/k. Twenty clips of one centre follow each other, as
    those of one place do in a video.
    """
    weight = 1 / np.arange(1, len(centre_KE) + 1)
    which = rng.choice(len(centre_KE), -(-count // 20), p=weight / weight.sum()).repeat(20)[:count]
    return centre_KE[which] + spread_E * rng.standard_normal((count, centre_KE.shape[1]), np.float32)


def measure(folder: Path) -> None:
    """Write vectors into a folder, search them exactly and by faiss, and print the table."""
    rng = np.random.default_rng(0)
    # a network's embeddings have few strong directions and many weak ones
    scale_E = (np.arange(1, DIMENSION + 1) ** -0.5).astype(np.float32)
    centre_KE = rng.standard_normal((CLUSTERS, DIMENSION), np.float32) * scale_E
    names, clips = [], []
    for first in range(0, CLIPS, FILE):
        x = draw(rng, centre_KE, min(FILE, CLIPS - first), 0.5 * scale_E)
        start_N = 2.0 * np.arange(len(x))
        save(folder / f"{first}.npy", start_N, start_N + 4, x)
        names.append(str(first))
        clips.append(len(x))
    # texts lie around the same centres, but further away than the clips, and shifted as a whole
    query_QE = draw(rng, centre_KE, QUERIES * 20, 0.7 * scale_E)[::20]
    query_QE = query_QE + scale_E * rng.standard_normal(DIMENSION, np.float32)
    vectors = VectorIndex(folder, names, clips, DIMENSION)
    print(f"{CLIPS:,} clips of {DIMENSION} numbers, {vectors.bytes / 1e9:.1f} GB on disk; {os.cpu_count()} cores",
          flush=True)
    began = time.perf_counter()
    exact = vectors.search(query_QE, 10)[1]
    print(f"exact: {QUERIES} queries at once in {time.perf_counter() - began:.1f} s", flush=True)
    began = time.perf_counter()
    vectors.search(query_QE[0], 10)
    print(f"exact: one query in {time.perf_counter() - began:.1f} s", flush=True)
    began = time.perf_counter()
    vectors.build_faiss()
    size = sum(path.stat().st_size for path in (folder / "approximate").iterdir())
    print(f"faiss: built in {time.perf_counter() - began:.0f} s, {size / 1e9:.2f} GB", flush=True)
    began = time.perf_counter()
    vectors = VectorIndex(folder, names, clips, DIMENSION)
    vectors.search(query_QE[0], 10)
    print(f"faiss: the first query, with reading the index, {time.perf_counter() - began:.2f} s")
    seconds, approximate = [], []
    for query_E in query_QE:
        began = time.perf_counter()
        approximate.append(vectors.search(query_E, 10)[1][0])
        seconds.append(time.perf_counter() - began)
    recall = np.mean([len(set(faiss_row) & set(exact_row)) / 10
                      for faiss_row, exact_row in zip(approximate, exact, strict=True)])
    print(f"faiss: a query {statistics.median(seconds):.3f} s (median of {QUERIES}; the longest {max(seconds):.3f}), "
          f"recall@10 {recall:.3f}")
    began = time.perf_counter()
    sample_NE = sample(vectors)
    print(f"moments: the index's sample, once, {time.perf_counter() - began:.2f} s")
    for what, queries in (("a text", query_QE), ("a text and an example", [
            combine(text_E, clip_E, sample_NE, 0.5) for text_E, clip_E in zip(query_QE, sample_NE, strict=False)])):
        seconds, lengths = [], []
        for query_E in queries:
            began = time.perf_counter()
            lengths += [moment.stop - moment.start for moment in find_moments(vectors, query_E, 10, sample_NE)]
            seconds.append(time.perf_counter() - began)
        print(f"moments: {what} {statistics.median(seconds):.3f} s (median; the longest {max(seconds):.3f}), of "
              f"{statistics.median(lengths):.0f} s each")
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
    print(f"peak memory {peak:.1f} GiB, which counts what is read of the files")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as temporary:
        measure(Path(temporary))

# Printed with faiss 1.15 on a machine of 2 cores (Intel Xeon) that other work kept busy (load 6 to 8). At a hop of 2 s,
# 10 million clips are 5,500 hours.
#
# 10,000,000 clips of 256 numbers, 5.3 GB on disk; 2 cores
# exact: 50 queries at once in 62.5 s
# exact: one query in 11.9 s
# faiss: built in 439 s, 0.40 GB
# faiss: the first query, with reading the index, 1.06 s
# faiss: a query 0.058 s (median of 50; the longest 0.151), recall@10 0.954
# moments: the index's sample, once, 0.04 s
# moments: a text 0.068 s (median; the longest 0.103), of 42 s each
# moments: a text and an example 0.067 s (median; the longest 0.201), of 42 s each
# peak memory 1.5 GiB, which counts what is read of the files
#
# The released model's vectors have 4096 numbers: 10 million take 82 GB, and faiss's index 0.40 GB as here, because it
# codes 128 directions of them; a query then reads 16 MB of the files, 8 kB for each of 2,000 candidates. Printed for
# 1e5 4096 by an earlier version, without moments, on another busy machine (AMD EPYC with AVX-512):
#
# 100,000 clips of 4096 numbers, 0.8 GB on disk; 2 cores
# exact: 50 queries at once in 67.1 s
# exact: one query in 9.1 s
# faiss: built in 446 s, 0.01 GB
# faiss: the first query, with reading the index, 0.40 s
# faiss: a query 0.212 s (median of 50; the longest 0.418), recall@10 0.990
# peak memory 0.8 GiB, which counts what is read of the files
