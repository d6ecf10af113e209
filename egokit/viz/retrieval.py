"""Questions and retrieval results as frame strips, right and wrong marked."""
from __future__ import annotations

import dataclasses
import textwrap

import numpy as np

from egokit.data.annotation_tables import classes_of
from egokit.data.video.frame_sampling import evenly_spaced
from egokit.runs.run_folder import Run
from egokit.viz.style import (
    RIGHT,
    WIDTH,
    WRONG,
    checked_rows,
    draw_frame,
    draw_heading,
    grade_style,
    pick_frames,
    pyplot,
    save_figure,
    strip,
)


def questions(task, run: Run, section: str, count: int = 6):
    """Draw EgoMCQ questions: each narration with its five clips and their scores.

    The answer and the model's choice are marked. Half of the `count` questions are answered right and half wrong, as
    far as there are enough wrong ones.
    """
    plt = pyplot()
    rows, _ = checked_rows(task, run, section)
    scores = task.score_matrix(rows)
    right = scores["ensemble"].argmax(1) == task.answers
    wrong_count = min(count // 2, int((~right).sum()))
    picked = [*evenly_spaced(np.flatnonzero(right), count - wrong_count),
              *evenly_spaced(np.flatnonzero(~right), wrong_count)]
    dataset = task.dataset("test")
    figure, axes = plt.subplots(len(picked), 5, figsize=(WIDTH, 1.45 * len(picked) + 0.4), squeeze=False,
                                layout="constrained")
    from egokit.tasks.egomcq import clip_key
    for q, line in zip(picked, axes, strict=True):
        chosen = int(scores["ensemble"][q].argmax())
        for c, axis in enumerate(line):
            pixels = dataset[0, task.number[clip_key(task.choices[q][c])]]["video"]
            values = " ".join(f"{name[0]} {scores[name][q, c]:.2f}" for name in ("dual", "fusion", "ensemble"))
            answer = c == task.answers[q]
            mark = "✓ answer" if answer else "✗ chosen" if c == chosen else ""
            colour = RIGHT if answer else WRONG if c == chosen else None
            draw_frame(axis, strip(pixels), f"{values}\n{mark}", colour, not answer)
        kind = "verb only" if task.verb_only[q] else {1: "inter-video", 2: "intra-video"}[int(task.types[q])]
        draw_heading(line[0], f"{'RIGHT' if right[q] else 'WRONG'} ({kind}): {task.texts[q]}",
                     RIGHT if right[q] else WRONG)
    figure.suptitle("d: dual (cosine), f: fusion (matching probability), e: ensemble (their sum)", fontsize=11)
    return save_figure(figure, run, f"questions-{section}")


def retrieved(task, run: Run, section: str, count: int = 6, top: int = 5, seed: int = 0):
    """Draw random texts with their best clips.

    Clips are marked right (relevancy 1), partly right or wrong.

    Args:
        task: EK-100 or Charades-Ego.
        run: The run; the figure is saved as figures/retrieved-<section>.png.
        section: Its evaluated section.
        count: Texts to draw, among those that have a right clip.
        top: Clips to draw of each text.
        seed: Of the choice of texts, so that two sections show the same ones.
    """
    plt = pyplot()
    rows, prompts_KE = checked_rows(task, run, section)
    scores_VK, relevancy_VK = task.score_matrix(rows, prompts_KE), task.truth()
    dataset, texts, top = task.dataset("test"), task.prompts(), min(top, len(scores_VK))
    possible = np.flatnonzero(relevancy_VK.max(0) == 1)
    picked = np.sort(np.random.default_rng(seed).choice(possible, min(count, len(possible)), replace=False))
    height = (WIDTH / top / 4 + 0.7) * len(picked)
    figure, axes = plt.subplots(len(picked), top, figsize=(WIDTH, height), squeeze=False, layout="constrained")
    for k, line in zip(picked, axes, strict=True):
        best = np.argsort(-scores_VK[:, k], kind="stable")[:top]
        for rank, (axis, v) in enumerate(zip(line, best, strict=True), 1):
            mark, *border = grade_style(relevancy_VK[v, k])
            draw_frame(axis, strip(pick_frames(dataset[0, int(v)]["video"])),
                       f"{rank}. {mark}   {scores_VK[v, k]:.2f}", *border)
        draw_heading(line[0], f"“{texts[k]}”")
    return save_figure(figure, run, f"retrieved-{section}")


def reranked(model, task, text: str, run: Run | None = None, clips: int = 300, candidates: int = 10, top: int = 5):
    """Draw how the fusion encoder re-ranks what the dual encoder retrieves for one text.

    Clips are embedded a few at a time. If the text is one of the task's narrations, a clip is marked right when it has
    the same verb and noun class, and partly right when it has one of the two.

    Args:
        model: The model.
        task: EgoMCQ, whose clips are searched.
        text: The query.
        run: Where to save figures/reranked.png; None saves nothing.
        clips: At most so many clips are searched, evenly spaced over the data set.
        candidates: Best clips by cosine that the fusion encoder orders anew, by cosine + matching probability.
        top: Clips drawn of each order.
    """
    import torch

    from egokit.data.video.transforms import normalise
    from egokit.model.egovlp import similarity
    from egokit.tasks.egomcq import clip_key
    plt = pyplot()
    dataset = task.dataset("test")
    searched = np.linspace(0, len(dataset) - 1, min(clips, len(dataset))).round().astype(int).tolist()
    with torch.no_grad():
        video_VE = torch.cat([
            model.encode_video(normalise(torch.stack([dataset[0, v]["video"] for v in searched[first:first + 16]])))
            for first in range(0, len(searched), 16)])
        dual = similarity(model.encode_text([text]), video_VE)[0].cpu()
        best = dual.topk(min(candidates, len(searched))).indices.tolist()
        pixels = [dataset[0, searched[i]]["video"] for i in best]
        fusion = model.match(normalise(torch.stack(pixels)), [text]).cpu()
    ensemble, top = dual[best] + fusion, min(top, len(best))
    clip_of = {clip_key(clip): clip for five in task.choices for clip in five}
    narration = next((question["query"] for question in task.questions if question["query"]["clip_text"] == text), None)
    orders = {f"dual: the {top} best of {len(searched)} clips by cosine": range(len(best)),
              f"fusion: the {len(best)} best ordered anew, by cosine + matching probability":
              ensemble.argsort(descending=True).tolist()}
    height = 0.4 + (WIDTH / top / 4 + 1.1) * len(orders)
    figure, axes = plt.subplots(len(orders), top, figsize=(WIDTH, height), squeeze=False, layout="constrained")
    for row, (line, (name, order)) in enumerate(zip(axes, orders.items(), strict=True)):
        draw_heading(line[0], name)
        for rank, (axis, i) in enumerate(zip(line, order[:top], strict=True), 1):
            clip = clip_of[task.clips[searched[best[i]]]]
            colour, mark = tag_agreement(narration, clip)
            numbers = f"{dual[best[i]]:.2f}" + (f" + {fusion[i]:.2f} (was {i + 1}.)" if row else "")
            caption = textwrap.fill(textwrap.shorten(clip.get("clip_text", ""), 50, placeholder=" …"), 26)
            draw_frame(axis, strip(pick_frames(pixels[i])), f"{rank}. {mark} {numbers}\n{caption}", colour,
                       colour != RIGHT)
    figure.suptitle(f"“{text}”")
    return save_figure(figure, run, "reranked")


def tag_agreement(narration: dict | None, clip: dict) -> tuple[str | None, str]:
    """Return (colour, mark) of a clip by the verb and noun classes it shares with a narration.

    Without tags to compare, it is (None, "").
    """
    tags = [(classes_of((narration or {}).get(f"tag_{kind}", [])), classes_of(clip.get(f"tag_{kind}", [])))
            for kind in ("verb", "noun")]
    if not all(of_narration for of_narration, _ in tags):
        return None, ""
    same = sum(bool(set(of_narration) & set(of_clip)) for of_narration, of_clip in tags)
    return grade_style(same / 2)[1], "✗◐✓"[same]


@dataclasses.dataclass
class Question:
    """One EgoMCQ question with its clips read."""
    text: str
    pixels: object   # (5, T, 3, size, size) uint8
    frames: object   # the same, normalised
    answer: int      # 0 to 4
    figure: object


def question(task, number: int, run: Run | None = None) -> Question:
    """Read and draw question `number` of an EgoMCQ task."""
    import torch

    from egokit.data.video.transforms import normalise
    from egokit.tasks.egomcq import clip_key
    plt = pyplot()
    dataset = task.dataset("test")
    pixels = torch.stack([dataset[0, task.number[clip_key(clip)]]["video"] for clip in task.choices[number]])
    figure, axes = plt.subplots(1, len(pixels), figsize=(WIDTH, 1.5), layout="constrained")
    for c, axis in enumerate(axes):
        draw_frame(axis, strip(pick_frames(pixels[c])), f"clip {c + 1}")
    figure.suptitle(f"Which clip is “{task.texts[number]}”?")
    return Question(task.texts[number], pixels, normalise(pixels), int(task.answers[number]),
                    save_figure(figure, run, "question"))
