"""Numbers by class: average precision of actions, scores by verb and by noun.

Where there are more classes than lines on a page, the figure names some and says how many there are.
"""
from __future__ import annotations

import collections
import re
import textwrap

import numpy as np

from egokit.data.annotation_tables import classes_of
from egokit.runs.run_folder import Run
from egokit.tasks import metrics
from egokit.viz.style import CYCLE, WIDTH, checked_rows, pyplot, save_figure

LINES = 20  # classes in one plot; the best and the worst have as many each
MARKERS = "osD^"
FUNCTION_WORDS = set(re.findall("[a-z]+", "someone something somewhere is are a an the some of to in into on onto at "
                                          "from with and or up down out by for their his her its it them"))


def average_precisions(task, run: Run, *sections: str):
    """Draw the average precision of every Charades-Ego class in evaluated sections.

    The left plot has all classes, each section sorted by itself; the right one names the best and the worst classes of
    the last section.
    """
    plt, truth_VK = pyplot(), task.truth()
    precisions = {section: 100 * metrics.each_class(task.score_matrix(*checked_rows(task, run, section)), truth_VK)
                  for section in sections}
    share_K = 100 * truth_VK[truth_VK.any(1)].mean(0)  # the metric ranks a video without labels last, for every class
    last = precisions[sections[-1]]
    order = np.argsort(-last, kind="stable")[:int(np.isfinite(last).sum())]  # classes that don't occur are NaN, last
    named = order if len(order) <= 2 * LINES else np.concatenate([order[:LINES], order[-LINES:]])
    height = 1.6 + 0.3 * max(len(named), 10)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, height), layout="constrained", width_ratios=[1, 1.2])
    for number, (section, values) in enumerate(precisions.items()):
        ranked = np.sort(values[order])[::-1]
        left.step(np.arange(1, len(ranked) + 1), ranked, where="mid", color=CYCLE[number],
                  linestyle=["-", "--", "-.", ":"][number % 4], label=f"{section}: mAP {ranked.mean():.1f}")
    left.set(xlabel="classes, the best first", ylabel="average precision, %", ylim=(0, 101),
             xlim=(0.5, len(order) + 0.5), title=f"all {len(last)} classes occur" if len(order) == len(last) else
             f"{len(order)} of {len(last)} classes occur, {len(last) - len(order)} have no value")
    left.legend()
    names = list(task.classes.values())
    dot_plot(right, [textwrap.shorten(names[k], 44, placeholder=" …") for k in named],
             {section: values[named] for section, values in precisions.items()})
    right.plot(share_K[named], range(len(named)), "|", color="black", markersize=11,
               label="chance: share of labelled videos with it")
    right.set(xlabel="average precision, %", title=f"all of them, sorted by {sections[-1]}"
              if len(named) == len(order) else f"the {LINES} best and the {LINES} worst of {sections[-1]}")
    if len(named) < len(order):
        right.axhline(LINES - 0.5, color="black", linewidth=1)
    right.legend()
    return save_figure(figure, run, "average-precisions")


def accuracy_by_word(task, run: Run, section: str):
    """Draw EgoMCQ's ensemble accuracy by verb and by noun, inter-video and intra-video apart.

    Verbs and nouns are the classes that each narration is tagged with.
    """
    scores_QC = task.score_matrix(checked_rows(task, run, section)[0])["ensemble"]
    right_Q = 100.0 * (scores_QC.argmax(1) == task.answers)
    series = {name: np.where(task.types == kind, right_Q, np.nan)
              for kind, name in ((1, "inter-video"), (2, "intra-video"))}
    tags = {kind: [classes_of(question["query"].get(f"tag_{kind}", [])) for question in task.questions]
            for kind in ("verb", "noun")}
    figure = by_word(task.texts, tags, series, "ensemble accuracy, %", "questions", chance=20)
    return save_figure(figure, run, f"words-{section}")


def retrieval_by_word(task, run: Run, *sections: str):
    """Draw EK-100's nDCG from a clip to sentences, by the clip's verb and noun classes."""
    clips, series = task.test.clips, {}
    for section in sections:
        scores_VK = task.score_matrix(*checked_rows(task, run, section))
        series[section] = 100 * metrics.each_query(scores_VK, task.truth())[1]
    tags = {"verb": [[verb] for verb in clips.verb_class], "noun": clips.all_noun_classes.tolist()}
    figure = by_word(clips.narration.tolist(), tags, series, "nDCG of clip to sentences, %", "clips")
    return save_figure(figure, run, "words")


