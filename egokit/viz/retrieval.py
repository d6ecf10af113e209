"""Questions and retrieval results as frame strips, right and wrong marked."""
from __future__ import annotations

import dataclasses
import textwrap

import numpy as np

from egokit.data.annotation_tables import classes_of
from egokit.data.video.frame_sampling import evenly_spaced
from egokit.runs.run_folder import Run
from egokit.viz.style import RIGHT, WIDTH, WRONG, checked_rows, finish, frame, graded, heading, pyplot, strip, thin


def questions(task, run: Run, section: str, count: int = 6):
    """EgoMCQ questions: the narration, its five clips with their scores; the answer and the model's choice marked.

    Half of the questions shown were answered right, half wrong, as far as there are such.
    """
    plt = pyplot()
    rows, _ = checked_rows(task, run, section)
    scores = task.score_matrix(rows)
    right = scores["ensemble"].argmax(1) == task.answers
    wrong_count = min(count // 2, int((~right).sum()))
    picked = [*evenly_spaced(np.flatnonzero(right), count - wrong_count), *evenly_spaced(np.flatnonzero(~right), wrong_count)]
    dataset = task.dataset("test")
    figure, axes = plt.subplots(len(picked), 5, figsize=(WIDTH, 1.45 * len(picked) + 0.4), squeeze=False, layout="constrained")
    from egokit.tasks.egomcq import clip_key
    for q, line in zip(picked, axes, strict=True):
        chosen = int(scores["ensemble"][q].argmax())
        for c, axis in enumerate(line):
            pixels = dataset[0, task.number[clip_key(task.choices[q][c])]]["video"]
            values = " ".join(f"{name[0]} {scores[name][q, c]:.2f}" for name in ("dual", "fusion", "ensemble"))
            answer = c == task.answers[q]
            mark = "✓ answer" if answer else "✗ chosen" if c == chosen else ""
            frame(axis, strip(pixels), f"{values}\n{mark}", RIGHT if answer else WRONG if c == chosen else None, not answer)
        kind = "verb only" if task.verb_only[q] else {1: "inter-video", 2: "intra-video"}[int(task.types[q])]
        heading(line[0], f"{'RIGHT' if right[q] else 'WRONG'} ({kind}): {task.texts[q]}", RIGHT if right[q] else WRONG)
    figure.suptitle("d: dual (cosine), f: fusion (matching probability), e: ensemble (their sum)", fontsize=11)
    return finish(figure, run, f"questions-{section}")


def retrieved(task, run: Run, section: str, count: int = 6, top: int = 5, seed: int = 0):
    """Texts with their best clips as frame strips; right (relevancy 1), partly right and wrong marked."""
    plt = pyplot()
    rows, prompts_KE = checked_rows(task, run, section)
    scores_VK, relevancy_VK = task.score_matrix(rows, prompts_KE), task.truth()
    dataset, texts, top = task.dataset("test"), task.prompts(), min(top, len(scores_VK))
    possible = np.flatnonzero(relevancy_VK.max(0) == 1)
    picked = np.sort(np.random.default_rng(seed).choice(possible, min(count, len(possible)), replace=False))
    height = (WIDTH / top / 4 + 0.7) * len(picked)
    figure, axes = plt.subplots(len(picked), top, figsize=(WIDTH, height), squeeze=False, layout="constrained")
    for k, line in zip(picked, axes, strict=True):
        for rank, (axis, v) in enumerate(zip(line, np.argsort(-scores_VK[:, k], kind="stable")[:top], strict=True)):
            mark, *border = graded(relevancy_VK[v, k])
            frame(axis, strip(thin(dataset[0, int(v)]["video"])), f"{rank + 1}. {mark}   {scores_VK[v, k]:.2f}", *border)
        heading(line[0], f"“{texts[k]}”")
    return finish(figure, run, f"retrieved-{section}")


def reranked(model, task, text: str, run: Run | None = None, clips: int = 300, candidates: int = 10, top: int = 5):
    """One text against many clips of EgoMCQ: the dual encoder finds `candidates` of them, the fusion encoder orders those anew.

    Clips are embedded a few at a time; of more than `clips`, some evenly. Where the text is one of the task's narrations, clips
    of the same verb and noun class are marked right, of one of the two partly.
    """
    import torch

    from egokit.data.video.transforms import normalise
    from egokit.model.egovlp import similarity
    from egokit.tasks.egomcq import clip_key
    plt = pyplot()
    dataset = task.dataset("test")
    places = np.linspace(0, len(dataset) - 1, min(clips, len(dataset))).round().astype(int).tolist()
    with torch.no_grad():
        video_VE = torch.cat([model.encode_video(normalise(torch.stack([dataset[0, v]["video"] for v in places[at:at + 16]])))
                              for at in range(0, len(places), 16)])
        dual = similarity(model.encode_text([text]), video_VE)[0].cpu()
        found = dual.topk(min(candidates, len(places))).indices.tolist()
        pixels = [dataset[0, places[i]]["video"] for i in found]
        fusion = model.match(normalise(torch.stack(pixels)), [text]).cpu()
    both, top = dual[found] + fusion, min(top, len(found))
    about = {clip_key(clip): clip for five in task.choices for clip in five}
    asked = next((question["query"] for question in task.questions if question["query"]["clip_text"] == text), None)
    orders = {f"dual: the {top} best of {len(places)} clips by cosine": range(len(found)),
              f"fusion: the {len(found)} best ordered anew, by cosine + matching probability": both.argsort(descending=True).tolist()}
    height = 0.4 + (WIDTH / top / 4 + 1.1) * len(orders)
    figure, axes = plt.subplots(len(orders), top, figsize=(WIDTH, height), squeeze=False, layout="constrained")
    for again, (line, (name, order)) in enumerate(zip(axes, orders.items(), strict=True)):
        heading(line[0], name)
        for rank, (axis, i) in enumerate(zip(line, order[:top], strict=True), 1):
            clip = about[task.clips[places[found[i]]]]
            colour, mark = kinship(asked, clip)
            numbers = f"{dual[found[i]]:.2f}" + (f" + {fusion[i]:.2f} (was {i + 1}.)" if again else "")
            caption = textwrap.fill(textwrap.shorten(clip.get("clip_text", ""), 50, placeholder=" …"), 26)
            frame(axis, strip(thin(pixels[i])), f"{rank}. {mark} {numbers}\n{caption}", colour, colour != RIGHT)
    figure.suptitle(f"“{text}”")
    return finish(figure, run, "reranked")


def kinship(asked: dict | None, clip: dict) -> tuple[str | None, str]:
    """(colour, mark) of a clip for a narration, by the verb and noun classes that both are tagged with; neither without tags."""
    tags = [(classes_of((asked or {}).get(f"tag_{kind}", [])), classes_of(clip.get(f"tag_{kind}", []))) for kind in ("verb", "noun")]
    if not all(wanted for wanted, _ in tags):
        return None, ""
    same = sum(bool(set(wanted) & set(has)) for wanted, has in tags)
    return graded(same / 2)[1], "✗◐✓"[same]


@dataclasses.dataclass
class Question:
    """One EgoMCQ question, read: pixels (5, T, 3, size, size) uint8, frames the same normalised, answer from 0."""
    text: str
    pixels: object
    frames: object
    answer: int
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
        frame(axis, strip(thin(pixels[c])), f"clip {c + 1}")
    figure.suptitle(f"Which clip is “{task.texts[number]}”?")
    return Question(task.texts[number], pixels, normalise(pixels), int(task.answers[number]), finish(figure, run, "question"))
