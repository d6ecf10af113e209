"""EgoClip at its full size: how long the table takes to load, in how much memory, and what a negative costs.

    python benchmarks/egoclip_table.py          (about two minutes; what it printed stands at the end of this file)
"""
from __future__ import annotations

import itertools

import numpy as np

ROWS, VIDEOS = 3_847_723, 8_000  # EgoClip's clips; about as many videos as it has
VERBS, NOUNS = 118, 582


def generate(path, rows: int = ROWS, videos: int = VIDEOS, malformed: int = 100, seed: int = 0) -> None:
    """A table shaped like egoclip.csv, with `malformed` rows besides: texts and tags are drawn from pools, times are new.

    The rows of a video stand together in the order of time, about 25 a minute, times with all their digits.
    """
    rng = np.random.default_rng(seed)
    words = np.array([f"{head}{tail}" for head in ("pick", "hold", "cut", "place", "wash", "knife", "onion", "café", "cloth", "door")
                      for tail in ("", "s", "ing", "ed", "er")])
    texts = ["#C C " + " ".join(some) for some in words[rng.integers(len(words), size=(400_000, 7))].tolist()]
    nouns = [str(sorted(some[:1 + i % 3])) for i, some in enumerate(rng.integers(NOUNS, size=(50_000, 3)).tolist())]
    verbs = [f"[{i}]" for i in range(VERBS)]
    names = [f"{a:08x}-{b:04x}-4a7e-9c1d-{c:012x}" for a, b, c in zip(*(rng.integers(2**k, size=videos).tolist() for k in (32, 16, 48)),
                                                                      strict=True)]
    bounds = np.linspace(0, rows, videos + 1).astype(int)
    bad = set(rng.choice(rows, malformed, replace=False).tolist())
    with open(path, "w", encoding="utf-8") as file:
        file.write("clip_idx\tvideo_uid\tvideo_dur\tnarration_source\tnarration_ind\tnarration_time\tclip_start\tclip_end\tclip_text\t"
                   "tag_verb\ttag_noun\n")
        for video, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
            count = last - first
            time = np.sort(rng.random(count)) * count * 60 / 25
            before, after = rng.random((2, count))
            start = f"\t{names[video]}\t{count * 2.4 + 3:.4f}\tnarration_pass_"
            lines = [f"{i}{start}{1 + i % 2}\t{i // 2}\t{t:.7f}\t{a}\t{b}\t{texts[text]}\t{verbs[verb]}\t{nouns[noun]}\n"
                     for i, t, a, b, text, verb, noun in zip(
                         range(first, last), time.tolist(), (time - before).tolist(), (time + after).tolist(),
                         *(rng.integers(len(pool), size=count).tolist() for pool in (texts, verbs, nouns)), strict=True)]
            for i in bad.intersection(range(first, last)):
                lines.append("\t".join(lines[i - first].split("\t")[:3 + i % 8]) + "\n")
            file.write("".join(lines))
