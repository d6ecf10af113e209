"""EgoMQ's annotations: moments_*.json -> clips with their moments.

Source: EgoVLPv2's EgoMQ, Convert_annotations.py. It also leaves out clips whose video's first clip has no feature file,
which depends on what was extracted; here every clip counts.
"""
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from egokit.data.annotation_json import each_clip, field, moment_of, read_document


class Moment(NamedTuple):
    """One labelled stretch of a clip."""
    start: float  # seconds from the clip's start
    stop: float
    label: str    # as it is in the file; some contain double quotes


class MQClip(NamedTuple):
    """A clip and its moments; a clip of the test split has none."""
    clip_uid: str
    video_uid: str
    start: float  # seconds of the video
    stop: float
    subset: str   # the video's split; "" if the file names none
    moments: tuple[Moment, ...]

    @property
    def seconds(self) -> float:
        """The clip's length."""
        return self.stop - self.start


def read_clips(source: str | Path | dict) -> dict[str, MQClip]:
    """Read the clips and moments of a moments_*.json.

    Of all annotators' labels, in order, those marked as primary are moments; doubles and moments of length 0 stay.

    Args:
        source: the file, or its content.

    Returns:
        clip_uid -> MQClip, in the file's order.

    Raises:
        ValueError: a video, clip or label is damaged, a clip stands twice or there are none; the message names it.
    """
    name = "the annotations" if isinstance(source, dict) else str(source)
    document = source if isinstance(source, dict) else read_document(Path(source))
    clips = {}
    for where, video, clip, known in each_clip(document, name):
        try:
            if known["clip_uid"] in clips:
                raise ValueError("it stands twice in the file; remove one of the two")
            subset = field(video, "split", str, "the name of a split") if "split" in video else ""
            clips[known["clip_uid"]] = MQClip(**known, subset=subset, moments=tuple(_moments(clip)))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if not clips:
        raise ValueError(f"{name}: it lists no clips; download it again")
    return clips


def _moments(clip: dict) -> Iterator[Moment]:
    """Yield the primary labels of a clip, checked; absent, null or empty annotations have none."""
    annotations = [] if clip.get("annotations") is None else field(clip, "annotations", list, "a list of annotations")
    for number, annotation in enumerate(annotations):
        where = f"annotation {number}"
        try:
            if not isinstance(annotation, dict):
                raise ValueError(f"it is {annotation!r:.80}; expected annotator_uid and labels")
            for place, label in enumerate(field(annotation, "labels", list, "a list of labels")):
                where = f"annotation {number}, label {place}"
                if not isinstance(label, dict):
                    raise ValueError(f"it is {label!r:.80}; expected label, start_time, end_time and primary")
                if field(label, "primary", bool, "true or false"):
                    times = moment_of(label, "start_time", "end_time")
                    yield Moment(*times, field(label, "label", str, "the name of an activity"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def count_empty(clips: Iterable[MQClip]) -> int:
    """Return the number of moments of length 0, which no segment can overlap."""
    return sum(moment.stop == moment.start for clip in clips for moment in clip.moments)


def class_names(*splits: dict[str, MQClip]) -> list[str]:
    """Return the sorted names of all activities that occur; names that begin with a double quote come first."""
    return sorted({moment.label for clips in splits for clip in clips.values() for moment in clip.moments})


def clip_annotations(clips: dict[str, MQClip]) -> dict[str, dict]:
    """Return the clips as EgoMQ's clip_annotations.json; clips of train and val without a moment are left out."""
    def entry(clip: MQClip) -> dict:
        labels = [{"start_time": moment.start, "end_time": moment.stop, "label": moment.label, "primary": True}
                  for moment in clip.moments]
        return {"video_id": clip.video_uid, "clip_id": clip.clip_uid, "parent_start_sec": clip.start,
                "parent_end_sec": clip.stop, "subset": clip.subset, "annotations": labels}
    return {uid: entry(clip) for uid, clip in clips.items() if clip.moments or clip.subset not in ("train", "val")}
