"""System calls by path that a sample costs, and that a rank's start costs: where many nodes share a file system, each
of them may be a message to its server.

    python benchmarks/opening.py                  (after make demo; needs strace; the output stands at the end)
    python benchmarks/opening.py ANOTHER_TREE     counts another version of egokit, too

A start is that of the toy's pre-training with 4 gloo ranks, from the start of Python to the first batch. Rank 1 is
counted, because rank 0 does what one rank does for all.
"""
import collections
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT, RANKS = Path(__file__).parents[1], 4
CALL = re.compile(r"\d+ +(\w+)\((?:AT_FDCWD(?:<[^>]*>)?, )?\"([^\"]*)\"")
KINDS = {"open": "open", "openat": "open", "openat2": "open", "getdents64": "list", "stat": "stat", "lstat": "stat",
         "newfstatat": "stat", "statx": "stat", "access": "stat", "faccessat": "stat", "faccessat2": "stat",
         "readlink": "stat", "readlinkat": "stat"}
SAMPLES = """
import os, sys
from pathlib import Path
from egokit.data.video import clips, frame_sampling, open_video
open_video.import_reader("pyav")
root = Path(sys.argv[1])
first, second, third, fourth = sorted(root.iterdir())[:4]
def read(name, folder, start, stop):
    os.path.exists(f"/mark/{name}")
    clips.read_chunked(folder, start, stop, lambda a, b: frame_sampling.sample_frames(a, b, 4), 30.0)
read("", first, 1, 2)  # what Python imports at the first
read("a clip of a file that is not open", second, 1, 3)
read("a clip of a file that is open", second, 5, 7)
read("a clip in the second chunk", third, 31, 33)
read("a clip of two chunks", fourth, 29, 31)
read("", first, 1, 2)
"""
START = """
import os, sys
os.path.exists("/mark/imports, before a task is made")
from pathlib import Path
import torch
from egokit.train import distributed, loop
from egokit import tasks
rank, ranks, folder, root = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
from egokit.config.resolve import resolve
from egokit.runs.run_folder import Run
os.path.exists("/mark/rank 1's start")
with distributed.joined(rank, ranks, folder / "meeting", local=True):
    config = resolve("toy/pretrain", "toy", f"site.root={root} site.tokenizer={root}/tokenizer train.precision=fp32 "
                     "site.toy=false model.depth=2 model.num_fused_layers=1")
    task = tasks.make(config)
    run = Run(folder)
    run.checkpoints.mkdir(exist_ok=True)
    trainer = loop.Trainer(config, task, run, "pretrain", torch.device("cpu"))
    trainer.began = 0
    trainer.resume()
    os.path.exists("/mark/rank 1's first batch")
    next(loop.build_loader(trainer.dataset, trainer.batches(0), task.collate, 0))
    os.path.exists("/mark/")
    distributed.barrier()
"""


def place(path: str, data: Path, folder: Path) -> str:
    """Return whose files a path belongs to."""
    if path.startswith(str(data)):
        return "the data root"
    if path.startswith(str(folder)):
        return "the run folder"
    if path.startswith(("/proc", "/sys", "/dev")):
        return ""
    code = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]
    code += [str(Path(folder).resolve()) for folder in code]
    is_code = path.startswith(tuple(code)) or any(folder.startswith(path) for folder in code)
    is_code |= path.endswith((".py", ".pyc")) or ".so" in path
    return "Python's modules" if is_code else "others"


def counted(trace: Path, data: Path, folder: Path) -> dict[str, collections.Counter]:
    """Return {part: {"open, the data root": count}} of a trace; "/mark/…" begins a part."""
    parts, now = {}, None
    for line in trace.read_text(errors="replace").splitlines():
        listed = re.search(r"getdents64\(\d+<([^>]*)>", line)
        call = ("getdents64", listed[1]) if listed else (found := CALL.match(line)) and found.groups()
        if not call or call[0] not in KINDS:
            continue
        if call[1].startswith("/mark/"):
            now = parts.setdefault(call[1][6:], collections.Counter())
        elif now is not None and (whose := place(call[1], data, folder)):
            now[f"{KINDS[call[0]]}, {whose}"] += 1
    return parts


