"""The reading campaign: every kind of video file, as egokit reads it, against ffmpeg's own picture at the same time.

    python tests/reading_campaign.py [NAME...]    # all files, or those whose names contain a word; rewrites the table

What is compared: the picture of every frame (orientation, pixel aspect, colours, stream), its time on the player's
clock, which frame is shown at times between, and `read_clip`. Of a damaged file, the pictures before the damage.
"""
import collections
import re
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import reading_doors
import reading_files
import torch

from egokit.data.video import clips, open_video, transforms
from egokit.prep.video import ffmpeg

PAGE = Path(__file__).parents[1] / "docs/reading.md"
MARKS = "<!-- the campaign's table: tests/reading_campaign.py writes it -->", "<!-- end of the campaign's table -->"
CELL = 6                # pictures are compared by the means of cells of so many pixels: converters differ at edges
SAME = 2.5, 20.0        # levels of 255: what converters may differ by, on average and in one cell
SCALED = 5.0, 60.0      # the same where both have scaled the picture
TICK = 0.002            # seconds: containers round times to 1 ms


@dataclass
class Truth:
    """What ffmpeg shows.

    Attributes:
        times: (n,) seconds on the player's clock.
        pictures: uint8 (n, H, W, 3).
        aspect: width / height, as a player shows the first picture.
        limits: how far other converters' pictures may be from these.
        tick: how far other times may be from these; much where the file's own times go backwards.
    """
    times: np.ndarray
    pictures: np.ndarray
    aspect: float
    limits: tuple[float, float]
    tick: float

    def at(self, time: float) -> int:
        """Return the number of the picture shown at a time."""
        return int(np.clip(np.searchsorted(self.times, time, "right") - 1, 0, len(self.times) - 1))


@dataclass
class Outcome:
    """How one file was read.

    Attributes:
        faults: what is wrong, a line each.
        constant: whether its rate was said to be constant; None if it wasn't read.
        refused: the error of a file that can't be opened.
        prepared: what `egokit prep` made of it: "prepared", or the reason why not; "" if it wasn't tried.
        indexed: what search made of it: "indexed", "indexed, damage reported"; "" if it wasn't tried, or can't be read.
    """
    case: reading_files.Case
    faults: list[str] = field(default_factory=list)
    constant: bool | None = None
    refused: str = ""
    prepared: str = ""
    indexed: str = ""


