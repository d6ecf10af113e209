"""Several notebooks, checked together, then run in order or side by side.

They run here or as one job, which jobs/worker.py starts.
"""
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from egokit.config.build import ConfigError, to_dict
from egokit.config.resolve import outputs_folder, project_root
from egokit.jobs import code_snapshot, launch, runs_table, slurm, starter, status
from egokit.notebook import headless
from egokit.runs.run_folder import Run

CPUS = 2  # of a job that runs notebooks: it only waits for the jobs they submit, and draws


@dataclasses.dataclass(frozen=True)
class Notebooks:
    """Notebooks to run, checked."""
    work: list[tuple[str, dict]]    # (notebook, parameters), each with a run folder of its own
    timeout: float | None = None    # seconds for each
    abreast: int = 1                # how many run at the same time


def check_notebooks(notebooks: list[str], parameters: dict, timeout: float | None = None,
                    abreast: int = 1) -> Notebooks:
    """Check notebooks and their parameters before anything starts.

    Args:
        notebooks: NOTEBOOK or NOTEBOOK:RECIPE for each.
        parameters: Some of params, site, overrides and run_name, for all of them.
        timeout: Seconds for each notebook; None is no limit.
        abreast: How many run at the same time.

    Raises:
        ConfigError: A notebook, recipe, key or value is wrong, or two would write to one folder.
    """
    work: dict[Path, tuple[str, dict]] = {}
    for text in notebooks:
        name, _, recipe = text.partition(":")
        own_parameters = parameters | ({"params": recipe} if recipe else {})
        path = headless.notebook_path(name)
        config, folder = headless.resolve_notebook(path, own_parameters)
        headless.expect_same_jobs(config, folder)
        if folder in work:
            raise ConfigError(f"{path.stem} is named twice: both would write to {folder}")
        work[folder] = path.stem, own_parameters
    return Notebooks(list(work.values()), timeout, abreast)


def run_folder(name: str, parameters: dict) -> Path:
    """Return the folder of a notebook's run."""
    return headless.resolve_notebook(headless.notebook_path(name), parameters)[1]


def command(name: str, parameters: dict, timeout: float | None) -> list[str]:
    """Return the command that runs one notebook here."""
    limit = [] if timeout is None else [f"--timeout={timeout / 60}"]
    return [sys.executable, "-m", "egokit.cli", "run", name, *limit,
            *(f"--{key.removesuffix('_name')}={value}" for key, value in parameters.items())]


def run(notebooks: Notebooks) -> int:
    """Run the notebooks and return the exit code, 1 if one failed.

    In order, those after a failed one are not run; side by side, all others are.
    """
    if notebooks.abreast > 1 and len(notebooks.work) > 1:
        return run_side_by_side(notebooks)
    for number, (name, parameters) in enumerate(notebooks.work, 1):
        print(f"{name}: running … (follow it in {run_folder(name, parameters) / 'notebook.log'})", flush=True)
        try:
            print(headless.execute(name, parameters, notebooks.timeout), flush=True)
        except headless.NotebookFailed as error:
            print(f"egokit: {error}", file=sys.stderr)
            if left := [name for name, _ in notebooks.work[number:]]:
                print(f"not run: {', '.join(left)}", file=sys.stderr)
            return 1
    return 0


def run_side_by_side(notebooks: Notebooks) -> int:
    """Run each notebook in a process of its own and return the exit code.

    A notebook that fails stops no other one. Whatever ends this process ends all notebooks, except kill -9.
    """
    def exit_on_signal(number, frame):
        raise SystemExit(128 + number)

    handlers = {sign: signal.signal(sign, exit_on_signal) for sign in (signal.SIGTERM, signal.SIGUSR2)}
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
        for sign, handler in handlers.items():
            signal.signal(sign, handler)
    for name, (code, seconds) in ended.items():
        print(f"{name:24}{'done' if not code else f'failed, exit code {code}':24}after {seconds:.0f} s")
    return int(any(code for code, _ in ended.values()))


# as a job

def work(folder: Path, spec: dict) -> None:
    """Run the notebooks of a job's spec in a process of its own; called in the job.

    Queued again after a time limit or a preemption, the notebooks find the jobs that they submitted.
    """
    process = subprocess.Popen([sys.executable, "-m", "egokit.notebook.batch", str(folder / "spec.json")],
                               env=os.environ | spec["environment"])
    try:
        code = process.wait()
    finally:  # at a time limit or preemption, submitit has requeued this job and raises here
        process.terminate()
        process.wait()
    if code:
        raise RuntimeError(f"a notebook failed (exit code {code}): the notebook.log in its run folder says why")


def submit(notebooks: Notebooks) -> str:
    """Run the notebooks in one job on the site's launch.cluster; return a notice of it.

    If the same job is already queued or running, nothing is submitted and the notice is about that job. The job has one
    process, few CPUs and no GPU, and the site's other launch.slurm options; it keeps them while it waits for the jobs
    that the notebooks submit.

    Raises:
        ConfigError: The run folder has an unfinished job that runs other notebooks or parameters.
    """
    first, parameters = notebooks.work[0]
    config, run_path = headless.resolve_notebook(headless.notebook_path(first), parameters)
    folder = run_path / "batch"
    spec = {"function": "egokit.notebook.batch:work", "name": f"egokit-{first}",
            "config": {"launch": to_dict(small(config.launch))},
            "notebooks": json.loads(json.dumps(dataclasses.asdict(notebooks))),
            "environment": {"EGOKIT_HOME": str(project_root()), "EGOKIT_OUTPUTS": str(outputs_folder()),
                            "EGOKIT_SUBMITTED": str(folder / "submitted")}}
    run_folders = [run_folder(name, parameters) for name, parameters in notebooks.work]
    for path in filter(Path.is_dir, (run_path, *run_folders)):
        Run(path).expect_no_links()
    with launch.locked(folder):
        if not status.alive(folder):
            spec["before"] = {f"{path.parent.name}/{path.name}": runs_table.result_times(path) for path in run_folders}
            code_snapshot.snapshot_files(folder, source_files(notebooks))
            starter.start_work(folder, spec, config.launch)
        elif status.read_spec(folder, "notebooks")["notebooks"] != spec["notebooks"]:
            raise ConfigError(f"{folder} belongs to a job that runs other notebooks or parameters: wait for it, end "
                              "it, or choose another run name")
        number = status.read_job(folder)["job_id"]
    names = ", ".join(name for name, _ in notebooks.work)
    logs = "\n".join(f"  {path / 'notebook.log'}" for path in run_folders)
    return f"{names}: job {number} on {config.launch.cluster}; follow it in\n{logs}\nthe job's own log: {folder}"


def source_files(notebooks: Notebooks) -> list[Path]:
    """Return the notebooks, params/, and recipes and sites that are files elsewhere."""
    sources = {project_root() / "params"}
    for name, parameters in notebooks.work:
        path = headless.notebook_path(name)
        values = headless.read_parameters(path, parameters)
        named = (Path(values[key]).expanduser().absolute() for key in ("params", "site"))
        sources |= {project_root() / "notebooks" / path.name,
                    *(path for path in named if path.suffix in (".yaml", ".yml") and path.is_file())}
    return sorted(sources)


def small(site):
    """Return a LaunchConfig without GPUs, which are for the jobs that the notebooks submit."""
    return dataclasses.replace(slurm.one_process(site), cpus_per_task=min(CPUS, max(1, site.cpus_per_task)))


if __name__ == "__main__":  # called by `work`
    sys.exit(run(Notebooks(**json.loads(Path(sys.argv[1]).read_text())["notebooks"])))
