"""Dense video features of the clips that annotation files list, for localisers; tasks derive from ClipFeatures.

task.feature_clips may name any files that list clips as moments_*.json does, or a list of whole videos.

Source: EgoVLP's recipe.
"""
from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from egokit.config.build import ConfigError
from egokit.config.json_file import LARGEST_LIST, read_json
from egokit.config.names import check_name
from egokit.config.schema import Config, Count, Positive, TaskConfig
from egokit.data import annotation_json
from egokit.data.annotation_json import list_names
from egokit.data.plain_data import Refused
from egokit.data.site_checks import EGO4D, PREP
from egokit.data.video.open_video import VideoError
from egokit.model import checkpoints, tensor_file
from egokit.runs.array_file import read_array
from egokit.runs.files import atomic_path, remove_abandoned, write_text
from egokit.runs.run_folder import Run
from egokit.tasks.base import Task
from egokit.tasks.windows import ClipWindows, embed_windows, read_damage, write_damage, write_each
from egokit.train import distributed

Format = Literal["pt", "npy"]
QUESTION = {"annotation_uid": str, "query_idx": int, "query": str, "tokens": int}
MANIFEST = {"format": str, "clips": [{"clip_uid": str, "split": str, "start": float, "stop": float,
                                      "questions": ([QUESTION], ...)}]}