def truth(path: Path, film: int, width: int, height: int, joined: bool = False) -> Truth:
    """Decode a film by ffmpeg: upright, with square pixels.

    A picture of another shape than the first is scaled until the short sides are the same, then cut or given bars.
    """
    scale = f"{min(width, height)}/min(iw*max(1,sar),ih/min(1,sar))"
    fit = (f"scale='round(iw*max(1,sar)*{scale})':'round(ih/min(1,sar)*{scale})',setsar=1,"
           f"crop='min(iw,{width})':'min(ih,{height})',pad={width}:{height}:-1:-1")
    command = [ffmpeg(), "-hide_banner", "-nostdin", *([] if joined else ["-copyts"]), "-i", str(path), "-map",
               f"0:v:{film}", "-vf", f"showinfo,setsar='if(sar,sar,1)',{fit}", "-fps_mode", "passthrough", "-f",
               "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    done = subprocess.run(command, capture_output=True)
    log = done.stderr.decode(errors="replace")
    start = re.search(r"Duration: .*?start: (-?[\d.]+)", log)
    start = float(start[1]) if start and not joined else 0.0
    base, times, aspect, sizes = Fraction(1), [], None, set()
    for line in log.splitlines():
        if "showinfo" in line and (said := re.search(r"config in time_base: (\d+)/(\d+)", line)):
            base = Fraction(int(said[1]), int(said[2]))
        elif "showinfo" in line and (said := re.search(r"pts: *(-?\d+).* sar:(\d+)/(\d+) s:(\d+)x(\d+)", line)):
            times.append(float(int(said[1]) * base) - start)
            above, below, w, h = map(int, said.groups()[1:])
            sizes.add((w, h))
            aspect = aspect or w * ((above / below if below else 0) or 1) / h
    pictures = np.frombuffer(done.stdout, np.uint8)
    count = len(pictures) // (width * height * 3)
    pictures = pictures[:count * width * height * 3].reshape(-1, height, width, 3).copy()
    if len(times) != count or not count:
        raise RuntimeError(f"{path.name}: ffmpeg gave {count} pictures, {len(times)} times\n{log[-1500:]}")
    steady = (np.diff(times) > 0).all()
    return Truth(np.maximum.accumulate(times), pictures, aspect, SAME if sizes == {(width, height)} else SCALED,
                 TICK if steady else 2.1 * float(np.median(np.diff(times))))


def cells(pictures: np.ndarray) -> np.ndarray:
    """Return the mean colours of cells of CELL x CELL pixels, float32 (..., rows, columns, 3)."""
    *more, height, width, _ = pictures.shape
    height, width = height // CELL * CELL, width // CELL * CELL
    parts = pictures[..., :height, :width, :].astype(np.float32)
    return parts.reshape(*more, height // CELL, CELL, width // CELL, CELL, 3).mean((-4, -2))


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the mean and the largest difference of two pictures' cells, in levels of 255."""
    if a.shape != b.shape:
        return 255.0, 255.0
    apart = np.abs(cells(a) - cells(b))
    return float(apart.mean()), float(apart.max())


def alike(a: np.ndarray, b: np.ndarray, limits: tuple[float, float] = SAME) -> bool:
    """Return whether two pictures are one, but for the rounding of converters."""
    return all(seen <= limit for seen, limit in zip(difference(a, b), limits, strict=True))


def several(numbers) -> str:
    """Return '5 (first 17)' for the numbers of frames."""
    return f"{len(numbers)} (first {numbers[0]})"


def check_whole(path: Path, video, shown: Truth, say) -> None:
    """Compare a whole file's pictures and times."""
    if abs(video.width / video.height / shown.aspect - 1) > 0.03:
        say(f"shape {video.width} x {video.height}, but a player shows {shown.aspect:.3f}:1")
    if video.length != len(shown.times):
        say(f"{video.length} frames, ffmpeg shows {len(shown.times)}")
    count = min(video.length, len(shown.times))
    pictures = video.read(range(count))
    wrong = [n for n in range(count) if not alike(pictures[n], shown.pictures[n], shown.limits)]
    if wrong:
        mean, most = difference(pictures[wrong[0]], shown.pictures[wrong[0]])
        say(f"another picture at {several(wrong)} of {count} frames (by {mean:.1f} levels, {most:.0f} at most)")
    streamed = video.stream_frames(range(0, count, 7))
    first = next(iter(streamed)).copy()
    if not alike(first, shown.pictures[0], shown.limits) or sum(1 for _ in streamed) != len(range(0, count, 7)) - 1:
        say("stream_frames gives other frames than read")
    times = np.asarray(video.time_of(np.arange(count)))
    late = np.flatnonzero(np.abs(times - shown.times[:count]) > shown.tick)
    if len(late):
        say(f"another time at {several(late)} of {count} frames: {times[late[0]]:.4f} s, ffmpeg "
            f"{shown.times[late[0]]:.4f} s")
    if abs(video.start - shown.times[0]) > TICK:
        say(f"starts at {video.start:.4f} s, ffmpeg at {shown.times[0]:.4f} s")
    ends = np.append(shown.times[1:], shown.times[-1] + np.median(np.diff(shown.times)) if count > 1 else 1.0)
    if not shown.times[-1] + 0.0005 < video.seconds < ends[-1] + 3.5:
        say(f"ends at {video.seconds:.3f} s, its last picture is shown from {shown.times[-1]:.3f} s")
    asked = np.concatenate([shown.times + (ends - shown.times) * share for share in (0.12, 0.5, 0.88)])
    asked = asked[np.abs(asked[:, None] - shown.times).min(1) > TICK]     # the reader rounds by 1 ms
    right = np.array([shown.at(time) for time in asked])
    missed = np.flatnonzero(np.asarray(video.frame_at(asked)) != right)
    if len(missed) and shown.tick == TICK:
        say(f"another frame at {len(missed)} of {len(asked)} times: at {asked[missed[0]]:.4f} s "
            f"{video.frame_at(float(asked[missed[0]]))}, ffmpeg {right[missed[0]]}")
    if (np.asarray(video.frame_at(times)) != np.arange(count)).any() and shown.tick == TICK:
        say("frame_at(time_of(n)) is not n")
    if int(video.frame_at(-100.0)) != 0 or int(video.frame_at(1e6)) != video.length - 1:
        say("times outside the video don't give its first and last frame")
    check_clips(path, video, shown, say)


def check_clips(path: Path, video, shown: Truth, say) -> None:
    """Compare `read_clip` at the start, the middle and the end of a file, and in its longest gap."""
    if len(shown.times) < 9:
        return
    step, size = float(np.median(np.diff(shown.times))), min(video.width, video.height)
    gap = int(np.argmax(np.diff(shown.times)))
    begin, end = shown.times[0], shown.times[-1]
    spans = [(begin + 0.01, begin + 0.5), (begin + 0.4 * (end - begin), begin + 0.6 * (end - begin)), (end - 0.4, end)]
    if shown.times[gap + 1] - shown.times[gap] > 4 * step:
        spans.append((shown.times[gap] + step, shown.times[gap + 1] - step))
    for start, stop in spans:
        stop = min(stop, end)
        if start < 0 or stop - start < 1e-3:
            continue
        try:
            clip = clips.read_clip(path, start, stop, frames=4, size=size, resize=size)
        except (ValueError, RuntimeError) as error:
            say(f"read_clip {start:.2f}-{stop:.2f} s: {str(error).splitlines()[-1][-160:]}")
            continue
        for place, pixels in enumerate(clip):
            time = start + (place + 0.5) / 4 * (stop - start)
            near = range(shown.at(time - 2.1 * step), shown.at(time + 2.1 * step) + 1)  # spans are cut to frames
            pictures = transforms.normalise(transforms.evaluation(shown.pictures[near[0]:near[-1] + 1], size, size))
            if not any(close(pixels, expected, shown.limits) for expected in pictures):
                say(f"read_clip {start:.2f}-{stop:.2f} s: another picture at {time:.2f} s")
                break


def close(a: torch.Tensor, b: torch.Tensor, limits: tuple[float, float]) -> bool:
    """Return whether two normalised pictures (3, H, W) are alike."""
    mean, std = (np.array(part, np.float32) for part in (transforms.MEAN, transforms.STD))
    a, b = (np.asarray(part.permute(1, 2, 0)) * std * 255 + mean * 255 for part in (a, b))
    return alike(a, b, limits)


def check_damaged(path: Path, case: reading_files.Case, before: Truth, outcome: Outcome, say) -> None:
    """Compare what is left of a damaged file with the pictures before the damage, in both policies."""
    numbers = {reading_files.number_in(pixels): n for n, pixels in enumerate(before.pictures)}

    def origin(pixels) -> int | None:
        """Return which picture of the undamaged file this one is, or None."""
        n = numbers.get(reading_files.number_in(pixels))
        return n if n is not None and alike(pixels, before.pictures[n]) else None

    video = open_video.open_video(path, tolerant=True)
    outcome.constant = video.constant
    pictures = video.read(range(video.length))
    times = np.asarray(video.time_of(np.arange(video.length)))
    origins = [origin(pixels) for pixels in pictures]
    made_up = [n for n, source in enumerate(origins) if source is None]
    if made_up and not case.silent:
        say(f"what there is: a picture that the film doesn't have at {several(made_up)} of {video.length} frames")
    found = [n for n, source in enumerate(origins) if source is not None]
    shift = np.median([times[n] - before.times[origins[n]] for n in found]) if case.shifted else 0.0
    reported = [n for n in range(video.length) if any(start - TICK <= times[n] < stop for start, stop in video.damaged)]
    moved = [n for n in found if abs(times[n] - before.times[origins[n]] - shift) > TICK and n not in reported]
    if moved and not case.silent:
        say(f"what there is: the picture of another time, unreported, at {several(moved)} of {video.length} frames")
    exact = {origins[n] for n in found if abs(times[n] - before.times[origins[n]] - shift) <= TICK}
    if len(before.times) - len(exact) > case.lost:                # of silent damage, too
        say(f"what there is: {len(before.times) - len(exact)} of {len(before.times)} frames lost, {case.lost} expected")
    if len(reported) > case.lost:
        say(f"what there is: {len(reported)} frames reported as damaged, {case.lost} expected")
    open_video.forget(path)

    refused, wrong = [], []
    strict = open_video.open_video(path)
    for n in range(strict.length):
        try:
            strict = open_video.open_video(path)
            pixels = strict.read([n])[0]
        except open_video.VideoError as error:
            open_video.forget(path)             # as `clips` does: a decoder that failed is not used again
            refused.append(n)
            if str(path) not in str(error) or not re.search(r"\d s\b", str(error)):
                say(f"strict: the error names no file and time: {error}")
            continue
        source = origin(pixels)
        if source is None or abs(float(strict.time_of(n)) - before.times[source] - shift) > TICK:
            wrong.append(n)
    if wrong and not case.silent:
        say(f"strict: another picture, without an error, at {several(wrong)} of {strict.length} frames")
    if len(refused) > case.lost:
        say(f"strict: {len(refused)} of {strict.length} frames refused, {case.lost} expected")


def examine(case: reading_files.Case, folder: Path, doors: bool) -> Outcome:
    """Make a file, read it and compare; prepare and index it, too, if the `doors` are asked for."""
    path, outcome = folder / case.name, Outcome(case)
    try:
        case.make(path)
        if doors:
            outcome.prepared = reading_doors.prepared(path, case, truth, alike, outcome.faults.append)
        _examine(path, case, outcome)
        if doors:
            outcome.indexed = reading_doors.indexed(path, case, truth, alike, outcome.faults.append)
    except open_video.VideoError as error:
        outcome.refused = str(error)
        if str(path) not in str(error):
            outcome.faults.append(f"the error doesn't name the file: {error}")
        if not case.refused or case.refused not in str(error):
            outcome.faults.append(f"refused: {str(error).replace(str(folder), '')[:300]}")
    except Exception as error:  # a fault of this file's, not the end of the campaign
        outcome.faults.append("".join(traceback.format_exception(error, limit=-2)))
    else:
        if case.refused:
            outcome.faults.append(f"read, though it should be refused ({case.refused})")
    finally:
        open_video.forget(path)
    return outcome


def _examine(path: Path, case: reading_files.Case, outcome: Outcome) -> None:
    say = outcome.faults.append
    if case.original:
        original = case.original()
        check_damaged(path, case, truth(original, 0, reading_files.WIDTH, reading_files.HEIGHT), outcome, say)
        return
    video = open_video.open_video(path)
    outcome.constant = video.constant
    try:
        check_whole(path, video, truth(path, case.film, video.width, video.height, case.joined), say)
    except open_video.VideoError as error:
        say(f"refused: {str(error).replace(str(path.parent), '')[:300]}")
    tolerant = open_video.open_video(path, tolerant=True)
    tolerant.read(range(tolerant.length))
    if len(tolerant.damaged):
        say(f"undamaged, but reported as damaged at {tolerant.damaged}")


def campaign(folder: Path, words=(), each: int | None = None, doors: bool = True, workers: int = 2) -> list[Outcome]:
    """Examine every file of the campaign, or those whose names or kinds contain one of the words.

    Args:
        each: how many files of each kind, at most.
        doors: whether of each kind the first file, and then every seventh, goes through `egokit prep` and search, too.
    """
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    chosen = [case for case in reading_files.cases(reading_files.Studio(scratch))
              if not words or any(word in case.name or word in case.kind for word in words)]
    kinds = collections.defaultdict(list)
    for case in chosen:
        kinds[case.kind].append(case)
    chosen = [(case, doors and place % 7 == 0) for group in kinds.values() for place, case in enumerate(group[:each])]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda task: examine(task[0], folder, task[1]), chosen))


