"""EgoMQ's detections: timelines of some clips, AP by class, and false positives by kind."""
import collections
from collections.abc import Sequence

import numpy as np

from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.tasks.moments import mq_errors
from egokit.tasks.moments.mq_annotations import MQClip
from egokit.tasks.moments.mq_metrics import TIOUS, mean_average_precision
from egokit.tasks.moments.mq_results import Rows
from egokit.viz.moment_files import detected
from egokit.viz.style import CHARACTER, CYCLE, NEUTRAL, WIDTH, new_figure, save_figure, wrapped

LINES = 20    # classes in one plot; the best and the worst have as many each
MAX_CLASS = 60  # characters of a class's name
LANES = 5     # lines of one timeline on which segments that overlap are drawn
SHORTEST = 0.003  # width of a drawn segment, in widths of the timeline
HATCHES = ("", "////", "....")  # with them, CYCLE's colours tell 21 classes apart
OTHER = "0.6"  # grey of the classes beyond these
TIOU = 0.5    # from which on a detection is right
FAINTEST = 0.25  # opacity of the lowest score
KIND_COLOURS = (CYCLE[2], CYCLE[5], CYCLE[3], CYCLE[4], CYCLE[1], "0.75")


def evenly(items: Sequence, count: int) -> list:
    """Return at most `count` of the items, evenly spaced."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def detections(run: Run, count: int = 4):
    """Draw timelines of some clips of an evaluation of EgoMQ: the moments, and as many of the best detections.

    Colours are classes. The lower a detection's score, the fainter it is; one that is right has a black border.

    Args:
        run: its figure `detections` is saved.
        count: how many clips, evenly spaced among those with moments.
    """
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch
    clips, results = detected(run)
    chosen = [(clip, *_best(clip, results.get(clip.clip_uid)))
              for clip in evenly([clip for clip in clips.values() if clip.moments], count)]
    labelled = collections.Counter(moment.label for clip, _, _ in chosen for moment in clip.moments)
    named = collections.Counter(label for _, rows, _ in chosen for label in rows.labels)
    labels = sorted(labelled | named, key=lambda label: (-labelled[label], -named[label], label))
    styles = {label: (CYCLE[i % len(CYCLE)], HATCHES[i // len(CYCLE)])
              for i, label in enumerate(labels[:len(CYCLE) * len(HATCHES)])}

    def draw(axis, top: float, segments, labels, alphas, right) -> int:
        """Draw segments on lanes from `top` on; return how many had no place."""
        lanes, shortest = _lanes(segments), SHORTEST * axis.get_xlim()[1]
        for (start, stop), label, alpha, is_right, lane in zip(segments, labels, alphas, right, lanes, strict=True):
            if lane < LANES:
                colour, hatch = styles.get(label, (OTHER, ""))
                axis.broken_barh([(start, max(stop - start, shortest))], (top + lane, 0.86), hatch=hatch,
                                 facecolor=to_rgba(colour, alpha), edgecolor="black" if is_right else "white",
                                 linewidth=2 if is_right else 0.8 if stop - start > 4 * shortest else 0)
        return int((lanes >= LANES).sum())

    def height(segments) -> int:
        return int(min(_lanes(segments).max(initial=0) + 1, LANES))
    truths = [[(moment.start, moment.stop) for moment in clip.moments] for clip, _, _ in chosen]
    heights = [(height(truth), height(rows.segments)) for truth, (_, rows, _) in zip(truths, chosen, strict=True)]
    longest = max(min(len(label), MAX_CLASS) for label in labels)
    columns = max(1, int(WIDTH / (CHARACTER * longest + 0.7)))
    legend_lines = -(-(len(styles) + 1) // columns)
    figure = new_figure(figsize=(WIDTH, sum(1.15 + 0.24 * sum(pair) for pair in heights) + 0.3 * legend_lines + 0.5))
    axes = figure.subplots(len(chosen), 1, squeeze=False, height_ratios=[2 + sum(pair) for pair in heights])[:, 0]
    for axis, (clip, rows, right), truth, (above, below) in zip(axes, chosen, truths, heights, strict=True):
        axis.set_xlim(0, clip.seconds)
        left_out = draw(axis, 0, truth, [moment.label for moment in clip.moments], [1.0] * len(truth),
                        [False] * len(truth))
        alphas = FAINTEST + (1 - FAINTEST) * rows.scores / max(rows.scores.max(initial=0), 1e-12)
        left_out += draw(axis, above + 0.4, rows.segments, rows.labels, np.clip(alphas, FAINTEST, 1), right)
        hidden = f", {left_out} not drawn" if left_out else ""
        axis.set_title(f"clip {shown(clip.clip_uid, 40)}: {len(truth)} moments, {len(rows.scores)} detections, "
                       f"{int(right.sum())} of them right{hidden}", loc="left")
        axis.set(ylim=(above + below + 0.5, -0.1), xlabel="time in the clip (s)")
        axis.set_yticks([above / 2, above + 0.4 + below / 2], ["truth", "detected"])
        axis.tick_params(axis="y", length=0)
    handles = [Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=_unhidden(label))
               for label, (colour, hatch) in styles.items()]
    if len(labels) > len(styles):
        handles.append(Patch(facecolor=OTHER, label=f"{len(labels) - len(styles)} other classes"))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle("The best detections of each clip, as many as it has moments. Fainter: a lower score. "
                    f"Black border: right (tIoU {TIOU:g}).", fontsize=12)
    return save_figure(figure, run, "detections")


def _best(clip: MQClip, rows: Rows | None) -> tuple[Rows, np.ndarray]:
    """Return a clip's best detections, as many as it has moments, and which of them are right."""
    if rows is None:
        rows = Rows(np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=object))
    rows = rows.take(np.argsort(-rows.scores, kind="stable")[:len(clip.moments)])
    return rows, mq_errors.kinds_of_clip(rows, clip.moments, TIOU) == mq_errors.KINDS.index("right")


