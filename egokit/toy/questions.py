"""EgoMCQ's questions from the test videos: inter-video, intra-video, and verb-only.

A question gives one narration and five clips, and asks which clip the narration describes. No two choices of a question
share both verb and noun. In a verb-only question, of either type, all five share the noun (and, while there are enough
such clips, the colour), so that only the verb decides; no other question has five equal `tag_noun`.
"""
import json
from pathlib import Path

import numpy as np

from egokit.runs.files import write_text
from egokit.toy.ego4d import COLUMNS
from egokit.toy.schedule import generator

CHOICES = 5
VIDEO = ("video_uid",)  # columns that tell clips apart
VERB = ("tag_verb",)
MEANING = ("tag_verb", "tag_noun")
INTER, INTRA = 1, 2
TRIES = 2000  # to draw one question; a verb-only question must have one colour in the first half of them
NEARBY = 30.0  # largest distance in seconds between the narrations of an intra-video question


def write_egomcq(path: Path, seed: int, clips: list[dict], questions: int, verb_questions: int) -> dict:
    """Write egomcq.json.

    Args:
        clips: clips of the test videos.
        questions: number of questions of each type.
        verb_questions: number of verb-only questions of each type.

    Returns:
        The number of questions by "inter", "intra", "verb_only_inter" and "verb_only_intra".
    """
    random = generator(seed, "egomcq")
    kinds = [(kind, verb_only) for kind in (INTER, INTRA)
             for verb_only, count in ((False, questions), (True, verb_questions)) for _ in range(count)]
    document, seen = {}, set()
    counts = {"inter": 0, "intra": 0, "verb_only_inter": 0, "verb_only_intra": 0}
    answers = random.permutation(np.arange(len(kinds)) % CHOICES)
    for (kind, verb_only), answer in zip(kinds, answers.tolist(), strict=True):
        for attempt in range(TRIES):
            if verb_only:
                choices = _draw_verb_only(random, clips, kind, same_colour=attempt < TRIES // 2)
            else:
                choices = _draw_mixed(random, clips, kind)
            if choices is None:
                continue
            # the first choice drawn is the query's; the same question is not asked twice
            key = (choices[0]["clip_idx"], frozenset(clip["clip_idx"] for clip in choices))
            if key not in seen:
                break
        else:
            continue  # a small data set may not hold as many different questions
        seen.add(key)
        wrong = choices[1:]
        ordered = [*wrong[:answer], choices[0], *wrong[answer:]]
        fields = [{column: clip[column] for column in COLUMNS} for clip in ordered]
        document[str(len(document))] = {"answer": answer, "query": fields[answer], "types": kind,
                                        "choices": {str(i): clip for i, clip in enumerate(fields)}}
        counts[("verb_only_" if verb_only else "") + ("inter" if kind == INTER else "intra")] += 1
    write_text(path, json.dumps(document))
    return counts


def _pick(random: np.random.Generator, pool: list[dict], *distinct: tuple[str, ...]) -> list[dict] | None:
    """Draw five clips of the pool that pairwise differ in every one of `distinct`, each some columns."""
    chosen, taken = [], set()
    for i in random.permutation(len(pool)):
        values = {(columns, *(str(pool[i][column]) for column in columns)) for columns in distinct}
        if not values & taken:
            taken |= values
            chosen.append(pool[i])
            if len(chosen) == CHOICES:
                return chosen
    return None


def _draw_mixed(random, clips: list[dict], kind: int) -> list[dict] | None:
    if kind == INTER:
        choices = _pick(random, clips, VIDEO, MEANING)
    else:
        query = clips[random.integers(len(clips))]
        choices = _pick(random, [clip for clip in clips if _near(clip, query)], MEANING)
    if choices and len({clip["tag_noun"][0] for clip in choices}) == 1:
        return None
    return choices


def _draw_verb_only(random, clips: list[dict], kind: int, same_colour: bool) -> list[dict] | None:
    query = clips[random.integers(len(clips))]
    pool = [clip for clip in clips if clip["tag_noun"] == query["tag_noun"]
            and (not same_colour or clip["colour"] == query["colour"])]
    if kind == INTER:
        return _pick(random, pool, VERB, VIDEO)
    return _pick(random, [clip for clip in pool if _near(clip, query, 2)], VERB)


def _near(clip: dict, query: dict, times: float = 1) -> bool:
    return (clip["video_uid"] == query["video_uid"]
            and abs(clip["narration_time"] - query["narration_time"]) <= times * NEARBY / 2)