def table(outcomes: list[Outcome]) -> str:
    """Return the table of docs/reading.md: a row for every kind."""
    kinds = collections.defaultdict(list)
    for outcome in outcomes:
        kinds[outcome.case.kind].append(outcome)
    lines = [f"{len(outcomes)} files, {len(kinds)} kinds:", "",
             "| kind of file | files | training, benchmarks, `read_clip` | search, features | `egokit prep` | "
             "frames by number |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *(row(kind, group) for kind, group in kinds.items())])


def row(kind: str, group: list[Outcome]) -> str:
    """Return a kind's row."""
    rates = {outcome.constant for outcome in group if not outcome.refused}
    rate = "" if not rates else "yes" if rates == {True} else "no: its rate varies" if rates == {False} else \
        "where the rate is constant"
    if all(outcome.refused for outcome in group):
        strict = tolerant = "refused"
    elif group[0].case.silent:
        strict = tolerant = "not noticed"
    else:
        strict = "an error at the damage, exact elsewhere" if group[0].case.original else "exact"
        tolerant = " or ".join(sorted({outcome.indexed for outcome in group if outcome.indexed}))
    made = {"prepared" if outcome.prepared == "prepared" else "refused" for outcome in group if outcome.prepared}
    return f"| {kind} | {len(group)} | {strict} | {tolerant} | {' or '.join(sorted(made))} | {rate} |"


def number_of_files(page: str) -> int:
    """Return how many files the page says were tried."""
    return int(re.search(r"^(\d+) files, \d+ kinds:$", page, re.MULTILINE)[1])


def written(page: str, text: str) -> str:
    """Return the page with the table between its marks replaced."""
    before, rest = page.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def main(*words: str) -> int:
    """Run the campaign, print every fault, and rewrite the table if all files were examined without one."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = campaign(Path(folder), words)
    bad = [outcome for outcome in outcomes if outcome.faults]
    for outcome in bad:
        print(f"{outcome.case.name}  [{outcome.case.kind}]", *outcome.faults, sep="\n    ")
    print(f"{len(outcomes)} files, {len(bad)} with faults")
    if not words and not bad:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), table(outcomes)), encoding="utf-8")
    return len(bad)


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