def by_word(texts: list[str], tags: dict[str, list[list[int]]], series: dict[str, np.ndarray], label: str, unit: str,
            chance: float | None = None):
    """Return a figure of the mean of each series for the most frequent verbs and nouns.

    Args:
        texts: The text of each sample; classes are named by words of their texts.
        tags: {"verb": classes of each sample, "noun": …}; one plot each.
        series: {name: (N,) value of each sample}; NaN doesn't count.
        label: Of the x-axis.
        unit: What a sample is, in the plural.
        chance: Value at which to draw a line, if any.
    """
    plt = pyplot()
    words, all_words = words_of(texts)
    count = {kind: collections.Counter(number for classes in column for number in set(classes))
             for kind, column in tags.items()}
    most = max(min(LINES, len(counted)) for counted in count.values())
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 1.8 + 0.32 * max(most, 5)), layout="constrained")
    for axis, (kind, column) in zip(axes, tags.items(), strict=True):
        names, means = [], {name: [] for name in series}
        for number, samples in count[kind].most_common(LINES):
            in_class = np.array([number in classes for classes in column])
            names.append(f"{typical_words(words, np.flatnonzero(in_class), all_words)}  ({samples:,})")
            for name, values in series.items():
                finite = values[in_class & np.isfinite(values)]
                means[name].append(finite.mean() if len(finite) else np.nan)
        if not names:
            axis.set_axis_off()
            axis.set_title(f"the annotations name no {kind}s")
            continue
        dot_plot(axis, names, means)
        total = f"{len(count[kind])} {kind}s "
        axis.set(xlabel=label, title=(total if len(names) == len(count[kind]) else
                                      f"the {len(names)} most frequent of {total}\n") + f"(number of {unit})")
        if chance is not None:
            axis.axvline(chance, color="black", linestyle=":", label="chance")
        axis.legend()
    return figure


def dot_plot(axis, names: list[str], series: dict[str, np.ndarray]) -> None:
    """Draw one line per name and one marker per series, from 0 to 100 %."""
    for number, (label, values) in enumerate(series.items()):
        axis.plot(values, range(len(names)), MARKERS[number % len(MARKERS)], color=CYCLE[number], markersize=8,
                  markerfacecolor="none" if number else CYCLE[number], markeredgewidth=2, label=label, clip_on=False)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
    axis.grid(axis="both", color="0.88")
    axis.set_axisbelow(True)


def words_of(texts: list[str]) -> tuple[list[dict[str, int]], collections.Counter]:
    """Return each text's distinct words in order, and in how many texts each word occurs."""
    words = [dict.fromkeys(re.findall(r"[a-z][a-z-]+", text.lower()), 1) for text in texts]
    return words, collections.Counter(word for text in words for word in text)


def typical_words(words_Q: list[dict[str, int]], members, all_words: collections.Counter) -> str:
    """Return one to three words that are typical of a class's texts and rare in all others.

    The annotation tables number their classes without naming them, so a name is derived from the texts.

    Args:
        words_Q: The words of every text, from `words_of`.
        members: Numbers of the texts in the class.
        all_words: In how many texts each word occurs, from `words_of`.
    """
    inside, outside_count = collections.Counter(), max(1, len(words_Q) - len(members))
    for q in members:
        inside.update(words_Q[q])
    share = {word: number / len(members) - (all_words[word] - number) / outside_count
             for word, number in inside.items()}
    return " ".join([word for word, value in share.items() if value >= 0.75 * max(share.values())][:3]) or "?"


def class_names(texts: list[str], column: list[list[int]]) -> list[list[str]]:
    """Return the names of each text's classes, given the numbers of its classes."""
    words, all_words = words_of(texts)
    members = collections.defaultdict(list)
    for q, classes in enumerate(column):
        for number in dict.fromkeys(classes):
            members[number].append(q)
    names = {number: typical_words(words, of_class, all_words) for number, of_class in members.items()}
    return [list(dict.fromkeys(names[number] for number in classes)) for classes in column]


def query_words(task) -> dict[str, list[list[str]]]:
    """Return {"verb", "noun"}: the names of each text's classes.

    Charades-Ego's sentences have no such tags; the words of a sentence stand for them.
    """
    if hasattr(task, "questions"):
        return {kind: class_names(task.texts, [classes_of(question["query"].get(f"tag_{kind}", []))
                                               for question in task.questions]) for kind in ("verb", "noun")}
    if not hasattr(task, "classes"):
        clips = task.test.clips.set_index("narration_id").loc[task.test.sentences.narration_id]
        return {kind: class_names(task.prompts(), column) for kind, column in
                (("verb", [[verb] for verb in clips.verb_class]), ("noun", clips.all_noun_classes.tolist()))}
    words: dict[str, list[list[str]]] = {"verb": [], "noun": []}
    for sentence in task.prompts():
        in_sentence = re.findall(r"[a-z]+", sentence.lower())
        verb = next((word for word in in_sentence if word.endswith("ing") and word not in FUNCTION_WORDS),
                    in_sentence[0])
        words["verb"].append([verb])
        words["noun"].append(list(dict.fromkeys(word for word in in_sentence
                                                if word != verb and word not in FUNCTION_WORDS)))
    return words
