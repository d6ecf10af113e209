"""Where EgoTaskQA's clips are: files of their own, stretches of LEMMA's videos, or pictures of the videos' frames."""
import re
import string
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from egokit.config.build import ConfigError
from egokit.data.video import clips, frame_sampling, picture_files
from egokit.data.video.timeline import ROUNDING
from egokit.tasks.taskqa.annotations import FPS, ClipName

PLACES = {"clip": "the clip's name", "video": "its video", "view": "fpv1 or fpv2",
          "frame": "a picture's number, from 1"}
WIDTH = re.compile(r"0\d{1,2}d?|d")  # format of a picture's number: 05d has leading zeros
EXPECTED = ("expected one of EgoTaskQA/qa_videos/{clip}.mp4, LEMMA/{video}/{view}.mp4 and "
            "LEMMA/{video}/{view}/img_{frame:05d}.jpg, with your folders and suffix; what stands in braces may be "
            + ", ".join(f"{{{name}}} ({meaning})" for name, meaning in PLACES.items()))


class ClipFiles:
    """Reads clips by their names, from where a pattern says that they are.

    All three kinds of patterns give the same frames of a clip. A name's frames are counted at FPS frames a second, so
    those of a video of another rate are found by time.

    Args:
        root: the data root, on which a relative pattern stands.
        pattern: task.clips.
        reader: "pyav" or "decord".
    """

    def __init__(self, root: Path, pattern: str, reader: str = "pyav"):
        self.root, self.pattern, self.reader = Path(root), pattern, reader
        try:
            parts = list(string.Formatter().parse(pattern))
        except ValueError as error:
            raise ConfigError(f"task.clips is {pattern!r:.120} ({error}): {EXPECTED}") from None
        self.places = {name for _, name, _, _ in parts if name is not None}
        for _, name, spec, conversion in parts:
            if name is not None and name not in PLACES:
                raise ConfigError(f"task.clips is {pattern!r:.120}, with {{{name}}}, which is not known: {EXPECTED}")
            if conversion or (spec and (name != "frame" or not WIDTH.fullmatch(spec))):
                raise ConfigError(f"task.clips is {pattern!r:.120}: {{{name}}} can't be written so: {EXPECTED}")
        if self.places not in ({"clip"}, {"video", "view"}, {"video", "view", "frame"}):
            raise ConfigError(f"task.clips is {pattern!r:.120}, which names no clip or too much of it: {EXPECTED}")

    @property
    def folder(self) -> Path:
        """The folder above all that the pattern names."""
        above, part = [], ""
        for part in Path(self.pattern).parts:
            if "{" in part:
                break
            above.append(part)
        return self.root.joinpath(*above)

    def path(self, name: str, frame: int = 0) -> Path:
        """Return the file of a clip, or the picture of a frame of its video.

        Args:
            name: the clip's.
            frame: number of the video's frame, from 0; pictures are numbered from 1.

        Raises:
            ValueError: the name is no clip's.
        """
        clip = ClipName.parse(name)
        return self.root / self.pattern.format(clip=name, video=clip.video, view=clip.view, frame=frame + 1)

    def absent(self, names: Iterable[str]) -> list[str]:
        """Return the names of clips whose file, or whose first or last picture, is not there."""
        def is_there(name: str) -> bool:
            clip = ClipName.parse(name)
            frames = (clip.start, clip.stop - 1) if "frame" in self.places else (0,)
            return all(self.path(name, frame).is_file() for frame in frames)
        return [name for name in names if not is_there(name)]

    def read(self, name: str, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Read a clip: a frame of each of equal parts.

        Args:
            frames: how many; a shorter clip's last frame is repeated.
            rng: None for the middle of each part, a Generator for a random frame of each.

        Returns:
            uint8 (frames, H, W, 3), RGB.

        Raises:
            FileNotFoundError, VideoError: the clip's file is missing, or can't be read; the message names it.
        """
        def parts(length: int) -> np.ndarray:
            return frame_sampling.pad_indices(frame_sampling.whole_video(length, frames, rng), frames)

        path = self.path(name)
        if self.places == {"clip"}:
            return clips.read(path, lambda length, rate: parts(length), self.reader, by="frames")
        clip = ClipName.parse(name)
        if "frame" in self.places:
            numbers = clip.start + parts(clip.stop - clip.start)
            return picture_files.read([self.path(name, number) for number in numbers.tolist()])

        def pick(length: int, rate: float) -> np.ndarray:
            frames_of_video = int(length / rate * FPS + ROUNDING)
            first = frame_sampling.first_frame(path, clip.start, frames_of_video, FPS)
            last = max(first + 1, min(clip.stop, frames_of_video))
            return (first + parts(last - first)) * (rate / FPS)
        return clips.read(path, pick, self.reader)

    def seconds_of(self, name: str) -> tuple[Path, float]:
        """Return a clip's video, and when the clip ends in it (s), for the checks of a site; not of pictures."""
        clip = ClipName.parse(name)
        return self.path(name), clip.seconds if self.places == {"clip"} else clip.stop / FPS

    def expect(self, names: list[str], tolerant: bool) -> None:
        """Raise FileNotFoundError if clips are not there, before anything is computed.

        Args:
            tolerant: allow some to be missing, which the reader of each will notice, but not all.
        """
        absent = self.absent(names)
        if absent and (not tolerant or len(absent) == len(names)):
            frame = max(0, ClipName.parse(absent[0]).start) if "frame" in self.places else 0
            raise FileNotFoundError(f"{self.path(absent[0], frame)} is missing, and so are {len(absent) - 1} of the "
                                    f"{len(names) - 1} other clips: put them there, or correct task.clips, "
                                    f"{self.pattern!r:.120}")
