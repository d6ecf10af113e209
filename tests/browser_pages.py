"""What the retrieval browser's tests look at: benchmarks that are evaluated, pages in Chromium, their contents."""
import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from accessibility import serious
from conftest import MODEL, SMALL

from egokit import tasks
from egokit.runs.run_folder import Run
from egokit.tasks.base import Task
from egokit.viz import browser


def evaluate(project: Path, name: str) -> tuple[Task, Run]:
    """Evaluate a benchmark with random weights, as section `zeroshot`; return its task and run.

    EK-100 and Charades-Ego also have a section `perfect`, in which every text is answered right.
    """
    from egokit.config.resolve import resolve
    from egokit.jobs import run_job
    recipe = {"ek100": "ek100_finetune", "charades": "charades_finetune", "egomcq": "egomcq"}[name]
    config = resolve(f"toy/{recipe}", "tiny", f"{MODEL} {SMALL} data.limit=0 data.workers=0", "random")
    task, run = tasks.make(config), Run(project / "outputs" / recipe / "random")
    spec = {"init_sha256": "", "version": "", "action": "evaluate", "task_sha256": ""}
    metrics = run_job.evaluate(config, task, run, "zeroshot", "cpu")
    run.write_metrics("zeroshot", metrics | run_job.provenance(task, spec, 1))
    if name != "egomcq":
        truth_VK = task.truth()
        basis = np.eye(truth_VK.shape[1])
        run.write_rows("perfect", {"index": np.arange(len(truth_VK)), "video": truth_VK + 1e-3}, basis)
    return task, run


@contextlib.contextmanager
def pages(chromium, evaluated: Callable) -> Iterator[Callable]:
    """Give a function that opens a benchmark's page in Chromium; no page may log an error, or keep people out."""
    contexts, errors = [], []

    def open_page(name, against=None, **options):
        task, run = evaluated(name)
        browser(task, run, "zeroshot", against=against)
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else
                None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((run.path / "figures/browser-zeroshot.html").as_uri())
        if options.get("java_script_enabled", True):  # axe-core waits with timers, which need scripts
            assert not serious(page)
        return page
    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def listed(page) -> list[str]:
    return [" ".join(line.split()) for line in page.locator(".egokit-list option").all_text_contents()]


def lines(data, order) -> list[str]:
    return [" ".join(data["queries"][at]["line"].split()) for at in data["orders"][order]]


def every(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)
