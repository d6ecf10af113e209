"""Questions and retrieval results as frame strips, right and wrong marked."""
import dataclasses

import numpy as np

from egokit.data.video.frame_sampling import evenly_spaced
from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.queries import Queries, make_queries, sides
from egokit.viz.style import Picture, clip_grid, grade_style, legend, save_figure, strip, wrapped

FRAMES = 4  # shown of a clip


def questions(task, run: Run, section: str, count: int = 6):
    """Draw questions of a multiple-choice task: each text with its clips and their scores.

    The answer and the model's choice are marked. Half of the `count` questions are answered right and half wrong, as
    far as there are enough wrong ones.
    """
    content = make_queries(task, sides(run, section, None))
    right_Q = content.right_SK[0]
    wrong_count = min(count // 2, int((~right_Q).sum()))
    picked = [*evenly_spaced(np.flatnonzero(right_Q), count - wrong_count),
              *evenly_spaced(np.flatnonzero(~right_Q), wrong_count)]
    return save_figure(draw_queries(content, picked), run, f"questions-{section}")


def retrieved(task, run: Run, section: str, count: int = 6, top: int = 5, seed: int = 0):
    """Draw random texts with their best clips.

    Clips are marked right (relevancy 1), partly right or wrong.

    Args:
        task: A retrieval task.
        run: The run; the figure is saved as figures/retrieved-<section>.png.
        section: Its evaluated section.
        count: Texts to draw, among those that have a right clip.
        top: Clips to draw of each text.
        seed: Of the choice of texts, so that two sections show the same ones.
    """
    content = make_queries(task, sides(run, section, None))
    possible = np.flatnonzero(content.right_K)
    picked = np.sort(np.random.default_rng(seed).choice(possible, min(count, len(possible)), replace=False))
    return save_figure(draw_queries(content, picked, top), run, f"retrieved-{section}")


def draw_queries(content: Queries, picked, top: int | None = None):
    """Draw some queries: each with the clips that the browser shows, or with its best ones only.

    Args:
        content: The queries of an evaluated section.
        picked: Numbers of the queries to draw.
        top: How many clips of a text to draw; None draws all choices of a question.
    """
    dataset, rows = content.task.dataset("test"), []
    for k in picked:
        pictures = []
        for hit in content.hits(0, k) if top is None else content.hits(0, k, top)[:top]:
            initials = [name[0] for name in hit.scores]
            short = len(initials) > 1 and len({*initials}) == len(initials)
            numbers = " ".join(f"{name[0] if short else name} {score:.2f}" for name, score in hit.scores.items())
            pictures.append(Picture(strip(dataset[0, hit.clip]["video"], FRAMES), f"{hit.mark}\n{numbers}",
                                    *grade_style(hit.grade)[1:]))
        rows.append((f"“{content.texts[k]}”   {content.summary(0, k)}", bool(content.right_SK[0][k]), pictures))
    return clip_grid(rows, content.legend)[0]


def reranked(model, task, text: str, run: Run | None = None, clips: int = 300, candidates: int = 10, top: int = 5):
    """Draw how the fusion encoder re-ranks what the dual encoder retrieves for one text.

    Of a model without fusion encoder, what it retrieves is drawn alone.

    Clips are embedded a few at a time. A clip is marked right or wrong where the task's annotations say its relevancy
    to the text (`relevancy_to`).

    Args:
        model: The model.
        task: The retrieval or multiple-choice task whose test clips are searched.
        text: The query.
        run: Where to save figures/reranked.png; None saves nothing.
        clips: At most so many clips are searched, evenly spaced over the data set.
        candidates: Best clips by cosine that the fusion encoder orders anew, by cosine + matching probability.
        top: Clips drawn of each order.
    """
    import torch

    from egokit.model.dual import similarity
    dataset, grades_V, lines = task.dataset("test"), task.relevancy_to(text), []
    searched = np.linspace(0, len(dataset) - 1, min(clips, len(dataset))).round().astype(int).tolist()
    with torch.no_grad():
        video_VE = torch.cat([
            model.encode_video(model.normalise(
                torch.stack([dataset[0, v]["video"] for v in searched[first:first + 16]])))
            for first in range(0, len(searched), 16)])
        dual = similarity(model.encode_text([text]), video_VE)[0].cpu()
        best = dual.topk(min(candidates, len(searched))).indices.tolist()
        pixels = [dataset[0, searched[i]]["video"] for i in best]
        fusion = model.match(model.normalise(torch.stack(pixels)), [text]).cpu() if model.fuses else None
    top = min(top, len(best))
    orders = {f"dual: the {top} best of {len(searched)} clips by cosine": range(len(best))}
    if fusion is not None:
        orders[f"fusion: the {len(best)} best ordered anew, by cosine + matching probability"] = \
            (dual[best] + fusion).argsort(descending=True).tolist()
    for name, order in orders.items():
        pictures = []
        for rank, i in enumerate(order[:top], 1):
            v = searched[best[i]]
            mark, *border = grade_style(None if grades_V is None else grades_V[v])
            numbers = f"{dual[best[i]]:.2f}" + (f" + {fusion[i]:.2f} (was {i + 1}.)" if lines else "")
            caption = wrapped(task.describe_clip(v), 26, 75)
            pictures.append(Picture(strip(pixels[i], FRAMES), f"{rank}. {mark[:1]} {numbers}\n{caption}", *border))
        lines.append((name, None, pictures))
    title = f"“{shown(text)}”" + ("" if grades_V is None else f"\n{legend(task, grades_V)}")
    return save_figure(clip_grid(lines, title)[0], run, "reranked")


@dataclasses.dataclass
class Question:
    """One multiple-choice question with its clips read."""
    text: str
    pixels: object   # (C, T, 3, size, size) uint8
    frames: object   # the same, normalised as the model takes them
    answer: int      # from 0
    figure: object


def question(task, number: int, run: Run | None = None, model=None) -> Question:
    """Read and draw question `number` of a multiple-choice task.

    Args:
        model: whose normalisation its `frames` have; None for EgoVLPv2's, ImageNet's.
    """
    import torch

    from egokit.data.video.transforms import normalise
    dataset = task.dataset("test")
    pixels = torch.stack([dataset[0, v]["video"] for v in task.choices[number].tolist()])
    pictures = [Picture(strip(frames, FRAMES), f"clip {c}") for c, frames in enumerate(pixels, 1)]
    figure, _ = clip_grid([("", None, pictures)], f"Which clip is “{shown(task.texts[number])}”?")
    normalised = normalise(pixels) if model is None else model.normalise(pixels)
    return Question(task.texts[number], pixels, normalised, int(task.answers[number]),
                    save_figure(figure, run, "question"))
