"""`make demo`: every notebook on the embedded data set, in order, then one table.

Finished notebooks are not run again.
"""
from __future__ import annotations

import json
import time
from pathlib import Path

from egokit.config.resolve import outputs_folder
from egokit.jobs.launch import Handle
from egokit.notebook import headless
from egokit.runs.files import write_text
from egokit.runs.published import RESULTS
from egokit.runs.run_folder import Run

ORDER = ("01_data_prep", "02_pretrain", "03_ek100", "04_charades_ego", "05_egomcq", "06_egomq_features",
         "07_search_your_videos", "00_quickstart")


def run(name: str = "demo", overrides: str = "") -> dict[str, float]:
    """Run the notebooks that are not finished, print the table, and return the summary.

    The summary is written to outputs/<name>/summary.json.

    Args:
        name: The name of every notebook's run.
        overrides: Changes to every recipe.
    """
    folder = Run(outputs_folder() / name)
    began = time.perf_counter()
    for number, notebook in enumerate(ORDER, 1):
        head = f"[{number}/{len(ORDER)}] {notebook}"
        parameters = {"run": name, "overrides": overrides}
        if headless.finished(notebook, parameters) and (notebook != ORDER[0] or prepared(notebook, parameters)):
            print(f"{head}: done before", flush=True)
            continue
        print(f"{head}: running … (follow it in outputs/{notebook}/{name}/log.jsonl)", flush=True)
        start = time.perf_counter()
        try:
            headless.execute(notebook, parameters)
        except KeyboardInterrupt:
            stop_jobs(notebook, name)
            raise
        took = time.perf_counter() - start
        folder.log({"kind": "notebook", "notebook": notebook, "seconds": took})
        print(f"{head}: {took:.0f} s", flush=True)
    summary = summarise(name)
    seconds = {event["notebook"]: event["seconds"] for event in folder.read_log()}
    summary["seconds"] = round(sum(seconds.values()), 1)
    write_text(folder.path / "summary.json", json.dumps(summary, indent=1))
    print(report(name, summary))
    print(f"\nThis call took {time.perf_counter() - began:.0f} s. All numbers: outputs/{name}/summary.json")
    return summary


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


def summarise(name: str) -> dict[str, float]:
    """Return the runs' main numbers under flat names, read from their metrics.json."""
    metrics = {notebook: Run(outputs_folder() / notebook / name).metrics() for notebook in ORDER}
    summary = {result.summary: metrics[result.notebook][result.section][result.metric] for result in RESULTS
               if result.metric in metrics[result.notebook].get(result.section, {})}
    summary["egomcq.chance"] = metrics["05_egomcq"]["chance"]["inter"]
    for key, notebook in (("ek100", "03_ek100"), ("charades", "04_charades_ego")):
        for metric, value in metrics[notebook]["chance"].items():
            if metric in ("mAP", "nDCG"):
                summary[f"{key}.chance.{metric}"] = value
    summary["mq.clips"] = metrics["06_egomq_features"]["features"]["clips"]
    return summary


def report(name: str, summary: dict[str, float]) -> str:
    """Return the table that ends the demo, and which figures to look at."""
    lines = ["", f"{'benchmark, %':34}{'chance':>8}{'this run':>10}{'published':>11}",
             f"{'':34}{'':>8}{'toy data':>10}{'real data':>11}", "-" * 63]
    for result in RESULTS:
        if result.summary not in summary:
            continue
        group = result.summary.split(".")[0]
        chance = summary.get(f"{group}.chance.{result.metric}", summary.get(f"{group}.chance"))
        # a number is None where nothing is published, or where a limited run has no such question
        cells = ["–" if value is None else f"{value:.1f}"
                 for value in (chance, summary[result.summary], result.published)]
        lines.append(f"{result.name:34}{cells[0]:>8}{cells[1]:>10}{cells[2]:>11}")
    lines.append(f"{'EgoMQ clips with features':34}{'':>8}{summary['mq.clips']:>10.0f}")
    lines += ["", "The published numbers are of the real data sets and the full-size model; "
              "they are not to be reached by a toy.", "", "Look at:"]
    for notebook, figure in (("05_egomcq", "questions-egomcq.png"), ("03_ek100", "browser-finetune.html"),
                             ("04_charades_ego", "retrieved-finetune.png"), ("02_pretrain", "curves.png"),
                             ("06_egomq_features", "features.png"),
                             ("07_search_your_videos", "search-c-c-picks-up-the-red-cup.html"),
                             ("00_quickstart", "fusion.png")):
        lines.append(f"  outputs/{notebook}/{name}/figures/{figure}")
    lines.append(f"  outputs/<notebook>/{name}/notebook.ipynb   the executed notebooks; open them with: make lab")
    return "\n".join(lines)
