"""The `Finding` record, the fix for each missing file, and checks that data sets share."""
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from egokit.config.schema import Config
from egokit.data import annotation_json
from egokit.data.video import open_video as video
from egokit.prep.source import list_videos

SAMPLE = 40  # videos opened per table; 0 opens all
EGO4D = ("sign the licence at https://ego4d-data.org, then: "
         "pip install ego4d && ego4d --datasets {what} --benchmarks mq -o DIR")
FIXES = {
    "Ego4D": EGO4D.format(what="full_scale"),
    "moments": EGO4D.format(what="annotations"),
    "EgoClip": "get it from the EgoVLP project: https://github.com/showlab/EgoVLP (section 'EgoClip')",
    "EgoMCQ": "get it from the EgoVLP project: https://github.com/showlab/EgoVLP (section 'EgoMCQ')",
    "chunks": "egokit prep ego4d --site {site}",
    "EK annotations": "git clone https://github.com/epic-kitchens/epic-kitchens-100-annotations  (into ROOT/EK100/)",
    "EK videos": ("https://github.com/epic-kitchens/epic-kitchens-download-scripts, "
                  "then resize to 256 px on the short side"),
    "derived": "egokit prep --site {site}",
    "Charades annotations": ("CharadesEgo.zip of https://prior.allenai.org/projects/charades-ego  "
                             "(into ROOT/CharadesEgo/)"),
    "Charades videos": ("CharadesEgo_v1_480.tar of https://prior.allenai.org/projects/charades-ego  "
                        "(into ROOT/CharadesEgo/)"),
    "weights": "the checkpoints of https://github.com/facebookresearch/EgoVLPv2, into site.weights",
    "tokenizer": "set site.tokenizer to a folder with vocab.json and merges.txt, or go online once for a name",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""
    part: str      # what was examined: the machine, the models or a data set
    what: str      # the file, table or property that was checked
    state: str     # "ok", "note" (worth knowing), "missing" (a file) or "wrong" (files contradict each other)
    message: str      # the message
    fix: str = ""  # the command or page that puts it right


class Checks:
    """The checks that all parts of a site share; `sample` videos are opened per table."""

    def __init__(self, config: Config, sample: int = SAMPLE):
        self.config, self.site, self.sample = config, config.site, sample
        self.root = Path(config.site.root).expanduser()

    def fix(self, name: str) -> str:
        """Return the command or page of FIXES that provides a missing thing."""
        return FIXES[name].format(site=self.site.name)

    def check_file(self, part: str, path: Path, fix: str, message: str = "found") -> Finding:
        """Check that a file or folder exists; `message` is reported if it does, the fix if not."""
        name = str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
        if path.exists():
            return Finding(part, name, "ok", message)
        return Finding(part, name, "missing", "not there", self.fix(fix))

    def check_prepared(self, part: str) -> Iterator[Finding]:
        """Check the full Ego4D videos, and what the manifest of `egokit prep` says of them."""
        full, manifest = self.root / "Ego4D", self.root / "prepared.json"
        count = 0
        with contextlib.suppress(FileNotFoundError):
            count = len(list_videos(full))
        chunked = self.root / "Ego4D_Chunked"
        if count or not chunked.is_dir():
            yield self.check_file(part, full, "Ego4D", f"{count:,} full videos")
        message = f"{sum(1 for _ in chunked.iterdir()):,} videos in pieces" if chunked.is_dir() else ""
        yield self.check_file(part, chunked, "chunks", message)
        if manifest.is_file():
            lines = annotation_json.read_manifest(manifest)
            failed = [line for line in lines if line["status"] == "failed"]
            done = sum(line["status"] == "ok" for line in lines)
            message, fix = f"{done:,} videos verified", ""
            if failed:
                message += f", {len(failed):,} failed: {failed[0].get('reason', '')}"
                fix = f"{self.fix('chunks')} (tries them again)"
            yield Finding(part, manifest.name, "wrong" if failed else "ok", message, fix)
            if (pending := count - done - len(failed)) > 0:
                yield Finding(part, full.name, "wrong", f"{pending:,} full videos are not prepared yet",
                              self.fix("chunks"))

    def video_seconds(self, path: Path) -> float:
        """Return the length of a video file in seconds."""
        opened = video.open_video(path, self.config.data.reader)
        return opened.length / opened.fps

    def chunked_seconds(self, uid: str) -> float:
        """Return the length of a video that is stored in pieces; only the last piece is opened."""
        folder = self.root / "Ego4D_Chunked" / uid
        pieces = sorted(int(path.stem) for path in folder.glob("*.mp4"))
        if not pieces:
            raise video.VideoError(f"{folder} holds no pieces")
        return pieces[-1] * self.site.chunk_seconds + self.video_seconds(folder / f"{pieces[-1]}.mp4")

    def check_rows(self, part: str, rows: str, counts: Mapping[str, int], folder: Path, fix: str,
                   ends: dict[str, float] | None = None, seconds: Callable[[str], float] | None = None
                   ) -> Iterator[Finding]:
        """Compare the rows of a table with the videos under `folder`.

        Reports rows whose videos are absent. With `ends` and `seconds` it also opens a sample of the videos, and
        reports rows that end after their video does and files that can't be opened.

        Args:
            counts: number of rows per video, by the video's name under `folder`.
            ends: seconds at which the last row of each video ends.
            seconds: returns the length of the video of a given name.
        """
        absent = sorted(name for name in counts if not (folder / name).exists())
        if absent:
            yield Finding(part, rows, "wrong",
                          f"{sum(counts[name] for name in absent):,} of {sum(counts.values()):,} are of "
                          f"{len(absent):,} videos that are not under {folder.name}/, such as {absent[0]}",
                          self.fix(fix))
        else:
            yield Finding(part, rows, "ok", f"all {len(counts):,} videos are there")
        if not ends or seconds is None:
            return
        present = sorted(name for name in ends if (folder / name).exists())
        sample = present[::max(1, len(present) // self.sample)][:self.sample] if self.sample else present
        broken, beyond = [], []
        for name in sample:
            try:
                end = seconds(name)
            except (video.VideoError, FileNotFoundError, OSError) as error:
                broken.append(str(error))
            else:
                if ends[name] > end + 1.0:
                    beyond.append(f"{name} ({ends[name]:.1f} s, the video has {end:.1f} s)")
        if broken:
            yield Finding(part, rows, "wrong", f"{len(broken)} of {len(sample)} videos opened are damaged: {broken[0]}",
                          self.fix(fix))
        if beyond:
            yield Finding(part, rows, "note",
                          f"{len(beyond)} of {len(sample)} videos opened have rows beyond their end, "
                          f"read at their last frames: {beyond[0]}")
        if sample and not broken and not beyond:
            yield Finding(part, rows, "ok", f"{len(sample)} of {len(present)} videos opened: rows end within them")
