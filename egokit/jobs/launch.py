"""From a notebook or shell to a job and back: submit, attach, wait. Local processes or SLURM, always through submitit.

`submit` is idempotent: a finished run gives its metrics, a live one is attached to, otherwise the job starts and
resumes from what it left. Nothing is trained in the caller's process. What runs in the job is job.py's.
"""
from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from egokit.config.build import ConfigError, comparable, differences, new_names, to_dict
from egokit.config.resolve import to_yaml
from egokit.config.schema import RANDOM, RENAMED, Config, LaunchConfig
from egokit.jobs import code_snapshot, devices, slurm, status
from egokit.jobs.progress import FILE, Bar, read_progress
from egokit.runs.files import locked, write_text
from egokit.runs.run_folder import DEVICES, Run

ACTIONS = ("train", "evaluate", "extract")


class JobFailed(RuntimeError):
    """The job ended without a result; the message holds the end of the right rank's log."""


class NotSubmitted(RuntimeError):
    """SLURM, or this machine, didn't take the job; the message holds its words."""


class Handle:
    """A job of a run, found again from the files in its folder `jobs/<section>/`."""

    def __init__(self, run: Run, section: str):
        self.run, self.section = run, section
        self.folder = run.path / "jobs" / section

    def __repr__(self) -> str:
        state, detail = self.status()
        if state == "running":
            detail = status.progress_text(self.progress())
        return f"<{self.section} of {self.run.path.parent.name}/{self.run.path.name}: {state}{detail and f' ({detail})'}>"

    def spec(self) -> dict | None:
        path = self.folder / "spec.json"
        return json.loads(path.read_text()) if path.exists() else None

    def metrics(self) -> dict | None:
        """The job's section of metrics.json, once it has finished."""
        found = self.run.metrics().get(self.section)
        return found if found and found.get("finished") else None

    def job(self) -> dict | None:
        return status.read_job(self.folder)

    def alive(self) -> bool:
        """Whether the job is queued or runs."""
        return status.alive(self.folder)

    def state(self) -> str:
        """new, pending (in SLURM's queue), running, finished, failed (ended without a result) or unknown (can't be told from here)."""
        return self.status()[0]

    def status(self, known: dict[str, status.JobStatus] | None = None) -> tuple[str, str]:
        """The state and, if it is pending, unknown or failed, why. known: see attach.place."""
        if self.metrics():
            return "finished", ""
        if place := status.job_status(self.folder, known):
            return place.state, place.detail
        # looked at again: it may have finished in between
        if self.metrics() or not self.job():
            return ("finished" if self.metrics() else "new"), ""
        return "failed", status.failure_reason(self.folder)

    def progress(self) -> dict:
        """The newest of everything that this job has told: see progress.reached."""
        return read_progress(self.run, self.folder, (self.spec() or {}).get("action"))

    def log_tail(self, lines: int = 25) -> str:
        return status.log_tail(self.folder, lines)

    def cancel(self) -> None:
        """End the job; the run keeps its checkpoints and can be submitted again."""
        status.cancel(self.folder)

    def wait(self, progress: bool = True, poll: float = 0.5, show=None) -> dict:
        """Wait for the job and return its metrics; shows a progress bar. Raises JobFailed with the log's end.

        show: called with (History, state) after every poll, instead of the bar. Interrupting the wait leaves the job running;
        the next submit attaches to it.
        """
        from egokit.runs.log import History
        history, gone, bar = History(self.run.path), False, Bar(self.section)
        show = show or (functools.partial(self._show, bar) if progress else lambda history, state: None)
        try:
            while True:
                place, local = status.job_status(self.folder), (self.job() or {}).get("cluster") != "slurm"
                found, lost = self.metrics(), place is None and (gone or local)
                waits = place is not None and place.state != "running"
                history.update()
                show(history, "finished" if found else "failed" if lost else f"{place.state}: {place.detail}" if waits else "running")
                if found:
                    return found
                if lost:
                    raise JobFailed(f"{self.section} of {self.run.path} ended without a result. The end of its log:\n{self.log_tail()}")
                gone = place is None  # another machine's files may show a moment later than the queue: looked at once more
                time.sleep(poll if local else poll * (40 if waits else 20))  # a pending job costs two calls
        finally:
            bar.close()

    def _show(self, bar: Bar, history, state: str) -> None:
        """Bring the bar up to date."""
        if (self.spec() or {}).get("action") == "evaluate":  # the log's steps are those of another job of the run
            at = self.progress()
            bar.show(state, at.get("step"), at.get("steps"))
            return
        detail = (f"loss {history.last('loss/loss'):.3f}, {history.last('speed/clips_per_s'):.0f} clips/s, "
                  f"{100 * history.waiting()[-1]:.0f} % waiting for data") if history.training.rows else ""
        bar.show(state, history.step, history.steps, detail)


