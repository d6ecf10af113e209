"""The doors behind which whole videos are read: `egokit prep` and its pieces, and search with its windows."""
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from reading_studio import HEIGHT, Case
from reading_truth import alike, truth

from egokit.data.video import clips, frame_sampling, open_video, transforms
from egokit.prep import video as prep
from egokit.search.index_task import Search, VideoWindows

PIECE = 2.0  # seconds
WINDOW, STRIDE, T, SIDE = 1.0, 0.5, 4, HEIGHT


def prepared(path: Path, case: Case, say) -> str:
    """Prepare a file as a source and compare the prepared frames with the source's at the same time.

    Returns:
        "prepared", or the reason why not.
    """
    root = path.parent / f"prepared {path.name}"
    settings = prep.PrepSettings(root, short_side=HEIGHT, chunk_seconds=PIECE)
    source = prep.SourceVideo("film", path, path.stat().st_size)
    receipt = prep.prepare_video(source, settings, threading.Event())
    if receipt["status"] != "ok":
        return receipt["reason"].replace(str(path), "").lstrip(": ")
    video = open_video.open_video(settings.resized_path("film"))
    pixels = video.read(range(video.length))
    shown = truth(case.original() if case.original else path, case.film, video.width, video.height, case.joined)
    lost = receipt["source"].get("damaged_times", [])

    def wrong(number: int, picture: np.ndarray) -> bool:
        time = shown.times[0] + number / video.fps
        near = range(shown.at(time - 1.1 / video.fps), shown.at(time + 1.1 / video.fps) + 1)
        near = range(len(shown.times)) if case.shifted else near
        # it is encoded anew, and encoders give frames that are shown very shortly fewer bits
        limits = tuple((2 if video.fps < 200 else 3) * limit for limit in shown.limits)
        return not any(alike(picture, shown.pictures[n], limits) for n in near)
    bad = [n for n in range(video.length) if wrong(n, pixels[n])
           and not any(start - 0.1 <= n / video.fps + shown.times[0] <= stop + 0.1 for start, stop in lost)]
    if bad and not (case.silent or case.torn):
        say(f"prep: another picture at {len(bad)} of {video.length} frames (first {bad[0]})")
    if not case.original and abs(video.seconds - (shown.times[-1] - shown.times[0])) > 0.2 + 3.2 / video.fps:
        say(f"prep: {video.seconds:.2f} s, the source shows {shown.times[-1] - shown.times[0]:.2f} s")
    check_pieces(settings.pieces_folder("film"), video, pixels, say)
    for used in (settings.resized_path("film"), *settings.pieces_folder("film").iterdir()):
        open_video.forget(used)
    return "prepared"


def check_pieces(folder: Path, video, pixels: np.ndarray, say) -> None:
    """Compare clips of the pieces, one of them across two pieces, with the resized video's frames."""
    for start, stop in ((0.0, 0.5), (PIECE - 0.3, PIECE + 0.3), (max(0.0, video.seconds - 0.5), video.seconds)):
        if start >= video.seconds:
            continue

        def pick(first: int, last: int) -> np.ndarray:
            return frame_sampling.sample_frames(first, last, 4)
        got = clips.read_chunked(folder, start, stop, pick, PIECE)
        first = int(start // PIECE) * PIECE * video.fps
        expected = first + pick(int(start * video.fps - first), max(
            int(start * video.fps - first) + 1, int(min(stop, video.seconds) * video.fps - first)))
        numbers = np.clip(expected, 0, video.length - 1).astype(int)
        if not all(any(alike(a, pixels[min(video.length - 1, max(0, n + off))], (5.0, 60.0)) for off in (-1, 0, 1))
                   for a, n in zip(got, numbers, strict=True)):
            say(f"prep: the pieces show other pictures at {start:.2f}-{stop:.2f} s than the resized video")


def indexed(path: Path, case: Case, say) -> str:
    """Read the windows of search's index and compare each frame with those that are shown in its part of the window.

    Returns:
        "indexed", or "indexed, damage reported"; a file that can't be indexed is a VideoError.
    """
    task = Search.__new__(Search)       # without a tokenizer: nothing is asked
    task.config = SimpleNamespace(
        seed=0, task=SimpleNamespace(window=WINDOW, stride=STRIDE), evaluate=SimpleNamespace(batch_size=64),
        model=SimpleNamespace(frames=T, image_size=SIDE), data=SimpleNamespace(reader="pyav", eval_resize=SIDE))
    windows, batches = VideoWindows(task, path), []
    while len(item := windows.read(len(batches), None)["video"]):
        batches.append(item)
    read = windows.read(len(batches), None)["read"]
    video, frames = open_video.open_video(path, tolerant=True), np.concatenate(batches).transpose(0, 1, 3, 4, 2)
    shown = truth(case.original() if case.original else path, case.film, video.width, video.height, case.joined)
    pictures = transforms.evaluation(shown.pictures, SIDE, SIDE).permute(0, 2, 3, 1).numpy()
    step = float(np.median(np.diff(shown.times))) if len(shown.times) > 1 else 0.0
    wrong = []
    for window, (start, stop) in enumerate(zip(*read["spans"], strict=True)):
        part = (stop - start) / T
        for place in range(T):
            first, last = start + place * part - 1.1 * step, start + (place + 1) * part + 1.1 * step
            near = range(len(pictures)) if case.shifted else range(shown.at(first), shown.at(last) + 1)
            limits = tuple(1.5 * limit for limit in shown.limits)
            if not read["damaged_WT"][window, place] and not any(
                    alike(frames[window, place], pictures[n], limits) for n in near):
                wrong.append((window, place))
    if wrong and not case.silent:
        say(f"search: another picture at {len(wrong)} of {len(frames) * T} places (first: window {wrong[0][0]})")
    return "indexed, damage reported" if read["times"] else "indexed"
