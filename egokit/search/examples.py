"""What is searched by example: a moment of an indexed video, a video file, a picture, a hit, or a clip's frames."""
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from egokit.config.build import ConfigError, did_you_mean
from egokit.config.names import printable
from egokit.config.schema import Config
from egokit.data.video import open_video, picture_files
from egokit.data.video.open_video import VideoError
from egokit.model.precision import autocast
from egokit.search.hits import Hit, timecode
from egokit.search.index_task import clip_times, list_videos, video_folder
from egokit.search.moments import Own
from egokit.search.vector_index import unit
from egokit.tasks.windows import reading

LONGEST = 120    # seconds of an example: beyond, it is no example of one thing
NEAR = 2e-3      # seconds within which a moment is an indexed clip: their times are rounded to milliseconds
ROUNDED = 0.05   # seconds by which a time that is shown may lie before the one that is meant
PICTURES = (".jpg", ".jpeg", ".png")
TIME = r"(?:\d+:)?(?:\d+:)?\d+(?:\.\d+)?"
TO = r"\s*[-–]\s*"
MOMENT = re.compile(rf"(?P<video>.+)@(?P<start>{TIME})(?:{TO}(?P<stop>{TIME})"
                    rf"(?:\s+in\s+(?P<first>{TIME}){TO}(?P<last>{TIME}))?)?", re.DOTALL)
EXPECTED = ("expected a moment of a video (VIDEO@1:23 or VIDEO@1:23-1:27), a video's or picture's file "
            f"({', '.join(PICTURES)}), or in Python a hit or frames")


class Example(NamedTuple):
    """An example to search by."""
    name: str          # for display
    vector_E: np.ndarray
    own: Own | None    # where the index has it


class Library(NamedTuple):
    """The videos that an example may name without its path."""
    folder: Path
    videos: list[dict]  # each has "video", its path in the folder, and "bytes"
    config: Config


class Place(NamedTuple):
    """A stretch of a video, before it is read."""
    path: Path
    name: str          # of the video, for display
    file: int | None   # its number in the index, if it is there
    start: float       # seconds on the player's clock
    stop: float
    around: tuple[float, float]  # the moment that it belongs to
    near: float = NEAR  # seconds by which these times may differ from those that are meant


def seconds(text: str) -> float:
    """Return the seconds of a time such as '83.5', '1:23.5' or '1:02:03'."""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def is_picture(text: str) -> bool:
    """Whether a text names a picture's file."""
    return Path(text).suffix.lower() in PICTURES


def check_example(config: Config, text: str) -> None:
    """Raise what `read_example` raises of a text, as far as that is known before the folder is indexed.

    Args:
        config: The config of the search.
        text: The example, as `--like` gives it.

    Raises:
        ConfigError: It names nothing that is there.
        VideoError: The video can't be opened.
    """
    if is_picture(text):
        _picture(text)
    else:
        _named(Library(video_folder(config), list_videos(config), config), text)


def read_example(searcher, like) -> Example:
    """Return the vector of an example, and where the index has it.

    A clip is embedded as the index's are. One that is longer than the index's windows is cut as the index cuts videos,
    and stands for the mean of its windows; a picture is repeated to a clip's frames. A hit stands for its best clip,
    and all of its moment is its own.

    Args:
        searcher: The Searcher.
        like: 'VIDEO@1:23' (the window around it), 'VIDEO@1:23-1:27', a video's file (all of it), a picture's file, a
            Hit or its `place`, or frames, uint8 (T, 3, size, size), as `searcher.clip` gives them. A VIDEO is named as
            hits name it, by the end of its name if no other has it, or by any path.

    Raises:
        ConfigError: It is none of these; the message says what was expected.
        VideoError: The video or picture can't be read.
    """
    library = Library(searcher.folder, searcher.manifest["videos"], searcher.task.config)
    if isinstance(like, torch.Tensor):
        return Example("frames", _embed(searcher, [_checked(searcher, like)]), None)
    if isinstance(like, (str, os.PathLike)):
        text = os.fspath(like)
        if is_picture(text):
            return Example(printable(text), _embed(searcher, [_still(searcher, text)]), None)
        place = _named(library, text)
    elif isinstance(like, Hit):
        place = Place(like.path, like.video, _indexed(library, like.path), *like.scored, (like.start, like.stop))
    else:
        raise ConfigError(f"like={like!r:.80}: {EXPECTED}")
    vector_E = None
    if place.file is not None:
        place, vector_E = _stored(searcher.vectors.rows(place.file), place)
    if vector_E is None:
        task = searcher.task
        windows = zip(*clip_times(place.stop, task.config.task.window, task.config.task.stride, place.start),
                      strict=True)
        vector_E = _embed(searcher, [task.clip(place.path, *window) for window in windows])
    start, stop = place.around
    own = None if place.file is None else Own(place.file, start, stop)
    return Example(f"{place.name} {timecode(start)}–{timecode(stop)}", vector_E, own)