def leftovers(run: Run, action: str) -> list[Path]:
    """What a job that has not finished left to go on from."""
    return [*run.checkpoints.glob("*.pt")] if action == "train" else [*run.path.glob("features/*")] if action == "extract" else []


def keys_known_to(config: dict, before: dict, section: str = "") -> dict:
    """Return the keys of a plain config that an earlier start's config has, by the names that they have there.

    A run that resumes keeps its copy of egokit, which refuses keys that it doesn't know.
    """
    names = {RENAMED.get(f"{section}{key}", f"{section}{key}").removeprefix(section): key for key in before}
    known = {names[key]: keys_known_to(value, before[key], f"{key}.") if not section and isinstance(value, dict) else value
             for key, value in config.items() if key in names}
    if new := [key for key in config if key not in names]:
        print(f"goes on with the copy of egokit that it began with, which doesn't know {', '.join(new)}", flush=True)
    return known


def changed_keys(spec: dict, config: Config, of: str = "config") -> list[str]:
    """Return in what `config` differs from that of a job's spec.

    Args:
        of: "config", or "opened" for the config of the notebook that submitted the job.
    """
    before = new_names(spec.get(of, spec["config"]))
    return differences(comparable(before), comparable(to_dict(config)))


def expect_same(handle: Handle, config: Config, hashes: tuple[str, str] | None = None, of: str = "config") -> None:
    """Raises ConfigError if the job was made with other parameters, and lives or has left something.

    hashes: of the checkpoint `init` and the file of the task, to be compared, too. of: see `changed_keys`.
    """
    before = handle.spec()
    if not before or not (handle.metrics() or handle.alive() or leftovers(handle.run, before["action"])):
        return
    other = changed_keys(before, config, of)
    then = before["init_sha256"], before.get("task_sha256", "")
    for what, old, new in zip((f"checkpoint {config.init}", f"file of task {config.task}"), then, hashes or then, strict=True):
        if old != new:
            other.append(f"the {what} itself: {old} -> {new}")
    if other:
        raise ConfigError(f"{handle.section} in {handle.run.path} was made with other parameters ({'; '.join(other[:6])}); "
                          "choose another run name, give the old values as overrides, or delete that folder to start again")


def start_job(module: str, folder: Path, code: Path, launch: LaunchConfig) -> None:
    """Run `python -m module folder/spec.json`, which submits and writes folder/job.json, with the snapshot `code` on its path.

    In a session of its own: neither closing JupyterLab nor Ctrl-C reaches the job. Raises NotSubmitted, or ConfigError for
    options of SLURM that are unknown or contradict each other.
    """
    if launch.cluster == "slurm":
        slurm.check(launch)
        if not shutil.which("sbatch"):
            raise NotSubmitted("launch.cluster is slurm, but this machine has no sbatch: submit on the cluster's login node")
    inherited = os.environ
    if "SLURM_JOB_ID" in inherited:  # a notebook in a job, or in a session on a node: what it submits is no part of that job
        inherited = {key: value for key, value in inherited.items() if key == "SLURM_CONF" or not key.startswith(("SLURM_", "SRUN_"))}
    environment = dict(inherited, PYTHONPATH=str(code.resolve()), PYTHONSAFEPATH="1", TOKENIZERS_PARALLELISM="false")
    if launch.cluster == "slurm":
        environment.pop(devices.VARIABLE, None)  # sbatch would hand on which GPUs this process has; the job's are SLURM's to give
    environment.setdefault("OMP_NUM_THREADS", str(max(1, launch.cpus_per_task)))
    with open(folder / "start.log", "w") as start_log:
        started = subprocess.run([sys.executable, "-m", module, str((folder / "spec.json").resolve())], env=environment,
                                 start_new_session=True, stdin=subprocess.DEVNULL, stdout=start_log, stderr=subprocess.STDOUT)
    if started.returncode or not (folder / "job.json").exists():
        said = (folder / "start.log").read_text()
        said = "\n".join(dict.fromkeys(re.findall("sbatch: error: .*", said))) or said[-2000:]  # submitit repeats them
        raise NotSubmitted(f"{folder.name} could not be submitted to {launch.cluster}:\n{said}")


