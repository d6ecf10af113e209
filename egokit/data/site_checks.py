"""Checks of a site's files for `egokit doctor`: the `Finding` record, and what the checks of all tasks share.

`Task.check_site` of a task's class says what is checked; egokit/prep/doctor.py runs the checks of all tasks.
"""
import collections
import dataclasses
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np

from egokit.config.schema import Config
from egokit.data import annotation_json
from egokit.data.video import open_video as video

SAMPLE = 40  # videos opened per table; 0 opens all
EGO4D = ("sign the licence at https://ego4d-data.org, then: "
         "pip install ego4d && ego4d --datasets {} --benchmarks mq -o DIR")


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""
    part: str      # what was examined: the machine, the models or a data set
    what: str      # the file, table or property that was checked
    state: str     # "ok", "note" (worth knowing), "missing" (a file) or "wrong" (files contradict each other)
    message: str
    fix: str = ""  # the command or page that puts it right


class Checks:
    """Checks of the files under a site's data root.

    Attributes:
        config: the config whose site is examined.
        root: the data root.
        sample: number of videos opened per table; 0 opens all.
        prep: the command that makes derived files; prep_ego4d makes the prepared videos of Ego4D.
    """

    def __init__(self, config: Config, sample: int = SAMPLE):
        self.config, self.sample = config, sample
        self.root = Path(config.site.root).expanduser()
        self.prep = f"egokit prep --site {config.site.name}"
        self.prep_ego4d = f"egokit prep ego4d --site {config.site.name}"

    def check_file(self, part: str, path: Path, fix: str, message: str = "found") -> Finding:
        """Check that a file or folder exists; `message` is reported if it does, `fix` if not."""
        name = str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
        if path.exists():
            return Finding(part, name, "ok", message)
        return Finding(part, name, "missing", "not there", fix)

    def check_prepared(self, part: str) -> Iterator[Finding]:
        """Check the full Ego4D videos, and what the manifest of `egokit prep` says of them."""
        full, chunked, manifest = (self.root / name for name in ("Ego4D", "Ego4D_Chunked", "prepared.json"))
        files = collections.Counter(path.stem for path in full.glob("[!.]*") if path.suffix.lower() in video.SUFFIXES)
        if files or not chunked.is_dir():
            yield self.check_file(part, full, EGO4D.format("full_scale"), f"{len(files):,} full videos")
        for uid in sorted(uid for uid, count in files.items() if count > 1):
            yield Finding(part, full.name, "wrong", f"several files are video {uid}", "keep one of them")
        message = f"{sum(1 for _ in chunked.iterdir()):,} videos in pieces" if chunked.is_dir() else ""
        yield self.check_file(part, chunked, self.prep_ego4d, message)
        if manifest.is_file():
            lines = annotation_json.read_manifest(manifest)
            failed = [line for line in lines if line["status"] == "failed"]
            done = sum(line["status"] == "ok" for line in lines)
            message, fix = f"{done:,} videos verified", ""
            if failed:
                message += f", {len(failed):,} failed: {failed[0].get('reason', '')}"
                fix = f"{self.prep_ego4d} (tries them again)"
            yield Finding(part, manifest.name, "wrong" if failed else "ok", message, fix)
            if (pending := len(files) - done - len(failed)) > 0:
                yield Finding(part, full.name, "wrong", f"{pending:,} full videos are not prepared yet",
                              self.prep_ego4d)

    def video_seconds(self, path: Path) -> float:
        """Return the length of a video in seconds; of a folder of pieces, only the last piece is opened."""
        before = 0.0
        if path.is_dir():
            pieces = sorted(int(piece.stem) for piece in path.glob("*.mp4"))
            if not pieces:
                raise video.VideoError(f"{path} holds no pieces")
            before = pieces[-1] * self.config.site.chunk_seconds
            path = path / f"{pieces[-1]}.mp4"
        opened = video.open_video(path, self.config.data.reader)
        return before + opened.length / opened.fps

    def check_rows(self, part: str, rows: str, names: Collection[str], folder: Path, fix: str,
                   stops: Collection[float] = (), seconds: Callable[[Path], float] | None = None) -> Iterator[Finding]:
        """Compare the rows of a table with the videos under `folder`.

        Reports rows whose videos are absent. With `stops` it also opens a sample of the videos, and reports rows that
        end after their video does and files that can't be opened.

        Args:
            rows: what the table's rows are called.
            names: each row's video, as it is named under `folder`.
            stops: seconds at which each row ends.
            seconds: returns the length of a video, by default `video_seconds`.
        """
        counts = collections.Counter(names)
        absent = sorted(name for name in counts if not (folder / name).exists())
        if absent:
            yield Finding(part, rows, "wrong",
                          f"{sum(counts[name] for name in absent):,} of {sum(counts.values()):,} are of "
                          f"{len(absent):,} videos that are not under {folder.name}/, such as {absent[0]}", fix)
        else:
            yield Finding(part, rows, "ok", f"all {len(counts):,} videos are there")
        if not len(stops):
            return
        import pandas  # here, as in data/: every task imports this module
        last_stop = pandas.Series(np.asarray(stops, float)).groupby(np.asarray(names, object)).max()
        present = sorted(counts.keys() - set(absent))
        sample = present[::max(1, len(present) // self.sample)][:self.sample] if self.sample else present
        broken, beyond = [], []
        for name in sample:
            try:
                end = (seconds or self.video_seconds)(folder / name)
            except (video.VideoError, OSError) as error:
                broken.append(str(error))
            else:
                if last_stop[name] > end + 1.0:
                    beyond.append(f"{name} ({last_stop[name]:.1f} s, the video has {end:.1f} s)")
        if broken:
            yield Finding(part, rows, "wrong", f"{len(broken)} of {len(sample)} videos opened are damaged: {broken[0]}",
                          fix)
        if beyond:
            yield Finding(part, rows, "note",
                          f"{len(beyond)} of {len(sample)} videos opened have rows beyond their end, "
                          f"read at their last frames: {beyond[0]}")
        if sample and not broken and not beyond:
            yield Finding(part, rows, "ok", f"{len(sample)} of {len(present)} videos opened: rows end within them")
