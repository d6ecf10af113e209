"""EgoMQ: dense video features of the clips of moments_*.json, for moment-query localisers. Source: EgoVLP's recipe."""
from __future__ import annotations

import itertools
import json

import numpy as np
import torch

from egokit import dist, documents, sampling
from egokit.documents import SPLITS
from egokit.frames import open_video
from egokit.model import autocast
from egokit.runs import Run, atomic_path, write_text
from egokit.tasks.base import Task
from egokit.transforms import normalise


class EgoMQ(Task):
    def clips(self) -> list[dict]:
        """Distinct clips of all splits: clip_uid, video_uid, start and stop in seconds, split."""
        found = {}
        for split in SPLITS:
            path = self.need(f"moments_{split}.json")
            for clip in documents.moments(path):
                known = found.setdefault(clip["clip_uid"], clip | {"split": split})
                if clip.items() - known.items():
                    raise ValueError(f"{path}: clip {clip['clip_uid']} has other times or another video than where it stands before")
        return [found[uid] for uid in sorted(found)][:self.limited(len(found))]

    @torch.no_grad()
    def features(self, model, clip: dict) -> torch.Tensor:
        """(features, E) float32 of one clip; frames are decoded once, in order, a batch of windows at a time."""
        config = self.config.evaluate
        video = open_video(self.need("Ego4D_256") / f"{clip['video_uid']}.mp4", self.config.data.reader)
        window = config.feature_frames
        sampling.begin(video.path, int(clip["stop"] * video.fps), video.length, video.fps)  # features of a frame held still are none
        indices = sampling.inside(sampling.mq(int(clip["start"] * video.fps), int(clip["stop"] * video.fps),
                                              config.features_per_second, video.fps, window), video.length)
        count = len(indices) // window
        if count == 0:
            raise ValueError(f"clip {clip['clip_uid']} of {clip['stop'] - clip['start']:.2f} s is too short for one feature")
        stream, out = video.stream_frames(indices[:count * window]), []
        for at in range(0, count, config.batch_size):
            part = list(itertools.islice(stream, min(config.batch_size, count - at) * window))
            frames = self.transform(np.stack(part), None).unflatten(0, (-1, window)).to(model.device)
            with autocast(model.device, config.precision):
                out.append(model.embed_video(normalise(frames)).cpu())
        return torch.cat(out)

    def extract(self, model, run: Run) -> dict[str, float]:
        """Write features/<clip_uid>.pt for every clip that has none yet, this rank's share; rank 0 writes the manifest."""
        folder = run.path / "features"
        clips = self.clips()
        for number, clip in enumerate(clips[dist.rank()::dist.world_size()]):
            path = folder / f"{clip['clip_uid']}.pt"
            if not path.exists():
                feature = self.features(model, clip)
                with atomic_path(path) as temporary:
                    torch.save(feature, temporary)
            if dist.rank() == 0:
                run.log({"kind": "extract", "step": number + 1, "steps": -(-len(clips) // dist.world_size())})
        dist.barrier()
        shapes = {clip["clip_uid"]: list(torch.load(folder / f"{clip['clip_uid']}.pt", weights_only=True).shape) for clip in clips}
        if dist.rank() == 0:
            evaluate = self.config.evaluate
            write_text(folder / "manifest.json", json.dumps(
                {"features_per_second": evaluate.features_per_second, "frames": evaluate.feature_frames,
                 "layer": "video_projection", "dimension": next(iter(shapes.values()))[1],
                 "clips": [clip | {"features": shapes[clip["clip_uid"]][0]} for clip in clips]}, indent=1))
        return {"clips": len(clips), "features": sum(shape[0] for shape in shapes.values())}
