"""`egokit profile`: a job that runs a few training steps under PyTorch's profiler.

It has a folder of its own in the run's, profile/, with its job, its log and its results. So it neither counts as the
run's training nor touches the training's files.
"""
import dataclasses
import json
import shutil
import time
from pathlib import Path

from egokit.config.build import ConfigError, differences, flatten, to_dict
from egokit.config.registry import restore
from egokit.config.schema import Config
from egokit.config.yaml_file import to_yaml
from egokit.jobs import code_snapshot, devices, launch
from egokit.jobs.handle import Handle
from egokit.jobs.preflight import expect_ready
from egokit.jobs.progress import ProgressFile
from egokit.runs.files import locked, write_text
from egokit.runs.run_folder import Run
from egokit.train.batch_plan import check_batch

SECTION = FOLDER = "profile"
TABLE = "profile.txt"  # in that folder
MINUTES = 60  # time limit of the job, at most: short jobs start sooner


def submit(config: Config, folder: Path, steps: int) -> Handle:
    """Start to profile a recipe's training, in place of an earlier profile; attach to one that is queued or runs.

    Args:
        config: the resolved recipe; its `launch` says where the job runs.
        folder: the run's folder, in which a folder "profile" is made.
        steps: number of steps to record.

    Returns:
        The job's Handle; its `wait()` returns "verdict", "advice" and "table", the path of the text.

    Raises:
        ConfigError: the task doesn't train, a profile of other settings is queued or runs there, or what
            `launch.submit` raises of a training.
        NotSubmitted: SLURM or this machine refused the job.
    """
    from egokit import __version__, tasks
    if "train" not in tasks.find(config.task.name).actions():
        raise ConfigError(f"task {config.task.name!r} does not train, and `egokit profile` profiles trainings: name a "
                          "recipe that trains")
    check_batch(config, "train")
    config = dataclasses.replace(config, launch=dataclasses.replace(
        config.launch, timeout_minutes=min(MINUTES, config.launch.timeout_minutes), requeues=0))
    expect_ready(config, "train")
    run = Run(folder / FOLDER)
    run.expect_no_links()
    handle = Handle(run, SECTION)
    with locked(handle.folder):
        while handle.metrics() and handle.alive():
            time.sleep(0.5)  # it has written its result and is about to end
        if handle.alive():
            expect_same(handle, config, steps)
            return handle
        code_snapshot.expect_own_folders(handle.folder)
        notice = devices.check_gpus(config, "train")
        shutil.rmtree(handle.folder / "code", ignore_errors=True)
        run.write_metrics(SECTION, {})
        write_text(run.path / "params.yaml", to_yaml(config))
        plain = to_dict(config)
        with devices.choose_gpus(config.launch) as choice:
            spec = {"function": "egokit.jobs.profiling:work", "name": "egokit-profile", "config": plain,
                    "opened": plain, "run": str(run.path.resolve()), "action": "profile", "section": SECTION,
                    "version": __version__, "init_sha256": "", "task_sha256": "", "gpus": choice.uuids, "steps": steps}
            launch.start_work(handle.folder, spec, config.launch, False, config.task.name, config.init)
    print(end="".join(f"{SECTION} {line}\n" for line in (notice, choice.notice) if line), flush=True)
    return handle


def expect_same(handle: Handle, config: Config, steps: int) -> None:
    """Raise ConfigError if a profile that is queued or runs has other settings: its table would be taken for theirs."""
    spec = handle.spec("config")
    earlier, asked = flatten(spec["config"]), flatten(json.loads(json.dumps(to_dict(config))))
    if changes := differences(earlier | {"--steps": spec.get("steps")}, asked | {"--steps": steps}):
        raise ConfigError(f"{handle.run.path}: a profile with other settings ({'; '.join(changes[:6])}) is queued or "
                          "runs there: wait for it, or give this one another --run NAME")


def work(folder: Path, spec: dict) -> None:
    """Do one rank's part of the job; see `worker.Work`."""
    from egokit import tasks
    from egokit.jobs.run_job import started
    from egokit.train import distributed
    from egokit.train.profile import profile
    config = restore(spec["config"], folder / "code")
    with started(folder, spec, config) as (run, device, rank_devices):
        first = distributed.rank() == 0
        task = tasks.make(config, code=folder / "code")
        result = profile(config, task, run, device, spec["steps"], ProgressFile(folder) if first else None)
        if first:
            run.write_metrics(SECTION, result | {"finished": True, "action": "profile", "devices": rank_devices})