def _named(library: Library, text: str) -> Place:
    """Return the video, or the moment of a video, that a text names.

    Raises:
        ConfigError: There is no such video or moment, or it is too long for an example.
    """
    moment = None if Path(text).expanduser().is_file() else MOMENT.fullmatch(text)
    name = moment["video"] if moment else text
    path, file = _video(library, name)
    with reading(path):
        video = open_video.open_video(path, library.config.data.reader, tolerant=True)
        begin, end = video.start, video.seconds
    name, start, stop = printable(name), begin, end
    if moment:
        start = seconds(moment["start"])
        start = begin if begin - ROUNDED <= start < begin else start  # a hit of the first clip, as it is shown
        if not begin <= start < end:
            raise ConfigError(f"{printable(text)}: the video has pictures from {timecode(begin)} to {timecode(end)}; "
                              "expected a moment in between")
        if moment["stop"]:
            stop = min(end, seconds(moment["stop"]))
            if stop <= start:
                raise ConfigError(f"{printable(text)}: it ends before it starts; expected VIDEO@START-STOP, such as "
                                  "VIDEO@1:23-1:27")
        else:
            window = library.config.task.window
            start = max(begin, min(start - window / 2, end - window))
            stop = min(end, start + window)
    if stop - start > LONGEST:
        raise ConfigError(f"{printable(text)}: {stop - start:.0f} s long; expected an example of at most {LONGEST} s: "
                          f"name a moment of it, such as {name}@1:23 or {name}@1:23-1:27")
    around = (start, stop)
    if moment and moment["last"]:
        around = min(start, seconds(moment["first"])), max(stop, min(end, seconds(moment["last"])))
    return Place(path, name, file, start, stop, around, ROUNDED + NEAR if moment and moment["stop"] else NEAR)


def _video(library: Library, name: str) -> tuple[Path, int | None]:
    """Return the file of a video and its number in the index, None where it isn't there."""
    videos = library.videos
    for wanted in (lambda video: name in (video, printable(video)), lambda video: Path(video).name == name):
        files = [file for file, line in enumerate(videos) if wanted(line["video"])]
        if len(files) == 1:
            return library.folder / videos[files[0]]["video"], files[0]
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in open_video.SUFFIXES:
            raise ConfigError(f"{printable(name)}: neither a video's nor a picture's file; {EXPECTED}")
        return path, _indexed(library, path)
    if files:
        raise ConfigError(f"{printable(name)}: {len(files)} videos are called so; name one with its folder, such as "
                          f"{printable(videos[files[0]]['video'])!r}")
    hint = did_you_mean(name, (printable(line["video"]) for line in videos[:1000]))
    raise ConfigError(f"{printable(name)}: no such file, and no video of {library.folder} ({hint:.300}); {EXPECTED}")


def _indexed(library: Library, path: Path) -> int | None:
    """Return a file's number in the index, None where it isn't there."""
    for file, line in enumerate(library.videos):
        if library.folder / line["video"] == path:  # which may be gone by now
            return file
    if not path.is_file():
        return None
    size = path.stat().st_size
    for file, line in enumerate(library.videos):
        if line["bytes"] == size:  # most others are not even looked at
            indexed = library.folder / line["video"]
            if indexed.is_file() and path.samefile(indexed):
                return file
    return None


def _stored(rows: np.ndarray, place: Place) -> tuple[Place, np.ndarray | None]:
    """Return a place with the times of the indexed clip that it is, and that clip's vector, which needn't be read.

    Of a place that is no indexed clip, the vector is None.
    """
    apart_N = np.maximum(np.abs(rows["start"] - place.start), np.abs(rows["stop"] - place.stop))
    if apart_N.min() > place.near:
        return place, None
    row, (first, last) = rows[apart_N.argmin()], place.around
    start_N, stop_N = (rows[name][np.abs(rows[name] - time) <= place.near]
                       for name, time in (("start", first), ("stop", last)))
    around = (float(min(start_N, key=lambda time: abs(time - first), default=first)),
              float(min(stop_N, key=lambda time: abs(time - last), default=last)))
    place = place._replace(start=float(row["start"]), stop=float(row["stop"]), around=around)
    return place, row["vector"].astype(np.float32)


def _picture(text: str) -> np.ndarray:
    """Return a picture, uint8 (1, H, W, 3)."""
    try:
        return picture_files.read([Path(text).expanduser()])
    except FileNotFoundError:
        raise ConfigError(f"{printable(text)}: no such picture; {EXPECTED}") from None
    except VideoError as error:
        raise ConfigError(f"{printable(str(error)).partition(';')[0]}; expected a whole JPEG or PNG file: save it "
                          "anew") from None


def _still(searcher, text: str) -> torch.Tensor:
    """Return a picture as a clip that shows nothing else, uint8 (T, 3, size, size)."""
    return searcher.task.transform(_picture(text), None).expand(searcher.task.config.model.frames, -1, -1, -1)


def _checked(searcher, frames: torch.Tensor) -> torch.Tensor:
    size = searcher.model.image_size
    most = searcher.task.config.model.frames
    if frames.dtype != torch.uint8 or frames.dim() != 4 or tuple(frames.shape[1:]) != (3, size, size) or not (
            1 <= len(frames) <= most):
        raise ConfigError(f"like: frames of {tuple(frames.shape)}, {frames.dtype}; expected uint8 (T, 3, {size}, "
                          f"{size}) with T from 1 to {most}, such as searcher.clip(hit) gives")
    return frames


@torch.no_grad()
def _embed(searcher, clips: list[torch.Tensor]) -> np.ndarray:
    """Return the mean (E,) of the clips' unit vectors."""
    evaluate, vectors = searcher.task.config.evaluate, []
    for first in range(0, len(clips), evaluate.batch_size):
        pixels = torch.stack(clips[first:first + evaluate.batch_size]).to(searcher.model.device)
        with autocast(searcher.model.device, evaluate.precision):
            vectors.append(searcher.model.embed_video(searcher.model.normalise(pixels)).float().cpu())
    return unit(torch.cat(vectors).numpy()).mean(0)
