"""EgoTaskQA's clips and questions: EgoTaskQA/qa_videos and EgoTaskQA/qa, in the formats of the real ones.

A clip shows a few actions and ends as the hand reaches for the next thing. It is cut out of a video of Ego4D and named
<video>|P1|<start>|<end>, with numbers of frames at 24 a second, though the toy's videos have 10. Questions for training
are about train videos. In the indirect split, those that point at an action by its place among the others are kept out
of training, but for one template. videos.py cuts the clips.

Of the real files' fields only the letters of the words (`question_char_encode`) are missing.
"""
import collections
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from egokit.runs.files import write_text
from egokit.tasks.taskqa import annotations, vocabulary
from egokit.toy.schedule import FPS, SIZES, Action, ToyVideo, generator
from egokit.toy.words import COLOURS, NOUNS, VERBS, task_question

FOLDER = "EgoTaskQA"
REACHED = 0.13          # the share of the next action that a clip still shows: the hand arrives (motion.APPROACH)
ACTIONS = (2, 4)        # fewest and most that a clip shows
SECONDS = 8.0           # longest clip
QUESTIONS_A_CLIP = 8    # at most, of those that could be asked
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
            while len(left) >= ACTIONS[0]:
                count = int(random.integers(ACTIONS[0], ACTIONS[1] + 1))
                shown, left = left[:count], left[count:]
                # things change halfway between two actions, so a clip shows nothing of the action before it
                first = int(np.ceil((shown[0].start - shown[0].gap_before / 2) * FPS))
                stop = (left[0].start + REACHED * (left[0].stop - left[0].start) if left
                        else shown[-1].stop + shown[-1].gap_after / 2)
                if ACTIONS[0] <= len(shown) and int(stop * FPS) - first <= SECONDS * FPS:
                    found.append(TaskClip(split, video, first, int(stop * FPS), tuple(shown), (left or [None])[0]))
        chosen = random.permutation(len(found))[:SIZES[size].task_clips[video.split]]
        clips += [found[i] for i in sorted(chosen.tolist())]
    return clips


def write_egotaskqa(root: Path, seed: int, clips: list[TaskClip]) -> dict[str, int]:
    """Write EgoTaskQA/qa/{direct,indirect}; return the number of questions of each of their files."""
    asked: dict[str, list[dict]] = {split: [] for split in annotations.SPLITS}
    for clip in clips:
        asked[clip.split] += ask(seed, clip)
    _spoil(asked["val"])
    random, counts = generator(seed, "task splits"), {}
    indirect = [row for split in ("val", "test") for row in asked[split] if row["reference"] == "indirect"]
    half = set(random.permutation(len(indirect))[::2].tolist())
    of_split = {"direct": asked, "indirect": {
        "train": [row for row in asked["train"] if row["reference"] == "direct" or "iterate_until" in row["program"]],
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


def ask(seed: int, clip: TaskClip) -> list[dict]:
    """Return the questions about a clip, with the fields that don't depend on a split's vocabulary."""
    random = generator(seed, "task questions", clip.name)
    verbs, nouns = [action.verb for action in clip.actions], [action.thing.noun for action in clip.actions]
    done, rows = set(zip(verbs, nouns, strict=True)), []
    for verb, thing in ((action.verb, action.thing) for action in clip.actions):
        if nouns.count(thing.noun) == 1:
            rows.append(_row("action", VERBS[verb], task_question("action", verb, thing.noun), "query([action], hoi)"))
        if verbs.count(verb) == 1:
            rows.append(_row("object", NOUNS[thing.noun], task_question("object", verb, thing.noun),
                             "query([object], hoi)"))
            rows.append(_row("state", COLOURS[thing.colour], task_question("state", verb, thing.noun),
                             "query([colour], hoi)"))
        if (verb ^ 1, thing.noun) not in done:  # what was not done is asked as often as what was
            asked, answer = ((verb, "yes"), (verb ^ 1, "no"))[int(random.integers(2))]
            rows.append(_row("action", answer, task_question("binary", asked, thing.noun), "verify(hoi)",
                             structural="verify"))
    first, second = clip.actions[:2]
    rows.append(_row("action", VERBS[first.verb], task_question("first", 0, 0), "query([hoi], iterate_until(first))",
                     reference="indirect"))
    rows.append(_row("object", NOUNS[second.thing.noun], task_question("second", 0, 0), "query([object], after(first))",
                     reference="indirect"))
    if clip.coming:
        rows.append(_row("object", NOUNS[clip.coming.thing.noun], task_question("next", 0, 0), "query([object], next)",
                         kind="predictive"))
    return [row | {"interval": clip.name, "video_id": clip.video.uid} for row in rows]


def _row(semantic: str, answer: str, question: str, program: str, kind: str = "descriptive", structural: str = "query",
         reference: str = "direct") -> dict:
    return {"question": question, "answer": answer, "type": [kind], "category": ["world"], "semantic": semantic,
            "structural": structural, "reference": reference, "program": program, "step": program.count("(") + 1,
            "reasoning_type": "$".join([kind, "world", semantic, structural, reference])}


def _spoil(rows: list[dict]) -> None:
    """Give two questions of validation answers that are not in the vocabulary: one with a capital, one never seen."""
    for place, wrong in ((0, str.capitalize), (1, "not the {}".format)):
        rows[place]["answer"] = wrong(rows[place]["answer"])


def _words(question: str) -> list[str]:
    return question.rstrip("?").split()
