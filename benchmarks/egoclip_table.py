"""EgoClip's table at full size: time and memory to load it, and the cost of a negative.

    python benchmarks/egoclip_table.py          # a minute and 2 GB of disk; its output is at the end of this file

Each way is measured in a process of its own, including the scenes and one access to every row's times, video and tags.
Memory is the peak resident size, including pages that are shared with other processes.
"""
from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
ROWS, VIDEOS = 3_847_723, 8_000  # EgoClip's number of clips, and about its number of videos
VERBS, NOUNS = 118, 582


def generate(path, rows: int = ROWS, videos: int = VIDEOS, malformed: int = 100, seed: int = 0) -> None:
    """Write a table shaped like egoclip.csv, with `malformed` additional rows.

    Texts and tags are drawn from pools; times are new, with all their digits. The rows of a video are contiguous and in
    the order of time, about 25 per minute.
    """
    rng = np.random.default_rng(seed)
    words = np.array([f"{stem}{ending}" for stem in ("pick", "hold", "cut", "place", "wash", "knife", "onion", "café",
                                                     "cloth", "door")
                      for ending in ("", "s", "ing", "ed", "er")])
    texts = ["#C C " + " ".join(text)
             for text in words[rng.integers(len(words), size=(min(rows, 400_000), 7))].tolist()]
    nouns = [str(sorted(classes[:1 + i % 3]))
             for i, classes in enumerate(rng.integers(NOUNS, size=(min(rows, 50_000), 3)).tolist())]
    verbs = [f"[{i}]" for i in range(VERBS)]
    parts = [rng.integers(2**bits, size=videos).tolist() for bits in (32, 16, 48)]
    names = [f"{a:08x}-{b:04x}-4a7e-9c1d-{c:012x}" for a, b, c in zip(*parts, strict=True)]
    bounds = np.linspace(0, rows, videos + 1).astype(int)
    bad = set(rng.choice(rows, malformed, replace=False).tolist())
    with open(path, "w", encoding="utf-8") as file:
        file.write("clip_idx\tvideo_uid\tvideo_dur\tnarration_source\tnarration_ind\tnarration_time\tclip_start\t"
                   "clip_end\tclip_text\ttag_verb\ttag_noun\n")
        for video, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
            count = last - first
            times = np.sort(rng.random(count)) * count * 60 / 25
            before, after = rng.random((2, count))
            start = f"\t{names[video]}\t{count * 2.4 + 3:.4f}\tnarration_pass_"
            lines = [f"{i}{start}{1 + i % 2}\t{i // 2}\t{t:.7f}\t{a}\t{b}\t{texts[text]}\t{verbs[verb]}\t"
                     f"{nouns[noun]}\n"
                     for i, t, a, b, text, verb, noun in zip(
                         range(first, last), times.tolist(), (times - before).tolist(), (times + after).tolist(),
                         *(rng.integers(len(pool), size=count).tolist() for pool in (texts, verbs, nouns)),
                         strict=True)]
            for i in bad.intersection(range(first, last)):
                lines.append("\t".join(lines[i - first].split("\t")[:3 + i % 8]) + "\n")
            file.write("".join(lines))


