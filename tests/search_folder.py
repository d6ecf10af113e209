"""A folder of three videos for tests of search, and how it is indexed."""
import shutil
import subprocess

import av

from egokit import tasks
from egokit.config.build import merge
from egokit.config.resolve import parse_overrides, resolve
from egokit.model import weights
from egokit.prep.video import ffmpeg
from egokit.runs.run_folder import Run

RECIPE = "toy/search"


def video(path, seconds=5, rate=10, size="128x96", more=()):
    """Write a real video of ffmpeg's moving test pattern."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern = f"testsrc2=size={size}:rate={rate}:duration={seconds}"
    subprocess.run([ffmpeg(), "-y", "-loglevel", "error", "-f", "lavfi", "-i", pattern, *more, str(path)], check=True)
    return path


def damage(path, start, stop):
    """Overwrite the packets of a video from one second to another by zeros; those that follow refer to them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        places = [(packet.pos, packet.size) for packet in container.demux(stream)
                  if packet.pts is not None and start <= packet.pts * stream.time_base < stop]
    with open(path, "r+b") as file:
        for place, size in places:
            file.seek(place)
            file.write(bytes(size))
    return path


def three_videos(project, root):
    """Make a folder of two of the toy's videos, one in a sub-folder, and a short one of another format; return it."""
    toys = sorted((project / "outputs/toy/Ego4D").glob("*.mp4"))
    (root / "inner").mkdir(parents=True)
    shutil.copy(toys[0], root / "one.mp4")
    shutil.copy(toys[1], root / "inner/two.MP4")
    video(root / "short.mkv", seconds=1.3, rate=30, size="160x120")
    return root


def searching(folder, runs):
    """Return a function that makes the folder's config, and one that indexes it in a run of the folder `runs`."""
    def config(overrides=""):
        own = {"task.videos": str(folder), "data.limit": 0, "evaluate.batch_size": 8}
        own |= dict(pair.split("=") for pair in overrides.split())
        one_process = parse_overrides("launch.tasks_per_node=1")
        return resolve(RECIPE, "tiny", merge(one_process, parse_overrides(own)), "random")

    def index(overrides="", name="run"):
        resolved, run = config(overrides), Run(runs / name)
        return resolved, run, tasks.make(resolved).extract(weights.initial_model(resolved).eval(), run)
    return config, index
