"""Small grey pictures of frames, and the comparison of a video with what it was made of.

A frame becomes SIDE x SIDE cells, each the mean brightness of its part, 0 (black) to 255 (white) whatever the frame's
colour range. An encoder changes a cell by a few levels; another frame, turn, mirror image, range or crop changes some
cells by many. docs/data.md has the measured margins.
"""
import collections

import numpy as np
from av.video.reformatter import ColorRange

from egokit.data.video import pictures as shown
from egokit.prep.decoding import MATRICES, placed, shown_size, whole

SIDE = 16
UNSTATED = 2  # frame.colorspace where a file does not state its matrix
BLOCK = 32  # frames that are judged together: one second
CELL, PICTURE = 32, 8  # levels by which one cell, and all of them (root mean square), may differ; encoders: 16 and 3
MOVED, EVIDENCE = 4, 2000  # levels by which a cell has moved; sum of their squares from which motion is judged
SHIFTED = 0.75  # how much of the motion to another frame an output may have; encoders: 0.5, another frame: 1
STILL = 0.08  # the least share of the source's motion that an output shows; encoders: 0.17, a still: 0
CONTRAST = 0.09  # an output's contrast is the source's to within this; encoders: 0.06, another colour range: 0.14
FULL_RANGE = ("gray", "mono", "ya", "yuvj", "xyz")  # pixel formats whose levels are 0 to 255, not 16 to 235
LIMITED = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)
CELL_LINES = 4.5  # lines that a cell has at least; smaller pictures have fewer cells
TINY = 48  # lines of pictures in which encoders let small motion wait for frames, so that none is late
LAGS = [sign * lag for lag in (1, 2, 3, 4, 8, 16, 32) for sign in (-1, 1)]  # frames


# keywords of `reformat` that leave the levels as they are
AS_STORED = {"src_color_range": "JPEG", "dst_color_range": "JPEG",
             "src_colorspace": "ITU601", "dst_colorspace": "ITU601"}
# the shares of blue and red in brightness, by frame.colorspace (H.273); any other is 5
BLUE_RED = {1: (0.0722, 0.2126), 4: (0.11, 0.3), 5: (0.114, 0.299), 7: (0.087, 0.212), 9: (0.0593, 0.2627)}


def shrink(frame, reformatter, aspect=None, canvas: tuple[int, int] | None = None,
           matrix: int = UNSTATED) -> np.ndarray:
    """Return the small picture of an av.VideoFrame as players show it, uint8 (SIDE, SIDE).

    Args:
        reformatter: an av VideoReformatter, kept from frame to frame.
        aspect: width / height of a stored pixel, or None.
        canvas: width and height of the film's first frame; one of another size is placed in it.
        matrix: the colorspace of the film's first frame; one of another is converted.
    """
    picture = _means(frame, SIDE, reformatter, matrix)
    how = shown.orientation(frame)
    size = canvas and shown_size(frame, aspect)
    if size != canvas:
        wide, high = placed(size, canvas)
        picture = shown.upright(_means(frame, 8 * SIDE, reformatter, matrix), how)
        fine = (np.arange(8 * SIDE) + 0.5) / (8 * SIDE) - 0.5  # places in the canvas, from its middle
        rows, columns = (np.floor((fine * side / own + 0.5) * 8 * SIDE).astype(int)
                         for side, own in zip(canvas[::-1], (high, wide), strict=True))
        inside = [(places >= 0) & (places < 8 * SIDE) for places in (rows, columns)]
        picture = picture[np.clip(rows, 0, 8 * SIDE - 1)][:, np.clip(columns, 0, 8 * SIDE - 1)] * np.outer(*inside)
        return picture.reshape(SIDE, 8, SIDE, 8).mean((1, 3)).round().astype(np.uint8)
    return shown.upright(picture, how)


def _means(frame, side: int, reformatter, matrix: int) -> np.ndarray:
    """Return the mean brightness of side x side cells of a frame as it is stored."""
    frame = whole(frame)
    # swscale's "area" is the mean of all pixels of a cell, in 0.1 ms for 1920 x 1080; beyond a factor of 256 it takes
    # two steps of its own, and gets the range wrong
    if max(frame.width, frame.height) > 256 * SIDE:
        frame = reformatter.reformat(frame, 256, 256, interpolation="AREA", threads=1)
    kind = frame.format
    converted = not kind.is_rgb and MATRICES.get(int(frame.colorspace)) != MATRICES.get(matrix)
    small = reformatter.reformat(frame, side, side, "yuv444p" if converted else "gray", interpolation="AREA", threads=1,
                                 **AS_STORED)
    planes = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:side, :side] for plane in small.planes]
    full = frame.color_range == ColorRange.JPEG or kind.is_rgb or kind.has_palette or kind.name.startswith(FULL_RANGE)
    luma = planes[0] if full else LIMITED[planes[0]]
    if not converted:
        return luma
    (kb, kr), (to_kb, to_kr) = (BLUE_RED.get(int(space), BLUE_RED[5]) for space in (frame.colorspace, matrix))
    cb, cr = ((plane - 128.0) * (1 if full else 255 / 224) for plane in planes[1:])
    b, r = luma + 2 * (1 - kb) * cb, luma + 2 * (1 - kr) * cr
    g = (luma - kb * b - kr * r) / (1 - kb - kr)
    return np.clip(np.round(to_kb * b + (1 - to_kb - to_kr) * g + to_kr * r), 0, 255).astype(np.uint8)


