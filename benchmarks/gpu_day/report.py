"""The GPU day's report: results.jsonl as Markdown tables, to be pasted into docs/gpu.md.

    python -m gpu_day.report [FOLDER]      writes FOLDER/gpu.md (default: gpu_day_out); the runner does it at the end
"""
from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

HEADINGS = {  # of columns whose name in results.jsonl is no heading
    "clips_s": "clips/s", "tflop_s": "TFLOP/s", "tb_s": "TB/s", "gib": "GiB", "memory_gib": "GiB of memory",
    "forward_ms": "forward, ms", "both_ms": "forward and backward, ms", "floor_ms": "both at the memory's speed, ms",
    "first_ms": "first call, ms", "again_ms": "second call, ms", "step_ms": "step, ms",
    "kernels_ms": "of kernels, ms", "egonce_ms": "EgoNCE with gradient, ms", "draw_ms": "draw, ms",
    "tflop_a_clip": "TFLOP a clip",
    "ek100_clips_s": "EK-100, clips/s", "egomcq_clips_s": "EgoMCQ, clips/s", "least_cosine": "least cosine to fp32",
    "micro_batch": "micro-batch, samples", "skipped": "skipped steps", "share_of_peak": "share of measured peak",
    "cuda": "CUDA", "cudnn": "cuDNN", "python": "Python", "torch": "PyTorch", "uuids": "UUIDs",
    "variable": "CUDA_VISIBLE_DEVICES"}


def cell(value) -> str:
    """Render a value as a table's cell."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell, value)) or "none"
    return str(value).replace("|", "\\|").replace("\n", " ")


def table(rows: list[dict]) -> str:
    """Render rows as a Markdown table; its columns are all their keys, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [column for column in columns if any(row.get(column) not in (None, "") for row in rows)]
    lines = [[HEADINGS.get(column, column.replace("_", " ")) for column in columns], ["---"] * len(columns)]
    for row in rows:
        lines.append(["**no**" if (column, row.get(column)) == ("passed", False) else cell(row.get(column))
                      for column in columns])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(rows: list[dict], commit: str = "") -> str:
    """Render all rows: a heading with the card's name, then one table for each title."""
    machine = next((row for row in rows if row["table"] == "Machine"), {})
    tables: dict[str, list[dict]] = {}
    for row in rows:
        hidden = ("table",) if row["table"] == "Stages" else ("table", "stage")
        tables.setdefault(row["table"], []).append({key: value for key, value in row.items() if key not in hidden})
    when = time.strftime("%Y-%m-%d") + (f", commit {commit}" if commit else "")
    parts = [f"## {machine.get('card', 'Unknown card')}, PyTorch {machine.get('torch', '?')}",
             f"Printed by `benchmarks/gpu_day/gpu_day.sh` on {when}. A clip is one of the two of a sample."]
    for title in ("Stages", *(title for title in tables if title != "Stages")):
        if title in tables:
            parts += [f"### {title}", table(tables[title])]
    return "\n\n".join(parts) + "\n"


def write(out: Path) -> None:
    """Write gpu.md beside the results that it is made of."""
    path = out / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git there
        commit = ""
    (out / "gpu.md").write_text(markdown(rows, commit))


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "gpu_day_out"))
