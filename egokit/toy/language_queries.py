"""EgoNLQ's questions: nlq_{train,val,test_unannotated}.json in Ego4D's format.

A question asks for one action, which is the only one of its clip with the verb, the noun and, if the question says it,
the colour. As in Ego4D's files, some queries are null or empty, some end with "??", and some answers of training have
no length.
"""
from pathlib import Path

import numpy as np

from egokit.toy.moments import MomentClip, write_documents
from egokit.toy.schedule import FPS, Action, generator, make_uid
from egokit.toy.words import COLOURS, NOUNS, VERBS, nlq_questions

ZERO_LENGTH = 0.05  # the share of answers without length, in training
ODD_MARKS = 0.05    # the share of questions that end with " ??"


def write_nlq(root: Path, seed: int, clips: list[MomentClip], version: int) -> int:
    """Write nlq_{train,val,test_unannotated}.json; the questions of the last have no times.

    Returns:
        The number of questions in all files, without null and empty ones.
    """
    annotations = {}
    for clip in clips:
        random = generator(seed, "nlq", clip.uid)
        queries = [query for action in clip.actions if (query := _query(random, clip, action))]
        half = len(queries) // 2
        annotations[clip.uid] = [
            {"annotation_uid": make_uid(seed, "nlq", clip.uid, i), "language_queries": part}
            for i, part in enumerate((queries[:half], queries[half:]))]
    count = sum(len(part["language_queries"]) for parts in annotations.values() for part in parts)
    for split in dict.fromkeys(clip.split for clip in clips):  # in the midst of others, which keep their index
        most = max((annotations[clip.uid] for clip in clips if clip.split == split),
                   key=lambda parts: len(parts[0]["language_queries"]))
        for part, text in zip(most, (None, ""), strict=True):
            part["language_queries"].insert(1, part["language_queries"][0] | {"query": text})
    write_documents(root, "nlq", clips, annotations, version)
    return count


def _query(random: np.random.Generator, clip: MomentClip, action: Action) -> dict | None:
    """Return a question about the action, or None if another action of the clip has its verb, noun and colour."""
    same = [other for other in clip.video.actions if other.start < clip.stop and other.stop > clip.start
            and (other.verb, other.thing.noun) == (action.verb, action.thing.noun)]
    with_colour = len(same) > 1 or random.random() < 0.5
    if sum(other.thing.colour == action.thing.colour for other in same) > 1:
        return None
    questions = nlq_questions(action.verb, action.thing.noun, action.thing.colour if with_colour else None)
    template = str(random.choice(sorted(questions)))
    query = questions[template].replace("?", " ??") if random.random() < ODD_MARKS else questions[template]
    colour = f"{COLOURS[action.thing.colour]} " if with_colour else ""
    words = {"template": template, "query": query, "slot_x": f"{colour}{NOUNS[action.thing.noun]}",
             "verb_x": VERBS[action.verb], "slot_y": None, "verb_y": None}
    if clip.split == "test_unannotated":
        return words
    start, stop = action.start, action.stop
    if clip.split == "train" and random.random() < ZERO_LENGTH:
        start = stop = (start + stop) / 2
    times = {"clip_start": start - clip.start, "clip_end": stop - clip.start, "video_start": start, "video_end": stop}
    return {**{f"{name}_sec": round(value, 4) for name, value in times.items()},
            **{f"{name}_frame": round(value * FPS) for name, value in times.items()}, **words}
