"""From a notebook or shell to a job and back: submit, attach, wait. Local processes or SLURM, always through submitit.

`submit` is idempotent: a finished run gives its metrics, a live one is attached to, otherwise the job starts and
resumes from what it left. Nothing is trained in the caller's process. What runs in the job is job.py's.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from egokit.config import RANDOM, Config, LaunchConfig
from egokit.resolve import ConfigError, differences, to_dict
from egokit.runs import Run, write_text

# may change without making another run: where and how it is computed, not what
LOCAL_ONLY = {"launch", "data.workers", "evaluate.batch_size", "train.micro_batch", "model.checkpointing"}


class JobFailed(RuntimeError):
    """The job ended without a result; the message holds the end of the right rank's log."""


class Handle:
    """A job of a run, found again from the files in its folder `jobs/<section>/`."""

    def __init__(self, run: Run, section: str):
        self.run, self.section = run, section
        self.folder = run.path / "jobs" / section
        self._shown = 0.0  # when the progress bar was brought up to date

    def __repr__(self) -> str:
        return f"<{self.section} of {self.run.path.parent.name}/{self.run.path.name}: {self.state()}>"

    def spec(self) -> dict | None:
        path = self.folder / "spec.json"
        return json.loads(path.read_text()) if path.exists() else None

    def metrics(self) -> dict | None:
        """The job's section of metrics.json, once it has finished."""
        found = self.run.metrics().get(self.section)
        return found if found and found.get("finished") else None

    def job(self) -> dict | None:
        path = self.folder / "job.json"
        return json.loads(path.read_text()) if path.exists() else None

    def alive(self) -> bool:
        return alive(self.folder)

    def state(self) -> str:
        """finished, running, failed (ended without a result) or new."""
        if self.metrics():
            return "finished"
        return "running" if self.alive() else "failed" if self.job() else "new"

    def log_tail(self, lines: int = 25) -> str:
        """The end of the log that tells most: of the rank that failed by itself, not of those that lost a peer."""
        job = self.job()
        files = sorted((self.folder / "submitit").glob(f"{job['job_id']}_*_log.err")) if job else []
        texts = {file: file.read_text(errors="replace").strip() for file in files}
        peer = ("Connection closed by peer", "Connection reset", "ConnectionError", "DistNetworkError", "Bypassing signal")
        own = {file: text for file, text in texts.items() if "Traceback" in text and not any(mark in text for mark in peer)}
        for file, text in (own or texts).items():
            if text:
                return f"{file}:\n" + "\n".join(text.splitlines()[-lines:])
        return f"no log in {self.folder / 'submitit'}"

    def cancel(self) -> None:
        """End the job; the run keeps its checkpoints and can be submitted again."""
        job = self.job()
        if job and self.alive():
            if job["cluster"] == "slurm":
                subprocess.run(["scancel", job["job_id"]], check=True)
                return
            for sign in (signal.SIGINT, signal.SIGKILL):  # submitit's processes ignore SIGTERM
                for process in processes(self.folder):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, sign)
                deadline = time.monotonic() + 5
                while self.alive() and time.monotonic() < deadline:
                    time.sleep(0.1)

    def wait(self, progress: bool = True, poll: float = 0.5) -> dict:
        """Wait for the job and return its metrics; shows a progress bar. Raises JobFailed with the log's end.

        Interrupting the wait leaves the job running; the next submit attaches to it.
        """
        from tqdm import tqdm
        bar = tqdm(desc=self.section, unit="step", ncols=110, file=sys.stdout, disable=not progress)
        try:
            while True:
                running = self.alive()
                self._show(bar)
                if found := self.metrics():
                    return found
                if not running:
                    raise JobFailed(f"{self.section} of {self.run.path} ended without a result. The end of its log:\n{self.log_tail()}")
                time.sleep(poll if self.job()["cluster"] == "local" else 20 * poll)
        finally:
            bar.close()

    def _show(self, bar, every: float = 10.0) -> None:
        """Bring the bar up to date, at most every ten seconds: each time is a line of its own in a saved notebook."""
        events = [event for event in self.run.read_log() if "steps" in event]
        if not events or (events[-1]["step"], events[-1]["steps"]) == (bar.n, bar.total):
            return
        last = events[-1]
        if last["step"] < last["steps"] and time.monotonic() - self._shown < every:
            return
        self._shown = time.monotonic()
        bar.total, bar.n = last["steps"], last["step"]
        steps = [event for event in events if event["kind"] == "step"]
        if steps:
            step = steps[-1]
            bar.set_postfix_str(f"loss {step['loss']:.3f}, {step['clips_per_s']:.0f} clips/s, "
                                f"{100 * step['data_s'] / step['step_s']:.0f} % waiting for data", refresh=False)
        bar.refresh()


