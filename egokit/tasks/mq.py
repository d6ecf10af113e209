"""EgoMQ: dense video features of the clips of moments_*.json, for moment-query localisers. Source: EgoVLP's recipe.

Other files that list clips the same way will do (NLQ's), and lists of whole videos; see evaluate.feature_clips.
"""
from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import torch

from egokit import checkpoints, dist, documents, frames, sampling
from egokit.documents import SPLITS
from egokit.frames import VideoError
from egokit.loading import Samples, loader, move
from egokit.model import autocast
from egokit.runs import Run, abandoned, atomic_path, write_text
from egokit.tasks.base import Task
from egokit.transforms import normalise


class Windows(Samples):
    """The windows of one clip, an item a batch of them, read in order, once; after the last item come empty ones.

    The video is opened in the process that reads, as decoders may hang or die there, too, and decoded as windows are asked for.
    """

    def __init__(self, task: EgoMQ, clip: dict):
        super().__init__(0, task.config.seed, train=False)  # how many there are depends on the video's frame rate
        self.task, self.clip, self.stream = task, clip, None
        self.path = task.videos / f"{clip['video_uid']}.mp4"

    def indices(self, video) -> np.ndarray:
        """Numbers of the frames of all windows."""
        start, stop, evaluate, end = self.clip["start"], self.clip["stop"], self.task.config.evaluate, video.length / video.fps
        if stop > end + sampling.LATE:  # features of a frame held still are none
            raise VideoError(f"{self.path}: clip {self.clip['clip_uid']} ends at {stop:.2f} s, but the video ends at {end:.2f} s; "
                             "has it lost its end, or is it another video?")
        indices = sampling.inside(sampling.mq(int(start * video.fps), int(stop * video.fps), evaluate.features_per_second, video.fps,
                                              evaluate.feature_frames), video.length)
        if len(indices) < evaluate.feature_frames:
            raise VideoError(f"{self.path}: clip {self.clip['clip_uid']} of {stop - start:.2f} s is too short for one feature")
        return indices[:len(indices) // evaluate.feature_frames * evaluate.feature_frames]

    def window(self) -> list[torch.Tensor]:
        if self.stream is None:
            video = frames.open_video(self.path, self.task.config.data.reader)
            self.stream = video.stream_frames(self.indices(video))
        elif frames.notice:
            frames.notice(str(self.path))
        # frame by frame: sixteen of a video that has not been resized may be 400 MB
        return [self.task.transform(frame[None], None) for frame in itertools.islice(self.stream, self.task.config.evaluate.feature_frames)]

    def read(self, index: int, rng) -> dict:
        try:
            windows = itertools.takewhile(len, (self.window() for _ in range(self.task.config.evaluate.batch_size)))
            windows = [torch.cat(window) for window in windows]
        except VideoError:
            frames.forget(self.path)  # a decoder that has failed is not asked again
            raise
        return {"video": torch.stack(windows) if windows else torch.empty(0)}


class EgoMQ(Task):
    @property
    def videos(self) -> Path:
        return self.need(self.config.evaluate.feature_videos)

    def clips(self) -> list[dict]:
        """Distinct clips of all splits: clip_uid, video_uid, start and stop in seconds, split."""
        pattern, found = self.config.evaluate.feature_clips, {}
        for split in SPLITS if "*" in pattern else (Path(pattern).stem,):
            path = self.need(pattern.replace("*", split))
            for clip in documents.moments(path):
                known = found.setdefault(clip["clip_uid"], clip | {"split": split})
                if clip.items() - known.items():
                    raise ValueError(f"{path}: clip {clip['clip_uid']} has other times or another video than where it stands before")
        return [found[uid] for uid in sorted(found)][:self.limited(len(found))]

    @torch.no_grad()
    def features(self, model, clip: dict) -> torch.Tensor:
        """(features, E) float32 of one clip; a loader process, if there are any, decodes ahead, in order."""
        config, out = self.config, []
        items = ([(0, number)] for number in itertools.count())
        for video in loader(Windows(self, clip), items, lambda items: items[0]["video"], min(1, config.data.workers),
                            config.data.read_timeout):
            if not len(video):
                break
            with autocast(model.device, config.evaluate.precision):
                out.append(model.embed_video(normalise(move(video, model.device))).cpu())
        feature = torch.cat(out)
        if not feature.isfinite().all():
            raise ValueError(f"clip {clip['clip_uid']}: NaN or Inf in its features; evaluate.precision is {config.evaluate.precision}")
        return feature

    def extract(self, model, run: Run) -> dict[str, float]:
        """Write features/<clip_uid>.pt for every clip that has none yet, this rank's share; rank 0 writes the manifest.

        A clip that can't be read does not keep the others from being written; all that can't are an error at the end.
        """
        folder, clips, failed = run.path / "features", self.clips(), []
        path_of = {clip["clip_uid"]: folder / f"{clip['clip_uid']}.{self.config.evaluate.feature_format}" for clip in clips}
        digest = checkpoints.fingerprint(checkpoints.find(self.config.init)) if self.config.init and dist.rank() == 0 else ""
        for number, clip in enumerate(clips[dist.rank()::dist.world_size()]):
            path = path_of[clip["clip_uid"]]
            try:
                if not path.exists():
                    save(path, self.features(model, clip))
            except (VideoError, FileNotFoundError) as error:
                failed.append(str(error).splitlines()[-1])  # a loader process gives a traceback, too
            if dist.rank() == 0:
                run.log({"kind": "extract", "step": number + 1, "steps": -(-len(clips) // dist.world_size())})
        failed = [said for part in dist.gather_objects(failed) for said in part]
        if failed:
            if dist.rank() == 0:
                for said in failed:
                    run.log({"kind": "bad", "said": said})
            raise VideoError("\n".join([*failed[:10], f"{len(failed)} of {len(clips)} clips have no features, such as these, of which "
                                                      "the run's log.jsonl has all; the others are written and will not be made again"]))
        if dist.rank() != 0:
            return {}
        for part in folder.glob(".*.part.*"):
            if abandoned(part):
                part.unlink()
        shapes, evaluate = {uid: stored(path).shape for uid, path in path_of.items()}, self.config.evaluate
        write_text(folder / "manifest.json", json.dumps(
            {"init": self.config.init, "init_sha256": digest, "format": evaluate.feature_format,
             "features_per_second": evaluate.features_per_second, "frames": evaluate.feature_frames, "stride": evaluate.feature_frames,
             "frame_rate": round(evaluate.features_per_second * evaluate.feature_frames, 6),  # of the samples, not of a video
             "layer": "video_projection", "dimension": next(iter(shapes.values()))[1],
             "clips": [clip | {"features": shapes[clip["clip_uid"]][0]} for clip in clips]}, indent=1))
        return {"clips": len(clips), "features": sum(shape[0] for shape in shapes.values())}


def save(path: Path, feature: torch.Tensor) -> None:
    with atomic_path(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, feature.numpy())
        else:
            torch.save(feature, temporary)


def stored(path: Path) -> np.ndarray:
    """(features, E) of one clip, read as it is looked at."""
    return np.load(path, mmap_mode="r") if path.suffix == ".npy" else torch.load(path, mmap=True, weights_only=True).numpy()
