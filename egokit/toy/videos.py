"""Turn the schedule into MP4 files: draw, number and encode frames, in several processes.

Clips of EgoTaskQA are files of their own, cut out of Ego4D's videos: they carry the numbers of the video's frames.

    python -m egokit.toy.videos ROOT SEED SIZE UID...      # encode these videos

Finished files are renamed into place and kept, so an interrupted run continues where it stopped. Workers are plain
subprocesses that draw the schedule again: nothing is pickled, and a caller needs no __main__ guard.
"""
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from egokit.runs.files import atomic_path, remove_abandoned
from egokit.toy import stage
from egokit.toy.frame_number import write_frame_number
from egokit.toy.motion import pose_at
from egokit.toy.schedule import FPS, Action, Scene, ToyVideo, make_schedule
from egokit.toy.task_questions import draw_clips


def draw_frames(video: ToyVideo) -> Iterator[np.ndarray]:
    """Yield every frame of a video in order, uint8 (96, 128, 3), numbered from 0."""
    wearing = stage.wearer(video.corpus, video.seed)
    first = 0
    for scene in video.scenes:
        table = stage.build_stage(video.corpus, scene.seed)
        last = round(scene.stop * FPS)
        for number in range(first, last):
            frame_HWC = _draw_frame(table, scene, number / FPS, wearing)
            write_frame_number(frame_HWC, number)
            yield frame_HWC
        first = last


def _draw_frame(table: stage.Stage, scene: Scene, now: float, wearing) -> np.ndarray:
    action = _nearest_action(scene, now)
    if action is None:
        thing, motion = scene.resting
        return table.frame(pose_at(motion, -1), thing, wearing)
    pose = pose_at(action.motion, (now - action.start) / (action.stop - action.start))
    return table.frame(pose, action.thing, wearing, action.neighbour)


def _nearest_action(scene: Scene, now: float) -> Action | None:
    """Return the current or nearest action; objects change halfway between two actions."""
    def distance(action: Action) -> float:
        return max(action.start - now, now - action.stop, 0.0)
    return min(scene.actions, key=distance, default=None)


def encode(frames: Iterable[np.ndarray], path: Path) -> None:
    """Write frames as H.264 MP4.

    The encoder has one thread, so that the same frames give the same bytes.
    """
    import av
    with av.open(str(path.absolute()), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = stage.WIDTH, stage.HEIGHT, "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1", "g": "40"}
        for frame_HWC in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


def plan(seed: int, size: str) -> list[tuple[ToyVideo, dict[str, slice]]]:
    """Return every video with its files: {path under the data root: the frames of the video that it has}."""
    videos = make_schedule(seed, size)
    files = {video.uid: {video.path: slice(None)} for video in videos}
    for clip in draw_clips(seed, videos, size):
        files[clip.video.uid][clip.path] = slice(clip.first, clip.end)
    return [(video, files[video.uid]) for video in videos]


def encode_missing(root: Path, planned: list[tuple[ToyVideo, dict[str, slice]]], keep_going=lambda: True) -> None:
    """Encode those files that are not there yet, while `keep_going()` is true."""
    for video, files in planned:
        missing = {path: cut for path, cut in files.items() if not (root / path).exists()}
        if missing and keep_going():
            frames = list(draw_frames(video))
            for path, cut in missing.items():
                with atomic_path(root / path) as temporary:
                    encode(frames[cut], temporary)


def render(root: Path, seed: int, size: str, processes: int) -> None:
    """Encode all missing videos in `processes` processes, of which this process is one."""
    package_parent = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        filter(None, [package_parent, os.environ.get("PYTHONPATH")]))}
    planned = plan(seed, size)
    # resumed work is divided again, or one process might be left with all of it
    missing = [(video, files) for video, files in planned if not all((root / path).exists() for path in files)]
    processes = max(1, min(processes, len(missing) // 4))
    workers = [subprocess.Popen(
        [sys.executable, "-m", "egokit.toy.videos", str(root), str(seed), size,
         *(video.uid for video, _ in missing[share::processes])],
        env=environment, stderr=subprocess.PIPE, text=True) for share in range(1, processes)]
    try:
        encode_missing(root, missing[::processes])
        for worker in workers:
            _, errors = worker.communicate()
            if worker.returncode:
                raise RuntimeError(f"a process that draws the toy's videos failed:\n{errors.strip()}")
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
                worker.communicate()
    for folder in {(root / path).parent for _, files in planned for path in files}:
        remove_abandoned(folder)  # half-written files of a make that was killed


def main(arguments: list[str]) -> None:
    """Encode the videos of the command line: ROOT SEED SIZE UID..."""
    root, seed, size, *uids = arguments
    parent, wanted = os.getppid(), set(uids)
    # workers stop when their parent was killed
    encode_missing(Path(root), [item for item in plan(int(seed), size) if item[0].uid in wanted],
                   keep_going=lambda: os.getppid() == parent)


if __name__ == "__main__":
    main(sys.argv[1:])
