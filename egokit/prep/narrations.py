"""Narrations as questions: egoclip.csv becomes nlq_narrations.json, in the format of nlq_*.json, to pre-train on.

Each video is cut into clips, and each narration becomes a question of the clip in which its time lies.

Source: NaQ (Ramakrishnan et al., 2023, arXiv 2301.00746), with EgoClip's own windows as answers.
"""
import collections
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from egokit.config.names import LONGEST
from egokit.config.schema import Config
from egokit.data.annotation_json import read_moments
from egokit.data.egoclip_table import COLUMNS, EgoClipTable
from egokit.data.site_checks import EGOCLIP, missing_file
from egokit.runs.files import atomic_path
from egokit.tasks.moments.nlq_annotations import NARRATIONS

EVALUATED = ("nlq_val.json", "nlq_test_unannotated.json")  # their videos are left out
TAGS = re.compile(r"#\s*(unsure\b|C\b(\s+C\b)?|O\b)", re.IGNORECASE)
SHORT_REST = 1 / 8  # of a clip: a shorter rest of a video joins the clip before it
TEMPLATE = "narration"
KINDS = ("malformed", "no_length", "in_evaluated_videos", "in_videos_not_taken", "without_duration", "outside",
         "across_clips", "vague", "repeated", "thinned", "questions")  # what becomes of a row


def clean(text: str) -> str:
    """Return a narration without its tags (#C C, #O, #unsure) and the marks around it; "" if it says nothing."""
    text = " ".join(TAGS.sub(" ", text).split()).strip(" .,;:?!\"'")
    return text if any(map(str.isalnum, text)) else ""


def clip_name(video: str, number: int) -> str:
    """Return the clip_uid of a video's clip; a video that can't be part of a file's name is named by its hash."""
    name = f"narrated-{video}-{number}"
    if "/" in video or len(name.encode()) > LONGEST:
        return f"narrated-{hashlib.sha256(video.encode()).hexdigest()[:32]}-{number}"
    return name


def read_durations(path: Path) -> tuple[dict[str, float], int]:
    """Read what EgoClipTable does not keep.

    Returns:
        (The seconds that most rows of a video say it lasts, by video; the number of rows whose windows have no length,
        which count as malformed in the table.)
    """
    said: dict[tuple[str, str], int] = collections.Counter()
    no_length = 0
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        next(file, None)
        for line in file:
            fields = line.rstrip("\n").split("\t")
            if len(fields) == len(COLUMNS):
                said[fields[1], fields[2]] += 1
                no_length += _number(fields[6]) == _number(fields[7])
    durations: dict[str, tuple[int, float]] = {}
    for (video, text), rows in said.items():
        if 0 < (seconds := _number(text)) < np.inf and rows > durations.get(video, (0, 0.0))[0]:
            durations[video] = rows, seconds
    return {video: seconds for video, (_, seconds) in durations.items()}, no_length


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


class Video:
    """The narrations of one video, as the clips and questions that they become.

    Attributes:
        counts: how many narrations became questions, or why not, by KINDS.
        clips: a clip's number -> its questions as they are in the file, in the order of time.
    """

    def __init__(self, uid: str, seconds: float, clip_seconds: float, every: int):
        self.uid, self.seconds, self.length, self.every = uid, seconds, clip_seconds, every
        self.count = max(1, int(seconds / clip_seconds + 1 - SHORT_REST))
        self.counts: dict[str, int] = collections.Counter()
        self.clips: dict[int, list[dict]] = {}
        self.seen: set[tuple] = set()

    def bounds(self, number: int) -> tuple[float, float]:
        """Return a clip's start and stop in seconds of the video; the last one has the rest."""
        last = number == self.count - 1
        return number * self.length, self.seconds if last else (number + 1) * self.length

    def add(self, text: str, start: float, stop: float) -> None:
        """Take one narration; start and stop are seconds of the video."""
        self.counts[self._kind(text, start, stop)] += 1

    def _kind(self, text: str, start: float, stop: float) -> str:
        """Return what becomes of a narration, which is kept if it becomes a question."""
        start, stop = max(start, 0.0), min(stop, self.seconds)
        if start >= self.seconds or stop <= 0:
            return "outside"
        number = min(int(start / self.length), self.count - 1)
        first, last = self.bounds(number)
        times = round(start - first, 4), round(stop - first, 4)
        query = clean(text)
        if stop > last:
            return "across_clips"
        if times[0] >= times[1]:
            return "no_length"
        if not query:
            return "vague"
        if (query, start, stop) in self.seen:
            return "repeated"
        self.seen.add((query, start, stop))
        if len(self.seen) % self.every != 1 % self.every:
            return "thinned"
        self.clips.setdefault(number, []).append({"clip_start_sec": times[0], "clip_end_sec": times[1],
                                                  "query": query, "template": TEMPLATE})
        return "questions"

    def entry(self) -> dict:
        """Return the video as it is in the file."""
        clips = []
        for number, queries in sorted(self.clips.items()):
            start, stop = self.bounds(number)
            clips.append({"clip_uid": clip_name(self.uid, number), "video_start_sec": start, "video_end_sec": stop,
                          "annotations": [{"annotation_uid": TEMPLATE, "language_queries": queries}]})
        return {"video_uid": self.uid, "split": "train", "clips": clips}


