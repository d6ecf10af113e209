"""Which frame is shown when, how pictures become upright, and how damage is told."""
import subprocess
import types
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import egokit
from egokit import tasks
from egokit.data.video import clips, decoding, frame_sampling, open_video, pictures
from egokit.data.video.decoding import Damage
from egokit.data.video.timeline import Timeline, usual_rate
from egokit.prep.video import ffmpeg
from egokit.toy import read_frame_number


def timeline(length=10, rate=10, start=0.0, shown=None) -> Timeline:
    """A timeline; `shown` makes it one of given times."""
    made = Timeline()
    made.length, made.rate, made.start = length, Fraction(rate), start
    made.shown = None if shown is None else np.array(shown)
    return made


def naive(shown, seconds: float) -> int:
    """The last frame that has appeared, but for rounding; the first before any has."""
    return max([n for n, at in enumerate(shown) if at <= seconds + 1e-3], default=0)


@pytest.mark.parametrize("shown", [[0, .1, .2, .3], [.5, .6, 3.0, 3.1], [0, 2.0], [0.0]])
def test_the_frame_at_a_time_is_the_last_that_has_appeared(shown):
    video, times = timeline(len(shown), shown=shown), np.arange(0, 5, 0.037)
    assert video.frame_at(times).tolist() == [naive(shown, time) for time in times]
    assert [video.frame_at(time) for time in times[:5]] == video.frame_at(times)[:5].tolist()


@pytest.mark.parametrize("start", [0.0, 0.013, 0.75])
def test_a_constant_rate_is_the_same_as_its_list_of_times(start):
    constant, listed = timeline(30, 10, start), timeline(30, 10, start, start + np.arange(30) / 10)
    times = np.arange(-1, 5, 0.0171)
    times = times[np.abs((times - start) * 10 % 1 - 0.5) < 0.47]  # not within 3 ms of where a frame changes
    assert (constant.frame_at(times) == listed.frame_at(times)).all()
    assert constant.seconds == pytest.approx(listed.seconds) == start + 3.0
    assert np.allclose(constant.time_of(np.arange(30)), listed.time_of(np.arange(30)))


def test_steps_of_a_constant_rate_are_its_frames_and_count_from_the_players_zero():
    assert timeline(30, 10).frames_of(np.arange(30)).tolist() == list(range(30))
    assert timeline(30, Fraction(30000, 1001)).frames_of(np.arange(30)).tolist() == list(range(30))
    late = timeline(30, 10, start=0.75)  # the sound begins first
    assert late.steps == 38 and late.frames_of(np.array([0, 7, 8, 9, 37])).tolist() == [0, 0, 0, 1, 29]


def test_steps_of_a_variable_rate_are_times():
    video = timeline(4, 10, shown=[0, .1, 3.0, 3.1])
    assert video.resolution == 1000 and video.steps == 3200
    picked = frame_sampling.sample_frames(0, video.steps, 8)
    assert video.frames_of(picked).tolist() == [naive([0, .1, 3.0, 3.1], step / 1000) for step in picked]


@pytest.mark.parametrize("stated, shown, expected", [
    (30, np.round(np.arange(90) * 1001 / 30000, 3), 30000 / 1001), (None, np.arange(9) / 25, 25),
    (600, np.arange(50) / 30, 30), (12, [0, 1 / 30, 2 / 30, 6, 6 + 1 / 30], 30), (Fraction(30000, 1001), [0.0], 29.97)])
def test_the_usual_rate_is_the_stated_one_where_it_is_true(stated, shown, expected):
    assert float(usual_rate(stated, np.array(shown))) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("shown, rate", [
    (np.arange(4000) / 29.75, 29.75),                                              # its header says 30
    (np.concatenate([np.arange(1800) / 30, 60 + np.arange(1700) / 28]), None),     # two rates that differ by 2.4 ms
    (np.arange(4000) / 30 + np.random.default_rng(0).uniform(-9e-4, 9e-4, 4000), 30),
    (np.arange(99) ** 1.02 / 30, None)])
