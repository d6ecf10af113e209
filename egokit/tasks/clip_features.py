"""Dense video features of the clips that annotation files list, for localisers; tasks derive from ClipFeatures.

task.feature_clips may name any files that list clips as moments_*.json does, or a list of whole videos.

Source: EgoVLP's recipe.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from egokit.config.json_file import LARGEST_LIST, read_json
from egokit.config.names import check_name
from egokit.config.schema import Config, Count, Positive, TaskConfig
from egokit.data import annotation_json
from egokit.data.annotation_json import list_names
from egokit.data.plain_data import Refused
from egokit.data.site_checks import EGO4D, PREP
from egokit.data.video.open_video import VideoError
from egokit.model import tensor_file
from egokit.runs.array_file import read_array
from egokit.runs.run_folder import Run
from egokit.tasks.extraction import Extraction, save
from egokit.tasks.windows import ClipWindows, embed_windows, read_damage, write_damage

Format = Literal["pt", "npy"]
QUESTION = {"annotation_uid": str, "query_idx": int, "query": str, "tokens": int}
MANIFEST = {"format": str, "clips": [{"clip_uid": str, "split": str, "start": float, "stop": float,
                                      "questions": ([QUESTION], ...)}]}


class ClipFeatures(Extraction):
    """Extracts features of clips, and is neither trained nor scored.

    Subclasses whose features are others override `embedder`, `bytes_of`, `layer` and `features`.

    Attributes:
        axes: number of axes of a clip's features, of which the last two are (features, dimension).
        whose: which model's features `extract` writes: EgoVLPv2's, or those of a model without fusion encoder, of
            which nothing but an embedding is known.
        spread: whether the windows of a clip that ends after its video are spread over what there is of it, as the
            original does; if not, each keeps its time, and the last ones show the last frame.
    """
    axes = 2
    spread = False
    whose: Literal["egovlpv2", "peer"] = "egovlpv2"

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

    def sources(self) -> dict[str, Path]:
        return {path.name: path for path in self.lists().values()}

    @property
    def suffix(self) -> str:
        return self.config.task.feature_format

    def identity(self, clip: dict) -> list:
        return [clip["video_uid"], clip["start"], clip["stop"], *clip.get("questions", ())]

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
        return {"layer": self.projection}

    @property
    def projection(self) -> str:
        """The name of what `embed_video` returns, as the manifest has it."""
        return "video_projection" if self.whose == "egovlpv2" else "embedding"

    def extract(self, model, run: Run) -> dict[str, float]:
        self.whose = "egovlpv2" if getattr(model, "fuses", True) else "peer"
        return super().extract(model, run)

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

    def write(self, model, run: Run, clip: dict) -> None:
        """Write the features of a clip, and before them a small file of its damage."""
        feature, damage = self.features(model, clip)
        if damage:
            write_damage(self.file(run, clip), damage)
        save(self.file(run, clip), feature)

    def manifest(self, run: Run, clips: list[dict]) -> tuple[dict, dict]:
        own = self.config.task
        shapes = [stored(self.file(run, clip), self.axes).shape for clip in clips]
        entries = [clip | {"features": shape[-2]} | ({"damaged": damage} if damage else {}) for clip, shape, damage
                   in zip(clips, shapes, (read_damage(self.file(run, clip)) for clip in clips), strict=True)]
        damaged = sum("damaged" in entry for entry in entries)
        manifest = {"format": own.feature_format, "features_per_second": own.features_per_second,
                    "frames": own.feature_frames, "stride": own.feature_frames,
                    # of the samples, not of a video
                    "frame_rate": round(own.features_per_second * own.feature_frames, 6),
                    **self.layer(), "dimension": shapes[0][-1], "clips": entries}
        return manifest | ({"damaged": damaged} if damaged else {}), {
            "clips": len(clips), "features": sum(shape[-2] for shape in shapes), "frames": own.feature_frames}

    @classmethod
    def inputs(cls, config: Config, action: str) -> dict[str, str]:
        names, videos = list_names(config.task.feature_clips).values(), config.task.feature_videos
        return {name: EGO4D.format("annotations") for name in names} | {
            videos: PREP if videos == "Ego4D_256" else EGO4D.format("full_scale")}


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
