"""EgoNLQ's annotations: nlq_*.json -> questions, and the original's conversion in two steps.

Step 1 writes times as numbers of features, 1.875 a second, rounded down; step 2 turns these back into seconds. The
labels that the original trains on are cut to 1/1.875 s in this way (`grid_start`, `grid_stop`); scores use exact times.

Source: Ego4D's episodic-memory, prepare_ego4d_dataset.py (step 1) and utils/data_gen.py (step 2), VSLNet.
"""
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from egokit.data.annotation_json import each_clip, field, moment_of, read_document

GRID = 30 / 16  # features of a second
NARRATIONS = "nlq_narrations.json"  # what `egokit prep nlq-narrations` writes: a list of clips like nlq_train.json


class Question(NamedTuple):
    """One question about a clip; the test split's have no times (None)."""
    clip_uid: str
    video_uid: str | None
    annotation_uid: str
    query_idx: int          # its place in the annotation's list; skipped ones count
    query: str              # cleaned
    template: str | None    # the kind of question, if the file names it
    clip_start: float | None  # the clip's stretch of its video, in seconds
    clip_stop: float | None
    start: float | None     # the answer, in seconds of the clip: exact_times
    stop: float | None
    grid_start: float       # the answer as step 2 cuts it; 0 without times
    grid_stop: float
    duration: float | None  # of the clip, cut in the same way; None if the file names no stretch

    @property
    def key(self) -> tuple[str, str, int]:
        """What names a question in a submission."""
        return self.clip_uid, self.annotation_uid, self.query_idx


class NLQClip(NamedTuple):
    """A clip and its questions."""
    clip_uid: str
    video_uid: str | None
    start: float | None  # seconds of the video
    stop: float | None
    questions: tuple[Question, ...]
    skipped: int         # questions whose text is missing, null or empty

    @property
    def features(self) -> int | None:
        """The clip's number of features, by step 1."""
        return None if self.start is None else int(GRID * (self.stop - self.start))


def clean(query: str) -> str:
    """Return a question in the original's form: lower case, with one question mark."""
    return query.strip(" ").strip("?").lower() + "?"


def typed_in(clip_uid: str, video_uid: str, query: str, start: float, stop: float) -> Question:
    """Return a question of nobody's annotations about a clip from start to stop, in seconds of its video."""
    clip = NLQClip(clip_uid, video_uid, start, stop, (), 0)
    return Question(clip_uid, video_uid, "", 0, clean(query), None, start, stop, None, None,
                    *_on_grid(None, None, clip.features))


def read_clips(source: str | Path | dict, extents: bool = True) -> list[NLQClip]:
    """Read the clips and questions of a nlq_*.json.

    Questions without a text are skipped and counted; those after them keep their index.

    Args:
        source: the file, or its content.
        extents: whether each clip must name its video and its stretch of it, which scores don't need.

    Raises:
        ValueError: a video, clip or question is damaged, a question stands twice, or there are no clips; the message
            names it. A question has no times only in a video of the test split.
    """
    name = "the annotations" if isinstance(source, dict) else str(source)
    document = source if isinstance(source, dict) else read_document(Path(source))
    clips, seen = [], set()
    for where, video, clip, known in each_clip(document, name, extents):
        bare = NLQClip(**known, questions=(), skipped=0)
        try:
            asked = list(_questions(clip, bare, video.get("split") == "test"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        questions = tuple(question for question in asked if question)
        for question in questions:
            if question.key in seen:
                raise ValueError(f"{where}: annotation {question.annotation_uid} stands twice in the file; "
                                 "remove one of the two")
            seen.add(question.key)
        clips.append(bare._replace(questions=questions, skipped=len(asked) - len(questions)))
    if not clips:
        raise ValueError(f"{name}: it lists no clips; download it again")
    return clips


def read_questions(source: str | Path | dict, extents: bool = True) -> list[Question]:
    """Return the questions of all clips of a nlq_*.json, in order; see `read_clips`."""
    return [question for clip in read_clips(source, extents) for question in clip.questions]


def _questions(clip: dict, known: NLQClip, is_test: bool) -> Iterator[Question | None]:
    """Yield every question of a clip, checked; None for one without a text."""
    annotations = [] if clip.get("annotations") is None else field(clip, "annotations", list, "a list of annotations")
    for number, annotation in enumerate(annotations):
        where = f"annotation {number}"
        try:
            if not isinstance(annotation, dict):
                raise ValueError(f"it is {annotation!r:.80}; expected annotation_uid and language_queries")
            queries = field(annotation, "language_queries", list, "a list of questions")
            for place, entry in enumerate(queries):
                where = f"annotation {number}, question {place}"
                if not isinstance(entry, dict):
                    raise ValueError(f"it is {entry!r:.80}; expected query, clip_start_sec and clip_end_sec")
                if entry.get("query") in (None, ""):
                    yield None
                    continue
                query = clean(field(entry, "query", str, "a question"))
                uid = field(annotation, "annotation_uid", str, "the annotation's name")
                times = None, None
                if not is_test or "clip_start_sec" in entry or "clip_end_sec" in entry:
                    times = moment_of(entry, "clip_start_sec", "clip_end_sec")
                template = entry.get("template")
                yield Question(known.clip_uid, known.video_uid, uid, place, query,
                               template if isinstance(template, str) else None, known.start, known.stop, *times,
                               *_on_grid(*times, known.features))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def _on_grid(start: float | None, stop: float | None, features: int | None) -> tuple[float, float, float | None]:
    """Return an answer as step 2 gives it, and the clip's duration; times that are None count as 0."""
    start, stop = (int(GRID * (time or 0)) / GRID for time in (start, stop))
    if features is None:
        return start, stop, None
    return start, min(stop, features / GRID), features / GRID


def count_empty(questions: Iterable[Question], cut: bool = False) -> int:
    """Return the number of answers of length 0, which no prediction can overlap.

    Args:
        cut: count those of length 0 once step 2 has cut them; the original trains on these.
    """
    return sum(question.start is not None and (question.grid_start >= question.grid_stop if cut else
                                               question.start == question.stop) for question in questions)


def converted(clips: Iterable[NLQClip]) -> dict[str, dict]:
    """Return what step 1 writes: for each clip its features, and its questions with times in features."""
    entries = {}
    for clip in clips:
        exact = [[question.start or 0.0, question.stop or 0.0] for question in clip.questions]
        entries[clip.clip_uid] = {
            "fps": GRID, "num_frames": clip.features,
            "timestamps": [[int(GRID * time) for time in times] for times in exact], "exact_times": exact,
            "sentences": [question.query for question in clip.questions],
            "annotation_uids": [question.annotation_uid for question in clip.questions],
            "query_idx": [question.query_idx for question in clip.questions]}
    return entries


def records(questions: Iterable[Question], first: int = 0) -> list[dict]:
    """Return what step 2 makes of questions: times in seconds, on the grid and exact.

    Args:
        first: the sample_id of the first one; the original counts through train, val and test.
    """
    return [{"sample_id": number, "vid": question.clip_uid, "s_time": question.grid_start, "e_time": question.grid_stop,
             "exact_s_time": question.start or 0.0, "exact_e_time": question.stop or 0.0,
             "duration": question.duration, "query": question.query, "annotation_uid": question.annotation_uid,
             "query_idx": question.query_idx} for number, question in enumerate(questions, first)]
