"""EgoTaskQA's clips and questions: EgoTaskQA/qa_videos and EgoTaskQA/qa, in the formats of the real ones.

A clip shows one action or two. It is cut out of a video of Ego4D and named <video>|P1|<start>|<end>, with numbers of
frames at 24 a second, though the toy's videos have 10. Questions for training are about train videos. In the indirect
split, those that point at an action by its place among the others are kept out of training, but for one template.
videos.py cuts the clips.

Two actions of a clip are mostly on one thing: the fused state that a frozen model gives tells colours, things and verbs
of what it sees, but hardly which of two things the question means.

Of the real files' fields only the letters of the words (`question_char_encode`) are missing.
"""
import collections
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egokit.runs.files import write_text
from egokit.tasks.taskqa import annotations, vocabulary
from egokit.toy.schedule import FPS, SIZES, Action, ToyVideo, generator
from egokit.toy.words import COLOURS, NOUNS, VERBS, task_question

FOLDER = "EgoTaskQA"
REACHED = 0.13          # the share of the next action that a clip still shows: the hand arrives (motion.APPROACH)
MIXED = 0.2             # the share of actions to which the next one is added although it is on another thing
COMING = 0.25           # the share of clips that end as the hand reaches for the next thing
LABELS = ("descriptive", "predictive", "explanatory", "counterfactual", "world", "intent", "multi-agent",
          "object", "action", "state", "change", "query", "verify", "direct", "indirect")
LONGEST = 50            # words of `question_encode`, 0 where there is none


class TaskClip(NamedTuple):
    """A stretch of a video; `first` and `end` are numbers of its pictures, at FPS."""
    split: str                   # "train", "val" or "test"
    video: ToyVideo
    first: int
    end: int
    actions: tuple[Action, ...]  # that it shows from their start to their end
    coming: Action | None        # the next one, if it shows how the hand reaches for it

    @property
    def name(self) -> str:
        start, end = (round(number * annotations.FPS / FPS) for number in (self.first, self.end))
        return f"{self.video.uid}|P1|{start}|{end}"

    @property
    def path(self) -> str:
        """Where the clip's file lies under the data root."""
        return f"{FOLDER}/qa_videos/{self.name}.mp4"


def draw_clips(seed: int, videos: list[ToyVideo], size: str) -> list[TaskClip]:
    """Cut the videos of Ego4D into clips; no action is in two of them. Every third test video is for validation.

    Args:
        videos: all videos of the schedule.
        size: says how many clips a video has at most.
    """
    videos = [video for video in videos if video.corpus == "ego4d"]
    tests = [video.uid for video in videos if video.split == "test"]
    clips = []
    for video in videos:
        random = generator(seed, "task clips", video.uid)
        split = video.split if video.split == "train" else "test" if tests.index(video.uid) % 3 else "val"
        found = []
        for scene in video.scenes:
            left = list(scene.actions)
            while left:
                together = len({action.thing.noun for action in left[:2]}) == 1 or random.random() < MIXED
                count = 2 if together and len(left) > 1 else 1
                shown, left = left[:count], left[count:]
                coming = left[0] if left and random.random() < COMING else None
                # things change halfway between two actions, so a clip shows nothing of the action before it
                first = int(np.ceil((shown[0].start - shown[0].gap_before / 2) * FPS))
                stop = (coming.start + REACHED * (coming.stop - coming.start) if coming
                        else shown[-1].stop + shown[-1].gap_after / 2)
                found.append(TaskClip(split, video, first, int(stop * FPS), tuple(shown), coming))
        chosen = random.permutation(len(found))[:SIZES[size].task_clips[video.split]]
        clips += [found[i] for i in sorted(chosen.tolist())]
    return clips


def write_egotaskqa(root: Path, seed: int, clips: list[TaskClip]) -> dict[str, int]:
    """Write EgoTaskQA/qa/{direct,indirect}; return the number of questions of each of their files."""
    asked: dict[str, list[dict]] = {split: [] for split in annotations.SPLITS}
    yes = {split: _as_often(generator(seed, "task answers", split)) for split in asked}
    for clip in clips:
        asked[clip.split] += ask(seed, clip, yes[clip.split])
    _spoil(asked["val"])
    random, counts = generator(seed, "task splits"), {}
    indirect = [row for split in ("val", "test") for row in asked[split] if row["reference"] == "indirect"]
    half = set(random.permutation(len(indirect))[::2].tolist())
    of_split = {"direct": asked, "indirect": {
        "train": [row for row in asked["train"] if row["reference"] == "direct"
                  or row["program"].startswith("query([hoi], iterate_until(")],
        "val": [row for i, row in enumerate(indirect) if i in half],
        "test": [row for i, row in enumerate(indirect) if i not in half]}}
    for name, files in of_split.items():
        folder = root / FOLDER / "qa" / name
        answers = vocabulary.build([row["answer"] for row in files["train"]])
        vocabulary.write(folder / vocabulary.FILE, answers)
        write_text(folder / "all_reasoning_types.txt", "".join(f"{label}\n" for label in LABELS))
        words = collections.Counter(word for row in files["train"] for word in _words(row["question"]))
        numbers = {word: number for number, word in enumerate(words, 2)}
        for split, rows in files.items():
            encoded = vocabulary.encode([row["answer"] for row in rows], answers, as_written=split != "train")
            document = [row | {"answer_encode": answer, "question_id": number, "question_encode": (
                [numbers.get(word, 1) for word in _words(row["question"])] + [0] * LONGEST)[:LONGEST]}
                for number, (row, answer) in enumerate(zip(rows, encoded, strict=True))]
            write_text(folder / annotations.file_of(split), json.dumps(document))
            counts[f"taskqa_{name}_{split}"] = len(rows)
    return counts


