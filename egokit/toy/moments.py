"""EgoMQ's clips and moments: moments_{train,val,test_unannotated}.json in Ego4D's format.

A moment is one action, and its class is the verb. EgoNLQ's questions are about the same clips (language_queries.py).
"""
import dataclasses
import json
from pathlib import Path

import numpy as np

from egokit.runs.files import write_text
from egokit.toy.schedule import FPS, Action, Size, ToyVideo, generator, make_uid
from egokit.toy.words import VERBS

SECONDARY = 0.2  # the share of actions that another annotator has labelled, too, and not as primary
QUOTED = {"move left": '"move_left_(slide,_shift_etc.)"'}  # some of Ego4D's classes have quotation marks of their own


@dataclasses.dataclass(frozen=True)
class MomentClip:
    """A stretch of a video; times are seconds of the video."""
    split: str  # of the file: "train", "val" or "test_unannotated"
    uid: str
    video: ToyVideo
    start: float
    stop: float

    @property
    def seconds(self) -> float:
        return round(self.stop - self.start, 4)

    @property
    def actions(self) -> list[Action]:
        """The actions that the clip shows from their start to their end."""
        return [action for action in self.video.actions if self.start <= action.start and action.stop <= self.stop]

    def fields(self) -> dict:
        """Return the fields of a clip that both benchmarks' files have, without annotations."""
        times = {"video_start": self.start, "video_end": self.stop, "clip_start": 0.0, "clip_end": self.seconds}
        return {"clip_uid": self.uid, **{f"{name}_sec": value for name, value in times.items()},
                **{f"{name}_frame": round(value * FPS) for name, value in times.items()},
                "source_clip_uid": self.uid}


def moment_label(verb: int) -> str:
    """Return the class of a verb as EgoMQ writes it, such as "pick_up"."""
    return QUOTED.get(VERBS[verb], VERBS[verb].replace(" ", "_"))


def draw_clips(seed: int, videos: list[ToyVideo], amounts: Size) -> list[MomentClip]:
    """Draw two clips of each chosen video, one in each half.

    Args:
        videos: all videos of Ego4D.
        amounts: says which videos each file has, and how long the clips are.
    """
    clips = []
    for split, (source, first, end) in amounts.moment_videos.items():
        for i, video in enumerate([video for video in videos if video.split == source][first:end]):
            random = generator(seed, "moments", split, i)
            for k in range(2):
                start = round(k * video.seconds / 2 + random.uniform(0, 0.5), 2)
                stop = round(start + random.uniform(*amounts.moment_seconds), 2)
                clips.append(MomentClip(split, make_uid(seed, "moments", split, i, k), video, start, stop))
    return clips


def write_documents(root: Path, name: str, clips: list[MomentClip], annotations: dict[str, list], version: int) -> None:
    """Write <name>_{train,val,test_unannotated}.json, which list the clips by video.

    Args:
        annotations: those of each clip, by its uid.
        version: of the data set.
    """
    for split in dict.fromkeys(clip.split for clip in clips):
        videos: dict[str, dict] = {}
        for clip in clips:
            if clip.split == split:
                entry = {"video_uid": clip.video.uid, "split": split.split("_")[0], "clips": []}
                videos.setdefault(clip.video.uid, entry)["clips"].append(
                    clip.fields() | {"annotations": annotations[clip.uid]})
        document = {"version": f"toy-{version}", "description": f"toy {name} {split}", "videos": list(videos.values())}
        write_text(root / f"{name}_{split}.json", json.dumps(document, indent=1))


def write_moments(root: Path, seed: int, clips: list[MomentClip], version: int) -> int:
    """Write moments_{train,val,test_unannotated}.json.

    Two or three annotators share out the actions of a clip: each action is a primary label of one of them. Some actions
    have another label that is not primary, often of another class.

    Returns:
        The number of primary labels in all files.
    """
    annotations = {clip.uid: [] if clip.split == "test_unannotated" else _annotate(generator(seed, "labels", clip.uid),
                                                                                   clip) for clip in clips}
    write_documents(root, "moments", clips, annotations, version)
    return sum(label["primary"] for annotators in annotations.values() for annotator in annotators
               for label in annotator["labels"])


def _annotate(random: np.random.Generator, clip: MomentClip) -> list[dict]:
    labels: list[list[dict]] = [[] for _ in range(int(random.integers(2, 4)))]
    for action in clip.actions:
        annotator = int(random.integers(len(labels)))
        labels[annotator].append(_label(clip, action.start, action.stop, action.verb, True))
        if random.random() < SECONDARY:
            times = np.clip(np.array([action.start, action.stop]) + random.uniform(-0.4, 0.4, 2), clip.start, clip.stop)
            verb = action.verb if random.random() < 0.5 else int(random.integers(len(VERBS)))
            labels[annotator - 1].append(_label(clip, *times.tolist(), verb, False))
    return [{"annotator_uid": f"toy-{i}", "labels": rows} for i, rows in enumerate(labels)]


def _label(clip: MomentClip, start: float, stop: float, verb: int, primary: bool) -> dict:
    times = {"start": start - clip.start, "end": stop - clip.start, "video_start": start, "video_end": stop}
    return {**{f"{name}_time": round(value, 4) for name, value in times.items()},
            **{f"{name}_frame": round(value * FPS) for name, value in times.items()},
            "label": moment_label(verb), "primary": primary}
