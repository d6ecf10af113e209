"""Several notebooks: checked together, then run in order or side by side, here or as a job of their own through submitit.

`python -m egokit.notebook.batch SPEC` is run by submit with a snapshot of egokit on its path, as job.py is by launch.py.
"""
from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from egokit.config.build import ConfigError, build, to_dict
from egokit.config.resolve import outputs_folder, project_root
from egokit.config.schema import Config
from egokit.jobs import code_snapshot, launch, runs_table, slurm, status, worker
from egokit.notebook import headless
from egokit.runs.files import write_text

CPUS = 2  # of a notebook's job: it waits for its own jobs, and draws


@dataclasses.dataclass(frozen=True)
class Notebooks:
    """work: (notebook, parameters), each in a run folder of its own. timeout: seconds for each. abreast: how many at once."""
    work: list[tuple[str, dict]]
    timeout: float | None = None
    abreast: int = 1


def checked(notebooks: list[str], parameters: dict, timeout: float | None = None, abreast: int = 1) -> Notebooks:
    """NOTEBOOK or NOTEBOOK:RECIPE for each, with the parameters of all. Raises ConfigError for whatever is wrong in any of them."""
    work: dict[Path, tuple[str, dict]] = {}
    for text in notebooks:
        name, _, recipe = text.partition(":")
        own = parameters | ({"params": recipe} if recipe else {})
        path = headless.notebook_path(name)
        config, folder = headless.resolved(path, own)
        headless.expect_same_jobs(config, folder)
        if folder in work:
            raise ConfigError(f"{path.stem} is named twice: both would write to {folder}")
        work[folder] = path.stem, own
    return Notebooks(list(work.values()), timeout, abreast)


def log(name: str, parameters: dict) -> Path:
    """Where a notebook says what it does."""
    return headless.resolved(headless.notebook_path(name), parameters)[1] / "notebook.log"


def command(name: str, parameters: dict, timeout: float | None) -> list[str]:
    """The command that runs one notebook here."""
    limit = [] if timeout is None else [f"--timeout={timeout / 60}"]
    return [sys.executable, "-m", "egokit.cli", "run", name, *limit, *(f"--{key}={value}" for key, value in parameters.items())]


def run(notebooks: Notebooks) -> int:
    """Run them all; returns the exit code, 1 if one failed. In order, the first that fails is the last."""
    if notebooks.abreast > 1 and len(notebooks.work) > 1:
        return side_by_side(notebooks)
    for number, (name, parameters) in enumerate(notebooks.work, 1):
        print(f"{name}: running … (follow it in {log(name, parameters)})", flush=True)
        try:
            print(headless.execute(name, parameters, notebooks.timeout), flush=True)
        except headless.NotebookFailed as error:
            print(f"egokit: {error}", file=sys.stderr)
            if left := [other for other, _ in notebooks.work[number:]]:
                print(f"not run: {', '.join(left)}", file=sys.stderr)
            return 1
    return 0


def side_by_side(notebooks: Notebooks) -> int:
    """Each in a process of its own; one that fails stops no other. What ends this process ends them all, but for kill -9."""
    def told(number, frame):
        raise SystemExit(128 + number)

    before = {sign: signal.signal(sign, told) for sign in (signal.SIGTERM, signal.SIGUSR2)}
    waiting, running, ended, began = list(notebooks.work), {}, {}, time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < notebooks.abreast:
                name, parameters = waiting.pop(0)
                running[name] = subprocess.Popen(command(name, parameters, notebooks.timeout))
            time.sleep(0.2)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                ended[name] = running.pop(name).returncode, time.monotonic() - began
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        for sign, handler in before.items():
            signal.signal(sign, handler)
    for name, (code, seconds) in ended.items():
        print(f"{name:24}{'done' if not code else f'failed, exit code {code}':24}after {seconds:.0f} s")
    return int(any(code for code, _ in ended.values()))


# as a job

