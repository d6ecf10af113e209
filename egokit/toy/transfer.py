"""The tables of EK-100 and Charades-Ego, to which a pre-trained model is transferred.

EK-100's relevancy and Charades' metadata_*.csv are derived from them by egokit.prep.
"""
from pathlib import Path

import numpy as np
import pandas

from egokit.data.annotation_tables import EK100_ANNOTATIONS
from egokit.runs.files import write_text
from egokit.toy.schedule import FPS, Action, ToyVideo, generator
from egokit.toy.words import NOUNS, VERBS, charades_classes, charades_sentence, ek100_narration

CHARADES = Path("CharadesEgo/CharadesEgo")


def timestamp(seconds: float) -> str:
    """Return a time as HH:MM:SS.cc."""
    minutes, centiseconds = divmod(round(seconds * 100), 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{centiseconds // 100:02d}.{centiseconds % 100:02d}"


def write_ek100(root: Path, seed: int, videos: list[ToyVideo]) -> dict[str, int]:
    """Write the four EK-100 tables; return the numbers of clips and of sentences."""
    counts = {}
    for split in ("train", "test"):
        clips = [_ek100_clip(random, video, i, action)
                 for video in videos if video.corpus == "ek100" and video.split == split
                 for random in [generator(seed, "kitchen narration", video.uid)]
                 for i, action in enumerate(video.actions)]
        first_clip = {clip["narration"]: clip for clip in reversed(clips)}  # of each narration
        columns = ["narration_id", "narration"]
        if split == "train":  # the real test file has no classes
            columns += ["verb", "verb_class", "noun", "noun_class", "all_nouns", "all_noun_classes"]
        sentences = [{column: clip[column] for column in columns}
                     for clip in clips if first_clip[clip["narration"]] is clip]
        for kind, rows in (("", clips), ("_sentence", sentences)):
            write_text(root / EK100_ANNOTATIONS / f"EPIC_100_retrieval_{split}{kind}.csv",
                       pandas.DataFrame(rows).to_csv(index=False))
        counts |= {f"ek100_{split}_clips": len(clips), f"ek100_{split}_sentences": len(sentences)}
    return counts


def _ek100_clip(random: np.random.Generator, video: ToyVideo, i: int, action: Action) -> dict:
    noun, neighbour = action.thing.noun, action.neighbour and action.neighbour[0].noun
    style = random.random()
    colour = action.thing.colour if style > 0.7 and neighbour is None else None
    narration = ek100_narration(action.verb, noun, colour, style > 0.5 and neighbour is None, neighbour)
    start = action.start - random.uniform(0, 0.45) * action.gap_before
    stop = action.stop + random.uniform(0, 0.45) * action.gap_after
    nouns = [noun] if neighbour is None else [noun, neighbour]
    return {
        "narration_id": f"{video.uid}_{i}", "participant_id": video.uid[:3], "video_id": video.uid,
        "narration_timestamp": timestamp(random.uniform(action.start, action.stop)),
        "start_timestamp": timestamp(start), "stop_timestamp": timestamp(stop),
        "start_frame": int(start * FPS), "stop_frame": int(stop * FPS), "narration": narration,
        "verb": VERBS[action.verb].replace(" ", "-"), "verb_class": action.verb,
        "noun": NOUNS[noun], "noun_class": noun,
        "all_nouns": [NOUNS[n] for n in nouns], "all_noun_classes": nouns,
    }


def write_charades(root: Path, videos: list[ToyVideo]) -> dict[str, int]:
    """Write Charades' class list and its two tables; return the numbers of videos and actions."""
    classes, counts = charades_classes(), {}
    write_text(root / CHARADES / "Charades_v1_classes.txt",
               "".join(f"c{i:03d} {charades_sentence(*pair)}\n" for i, pair in enumerate(classes)))
    for split in ("train", "test"):
        chosen = [video for video in videos if video.corpus == "charades" and video.split == split]
        rows = [_charades_row(i, video, classes) for i, video in enumerate(chosen)]
        write_text(root / CHARADES / f"CharadesEgo_v1_{split}_only1st.csv", pandas.DataFrame(rows).to_csv(index=False))
        counts |= {f"charades_{split}_videos": len(rows),
                   f"charades_{split}_actions": sum(len(video.actions) for video in chosen)}
    return counts


def _charades_row(i: int, video: ToyVideo, classes: list[tuple[int, int]]) -> dict:
    meanings = [(action.verb, action.thing.noun) for action in video.actions]
    sentences = [charades_sentence(*meaning) for meaning in meanings]
    labels = [f"c{classes.index(meaning):03d} {action.start:.2f} {action.stop:.2f}"
              for meaning, action in zip(meanings, video.actions, strict=True)]
    script = "A person is " + ", then ".join(sentence.lower() for sentence in sentences)
    return {
        "id": video.uid, "subject": f"S{i % 12:03d}", "scene": "Kitchen", "quality": 6, "relevance": 7,
        "verified": "Yes", "script": f"{script}." if sentences else "A person looks at a table.",
        "objects": ";".join(sorted({NOUNS[noun] for _, noun in meanings})),
        "descriptions": ". ".join(sentences),
        "actions": ";".join(labels), "length": f"{video.seconds:.2f}", "egocentric": "Yes",
        "charades_video": video.uid[::-1],
    }
