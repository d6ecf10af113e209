"""Numbers class by class: average precision of actions; accuracy and retrieval by verb and by noun.

Where there are more classes than a page has lines, some are named and how many there are is said.
"""
from __future__ import annotations

import collections
import re
import textwrap

import numpy as np

from egokit.data.annotation_tables import classes_of
from egokit.runs.run_folder import Run
from egokit.tasks import metrics
from egokit.viz.style import CYCLE, WIDTH, checked_rows, finish, pyplot

LINES = 20  # classes named one under another
MARKERS = "osD^"
FUNCTION_WORDS = set(re.findall("[a-z]+", "someone something somewhere is are a an the some of to in into on onto at from with and or up "
                                          "down out by for their his her its it them"))


def average_precisions(task, run: Run, *sections: str):
    """Charades-Ego: every class's average precision, sorted, and by name the best and worst of the last section."""
    plt, truth_VK = pyplot(), task.truth()
    found = {section: 100 * metrics.each_class(task.score_matrix(*checked_rows(task, run, section)), truth_VK) for section in sections}
    share_K = 100 * truth_VK[truth_VK.any(1)].mean(0)  # a video without a label ranks behind all others, for every class
    last = found[sections[-1]]
    order = np.argsort(-last, kind="stable")[:int(np.isfinite(last).sum())]  # NaN, classes that don't occur, come last
    named = order if len(order) <= 2 * LINES else np.concatenate([order[:LINES], order[-LINES:]])
    height = 1.6 + 0.3 * max(len(named), 10)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, height), layout="constrained", width_ratios=[1, 1.2])
    for number, (section, values) in enumerate(found.items()):
        ranked = np.sort(values[order])[::-1]
        left.step(np.arange(1, len(ranked) + 1), ranked, where="mid", color=CYCLE[number], linestyle=["-", "--", "-.", ":"][number % 4],
                  label=f"{section}: mAP {ranked.mean():.1f}")
    left.set(xlabel="classes, the best first", ylabel="average precision, %", ylim=(0, 101), xlim=(0.5, len(order) + 0.5),
             title=f"all {len(last)} classes occur" if len(order) == len(last) else
             f"{len(order)} of {len(last)} classes occur, {len(last) - len(order)} have no value")
    left.legend()
    names = list(task.classes.values())
    dots(right, [textwrap.shorten(names[k], 44, placeholder=" …") for k in named],
         {section: values[named] for section, values in found.items()})
    right.plot(share_K[named], range(len(named)), "|", color="black", markersize=11, label="chance: share of labelled videos with it")
    right.set(xlabel="average precision, %", title=f"all of them, sorted by {sections[-1]}" if len(named) == len(order) else
              f"the {LINES} best and the {LINES} worst of {sections[-1]}")
    if len(named) < len(order):
        right.axhline(LINES - 0.5, color="black", linewidth=1)
    right.legend()
    return finish(figure, run, "average-precisions")


def accuracy_by_word(task, run: Run, section: str):
    """EgoMCQ: accuracy of the ensemble by the verb and by the noun that a narration's tags name, inter-video and intra-video apart."""
    right_Q = 100.0 * (task.score_matrix(checked_rows(task, run, section)[0])["ensemble"].argmax(1) == task.answers)
    series = {name: np.where(task.types == kind, right_Q, np.nan) for kind, name in ((1, "inter-video"), (2, "intra-video"))}
    tags = {kind: [classes_of(question["query"].get(f"tag_{kind}", [])) for question in task.questions] for kind in ("verb", "noun")}
    figure = by_word(task.texts, tags, series, "ensemble accuracy, %", "questions", chance=20)
    return finish(figure, run, f"words-{section}")


def retrieval_by_word(task, run: Run, *sections: str):
    """EK-100: nDCG from a clip to sentences, by the clip's verb class and by its noun classes."""
    clips, series = task.test.clips, {}
    for section in sections:
        series[section] = 100 * metrics.each_query(task.score_matrix(*checked_rows(task, run, section)), task.truth())[1]
    tags = {"verb": [[verb] for verb in clips.verb_class], "noun": clips.all_noun_classes.tolist()}
    return finish(by_word(clips.narration.tolist(), tags, series, "nDCG of clip to sentences, %", "clips"), run, "words")