class NotebooksJob:
    """A picklable description of a job that runs notebooks."""

    def __init__(self, spec: str):
        self.spec = spec

    def __call__(self) -> None:
        spec = json.loads(Path(self.spec).read_text())
        process = subprocess.Popen([sys.executable, "-m", "egokit.notebook.batch", self.spec, "here"], env=os.environ | spec["environment"])
        try:
            code = process.wait()
        finally:  # a time limit or preemption: submitit has queued this job again, and leaves
            process.terminate()
            process.wait()
        if code:
            raise RuntimeError(f"a notebook failed (exit code {code}): the notebook.log in its run folder says why")

    def checkpoint(self):
        """submitit's call at a time limit or preemption: the same again; a notebook finds the jobs that it submitted."""
        import submitit
        return submitit.helpers.DelayedSubmission(NotebooksJob(self.spec))


def submit(notebooks: Notebooks) -> str:
    """Run them in a job on the site's launch.cluster; says what was submitted. While it is queued or runs, it is that one.

    The job has one process, few CPUs and no GPU, and the site's other launch.slurm options. It waits, with what it holds,
    for the jobs that the notebooks submit.
    """
    config, run_folder = headless.resolved(headless.notebook_path(notebooks.work[0][0]), notebooks.work[0][1])
    folder = run_folder / "batch"
    spec = {"notebooks": json.loads(json.dumps(dataclasses.asdict(notebooks))), "launch": to_dict(small(config.launch)),
            "environment": {"EGOKIT_HOME": str(project_root()), "EGOKIT_OUTPUTS": str(outputs_folder()),
                            "EGOKIT_SUBMITTED": str(folder / "submitted")}}
    with launch.locked(folder):
        if not status.alive(folder):
            folders = [headless.resolved(headless.notebook_path(name), parameters)[1] for name, parameters in notebooks.work]
            spec["before"] = {f"{one.parent.name}/{one.name}": runs_table.result_times(one) for one in folders}
            write_text(folder / "spec.json", json.dumps(spec, indent=1))
            code_snapshot.snapshot_files(folder, files(notebooks))
            (folder / "job.json").unlink(missing_ok=True)
            launch.start_job("egokit.notebook.batch", folder, code_snapshot.snapshot_code(folder, keep=False), config.launch)
        elif json.loads((folder / "spec.json").read_text())["notebooks"] != spec["notebooks"]:
            raise ConfigError(f"{folder} belongs to a job that runs other notebooks or parameters: wait for it, end it, or choose "
                              "another run name")
        number = status.read_job(folder)["job_id"]
    names, logs = ", ".join(name for name, _ in notebooks.work), "\n".join(f"  {log(*one)}" for one in notebooks.work)
    return f"{names}: job {number} on {config.launch.cluster}; follow it in\n{logs}\nthe job's own log: {folder}"


def files(notebooks: Notebooks) -> list[Path]:
    """What the notebooks are read from: they themselves, params/, and recipes and sites that are files elsewhere."""
    found = {project_root() / "params"}
    for name, parameters in notebooks.work:
        path = headless.notebook_path(name)
        values = headless.parameters_of(path, parameters)
        named = (Path(values[key]).expanduser().absolute() for key in ("params", "site"))
        found |= {project_root() / "notebooks" / path.name, *(one for one in named if one.suffix in (".yaml", ".yml") and one.is_file())}
    return sorted(found)


def small(site):
    """A LaunchConfig for notebooks: their jobs have the GPUs."""
    return dataclasses.replace(slurm.one_process(site), cpus_per_task=min(CPUS, max(1, site.cpus_per_task)))


def main(spec_path: str, here: bool) -> None:
    """Submit the job of a spec and write down what it takes to find it again; or, in the job, run its notebooks."""
    spec_file = Path(spec_path)
    spec = json.loads(spec_file.read_text())
    if here:
        work = [(name, parameters) for name, parameters in spec["notebooks"]["work"]]
        sys.exit(run(Notebooks(work, spec["notebooks"]["timeout"], spec["notebooks"]["abreast"])))
    site = build(Config, {"launch": spec["launch"]}).launch
    worker.submit(site, spec_file.parent, f"egokit-{spec['notebooks']['work'][0][0]}", NotebooksJob(str(spec_file)))


if __name__ == "__main__":
    from egokit.notebook.batch import main as main_of_module  # pickled by the name egokit.notebook.batch, not __main__
    main_of_module(sys.argv[1], sys.argv[2:] == ["here"])
