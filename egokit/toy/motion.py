"""A verb as a function of progress; its opposite is the same function read backwards.

There are four motions, one per pair of verbs. Everything random about an action (place, amplitude, time warp, hand) is
drawn without looking at which verb of the pair it is. So neither one frame nor an unordered set of frames shows the
verb: only their order does. Pixels refer to the 128 x 96 picture, and everything that matters stays inside its central
96 x 96 square. Drawing is in stage.py.
"""
import dataclasses
import math

import numpy as np

APPROACH = 0.13  # the share of progress in which the hand arrives, and again in which it leaves
LIFT, OPEN, PUSH, SLIDE = range(4)  # = verb // 2


@dataclasses.dataclass(frozen=True)
class Motion:
    """One action's geometry: for the even verb of a pair, from `begin` to `end`.

    The even verb has progress 0 at `begin` and progress 1 at `end`; the odd verb runs backwards.
    """
    pair: int
    begin: tuple[float, float, float]  # x, y, size (px)
    end: tuple[float, float, float]
    lid: tuple[float, float]           # x, y: how far the upper half moves (px), for OPEN
    side: int                          # +1 the right hand, -1 the left
    warp: tuple[float, float]          # see warp_time()
    reverse: bool                      # whether it is the odd verb of the pair


@dataclasses.dataclass(frozen=True)
class Pose:
    """What one frame shows of the object and the hand; lengths are in pixels."""
    x: float
    y: float
    size: float
    opens: bool                         # drawn in two halves, the upper half moved by `lid`
    lid: tuple[float, float]
    shadow: tuple[float, float, float]  # x, y, width: stays on the table
    hand: tuple[float, float] | None    # x, y of the fingertips; None: not in the picture
    hand_scale: float
    side: int


def draw_motion(random: np.random.Generator, verb: int, size: float) -> Motion:
    """Draw a motion for `verb`, of an object `size` px across.

    Both verbs of a pair make the same draws.
    """
    pair = verb // 2
    x, lid, u = 64 + random.uniform(-5, 5), (0.0, 0.0), random.uniform
    if pair == LIFT:
        y = u(59, 64)
        begin, end = (x, y, size), (x + u(-4, 4), y - u(21, 26), size * u(1.4, 1.5))
    elif pair == OPEN:
        begin = end = (x, u(54, 60), size)
        lid = (u(3, 8) * random.choice([-1, 1]), -u(18, 22))
    elif pair == PUSH:
        y = u(64, 68)
        begin, end = (x, y, size * 1.12), (x + u(-4, 4), y - u(28, 34), size * u(0.72, 0.8))
    else:
        y, travel = u(46, 58), u(32, 39)
        begin, end = (x + travel / 2, y, size), (x - travel / 2, y + u(-3, 3), size)
    side, warp = int(random.choice([-1, 1])), (u(-0.35, 0.35), u(-0.35, 0.35))
    return Motion(pair, begin, end, lid, side, warp, reverse=verb % 2 == 1)


def warp_time(time: float, warp: tuple[float, float]) -> float:
    """Map [0, 1] monotonically onto itself.

    Reversing time maps the warp (a, b) to (a, -b), so the set of warps is closed under reversal.
    """
    turn = math.pi * time
    return time + warp[0] * math.sin(2 * turn) / (2 * math.pi) + warp[1] * math.sin(turn) / math.pi


def pose_at(motion: Motion, time: float) -> Pose | None:
    """Return the pose at `time`, which is in [0, 1] during the action.

    Before and after it there is no hand; None means that the object has been carried off.
    """
    resting = not 0 <= time <= 1
    progress = float(time > 1) if resting else warp_time(time, motion.warp)
    if motion.reverse:
        progress = 1 - progress
    if resting and motion.pair == LIFT and progress == 1:
        return None
    # a held object comes and goes with the hand, so LIFT has no phase in which the hand leaves
    until = 1.0 if motion.pair == LIFT else 1 - APPROACH
    share = min(max((progress - APPROACH) / (until - APPROACH), 0.0), 1.0)
    x, y, size = (a + (b - a) * share for a, b in zip(motion.begin, motion.end, strict=True))
    lid = (motion.lid[0] * share, motion.lid[1] * share)
    if motion.pair == OPEN:
        grip = (x + motion.side * 0.36 * size + lid[0], y - 0.12 * size + lid[1])
    else:
        grip = (x + motion.side * 0.30 * size, y + 0.20 * size)
    away = max(APPROACH - progress, progress - until, 0.0) / APPROACH
    out = (grip[0] + motion.side * 26, 106.0)  # below the bottom edge
    hand = (grip[0] + (out[0] - grip[0]) * away, grip[1] + (out[1] - grip[1]) * away)
    floor_x, floor_y, floor_size = motion.begin if motion.pair == LIFT else (x, y, size)
    shadow = (floor_x, floor_y + 0.40 * floor_size, 0.95 * floor_size)
    hand_scale = size / motion.begin[2] if motion.pair == LIFT else 1.0
    return Pose(x, y, size, motion.pair == OPEN, lid, shadow, None if resting else hand, hand_scale, motion.side)
