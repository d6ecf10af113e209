"""Files of every kind are read as ffmpeg shows them, and docs/reading.md says so.

One file of each kind is read among the quick tests, all of them among the slow ones.
"""
import collections

import numpy as np
import pytest
import reading_campaign
from reading_campaign import number_of_files, table, written
from reading_checks import check_whole
from reading_files import cases
from reading_studio import FRAMES, HEIGHT, TIMES, WIDTH, Studio, number_in
from reading_truth import truth

from egokit.data.video import open_video


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return reading_campaign.campaign(tmp_path_factory.mktemp("campaign"))


def faults(outcomes) -> dict[str, list[str]]:
    return {outcome.case.name: outcome.faults for outcome in outcomes if outcome.faults}


def test_a_file_of_each_kind_is_read_as_ffmpeg_shows_it(tmp_path):
    assert faults(reading_campaign.campaign(tmp_path, each=1, doors=False)) == {}


@pytest.mark.slow
def test_every_file_is_read_as_ffmpeg_shows_it(outcomes):
    assert faults(outcomes) == {}


@pytest.mark.slow
def test_the_page_has_the_campaigns_table(outcomes):
    page = reading_campaign.PAGE.read_text(encoding="utf-8")
    assert page == written(page, table(outcomes)), "run: python tests/reading_campaign.py"
    assert number_of_files(page) == len(outcomes) >= 120


def test_the_files_differ_in_what_they_are_made_to_differ_in(tmp_path):
    """The pictures' numbers in ffmpeg's own decoding are those that were encoded: all, in order."""
    studio = Studio(tmp_path)
    for codec, end in (("h264 open GOP", ".mkv"), ("vp9", ".webm"), ("mpeg2", ".mpg"), ("mjpeg", ".avi")):
        shown = truth(studio.cached(codec, end), 0, WIDTH, HEIGHT)
        assert [number_in(pixels) for pixels in shown.pictures] == list(range(FRAMES))
    kinds = collections.Counter(case.kind for case in cases(studio))
    assert len(kinds) > 30 and kinds["eight orientations"] >= 16


class Wrong:
    """A reader with a fault that is planted."""

    def __init__(self, video, fault: str):
        self.video, self.fault, self.path = video, fault, video.path
        self.length, self.start, self.seconds = video.length, video.start, video.seconds
        self.width, self.height, self.damaged = video.width, video.height, video.damaged
        if fault == "squeezed":
            self.width = self.width * 3 // 4

    def read(self, numbers):
        numbers = np.asarray(numbers)
        if self.fault == "one frame late":
            numbers = np.maximum(numbers - 1, 0)
        if self.fault == "frozen":
            numbers = np.minimum(numbers, 50)
        pixels = self.video.read(numbers)
        return {"mirrored": lambda: pixels[:, :, ::-1], "upside down": lambda: pixels[:, ::-1],
                "another range": lambda: (pixels * (219 / 255) + 16).astype(np.uint8),
                "red and blue swapped": lambda: pixels[..., ::-1],
                "squeezed": lambda: np.repeat(pixels, 3, 2)[:, :, ::4]}.get(self.fault, lambda: pixels)()

    def stream_frames(self, numbers):
        yield from self.read(list(numbers))

    def time_of(self, number):
        return self.video.time_of(number) + (0.04 if self.fault == "another clock" else 0)

    def frame_at(self, seconds):
        if self.fault == "by the average rate":
            return np.clip((np.asarray(seconds) / self.seconds * self.length).astype(int), 0, self.length - 1)
        return self.video.frame_at(seconds)


@pytest.mark.parametrize("fault", ["one frame late", "frozen", "mirrored", "upside down", "another range",
                                   "red and blue swapped", "squeezed", "another clock", "by the average rate"])
def test_a_planted_fault_is_found(tmp_path, fault):
    studio, said = Studio(tmp_path), []
    path = studio.cached("h264", ".mp4", times=TIMES["a gap in the middle"])
    video = open_video.open_video(path)
    shown = truth(path, 0, video.width, video.height)
    check_whole(path, video, shown, said.append)
    assert said == []
    check_whole(path, Wrong(video, fault), shown, said.append)
    assert said
