"""Stored features of clips, for heads: egokit's own by their manifest, or anybody's files at a given rate.

A clip's features stand on a clock of its own: `Grid` says where.

Shapes: N features of a clip, E their dimension.
"""
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egokit.config.access import exists
from egokit.config.build import ConfigError
from egokit.data.video import open_video
from egokit.data.video.timeline import VideoError
from egokit.runs.array_file import read_array
from egokit.runs.run_folder import Run
from egokit.tasks.clip_features import read_manifest, stored
from egokit.tasks.nlq_features import stored_words

SUFFIXES = (".pt", ".npy")
SLACK = 0.03     # share by which a clip's number of features may differ from what its length and rate say
PROBED = 9       # files whose dimensions are compared, for that of the folder
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
        require_folder(self.folder)
        has_manifest = exists(self.folder / "manifest.json")
        self.manifest = read_manifest(self.folder) if has_manifest and not rate else {}
        if not self.manifest and not rate:
            raise ConfigError(f"{self.folder} has no manifest.json, as egokit's extraction writes it at its end: let "
                              "that finish; or, for files of others, give task.stored_rate, their features a second")
        self.per, self.rate = per, rate or float(self.manifest["features_per_second"])
        self.window = window or 1 / self.rate
        suffixes = (f".{self.manifest['format']}",) if self.manifest else SUFFIXES
        self.paths: dict[str, Path] = {}
        for path in sorted(self.folder.glob("[!.]*")):
            if path.suffix in suffixes:
                if path.stem in self.paths:
                    raise ConfigError(f"{self.folder} holds {path.stem} as .npy and as .pt, expected one of the two: "
                                      "delete the other")
                self.paths[path.stem] = path
        if not self.paths:
            raise FileNotFoundError(f"{self.folder} holds no features: expected <{per}>{' or '.join(suffixes)}")
        self.listed = {clip["clip_uid"]: clip for clip in self.manifest.get("clips", ())}
        self.axes = 3 if self.manifest.get("kind") == "fused" else 2
        self.dimension = self._usual_dimension()

    def _usual_dimension(self) -> int:
        """Return the dimension of most of the first files that are whole."""
        found, reasons = [], []
        for path in self.paths.values():
            try:
                found.append(stored(path, self.axes).shape[-1])
            except (OSError, ValueError) as error:
                reasons.append(str(error))
            if len(found) == PROBED:
                break
        if not found:
            raise FeatureError(f"{self.folder}: none of {len(reasons)} files of features can be read; {reasons[0]}")
        return max(found, key=found.count)

    @functools.cached_property
    def word_dimension(self) -> int:
        """The dimension of the stored words of questions.

        Raises:
            FileNotFoundError: there are none.
        """
        folder = self.folder.parent / "questions"
        for path in sorted(folder.glob("[!.]*.npy"))[:1]:
            return read_array(path, "delete it, and extract the features again").shape[-1]
        raise FileNotFoundError(f"{folder} holds no words of questions: let task.words name a run of 08_egonlq that "
                                "has extracted them")

    @property
    def origin(self) -> str:
        """What made the features: the checkpoint of egokit's, else their folder."""
        return str(self.manifest.get("init") or self.folder) if self.manifest else str(self.folder)

    def path_of(self, clip: Clip) -> Path:
        """Return the path of a clip's features, where they should be if there are none."""
        name = clip.uid if self.per == "clip" else clip.video
        suffix = "." + self.manifest.get("format", "pt")
        return self.paths.get(name, self.folder / f"{name}{suffix}")

    def open(self, clip: Clip) -> np.ndarray:
        """Return a clip's features as they are stored, memory-mapped, (N, E), or (questions, N, E) of fused ones.

        Raises:
            FeatureError: they are absent, damaged, of another dimension, of other times, or of another length.
        """
        path = self.path_of(clip)
        if path.stem not in self.paths:
            raise FeatureError(f"{path} is missing: there are no features of clip {clip.uid}; extract them, or allow "
                               "some to be absent with data.max_bad_fraction")
        if open_video.on_open:  # the watchdog of the loader's workers names a file at which one hangs
            open_video.on_open(str(path))
        try:
            feature = stored(path, self.axes)
        except (OSError, ValueError) as error:
            raise FeatureError(str(error)) from None
        if feature.shape[-1] != self.dimension:
            raise FeatureError(f"{path} has dimension {feature.shape[-1]}, but others have {self.dimension}: the "
                               "folder mixes features of several models; keep one model's")
        listed = self.listed.get(clip.uid)
        if self.listed and not listed and self.per == "clip":
            raise FeatureError(f"{path} is not listed in {self.folder}/manifest.json, so that its times are unknown: "
                               "extract the features again, with the annotations that list the clip")
        if listed and abs(listed["start"] - clip.start) + abs(listed["stop"] - clip.stop) > 0.01:
            raise FeatureError(f"{path} is of {listed['start']:g} to {listed['stop']:g} s of the video, but the "
                               f"annotations say {clip.start:g} to {clip.stop:g} s: extract the features again")
        if self.per == "video":
            return self._stretch(feature, clip, path)
        N, expected = feature.shape[-2], clip.seconds * self.rate
        if abs(N - expected) > max(EDGE, SLACK * expected):
            kind = "shorter than its clip" if expected > N else "longer than its clip"
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
            if question is None:
                raise ConfigError(f"{self.folder} holds features that are fused with questions: extract those of clips "
                                  "alone (task.feature_kind=clip), or let task.features name such")
            if question >= len(feature):
                raise FeatureError(f"{self.path_of(clip)}: features of {len(feature)} questions, expected more than "
                                   f"{question}; extract them again, from the same annotations")
            feature = feature[question]
        return finite(np.array(feature, np.float32), f"{self.path_of(clip)}, clip {clip.uid}")

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
        listed = self.listed.get(clip.uid, {})
        try:
            questions = stored_words(Run(self.folder.parent), listed | {"clip_uid": clip.uid})
            words = np.array(questions[question], np.float32)
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise FeatureError(f"{self.folder.parent}/questions/{clip.uid}.npy: no words of the clip's question "
                               f"{question} ({error}); extract the features again, from the same annotations") from None
        path = self.folder.parent / "questions" / f"{clip.uid}.npy"
        if words.shape[1] != self.word_dimension:
            raise FeatureError(f"{path} has dimension {words.shape[1]}, but others have {self.word_dimension}: extract "
                               "the words again, with one model")
        return finite(words, f"{path}, question {question}")


