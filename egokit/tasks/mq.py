"""EgoMQ: dense video features of the clips of moments_*.json, for moment-query localisers. Source: EgoVLP's recipe.

Other files that list clips the same way will do (NLQ's), and lists of whole videos; see evaluate.feature_clips.
"""
from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from egokit.data import annotation_json
from egokit.data.annotation_json import SPLITS
from egokit.data.video import frame_sampling, open_video
from egokit.data.video.open_video import VideoError
from egokit.model import checkpoints
from egokit.runs.files import atomic_path, is_abandoned, write_text
from egokit.runs.run_folder import Run
from egokit.tasks.base import Task
from egokit.tasks.windows import Windows, embed_windows
from egokit.train import distributed


class ClipWindows(Windows):
    """The windows of one clip, one after the other."""

    def __init__(self, task: EgoMQ, clip: dict):
        super().__init__(task, task.videos / f"{clip['video_uid']}.mp4", task.config.evaluate.batch_size)
        self.clip = clip

    def indices(self, video) -> np.ndarray:
        start, stop, evaluate = self.clip["start"], self.clip["stop"], self.task.config.evaluate
        end, rate = open_video.duration(video), open_video.time_resolution(video)
        if stop > end + frame_sampling.LATE:  # features of a frame held still are none
            raise VideoError(f"{self.path}: clip {self.clip['clip_uid']} ends at {stop:.2f} s, but the video ends at {end:.2f} s; "
                             "has it lost its end, or is it another video?")
        moments = frame_sampling.mq(int(start * rate), int(stop * rate), evaluate.features_per_second, rate, evaluate.feature_frames) / rate
        indices = np.array([open_video.frame_at(video, moment) for moment in moments])
        if len(indices) < evaluate.feature_frames:
            raise VideoError(f"{self.path}: clip {self.clip['clip_uid']} of {stop - start:.2f} s is too short for one feature")
        return indices[:len(indices) // evaluate.feature_frames * evaluate.feature_frames].reshape(-1, evaluate.feature_frames)


class EgoMQ(Task):
    @property
    def videos(self) -> Path:
        return self.require_file(self.config.evaluate.feature_videos)

    def lists(self) -> dict[str, Path]:
        """The file of each split's clips."""
        pattern = self.config.evaluate.feature_clips
        return {split: self.require_file(pattern.replace("*", split)) for split in (SPLITS if "*" in pattern else (Path(pattern).stem,))}

    def clips(self) -> list[dict]:
        """Distinct clips of all splits: clip_uid, video_uid, start and stop in seconds, split."""
        found = {}
        for split, path in self.lists().items():
            for clip in annotation_json.read_moments(path):
                known = found.setdefault(clip["clip_uid"], clip | {"split": split})
                if clip.items() - known.items():
                    raise ValueError(f"{path}: clip {clip['clip_uid']} has other times or another video than where it stands before")
        return [found[uid] for uid in sorted(found)][:self.limited(len(found))]

    def features(self, model, clip: dict) -> torch.Tensor:
        """(features, E) float32 of one clip."""
        return embed_windows(model, ClipWindows(self, clip), f"clip {clip['clip_uid']}")[0]

    def extract(self, model, run: Run) -> dict[str, float]:
        """Write features/<clip_uid>.pt for every clip that has none yet, this rank's share; rank 0 writes the manifest.

        A clip that can't be read does not keep the others from being written; all that can't are an error at the end.
        """
        began, data = time.perf_counter(), {path.name: checkpoints.fingerprint(path) for path in self.lists().values()}
        folder, clips, failed = run.path / "features", distributed.gather_objects(self.clips())[0], []  # of one reading, if the list is edited
        unlisted = settle(run, folder, clips, self.config.evaluate.feature_format) if distributed.rank() == 0 else []
        distributed.barrier()
        path_of = {clip["clip_uid"]: folder / f"{clip['clip_uid']}.{self.config.evaluate.feature_format}" for clip in clips}
        digest = checkpoints.fingerprint(checkpoints.find(self.config.init)) if self.config.init and distributed.rank() == 0 else ""
        for number, clip in enumerate(clips[distributed.rank()::distributed.world_size()], 1):
            path = path_of[clip["clip_uid"]]
            try:
                if not path.exists():
                    save(path, self.features(model, clip))
            except (VideoError, FileNotFoundError) as error:
                failed.append(str(error).splitlines()[-1])  # a loader process gives a traceback, too
            if distributed.rank() == 0:
                run.log({"kind": "extract", "step": min(number * distributed.world_size(), len(clips)), "steps": len(clips)})
        failed = [said for part in distributed.gather_objects(failed) for said in part]
        if failed:
            if distributed.rank() == 0:
                for said in failed:
                    run.log({"kind": "bad", "said": said})
            raise VideoError("\n".join([*failed[:10], f"{len(failed)} of {len(clips)} clips have no features, such as these, of which "
                                                      "the run's log.jsonl has all; the others are written and will not be made again"]))
        if distributed.rank() != 0:
            return {}
        for part in folder.glob(".*.part.*"):
            if is_abandoned(part):
                part.unlink()
        shapes, evaluate = {uid: stored(path).shape for uid, path in path_of.items()}, self.config.evaluate
        write_text(folder / "manifest.json", json.dumps(
            {"init": self.config.init, "init_sha256": digest, "format": evaluate.feature_format,
             "features_per_second": evaluate.features_per_second, "frames": evaluate.feature_frames, "stride": evaluate.feature_frames,
             "frame_rate": round(evaluate.features_per_second * evaluate.feature_frames, 6),  # of the samples, not of a video
             "layer": "video_projection", "dimension": next(iter(shapes.values()))[1],
             "clips": [clip | {"features": shapes[clip["clip_uid"]][0]} for clip in clips], "unlisted": unlisted}, indent=1))
        return {"clips": len(clips), "features": sum(shape[0] for shape in shapes.values()), "unlisted": len(unlisted),
                "samples": len(clips), "expected": len(clips), "failed": 0, "frames": evaluate.feature_frames,
                "toy": self.config.site.toy, "data": data, "seconds": time.perf_counter() - began}


def settle(run: Run, folder: Path, clips: list[dict], suffix: str) -> list[str]:
    """Delete the features of clips that are another stretch, or of another video, than when they were made.

    The run's clips.json says of what that is. Returns the clips that have features, but stand in no list any more: theirs stay.
    """
    path, now = run.path / "clips.json", {clip["clip_uid"]: [clip["video_uid"], clip["start"], clip["stop"]] for clip in clips}
    known, made = json.loads(path.read_text()) if path.exists() else {}, sorted(file.stem for file in folder.glob(f"[!.]*.{suffix}"))
    changed = [uid for uid in made if uid in now and known.get(uid) != now[uid]]
    unlisted = [uid for uid in made if uid not in now]
    if changed or unlisted:
        run.log({"kind": "clips", "changed": changed, "unlisted": unlisted})
        print(f"the list of clips has changed: {len(changed)} are made again; {len(unlisted)} are listed no more, and stay", flush=True)
    for uid in changed:
        (folder / f"{uid}.{suffix}").unlink()
    now |= {uid: known[uid] for uid in unlisted if uid in known}
    if now != known:
        (folder / "manifest.json").unlink(missing_ok=True)  # of another list
        write_text(path, json.dumps(now))  # last: a kill before it leaves nothing wrong
    return unlisted


def save(path: Path, feature: torch.Tensor) -> None:
    with atomic_path(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, feature.numpy())
        else:
            torch.save(feature, temporary)


def stored(path: Path) -> np.ndarray:
    """(features, E) of one clip, read as it is looked at."""
    return np.load(path, mmap_mode="r") if path.suffix == ".npy" else torch.load(path, mmap=True, weights_only=True).numpy()
