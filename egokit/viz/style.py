"""Style, frame strips and saving, and scores that are the data's: what every picture shares.

Colours are Okabe and Ito's, safe for the colour-blind; right and wrong also differ by sign and line style.
"""
from __future__ import annotations

import textwrap

import numpy as np

from egokit.config.build import did_you_mean
from egokit.runs.run_folder import Run

RIGHT, WRONG, NEUTRAL = "#009E73", "#D55E00", "#0072B2"
CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
WIDTH = 12  # inches; wider ones JupyterLab and a slide would shrink, and their text with them: none is below 11 points
STYLE = {"font.size": 12, "axes.titlesize": 13, "legend.fontsize": 11, "xtick.labelsize": 11, "ytick.labelsize": 11, "figure.dpi": 100,
         "figure.facecolor": "white", "savefig.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False}


def pyplot():
    import matplotlib
    import matplotlib.pyplot as plt
    from cycler import cycler
    matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": cycler(color=CYCLE)})
    return plt


def finish(figure, run: Run | None, name: str):
    """Save and close: an open figure is drawn twice in a notebook and kept in memory."""
    plt = pyplot()
    if run is not None:
        figure.savefig(run.figure(f"{name}.png"), bbox_inches="tight", dpi=100)
    plt.close(figure)
    return figure


def checked_rows(task, run: Run, section: str) -> tuple[dict, np.ndarray | None]:
    """(rows, prompt embeddings) of a section; or an error that says why its scores are not this task's, and what to do."""
    path, again = run.path / f"rows-{section}.npz", "evaluate it again, or make the task from that run's params.yaml"
    if not path.is_file():
        known = [file.stem.removeprefix("rows-") for file in run.path.glob("rows-*.npz")]
        said = did_you_mean(section, known) if known else "nothing in this run has been evaluated yet; run its notebook first"
        raise FileNotFoundError(f"{path} is missing, the scores of section {section!r}: {said}")
    rows, prompts_KE = run.read_rows(section)
    wanted, texts = "video" if task.prompts() else "fusion", len(task.prompts())
    if wanted not in rows or (prompts_KE is None) != (not texts):
        raise ValueError(f"{path} holds the scores of another benchmark than {task.config.task!r}: name a run of this notebook")
    if len(rows["index"]) != task.num_rows() or (texts and len(prompts_KE) != texts):
        raise ValueError(f"{path} holds {len(rows['index']):,} rows" + (f" and {len(prompts_KE):,} texts" if texts else "") + ", but the "
                         f"data under {task.root} have {task.num_rows():,}" + (f" and {texts:,}" if texts else "") + f": {again}")
    recorded = run.metrics().get(section, {}).get("data", {})  # runs of older versions don't have it
    if recorded:
        from egokit.model.checkpoints import fingerprint
        for table in task.tables():
            if recorded.get(table.name) != fingerprint(table):
                raise ValueError(f"{path} was scored with another {table.name} ({recorded.get(table.name)}) than {table} "
                                 f"({fingerprint(table)}): {again}")
    return rows, prompts_KE


def strip(frames_TCHW) -> np.ndarray:
    """Frames of one clip side by side: uint8 (T, 3, H, W) -> (H, T*W, 3) with white gaps."""
    frames = np.asarray(frames_TCHW).transpose(0, 2, 3, 1)
    gap = np.full((frames.shape[1], max(1, frames.shape[2] // 32), 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=1)


def frame(axis, image: np.ndarray, title: str, colour: str | None = None, dashed: bool = False) -> None:
    """An image with a coloured border (dashed for wrong) and a title under it."""
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


def heading(axis, text: str, colour: str = "black") -> None:
    """A title over a row of pictures, from the first one's left; however long, it doesn't widen that one's column."""
    lines = textwrap.wrap(text, 100)
    title = axis.set_title("\n".join(" " * len(lines)), loc="left")  # as high, for the layout
    axis.annotate("\n".join(lines), (0, 1), (0, 6), "axes fraction", "offset points", va="bottom", color=colour,
                  fontsize=title.get_fontsize(), in_layout=False)


def two_by_two(frames_TCHW) -> np.ndarray:
    """Four frames of one clip as two rows of two, in reading order: for narrow places. Returns (2H, 2W, 3)."""
    four = np.asarray(frames_TCHW)[np.linspace(0, len(frames_TCHW) - 1, 4).round().astype(int)]
    rows = [strip(four[:2]), strip(four[2:])]
    gap = np.full((max(1, rows[0].shape[0] // 32), rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([rows[0], gap, rows[1]])


def graded(grade: float) -> tuple[str, str, bool]:
    """(mark, colour, whether dashed) of a retrieved clip of that relevancy."""
    if grade == 1:
        return "✓ right", RIGHT, False
    return (f"partly, {grade:.2f}", CYCLE[4], True) if grade else ("✗ wrong", WRONG, True)


def thin(frames, most: int = 4):
    """At most `most` frames of a clip, evenly, for small pictures."""
    return frames[np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)]
