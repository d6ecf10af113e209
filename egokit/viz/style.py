"""What all pictures share: style, frame strips, saving, and reading checked scores.

Colours are Okabe and Ito's, safe for the colour-blind; right and wrong also differ by sign and line style.
"""
import textwrap
from typing import NamedTuple

import numpy as np

from egokit.config.build import did_you_mean
from egokit.runs.files import atomic_path
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import MAX_SHOWN, shown

RIGHT, WRONG, NEUTRAL = "#009E73", "#D55E00", "#0072B2"
CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
PARTLY = CYCLE[4]
DASHES = {"solid": "solid", "dashed": (0, (2, 1)), "dotted": (0, (1, 1))}  # of borders 4 points wide
HEADING = 105  # characters of a heading in one line
CHART = 1.55  # width of the chart beside a row of pictures, in widths of a picture
CHARACTER = 0.08  # inches of a caption's average one
MAX_NAME, MAX_LEGEND = 44, 24  # characters of a name beside a line, and in a legend
WIDTH = 12  # inches; JupyterLab and slides shrink wider figures, and text must not fall below 11 points
STYLE = {"font.size": 12, "axes.titlesize": 13, "legend.fontsize": 11, "xtick.labelsize": 11, "ytick.labelsize": 11,
         "figure.dpi": 100, "figure.facecolor": "white", "savefig.facecolor": "white", "axes.spines.top": False,
         "axes.spines.right": False, "text.usetex": False, "axes.formatter.use_mathtext": False}


def pyplot():
    """Return matplotlib.pyplot with egokit's style set."""
    import matplotlib.pyplot as plt
    plt.rcParams.update(STYLE | {"axes.prop_cycle": plt.cycler(color=CYCLE)})
    return plt


def new_figure(**options):
    """Return a new figure, which draws texts as they are; every figure of egokit is made here.

    Args:
        options: Of matplotlib.pyplot.figure, such as figsize.
    """
    from egokit.viz.plain_figure import PlainFigure
    return pyplot().figure(FigureClass=PlainFigure, layout="constrained", **options)


def save_figure(figure, run: Run | None, name: str):
    """Save a figure as figures/<name>.png of the run, if there is one, and return it closed.

    An open figure would be drawn twice in a notebook and kept in memory. The PNG's description is the figure's
    alternative text.
    """
    if run is not None:
        from egokit.viz.alternative_text import KEY, describe
        with atomic_path(run.figure(f"{name}.png")) as temporary:
            figure.savefig(temporary, bbox_inches="tight", dpi=100, metadata={KEY: describe(figure)})
    pyplot().close(figure)
    return figure


def checked_scores(task, run: Run, section: str):
    """Return the task's `score_matrix` of an evaluated section, checked as by `checked_rows`."""
    rows, prompts_KE = checked_rows(task, run, section)
    return task.score_matrix(rows) if prompts_KE is None else task.score_matrix(rows, prompts_KE)


