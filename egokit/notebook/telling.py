"""What a notebook's jobs are doing, told in lines while it runs, and the pictures that it has made."""
import threading
import time
from pathlib import Path

from egokit.config.names import printable
from egokit.config.resolve import outputs_folder
from egokit.jobs import runs_table, status
from egokit.jobs.handle import Handle
from egokit.runs.run_folder import FAILED_NOTEBOOK, Run

EVERY = 30.0  # seconds between two lines about the same job
SHOWN = 4     # pictures that are named


class Telling:
    """Prints a line about a run's job when it begins, each half minute, and when it ends. A context manager.

    Args:
        run: the run whose jobs are followed.
        poll: seconds between two looks at its files.
    """

    def __init__(self, run: Run, poll: float = 2.0):
        self.run, self.poll, self.began = run, poll, time.time()
        self.told: dict[str, tuple[str, float]] = {}  # of each job: its state in the last line, and when it was told
        self.ended = threading.Event()

    def __enter__(self) -> "Telling":
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.ended.set()
        self.thread.join()

    def _follow(self) -> None:
        while not self.ended.wait(self.poll):
            for line in self.lines():
                print(f"      {line}", flush=True)

    def lines(self) -> list[str]:
        """Return what is new since the last call, a line a job."""
        lines = []
        for spec in sorted(self.run.path.glob("jobs/*/spec.json")):
            row = runs_table.job_row(Handle(self.run, spec.parent.name), {})
            state, told_at = self.told.get(row.section, ("", 0.0))
            before = row.last_sign < self.began and row.state == "finished"  # by an earlier call
            if before or (row.state == state and (state != "running" or time.time() - told_at < EVERY)):
                continue
            self.told[row.section] = row.state, time.time()
            lines.append(printable(told(row)))
        return lines

    def pictures(self) -> str:
        """Return where to look already: the run's new figures and pages, and its executed notebook."""
        made = [path for pattern in ("figures/*.png", "figures/*.html", "clips/*.mp4")
                for path in sorted(self.run.path.glob(pattern)) if path.stat().st_mtime >= self.began - 1]
        notebook = [path for path in self.run.path.glob("*.ipynb") if path.name != FAILED_NOTEBOOK]
        lines = [f"      look at  {_short(path)}" for path in (*notebook, *made[:SHOWN])]
        more = f"\n      and {len(made) - SHOWN} more in {_short(self.run.path)}" if len(made) > SHOWN else ""
        return "\n".join(lines) + more


def told(row: runs_table.JobRow) -> str:
    """Return a job's row as a sentence: "pretrain: step 120 of 672, 3 min left; ensemble_intra 62.5 %"."""
    step = f"step {row.step} of {row.steps}" if row.steps and row.state == "running" else row.state
    left = "" if row.left_s is None else f", {status.duration(row.left_s)} left"
    score = f"; {row.metric} {row.value:.1f} %" if row.metric else ""
    return f"{row.section}: {step}{left}{score}{f' ({row.detail})' if row.detail else ''}"


def _short(path: Path) -> str:
    return f"outputs/{path.relative_to(outputs_folder())}"