def by_word(texts: list[str], tags: dict[str, list[list[int]]], series: dict[str, np.ndarray], label: str, unit: str,
            chance: float | None = None):
    """Figure of the mean of each series over the samples of a class, for the most frequent verbs and nouns. NaN doesn't count."""
    plt = pyplot()
    words, all_words = words_of(texts)
    count = {kind: collections.Counter(one for classes in column for one in set(classes)) for kind, column in tags.items()}
    most = max(min(LINES, len(counted)) for counted in count.values())
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 1.8 + 0.32 * max(most, 5)), layout="constrained")
    for axis, (kind, column) in zip(axes, tags.items(), strict=True):
        names, means = [], {name: [] for name in series}
        for one, samples in count[kind].most_common(LINES):
            inside = np.array([one in classes for classes in column])
            names.append(f"{typical_words(words, np.flatnonzero(inside), all_words)}  ({samples:,})")
            for name, values in series.items():
                some = values[inside & np.isfinite(values)]
                means[name].append(some.mean() if len(some) else np.nan)
        if not names:
            axis.set_axis_off()
            axis.set_title(f"the annotations name no {kind}s")
            continue
        dots(axis, names, means)
        few = f"{len(count[kind])} {kind}s "
        axis.set(xlabel=label, title=(few if len(names) == len(count[kind]) else f"the {len(names)} most frequent of {few}\n")
                 + f"(number of {unit})")
        if chance is not None:
            axis.axvline(chance, color="black", linestyle=":", label="chance")
        axis.legend()
    return figure


def dots(axis, names: list[str], series: dict[str, np.ndarray]) -> None:
    """One line a name, one marker a series, from 0 to 100 %."""
    for number, (label, values) in enumerate(series.items()):
        axis.plot(values, range(len(names)), MARKERS[number % len(MARKERS)], color=CYCLE[number], markersize=8,
                  markerfacecolor="none" if number else CYCLE[number], markeredgewidth=2, label=label, clip_on=False)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
    axis.grid(axis="both", color="0.88")
    axis.set_axisbelow(True)


def words_of(texts: list[str]) -> tuple[list[dict[str, int]], collections.Counter]:
    """Each text's words, each once and in their order; and in how many texts a word is."""
    words = [dict.fromkeys(re.findall(r"[a-z][a-z-]+", text.lower()), 1) for text in texts]
    return words, collections.Counter(word for one in words for word in one)


def typical_words(words_Q: list[dict[str, int]], members, all_words: collections.Counter) -> str:
    """What marks the texts of a class, the numbers `members`, off from the others: a word or several that mostly go together.

    Tags are numbers, and what they are called is not in the tables.
    """
    has, others = collections.Counter(), max(1, len(words_Q) - len(members))
    for q in members:
        has.update(words_Q[q])
    share = {word: number / len(members) - (all_words[word] - number) / others for word, number in has.items()}
    return " ".join([word for word, value in share.items() if value >= 0.75 * max(share.values())][:3]) or "?"


def class_names(texts: list[str], column: list[list[int]]) -> list[list[str]]:
    """Texts and the numbers of their classes -> the classes' names for each text."""
    words, all_words = words_of(texts)
    members = collections.defaultdict(list)
    for q, classes in enumerate(column):
        for one in dict.fromkeys(classes):
            members[one].append(q)
    names = {one: typical_words(words, of, all_words) for one, of in members.items()}
    return [list(dict.fromkeys(names[one] for one in classes)) for classes in column]


def query_words(task) -> dict[str, list[list[str]]]:
    """{"verb", "noun"}: for each text the names of its classes; for Charades-Ego's sentences, their words."""
    if hasattr(task, "questions"):
        return {kind: class_names(task.texts, [classes_of(question["query"].get(f"tag_{kind}", [])) for question in task.questions])
                for kind in ("verb", "noun")}
    if not hasattr(task, "classes"):
        clips = task.test.clips.set_index("narration_id").loc[task.test.sentences.narration_id]
        return {kind: class_names(task.prompts(), column) for kind, column in
                (("verb", [[one] for one in clips.verb_class]), ("noun", clips.all_noun_classes.tolist()))}
    found: dict[str, list[list[str]]] = {"verb": [], "noun": []}
    for sentence in task.prompts():
        words = re.findall(r"[a-z]+", sentence.lower())
        verb = next((word for word in words if word.endswith("ing") and word not in FUNCTION_WORDS), words[0])
        found["verb"].append([verb])
        found["noun"].append(list(dict.fromkeys(word for word in words if word != verb and word not in FUNCTION_WORDS)))
    return found
