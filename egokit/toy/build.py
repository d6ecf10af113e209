"""make(): the whole embedded data set, once. What is in it is decided in the other files.

Its stamp, toy.json, is written last and says what was asked for and what there is. Before it, a note
toy.unfinished.json says which data set is on its way, so that an interrupted make goes on with the same.
"""
from __future__ import annotations

import json
import os
from pathlib import Path

from egokit.runs import run_folder
from egokit.toy.schedule import SIZES, make_schedule

VERSION = 7  # of the data: raise it when the same seed gives other files
STAMP, UNFINISHED = "toy.json", "toy.unfinished.json"


def make(root: str | os.PathLike, seed: int = 0, size: str = "demo", processes: int = 2) -> Path:
    """Make the embedded data set under `root` (the data root) and return that; a finished one is left alone.

    size: "demo", about 1,500 training clips, or "tiny", for tests. An interrupted make is resumed.
    Raises ValueError for an unknown size, and where `root` holds other data or a data set of other arguments.
    """
    root = Path(root).expanduser()
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
    if seed < 0 or processes < 1:
        raise ValueError(f"seed must be at least 0 and processes at least 1, got {seed} and {processes}")
    asked = {"version": VERSION, "seed": int(seed), "size": size}
    if _matches(root / STAMP, asked):
        return root
    if not _matches(root / UNFINISHED, asked):
        for name in ("egoclip.csv", "Ego4D", "EK100", "CharadesEgo"):
            if (root / name).exists():
                raise ValueError(f"{root / name} exists but no {STAMP} stands beside it: this root holds "
                                 "other data. Give the toy a root of its own.")
        _write_json(root / UNFINISHED, asked)
    counts = _make(root, seed, size, processes)
    _write_json(root / STAMP, {**asked, "counts": counts})
    (root / UNFINISHED).unlink(missing_ok=True)
    return root


def _matches(path: Path, asked: dict) -> bool:
    """Is there a stamp, and for these arguments? Other arguments are an error."""
    if not path.exists():
        return False
    try:
        stamp = json.loads(path.read_text())
        found = {key: stamp.get(key) for key in asked}
    except (json.JSONDecodeError, AttributeError):
        raise ValueError(f"{path} is not a stamp of the toy data set. Choose another root, "
                         f"or delete the folder {path.parent}.") from None
    if found != asked:
        def text(values: dict) -> str:
            return ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise ValueError(f"{path} says that this root holds the toy data set with {text(found)}; "
                         f"asked for {text(asked)}. Choose another root, or delete the folder {path.parent}.")
    return True


def _make(root: Path, seed: int, size: str, processes: int) -> dict[str, int]:
    from egokit.toy import ego4d, questions, transfer, videos, vocabulary
    everything, amount = make_schedule(seed, size), SIZES[size]
    videos.render(root, seed, size, processes)
    ego4d_videos = [video for video in everything if video.corpus == "ego4d"]
    train = ego4d.clips(seed, [video for video in ego4d_videos if video.split == "train"])
    test = ego4d.clips(seed, [video for video in ego4d_videos if video.split == "test"], len(train) + 100)
    malformed = ego4d.write_egoclip(root / "egoclip.csv", train)
    asked = questions.write_egomcq(root / "egomcq.json", seed, test, amount.questions, amount.verb_questions)
    return {
        "videos": len(everything), "frames": sum(video.frames for video in everything),
        "egoclip_clips": len(train), "egoclip_malformed_rows": malformed, "ego4d_test_clips": len(test),
        **{f"egomcq_{name}": count for name, count in asked.items()},
        "moments_clips": ego4d.write_moments(root, seed, ego4d_videos, VERSION),
        **transfer.write_kitchens(root, seed, everything),
        **transfer.write_charades(root, everything),
        "vocabulary": vocabulary.write_tokenizer(root / "tokenizer"),
    }


def _write_json(path: Path, values: dict) -> None:
    with run_folder.atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1))
