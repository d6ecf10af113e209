"""What goes into training and what comes out of it: samples, narrations, curves."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from egokit.look.base import finish, frame, pyplot, strip
from egokit.runs import Run


def batch(task, run: Run | None = None, count: int = 4, split: str = "train"):
    """What the model is trained on: the first samples of the data set, transformed, with their texts."""
    plt = pyplot()
    dataset = task.dataset(split)
    items = [dataset[0, i] for i in range(min(count, len(dataset)))]
    items = [one for item in items for one in item.get("pair", [item])][:2 * count]
    figure, axes = plt.subplots(-(-len(items) // 2), 2, figsize=(12, 1.9 * -(-len(items) // 2)), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, item in zip(axes.flat, items, strict=False):
        axis.set_visible(True)
        frame(axis, strip(item["video"]), item.get("text", ""))
    return finish(figure, run, "batch")


def curves(run: Run):
    """Loss terms over steps, and validation metrics over epochs."""
    plt = pyplot()
    events = run.read_log()
    steps = [event for event in events if event["kind"] == "step"]
    checks = [event for event in events if event["kind"] == "validation"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4), layout="constrained")
    known = {"kind", "step", "steps", "epoch", "lr", "grad_norm", "scale", "skipped", "data_s", "step_s", "clips_per_s", "eta_s", "time"}
    for name in [key for key in (steps[0] if steps else {}) if key not in known and key != "loss"]:
        left.plot([event["step"] for event in steps], [event[name] for event in steps], label=name)
    left.set(xlabel="step", ylabel="loss term", title="training" if steps else "no training steps (epochs: 0)")
    if steps:
        left.legend()
    names = [key for key in (checks[0] if checks else {}) if key not in known | {"best", "samples", "seconds"} and "2" not in key]
    names = [key for key in names if not key.startswith(("dual_", "fusion_"))] or names
    for name in names:
        right.plot([event["step"] for event in checks], [event[name] for event in checks], marker="o", label=name.replace("_", " "))
    right.set(xlabel="step", ylabel="%", title="validation", ylim=(0, 100))
    if names:
        right.legend()
    return finish(figure, run, "curves")


def narrations(config, run: Run | None = None, count: int = 8):
    """Narrations of the EgoClip table with four frames each, read from the prepared pieces."""
    from egokit import clips, sampling
    from egokit.egoclip_table import EgoClipTable
    plt = pyplot()
    root = Path(config.site.root)
    if not (root / "egoclip.csv").is_file():
        return f"no {root / 'egoclip.csv'}: nothing to show here"
    table = EgoClipTable(root / "egoclip.csv")
    rows = [table.row(int(i)) for i in np.linspace(0, len(table) - 1, min(count, len(table)))]
    figure, axes = plt.subplots(-(-len(rows) // 2), 2, figsize=(13, 1.6 * -(-len(rows) // 2)), squeeze=False, layout="constrained")
    for axis in axes.flat[len(rows):]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows, strict=False):
        pixels = clips.read_chunked(root / "Ego4D_Chunked" / row["video_uid"], row["clip_start"], row["clip_end"],
                                    lambda first, last: sampling.egoclip(first, last, 4), config.site.chunk_seconds,
                                    config.data.reader)
        frame(axis, strip(pixels.transpose(0, 3, 1, 2)), f"{row['clip_text']}   ({row['clip_start']:.1f}-{row['clip_end']:.1f} s)")
    return finish(figure, run, "narrations")