class ClipFeatures(Task):
    """Extracts features of clips, and is neither trained nor scored.

    Subclasses whose features are others override `embedder`, `bytes_of`, `layer` and `features`.

    Attributes:
        axes: number of axes of a clip's features, of which the last two are (features, dimension).
        spread: whether the windows of a clip that ends after its video are spread over what there is of it, as the
            original does; if not, each keeps its time, and the last ones show the last frame.
        saving: what makes the features smaller, for the message that there is no room for them.
    """
    axes = 2
    spread = False
    saving = "or set data.limit"

    class Params(TaskConfig):
        features_per_second: Positive = 1.87    # features of one second of video
        feature_frames: Count = 16              # frames of one feature
        feature_clips: str = "moments_*.json"   # files that list the clips, * stands for the split (NLQ's: nlq_*.json),
                                                # or one list of whole videos; several with commas between them
        feature_videos: str = "Ego4D_256"       # folder of the videos, resized or original
        feature_format: Format = "pt"

    @property
    def videos(self) -> Path:
        """The folder of the videos."""
        return self.require_file(self.config.task.feature_videos)

    def lists(self) -> dict[str, Path]:
        """Return the file that lists each split's clips; a single file is a split named like it."""
        return {split: self.require_file(name) for split, name in list_names(self.config.task.feature_clips).items()}

    def clips(self) -> list[dict]:
        """Return the distinct clips of all splits: uids, start and stop in seconds, split."""
        clips = {}
        for split, path in self.lists().items():
            for clip in annotation_json.read_moments(path):
                if clip["clip_uid"] == "manifest":
                    raise ValueError(f"{path}: clip 'manifest': expected another clip_uid, as the list of the features "
                                     "is called so")
                first = clips.setdefault(clip["clip_uid"], clip | {"split": split})
                if clip.items() - first.items():
                    raise ValueError(f"{path}: clip {clip['clip_uid']} has other times or another video "
                                     "than where it stands before")
        return [clips[uid] for uid in sorted(clips)][:self.limited(len(clips))]

    def embedder(self, model, clip: dict) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function that makes a row of features of each window of a clip."""
        return model.embed_video

    def windows_of(self, clip: dict) -> int:
        """Return how many features a clip is expected to have, as ClipWindows would."""
        own = self.config.task
        return int((clip["stop"] - clip["start"]) * own.features_per_second + 1 / own.feature_frames)

    def bytes_of(self, model, clip: dict) -> int:
        """Return how many bytes `write` is expected to write for a clip."""
        return self.windows_of(clip) * model.embed_dim * 4

    def layer(self) -> dict[str, str]:
        """Return what the manifest says of the features' place in the model."""
        return {"layer": "video_projection"}

    def features(self, model, clip: dict) -> tuple[torch.Tensor, dict]:
        """Return the (features, E) float32 features of one clip, and the damage among its frames.

        Returns:
            The features; {} or {"share": of the clip's sampled frames, "times": [[start, stop], ...] in seconds}.

        Raises:
            VideoError: a frame is damaged, and data.max_bad_fraction is 0, or a larger share of the frames than it is.
        """
        feature, read = embed_windows(model, ClipWindows(self, clip), f"clip {clip['clip_uid']}",
                                      self.embedder(model, clip))
        share, limit = float(read["damaged_WT"].mean()), self.config.data.max_bad_fraction
        if not share:
            return feature, {}
        times = [times for times in read["times"] if times[0] < clip["stop"] and times[1] > clip["start"]]
        if share > limit:
            raise VideoError(f"{self.videos / clip['video_uid']}.mp4: {share:.1%} of the frames of clip "
                             f"{clip['clip_uid']} are damaged, the first at {times[0][0]:.2f} s: fetch the video "
                             f"again, or set data.max_bad_fraction, now {limit:g}, above their share")
        return feature, {"share": round(share, 6), "times": times}

    def file(self, run: Run, clip: dict) -> Path:
        """Return the path of a clip's features."""
        return run.path / "features" / f"{clip['clip_uid']}.{self.config.task.feature_format}"

    def is_made(self, run: Run, clip: dict) -> bool:
        """Return whether all that `write` writes for a clip is there."""
        return self.file(run, clip).exists()

    def write(self, model, run: Run, clip: dict) -> None:
        """Write the features of a clip, and before them a small file of its damage."""
        feature, damage = self.features(model, clip)
        if damage:
            write_damage(self.file(run, clip), damage)
        save(self.file(run, clip), feature)

    def check_room(self, model, run: Run, clips: list[dict]) -> None:
        """Print how many bytes are still to be written, and how many are free.

        Raises:
            ConfigError: they do not fit.
        """
        needed = sum(self.bytes_of(model, clip) for clip in clips if not self.is_made(run, clip))
        free, asked = shutil.disk_usage(run.path).free, sum(len(clip.get("questions", ())) for clip in clips)
        numbers = f"{len(clips):,} clips" + (f", {asked:,} questions" if asked else "")
        print(f"{numbers}: {needed / 1e9:,.3f} GB of features to write, {free / 1e9:,.3f} GB are free", flush=True)
        if needed > free:
            raise ConfigError(f"{run.path / 'features'}: the features of {numbers} need {needed / 1e9:,.3f} GB more, "
                              f"but {free / 1e9:,.3f} GB are free: make room, {self.saving}")

    def extract(self, model, run: Run) -> dict[str, float]:
        """Write features/<clip_uid>.pt (or .npy) for every clip that has none yet, and a manifest.

        Each rank writes its share of the clips; rank 0 writes the manifest.

        Returns:
            On rank 0, the counts and hashes for metrics.json; {} on other ranks.

        Raises:
            ConfigError: the features do not fit on the disk; nothing is written.
            VideoError: some clips cannot be read; the features of all others are written first.
        """
        began, data = time.perf_counter(), {path.name: checkpoints.fingerprint(path) for path in self.lists().values()}
        rank, own, folder = distributed.rank(), self.config.task, run.path / "features"
        clips = distributed.gather_objects(self.clips())[0]  # rank 0's, because the list may be edited meanwhile
        unlisted = delete_outdated(run, folder, clips, own.feature_format) if rank == 0 else []
        if rank == 0:
            self.check_room(model, run, clips)
        distributed.barrier()
        digest = checkpoints.fingerprint(checkpoints.find(self.config.init)) if self.config.init and rank == 0 else ""

        def write(clip: dict) -> None:
            if not self.is_made(run, clip):
                self.write(model, run, clip)
        errors = [reason for _, reason in write_each(run, clips, write)]
        if errors:
            if rank == 0:
                for message in errors:
                    run.log({"kind": "bad", "said": message})
            raise VideoError("\n".join([
                *errors[:10], f"{len(errors)} of {len(clips)} clips have no features, such as these, of which the "
                              "run's log.jsonl has all; the others are written and will not be made again"]))
        if rank != 0:
            return {}
        remove_abandoned(folder)
        shapes = [stored(self.file(run, clip), self.axes).shape for clip in clips]
        entries = [clip | {"features": shape[-2]} | ({"damaged": damage} if damage else {}) for clip, shape, damage
                   in zip(clips, shapes, (read_damage(self.file(run, clip)) for clip in clips), strict=True)]
        damaged = sum("damaged" in entry for entry in entries)
        manifest = {"init": self.config.init, "init_sha256": digest, "format": own.feature_format,
                    "features_per_second": own.features_per_second,
                    "frames": own.feature_frames, "stride": own.feature_frames,
                    # of the samples, not of a video
                    "frame_rate": round(own.features_per_second * own.feature_frames, 6),
                    **self.layer(), "dimension": shapes[0][-1],
                    "clips": entries, "unlisted": unlisted} | ({"damaged": damaged} if damaged else {})
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
        return {"clips": len(clips), "features": sum(shape[-2] for shape in shapes), "unlisted": len(unlisted),
                "samples": len(clips), "expected": len(clips), "failed": 0, "frames": own.feature_frames,
                "toy": self.config.site.toy, "data": data, "seconds": time.perf_counter() - began}

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        names, videos = list_names(config.task.feature_clips).values(), config.task.feature_videos
        return {name: EGO4D.format("annotations") for name in names} | {
            videos: PREP if videos == "Ego4D_256" else EGO4D.format("full_scale")}