def evaluated_videos(root: Path) -> set[str]:
    """Return the videos of EgoNLQ's validation and test clips; say which lists are not there."""
    paths = [root / name for name in EVALUATED]
    for path in paths:
        if not path.exists():
            print(f"{path.name}: not under {root}, so no video is left out for its sake", flush=True)
    return {clip["video_uid"] for path in paths if path.exists() for clip in read_moments(path)}


def nlq_narrations(config: Config, clip_seconds: float = 480.0, every: int = 1, videos: int = 0) -> dict[str, int]:
    """Write ROOT/nlq_narrations.json of ROOT/egoclip.csv; a video at a time is in memory.

    Args:
        clip_seconds: length of the clips.
        every: one of so many narrations is kept.
        videos: how many videos are taken, evenly over the table; 0: all.

    Returns:
        Counts of rows: "rows", and what became of them, by KINDS, which add up to it; then "evaluated_videos" that were
        left out, "videos" and "clips" in the file.

    Raises:
        FileNotFoundError: there is no egoclip.csv.
        ValueError: it is no EgoClip table, a list of the evaluation is damaged, or no question is left; an earlier file
            stays.
    """
    root = Path(config.site.root)
    path = root / "egoclip.csv"
    if not path.exists():
        raise missing_file(path, {path.name: EGOCLIP}, config)
    table, evaluated = EgoClipTable(path, warn=False), evaluated_videos(root)
    durations, no_length = read_durations(path)
    counts = collections.Counter(rows=len(table) + table.malformed, malformed=table.malformed - no_length,
                                 no_length=no_length)
    order = np.lexsort([table.columns[name] for name in ("clip_end", "clip_start", "video_uid")])
    ends = np.cumsum(np.bincount(table.columns["video_uid"], minlength=len(table.videos)))
    usable = [number for number, uid in enumerate(table.videos) if uid in durations and uid not in evaluated]
    picks = np.linspace(0, len(usable), videos, endpoint=False).astype(int) if 0 < videos < len(usable) else range(
        len(usable))
    taken = {usable[pick] for pick in picks}
    with atomic_path(root / NARRATIONS) as temporary, open(temporary, "w") as file:
        file.write('{"version": "1.0", "description": "EgoClip\'s narrations as questions", "videos": [')
        for number, uid in enumerate(table.videos):
            rows = order[ends[number - 1] if number else 0:ends[number]]
            if number not in taken:
                counts["in_evaluated_videos" if uid in evaluated else "in_videos_not_taken" if uid in durations
                       else "without_duration"] += len(rows)
                counts["evaluated_videos"] += uid in evaluated
                continue
            video = Video(uid, durations[uid], clip_seconds, every)
            for text, *times in zip(table.texts.take(pa.array(rows)).to_pylist(), *(
                    table.columns[name][rows].tolist() for name in ("clip_start", "clip_end")), strict=True):
                video.add(text, *times)
            counts.update(video.counts)
            if video.clips:
                file.write((",\n" if counts["videos"] else "\n") + json.dumps(video.entry()))
                counts.update(videos=1, clips=len(video.clips))
        file.write("]}\n")
        if not counts["questions"]:
            raise ValueError(f"{path}: none of its {counts['rows']:,} rows becomes a question: {dict(counts)}; is this "
                             "the table of videos that are not evaluated?")
    return {key: counts[key] for key in ("rows", *KINDS, "evaluated_videos", "videos", "clips")}
