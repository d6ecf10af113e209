"""What EgoTaskQA reads under the data root, and what `egokit doctor` says of it."""
from collections.abc import Iterator
from pathlib import Path

from egokit.config.schema import Config, TaskConfig
from egokit.data.site_checks import Checks, Finding
from egokit.tasks.taskqa import annotations, vocabulary
from egokit.tasks.taskqa.clips import ClipFiles

SOURCE = "https://sites.google.com/view/egotaskqa  (questions into ROOT/EgoTaskQA/qa/)"
CLIPS = ("EgoVLPv2's qa_videos.tgz, www.cis.jhu.edu/~shraman/EgoVLPv2/datasets/EgoTaskQA/  (into ROOT/EgoTaskQA/), or "
         "LEMMA's videos or frames, which task.clips names")
PART = "EgoTaskQA"


def inputs(config: Config, action: str) -> dict[str, str]:
    """Return what a job reads, each with its provider, as `Task.inputs`."""
    own = config.task
    splits = annotations.SPLITS if action == "train" else ("train", own.scored_on)  # train: chance needs its answers
    names = (*map(annotations.file_of, splits), vocabulary.FILE)
    folder, root = ClipFiles(config.site.root, own.clips).folder, Path(config.site.root)
    place = folder.relative_to(root) if folder.is_relative_to(root) else folder
    return {f"{own.questions}/{own.split}/{name}": SOURCE for name in names} | {str(place): CLIPS}


def check(checks: Checks, own: TaskConfig) -> Iterator[Finding]:
    """Yield what there is of the questions of both splits, and of the clips that they are about.

    Args:
        own: the task's keys: the folder of the questions, and where the clips are.
    """
    clips: list[str] = []
    for split in ("direct", "indirect"):
        folder = checks.root / own.questions / split
        listed = checks.check_file(PART, folder / vocabulary.FILE, SOURCE)
        yield listed
        for part in annotations.SPLITS:
            path = folder / annotations.file_of(part)
            table = checks.check_file(PART, path, SOURCE)
            yield table
            if listed.state == table.state == "ok":
                yield from checks.each(PART, checks.name(path), _check_questions(checks, path, clips))
    if clips:
        yield from checks.each(PART, "clips", _check_clips(checks, own, list(dict.fromkeys(clips))))


def _check_questions(checks: Checks, path: Path, clips: list[str]) -> Iterator[Finding]:
    """Check a question file against its vocabulary; add its clips to `clips`."""
    words = vocabulary.read(path.with_name(vocabulary.FILE))
    questions = annotations.read_questions(path, len(words))
    clips += [question.clip for question in questions]
    binary = sum(question.is_binary(words) for question in questions)
    yield Finding(PART, checks.name(path), "ok",
                  f"{len(questions):,} questions ({len(questions) - binary:,} open, {binary:,} binary) about "
                  f"{len({question.clip for question in questions}):,} clips, {len(words):,} answers")
    if unknown := sum(question.answer == vocabulary.UNKNOWN for question in questions):
        yield Finding(PART, checks.name(path), "note",
                      f"{unknown:,} questions have an answer that is not in the vocabulary: they count as wrong")


def _check_clips(checks: Checks, own: TaskConfig, names: list[str]) -> Iterator[Finding]:
    """Check that clips are there, and that those in whole videos end before their videos do."""
    files = ClipFiles(checks.root, own.clips, checks.config.data.reader)
    folder = files.folder
    if "frame" in files.places:
        absent = files.absent(names)
        yield Finding(PART, "clips", "wrong" if absent else "ok", f"{len(absent):,} of {len(names):,} clips lack their "
                      f"first or last picture, such as {absent[0]}" if absent else f"all {len(names):,} clips have "
                      "their first and last picture", CLIPS if absent else "")
        return
    places, stops = zip(*map(files.seconds_of, names), strict=True)
    yield from checks.check_rows(PART, "clips", [str(path.relative_to(folder)) for path in places], folder, CLIPS,
                                 stops if files.places != {"clip"} else ())