def test_steps_are_at_their_times_to_the_end_of_a_long_file(shown, rate):
    """A rate is constant if no frame is off its place, however long the file is."""
    video = timeline(len(shown), usual_rate(Fraction(30), shown), shown=shown)
    assert video.constant == (rate is not None) and (rate is None or float(video.rate) == pytest.approx(rate))
    times = np.linspace(0, video.seconds - 0.1, 500)
    found = video.frames_of((times * video.resolution).astype(int))
    assert np.abs(found - video.frame_at(times)).max() <= 1
    assert video.steps / video.resolution == pytest.approx(video.seconds, abs=0.05)


# what the standard's matrices do to a place, for all eight orientations
EIGHT = {(1, 0, 0, 1): lambda p: p, (0, 1, -1, 0): lambda p: np.rot90(p, -1), (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
         (0, -1, 1, 0): lambda p: np.rot90(p), (-1, 0, 0, 1): np.fliplr, (1, 0, 0, -1): np.flipud,
         (0, 1, 1, 0): lambda p: p.swapaxes(0, 1), (0, -1, -1, 0): lambda p: np.rot90(p, 2).swapaxes(0, 1)}


@pytest.mark.parametrize("matrix", EIGHT)
@pytest.mark.parametrize("scale", [65536, 40000])
def test_a_display_matrix_has_eight_orientations(matrix, scale):
    a, b, c, d = (scale * value for value in matrix)
    buffer = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], "<i4").tobytes()

    class SideData(bytes):
        type, buffer_size = pictures.Type.DISPLAYMATRIX, 36
    frame = types.SimpleNamespace(side_data=[SideData(buffer)])
    picture = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    assert np.array_equal(pictures.upright(picture, pictures.orientation(frame)), EIGHT[matrix](picture))


def test_pixels_become_square_by_stretching_their_longer_side():
    assert pictures.square_size(720, 576, Fraction(16, 11)) == (1047, 576)
    assert pictures.square_size(720, 480, Fraction(8, 9)) == (720, 540)
    assert pictures.square_size(342, 256, Fraction(512, 513)) == (342, 256)  # what scalers write of rounded sides
    assert pictures.square_size(3840, 2160, Fraction(8)) == (3840, 270)  # and not 30,720 wide
    assert pictures.square_size(96, 72, None) == pictures.square_size(96, 72, Fraction(999)) == (96, 72)


