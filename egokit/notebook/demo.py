"""`make demo`: every notebook on the embedded data set, in order, then one table.

Finished notebooks are not run again.
"""
import json
import re
import time
from pathlib import Path

from egokit.config.registry import TASKS, find
from egokit.config.resolve import outputs_folder, project_root
from egokit.jobs.launch import Handle
from egokit.notebook import headless
from egokit.notebook.telling import Telling
from egokit.runs.files import write_text
from egokit.runs.ledger import Result
from egokit.runs.run_folder import Run

QUICKSTART = "00_quickstart"  # it shows the other notebooks' results, so it is run last


def run(name: str = "demo", overrides: str = "") -> dict[str, float]:
    """Run the notebooks that are not finished, print the table, and return the summary.

    The summary is written to outputs/<name>/summary.json.

    Args:
        name: The name of every notebook's run.
        overrides: Changes to every recipe.
    """
    folder = Run(outputs_folder() / name)
    began = time.perf_counter()
    notebooks = notebook_names()
    print(f"{len(notebooks)} notebooks, one after another. Ctrl-C stops them; the same command goes on.\n", flush=True)
    for number, notebook in enumerate(notebooks, 1):
        head = f"[{number}/{len(notebooks)}] {notebook}"
        parameters = {"run_name": name, "overrides": overrides}
        if headless.finished(notebook, parameters) and (number > 1 or prepared(notebook, parameters)):
            print(f"{head}: done before", flush=True)
            continue
        print(f"{head}: {purpose(notebook)}", flush=True)
        start = time.perf_counter()
        try:
            with Telling(Run(outputs_folder() / notebook / name)) as telling:
                headless.execute(notebook, parameters)
        except KeyboardInterrupt:
            stop_jobs(notebook, name)
            raise
        took = time.perf_counter() - start
        folder.log({"kind": "notebook", "notebook": notebook, "seconds": took})
        print(f"{head}: {took:.0f} s\n{telling.pictures()}", flush=True)
    summary = summarise(name)
    seconds = {event["notebook"]: event["seconds"] for event in folder.read_log()}
    summary["seconds"] = round(sum(seconds.values()), 1)
    write_text(folder.path / "summary.json", json.dumps(summary, indent=1))
    print(report(name, summary))
    print(f"\nThis call took {time.perf_counter() - began:.0f} s. All numbers: outputs/{name}/summary.json")
    return summary


def notebook_names() -> list[str]:
    """Return the names of the project's numbered notebooks in the order in which the demo runs them."""
    paths = (project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb")
    return sorted((path.stem for path in paths), key=lambda stem: (stem == QUICKSTART, stem))


def purpose(notebook: str) -> str:
    """Return the sentence that says what a notebook is for, from its first cell, without formulas."""
    text = headless.read_cells(headless.notebook_path(notebook))[0].source
    sentence = text.partition("**Purpose.** ")[2].partition("\n")[0].partition(". ")[0]
    return re.sub(r",? \$[^$]+\$,?", "", sentence).replace("*", "").rstrip(".")


def prepared(notebook: str, parameters: dict) -> bool:
    """Whether the data that the notebook made still exist; they lie outside its run folder."""
    config, _ = headless.resolve_notebook(headless.notebook_path(notebook), parameters)
    return (Path(config.site.root) / "prepared.json").is_file()


def stop_jobs(notebook: str, name: str) -> None:
    """End the jobs that a notebook submitted; they can be resumed.

    A job outlives its notebook, but Ctrl-C in the demo means everything.
    """
    run = Run(outputs_folder() / notebook / name)
    for section in sorted(path.name for path in (run.path / "jobs").glob("*") if path.is_dir()):
        Handle(run, section).cancel()


def summary_key(task: str, result: Result) -> str:
    """Return the name of a result in summary.json; `task` is the task's name."""
    return f"{task}.{result.key or f'{result.section}.{result.metric}'}"


def summarise(name: str) -> dict[str, float]:
    """Return the runs' main numbers under flat names, read from their metrics.json."""
    summary = {}
    for key, task in zip(TASKS, map(find, TASKS), strict=True):
        metrics = Run(outputs_folder() / task.notebook / name).metrics()
        for result in task.results():
            if result.metric in metrics.get(result.section, {}):
                summary[summary_key(key, result)] = metrics[result.section][result.metric]
            if result.chance in metrics.get("chance", {}):
                summary[f"{key}.chance.{result.chance}"] = metrics["chance"][result.chance]
    return summary


def report(name: str, summary: dict[str, float]) -> str:
    """Return the table that ends the demo, and which figures to look at."""
    lines = ["", f"{'benchmark, %':44}{'chance':>8}{'this run':>10}{'published':>11}",
             f"{'':44}{'':>8}{'toy data':>10}{'real data':>11}", "-" * 73]
    look_at, shown = [], set()
    for key, task in zip(TASKS, map(find, TASKS), strict=True):
        look_at += [f"{task.notebook}/{name}/figures/{figure}" for figure in task.figures]
        for result in task.results():
            value = summary.get(summary_key(key, result))
            if value is None or (key, result.metric, result.section) in shown:
                continue
            shown.add((key, result.metric, result.section))  # of several published numbers the first
            # a number is None where nothing is published
            cells = ["–" if number is None else f"{number}" if isinstance(number, int) else f"{number:.1f}"
                     for number in (summary.get(f"{key}.chance.{result.chance}"), value, result.published)]
            lines.append(f"{result.name:44}{cells[0]:>8}{cells[1]:>10}{cells[2]:>11}")
    lines += ["", "The published numbers are of the real data sets and the full-size model; "
              "they are not to be reached by a toy.", "", "Look at:",
              *(f"  outputs/{path}" for path in (*look_at, f"{QUICKSTART}/{name}/figures/fusion.png")),
              f"  outputs/<notebook>/{name}/notebook.ipynb   the executed notebooks; open them with: make lab"]
    return "\n".join(lines)
