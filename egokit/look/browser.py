"""The retrieval browser: a page that needs no kernel, and in a live notebook a menu over the same content."""
from __future__ import annotations

import base64
import functools
import html
import io
import os

import numpy as np

from egokit.look.base import CYCLE, RIGHT, WRONG, strip, thin
from egokit.notebook import injected_cells
from egokit.runs import Run, write_text

PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px sans-serif;max-width:1100px;margin:1em auto;padding:0 1em}}</style>"""


def _jpeg(frames_TCHW) -> str:
    from PIL import Image
    buffer = io.BytesIO()
    Image.fromarray(strip(thin(frames_TCHW))).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


class Queries:
    """Every text of a retrieval task with its best clips, as HTML."""

    def __init__(self, task, run: Run, section: str, top: int = 5):
        rows, prompts_KE = run.read_rows(section)
        self.scores_VK, self.relevancy_VK = task.scores(rows, prompts_KE), task.truth()
        self.texts, self.top, dataset = task.prompts(), top, task.dataset("test")
        self.picture = functools.lru_cache(maxsize=None)(lambda v: _jpeg(dataset[0, v]["video"]))
        order = np.argsort(-self.scores_VK, axis=0, kind="stable")
        ranked = np.take_along_axis(self.relevancy_VK, order, axis=0)
        self.order = order
        # rank of the first right clip: 1 is a hit, large is an error worth a look
        self.first = np.where((ranked == 1).any(0), (ranked == 1).argmax(0) + 1, 0)

    def summary(self, k: int) -> str:
        rank = self.first[k]
        return f"{self.texts[k]} — " + (f"first right clip at rank {rank}" if rank else "no clip is right for it")

    def strips(self, k: int) -> str:
        cells = []
        for rank, v in enumerate(self.order[:self.top, k], 1):
            grade = self.relevancy_VK[v, k]
            colour, mark = ((RIGHT, "✓ right") if grade == 1 else (WRONG, "✗ wrong") if grade == 0 else (CYCLE[4], f"partly, {grade:.2f}"))
            cells.append(f'<figure style="display:inline-block;margin:4px"><img alt="clip {v}" style="border:4px '
                         f'{"solid" if grade == 1 else "dashed"} {colour};width:190px" src="data:image/jpeg;base64,{self.picture(int(v))}">'
                         f'<figcaption style="font-size:13px">{rank}. {mark}, score {self.scores_VK[v, k]:.2f}</figcaption></figure>')
        return "".join(cells)

    def details(self, k: int, opened: bool = False) -> str:
        return f"<details{' open' if opened else ''}><summary>{html.escape(self.summary(k))}</summary>{self.strips(k)}</details>"


def browser(task, run: Run, section: str, shown: int = 10):
    """Save figures/browser-<section>.html with every query (worst first) and return what to show in the notebook.

    In a live front end that is a menu; headless, a list that unfolds without a kernel.
    """
    from IPython.display import HTML
    queries = Queries(task, run, section)
    worst = sorted(range(len(queries.texts)), key=lambda k: -queries.first[k])[:300]
    title = f"{run.path.parent.name}/{run.path.name}: {section}"
    write_text(run.figure(f"browser-{section}.html"), PAGE.format(title=html.escape(title)) + f"<h1>{html.escape(title)}</h1>"
               "<p>Queries, the worst first. Green, solid: right. Orange: partly relevant. Red, dashed: wrong.</p>"
               + "".join(queries.details(k, i == 0) for i, k in enumerate(worst)))
    if not _live():
        middle = worst[:shown // 2] + worst[-(shown - shown // 2):]
        return HTML("".join(queries.details(k, i == 0) for i, k in enumerate(middle)))
    import ipywidgets
    menu = ipywidgets.Dropdown(options=[(queries.summary(k), k) for k in worst], description="query", layout={"width": "90%"})
    view = ipywidgets.HTML(queries.strips(worst[0]))
    menu.observe(lambda change: setattr(view, "value", queries.strips(change["new"])), names="value")
    return ipywidgets.VBox([menu, view])


def _live() -> bool:
    """Whether someone sits before the notebook: papermill and nbconvert set no JPY_SESSION_NAME, and papermill injects its cell."""
    return bool(os.environ.get("JPY_SESSION_NAME")) and not injected_cells()