def checked_rows(task, run: Run, section: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return the rows of an evaluated section and its texts' embeddings, checked to be of this task's data.

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
    texts = task.prompts()
    if (prompts_KE is None) == bool(texts):
        raise ValueError(f"{path} holds the scores of another benchmark than {task.config.task.name!r}: "
                         "name a run of this notebook")
    found = len(rows["index"]), len(prompts_KE) if texts else 0
    expected = task.num_rows(), len(texts)
    if found != expected:
        raise ValueError(f"{path} holds {found[0]:,} rows and {found[1]:,} texts, but the data under {task.root} have "
                         f"{expected[0]:,} and {expected[1]:,}: {fix}")
    recorded = run.metrics().get(section, {}).get("data", {})  # runs of older versions don't have it
    if recorded:
        from egokit.model.checkpoints import fingerprint
        for table in task.tables():
            if recorded.get(table.name) != fingerprint(table):
                raise ValueError(f"{path} was scored with another {table.name} ({recorded.get(table.name)}) than "
                                 f"{table} ({fingerprint(table)}): {fix}")
    return rows, prompts_KE


def strip(frames_TCHW, count: int | None = None, rows: int = 1) -> np.ndarray:
    """Put frames side by side, with white gaps: uint8 (T, 3, H, W) -> about (rows*H, T*W/rows, 3).

    Args:
        frames_TCHW: The frames of a clip.
        count: Draw so many of them, evenly spaced; None draws all.
        rows: Rows of frames, in reading order.
    """
    frames = np.asarray(frames_TCHW).transpose(0, 2, 3, 1)
    if count:
        frames = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    gap = max(1, frames.shape[2] // 32)
    padded = np.pad(frames, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    T, H, W, _ = padded.shape
    return padded.reshape(rows, T // rows, H, W, 3).swapaxes(1, 2).reshape(rows * H, -1, 3)[:-gap, :-gap]


def draw_frame(axis, image: np.ndarray, title: str, colour: str | None = None, line: str = "solid") -> None:
    """Draw an image with a title under it and, if a colour is given, a border."""
    axis.imshow(image, interpolation="nearest", aspect="equal")
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(title, fontsize=11, color="black")
    # a spine's own caps fill the gaps of a dashed line
    axis.spines[:].set(visible=colour is not None, color=colour or "black", linewidth=4, linestyle=DASHES[line],
                       capstyle="butt")


def wrapped(text: str, width: int, limit: int = MAX_SHOWN) -> str:
    """Return a text as it is shown, of at most `limit` characters, in lines of at most `width`."""
    return textwrap.fill(shown(text, limit), width)


def in_legend(name: str) -> str:
    """Return a name as the label of a legend, from which matplotlib leaves out those that begin with "_"."""
    text = shown(name, MAX_LEGEND)
    return f" {text}" if text.startswith("_") else text


def draw_heading(axis, text: str, colour: str = "black") -> None:
    """Write a heading over a row of pictures, starting at the left of the first one.

    A long heading must not widen the first column, so the layout sees only an empty title of the same height.
    """
    lines = textwrap.wrap(text, HEADING)
    title = axis.set_title("\n".join(" " * len(lines)), loc="left")  # same height, for the layout
    axis.annotate("\n".join(lines), (0, 1), (0, 6), "axes fraction", "offset points", va="bottom", color=colour,
                  fontsize=title.get_fontsize(), in_layout=False)


def grade_style(grade: float | None) -> tuple[str, str | None, str]:
    """Return the mark, the colour and the line style of a clip's border by its relevancy, from 0 to 1.

    None, for a clip whose relevancy is unknown or has no meaning, gives no mark and no border.
    """
    if grade is None:
        return "", None, "solid"
    if grade == 1:
        return "✓ right", RIGHT, "solid"
    return (f"◐ partly, {grade:.2f}", PARTLY, "dotted") if grade else ("✗ wrong", WRONG, "dashed")


def legend(task, grades) -> str:
    """Return what the marks of `grade_style` mean, for clips of these grades."""
    between = ((np.asarray(grades) > 0) & (np.asarray(grades) < 1)).any()
    partly = f" Dotted orange ◐: partly relevant ({task.partly_relevant})." if between else ""
    return f"Solid green ✓: right.{partly} Dashed red ✗: wrong."


class Picture(NamedTuple):
    """One picture of a grid, with its caption and border."""
    image: np.ndarray
    caption: str
    colour: str | None = None  # None: no border
    line: str = "solid"


def clip_grid(rows: list[tuple[str, bool | None, list[Picture]]], title: str = "", charts: bool = False):
    """Draw rows of pictures under headings.

    Args:
        rows: For each row its heading, whether the model is right (None: neither right nor wrong), and its pictures.
        title: Stands over all rows.
        charts: Whether each row ends with a place for a chart.

    Returns:
        The figure and its last axis in each row.
    """
    columns = max(len(row[2]) for row in rows)
    width = WIDTH / (columns + CHART * charts)
    title = "\n".join(wrapped(line, 125) for line in title.splitlines())
    rows = [(shown(heading), right, [picture._replace(caption="\n".join(
        wrapped(line, int(width / CHARACTER)) for line in picture.caption.split("\n"))) for picture in pictures])
            for heading, right, pictures in rows]
    pictures = [picture for row in rows for picture in row[2]]
    height = width * max(picture.image.shape[0] / picture.image.shape[1] for picture in pictures) + 0.1 + \
        0.22 * max(picture.caption.count("\n") + 1 for picture in pictures) + \
        0.3 * max(len(textwrap.wrap(row[0], HEADING)) for row in rows)
    figure = new_figure(figsize=(WIDTH, height * len(rows) + 0.3 * len(title.splitlines()) + 0.1))
    axes = figure.subplots(len(rows), columns + charts, squeeze=False, width_ratios=[1] * columns + [CHART] * charts)
    for (heading, right, pictures), line in zip(rows, axes, strict=True):
        for axis in line[len(pictures):columns]:
            axis.set_axis_off()
        for axis, picture in zip(line, pictures, strict=False):
            draw_frame(axis, *picture)
        if right is not None:
            draw_heading(line[0], f"{'RIGHT' if right else 'WRONG'}: {heading}", RIGHT if right else WRONG)
        elif heading:
            draw_heading(line[0], heading)
    figure.suptitle(title, fontsize=12)
    return figure, axes[:, -1]
