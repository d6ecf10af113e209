"""What all pictures share: style, frame strips, saving, and reading checked scores.

Colours are Okabe and Ito's, safe for the colour-blind; right and wrong also differ by sign and line style.
"""
from __future__ import annotations

import textwrap

import numpy as np

from egokit.config.build import did_you_mean
from egokit.runs.run_folder import Run

RIGHT, WRONG, NEUTRAL = "#009E73", "#D55E00", "#0072B2"
CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
WIDTH = 12  # inches; JupyterLab and slides shrink wider figures, and text must not fall below 11 points
STYLE = {"font.size": 12, "axes.titlesize": 13, "legend.fontsize": 11, "xtick.labelsize": 11, "ytick.labelsize": 11,
         "figure.dpi": 100, "figure.facecolor": "white", "savefig.facecolor": "white", "axes.spines.top": False,
         "axes.spines.right": False}


def pyplot():
    """Return matplotlib.pyplot with egokit's style set."""
    import matplotlib
    import matplotlib.pyplot as plt
    from cycler import cycler
    matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": cycler(color=CYCLE)})
    return plt


def save_figure(figure, run: Run | None, name: str):
    """Save a figure as figures/<name>.png of the run, if there is one, and return it closed.

    An open figure would be drawn twice in a notebook and kept in memory.
    """
    plt = pyplot()
    if run is not None:
        figure.savefig(run.figure(f"{name}.png"), bbox_inches="tight", dpi=100)
    plt.close(figure)
    return figure


def checked_rows(task, run: Run, section: str) -> tuple[dict, np.ndarray | None]:
    """Return the rows and prompt embeddings of a section, checked to be of this task's data.

    Raises:
        FileNotFoundError: The section has not been evaluated.
        ValueError: The scores belong to another benchmark, to other annotations, or to another number of rows.
    """
    path, fix = run.path / f"rows-{section}.npz", "evaluate it again, or make the task from that run's params.yaml"
    if not path.is_file():
        sections = [file.stem.removeprefix("rows-") for file in run.path.glob("rows-*.npz")]
        hint = did_you_mean(section, sections) if sections else \
            "nothing in this run has been evaluated yet; run its notebook first"
        raise FileNotFoundError(f"{path} is missing, the scores of section {section!r}: {hint}")
    rows, prompts_KE = run.read_rows(section)
    column, texts = "video" if task.prompts() else "fusion", len(task.prompts())
    if column not in rows or (prompts_KE is None) != (not texts):
        raise ValueError(f"{path} holds the scores of another benchmark than {task.config.task.name!r}: "
                         "name a run of this notebook")
    if len(rows["index"]) != task.num_rows() or (texts and len(prompts_KE) != texts):
        raise ValueError(f"{path} holds {len(rows['index']):,} rows" +
                         (f" and {len(prompts_KE):,} texts" if texts else "") + ", but the "
                         f"data under {task.root} have {task.num_rows():,}" + (f" and {texts:,}" if texts else "") +
                         f": {fix}")
    recorded = run.metrics().get(section, {}).get("data", {})  # runs of older versions don't have it
    if recorded:
        from egokit.model.checkpoints import fingerprint
        for table in task.tables():
            if recorded.get(table.name) != fingerprint(table):
                raise ValueError(f"{path} was scored with another {table.name} ({recorded.get(table.name)}) than "
                                 f"{table} ({fingerprint(table)}): {fix}")
    return rows, prompts_KE


def strip(frames_TCHW) -> np.ndarray:
    """Put frames side by side, with white gaps: uint8 (T, 3, H, W) -> about (H, T*W, 3)."""
    frames = np.asarray(frames_TCHW).transpose(0, 2, 3, 1)
    gap = np.full((frames.shape[1], max(1, frames.shape[2] // 32), 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=1)


def draw_frame(axis, image: np.ndarray, title: str, colour: str | None = None, dashed: bool = False) -> None:
    """Draw an image with a title under it and, if a colour is given, a border."""
    axis.imshow(image, interpolation="nearest", aspect="equal")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(title, fontsize=11, color="black")
    for side in axis.spines.values():
        side.set_visible(colour is not None)
        side.set_color(colour or "black")
        side.set_linewidth(4)
        side.set_capstyle("butt")  # a spine's own caps fill the gaps of a dashed line
        side.set_linestyle((0, (2, 1)) if dashed else "solid")


def draw_heading(axis, text: str, colour: str = "black") -> None:
    """Write a heading over a row of pictures, starting at the left of the first one.

    A long heading must not widen the first column, so the layout sees only an empty title of the same height.
    """
    lines = textwrap.wrap(text, 100)
    title = axis.set_title("\n".join(" " * len(lines)), loc="left")  # same height, for the layout
    axis.annotate("\n".join(lines), (0, 1), (0, 6), "axes fraction", "offset points", va="bottom", color=colour,
                  fontsize=title.get_fontsize(), in_layout=False)


def two_by_two(frames_TCHW) -> np.ndarray:
    """Put four frames into two rows, in reading order: (T, 3, H, W) -> about (2H, 2W, 3)."""
    four = np.asarray(frames_TCHW)[np.linspace(0, len(frames_TCHW) - 1, 4).round().astype(int)]
    rows = [strip(four[:2]), strip(four[2:])]
    gap = np.full((max(1, rows[0].shape[0] // 32), rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([rows[0], gap, rows[1]])


def grade_style(grade: float) -> tuple[str, str, bool]:
    """Return (mark, colour, dashed) of a retrieved clip with this relevancy, from 0 to 1."""
    if grade == 1:
        return "✓ right", RIGHT, False
    return (f"partly, {grade:.2f}", CYCLE[4], True) if grade else ("✗ wrong", WRONG, True)


def pick_frames(frames, count: int = 4):
    """Return at most `count` evenly spaced frames of a clip, for small pictures."""
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]
