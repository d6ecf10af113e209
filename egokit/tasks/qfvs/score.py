"""The numbers of anybody's QFVS summaries, for `egokit score`, and what other shots score on the same annotations."""
import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from egokit.tasks.score import data_root, note, notes, percent, row

NUMBERS = ("precision", "recall", "f1")
WARNING = ("F1 says little here: compare it with the rows of shots that nobody chose for the query, and with a "
           "person's; docs/qfvs.md")


def score(arguments: argparse.Namespace) -> tuple[dict, Callable[[dict], str]]:
    """Return the numbers of a file, and the function that makes a table of them."""
    root = data_root(arguments.site, arguments.root)
    if not arguments.root or (root / "QFVS").is_dir():
        root /= "QFVS"
    return score_qfvs(Path(arguments.predictions), root, arguments.share), format_qfvs


def score_qfvs(predictions: Path, root: Path, share: float = 0.02) -> dict:
    """Return the numbers of a file of results, in %, and those of the rows that show what they are worth.

    Args:
        predictions: see `results`.
        root: the folder that has Dense_per_shot_tags and Query-Focused_Summaries.
        share: of a video's shots, how many scores choose.

    Returns:
        "videos" {name: {"precision", "recall", "f1"}} and their "mean", of all queries; "answered", the same of the
        queries that the file answers; the counts of `results.score_results`; and "rows" {row: {"videos", "mean"}}.

    Raises:
        ValueError: a file is damaged, or names an unknown video or query; the message names it.
    """
    from egokit.tasks.qfvs.annotations import read_videos
    from egokit.tasks.qfvs.baselines import scores
    from egokit.tasks.qfvs.matching import budget
    from egokit.tasks.qfvs.results import mean_score, read_results, score_results
    videos = read_videos(root)
    found = score_results(read_results(predictions, videos, share), videos, share)
    rows = scores(videos, share)

    def numbers(of: Mapping) -> dict:
        return {name: dict(zip(NUMBERS, percent(value), strict=True)) for name, value in of.items()}

    def way(of: Mapping, mean) -> dict:
        return {"videos": numbers(of), "mean": numbers({"mean": mean})["mean"]}
    return {"file": str(predictions), "truth": str(root), "share": share,
            "budget": {name: budget(len(video.tags), share) for name, video in videos.items()},
            **found, **way(found["videos"], found["mean"]),
            "answered": way(found["answered"]["videos"], found["answered"]["mean"]),
            "rows": {title: way(of, mean_score(list(of.values()))) for title, of in rows.items() if of}}


def format_qfvs(scored: dict) -> str:
    """Return the numbers of `score_qfvs` as tables of text."""
    names, width = [*scored["videos"]], 32
    column = max(8, *(len(name) + 1 for name in names))

    def line(title: str, way: dict, number: str) -> str:
        values = [way["videos"][name][number] if name in way["videos"] else "–" for name in names]
        return row(title, [*values, way["mean"][number]], width, column)

    def head(title: str) -> str:
        return row(title, [*names, "mean"], width, column)
    lines = [f"{scored['file']}, against {scored['truth']}: {scored['queries']:,} queries",
             f"a summary has {scored['share']:g} of the shots: "
             + ", ".join(f"{name} {count}" for name, count in scored["budget"].items()),
             "", head("all queries"), *(line(number, scored, number) for number in NUMBERS)]
    if scored["missing"]:
        lines += ["", head("the answered queries"),
                  *(line(number, scored["answered"], number) for number in NUMBERS)]
    lines += ["", head("other shots: f1"),
              *(line(title, way, "f1") for title, way in scored["rows"].items())]
    return "\n".join([*lines, *notes([
        note(scored["missing"], "queries are not in the file: they count as 0 in the first table, and not in the "
                                "second, which is the original's way"),
        note(scored["without_shots"], "queries have no shots chosen, and count as 0"),
        note(scored["nothing_common"], "summaries have no tag in common with the oracle's, and count as 0; the "
                                       "original's mean is not a number then"),
        note(scored["more"], "summaries have more shots than that share"),
        WARNING])])