def _lanes(segments) -> np.ndarray:
    """Return for each segment the first lane on which it overlaps none before it."""
    lanes, ends = np.zeros(len(segments), dtype=int), []
    for i in sorted(range(len(segments)), key=lambda i: tuple(segments[i])):
        start, stop = segments[i]
        lanes[i] = next((lane for lane, end in enumerate(ends) if end <= start), len(ends))
        ends[lanes[i]:lanes[i] + 1] = [stop]
    return lanes


def _unhidden(label: str) -> str:
    """Return a class's name for a legend, from which matplotlib leaves out those that begin with "_"."""
    text = shown(label, MAX_CLASS)
    return f" {text}" if text.startswith("_") else text


def detections_per_class(run: Run):
    """Draw the AP of each class, the mean over tIoU, with its number of moments in brackets.

    Of more than 40 classes, the 20 best and the 20 worst are drawn.

    Args:
        run: an evaluation of EgoMQ; its figure `detections-per-class` is saved.
    """
    clips, results = detected(run)
    scored = mean_average_precision(results, clips)
    number_of = collections.Counter(moment.label for clip in clips.values() for moment in clip.moments)
    ap_C = 100 * scored["ap"].mean(axis=1)
    order = np.argsort(-ap_C, kind="stable")
    drawn = order if len(order) <= 2 * LINES else np.concatenate([order[:LINES], order[-LINES:]])
    figure = new_figure(figsize=(WIDTH, 1.5 + 0.3 * len(drawn)))
    axis = figure.subplots()
    axis.barh(range(len(drawn)), ap_C[drawn], color=NEUTRAL)
    for line, k in enumerate(drawn):
        axis.text(ap_C[k] + 0.6, line, f"{ap_C[k]:.1f}", va="center", fontsize=11)
    names = [scored["classes"][k] for k in drawn]
    axis.set_yticks(range(len(names)), [f"{shown(name, MAX_CLASS)}  ({number_of[name]:,})" for name in names])
    if len(drawn) < len(order):
        axis.axhline(LINES - 0.5, color="black", linewidth=1)
    which = f"all {len(order)} classes" if len(drawn) == len(order) else \
        f"the {LINES} best and the {LINES} worst of {len(order)} classes"
    axis.set(xlabel="average precision, %", xlim=(0, 106), ylim=(len(drawn) - 0.4, -0.6),
             title=f"{which} (number of moments)\nmean over tIoU {TIOUS[0]:g} to {TIOUS[-1]:g}; mean of all classes: "
                   f"{100 * scored['average_map']:.1f}")
    axis.grid(axis="x", color="0.88")
    axis.set_axisbelow(True)
    return save_figure(figure, run, "detections-per-class")


def false_positives(run: Run, times: int = 5, tiou: float = TIOU):
    """Draw what the best detections are: right, or false positives of five kinds.

    A bar is as many detections as there are moments (G): the G best of all clips, the next G, and so on.

    Args:
        run: an evaluation of EgoMQ; its figure `false-positives` is saved.
        times: how many bars.
        tiou: the IoU from which on a detection is right.

    Source: Alwassel et al. (DETAD), see egokit.tasks.moments.mq_errors.
    """
    clips, results = detected(run)
    total = sum(len(clip.moments) for clip in clips.values())
    kinds = mq_errors.kinds_by_score(results, clips, tiou)
    groups = [kinds[total * i:total * (i + 1)] for i in range(times)]
    share = np.array([[100 * np.mean(group == kind) if len(group) else 0 for group in groups]
                      for kind in range(len(mq_errors.KINDS))])
    figure = new_figure(figsize=(WIDTH, 5))
    axis = figure.subplots()
    bottom = np.zeros(times)
    for kind, (name, colour) in enumerate(zip(mq_errors.KINDS, KIND_COLOURS, strict=True)):
        axis.bar(range(times), share[kind], 0.72, bottom, color=colour, label=name, edgecolor="white")
        for i, value in enumerate(share[kind]):
            if value >= 5:
                axis.text(i, bottom[i] + value / 2, f"{value:.0f}", ha="center", va="center", fontsize=11)
        bottom += share[kind]
    names = ["the G best", *[f"{i} G to {i + 1} G" for i in range(1, times)]]
    axis.set_xticks(range(times), [f"{name}\n({len(group):,})" for name, group in zip(names, groups, strict=True)])
    axis.set(ylabel="share, %", ylim=(0, 100), xlabel="detections by falling score (their number)",
             title=wrapped(f"{len(kinds):,} detections, G = {total:,} moments; right from tIoU {tiou:g} on", 90))
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return save_figure(figure, run, "false-positives")