@pytest.mark.parametrize("size", [(60, 80), (90, 40), (30, 200), (48, 64)])
def test_a_fitted_picture_keeps_its_own_middle_square(size):
    """The middle square of the canvas is the picture's own: nothing is squeezed, zoomed or cut from it."""
    rows, columns = np.mgrid[:size[0], :size[1]]
    picture = np.stack([rows * 255 // size[0], columns * 255 // size[1], rows * 0 + 90], -1).astype(np.uint8)

    def middle(pixels):
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        return pixels[top:top + side, left:left + side]
    own, fitted = middle(picture), middle(pictures.fit(picture, 48, 64))
    corners = np.array([0, 12, 24, 36, 47])
    places = (corners / 48 * len(own)).astype(int)
    assert np.abs(fitted[corners][:, corners].astype(int) - own[places][:, places]).max() < 16


def packet(keyframe=False, corrupt=False):
    return types.SimpleNamespace(is_keyframe=keyframe, is_corrupt=corrupt)


def test_damage_reaches_to_the_next_keyframe_in_decoding_order():
    damage = Damage(set())
    order = [(0, True), (4, False), (2, False), (1, False), (3, False), (8, True), (6, False), (5, False), (12, False)]
    for number, keyframe in order[:3]:
        damage.send(number, packet(keyframe), skipped=False)
    damage.found(2, "zeros")
    for number, keyframe in order[3:]:
        damage.send(number, packet(keyframe), skipped=False)
    # 4 was decoded before; 5 and 6 are sent after the keyframe 8 but shown before it, so may refer to 2
    assert damage.numbers == {2, 1, 3, 5, 6} and damage.reasons == {2: "zeros"}


def test_a_frame_that_never_comes_out_is_damage():
    damage = Damage(set())
    for number in (0, 1, 2, 3):
        damage.send(number, packet(number == 0), skipped=number == 3)
    for number in (0, 2):
        damage.show(number)
    damage.show(float("inf"))
    assert damage.numbers == {1, 2, 3} and list(damage.reasons) == [1]  # 2 and 3 came after it; 3 was not due


def test_a_tolerant_reader_trusts_the_decoder_again_where_no_keyframe_comes():
    strict, tolerant = Damage(set()), Damage(set(), healed=5)
    for damage in (strict, tolerant):
        for number in range(20):
            damage.send(number, packet(number == 0), skipped=False)
            if number == 3:
                damage.found(3, "zeros")
    assert strict.numbers == set(range(3, 20)) and tolerant.numbers == set(range(3, 9))


def test_packets_called_incomplete_before_a_joint_are_whole():
    joint, hole = Damage(set()), Damage(set())
    for damage, keys in ((joint, (0, 4)), (hole, (0,))):
        for number in range(4 + decoding.JOINT):
            damage.send(number, packet(number in keys, corrupt=number == 2), skipped=False)
    assert joint.numbers == set() and hole.numbers == set(range(2, 4 + decoding.JOINT))


@pytest.fixture
def source(project) -> Path:
    return sorted((project / "outputs/toy/Ego4D").glob("*.mp4"))[0]


def make(target: Path, source: Path, *options: str, before: tuple[str, ...] = ()) -> Path:
    subprocess.run([ffmpeg(), "-loglevel", "error", *before, "-i", str(source), *options, str(target)], check=True)
    return target


def test_ek100_counts_frames_and_says_where_that_gives_other_moments(checkpoint, copied, resolve):
    on_copy, _ = copied
    data = tasks.make(on_copy(resolve("toy/ek100_finetune", run="random"))).dataset("test")
    row = data.clips.iloc[0]
    path = data.videos / row.participant_id / f"{row.video_id}.MP4"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant = data.read(0, None)["video"]
    variable = make(path.with_name("variable.mp4"), path, "-vf", "select='not(between(n,3,40))'", "-fps_mode", "vfr")
    variable.replace(path)
    with pytest.warns(UserWarning, match=r"MP4: its frame rate varies, and EK-100 counts frames"):
        assert data.read(0, None)["video"].shape == constant.shape


def test_read_clip_gives_what_players_show_in_a_screen_recording(source, tmp_path):
    path = make(tmp_path / "still.mp4", source, "-t", "8", "-vf", "select='lt(t,2)+gte(t,5)'", "-fps_mode", "vfr")
    first, second = (egokit.read_clip(path, at, at + 0.5, frames=2, size=64) for at in (2.5, 4.0))
    assert first.equal(second)  # one picture stands from 2 to 5 s
    shown = [read_frame_number(frame) for frame in clips.read(path, lambda steps, rate: np.array([1000, 3000, 5500]))]
    assert shown == [10, 19, 55]  # the toy has ten frames a second


def test_sound_that_begins_first_moves_the_clock(source, tmp_path):
    path = make(tmp_path / "late.mkv", source, "-map", "1:v", "-map", "0:a", "-c:v", "copy", "-t", "6",
                before=("-f", "lavfi", "-i", "sine=d=8", "-itsoffset", "1.5"))
    video = open_video.open_video(path)
    assert video.start == pytest.approx(1.5, abs=0.03) and video.frame_at(0.2) == 0 and video.frame_at(2.55) == 10
