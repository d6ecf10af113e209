"""What happens in which video and when: pure numbers from the seed, no pictures, no text.

A video is a sequence of scenes. A scene is a table top with two or three objects that its actions share, so one noun
meets many verbs in one place, and a negative from the same scene is a hard negative. The schedule is cheap, so every
worker process draws it again and nothing is sent between processes.
"""
import dataclasses
import itertools
import uuid

import numpy as np

from egokit.toy.motion import Motion, draw_motion
from egokit.toy.words import COLOURS, NOUNS, VERBS, charades_classes

FPS = 10
OBJECT_SIZE = 37.0  # px across, at rest


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything there is."""
    videos: dict[str, dict[str, tuple[int, float]]]  # corpus -> split -> number of videos, and seconds of each
    questions: int       # of each type, inter-video and intra-video
    verb_questions: int  # verb-only, of each type
    moment_videos: dict[str, tuple[str, int, int]]  # file of EgoMQ and EgoNLQ -> split of its videos, first and end
    moment_seconds: tuple[float, float]             # shortest and longest clip, of two in each of these videos
    task_clips: dict[str, int]  # split -> EgoTaskQA's clips of each of its videos of Ego4D, at most


# a video of Charades is as long as its actions
SIZES = {
    "demo": Size({"ego4d": {"train": (33, 96), "test": (6, 96)}, "ek100": {"train": (10, 60), "test": (6, 66)},
                  "charades": {"train": (120, 0), "test": (192, 0)}}, 120, 32,
                 {"train": ("train", 0, 33), "val": ("test", 0, 4), "test_unannotated": ("test", 4, 6)}, (44, 47),
                 {"train": 14, "test": 24}),
    # five test videos, because an inter-video question takes its five choices from five videos
    "tiny": Size({"ego4d": {"train": (4, 45), "test": (5, 24)}, "ek100": {"train": (2, 20), "test": (1, 20)},
                  "charades": {"train": (6, 0), "test": (4, 0)}}, 12, 4,
                 {"train": ("train", 0, 2), "val": ("test", 0, 2), "test_unannotated": ("test", 2, 3)}, (8, 11),
                 {"train": 4, "test": 3}),
}


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object: class ids of its noun and colour, and its size in pixels."""
    noun: int
    colour: int
    size: float = OBJECT_SIZE


@dataclasses.dataclass(frozen=True)
class Action:
    """One action; times are seconds of the video, gap_* the quiet seconds on either side."""
    start: float
    stop: float
    gap_before: float
    gap_after: float
    verb: int
    thing: Thing
    motion: Motion
    neighbour: tuple[Thing, int] | None  # a second object beside it, and its side: +1 right, -1 left


@dataclasses.dataclass(frozen=True)
class Scene:
    """A part of a video with one table top; times are seconds of the video."""
    start: float
    stop: float
    seed: int  # of the table top's appearance
    actions: tuple[Action, ...]
    resting: tuple[Thing, Motion] | None = None  # what lies there when there is no action at all


@dataclasses.dataclass(frozen=True)
class ToyVideo:
    """One video of the schedule."""
    corpus: str  # "ego4d", "ek100" or "charades"
    split: str   # "train" or "test"
    uid: str
    path: str    # under the data root
    seconds: float
    seed: int    # of the sleeve and the skin
    scenes: tuple[Scene, ...]

    @property
    def actions(self) -> list[Action]:
        return [action for scene in self.scenes for action in scene.actions]

    @property
    def frames(self) -> int:
        return round(self.seconds * FPS)


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """Return a separate random generator for every purpose, so that no draw affects another."""
    words = (key.encode() if isinstance(key, str) else [key] for key in keys)
    return np.random.default_rng([seed, *itertools.chain.from_iterable(words)])


def make_uid(seed: int, *keys: int | str) -> str:
    """Return a uuid-like name, the same for the same seed and keys."""
    return str(uuid.UUID(bytes=generator(seed, "uid", *keys).bytes(16), version=4))


def make_schedule(seed: int, size: str) -> list[ToyVideo]:
    """Return all videos of the data set, Ego4D first; equal arguments give equal schedules."""
    amounts = SIZES[size].videos
    videos = [draw(seed, split, i, seconds) for corpus, draw in (("ego4d", _ego4d_video), ("ek100", _ek100_video))
              for split, (count, seconds) in amounts[corpus].items() for i in range(count)]
    return videos + _charades_videos(seed, amounts["charades"])


def _draw_actions(random, start: float, stop: float, steps, neighbours: float = 0.0) -> list[Action]:
    """Draw actions for `steps`, an iterable of (verb, thing), as many as [start, stop] holds.

    `neighbours` is the share of actions with a second object beside the first.
    """
    actions, now, before = [], start, random.uniform(0.2, 0.45)
    for verb, thing in steps:
        begin, end = now + before, now + before + random.uniform(1.2, 2.1)
        after = random.uniform(0.2, 0.45)
        if end + after > stop:
            break
        thing = dataclasses.replace(thing, size=OBJECT_SIZE * random.uniform(0.93, 1.07))
        neighbour = None
        if random.random() < neighbours:
            noun = int((thing.noun + random.integers(1, len(NOUNS))) % len(NOUNS))
            second = Thing(noun, int(random.integers(len(COLOURS))), 0.72 * OBJECT_SIZE)
            neighbour = (second, int(random.choice([-1, 1])))
        motion = draw_motion(random, verb, thing.size)
        actions.append(Action(begin, end, before, after, verb, thing, motion, neighbour))
        now, before = end, after
    return actions


