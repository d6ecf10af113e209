"""JSON annotation files, read and checked: egomcq.json, moments_*.json, prep's manifest.

A damaged file raises ValueError, which names the file, the question or clip, and what was expected there.
"""
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from egokit.config.access import file_exists
from egokit.config.build import ConfigError
from egokit.config.json_file import HUGE, parse_json
from egokit.config.names import check_name, check_path

CHOICES = 5
DIGITS = 100  # of a question's number
SPLITS = ("train", "val", "test_unannotated")  # of moments_*.json and nlq_*.json


def read_document(path: Path, fix: str = "download it again", most: int | None = None,
                  hook: Callable[[dict], object] | None = None):
    """Read a JSON file in UTF-8, with or without a byte order mark, or raise what `read_csv` raises.

    Args:
        fix: what to do about a damaged file.
        most, hook: as of `parse_json`.
    """
    if not file_exists(path):
        raise FileNotFoundError(f"{path} is missing; docs/data.md says where it comes from")
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"), most, hook)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON in UTF-8 text ({error}); the file may be cut off: {fix}") from None


def field(owner: dict, name: str, kind: type, expected: str):
    """Return a field of the right type, or raise ValueError that says what was expected."""
    value = owner.get(name)
    if not isinstance(value, kind) or (kind is str and any("\ud800" <= character < "\ue000" for character in value)):
        raise ValueError(f"{name!r} is {repr(value)[:80] if name in owner else 'missing'}; expected {expected}")
    return value


def name_of(owner: dict, name: str, expected: str, check: Callable[[str], str] = check_name) -> str:
    """Return a field that names a file or folder, or raise ValueError that says what was expected."""
    value = field(owner, name, str, expected)
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{name!r} is {value!r:.80}; {error}") from None


def _check_choice(owner: dict, name: str, allowed: tuple) -> None:
    """Raise ValueError if a field, as text, is not among the allowed values."""
    if str(owner.get(name)) not in map(str, allowed):
        raise ValueError(f"{name!r} is {owner.get(name)!r:.80}; expected one of {', '.join(map(str, allowed))}")


def seconds_of(owner: dict, name: str) -> float:
    """Return a field that is a number of seconds with which one can calculate, or raise ValueError."""
    try:
        value = float(field(owner, name, (int, float, str), "seconds"))
    except (ValueError, OverflowError):
        value = math.nan
    if not abs(value) < HUGE:
        raise ValueError(f"{name!r} is {owner.get(name)!r:.80}; expected seconds")
    return value


def times_of(clip: dict, start: str, stop: str) -> tuple[float, float]:
    """Return a clip's start and stop in seconds; it may begin a moment before its video."""
    times = seconds_of(clip, start), seconds_of(clip, stop)
    if times[1] < max(times[0], 0.0):
        raise ValueError(f"it ends ({stop} {times[1]:g} s) before it or its video begins ({start} {times[0]:g} s)")
    return times


def moment_of(owner: dict, start: str, stop: str) -> tuple[float, float]:
    """Return the start and stop of a moment, in seconds of its clip; it may be of length 0."""
    times = seconds_of(owner, start), seconds_of(owner, stop)
    if times[1] < times[0]:
        raise ValueError(f"it ends ({stop} {times[1]:g} s) before it starts ({start} {times[0]:g} s); "
                         "correct or remove it")
    return times


def read_egomcq(path: Path) -> list[dict]:
    """Read egomcq.json.

    Returns:
        The questions in the order of their numbers, as they are in the file: `query` and `choices` (clips), `answer`
        (0 to 4) and `types` (1: inter-video, 2: intra-video).

    Raises:
        ValueError: a question is damaged; the message names it.
    """
    questions = read_document(path)
    if not isinstance(questions, dict) or not questions:
        raise ValueError(f"{path}: expected questions {{\"0\": {{\"answer\": …, \"query\": …, \"choices\": …, "
                         f"\"types\": …}}, …}}, found {questions!r:.80}")
    for key, question in questions.items():
        where = f"{path}, question {key!r}"
        try:
            if not (key.isdecimal() and len(key) <= DIGITS) or not isinstance(question, dict):
                raise ValueError(f"expected a number and the question's fields, found {question!r:.80}")
            _check_choice(question, "answer", tuple(range(CHOICES)))
            _check_choice(question, "types", (1, 2))
            field(field(question, "query", dict, "a clip's fields"), "clip_text", str, "its narration")
            choices = field(question, "choices", dict, f"{CHOICES} clips")
            for number in map(str, range(CHOICES)):
                where = f"{path}, question {key!r}, choice {number}"
                clip = field(choices, number, dict, "a clip's fields")
                name_of(clip, "video_uid", "the name of a video", check_path)
                times_of(clip, "clip_start", "clip_end")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return [questions[key] for key in sorted(questions, key=int)]