class Comparison:
    """Compares the frames of an output, given one after another, with what its source shows at the same times.

    Args:
        source: small pictures of the source, uint8 (N, SIDE * SIDE).
        earliest: for each of the output's frames, the number of the source's frame that it shows.
        latest: the same for the latest frame that it may show: where a frame begins exactly at an output's time,
            roundings decide.
        damaged: bool, whether the source is damaged at that time: nothing is compared there.
        rate: frames per second of the output.
        lines: the shorter side of the source's picture.
    """

    def __init__(self, source: np.ndarray, earliest: np.ndarray, latest: np.ndarray, damaged: np.ndarray, rate: float,
                 lines: int):
        self.source, self.earliest, self.latest, self.damaged, self.rate = source, earliest, latest, damaged, rate
        self.lines, self.tiny, self.joined = lines, False, 1  # so many rows and columns of cells are taken as one
        self.waiting: list[np.ndarray] = []
        self.frames, self.reason = 0, ""  # the reason names the first fault found
        self.before = None  # the last picture of the block before, and its source's
        self.largest = {"cell": 0.0, "picture": 0.0, "shift": 0.0, "still": 1.0, "contrast": 0.0}
        self.recent: collections.deque = collections.deque(maxlen=8)  # sums of blocks: what moves little needs longer
        self.film = np.zeros((3, len(LAGS)))  # sums of all blocks

    def add(self, picture: np.ndarray, lines: int) -> None:
        """Take the small picture of the next frame, whose shorter side is `lines`."""
        self.tiny = min(lines, self.lines) < TINY
        # an encoder changes the mean of few pixels more, and moves it late
        while SIDE // self.joined * CELL_LINES > min(lines, self.lines) and self.joined < SIDE // 2:
            self.joined *= 2
        self.waiting.append(picture.ravel())
        if len(self.waiting) == BLOCK:
            self._judge()

    def finish(self) -> str:
        """Return what is wrong, or "", after the last frame."""
        if self.waiting:
            self._judge()
        self._judge_motion(self.film, 0)
        return self.reason

    def _judge(self) -> None:
        numbers = slice(self.frames, self.frames + len(self.waiting))
        self.frames += len(self.waiting)
        shown_B, damaged_B = self.earliest[numbers], self.damaged[numbers]
        output_BC = self._join(np.array(self.waiting[:len(shown_B)]))
        self.waiting = []
        if not len(shown_B):  # more frames than the source has: the count is judged elsewhere
            return
        error_BC, other_BC = (output_BC - self._shown(shown) for shown in (shown_B, self.latest[numbers]))
        later_B = (other_BC ** 2).sum(1) < (error_BC ** 2).sum(1)
        shown_B = np.where(later_B, self.latest[numbers], shown_B)
        error_BC = np.where(later_B[:, None], other_BC, error_BC)
        error_BC[damaged_B] = 0
        cell_B, picture_B = np.abs(error_BC).max(1), np.sqrt((error_BC ** 2).mean(1))
        self._keep(cell=cell_B.max(), picture=picture_B.max())
        if not self.reason and (wrong_B := (cell_B >= CELL) | (picture_B >= PICTURE)).any():
            self.reason = self._describe(numbers.start + int(wrong_B.argmax()), output_BC[wrong_B.argmax()],
                                         int(shown_B[wrong_B.argmax()]))
        self._judge_contrast(output_BC[~damaged_B], self._shown(shown_B[~damaged_B]), numbers.start)
        sums = np.zeros((3, len(LAGS)))
        for place, lag in enumerate(LAGS):
            motion_BC = self._motion(shown_B, np.clip(shown_B + lag, 0, len(self.source) - 1), damaged_B)
            sums[0, place], sums[1, place] = (error_BC * motion_BC).sum(), (motion_BC ** 2).sum()
        if self.before is not None:
            output_BC, shown_B = np.vstack([self.before[0], output_BC]), np.append(self.before[1], shown_B)
            damaged_B = np.append(self.before[2], damaged_B)
        moved_BC = self._motion(shown_B[:-1], shown_B[1:], damaged_B[:-1] | damaged_B[1:])
        sums[2, :2] = (np.diff(output_BC, axis=0) * moved_BC).sum(), (moved_BC ** 2).sum()
        self.before = output_BC[-1], shown_B[-1], damaged_B[-1]
        self.film += sums
        self.recent.append(sums)
        self._judge_motion(sums, numbers.start)
        self._judge_motion(sum(self.recent), max(0, numbers.start - (len(self.recent) - 1) * BLOCK))

    def _join(self, pictures_BC: np.ndarray) -> np.ndarray:
        """Return the means of joined cells, float32 (B, fewer cells)."""
        side, joined = SIDE // self.joined, self.joined
        if joined == 1:
            return pictures_BC.astype(np.float32)
        return pictures_BC.reshape(-1, side, joined, side, joined).mean((2, 4), np.float32).reshape(-1, side * side)

    def _shown(self, numbers_B: np.ndarray) -> np.ndarray:
        return self._join(self.source[numbers_B])

    def _motion(self, here_B: np.ndarray, there_B: np.ndarray, damaged_B: np.ndarray) -> np.ndarray:
        """Return the cells of one frame of the source less those of another; 0 where a cell hardly differs."""
        motion_BC = self._shown(there_B) - self._shown(here_B)
        motion_BC[np.abs(motion_BC) < MOVED] = 0
        motion_BC[damaged_B] = 0
        return motion_BC

    def _judge_motion(self, sums: np.ndarray, first: int) -> None:
        """Judge a block, or all of the video, by the sums that `_judge` made.

        The share of the motion from the frame that is due to another frame that the output has made is 0 if it shows
        the former, and 1 if it shows the latter. The share of motion is what the output has of the source's changes
        from frame to frame.
        """
        share = np.where(sums[1] >= EVIDENCE, sums[0] / np.maximum(sums[1], 1), 0)
        still = sums[2, 0] / sums[2, 1] if sums[2, 1] >= EVIDENCE else 1.0
        self._keep(shift=share.max(), still=still)
        if self.reason:
            return
        if share.max() > SHIFTED and not self.tiny:
            late = "earlier" if LAGS[int(share.argmax())] < 0 else "later"
            self.reason = f"from about {first / self.rate:.1f} s on it shows {late} pictures than the source"
        elif still < STILL:
            self.reason = f"from about {first / self.rate:.1f} s on it stands still, which the source does not"

    def _judge_contrast(self, output_BC: np.ndarray, source_BC: np.ndarray, first: int) -> None:
        """Compare contrasts: full range taken for limited range makes it 1.16, the other way 0.86."""
        if not len(output_BC):
            return
        output_C, source_C = output_BC.mean(0), source_BC.mean(0)
        output_C, source_C = output_C - output_C.mean(), source_C - source_C.mean()
        if source_C.std() < PICTURE:
            return
        contrast = float((output_C * source_C).sum() / (source_C ** 2).sum())
        self._keep(contrast=abs(contrast - 1))
        if not self.reason and abs(contrast - 1) > CONTRAST:
            self.reason = (f"at {first / self.rate:.1f} s its contrast is {contrast:.2f} of the source's: "
                           "is it of another colour range?")

    def _keep(self, **measured: float) -> None:
        """Keep the value nearest to its limit, to show the margin."""
        for name, value in measured.items():
            worse = min if name == "still" else max
            self.largest[name] = worse(self.largest[name], float(value))

    def _describe(self, number: int, output_C: np.ndarray, shown: int) -> str:
        """Say what a wrong frame shows."""
        def fits(source_NC: np.ndarray) -> np.ndarray:
            error_NC = output_C - source_NC
            return np.where((np.abs(error_NC).max(1) < CELL), (error_NC ** 2).mean(1), np.inf)
        due = self._shown(np.array([shown])).reshape(2 * [SIDE // self.joined])
        turned = [np.rot90(picture, turn).ravel() for picture in (due, due[:, ::-1]) for turn in range(4)]
        start = f"at {number / self.rate:.2f} s it shows "
        if fits(np.array(turned[1:])).min() < PICTURE ** 2:
            return start + "the source's picture turned or mirrored"
        errors = np.concatenate([fits(self._join(self.source[first:first + 4096]))
                                 for first in range(0, len(self.source), 4096)])
        best = int(errors.argmin())
        if errors[best] < PICTURE ** 2:
            return start + f"the source's frame {best} instead of {shown}"
        return start + "another picture than the source"
