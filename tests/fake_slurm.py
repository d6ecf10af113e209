"""Scripts in place of SLURM's commands, a queue for them to show, and a job's folder as submit leaves it."""
import json
import os
import sys

from egokit.jobs import launch
from egokit.runs.files import write_text

# prints the lines of the file `queue`, one "%F|%T|%P|%Q|%S|%r" for each job, that -j, -t and -p select; appends its
# arguments to the file `asked`. "42_3" in place of %F is one job of an array, whose place in it, %K, becomes 3
SQUEUE = """#!{python} -IS
import sys
folder, arguments = {folder!r}, sys.argv[1:]
open(folder + "/asked", "a").write(" ".join(arguments) + "\\n")
given = dict(zip(arguments, arguments[1:]))
assert given["-o"] == "%F|%T|%P|%Q|%S|%K|%r" and "-h" in arguments
lines = [line.split("|") for line in open(folder + "/queue").read().splitlines()]
if lines == [["away"]]:
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
jobs = given["-j"].split(",") if "-j" in given else None
assert jobs is None or "-r" in arguments and not any("_" in job for job in jobs)
shown = [line for line in lines if (jobs is None or line[0].partition("_")[0] in jobs)
         and line[1] == given.get("-t", line[1])
         and ("-p" not in given or set(given["-p"].split(",")) & set(line[2].split(",")))]
if jobs and len(jobs) == 1 and not shown:
    sys.exit("slurm_load_jobs error: Invalid job id specified")
for first, *middle, reason in shown:
    job, dash, task = first.partition("_")
    print("|".join([job, *middle, task or "N/A", reason]))
"""
SBATCH = """#!/bin/sh
cp "$1" {folder}/submitted && echo Submitted batch job 42
"""
SCANCEL = """#!/bin/sh
echo "$@" >> {folder}/cancelled; : > {folder}/queue
"""
ON_SLURM = "launch.cluster=slurm launch.gpus_per_task=0 launch.partition=main"

QUEUE = """\
1|RUNNING|main|50|2026-01-01T10:00:00|None
2|PENDING|main|70|N/A|Resources
3|PENDING|main,high|60|2026-01-02T03:04:05|Priority
4|PENDING|high|90|N/A|Priority
5|PENDING|main|70|N/A|Dependency
6|COMPLETING|main|50|2026-01-01T10:00:00|None
7|PENDING|main|1|N/A|JobArrayTaskLimit
7|RUNNING|main|1|2026-01-01T10:00:00|None
8|PENDING|other|999|N/A|None
"""

STEP = {"kind": "step", "step": 40, "steps": 200, "eta_s": 4000, "loss": 3.0, "clips_per_s": 9, "data_s": 1,
        "step_s": 4}


def put_into_path(folder, monkeypatch):
    """Put replacements of SLURM's commands into PATH; return their folder."""
    folder.mkdir()
    for name, text in (("squeue", SQUEUE), ("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(python=sys.executable, folder=str(folder)))
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def asked(cluster):
    """Return the arguments of each call of squeue."""
    return (cluster / "asked").read_text().splitlines() if (cluster / "asked").exists() else []


def made(run, section="pretrain", action="train", **job):
    """Write a job's folder as submit leaves it; return its handle."""
    handle = launch.Handle(run, section)
    (handle.folder / "submitit").mkdir(parents=True)
    write_text(handle.folder / "spec.json", json.dumps({"action": action}))
    if job:
        write_text(handle.folder / "job.json", json.dumps(job))
    return handle
