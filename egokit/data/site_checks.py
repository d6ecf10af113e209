"""Checks of a site's files for `egokit doctor`: the `Finding` record, and what the checks of all tasks share.

`Task.check_site` of a task's class says what is checked; egokit/prep/doctor.py runs the checks of all tasks.
"""
import collections
import dataclasses
import fnmatch
import glob
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from egokit.config.access import exists
from egokit.config.schema import Config, SiteConfig
from egokit.data import annotation_json
from egokit.data.video import open_video as video

SAMPLE = 40  # videos opened per table; 0 opens all
EGO4D = ("sign the licence at https://ego4d-data.org, then: "
         "pip install ego4d && ego4d --datasets {} --benchmarks mq nlq -o DIR")
EGOCLIP, EGOMCQ = (f"https://github.com/showlab/EgoVLP (section '{name}')" for name in ("EgoClip", "EgoMCQ"))
PREP = "egokit prep"  # provider of what is made of other files
LISTED = 20_000  # most files that are looked at in search of misplaced videos


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""
    part: str      # what was examined: the machine, the models or a data set
    what: str      # the file, table or property that was checked
    state: str     # "ok", "note" (worth knowing), "missing" (a file) or "wrong" (files contradict each other)
    message: str
    fix: str = ""  # the command or page that puts it right

    def __post_init__(self):
        if self.state == "ok" and re.match(r"(all )?0 ", self.message):  # nothing of something is not in order
            object.__setattr__(self, "state", "wrong")


def how_to_get(provider: str, site: SiteConfig) -> str:
    """Return the advice on a missing file.

    Args:
        provider: PREP or a part of it, a page or command that gives the file, or "" if that is not known.
        site: the site that lacks it; everything of the toy's is made.
    """
    if provider.startswith(f"{PREP} "):
        return f"run '{provider} --site {site.name}'"
    if site.toy or provider == PREP:
        return f"run notebook 01_data_prep or 'egokit prep --site {site.name}'"
    return f"get it: {provider}" if provider else "put it there (docs/data.md says where data come from)"


def missing_file(path: Path, needed: dict[str, str], config: Config) -> FileNotFoundError:
    """Return the error for a file under the data root that is not there; it says what gives the file.

    Args:
        needed: names under the data root, with their providers; the file is one of these or under one.
    """
    root = Path(config.site.root)
    provider = next((provider for name, provider in needed.items() if path.is_relative_to(root / name)),
                    PREP if video.is_prepared(path) else "")
    return FileNotFoundError(f"{path} is missing (site {config.site.name!r}, task {config.task.name!r}); "
                             f"{how_to_get(provider, config.site)}, or correct 'site.root' in its file")


