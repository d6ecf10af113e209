"""JSON annotation files, read and checked: egomcq.json, moments_*.json, prep's manifest.

A damaged file raises ValueError, which names the file, the question or clip, and what was expected there.
"""
import math
import re
from collections.abc import Callable
from pathlib import Path

from egokit.config.access import file_exists
from egokit.config.json_file import parse_json
from egokit.config.names import check_name, check_path

CHOICES = 5
DIGITS = 100  # of a question's number
SPLITS = ("train", "val", "test_unannotated")  # of moments_*.json


def read_document(path: Path, fix: str = "download it again"):
    """Read a JSON file in UTF-8, with or without a byte order mark, or raise what `read_csv` raises.

    Args:
        fix: what to do about a damaged file.
    """
    if not file_exists(path):
        raise FileNotFoundError(f"{path} is missing; docs/data.md says where it comes from")
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON in UTF-8 text ({error}); the file may be cut off: {fix}") from None


def _field(owner: dict, name: str, kind: type, expected: str):
    """Return a field of the right type, or raise ValueError that says what was expected."""
    value = owner.get(name)
    if not isinstance(value, kind) or (kind is str and any("\ud800" <= character < "\ue000" for character in value)):
        raise ValueError(f"{name!r} is {repr(value)[:80] if name in owner else 'missing'}; expected {expected}")
    return value


def _name(owner: dict, name: str, expected: str, check: Callable[[str], str] = check_name) -> str:
    """Return a field that names a file or folder, or raise ValueError that says what was expected."""
    value = _field(owner, name, str, expected)
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{name!r} is {value!r:.80}; {error}") from None


def _check_choice(owner: dict, name: str, allowed: tuple) -> None:
    """Raise ValueError if a field, as text, is not among the allowed values."""
    if str(owner.get(name)) not in map(str, allowed):
        raise ValueError(f"{name!r} is {owner.get(name)!r:.80}; expected one of {', '.join(map(str, allowed))}")


def _times(clip: dict, start: str, stop: str) -> tuple[float, float]:
    """Return a clip's start and stop in seconds; it may begin a moment before its video."""
    times = []
    for name in (start, stop):
        try:
            value = float(_field(clip, name, (int, float, str), "seconds"))
        except (ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{name!r} is {clip.get(name)!r:.80}; expected seconds")
        times.append(value)
    if times[1] < max(times[0], 0.0):
        raise ValueError(f"it ends ({stop} {times[1]:g} s) before it or its video begins ({start} {times[0]:g} s)")
    return times[0], times[1]


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
            _field(_field(question, "query", dict, "a clip's fields"), "clip_text", str, "its narration")
            choices = _field(question, "choices", dict, f"{CHOICES} clips")
            for number in map(str, range(CHOICES)):
                where = f"{path}, question {key!r}, choice {number}"
                clip = _field(choices, number, dict, "a clip's fields")
                _name(clip, "video_uid", "the name of a video", check_path)
                _times(clip, "clip_start", "clip_end")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return [questions[key] for key in sorted(questions, key=int)]


def read_moments(path: Path) -> list[dict]:
    """Read the clips of a moments_*.json, or of a file of the same form.

    A video with a duration_sec and without clips is one clip named after it: ego4d.json lists all videos in this way.

    Returns:
        A dict for each clip: clip_uid, video_uid, and start and stop in seconds of the video.

    Raises:
        ValueError: a video or clip is damaged, or there are no clips; the message names it.
    """
    document = read_document(path)
    clips, where = [], str(path)
    try:
        if not isinstance(document, dict):
            raise ValueError("expected {\"videos\": [{\"video_uid\": …, \"clips\": […]}, …]}, "
                             f"found {document!r:.80}")
        for number, video in enumerate(_field(document, "videos", list, "a list of videos")):
            where = f"{path}, video {number}"
            if not isinstance(video, dict):
                raise ValueError(f"expected video_uid and clips, found {video!r:.80}")
            uid = _name(video, "video_uid", "the name of a video", check_path)
            if "clips" not in video and "duration_sec" in video:
                whole = {"clip_uid": uid, "video_start_sec": 0, "video_end_sec": video["duration_sec"]}
                video = {"clips": [whole]}
            for clip in _field(video, "clips", list, "a list of clips"):
                where = f"{path}, video {uid}, clip {clip.get('clip_uid') if isinstance(clip, dict) else clip!r:.80}"
                if not isinstance(clip, dict):
                    raise ValueError("expected clip_uid, video_start_sec and video_end_sec")
                start, stop = _times(clip, "video_start_sec", "video_end_sec")
                clips.append({"clip_uid": _name(clip, "clip_uid", "its name"), "video_uid": uid,
                              "start": start, "stop": stop})
        if not clips:
            where = str(path)
            raise ValueError("it lists no clips; download it again, or name another list in task.feature_clips")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
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