def delete_outdated(run: Run, folder: Path, clips: list[dict], suffix: str) -> list[str]:
    """Delete the features of clips whose video, times or questions have changed since.

    The run's clips.json remembers each clip's video, times and questions.

    Returns:
        The clips that have features but are not listed any more; their features stay.
    """
    path = run.path / "clips.json"
    current = {clip["clip_uid"]: [clip["video_uid"], clip["start"], clip["stop"], *clip.get("questions", ())]
               for clip in clips}
    recorded = read_json(path, {...: list}, "delete it: all features are made again", LARGEST_LIST) or {}
    made = sorted(file.stem for file in folder.glob(f"[!.]*.{suffix}"))
    changed = [uid for uid in made if uid in current and recorded.get(uid) != current[uid]]
    unlisted = [uid for uid in made if uid not in current]
    if changed or unlisted:
        run.log({"kind": "clips", "changed": changed, "unlisted": unlisted})
        print(f"the list of clips has changed: {len(changed)} are made again; "
              f"{len(unlisted)} are listed no more, and stay", flush=True)
    for uid in changed:
        (folder / f"{uid}.json").unlink(missing_ok=True)  # its damage
        (folder / f"{uid}.{suffix}").unlink()
    current |= {uid: recorded[uid] for uid in unlisted if uid in recorded}
    if current != recorded:
        (folder / "manifest.json").unlink(missing_ok=True)  # it describes another list
        write_text(path, json.dumps(current))  # last: a kill before it leaves nothing wrong
    return unlisted


def save(path: Path, feature: torch.Tensor) -> None:
    """Write one clip's features as .npy or .pt, whole or not at all."""
    with atomic_path(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, feature.numpy())
        else:
            with open(temporary, "wb") as file:  # a path's name would stand in the file
                torch.save(feature, file)


def read_manifest(folder: Path) -> dict:
    """Return the manifest of a folder of features, which may be another user's.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is damaged; the message names it.
    """
    path, fix = folder / "manifest.json", "delete it and extract the features again"
    manifest = read_json(path, MANIFEST, fix, LARGEST_LIST)
    if manifest is None:
        raise FileNotFoundError(f"{path} is missing: the run has no features, or not all of them; extract them")
    try:
        if not manifest["clips"]:
            raise ValueError("'clips' is empty, expected at least one")
        if manifest["format"] not in get_args(Format):
            raise ValueError(f"format {manifest['format']!r:.80}: expected {' or '.join(get_args(Format))}")
        for clip in manifest["clips"]:
            check_name(clip["clip_uid"])
    except ValueError as error:
        raise ValueError(f"{path}: not a list of features ({error}); {fix}") from None
    return manifest


def stored(path: Path, axes: int = 2) -> np.ndarray:
    """Return one clip's (features, E), memory-mapped; with three axes (questions, features, E).

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    fix = ("if egokit extracted it, delete it, and the same extraction makes it again; else save one tensor anew, "
           "features.float().contiguous()")
    if path.suffix == ".npy":
        feature = read_array(path, fix)
    else:
        try:
            feature = tensor_file.map_tensor(path)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # torch and zipfile raise errors of a dozen kinds
            reason = error if isinstance(error, Refused) else type(error).__name__
            raise ValueError(f"{path}: no whole file of features ({reason}); {fix}") from None
    if feature.ndim != axes or not feature.size or feature.dtype.kind != "f":
        expected = "(features, dimension)" if axes == 2 else "(questions, features, dimension)"
        raise ValueError(f"{path}: {feature.dtype} of shape {feature.shape}, expected {expected} of floats; {fix}")
    return feature