def _mixed_steps(random, things: list[Thing]):
    """Yield (verb, thing) endlessly; each thing runs through all verbs before one repeats."""
    decks: list[list[int]] = [[] for _ in things]
    while True:
        for i in random.permutation(len(things)):
            if not decks[i]:
                decks[i] = random.permutation(len(VERBS)).tolist()
            yield decks[i].pop(), things[i]


def _draw_scenes(random, seconds: float, scene_seconds: float, shared: list[Thing],
                 neighbours: float) -> tuple[Scene, ...]:
    """Draw the scenes of a long video; `shared[k]`, if there is one, is an object of scene k."""
    count = max(1, round(seconds / scene_seconds))
    deck: list[int] = []
    scenes = []
    for k in range(count):
        start, stop = seconds * k / count, seconds * (k + 1) / count
        things = shared[k:k + 1]
        for _ in range(int(random.integers(2, 4)) - len(things)):
            taken = [thing.noun for thing in things]
            deck = deck or random.permutation(len(NOUNS)).tolist()
            noun = next((noun for noun in deck if noun not in taken), None)
            if noun is None:  # all that is left in the deck lies here already
                deck = [noun for noun in random.permutation(len(NOUNS)).tolist() if noun not in taken]
                noun = deck[0]
            deck.remove(noun)
            things = [*things, Thing(noun, int(random.integers(len(COLOURS))))]
        actions = _draw_actions(random, start, stop, _mixed_steps(random, things), neighbours)
        scenes.append(Scene(start, stop, int(random.integers(2**31)), tuple(actions)))
    return tuple(scenes)


def _ego4d_video(seed: int, split: str, i: int, seconds: float) -> ToyVideo:
    shared = []
    if split == "test":  # they share one object per scene: verb-only questions need one object in five videos
        random = generator(seed, "shared")
        shared = [Thing(int(noun), int(random.integers(len(COLOURS)))) for noun in random.permutation(len(NOUNS))]
    random = generator(seed, "ego4d", split, i)
    name = make_uid(seed, "ego4d", split, i)
    scenes = _draw_scenes(random, seconds, 24, shared, 0.0)
    return ToyVideo("ego4d", split, name, f"Ego4D/{name}.mp4", seconds, int(random.integers(2**31)), scenes)


def _ek100_video(seed: int, split: str, i: int, seconds: float) -> ToyVideo:
    participant = f"P{i % 4 + 1:02d}"
    name = f"{participant}_{i // 4 + (1 if split == 'train' else 11):02d}"
    scenes = _draw_scenes(generator(seed, "ek100", split, i), seconds, 20, [], 0.2)
    # the sleeve belongs to the participant; train and test share participants, as the real splits do
    person = int(generator(seed, "participant", participant).integers(2**31))
    return ToyVideo("ek100", split, name, f"EK100/video_ht256px/{participant}/{name}.MP4", seconds, person, scenes)


def _charades_videos(seed: int, amounts: dict[str, tuple[int, float]]) -> list[ToyVideo]:
    classes = charades_classes()
    letters = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    videos, names, deck = [], set(), []
    for split, (count, _) in amounts.items():
        for i in range(count):
            random = generator(seed, "charades", split, i)
            while (name := "".join(random.choice(letters, 5))) in names:
                pass
            names.add(name)
            shuffle = generator(seed, "deck", split, i)
            # Nouns are dealt from a shuffled deck of all nouns, so that every class gets its share of videos. Most
            # videos show actions on one thing, as real videos do; every third video has a second thing.
            deck = deck or shuffle.permutation(len(NOUNS)).tolist()
            thing = Thing(deck.pop(), int(random.integers(len(COLOURS))))
            steps = [(classes[k][0], thing) for k in random.permutation(len(classes)) if classes[k][1] == thing.noun]
            if i % 3 == 2:
                others = [k for k in range(len(classes)) if classes[k][1] != thing.noun]
                verb, noun = classes[int(random.choice(others))]
                steps.append((verb, Thing(noun, int(random.integers(len(COLOURS))))))
            resting = None
            if split == "test" and i in (1, 17):  # the real test set, too, has videos without any label
                resting, steps = (steps[0][1], draw_motion(random, 7, OBJECT_SIZE)), []
            actions = _draw_actions(random, 0.0, float("inf"), steps)
            seconds = round((actions[-1].stop + actions[-1].gap_after if actions else 5.0), 1)
            scene = Scene(0.0, seconds, int(random.integers(2**31)), tuple(actions), resting)
            path = f"CharadesEgo/CharadesEgo_v1_480/{name}.mp4"
            person = int(random.integers(2**31))
            videos.append(ToyVideo("charades", split, name, path, seconds, person, (scene,)))
    return videos
