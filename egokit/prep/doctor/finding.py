"""One finding, what provides each expected thing, and the checks that every data set shares."""
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from egokit.config.schema import Config
from egokit.data import annotation_json
from egokit.data.video import open_video as video
from egokit.prep.source import list_videos

SAMPLE = 40  # videos of each data set that are opened, unless all are asked for
EGO4D = "sign the licence at https://ego4d-data.org, then: pip install ego4d && ego4d --datasets {what} --benchmarks mq -o DIR"
FIXES = {
    "Ego4D": EGO4D.format(what="full_scale"),
    "moments": EGO4D.format(what="annotations"),
    "EgoClip": "get it from the EgoVLP project: https://github.com/showlab/EgoVLP (section 'EgoClip')",
    "EgoMCQ": "get it from the EgoVLP project: https://github.com/showlab/EgoVLP (section 'EgoMCQ')",
    "chunks": "egokit prep ego4d --site {site}",
    "EK annotations": "git clone https://github.com/epic-kitchens/epic-kitchens-100-annotations  (into ROOT/EK100/)",
    "EK videos": "https://github.com/epic-kitchens/epic-kitchens-download-scripts, then resize to 256 px on the short side",
    "derived": "egokit prep --site {site}",
    "Charades annotations": "CharadesEgo.zip of https://prior.allenai.org/projects/charades-ego  (into ROOT/CharadesEgo/)",
    "Charades videos": "CharadesEgo_v1_480.tar of https://prior.allenai.org/projects/charades-ego  (into ROOT/CharadesEgo/)",
    "weights": "the checkpoints of https://github.com/facebookresearch/EgoVLPv2, into site.weights",
    "tokenizer": "set site.tokenizer to a folder with vocab.json and merges.txt, or go online once for a name",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check. state: ok, note (worth knowing), missing (a file) or wrong (files that contradict each other)."""
    part: str
    what: str
    state: str
    said: str
    fix: str = ""


class Checks:
    """What the checks of one site share."""

    def __init__(self, config: Config, sample: int = SAMPLE):
        self.config, self.site, self.sample = config, config.site, sample
        self.root = Path(config.site.root).expanduser()

    def fix(self, name: str) -> str:
        return FIXES[name].format(site=self.site.name)

    def file(self, part: str, path: Path, fix: str, said: str = "found") -> Finding:
        name = str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
        return Finding(part, name, "ok", said) if path.exists() else Finding(part, name, "missing", "not there", self.fix(fix))

    def prepared(self, part: str) -> Iterator[Finding]:
        """Full videos, and what prep's manifest says of them."""
        full, manifest = self.root / "Ego4D", self.root / "prepared.json"
        count = 0
        with contextlib.suppress(FileNotFoundError):
            count = len(list_videos(full))
        chunked = self.root / "Ego4D_Chunked"
        if count or not chunked.is_dir():
            yield self.file(part, full, "Ego4D", f"{count:,} full videos")
        yield self.file(part, chunked, "chunks", f"{sum(1 for _ in chunked.iterdir()):,} videos in pieces" if chunked.is_dir() else "")
        if manifest.is_file():
            lines = annotation_json.read_manifest(manifest)
            failed = [line for line in lines if line["status"] == "failed"]
            done = sum(line["status"] == "ok" for line in lines)
            yield Finding(part, manifest.name, "wrong" if failed else "ok", f"{done:,} videos verified"
                          + (f", {len(failed):,} failed: {failed[0].get('reason', '')}" if failed else ""),
                          f"{self.fix('chunks')} (tries them again)" if failed else "")
            if (pending := count - done - len(failed)) > 0:
                yield Finding(part, full.name, "wrong", f"{pending:,} full videos are not prepared yet", self.fix("chunks"))

    def plain_length(self, path: Path) -> float:
        opened = video.open_video(path, self.config.data.reader)
        return opened.length / opened.fps

    def chunked_length(self, uid: str) -> float:
        folder = self.root / "Ego4D_Chunked" / uid
        pieces = sorted(int(path.stem) for path in folder.glob("*.mp4"))
        if not pieces:
            raise video.VideoError(f"{folder} holds no pieces")
        return pieces[-1] * self.site.chunk_seconds + self.plain_length(folder / f"{pieces[-1]}.mp4")

    def against(self, part: str, rows: str, counts, folder: Path, fix: str, ends: dict[str, float] | None = None, length=None):
        """Rows whose videos are absent; and of a sample of videos, rows that go beyond their end and files that can't be opened."""
        absent = sorted(name for name in counts if not (folder / name).exists())
        if absent:
            yield Finding(part, rows, "wrong", f"{sum(counts[name] for name in absent):,} of {sum(counts.values()):,} are of "
                          f"{len(absent):,} videos that are not under {folder.name}/, such as {absent[0]}", self.fix(fix))
        else:
            yield Finding(part, rows, "ok", f"all {len(counts):,} videos are there")
        if not ends or length is None:
            return
        there = sorted(name for name in ends if (folder / name).exists())
        some = there[::max(1, len(there) // self.sample)][:self.sample] if self.sample else there
        broken, beyond = [], []
        for name in some:
            try:
                end = length(name)
            except (video.VideoError, FileNotFoundError, OSError) as error:
                broken.append(str(error))
            else:
                if ends[name] > end + 1.0:
                    beyond.append(f"{name} ({ends[name]:.1f} s, the video has {end:.1f} s)")
        if broken:
            yield Finding(part, rows, "wrong", f"{len(broken)} of {len(some)} videos opened are damaged: {broken[0]}", self.fix(fix))
        if beyond:
            yield Finding(part, rows, "note", f"{len(beyond)} of {len(some)} videos opened have rows beyond their end, read at "
                                              f"their last frames: {beyond[0]}")
        if some and not broken and not beyond:
            yield Finding(part, rows, "ok", f"{len(some)} of {len(there)} videos opened: rows end within them")
