"""`egokit score`: the numbers of anybody's file of EgoMQ or EgoNLQ, against a site's annotations.

What the command line needs to parse it is light; the rest is imported when it runs. No part of it imports torch.
"""
import argparse
import json
from pathlib import Path

ANNOTATIONS = {"mq": "moments_{}.json", "nlq": "nlq_{}.json"}


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `egokit score`."""
    sub.add_argument("task", choices=tuple(ANNOTATIONS))
    sub.add_argument("predictions", metavar="PREDICTIONS",
                     help="mq: a submission, a detection file or a retrieval file (named …retr…); nlq: a submission")
    sub.add_argument("--site", default="toy", help="a name under params/sites/ or a YAML file (default: toy)")
    sub.add_argument("--root", help="folder of the annotations (default: the site's root)")
    sub.add_argument("--split", default="val", help="ROOT/moments_SPLIT.json or ROOT/nlq_SPLIT.json (default: val)")
    sub.add_argument("--json", action="store_true", help="print all numbers as JSON, in %%")


def run(arguments: argparse.Namespace) -> None:
    """Score a file and print the numbers."""
    truth = data_root(arguments.site, arguments.root) / ANNOTATIONS[arguments.task].format(arguments.split)
    scored = (score_mq if arguments.task == "mq" else score_nlq)(Path(arguments.predictions), truth, arguments.split)
    if arguments.json:
        print(json.dumps(scored, indent=1))
    else:
        print((format_mq if arguments.task == "mq" else format_nlq)(scored))


def data_root(site: str, root: str | None = None) -> Path:
    """Return the root of a site's data, without the recipe that a config needs.

    Args:
        site: a name under params/sites/, or a YAML file.
        root: another root in its place.

    Raises:
        ConfigError: there is no such site, or it names no root.
    """
    from egokit.config.build import ConfigError, flatten
    from egokit.config.resolve import absolute, project_root, read_yaml
    if root:
        return Path(root).expanduser()
    project = project_root()
    value = flatten(read_yaml(site, project / "params" / "sites", "site"), f" (in site {site})").get("site.root")
    if not value or not isinstance(value, str):
        raise ConfigError(f"site {site}: site.root is {value!r}; set it to the folder of the data, or give --root")
    return Path(absolute(value, project))


def score_mq(predictions: Path, truth: Path, split: str = "val") -> dict:
    """Return the numbers of a result file of EgoMQ, in %.

    Args:
        predictions: a submission, a detection file or a retrieval file.
        truth: a moments_*.json.
        split: a clip counts if this name contains the split of its video.

    Returns:
        "detections" (mAP, and AP per class) and "retrievals" (recall), as far as the file has them, each with its
        counts; "moments" and "empty", the numbers of all moments and of those of length 0.

    Raises:
        ValueError: a file is damaged, or no clip of the split or of the file is known; the message names it.
    """
    from egokit.tasks.moments import mq_metrics
    from egokit.tasks.moments.mq_annotations import count_empty, read_clips
    from egokit.tasks.moments.mq_results import read_results
    every, results = read_clips(truth), read_results(predictions)
    clips = {uid: clip for uid, clip in every.items() if clip.subset in split}
    if not any(clip.moments for clip in clips.values()):
        raise ValueError(f"{truth}: no clip of split {split!r} has a moment; its videos are of "
                         f"{', '.join(sorted({repr(clip.subset) for clip in every.values()}))}: name another --split")
    scored = {"file": str(predictions), "truth": str(truth), "split": split,
              "moments": sum(len(clip.moments) for clip in clips.values()), "empty": count_empty(clips.values())}
    if results.detections is not None:
        counts = mq_metrics.coverage(results.detections, clips, f"{predictions}, detections")
        found = mq_metrics.mean_average_precision(results.detections, clips)
        scored["detections"] = counts | {
            "map": dict(zip(map(str, mq_metrics.TIOUS), percent(found["map"]), strict=True)),
            "average_map": percent(found["average_map"]),
            "ap": {label: percent(ap) for label, ap in zip(found["classes"], found["ap"], strict=True)}}
    if results.retrievals is not None:
        counts = mq_metrics.coverage(results.retrievals, clips, f"{predictions}, retrievals")
        found = mq_metrics.recall(results.retrievals, clips)
        scored["retrievals"] = counts | {"recall": {
            str(tiou): {f"R@{k}x": percent(share) for k, share in zip(mq_metrics.KS, row, strict=True)}
            for tiou, row in zip(mq_metrics.RECALL_TIOUS, found, strict=True)}}
    return scored


def score_nlq(predictions: Path, truth: Path, split: str = "val") -> dict:
    """Return the numbers of a submission of EgoNLQ, in %.

    Args:
        predictions: the submission.
        truth: a nlq_*.json.
        split: its name, for the result.

    Returns:
        "recall" {IoU: {R@k}}, "mean_r1" (of R@1 at .3 and .5: the challenge's number) and "mean_iou"; "original", the
        same over the answered questions alone; and the counts of `nlq_results.recalls`.

    Raises:
        ValueError: a file is damaged, or no prediction is for a known question; the message names it.
    """
    from egokit.tasks.moments import nlq_results
    from egokit.tasks.moments.nlq_annotations import read_clips
    clips, given = read_clips(truth, extents=False), nlq_results.read_predictions(predictions)
    try:
        found = nlq_results.recalls(given, [question for clip in clips for question in clip.questions])
    except ValueError as error:
        raise ValueError(f"{predictions}, against {truth}: {error}") from None

    def numbers(way: dict) -> dict:
        recall = {str(iou): {f"R@{k}": percent(share) for k, share in zip(nlq_results.KS, row, strict=True)}
                  for iou, row in zip(nlq_results.IOUS, way["recall"], strict=True)}
        return {"recall": recall, "mean_r1": (recall["0.3"]["R@1"] + recall["0.5"]["R@1"]) / 2,
                "mean_iou": percent(way["mean_iou"])}
    return {"file": str(predictions), "truth": str(truth), "split": split, **found, **numbers(found),
            "original": numbers(found["original"]), "skipped": sum(clip.skipped for clip in clips)}


def percent(shares):
    """Return a share, or an array of them, in %: a float, or nested lists of floats."""
    import numpy as np
    return (100 * np.asarray(shares, dtype=np.float64)).tolist()


def format_mq(scored: dict) -> str:
    """Return the numbers of `score_mq` as a table of text."""
    lines = [f"{scored['file']}, against {scored['truth']}: {scored['moments']:,} moments"]
    if part := scored.get("detections"):
        lines += ["", _row("detections: tIoU", [f".{tiou[2:]}" for tiou in part["map"]] + ["mean"]),
                  _row("mAP", [*part["map"].values(), part["average_map"]])]
    if retrieved := scored.get("retrievals"):
        by_tiou = retrieved["recall"]
        lines += ["", _row("retrievals: tIoU", [f".{tiou[2:]}" for tiou in by_tiou])]
        lines += [_row(name, [row[name] for row in by_tiou.values()]) for name in next(iter(by_tiou.values()))]
    notes = [_note(scored["empty"], "moments of length 0 can never be found, and count")]
    for name, number in (("detections", "mAP"), ("retrievals", "recall")):
        if name not in scored:
            notes.append(f"the file has no {name}, and so no {number}")
        else:
            part = scored[name]
            fate = ", and don't count" if name == "retrievals" else ": these are wrong, as in the original"
            notes += [_note(part["without_entry"], f"of {part['clips']:,} clips have no {name}, and find nothing"),
                      _note(part["unknown"], f"clips with {name} are not in the annotations{fate}"),
                      _note(part["unlabelled"], f"clips with {name} have no moments{fate}"),
                      _note(part["of_other_classes"], f"of {part['rows']:,} {name} are of classes that the split "
                                                      "does not have, and don't count")]
    return "\n".join([*lines, *_notes(notes)])


def format_nlq(scored: dict) -> str:
    """Return the numbers of `score_nlq` as a table of text."""
    names = ["R@1", "R@3", "R@5"]
    lines = [f"{scored['file']}, against {scored['truth']}: {scored['questions']:,} questions"]
    for title, way in (("all questions", scored), (f"the {scored['answered']:,} answered", scored["original"])):
        lines += ["", _row(title, names), *(_row(f"IoU .{iou[2:]}", [way["recall"][iou][name] for name in names])
                                            for iou in ("0.3", "0.5")),
                  _row("mean R@1", [way["mean_r1"]]), _row("mIoU of the first", [way["mean_iou"]])]
    return "\n".join([*lines, *_notes([
        _note(scored["unanswered"], "questions are unanswered: they count against you in the challenge (first table), "
                                    "not in the original's evaluation (second)"),
        _note(scored["unknown"], "predictions are for questions that are not in the annotations, and don't count"),
        _note(scored["empty"], "answers have length 0, and can never be right"),
        _note(scored["skipped"], "questions of the annotations have no text, and are not asked")])])


def _row(name: str, values: list) -> str:
    """Return a line of a table: a name, and numbers in % or headings."""
    return f"{name:20}" + "".join(f"{value:>8}" if isinstance(value, str) else f"{value:8.2f}" for value in values)


def _note(count: int, text: str) -> str:
    """Return a note about a number of things, or "" if there are none."""
    return f"{count:,} {text}" if count else ""


def _notes(notes: list[str]) -> list[str]:
    """Return the notes that say something, after an empty line."""
    notes = [note for note in notes if note]
    return ["", *notes] if notes else []
