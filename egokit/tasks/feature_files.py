"""Stored features of clips, for heads: egokit's own by their manifest, or anybody's files at a given rate.

A clip's features stand on a clock of its own: `Grid` says where.

Shapes: N features of a clip, E their dimension.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egokit.config.access import exists
from egokit.config.build import ConfigError
from egokit.data.video.timeline import VideoError
from egokit.tasks.clip_features import read_manifest, stored

SUFFIXES = (".pt", ".npy")
SLACK = 0.03     # share by which a clip's number of features may differ from what its length and rate say
EDGE = 2.0       # features that it may differ by in any case: windows at the edges


class Clip(NamedTuple):
    """A stretch of a video whose features are read; times are seconds of the video."""
    uid: str
    video: str
    start: float
    stop: float

    @property
    def seconds(self) -> float:
        return self.stop - self.start


class Grid(NamedTuple):
    """A clip's clock: the middle of feature i is `first` + i / `rate` seconds after the clip's start."""
    rate: float
    first: float

    def positions(self, seconds):
        """Return seconds of the clip as positions, at which the middle of feature i is i."""
        return (np.asarray(seconds, np.float64) - self.first) * self.rate

    def seconds(self, positions):
        """Return positions as seconds of the clip."""
        return np.asarray(positions, np.float64) / self.rate + self.first


class FeatureError(VideoError):
    """A clip's features can't be used; the message names the file, and says what was expected and what to do."""


class FeatureFiles:
    """The features in a folder, one file for each clip or for each video.

    Args:
        folder: holds the files, or a run's folder with features/ in it.
        per: "clip": files are named like clips; "video": like videos, and a clip's stretch is cut out.
        rate: features a second; 0 takes it from the manifest that egokit writes.
        window: seconds of video behind one feature; 0: up to the start of the next one.

    Attributes:
        manifest: what egokit's extraction wrote of its features, {} for files of others.
        dimension: E.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no features.
        ConfigError: there is neither a manifest nor a rate.
    """

    def __init__(self, folder: Path, per: str = "clip", rate: float = 0.0, window: float = 0.0):
        own = folder / "features"
        self.folder = own if exists(own) else folder
        if not exists(self.folder):
            raise FileNotFoundError(f"{self.folder} does not exist: task.features names a folder of features, or the "
                                    "run that extracts them (its action 'extract')")
        has_manifest = exists(self.folder / "manifest.json")
        self.manifest = read_manifest(self.folder) if has_manifest and not rate else {}
        if not self.manifest and not rate:
            raise ConfigError(f"{self.folder} has no manifest.json, as egokit's extraction writes it at its end: let "
                              "that finish; or, for files of others, give task.stored_rate, their features a second")
        self.per, self.rate = per, rate or float(self.manifest["features_per_second"])
        self.window = window or 1 / self.rate
        self.paths = {path.stem: path for path in sorted(self.folder.iterdir()) if path.suffix in SUFFIXES}
        if not self.paths:
            raise FileNotFoundError(f"{self.folder} holds no features: expected <{per}>.pt or .npy")
        self.listed = {clip["clip_uid"]: clip for clip in self.manifest.get("clips", ())}
        self.axes = 3 if self.manifest.get("kind") == "fused" else 2
        self.dimension = stored(next(iter(self.paths.values())), self.axes).shape[-1]

    @property
    def origin(self) -> str:
        """What made the features: the checkpoint of egokit's, else their folder."""
        return str(self.manifest.get("init") or self.folder) if self.manifest else str(self.folder)

    def open(self, clip: Clip) -> np.ndarray:
        """Return a clip's features as they are stored, memory-mapped, (N, E), or (questions, N, E) of fused ones.

        Raises:
            FeatureError: they are absent, damaged, of another dimension, of other times, or of another length.
        """
        name = clip.uid if self.per == "clip" else clip.video
        path = self.paths.get(name)
        if path is None:
            raise FeatureError(f"{self.folder}/{name}.pt is missing: there are no features of clip {clip.uid}; extract "
                               "them, or allow some to be absent with data.max_bad_fraction")
        try:
            feature = stored(path, self.axes)
        except ValueError as error:
            raise FeatureError(str(error)) from None
        if feature.shape[-1] != self.dimension:
            raise FeatureError(f"{path} has dimension {feature.shape[-1]}, but others have {self.dimension}: the folder "
                               "mixes features of several models; keep one model's")
        listed = self.listed.get(clip.uid)
        if listed and abs(listed["start"] - clip.start) + abs(listed["stop"] - clip.stop) > 0.01:
            raise FeatureError(f"{path} is of {listed['start']:g} to {listed['stop']:g} s of the video, but the "
                               f"annotations say {clip.start:g} to {clip.stop:g} s: extract the features again")
        if self.per == "video":
            return self._stretch(feature, clip, path)
        N, expected = feature.shape[-2], clip.seconds * self.rate
        if abs(N - expected) > max(EDGE, SLACK * expected):
            kind = "shorter than its clip" if N < expected else "longer than its clip"
            raise FeatureError(f"{path} is {kind}, or of another rate: {N} features, expected about {expected:.0f} for "
                               f"{clip.seconds:.1f} s at {self.rate:g} a second; extract it again, or correct "
                               "task.stored_rate")
        return feature

    def _stretch(self, feature: np.ndarray, clip: Clip, path: Path) -> np.ndarray:
        """Return the rows of a video's features whose middles lie in the clip."""
        first, stop = self._rows(clip)
        if stop > feature.shape[-2] + EDGE or first >= feature.shape[-2]:
            raise FeatureError(f"{path} is shorter than its clip {clip.uid}: {feature.shape[-2]} features at "
                               f"{self.rate:g} a second, but the clip ends at {clip.stop:.1f} s; extract it again, or "
                               "correct task.stored_rate")
        return feature[..., first:stop, :]

    def _rows(self, clip: Clip) -> tuple[int, int]:
        first, stop = (int(np.ceil((time - self.window / 2) * self.rate - 1e-6)) for time in (clip.start, clip.stop))
        return max(0, first), max(stop, first + 1)

    def grid(self, clip: Clip, N: int) -> Grid:
        """Return the clock of a clip's N features."""
        if self.per == "video":
            return Grid(self.rate, self._rows(clip)[0] / self.rate + self.window / 2 - clip.start)
        if self.manifest:  # each feature has its share of the clip: windows are end to end
            return Grid(N / clip.seconds, clip.seconds / N / 2)
        return Grid(self.rate, self.window / 2)

    def read(self, clip: Clip, question: int | None = None) -> np.ndarray:
        """Return a clip's features, float32 (N, E).

        Args:
            question: which of the clip's questions, where features are fused with them.

        Raises:
            FeatureError: as `open`; or they are NaN or infinite.
        """
        feature = self.open(clip)
        if self.axes == 3:
            if question is None or question >= len(feature):
                raise FeatureError(f"{self.folder}/{clip.uid}: features of {len(feature)} questions, of which question "
                                   f"{question} was asked for; expected one file a clip, (N, E): extract them again")
            feature = feature[question]
        feature = np.array(feature, np.float32)
        if not np.isfinite(feature.sum()) and not np.isfinite(feature).all():
            raise FeatureError(f"{self.folder}/{clip.uid}: {np.isnan(feature).sum():,} NaN and "
                               f"{np.isinf(feature).sum():,} infinite numbers in its features; extract them again")
        return feature

    def problems(self, clips: list[Clip]) -> dict[str, str]:
        """Return clip_uid -> why its features can't be used; only the files' heads are read."""
        found = {}
        for clip in clips:
            try:
                self.open(clip)
            except FeatureError as error:
                found[clip.uid] = str(error)
        return found

    def words(self, clip: Clip, question: int) -> np.ndarray:
        """Return the stored tokens of a clip's question, float32 (L, D).

        Raises:
            FeatureError: the file is missing, damaged, or holds other questions than the manifest lists.
        """
        path = self.folder.parent / "questions" / f"{clip.uid}.npy"
        lengths = [entry["tokens"] for entry in self.listed.get(clip.uid, {}).get("questions", ())]
        try:
            words = stored(path)
        except (FileNotFoundError, ValueError) as error:
            raise FeatureError(f"{error}: the words of a clip's questions; extract the features again") from None
        if question >= len(lengths) or words.ndim != 2 or len(words) != sum(lengths):
            raise FeatureError(f"{path} holds {len(words)} tokens, expected {sum(lengths)} of {len(lengths)} questions, "
                               f"of which question {question} was asked for: extract the features again")
        first = sum(lengths[:question])
        return np.array(words[first:first + lengths[question]], np.float32)


def summary(problems: dict[str, str], clips: int) -> str:
    """Return the lines of an error: the first reasons, and how many clips they are of."""
    return "\n".join([*list(problems.values())[:10], f"{len(problems)} of {clips} clips have no features that can be "
                      "used, such as these; data.max_bad_fraction allows a share of them"])