def ask(seed: int, clip: TaskClip, yes: Iterator[bool]) -> list[dict]:
    """Return the questions about a clip, with the fields that don't depend on a split's vocabulary.

    Args:
        yes: says whether the answer of the next binary question is yes.
    """
    random = generator(seed, "task questions", clip.name)
    meanings = [(action.verb, action.thing.noun, action.thing.colour) for action in clip.actions]
    verbs, nouns, _ = zip(*meanings, strict=True)
    rows = []
    for meaning in meanings:
        kinds = ["action"] * (nouns.count(meaning[1]) == 1) + ["object", "state"] * (verbs.count(meaning[0]) == 1)
        rows += [_row(kind, meaning) for kind in kinds] + [_yes_or_no(random, meaning, meanings, yes)]
    if len(meanings) > 1:
        rows += [_row(kind, meanings[0], first=True) for kind in ("action", "object", "state")]
        rows.append(_yes_or_no(random, meanings[0], meanings, yes, first=True))
    if clip.coming:
        rows.append(_row("next", (clip.coming.verb, clip.coming.thing.noun, clip.coming.thing.colour)))
    return [row | {"interval": clip.name, "video_id": clip.video.uid} for row in rows]


def _as_often(random: np.random.Generator) -> Iterator[bool]:
    """Yield True and False in a random order, of every two one."""
    while True:
        yield from random.permutation([True, False]).tolist()


def _yes_or_no(random: np.random.Generator, meaning: tuple[int, int, int], done: list[tuple], yes: Iterator[bool],
               first: bool = False) -> dict:
    """Ask whether an action is done, or another one, which is not done.

    Half of the others share nothing with it; each of the rest has another verb, its opposite, another thing or colour.
    """
    verb, noun, colour = meaning
    other_verb = int(verb + random.integers(2, len(VERBS))) % len(VERBS)
    other_noun, other_colour = (int(value + random.integers(1, len(names))) % len(names)
                                for value, names in ((noun, NOUNS), (colour, COLOURS)))
    others = [(other_verb, other_noun, other_colour)] * 4 + [
        (verb ^ 1, noun, colour), (other_verb, noun, colour), (verb, other_noun, colour), (verb, noun, other_colour)]
    others = [other for other in others if other not in done]
    other = others[int(random.integers(len(others)))]
    return _row("binary", meaning, "yes", first) if next(yes) else _row("binary", other, "no", first)


def _row(kind: str, meaning: tuple[int, int, int], answer: str = "", first: bool = False) -> dict:
    """Return a question's fields; `answer` is given for a binary one."""
    verb, noun, colour = meaning
    answer = answer or {"action": VERBS[verb], "state": COLOURS[colour]}.get(kind, NOUNS[noun])
    semantic = {"binary": "action", "next": "object"}.get(kind, kind)
    labels = {"type": ["predictive" if kind == "next" else "descriptive"], "category": ["world"], "semantic": semantic,
              "structural": "verify" if kind == "binary" else "query", "reference": "indirect" if first else "direct"}
    # of indirect questions, those of this program are in the indirect split's training, too
    wanted = "hoi" if kind == "action" and first else kind
    program = f"{labels['structural']}([{wanted}], {'iterate_until(video, first)' if first else 'filter(video)'})"
    return {"question": task_question(kind, verb, noun, colour, first), "answer": answer, **labels, "program": program,
            "step": program.count("("), "reasoning_type": "$".join(
                [*labels["type"], *labels["category"], semantic, labels["structural"], labels["reference"]])}


def _spoil(rows: list[dict]) -> None:
    """Give two questions of validation answers that are not in the vocabulary: one with a capital, one never seen."""
    for place, wrong in ((0, str.capitalize), (1, "not the {}".format)):
        rows[place]["answer"] = wrong(rows[place]["answer"])


def _words(question: str) -> list[str]:
    return question.rstrip("?").split()