def traced(tree: Path, script: str, arguments: list[str], trace: Path | None) -> subprocess.Popen:
    """Start a script on a version of egokit; with `trace`, its calls by path are written there."""
    watch = ["strace", "-f", "-y", "-s", "500", "-e", "trace=%file,getdents64", "-o", str(trace)] if trace else []
    return subprocess.Popen([*watch, sys.executable, "-c", script, *arguments],
                            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1",
                                 "EGOKIT_HOME": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": "/nonexistent"})


def main(trees: list[Path], data: Path) -> None:
    if not shutil.which("strace"):
        sys.exit("strace is not installed: apt-get install strace")
    for tree in trees:
        print(tree if len(trees) > 1 else "", end="\n" * (len(trees) > 1))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if traced(tree, SAMPLES, [str(data / "Ego4D_Chunked")], folder / "samples").wait():
                sys.exit("reading failed")
            started = [traced(tree, START, [str(rank), str(RANKS), name, str(data)],
                              folder / "start" if rank == 1 else None) for rank in range(RANKS)]
            if any([process.wait() for process in started]):
                sys.exit("a rank failed")
            for trace in (folder / "samples", folder / "start"):
                for part, counts in counted(trace, data, folder).items():
                    if part:
                        calls = "; ".join(f"{count} {what}" for what, count in sorted(counts.items()))
                        print(f"{part:34} {calls or 'none'}")


if __name__ == "__main__":
    main([*map(Path, sys.argv[1:]), ROOT], (ROOT / "outputs/toy").resolve())

# Printed with egokit before these counts were lowered, and after (looks: stat, lstat, statx, access, readlink):
#
# before
# a clip of a file that is not open  1 open, the data root; 4 stat, the data root
# a clip of a file that is open      2 stat, the data root
# a clip in the second chunk         1 open, the data root; 5 stat, the data root
# a clip of two chunks               2 open, the data root; 9 stat, the data root
# imports, before a task is made     420 list, Python's modules; 2829 open, Python's modules; 22498 stat, Python's
#                                    modules; 18 list, 58 open, 347 stat, others
# rank 1's start                     2454 list, Python's modules; 6071 open, Python's modules; 24145 stat, Python's
#                                    modules; 6 list, 11 open, 85 stat, the data root; 2 list, 2 open, 6 stat, the run
#                                    folder; 4 list, 15 open, 688 stat, others
# rank 1's first batch               4 list, 18 open, 24 stat, Python's modules; 13 open, 70 stat, the data root
#
# after
# a clip of a file that is not open  1 open, the data root; 1 stat, the data root
# a clip of a file that is open      1 stat, the data root
# a clip in the second chunk         1 open, the data root; 1 stat, the data root
# a clip of two chunks               2 open, the data root; 2 stat, the data root
# imports, before a task is made     422 list, Python's modules; 2831 open, Python's modules; 22673 stat, Python's
#                                    modules; 16 list, 57 open, 175 stat, others
# rank 1's start                     2454 list, Python's modules; 6087 open, Python's modules; 24461 stat, Python's
#                                    modules; 4 list, 10 open, 85 stat, the data root; 2 list, 2 open, 20 stat, the run
#                                    folder; 4 list, 16 open, 316 stat, others
# rank 1's first batch               4 list, 7 open, 24 stat, Python's modules; 13 open, 16 stat, the data root
#
# A listing counts each call of getdents64, two for a small folder. The toy's folder has 40 videos, so the listing that
# rank 1 is spared is two calls; with Ego4D's 9,645 videos it is about a dozen. Of the run's folder, rank 1 looks for
# the meeting's file until rank 0 has written it: how often depends on how late rank 0 is.