class Naive:
    """The plain way, which EgoClipTable has to equal: all in pandas, scenes as strings.

    It is slow and needs much memory.
    """

    def __init__(self, path):
        import pandas as pd
        table = pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, on_bad_lines="skip", dtype=str)
        with open(path, "rb") as file:
            lines = sum(1 for line in file if line.strip()) - 1
        for column in ("narration_time", "clip_start", "clip_end"):
            numeric = pd.to_numeric(table[column], errors="coerce").notna()
            table[column] = [float(cell) if valid else np.nan  # correctly rounded, unlike pandas 2
                             for cell, valid in zip(table[column], numeric, strict=True)]
        tags = r"\[[\d,\s]*\]"
        good = (table[["narration_time", "clip_start", "clip_end", "clip_text", "video_uid"]].notna().all(axis=1)
                & (table.clip_end > table.clip_start)
                & table.tag_verb.str.fullmatch(tags).fillna(False).astype(bool)
                & table.tag_noun.str.fullmatch(tags).fillna(False).astype(bool))
        self.table = table[good].reset_index(drop=True)
        self.malformed = lines - len(self.table)
        scene = (self.table.video_uid + "/" + (self.table.narration_time // 60.0).astype(int).astype(str)).to_numpy()
        self.order = np.argsort(scene, kind="stable")
        _, self.scene, self.count = np.unique(scene, return_inverse=True, return_counts=True)
        self.first = np.concatenate([[0], np.cumsum(self.count)[:-1]])

    def negative(self, index: int, rng: np.random.Generator) -> int:
        """Draw another row of the same scene, or the row itself if it is alone."""
        first, count = self.first[self.scene[index]], self.count[self.scene[index]]
        if count == 1:
            return index
        pick = self.order[first + rng.integers(count - 1)]
        return int(pick if pick != index else self.order[first + count - 1])


# measurements, each in a process of its own

def mebibytes(path: str, *names: str) -> float:
    """Return the sum of the named lines of a file in /proc, in MiB."""
    text = Path(path).read_text()
    return sum(int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) for name in names) / 1024


def measure(way: str, path: str) -> dict:
    """Load the table in this process and return times (s; negative: µs) and memory (MiB)."""
    began, worked = time.perf_counter(), time.process_time()
    if way == "naive":
        table = Naive(path)
        rows = len(table.table)
    else:
        from egokit.data.egoclip_table import EgoClipTable
        table = EgoClipTable(path)
        rows = len(table)
        sum(float(column.sum(dtype=float)) for column in table.columns.values())
    result = {"rows": rows, "seconds": time.perf_counter() - began, "worked": time.process_time() - worked,
              "memory": mebibytes("/proc/self/status", "VmHWM")}
    if way == "workers":
        barrier = (context := multiprocessing.get_context("fork")).Barrier(4)
        queue = context.SimpleQueue()
        workers = [context.Process(target=work, args=(table, seed, barrier, queue)) for seed in range(4)]
        for worker in workers:
            worker.start()
        result |= {"private": [queue.get() for _ in workers], "pickled": len(pickle.dumps(table))}
        rng = np.random.default_rng(0)
        indices = rng.integers(rows, size=20_000).tolist()
        began = time.perf_counter()
        for index in indices:
            table.negative(index, rng)
        result["negative"] = (time.perf_counter() - began) / len(indices) * 1e6
        for worker in workers:
            worker.join()
    return result


def work(table, seed: int, barrier, queue) -> None:
    """Read random rows and their negatives, as a worker does, and report the private memory.

    It is measured while all workers run.
    """
    rng = np.random.default_rng(seed)
    for index in rng.integers(len(table), size=50_000).tolist():
        table.row(index), table.row(table.negative(index, rng))
    barrier.wait()
    queue.put(mebibytes("/proc/self/smaps_rollup", "Private_Clean", "Private_Dirty"))
    barrier.wait()


def measured(way: str, path) -> dict:
    """Measure one way in a new process: "naive", "load", or "workers" (load, then fork four)."""
    done = subprocess.run([sys.executable, __file__, way, str(path)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "egoclip.csv"
        generate(path)
        first, cached, workers = measured("load", path), measured("load", path), measured("workers", path)
        size, cache = (file.stat().st_size / 1e6 for file in (path, path.with_name(f".{path.name}.cache")))
        naive = measured("naive", path)
    print(f"{workers['rows']:,} rows, CSV {size:.0f} MB, cache {cache:.0f} MB; one thread")
    print(f"{'':32} {'seconds':>8} {'MiB':>7}")
    results = {"first load, writes the cache": first, "cached load": cached, "the plain way (pandas)": naive}
    for name, result in results.items():
        print(f"{name:32} {result['seconds']:8.2f} {result['memory']:7.0f}")
    print(f"private memory of each of four forked readers: at most {max(workers['private']):.0f} MiB; "
          f"pickled: {workers['pickled']} bytes")
    print(f"one negative: {workers['negative']:.1f} µs")

# 3,847,723 rows, CSV 759 MB, cache 405 MB; one thread
#                                   seconds     MiB
# first load, writes the cache         6.27    1020
# cached load                          0.06     477
# the plain way (pandas)              25.98    2910
# private memory of each of four forked readers: at most 5 MiB; pickled: 124 bytes
# one negative: 1.9 µs
#
# With pandas and a file format of our own, before, in the same run on an idle machine: first load 6.75 s and 754 MiB,
# cached load 0.06 s and 435 MiB; a row took 5.9 µs, now 4.2. Importing pyarrow takes 0.03 s more. The plain way is an
# older figure.
