"""Make the whole embedded data set, once; its contents are decided in the other files.

The stamp toy.json is written last and holds the arguments and the counts. Until then toy.unfinished.json holds the
arguments, so that an interrupted make is continued with the same ones.
"""
import json
import os
from pathlib import Path

from egokit.runs.files import write_text
from egokit.toy.schedule import SIZES, make_schedule

VERSION = 9  # of the data: raise it when the same seed gives different files
STAMP, UNFINISHED = "toy.json", "toy.unfinished.json"


def make(root: str | os.PathLike, seed: int = 0, size: str = "demo", processes: int = 2) -> Path:
    """Make the embedded data set under a data root.

    A finished data set is left alone, and an interrupted make is resumed.

    Args:
        root: the data root.
        seed: at least 0; equal seeds give equal files.
        size: "demo" (about 1,500 training clips) or "tiny" (for tests).
        processes: number of processes that draw the videos.

    Returns:
        The data root.

    Raises:
        ValueError: an argument is out of range, or `root` holds other data or a data set of other arguments.
    """
    root = Path(root).expanduser()
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
    if seed < 0 or processes < 1:
        raise ValueError(f"seed must be at least 0 and processes at least 1, got {seed} and {processes}")
    arguments = {"version": VERSION, "seed": int(seed), "size": size}
    if _matches(root / STAMP, arguments):
        return root
    if not _matches(root / UNFINISHED, arguments):
        for name in ("egoclip.csv", "Ego4D", "EK100", "CharadesEgo", "EgoTaskQA"):
            if (root / name).exists():
                raise ValueError(f"{root / name} exists but no {STAMP} stands beside it: this root holds "
                                 "other data. Give the toy a root of its own.")
        write_text(root / UNFINISHED, json.dumps(arguments, indent=1))
    counts = _write_files(root, seed, size, processes)
    write_text(root / STAMP, json.dumps({**arguments, "counts": counts}, indent=1))
    (root / UNFINISHED).unlink(missing_ok=True)
    return root


def _matches(path: Path, arguments: dict) -> bool:
    """Return whether there is a stamp at `path`; raise ValueError if it is of other arguments."""
    if not path.exists():
        return False
    try:
        stamp = json.loads(path.read_text())
        stamped = {key: stamp.get(key) for key in arguments}
    except (json.JSONDecodeError, AttributeError):
        raise ValueError(f"{path} is not a stamp of the toy data set. Choose another root, "
                         f"or delete the folder {path.parent}.") from None
    if stamped != arguments:
        def text(values: dict) -> str:
            return ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise ValueError(f"{path} says that this root holds the toy data set with {text(stamped)}; "
                         f"asked for {text(arguments)}. Choose another root, or delete the folder {path.parent}.")
    return True


def _write_files(root: Path, seed: int, size: str, processes: int) -> dict[str, int]:
    """Write the videos, the tables and the tokenizer; return the number of everything."""
    from egokit.toy import ego4d, language_queries, moments, questions, task_questions, transfer, videos, vocabulary
    schedule, amounts = make_schedule(seed, size), SIZES[size]
    videos.render(root, seed, size, processes)
    ego4d_videos = [video for video in schedule if video.corpus == "ego4d"]
    train = ego4d.clips(seed, [video for video in ego4d_videos if video.split == "train"])
    test = ego4d.clips(seed, [video for video in ego4d_videos if video.split == "test"], len(train) + 100)
    malformed = ego4d.write_egoclip(root / "egoclip.csv", train)
    question_counts = questions.write_egomcq(root / "egomcq.json", seed, test, amounts.questions,
                                             amounts.verb_questions)
    moment_clips = moments.draw_clips(seed, ego4d_videos, amounts)
    return {
        "videos": len(schedule), "frames": sum(video.frames for video in schedule),
        "egoclip_clips": len(train), "egoclip_malformed_rows": malformed, "ego4d_test_clips": len(test),
        **{f"egomcq_{name}": count for name, count in question_counts.items()},
        "moments_clips": len(moment_clips), "moments": moments.write_moments(root, seed, moment_clips, VERSION),
        "nlq_questions": language_queries.write_nlq(root, seed, moment_clips, VERSION),
        **task_questions.write_egotaskqa(root, seed, task_questions.draw_clips(seed, schedule, size)),
        **transfer.write_ek100(root, seed, schedule),
        **transfer.write_charades(root, schedule),
        "vocabulary": vocabulary.write_tokenizer(root / "tokenizer"),
    }
