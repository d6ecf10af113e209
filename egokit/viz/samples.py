"""What goes into training: samples of a task, and narrations with their clips."""
from pathlib import Path

import numpy as np

from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.style import Picture, clip_grid, save_figure, strip

MAX_CAPTION = 300  # characters of a text below its clip


def batch(task, run: Run | None = None, count: int = 4, split: str = "train"):
    """Draw the first samples of a data set, transformed as for training, with their texts.

    A sample that holds a pair of clips (EgoClip's scene-aware negatives) is drawn as two strips in one row.
    """
    dataset = task.dataset(split)
    samples = [dataset[0, i] for i in range(min(count, len(dataset)))]
    items = [item for sample in samples for item in sample.get("pair", [sample])][:2 * count]
    return in_pairs([(item["video"], item.get("text", ""), "") for item in items], run, "batch")


def narrations(config, run: Run | None = None, count: int = 8):
    """Draw narrations of the EgoClip table with four frames each.

    The frames are read from the prepared pieces of the videos.

    Returns:
        The figure; a sentence instead where the site has no egoclip.csv.
    """
    from egokit.data.egoclip_table import EgoClipTable
    from egokit.data.video import clips, frame_sampling
    root = Path(config.site.root)
    if not (root / "egoclip.csv").is_file():
        return f"no {root / 'egoclip.csv'}: nothing to show here"
    table = EgoClipTable(root / "egoclip.csv")
    samples = []
    for i in np.linspace(0, len(table) - 1, min(count, len(table))):
        row = table.row(int(i))
        pixels = clips.read_chunked(root / "Ego4D_Chunked" / row["video_uid"], row["clip_start"], row["clip_end"],
                                    lambda first, last: frame_sampling.sample_frames(first, last, 4),
                                    config.site.chunk_seconds, config.data.reader)
        samples.append((pixels.transpose(0, 3, 1, 2), row["clip_text"],
                            f"   ({row['clip_start']:.1f}-{row['clip_end']:.1f} s)"))
    return in_pairs(samples, run, "narrations")


def in_pairs(clips: list[tuple], run: Run | None, name: str):
    """Draw clips, two in a row, and save them.

    Args:
        clips: (frames, text, what stands behind the text) of each.
        run: Where to save the figure; None saves nothing.
        name: The figure's.
    """
    pictures = [Picture(strip(frames), f"{shown(text, MAX_CAPTION)}{behind}") for frames, text, behind in clips]
    figure, _ = clip_grid([("", None, pictures[at:at + 2]) for at in range(0, len(pictures), 2)])
    return save_figure(figure, run, name)