def forbidden(part: str, what: str, error: PermissionError) -> Finding:
    """Return the finding of something that may not be read; its fix is the command of `access.explain`."""
    reason, bracket, command = str(error).partition("): ")
    return Finding(part, what, "wrong", f"{reason}{bracket[:1]}", command)


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

    def each(self, part: str, what: str, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Yield findings; an error becomes one, so that what follows is still examined.

        Args:
            what: what is examined, which names the finding of an error.
            findings: a generator, which may fail.
        """
        try:
            yield from findings
        except PermissionError as error:
            yield forbidden(part, what, error)
        except Exception as error:  # whatever it is
            message = (str(error) or repr(error)).splitlines()[0]
            kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
            yield Finding(part, what, "wrong", f"{kind}{message}")

    def name(self, path: Path) -> str:
        """Return a path from the data root on, or the whole of another one."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def check_file(self, part: str, path: Path, fix: str, message: str = "found") -> Finding:
        """Check that a file or folder exists and may be read; `message` is reported if so, `fix` if it is missing."""
        try:
            there = exists(path)
        except PermissionError as error:
            return forbidden(part, self.name(path), error)
        finding = Finding(part, self.name(path), "ok" if there else "missing", message if there else "not there")
        return finding if finding.state == "ok" else dataclasses.replace(finding, fix=fix)

    def check_videos(self, part: str, folder: Path, pattern: str, fix: str) -> Iterator[Finding]:
        """Check a folder of videos: how many there are, and whether others are named or placed in another way.

        Args:
            pattern: where the videos are in the folder, such as P*/*.MP4, which readers take to the letter.
            fix: who provides the videos.
        """
        right = {path for path in folder.glob(pattern) if not path.name.startswith(".")}
        first = self.check_file(part, folder, fix, f"{len(right):,} videos")
        near = folder if folder.is_dir() or folder.parent == self.root else folder.parent
        places = {path: place_of(path, folder, pattern) for path in find_videos(near) if path not in right}
        others = [path for path, place in places.items() if place not in right]
        renamed = [path for path in others if path.parent == places[path].parent]
        if right or not others:
            yield first
        for ending in sorted({path.suffix for path in renamed}):
            of_ending = [path for path in renamed if path.suffix == ending]
            expected = Path(pattern).suffix
            yield Finding(part, self.name(folder), "wrong",
                          f"{len(of_ending):,} videos end in {ending} where {expected} is expected, such as "
                          f"{of_ending[0].name}", rename_command(folder, ending, expected))
        if others and not right and not renamed:
            yield Finding(part, self.name(folder), "wrong",
                          f"{len(others):,} videos are elsewhere, such as {self.name(others[0])}",
                          move_command(others[0], places[others[0]]))

    def check_prepared(self, part: str) -> Iterator[Finding]:
        """Check the full Ego4D videos, and what the manifest of `egokit prep` says of them."""
        full, chunked, manifest = (self.root / name for name in ("Ego4D", "Ego4D_Chunked", "prepared.json"))
        files = collections.Counter(path.stem for path in full.glob("[!.]*") if path.suffix.lower() in video.SUFFIXES)
        if files or not chunked.is_dir():
            below = [] if files else list(find_videos(full))
            message = f"0 full videos, but some are elsewhere, such as {self.name(below[0])}" if below else \
                f"{len(files):,} full videos"
            fix = move_command(below[0], full / below[0].name) if below else EGO4D.format("full_scale")
            yield self.check_file(part, full, fix, message)
        for uid in sorted(uid for uid, count in files.items() if count > 1):
            yield Finding(part, full.name, "wrong", f"several files are video {uid}", "keep one of them")
        message = f"{sum(1 for _ in chunked.iterdir()):,} videos in pieces" if chunked.is_dir() else ""
        yield self.check_file(part, chunked, self.prep_ego4d, message)
        if manifest.is_file():
            yield from self.each(part, manifest.name, self._check_manifest(part, manifest, len(files)))

    def _check_manifest(self, part: str, manifest: Path, files: int) -> Iterator[Finding]:
        """Check what the manifest of `egokit prep` says of the full videos, of which there are `files`."""
        lines = annotation_json.read_manifest(manifest)
        failed = [line for line in lines if line["status"] == "failed"]
        done = sum(line["status"] == "ok" for line in lines)
        message, fix = f"{done:,} videos verified", "" if done else self.prep_ego4d
        if failed:
            message += f", {len(failed):,} failed: {failed[0].get('reason', '')}"
            fix = f"{self.prep_ego4d} (tries them again)"
        yield Finding(part, manifest.name, "wrong" if failed else "ok", message, fix)
        if (pending := files - done - len(failed)) > 0:
            yield Finding(part, "Ego4D", "wrong", f"{pending:,} full videos are not prepared yet", self.prep_ego4d)

    def video_seconds(self, path: Path) -> float:
        """Return the length of a video in seconds; of a folder of pieces, only the last piece is opened."""
        before = 0.0
        if path.is_dir():
            pieces = sorted(int(piece.stem) for piece in path.glob("*.mp4"))
            if not pieces:
                raise video.VideoError(f"{path} holds no pieces")
            before = pieces[-1] * self.config.site.chunk_seconds
            path = path / f"{pieces[-1]}.mp4"
        exists(path)
        return before + video.open_video(path, self.config.data.reader).seconds

    def check_clip_lists(self, part: str, pattern: str, read: Callable[[Path], Iterable[Finding]],
                         clips: list[tuple[str, float]]) -> Iterator[Finding]:
        """Check the lists of a benchmark's clips, and the clips against the resized Ego4D videos.

        Args:
            read: yields findings of a list, and adds each clip's video and stop (s) to `clips`; `pattern` names lists.
        """
        for split in annotation_json.SPLITS:
            path = self.root / pattern.replace("*", split)
            table = self.check_file(part, path, EGO4D.format("annotations"))
            yield table
            if table.state == "ok":
                yield from self.each(part, path.name, read(path))
        if clips:
            uids, stops = zip(*clips, strict=True)
            yield Finding(part, "clips", "ok", f"{len(uids):,} of {len(set(uids)):,} videos")
            yield from self.check_rows(part, "clips", [f"{uid}.mp4" for uid in uids], self.root / "Ego4D_256",
                                       self.prep_ego4d, stops)

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
            fix_absent = fix
            if near := find_near(folder, absent[0]):
                fix_absent = f"{self.name(near)} is there: {move_command(near, folder / absent[0])}"
            yield Finding(part, rows, "wrong",
                          f"{sum(counts[name] for name in absent):,} of {sum(counts.values()):,} are of "
                          f"{len(absent):,} videos that are not under {folder.name}/, such as {absent[0]}", fix_absent)
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
            except Exception as error:  # a decoder may fail in any way, and the others are to be opened, too
                broken.append(str(error) or repr(error))
            else:
                if last_stop[name] > end + 1.0:
                    beyond.append(f"{name} ({last_stop[name]:.1f} s, the video has {end:.1f} s)")
        if broken:
            yield Finding(part, rows, "wrong",
                          f"{len(broken)} of {len(sample)} videos opened can't be read: {broken[0]}", fix)
        if beyond:
            yield Finding(part, rows, "note",
                          f"{len(beyond)} of {len(sample)} videos opened have rows beyond their end, "
                          f"read at their last frames: {beyond[0]}")
        if sample and not broken and not beyond:
            yield Finding(part, rows, "ok", f"{len(sample)} of {len(present)} videos opened: rows end within them")


def find_videos(folder: Path) -> Iterator[Path]:
    """Yield the videos in a folder and up to three levels below it, of any format."""
    seen, folders = 0, [(folder, 0)]
    while folders and seen < LISTED:
        here, depth = folders.pop(0)
        for path in sorted(here.iterdir()) if here.is_dir() else ():
            seen += 1
            if path.name.startswith("."):
                continue
            if path.suffix.lower() in video.SUFFIXES:
                yield path
            elif depth < 3 and path.is_dir():
                folders.append((path, depth + 1))


def find_near(folder: Path, name: str) -> Path | None:
    """Return the video that is named so but for its capitals, its suffix or its place."""
    if not Path(name).suffix:
        return next(folder.glob(f"*/{glob.escape(name)}"), None)
    return next((path for path in find_videos(folder) if path.stem.lower() == Path(name).stem.lower()), None)


def rename_command(folder: Path, ending: str, suffix: str) -> str:
    """Return the command that gives the videos of a folder another suffix; another container is made by ffmpeg."""
    change = "mv" if ending.lower() == suffix.lower() else "ffmpeg -nostdin -i"
    copy = "" if change == "mv" else "-c copy "
    return (f"find {shlex.quote(str(folder))} -name '*{ending}' -exec "
            f"sh -c '{change} \"$1\" {copy}\"${{1%.*}}{suffix}\"' _ {{}} \\;")


def place_of(path: Path, folder: Path, pattern: str) -> Path:
    """Return where a video belongs in a folder: by its name, and under P*/ by the name's or a folder's beginning."""
    *above, last = Path(pattern).parts
    name = path.with_suffix(Path(last).suffix or path.suffix).name
    groups = [*(parent.name for parent in path.parents), name.partition("_")[0]]
    return folder.joinpath(*(next((group for group in groups if fnmatch.fnmatchcase(group, level)), groups[-1])
                             for level in above), name)


def move_command(path: Path, place: Path) -> str:
    """Return the command that moves a video to where it belongs; a container of another kind stays what it is."""
    source, target = (shlex.quote(str(name)) for name in (path, place))
    return f"mkdir -p {shlex.quote(str(place.parent))} && mv {source} {target}  (the same for the others)"
