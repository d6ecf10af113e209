"""The numbers of anybody's file of EgoMQ or EgoNLQ, for `egokit score`.

What the command line needs to parse it is light; the rest is imported when it runs. No part of it imports torch.
"""
import argparse
from collections.abc import Callable
from pathlib import Path

from egokit.tasks.score import data_root, note, notes, percent, row

ANNOTATIONS = {"mq": "moments_{}.json", "nlq": "nlq_{}.json"}


def score(arguments: argparse.Namespace) -> tuple[dict, Callable[[dict], str]]:
    """Return the numbers of a file, and the function that makes a table of them."""
    truth = data_root(arguments.site, arguments.root) / ANNOTATIONS[arguments.task].format(arguments.split)
    score_file, as_text = {"mq": (score_mq, format_mq), "nlq": (score_nlq, format_nlq)}[arguments.task]
    return score_file(Path(arguments.predictions), truth, arguments.split), as_text


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


def format_mq(scored: dict) -> str:
    """Return the numbers of `score_mq` as a table of text."""
    lines = [f"{scored['file']}, against {scored['truth']}: {scored['moments']:,} moments"]
    if part := scored.get("detections"):
        lines += ["", row("detections: tIoU", [f".{tiou[2:]}" for tiou in part["map"]] + ["mean"]),
                  row("mAP", [*part["map"].values(), part["average_map"]])]
    if retrieved := scored.get("retrievals"):
        by_tiou = retrieved["recall"]
        lines += ["", row("retrievals: tIoU", [f".{tiou[2:]}" for tiou in by_tiou])]
        lines += [row(name, [shares[name] for shares in by_tiou.values()]) for name in next(iter(by_tiou.values()))]
    remarks = [note(scored["empty"], "moments of length 0 can never be found, and count")]
    for name, number in (("detections", "mAP"), ("retrievals", "recall")):
        if name not in scored:
            remarks.append(f"the file has no {name}, and so no {number}")
        else:
            part = scored[name]
            fate = ", and don't count" if name == "retrievals" else ": these are wrong, as in the original"
            remarks += [note(part["without_entry"], f"of {part['clips']:,} clips have no {name}, and find nothing"),
                      note(part["unknown"], f"clips with {name} are not in the annotations{fate}"),
                      note(part["unlabelled"], f"clips with {name} have no moments{fate}"),
                      note(part["of_other_classes"], f"of {part['rows']:,} {name} are of classes that the split "
                                                      "does not have, and don't count")]
    return "\n".join([*lines, *notes(remarks)])


def format_nlq(scored: dict) -> str:
    """Return the numbers of `score_nlq` as a table of text."""
    names = ["R@1", "R@3", "R@5"]
    lines = [f"{scored['file']}, against {scored['truth']}: {scored['questions']:,} questions"]
    for title, way in (("all questions", scored), (f"the {scored['answered']:,} answered", scored["original"])):
        lines += ["", row(title, names), *(row(f"IoU .{iou[2:]}", [way["recall"][iou][name] for name in names])
                                           for iou in ("0.3", "0.5")),
                  row("mean R@1", [way["mean_r1"]]), row("mIoU of the first", [way["mean_iou"]])]
    return "\n".join([*lines, *notes([
        note(scored["unanswered"], "questions are unanswered: they count against you in the challenge (first table), "
                                   "not in the original's evaluation (second)"),
        note(scored["unknown"], "predictions are for questions that are not in the annotations, and don't count"),
        note(scored["empty"], "answers have length 0, and can never be right"),
        note(scored["skipped"], "questions of the annotations have no text, and are not asked")])])