def alive(folder: Path) -> bool:
    """Whether the job, or one of the array's jobs, that folder/job.json names is queued or runs."""
    if not (folder / "job.json").exists():
        return False
    job = json.loads((folder / "job.json").read_text())
    if job["cluster"] == "slurm":
        listed = subprocess.run(["squeue", "-h", "-j", job["job_id"], "-o", "%T"], capture_output=True, text=True)
        if listed.returncode and "Invalid job id" not in listed.stderr:
            return True  # the controller is away for a moment: not knowing must not start a second copy
        return bool(listed.stdout.strip())
    return bool(processes(folder))


def processes(folder: Path) -> list[int]:
    """Processes of this machine that work for the job in `folder`: its controller and its ranks.

    Found by their command lines: a process number may have gone to another program since, and ranks may outlive a
    controller that was killed. Two copies of a job must not write to one run.
    """
    wanted, found = str(folder.resolve() / "submitit").encode(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""  # empty for a zombie
            if b"-m\0submitit." in command and wanted in command:  # not a pager that shows the job's log
                found.append(int(entry.name))
    return found


def comparable(config: dict) -> dict:
    """The part of a plain config that a run's numbers depend on."""
    return {section: {key: value for key, value in values.items() if f"{section}.{key}" not in LOCAL_ONLY}
            if isinstance(values, dict) else values for section, values in config.items() if section not in LOCAL_ONLY}


def snapshot(folder: Path, keep: bool) -> Path:
    """Copy this egokit into the job's folder, so that later edits don't change a queued job.

    keep: a run that resumes goes on with the code it began with. Otherwise a new start takes the code of now.
    """
    source, target = Path(__file__).parent, folder / "code"
    if target.is_dir() and not keep:
        shutil.rmtree(target)
    if not target.is_dir():
        part = folder / f".code-{os.getpid()}"
        shutil.copytree(source, part / "egokit", ignore=shutil.ignore_patterns("__pycache__"))
        os.replace(part, target)
    return target


def start_job(module: str, folder: Path, code: Path, launch: LaunchConfig) -> None:
    """Run `python -m module folder/spec.json`, which submits and writes folder/job.json, with the snapshot `code` on its path.

    In a session of its own: neither closing JupyterLab nor Ctrl-C reaches the job. Raises RuntimeError if nothing was submitted.
    """
    inherited = os.environ
    if "SLURM_JOB_ID" in inherited:  # a notebook in a job, or in a session on a node: what it submits is no part of that job
        inherited = {key: value for key, value in inherited.items() if key == "SLURM_CONF" or not key.startswith(("SLURM_", "SRUN_"))}
    environment = dict(inherited, PYTHONPATH=str(code.resolve()), PYTHONSAFEPATH="1", TOKENIZERS_PARALLELISM="false")
    environment.setdefault("OMP_NUM_THREADS", str(launch.cpus))
    with open(folder / "start.log", "w") as start_log:
        started = subprocess.run([sys.executable, "-m", module, str((folder / "spec.json").resolve())], env=environment,
                                 start_new_session=True, stdin=subprocess.DEVNULL, stdout=start_log, stderr=subprocess.STDOUT)
    if started.returncode or not (folder / "job.json").exists():
        raise RuntimeError(f"{folder.name} could not be submitted to {launch.cluster}:\n{(folder / 'start.log').read_text()[-2000:]}")


def starting_point(config: Config) -> str:
    """The hash of the checkpoint `init`. What is missing to start from is said here, not in a job's log."""
    if config.init:
        from egokit import checkpoints
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
    parameters, and RuntimeError if the job can't be submitted.
    """
    from egokit import __version__
    from egokit.job import ACTIONS
    if action not in ACTIONS:
        raise ValueError(f"action {action!r}: expected one of {', '.join(ACTIONS)}")
    start = starting_point(config)
    handle = Handle(run, section or action)
    handle.folder.mkdir(parents=True, exist_ok=True)
    with open(handle.folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two notebooks of one run start one job
        before = handle.spec()
        partial = [*run.checkpoints.glob("*.pt")] if action == "train" else [*run.path.glob("features/*.pt")] if action == "extract" else []
        if before and (handle.metrics() or handle.alive() or partial):
            changed = differences(comparable(before["config"]), comparable(to_dict(config)))
            if before["init_sha256"] != start:
                changed.append(f"the checkpoint {config.init} itself: {before['init_sha256']} -> {start}")
            if changed:
                raise ConfigError(f"{handle.section} in {run.path} was made with other parameters ({'; '.join(changed[:6])}); "
                                  "choose another run name, or delete that folder to start again")
        if handle.metrics() or handle.alive():
            return handle
        spec = {"config": to_dict(config), "run": str(run.path.resolve()), "action": action,
                "section": handle.section, "version": __version__, "init_sha256": start}
        write_text(handle.folder / "spec.json", json.dumps(spec, indent=1))
        (handle.folder / "job.json").unlink(missing_ok=True)
        code = snapshot(handle.folder, keep=bool(partial))
        start_job("egokit.job", handle.folder, code, config.launch)
    return handle
