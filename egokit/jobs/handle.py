"""A job seen from outside: state, progress, result, waiting and cancelling.

Everything is read from the files in the job's folder and from SLURM's queue, so that any process can follow any job.
"""
import functools
import time
from collections.abc import Callable

from egokit.jobs import status
from egokit.jobs.progress import ProgressBar, read_progress
from egokit.runs.run_folder import Run


class JobFailed(RuntimeError):
    """A job ended without a result; the message holds the error and the name of the log."""


class Handle:
    """A job of a run, found again from the files in its folder `jobs/<section>/`.

    Args:
        run: the run that the job writes to.
        section: the job's name there, which is also its section of metrics.json.
    """

    def __init__(self, run: Run, section: str):
        self.run, self.section = run, section
        self.folder = run.path / "jobs" / section

    def __repr__(self) -> str:
        try:
            state, detail = self.status()
            if state == "running" and (progress := self.progress()).get("steps"):
                left = f", {status.duration(progress['eta_s'])} left" if progress.get("eta_s") is not None else ""
                detail = f"step {progress['step']} of {progress['steps']}{left}"
        except (OSError, ValueError) as error:  # damaged files
            state, detail = "unreadable", str(error)
        detail = detail and f" ({detail})"
        return f"<{self.section} of {self.run.path.parent.name}/{self.run.path.name}: {state}{detail}>"

    def spec(self, *required: str) -> dict | None:
        """Return what the job was submitted with, or None if it never was; see status.read_spec."""
        return status.read_spec(self.folder, *required)

    def metrics(self) -> dict | None:
        """Return the job's section of metrics.json, or None while it has not finished."""
        section = self.run.metrics().get(self.section)
        return section if section and section.get("finished") else None

    def job(self) -> dict | None:
        """Return the job's "cluster", "job_id" and "host", or None if nothing was started."""
        return status.read_job(self.folder)

    def alive(self) -> bool:
        """Return whether the job is queued or runs; True if SLURM's queue can't be asked."""
        return status.alive(self.folder)

    def state(self) -> str:
        """Return the job's state in one word; see `status`."""
        return self.status()[0]

    def status(self, statuses: dict[str, status.JobStatus] | None = None) -> tuple[str, str]:
        """Return the job's state and its reason.

        Args:
            statuses: see status.job_status.

        Returns:
            The state: "new" (never started), "pending" (in SLURM's queue), "running", "finished", "failed" (ended
            without a result) or "unknown" (can't be told from here). The reason, if it is pending, failed or unknown;
            else "".
        """
        if self.metrics():
            return "finished", ""
        if job_status := status.job_status(self.folder, statuses):
            return job_status
        # read again: the job may have finished in between
        if self.metrics() or not self.job():
            return ("finished" if self.metrics() else "new"), ""
        return "failed", status.failure_reason(self.folder)

    def progress(self) -> dict:
        """Return how far the job is: step, steps, eta_s and more; see progress.read_progress."""
        return read_progress(self.run, self.folder, (self.spec() or {}).get("action"))

    def log_tail(self, lines: int = 25) -> str:
        """Return the last lines of the job's most useful log; see status.log_tail."""
        return status.log_tail(self.folder, lines)

    def cancel(self) -> None:
        """End the job; the run keeps its checkpoints and can be submitted again."""
        status.cancel(self.folder)

    def wait(self, progress: bool = True, poll: float = 0.5, show: Callable | None = None) -> dict:
        """Wait for the job and return its metrics. Interrupting the wait leaves the job running.

        The next submit attaches to the job again.

        Args:
            progress: show a progress bar.
            poll: seconds between two looks at a local job; a SLURM job is looked at 20 times less often, and a pending
                one 40 times.
            show: called with (runs.log.History, state) after every look, instead of the bar.

        Returns:
            The job's section of metrics.json.

        Raises:
            JobFailed: the job ended without a result; the message holds the error, and names the log.
        """
        from egokit.runs.log import History
        history, gone_before, bar = History(self.run.path), False, ProgressBar(self.section)
        show = show or (functools.partial(self._show, bar) if progress else lambda history, state: None)
        try:
            while True:
                (state, detail), local = self.status(), (self.job() or {}).get("cluster") != "slurm"
                gone, waits = state in ("new", "failed"), state in ("pending", "unknown")
                lost = gone and (gone_before or local)
                history.update()
                show(history, f"{state}: {detail}" if waits else "running" if gone and not lost else state)
                if state == "finished":
                    return self.metrics()
                if lost:
                    raise JobFailed(f"{self.section} of {self.run.path} ended without a result: "
                                    f"{status.error_message(self.folder)}")
                gone_before = gone  # look once more: another machine's files may show a moment later
                time.sleep(poll if local else poll * (40 if waits else 20))  # a pending job costs two calls
        finally:
            bar.close()

    def _show(self, bar: ProgressBar, history, state: str) -> None:
        """Bring the bar up to date."""
        if (self.spec() or {}).get("action") in ("evaluate", "profile"):  # the log's steps are no progress of theirs
            progress = self.progress()
            bar.show(state, progress.get("step"), progress.get("steps"))
            return
        detail = (f"loss {history.last('loss/loss'):.3f}, {history.last('speed/clips_per_s'):.0f} clips/s, "
                  f"{100 * history.waiting()[-1]:.0f} % waiting for data") if history.training.rows else ""
        bar.show(state, history.step, history.steps, detail)
