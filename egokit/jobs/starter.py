"""Start a job: write its spec.json, copy the code that it runs, and hand both to its starter.

What is submitted, and whether it may be, is decided in launch.py; jobs/worker.py is the starter.
"""
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from egokit.config.schema import LaunchConfig
from egokit.jobs import code_snapshot, devices, slurm
from egokit.jobs.progress import PROGRESS_FILE
from egokit.runs.files import write_text
from egokit.runs.run_folder import DEVICES


class NotSubmitted(RuntimeError):
    """SLURM or this machine refused a job; the message holds the reason that it gave."""


def start_work(folder: Path, spec: dict, launch: LaunchConfig, keep_code: bool = False, task: str = "",
               init: str = "") -> None:
    """Write a job's spec.json, copy the code that it runs, and start the job in place of the folder's earlier one.

    Args:
        folder: the job's folder.
        spec: what jobs/worker.py needs to submit the job and to run it.
        launch: where the job runs.
        keep_code, task, init: see `snapshot_code`.

    Raises:
        NotSubmitted, ConfigError: as `start_job`. The earlier job's spec.json, which says how the run was made, is left
            then.
    """
    with written_work(folder, spec, keep_code, task, init) as module:
        start_job(module, folder, folder / "code", launch)


@contextlib.contextmanager
def written_work(folder: Path, spec: dict, keep_code: bool = False, task: str = "", init: str = "") -> Iterator[str]:
    """Write a job's spec.json and copy its code; the job is started in the `with` block.

    Args:
        folder, spec, keep_code, task, init: as for `start_work`.

    Yields:
        The module of the job's starter. An error in the block puts the earlier job's spec.json back.
    """
    code, spec_path = code_snapshot.snapshot_code(folder, keep_code, task, init), folder / "spec.json"
    for name in ("job.json", "failures.json", PROGRESS_FILE, DEVICES):  # they must not count against this job
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "failures", ignore_errors=True)
    if (folder / "submitit").is_symlink():
        (folder / "submitit").unlink()
    links = filter(Path.is_symlink, folder.glob("submitit/*"))  # submitit's own, and others that lead logs elsewhere
    for left in [*links, *folder.glob("submitit/*.pkl"), *folder.glob("meeting-*")]:
        if left.is_symlink() or left.is_file():
            left.unlink()  # a job of the same id would load it, or meet whom it names
    earlier = spec_path.read_text() if spec_path.exists() else ""
    write_text(spec_path, json.dumps(spec, indent=1))
    try:
        # a run that an older egokit began goes on with its copy, whose worker has another name
        yield "egokit.jobs.worker" if (code / "egokit/jobs/worker.py").is_file() else "egokit.job"
    except BaseException:
        if earlier:
            write_text(spec_path, earlier)
        raise


def start_job(module: str, folder: Path, code: Path, launch: LaunchConfig) -> None:
    """Run `python -m module folder/spec.json`, which submits a job and writes folder/job.json.

    The starter runs in a session of its own, so that neither closing JupyterLab nor Ctrl-C reaches the job.

    Args:
        module: the module with the job's starter, such as egokit.jobs.worker.
        folder: the job's folder, which holds spec.json.
        code: the snapshot of egokit, which becomes the starter's path.
        launch: where the job runs.

    Raises:
        NotSubmitted: SLURM or this machine refused the job.
        ConfigError: options in launch.slurm are unknown or contradict each other.
    """
    if launch.cluster == "slurm":
        slurm.check_options(launch)
        if not shutil.which("sbatch"):
            raise NotSubmitted("launch.cluster is slurm, but this machine has no sbatch: submit on the cluster's login "
                               "node")
    (folder / "start.log").unlink(missing_ok=True)  # a link would lead the writing elsewhere
    with open(folder / "start.log", "w") as start_log:
        starter = subprocess.run([sys.executable, "-m", module, str((folder / "spec.json").resolve())],
                                 env=starter_environment(code, launch), start_new_session=True,
                                 stdin=subprocess.DEVNULL, stdout=start_log, stderr=subprocess.STDOUT)
    if starter.returncode or not (folder / "job.json").exists():
        log = (folder / "start.log").read_text()
        # without duplicates, because submitit repeats sbatch's lines
        message = "\n".join(dict.fromkeys(re.findall("sbatch: error: .*", log))) or log[-2000:]
        raise NotSubmitted(f"{folder.name} could not be submitted to {launch.cluster}:\n{message}")


def starter_environment(code: Path, launch: LaunchConfig) -> dict[str, str]:
    """Return the environment variables of a job's starter, which the job inherits."""
    inherited = os.environ
    if "SLURM_JOB_ID" in inherited:  # the caller runs in a job or on a node; what it submits is no part of that job
        inherited = {key: value for key, value in inherited.items()
                     if key == "SLURM_CONF" or not key.startswith(("SLURM_", "SRUN_"))}
    # the job's copy first; then the caller's packages, by names that mean the same where the job runs
    given = filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))
    environment = dict(inherited, PYTHONPATH=os.pathsep.join([str(code.resolve()), *map(os.path.abspath, given)]),
                       PYTHONSAFEPATH="1", TOKENIZERS_PARALLELISM="false")
    if launch.cluster == "slurm":
        # sbatch would hand on which GPUs this process has, but SLURM gives the job its own
        environment.pop(devices.VISIBLE_DEVICES, None)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, launch.cpus_per_task)))
    return environment
