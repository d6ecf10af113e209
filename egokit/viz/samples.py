"""What goes into training: samples of a task, and narrations with their clips."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from egokit.runs.run_folder import Run
from egokit.viz.style import WIDTH, draw_frame, pyplot, save_figure, strip


def batch(task, run: Run | None = None, count: int = 4, split: str = "train"):
    """Draw the first samples of a data set, transformed as for training, with their texts.

    A sample that holds a pair of clips (EgoClip's scene-aware negatives) is drawn as two strips in one row.
    """
    plt = pyplot()
    dataset = task.dataset(split)
    samples = [dataset[0, i] for i in range(min(count, len(dataset)))]
    items = [item for sample in samples for item in sample.get("pair", [sample])][:2 * count]
    rows = -(-len(items) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(WIDTH, 1.9 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, item in zip(axes.flat, items, strict=False):
        axis.set_visible(True)
        draw_frame(axis, strip(item["video"]), item.get("text", ""))
    return save_figure(figure, run, "batch")


def narrations(config, run: Run | None = None, count: int = 8):
    """Draw narrations of the EgoClip table with four frames each.

    The frames are read from the prepared pieces of the videos.

    Returns:
        The figure; a sentence instead where the site has no egoclip.csv.
    """
    from egokit.data.egoclip_table import EgoClipTable
    from egokit.data.video import clips, frame_sampling
    plt = pyplot()
    root = Path(config.site.root)
    if not (root / "egoclip.csv").is_file():
        return f"no {root / 'egoclip.csv'}: nothing to show here"
    table = EgoClipTable(root / "egoclip.csv")
    rows = [table.row(int(i)) for i in np.linspace(0, len(table) - 1, min(count, len(table)))]
    lines = -(-len(rows) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(WIDTH, 1.6 * lines), squeeze=False, layout="constrained")
    for axis in axes.flat[len(rows):]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows, strict=False):
        pixels = clips.read_chunked(root / "Ego4D_Chunked" / row["video_uid"], row["clip_start"], row["clip_end"],
                                    lambda first, last: frame_sampling.sample_frames(first, last, 4),
                                    config.site.chunk_seconds, config.data.reader)
        draw_frame(axis, strip(pixels.transpose(0, 3, 1, 2)),
                   f"{row['clip_text']}   ({row['clip_start']:.1f}-{row['clip_end']:.1f} s)")
    return save_figure(figure, run, "narrations")
