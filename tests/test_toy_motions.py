"""The embedded data set's motions: opposite verbs, and where things move."""
import dataclasses

import numpy as np
import pytest

from egokit.toy import frame_number, motion, schedule, stage


@pytest.mark.parametrize("verb", range(0, 8, 2))
def test_opposite_verbs_are_time_reversals(verb):
    drawn = motion.draw_motion(np.random.default_rng(5), verb, 37.0)
    opposite = motion.draw_motion(np.random.default_rng(5), verb ^ 1, 37.0)
    assert opposite == dataclasses.replace(drawn, reverse=True)  # the same draws for both
    mirrored = dataclasses.replace(opposite, warp=(drawn.warp[0], -drawn.warp[1]))
    table = stage.build_stage("ego4d", 1)
    thing, wearing = schedule.Thing(3, 1), stage.wearer("ego4d", 1)
    for time in np.linspace(0, 1, 9):
        forward, backward = motion.pose_at(drawn, time), motion.pose_at(mirrored, 1 - time)
        for a, b in zip(dataclasses.astuple(forward), dataclasses.astuple(backward), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)
        forward_HWC, backward_HWC = (table.frame(pose, thing, wearing) for pose in (forward, backward))
        assert (forward_HWC != backward_HWC).mean() < 0.02  # rounding to whole pixels at most


@pytest.mark.parametrize("verb", range(8))
def test_motion_is_large_and_stays_in_the_middle(verb):
    for seed in range(60):
        drawn = motion.draw_motion(np.random.default_rng(seed), verb, 37.0)
        poses = [motion.pose_at(drawn, time) for time in np.linspace(0, 1, 12)]
        tops = np.array([(pose.x + pose.lid[0], pose.y + pose.lid[1]) for pose in poses])
        assert np.linalg.norm(tops.max(0) - tops.min(0)) >= 18
        for pose in poses:
            half = 0.45 * pose.size
            assert pose.x - half >= 16 and pose.x + half <= 112
            assert pose.y + pose.lid[1] - half >= 0 and pose.y + half <= 96 - frame_number.strip_height(96)
