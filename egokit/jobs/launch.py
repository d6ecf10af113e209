"""From a notebook or shell to a job: submit it, or attach to the one that is there.

Jobs are local processes or SLURM's, always started through submitit. Nothing is trained in the caller's process; what
runs inside the job is run_job.py's, and handle.py follows it.
"""
import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from egokit.config.build import ConfigError, comparable, differences, flatten, nest, to_dict
from egokit.config.own_code import split_task_file
from egokit.config.registry import find, restore
from egokit.config.schema import Config
from egokit.config.yaml_file import to_yaml
from egokit.jobs import code_snapshot, devices, slurm
from egokit.jobs.handle import Handle
from egokit.jobs.handle import JobFailed as JobFailed  # users catch egokit.launch.JobFailed
from egokit.jobs.preflight import expect_ready, starting_point
from egokit.jobs.starter import NotSubmitted as NotSubmitted  # callers catch launch.NotSubmitted
from egokit.jobs.starter import start_work
from egokit.jobs.status import naming_spec, read_spec
from egokit.runs.files import large_file_sha256, locked, write_text
from egokit.runs.run_folder import Run
from egokit.train.batch_plan import check_batch

ACTIONS = ("train", "evaluate", "extract")
EXTRACTED = ("features", "vectors")  # folders that extractions fill


class Prepared(NamedTuple):
    """A job that has been checked, and is ready to start."""
    handle: Handle
    spec: dict | None   # for starter.start_work; None: there is nothing to start, because it has finished or is alive
    keeps_code: bool    # it resumes, with the copy of the code that it began with
    notices: list[str]  # of the GPUs that it takes


def submit(config: Config, run: Run, action: str = "train", section: str | None = None) -> Handle:
    """Start a job of config.task in a run folder, or attach to the one that is there.

    It may be called again at any time: a finished job is not repeated, a queued or running one is attached to, and one
    that ended early is started again and resumes from what it left.

    Args:
        config: the resolved recipe; its `launch` says where the job runs.
        run: the run folder that the job writes to.
        action: "train", "evaluate" or "extract".
        section: the job's name, and its section of metrics.json; by default the action.

    Returns:
        The job's Handle: `.wait()` returns its metrics, `.cancel()` ends it.

    Raises:
        ConfigError: the run was made with other parameters, would go on with a copy of egokit that is not this user's,
            or lies where others could exchange that copy; the recipe needs what this machine or site lacks; the batch
            is smaller than the number of processes; or options in launch.slurm are wrong.
        NotSubmitted: SLURM or this machine refused the job.
        ValueError: `action` is none of the three.
    """
    with prepared(config, run, action, section) as job:
        if job.spec:
            start_work(job.handle.folder, job.spec, config.launch, job.keeps_code, config.task.name, config.init)
    print(end="".join(f"{job.handle.section} {notice}\n" for notice in job.notices), flush=True)
    return job.handle


@contextlib.contextmanager
def prepared(config: Config, run: Run, action: str = "train", section: str | None = None) -> Iterator[Prepared]:
    """Check whether a job can and has to start; it is started in the `with` block, which holds its folder's lock.

    Args:
        config, run, action, section: as for `submit`.

    Yields:
        The job, Prepared.

    Raises:
        ConfigError, ValueError: as `submit`.
    """
    from egokit import __version__, tasks
    if action not in ACTIONS:
        raise ValueError(f"action {action!r}: expected one of {', '.join(ACTIONS)}")
    check_batch(config, action)
    task = tasks.find(config.task.name)
    sources = [] if task.encodes(action) else task.input_files(config)
    init_sha256 = starting_point(config) if task.encodes(action) else sha256_of(sources)
    task_sha256 = code_snapshot.task_sha256(config.task.name)
    handle = Handle(run, section or action)
    run.expect_no_links()
    with locked(handle.folder):
        if action == "extract" and handle.metrics() and task.outdated(config, run):
            while handle.alive():
                time.sleep(0.5)  # the job has written its metrics and is about to end; don't take it for the next one
            shutil.rmtree(handle.folder / "code", ignore_errors=True)  # the present code makes the new result
            run.write_metrics(handle.section, {})
        expect_same(handle, config, (init_sha256, task_sha256), sources=sources)
        if not (exists := handle.metrics() or handle.alive()):
            expect_ready(config, action)
            code_snapshot.expect_own_folders(handle.folder)
        cpu_notice = "" if exists else devices.check_gpus(config, action)
        resumed, earlier, plain = bool(leftovers(run, action)), handle.spec("config"), to_dict(config)
        copy, present = handle.folder / "code", code_snapshot.code_sha256()
        keeps_copy = resumed and os.path.lexists(copy)
        if keeps_copy and not exists:
            code_snapshot.expect_trusted(copy, config.task.name, config.init)
        opened = run.config or config
        write_text(run.path / "params.yaml", to_yaml(opened))  # after all checks: a refused caller must not change it
        shown = (exists or resumed) and (copy / "egokit").is_dir()
        code = code_snapshot.code_sha256(copy / "egokit") if shown else present
        if code != present:
            print(f"{handle.section} in {run.path} is made by another version of egokit's code ({code}; here: "
                  f"{present}); choose another run name to use the present one", flush=True)
        if exists:
            yield Prepared(handle, None, resumed, [])
            return
        if keeps_copy and earlier:
            plain = downgrade_config(plain, earlier["config"])
        elif split_task_file(config.task.name):
            tasks.find(config.task.name)  # an error in the user's file is raised here, not in a job's log
        with devices.choose_gpus(config.launch) as choice:
            spec = {"function": "egokit.jobs.run_job:work", "name": f"egokit-{handle.section}", "config": plain,
                    "opened": to_dict(opened), "run": str(run.path.resolve()), "action": action,
                    "section": handle.section, "version": __version__, "init_sha256": init_sha256,
                    "task_sha256": task_sha256, "gpus": choice.uuids}
            yield Prepared(handle, spec, resumed, [*filter(None, (cpu_notice, choice.notice))])


