"""What notebook 11 shows of a sweep, for test_notebooks.py."""
from pathlib import Path

from egokit.notebook import headless
from egokit.runs.run_folder import Run


def check(book, run: Run, project: Path) -> None:
    """Compare the executed notebook with the runs that it has submitted, and run it again."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    tables = " ".join("".join(output["data"].get("text/html", "")) for output in outputs if "data" in output)
    runs = [Run(project / f"outputs/09_egotaskqa/small-lr{lr}-seed{seed}") for lr in (0.001, 0.01) for seed in (0, 1)]
    scores = [one.metrics()["headtune"]["direct_all"] for one in runs]
    assert all(f">{score:.1f}</td>" in tables for score in scores), "every run has its line"
    assert f">{(scores[0] + scores[1]) / 2:.2f}</td>" in tables and "paired bootstrap over" in tables
    assert "right in small-lr0.01-seed1 alone" in tables
    assert {"mean-curves.png", "setting-scores.png"} == {path.name for path in (run.path / "figures").iterdir()}
    page = (runs[-1].path / "figures/browser-headtune.html").read_text()
    assert "gained most over small-lr0.001-seed0: headtune" in page
    told = "".join(output.get("text", "") for output in outputs)
    assert "4 runs of optim.lr x seed: 4 new" in told and told.count(": finished, direct_all ") == 4

    def started() -> list[int]:
        return [(one.path / "jobs/headtune/job.json").stat().st_mtime_ns for one in runs]
    times, parameters = started(), {"site": "tiny", "run_name": "small", "overrides": "train.epochs=2"}
    assert "4 runs of optim.lr x seed: 4 finished" in headless.execute("11_compare_runs", parameters).read_text()
    assert times == started(), "none is made again"
