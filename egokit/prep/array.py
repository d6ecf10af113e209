"""Data preparation as an array of jobs: one shard each, on SLURM or as local processes, through submitit.

`python -m egokit.prep.array SPEC` is run by submit_array with a snapshot of egokit on its path, as job.py is by launch.py.
A shard that runs into its time limit or is preempted is queued again by submitit, and goes on with what is left.
"""
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from egokit.config.build import build, to_dict
from egokit.config.schema import Config
from egokit.jobs import code_snapshot, launch, status
from egokit.jobs.slurm import one_process
from egokit.jobs.worker import executor
from egokit.prep.source import ego4d, list_videos, merge, receipts, share, site_options
from egokit.prep.video import PrepSettings
from egokit.runs.files import write_text


class Shard:
    """A picklable description of an array's work; submitit calls it once in every job, with the shard's number."""

    def __init__(self, spec: str):
        self.spec = spec

    def __call__(self, number: int) -> None:
        spec = json.loads(Path(self.spec).read_text())
        config = build(Config, spec["config"])
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", config.launch.cpus_per_task))
        found = ego4d(**site_options(config.site), workers=cpus, source=spec["source"], shard=(number, spec["shards"]))
        print(f"shard {number}/{spec['shards']}: {found['videos']} videos verified, {len(found['failed'])} failed",
              *found["failed"], sep="\n", flush=True)

    def checkpoint(self, number: int):
        """submitit's call at a time limit or preemption: the same shard again; what it has receipts of is done."""
        import submitit
        return submitit.helpers.DelayedSubmission(Shard(self.spec), number)


class PrepArray:
    """The jobs of one submission, found again from its folder."""

    def __init__(self, folder: Path, videos: list, plan: PrepSettings):
        self.folder, self.videos, self.plan = folder, videos, plan

    def __repr__(self) -> str:
        job = json.loads((self.folder / "job.json").read_text())
        follow = f"squeue -j {job['job_id']}" if job["cluster"] == "slurm" else "egokit doctor"
        return (f"{len(job['job_ids'])} shards on {job['cluster']}: {' '.join(job['job_ids'])}\n"
                f"follow:  {follow}; logs in {self.folder / 'submitit'}; results in {self.plan.root / 'prepared.json'}\n"
                "retry:   the same command; while they run it finds them, then it submits the shards in which something is left")

    def wait(self, progress: bool = True, poll: float = 1.0) -> dict:
        """Wait until every job has ended; returns the manifest of all videos. Interrupting the wait leaves the jobs running."""
        from tqdm import tqdm
        cluster = json.loads((self.folder / "job.json").read_text())["cluster"]
        bar = tqdm(total=sum(video.bytes for video in self.videos), unit="B", unit_scale=True, mininterval=2, ncols=110,
                   disable=not progress)
        running = True
        while running:
            running, began = status.alive(self.folder), time.monotonic()
            lines = dict(zip(self.videos, receipts(self.videos, self.plan, files=False), strict=True))
            good = [video for video, line in lines.items() if line["status"] == "ok"]
            failed = sum(line["status"] == "failed" for line in lines.values())  # this time or before, not tried again yet
            bar.set_description_str(f"{len(good)}/{len(lines)} videos, {failed} failed", refresh=False)
            bar.update(sum(video.bytes for video in good) - bar.n)
            if running:  # looking at ten thousand receipts takes a while on a network file system
                time.sleep(max(poll if cluster == "local" else 20 * poll, 10 * (time.monotonic() - began)))
        bar.close()
        return merge(self.videos, self.plan)


def submit_array(config: Config, shards: int, source: str | Path | None = None) -> PrepArray | None:
    """Submit the shards of `source` (default root/Ego4D) that are not done, to config.launch.cluster; None if all are.

    While the array submitted last is queued or runs, nothing is submitted, and that one is returned. Each job has
    config.launch.cpus_per_task and mem_gb_per_task, on one node, and no GPU. Raises as `ego4d` does, and RuntimeError if nothing can be submitted.
    """
    plan = PrepSettings(**site_options(config.site))
    folder_of_videos = Path(source).resolve() if source else plan.root / "Ego4D"
    videos = list_videos(folder_of_videos)
    arrays = plan.root / ".prepared" / "arrays"
    for latest in sorted(arrays.glob("*"))[-1:]:
        if status.alive(latest):
            return PrepArray(latest, videos, plan)
    left = {line["uid"] for line in receipts(videos, plan, files=True) if line["status"] != "ok"}
    todo = [number for number in range(1, shards + 1) if left & {video.uid for video in share(videos, number, shards)}]
    if not todo:
        merge(videos, plan)
        return None
    # a folder of its own each time: job ids start again with a new Slurm, and submitit would find an old job's result
    folder = arrays / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True)
    spec = {"config": to_dict(config), "source": str(folder_of_videos), "shards": shards, "todo": todo}
    write_text(folder / "spec.json", json.dumps(spec, indent=1))
    launch.start_job("egokit.prep.array", folder, code_snapshot.snapshot_code(folder, keep=False), config.launch)
    return PrepArray(folder, videos, plan)


def start(spec_path: str) -> None:
    """Submit the array of a spec and write down what it takes to find it again."""
    spec_file = Path(spec_path)
    spec = json.loads(spec_file.read_text())
    config = one_process(build(Config, spec["config"]).launch)
    jobs = executor(config, spec_file.parent, "egokit-prep").map_array(Shard(str(spec_file)), spec["todo"])
    ids = [job.job_id for job in jobs]
    write_text(spec_file.parent / "job.json", json.dumps({"cluster": config.cluster, "job_id": ids[0].split("_")[0], "job_ids": ids}))


if __name__ == "__main__":
    from egokit.prep.array import start as start_from_module  # pickled by the name egokit.prep.array, not __main__
    start_from_module(sys.argv[1])