def sha256_of(files: list[Path]) -> str:
    """Return the hashes of files in one text, which names the start of a job."""
    return "+".join(large_file_sha256(path)[:12] for path in files)


def sbatch_script(config: Config, run: Run | Path, action: str = "train", section: str | None = None) -> str:
    """Return the sbatch script that `submit` would submit.

    Nothing is submitted or written, and the machine needs no SLURM.

    Args:
        config: the resolved recipe, with launch.cluster "slurm".
        run: the run, or the path of its folder, which need not exist.
        action: as for `submit`.
        section: as for `submit`.

    Raises:
        ConfigError: launch.cluster is not "slurm", the batch is smaller than the number of processes, or options in
            launch.slurm are unknown or contradict each other.
    """
    if config.launch.cluster != "slurm":
        raise ConfigError(f"launch.cluster of site {config.site.name!r} is {config.launch.cluster}: "
                          "only SLURM's jobs have a script")
    check_batch(config, action)
    folder = (run.path if isinstance(run, Run) else Path(run)) / "jobs" / (section or action)
    return slurm.script(config.launch, folder, f"egokit-{folder.name}")


def leftovers(run: Run, action: str) -> list[Path]:
    """Return the files from which an unfinished job resumes: checkpoints, or what was extracted."""
    if action == "train":
        return [*run.checkpoints.glob("*.pt")]
    return [file for name in EXTRACTED for file in run.path.glob(f"{name}/*")] if action == "extract" else []


def downgrade_config(config: dict, earlier: dict) -> dict:
    """Return a plain config with only the keys, and their names, of an earlier config.

    A run that resumes keeps its copy of egokit, which refuses keys that it doesn't know.

    Args:
        config: the plain config.
        earlier: the plain config of the run's earlier start.
    """
    whole, kept = flatten(config), {}
    flat = dict(whole)
    for section, content in earlier.items():
        for key, value in (content.items() if isinstance(content, dict) else [("", content)]):
            name = f"{section}.{key}" if key else section
            present = next(iter(flatten({name: value})))
            flat.pop(present, None)
            if present in whole or not present.startswith("launch."):  # no shell line of a file's becomes a job's
                now = whole.get(present, value)  # another task's key has its earlier value
                # model.checkpointing was true or false
                kept[name] = now != "none" if isinstance(value, bool) and isinstance(now, str) else now
    if flat:
        print(f"goes on with the copy of egokit that it began with, which doesn't know {', '.join(flat)}", flush=True)
    return nest(kept)


def changed_keys(folder: Path, config: Config, of: str = "config") -> list[str]:
    """Return in what a config differs from that of a job, as "key: old -> new".

    Nothing is executed that only the run folder names: neither its copy of a user's task nor another task file.

    Args:
        folder: the job's folder, with its spec.json.
        config: the config to compare.
        of: "config", or "opened" for the config of the notebook that submitted the job.

    Raises:
        ConfigError: the job's config is damaged; the message names spec.json and the key.
    """
    spec = read_spec(folder, "config")
    earlier = spec.get(of, spec["config"])
    with naming_spec(folder):
        name = flatten(earlier).get("task.name")
        if name and name != config.task.name and split_task_file(name):
            return differences({"task.name": name}, {"task.name": config.task.name})
        task = find(name) if name == config.task.name else None
        return differences(comparable(restore(earlier, task=task)), comparable(config))


def expect_same(handle: Handle, config: Config, hashes: tuple[str, str] | None = None, of: str = "config",
                sources: list[Path] | None = None) -> None:
    """Raise ConfigError if a job that is alive or has left files had other parameters.

    Args:
        handle: the job.
        config: what it is to be made with now.
        hashes: of the checkpoint `init` and of the task's file, which are compared, too. None compares neither.
        of: see `changed_keys`.
        sources: the files that the first hash is of, where it is not `init`'s.
    """
    spec = handle.spec("action", "config", "init_sha256")
    if not spec or not (handle.metrics() or handle.alive() or leftovers(handle.run, spec["action"])):
        return
    changes = changed_keys(handle.folder, config, of)
    earlier = spec["init_sha256"], spec.get("task_sha256", "")
    start = ", ".join(map(str, sources)) if sources else f"the checkpoint {config.init}"
    names = f"{start} itself", f"the file of task {config.task.name} itself"
    changes += differences(dict(zip(names, earlier, strict=True)), dict(zip(names, hashes or earlier, strict=True)))
    if changes:
        raise ConfigError(f"{handle.section} in {handle.run.path} was made with other parameters "
                          f"({'; '.join(changes[:6])}); choose another run name, give the old values as overrides, or "
                          "delete that folder to start again")
