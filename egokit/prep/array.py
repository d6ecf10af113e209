"""Data preparation as an array of jobs, one shard each, on SLURM or as local processes.

A shard that reaches its time limit or is preempted is queued again by submitit, and continues with the videos that
are left.
"""
import dataclasses
import os
import time
from pathlib import Path

from egokit.config.build import to_dict
from egokit.config.registry import restore
from egokit.config.schema import Config
from egokit.jobs import starter, status
from egokit.jobs.slurm import one_process
from egokit.prep.measure import PrepError
from egokit.prep.source import (
    Unusable,
    describe,
    ego4d,
    list_videos,
    read_receipts,
    shard_of,
    site_options,
    write_manifest,
)
from egokit.prep.video import PrepSettings, SourceVideo


def work(folder: Path, spec: dict, number: int) -> None:
    """Prepare one shard; called in the array's job of that number. Videos that have receipts are not made again."""
    # no task: a user's file would be executed, for nothing
    with status.naming_spec(folder):
        config, shards = restore({key: spec["config"][key] for key in ("site", "launch")}), spec["shards"]
    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", config.launch.cpus_per_task))
    result = ego4d(**site_options(config.site), workers=cpus, source=spec["source"], shard=(number, shards))
    print(f"shard {number}/{shards}: {result['videos']} videos verified, {len(result['failed'])} failed",
          *result["failed"], sep="\n", flush=True)


class PrepArray:
    """The jobs of one submission, read from its folder."""

    def __init__(self, folder: Path, videos: list[SourceVideo], settings: PrepSettings):
        self.folder, self.videos, self.settings = folder, videos, settings

    def __repr__(self) -> str:
        job = status.read_job(self.folder)
        follow = f"squeue -j {job['job_id']}" if job["cluster"] == "slurm" else "egokit doctor"
        manifest = self.settings.root / "prepared.json"
        return (f"{len(job['job_ids'])} shards on {job['cluster']}: {' '.join(job['job_ids'])}\n"
                f"follow:  {follow}; logs in {self.folder / 'submitit'}; results in {manifest}\n"
                "retry:   the same command; while they run it finds them, "
                "then it submits the shards in which something is left")

    def wait(self, progress: bool = True, poll: float = 1.0) -> dict:
        """Wait until every job has ended; interrupting the wait leaves the jobs running.

        Args:
            progress: show a progress bar.
            poll: seconds between two looks at local jobs; Slurm is asked twenty times less often.

        Returns:
            The manifest of all videos (see `egokit.prep.source.summary`).
        """
        from tqdm import tqdm
        cluster = status.read_job(self.folder)["cluster"]
        bar = tqdm(total=sum(video.bytes for video in self.videos), unit="B", unit_scale=True, mininterval=2, ncols=110,
                   disable=not progress)
        running = True
        while running:
            running, began = status.alive(self.folder), time.monotonic()
            receipts = read_receipts(self.videos, self.settings, check_files=False)
            good = [video for video, line in zip(self.videos, receipts, strict=True) if line["status"] == "ok"]
            failed = sum(line["status"] == "failed" for line in receipts)  # now, or earlier and not tried again yet
            bar.set_description_str(f"{len(good)}/{len(receipts)} videos, {failed} failed", refresh=False)
            bar.update(sum(video.bytes for video in good) - bar.n)
            if running:  # reading ten thousand receipts takes a while on a network file system
                time.sleep(max(poll if cluster == "local" else 20 * poll, 10 * (time.monotonic() - began)))
        bar.close()
        return write_manifest(self.videos, self.settings)


def submit_array(config: Config, shards: int, source: str | Path | None = None) -> PrepArray | None:
    """Submit the shards of a folder of videos that are not done, to config.launch.cluster.

    If the array submitted last is still queued or running, nothing is submitted and that array is returned. Each job
    has config.launch.cpus_per_task and mem_gb_per_task, on one node, and no GPU.

    Args:
        shards: number of shards that the videos are split into.
        source: the folder of videos; by default root/Ego4D.

    Returns:
        The array, or None if nothing is left to do.

    Raises:
        FileNotFoundError, PrepError: as `ego4d` does.
        RuntimeError: nothing can be submitted.
    """
    settings = PrepSettings(**site_options(config.site))
    video_folder = Path(source).resolve() if source else settings.root / "Ego4D"
    videos = list_videos(video_folder)
    arrays = settings.root / ".prepared" / "arrays"
    for latest in sorted(arrays.glob("*"))[-1:]:
        if status.alive(latest):
            return PrepArray(latest, videos, settings)
    receipts = zip(videos, read_receipts(videos, settings, check_files=True), strict=True)
    left = {video.uid for video, line in receipts if line["status"] != "ok" and not isinstance(video, Unusable)}
    todo = [number for number in range(1, shards + 1)
            if left & {video.uid for video in shard_of(videos, number, shards)}]
    if not todo:
        if failed := write_manifest(videos, settings)["failed"]:
            raise PrepError("\n".join(failed))
        return None
    print(describe(video_folder, settings), flush=True)
    # a new folder each time: a new Slurm counts job ids from the start, and submitit would find an old job's result
    folder = arrays / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    job_config = dataclasses.replace(config, launch=one_process(config.launch))
    starter.start_work(folder, {"function": "egokit.prep.array:work", "name": "egokit-prep", "array": todo,
                               "config": to_dict(job_config), "source": str(video_folder), "shards": shards},
                      config.launch)
    return PrepArray(folder, videos, settings)
