"""What goes into training: samples and narrations."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from egokit.runs.run_folder import Run
from egokit.viz.style import WIDTH, finish, frame, pyplot, strip


def batch(task, run: Run | None = None, count: int = 4, split: str = "train"):
    """What the model is trained on: the first samples of the data set, transformed, with their texts."""
    plt = pyplot()
    dataset = task.dataset(split)
    items = [dataset[0, i] for i in range(min(count, len(dataset)))]
    items = [one for item in items for one in item.get("pair", [item])][:2 * count]
    figure, axes = plt.subplots(-(-len(items) // 2), 2, figsize=(WIDTH, 1.9 * -(-len(items) // 2)), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, item in zip(axes.flat, items, strict=False):
        axis.set_visible(True)
        frame(axis, strip(item["video"]), item.get("text", ""))
    return finish(figure, run, "batch")


def narrations(config, run: Run | None = None, count: int = 8):
    """Narrations of the EgoClip table with four frames each, read from the prepared pieces."""
    from egokit.data.egoclip_table import EgoClipTable
    from egokit.data.video import clips, frame_sampling
    plt = pyplot()
    root = Path(config.site.root)
    if not (root / "egoclip.csv").is_file():
        return f"no {root / 'egoclip.csv'}: nothing to show here"
    table = EgoClipTable(root / "egoclip.csv")
    rows = [table.row(int(i)) for i in np.linspace(0, len(table) - 1, min(count, len(table)))]
    figure, axes = plt.subplots(-(-len(rows) // 2), 2, figsize=(WIDTH, 1.6 * -(-len(rows) // 2)), squeeze=False, layout="constrained")
    for axis in axes.flat[len(rows):]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows, strict=False):
        pixels = clips.read_chunked(root / "Ego4D_Chunked" / row["video_uid"], row["clip_start"], row["clip_end"],
                                    lambda first, last: frame_sampling.sample_frames(first, last, 4), config.site.chunk_seconds,
                                    config.data.reader)
        frame(axis, strip(pixels.transpose(0, 3, 1, 2)), f"{row['clip_text']}   ({row['clip_start']:.1f}-{row['clip_end']:.1f} s)")
    return finish(figure, run, "narrations")
