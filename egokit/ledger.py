"""Published numbers against every run's, with the difference and in what their recipes differ. Read from metrics.json alone."""
from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from egokit.published import DUAL_SOFTMAX, FRAMES, RESULTS, Result
from egokit.resolve import outputs_folder
from egokit.runs import Run


class Entry(NamedTuple):
    run: str                # notebook/run
    result: Result
    value: float
    recipe: list[str]       # in what it differs from the published one; empty: in nothing that is recorded


def entries(outputs: Path | None = None) -> list[Entry]:
    """Every published number that a run under `outputs` has a counterpart of, benchmark by benchmark."""
    outputs = outputs_folder() if outputs is None else Path(outputs)
    found = []
    for path in sorted(outputs.glob("*/*/metrics.json")):
        metrics = Run(path.parent).metrics()
        for result in RESULTS:
            section = metrics.get(result.section, {})
            if result.notebook == path.parts[-3] and result.published is not None and section.get(result.metric) is not None:
                of = counterpart(result, section)
                found.append(Entry("/".join(path.parts[-3:-1]), of, section[result.metric], differences(of, section)))
        for section, values in metrics.items():
            found += [Entry("/".join(path.parts[-3:-1]), result, values[result.metric], differences(result, values))
                      for result in own(path.parts[-3], section, values) if values.get(result.metric) is not None]
    return sorted(found, key=lambda entry: RESULTS.index(entry.result) if entry.result in RESULTS else len(RESULTS))


def own(notebook: str, section: str, values: dict) -> list[Result]:
    """The results of a task that is a user's file, which says what is published."""
    return [Result(f"{values['task'].rpartition(':')[2]} {metric}, {section}", "", notebook, section, metric, "",
                   math.nan if published is None else published, 0, "") for metric, published in values.get("published", {}).items()]


def counterpart(result: Result, section: dict) -> Result:
    """The result that is published of the checkpoint that was scored: a fine-tuned one evaluated as it is is not zero-shot."""
    name = Path(section.get("init", "")).name
    same = [one for one in RESULTS if (one.notebook, one.metric, one.checkpoint) == (result.notebook, result.metric, name)]
    return same[0] if same and section.get("action") == "evaluate" else result


def differences(result: Result, section: dict) -> list[str]:
    """In what a section of metrics.json differs from the published recipe, in words."""
    if "frames" not in section:
        return ["its recipe is not recorded"]
    said = ["toy data"] if section["toy"] else []
    if not result.checkpoint:
        return [*said, f"{section['frames']} frames", f"checkpoint {Path(section['init']).name or 'random'} ({section['init_sha256']})",
                f"defined in {Path(section['task'].rpartition(':')[0]).name} ({section['task_sha256']})"]
    if result.samples and section["samples"] != result.samples:
        said.append(f"{section['samples']:,} samples, published on {result.samples:,}")
    if section["frames"] != FRAMES:
        said.append(f"{section['frames']} frames, published with {FRAMES}")
    if result.metric.endswith(DUAL_SOFTMAX):
        said.append(f"dual softmax over the whole test set (temperature {section['dual_softmax_temperature']:g}), published without")
    if section["action"] == "train":
        said.append(f"fine-tuned here from {Path(section['init']).name or 'nothing'}")
        if section.get("retrieval_loss", "max_margin") != "max_margin":
            said.append(f"loss {section['retrieval_loss']}, published with max_margin")
    elif Path(section["init"]).name != result.checkpoint:
        said.append(f"checkpoint {Path(section['init']).name or 'random'} ({section['init_sha256']}), published of {result.checkpoint}")
    if section["precision"] != "fp32":
        said.append(f"evaluated in {section['precision']}")
    return said


def lines(found: list[Entry]) -> str:
    """The ledger as text."""
    if not found:
        return "no run has a number that was published: evaluate one with notebooks 03, 04 or 05"
    width = max(len(entry.run) for entry in found) + 2
    longest = max(len(entry.result.name) for entry in found) + 2
    out = [f"{'benchmark, %':{longest}}{'run':{width}}{'published':>10}{'this run':>10}{'difference':>12}"]
    for entry in found:
        result = entry.result
        published, difference = ("–", "–") if math.isnan(result.published) else (f"{result.published:.1f}",
                                                                                  f"{entry.value - result.published:+.1f}")
        out.append(f"{result.name:{longest}}{entry.run:{width}}{published:>10}{entry.value:>10.1f}{difference:>12}")
        out.append(f"    {'; '.join(entry.recipe) or 'the published recipe'}")
    return "\n".join(out)