def finite(values: np.ndarray, where: str) -> np.ndarray:
    """Return an array, or raise FeatureError if it holds NaN or infinite numbers."""
    if not np.isfinite(values).all():
        raise FeatureError(f"{where}: {np.isnan(values).sum():,} NaN and {np.isinf(values).sum():,} infinite numbers; "
                           "extract the features again")
    return values


def require_folder(folder: Path) -> None:
    """Raise FileNotFoundError if a folder of features is not there."""
    if not folder.is_dir():
        is_there = "is no folder" if exists(folder) else "does not exist"
        raise FileNotFoundError(f"{folder} {is_there}: task.features names a folder of features, or the run that "
                                "extracts them (its action 'extract')")


def manifests(*folders: str) -> list[Path]:
    """Return the manifests of folders of features, or of runs, as far as they have one.

    Raises:
        FileNotFoundError: a folder does not exist.
    """
    for folder in filter(None, folders):
        require_folder(Path(folder))
    paths = [Path(folder, name) for folder in folders if folder for name in ("features/manifest.json", "manifest.json")]
    return [path for path in paths if exists(path)]


def summary(problems: dict[str, str], clips: int) -> str:
    """Return the lines of an error: how many clips it is of, and the first reasons."""
    return "\n".join([f"{len(problems)} of {clips} clips have no features that can be used, such as those below; "
                      "data.max_bad_fraction allows a share of them", *list(problems.values())[:10]])