def starting_point(config: Config) -> str:
    """The hash of the checkpoint `init`. What is missing to start from is said here, not in a job's log."""
    if config.init:
        from egokit.model import checkpoints
        return checkpoints.fingerprint(checkpoints.find(config.init))
    for key, what in (("vit", "a ViT-B/16: a timm name or a file"), ("roberta", "a RoBERTa: a name or a folder")):
        source = getattr(config.site, key)
        if not source or (Path(source).is_absolute() and not Path(source).exists()):
            absent = ", which does not exist" if source else ""
            raise ConfigError(f"site.{key} of site {config.site.name!r} is {source!r}{absent}: this recipe has no init and starts from "
                              f"{what}. Name it in the site's file, or write {RANDOM} to start from random weights")
    return ""


def submit(config: Config, run: Run, action: str = "train", section: str | None = None) -> Handle:
    """Start `action` (train, evaluate or extract) of config.task in the run folder, or attach to what is there.

    `section` names its place in metrics.json (default: the action). Raises ConfigError if the run was made with other
    parameters, and NotSubmitted if the job can't be submitted.
    """
    from egokit import __version__
    if action not in ACTIONS:
        raise ValueError(f"action {action!r}: expected one of {', '.join(ACTIONS)}")
    start, task = starting_point(config), code_snapshot.task_sha256(config.task)
    handle = Handle(run, section or action)
    with locked(handle.folder):
        expect_same(handle, config, (start, task))
        there = handle.metrics() or handle.alive()
        notice = "" if there else devices.check(config, action)
        opened = run.opened or config
        write_text(run.path / "params.yaml", to_yaml(opened))  # whoever is refused leaves it as it was
        if there:
            return handle
        for name in ("job.json", "failures.json", FILE, DEVICES):  # of the job before: its failures are no failures of this one
            (handle.folder / name).unlink(missing_ok=True)
        shutil.rmtree(handle.folder / "failures", ignore_errors=True)
        resumed, before, plain = bool(leftovers(run, action)), handle.spec(), to_dict(config)
        if resumed and before:
            plain = keys_known_to(plain, before["config"])
        code = code_snapshot.snapshot_code(handle.folder, keep=resumed, task=config.task)
        # an older run goes on with its copy of egokit, whose worker has another name
        worker = "egokit.jobs.worker" if (code / "egokit/jobs/worker.py").is_file() else "egokit.job"
        with devices.choice(config.launch) as chosen:
            spec = {"config": plain, "opened": to_dict(opened), "run": str(run.path.resolve()), "action": action,
                    "section": handle.section, "version": __version__, "init_sha256": start, "task_sha256": task, "gpus": chosen.uuids}
            write_text(handle.folder / "spec.json", json.dumps(spec, indent=1))
            try:
                start_job(worker, handle.folder, code, config.launch)
            except BaseException:
                if before:  # what it was made with is not to be lost for a job that was never started
                    write_text(handle.folder / "spec.json", json.dumps(before, indent=1))
                raise
            chosen.take(handle.folder.resolve())
    print(end="".join(f"{handle.section} {said}\n" for said in (notice, chosen.notice) if said), flush=True)
    return handle


def sbatch_script(config: Config, run: Run | Path, action: str = "train", section: str | None = None) -> str:
    """The sbatch script that `submit` would submit. Nothing is submitted or written; any machine will do."""
    if config.launch.cluster != "slurm":
        raise ConfigError(f"launch.cluster of site {config.site.name!r} is {config.launch.cluster}: only SLURM's jobs have a script")
    folder = (run.path if isinstance(run, Run) else Path(run)) / "jobs" / (section or action)
    return slurm.script(config.launch, folder, f"egokit-{folder.name}")
