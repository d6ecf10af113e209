"""The reading campaign: every kind of video file, as egokit reads it, against ffmpeg's own picture at the same time.

    python tests/reading_campaign.py [NAME...]    # all files, or those whose names contain a word; rewrites the table

What is compared: the picture of every frame (orientation, pixel aspect, colours, stream), its time on the player's
clock, which frame is shown at times between, and `read_clip`. Of a damaged file, the pictures before the damage.
"""
import collections
import re
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import reading_doors
from reading_checks import check_damaged, check_whole
from reading_files import cases
from reading_studio import HEIGHT, WIDTH, Case, Studio
from reading_truth import truth

from egokit.data.video import open_video

PAGE = Path(__file__).parents[1] / "docs/reading.md"
MARKS = "<!-- the campaign's table: tests/reading_campaign.py writes it -->", "<!-- end of the campaign's table -->"


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
    case: Case
    faults: list[str] = field(default_factory=list)
    constant: bool | None = None
    refused: str = ""
    prepared: str = ""
    indexed: str = ""


def examine(case: Case, folder: Path, doors: bool) -> Outcome:
    """Make a file, read it and compare; prepare and index it, too, if the `doors` are asked for."""
    path, outcome = folder / case.name, Outcome(case)
    try:
        case.make(path)
        if doors:
            outcome.prepared = reading_doors.prepared(path, case, outcome.faults.append)
        _examine(path, case, outcome)
        if doors:
            outcome.indexed = reading_doors.indexed(path, case, outcome.faults.append)
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


def _examine(path: Path, case: Case, outcome: Outcome) -> None:
    say = outcome.faults.append
    outcome.constant = open_video.open_video(path, tolerant=True).constant
    if case.original:
        check_damaged(path, case, truth(case.original(), 0, WIDTH, HEIGHT), say)
        return
    video = open_video.open_video(path)
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
    chosen = [case for case in cases(Studio(scratch))
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
        strict = "refused" if group[0].case.strict else \
            "an error at the damage, exact elsewhere" if group[0].case.original else "exact"
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