def list_names(patterns: str) -> dict[str, str]:
    """Return the name of the file that lists each split's clips, by task.feature_clips.

    Raises:
        ConfigError: there is none, or two are of one split.
    """
    names: dict[str, str] = {}
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        for split in SPLITS if "*" in pattern else (Path(pattern).stem,):
            name = pattern.replace("*", split)
            if names.setdefault(split, name) != name:
                raise ConfigError(f"task.feature_clips is {patterns!r:.80}: {names[split]} and {name} both list the "
                                  f"clips of split {split!r}; expected one list a split")
    if not names:
        raise ConfigError(f"task.feature_clips is {patterns!r:.80}: expected files that list clips, such as nlq_*.json")
    return names


def list_of(split: str, patterns: str) -> str:
    """Return the name of the file that lists a split's clips; `patterns` is task.feature_clips.

    Raises:
        ConfigError: it names no such file.
    """
    known = list_names(patterns)
    if split not in known:
        raise ConfigError(f"task.feature_clips is {patterns!r:.80}, which names the lists {', '.join(known)} and none "
                          f"of split {split!r}: expected a name with * for the split, such as moments_*.json; without "
                          "the test split's list, add task.predict_test=false")
    return known[split]


def choose_lists(names: str, patterns: str) -> list[str]:
    """Return the splits whose lists are trained on, by task.train_lists; `patterns` is task.feature_clips.

    Raises:
        ConfigError: task.feature_clips names no such list.
    """
    known, chosen = list_names(patterns), [name.strip() for name in names.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"task.train_lists: {unknown[0]!r:.80} is none of the lists of task.feature_clips, "
                          f"{patterns!r:.80}: expected {', '.join(known)}, or several with commas between them")
    return list(dict.fromkeys(chosen))


def each_clip(document, source: str, extents: bool = True) -> Iterator[tuple[str, dict, dict, dict]]:
    """Yield every clip of a moments_*.json or nlq_*.json, checked as far as both have the same form.

    A video with a duration_sec and without clips is one clip named after it: ego4d.json lists all videos in this way.

    Args:
        document: the file's content.
        source: the file's name, for messages.
        extents: whether each clip must say its video and its stretch of it. Else they may be absent, and are None.

    Yields:
        The place for messages, the video and the clip as they are in the file, and a dict of clip_uid, video_uid, and
        start and stop in seconds of the video.

    Raises:
        ValueError: a video or clip is damaged; the message names it.
    """
    where = source
    try:
        if not isinstance(document, dict):
            raise ValueError("expected {\"videos\": [{\"video_uid\": …, \"clips\": […]}, …]}, "
                             f"found {document!r:.80}")
        for number, video in enumerate(field(document, "videos", list, "a list of videos")):
            where = f"{source}, video {number}"
            if not isinstance(video, dict):
                raise ValueError(f"expected video_uid and clips, found {video!r:.80}")
            uid = None
            if extents or "video_uid" in video:
                uid = name_of(video, "video_uid", "the name of a video", check_path)
            if "clips" not in video and "duration_sec" in video:
                whole = {"clip_uid": uid, "video_start_sec": 0, "video_end_sec": video["duration_sec"]}
                video = {**video, "clips": [whole]}
            for clip in field(video, "clips", list, "a list of clips"):
                where = (f"{source}, video {number if uid is None else uid}, "
                         f"clip {clip.get('clip_uid') if isinstance(clip, dict) else clip!r:.80}")
                if not isinstance(clip, dict):
                    raise ValueError("expected clip_uid, video_start_sec and video_end_sec")
                start = stop = None
                if extents or "video_start_sec" in clip or "video_end_sec" in clip:
                    start, stop = times_of(clip, "video_start_sec", "video_end_sec")
                yield where, video, clip, {"clip_uid": name_of(clip, "clip_uid", "its name"), "video_uid": uid,
                                           "start": start, "stop": stop}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_moments(path: Path) -> list[dict]:
    """Read the clips of a moments_*.json, or of a file of the same form.

    Returns:
        A dict for each clip: clip_uid, video_uid, and start and stop in seconds of the video.

    Raises:
        ValueError: a video or clip is damaged, or there are no clips; the message names it.
    """
    clips = [clip for _, _, _, clip in each_clip(read_document(path), str(path))]
    if not clips:
        raise ValueError(f"{path}: it lists no clips; download it again, or name another list in task.feature_clips")
    return clips


def read_manifest(path: Path) -> list[dict]:
    """Read prep's prepared.json: a dict for each video, with at least its "status".

    A video that is no file's name counts as one that failed.
    """
    document = read_document(path)
    lines = document.get("lines") if isinstance(document, dict) else None
    if not isinstance(lines, list) or not all(isinstance(line, dict) and "status" in line for line in lines):
        raise ValueError(f"{path}: expected what 'egokit prep' writes, {{\"lines\": [{{\"uid\": …, \"status\": …}}, "
                         "…], …}; run it again")
    for number, line in enumerate(lines):
        if line["status"] == "ok" and not re.fullmatch(r"[^./\0][^/\0]*", str(line.get("uid")), re.DOTALL):
            reason = f"{path}, line {number}: 'uid' is {line['uid']!r:.80}, expected the name of a video"
            lines[number] = {"status": "failed", "reason": reason}
    return lines
