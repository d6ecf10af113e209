"""sbatch's options from a LaunchConfig, and the script that submitit makes of them."""
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from egokit.config.build import ConfigError, did_you_mean
from egokit.config.schema import LaunchConfig, is_one_line

# submitit's option -> the key under launch that sets it. Given in launch.slurm as well, one of the two would be ignored
LAUNCH_KEYS = {"nodes": "nodes", "ntasks_per_node": "tasks_per_node", "cpus_per_task": "cpus_per_task",
               "time": "timeout_minutes", "mem": "mem_gb_per_task", "partition": "partition", "account": "account",
               "qos": "qos", "constraint": "constraint", "exclusive": "exclusive", "setup": "setup"}


def check_options(launch: LaunchConfig) -> None:
    """Raise ConfigError if an option in launch.slurm is unknown, holds others, or contradicts a launch key."""
    import submitit
    valid = submitit.SlurmExecutor._valid_parameters()
    for key, value in launch.slurm.items():
        if key in LAUNCH_KEYS:
            raise ConfigError(f"launch.slurm.{key}: set launch.{LAUNCH_KEYS[key]} instead")
        if key not in valid:
            raise ConfigError(f"unknown key 'launch.slurm.{key}': {did_you_mean(key, valid - LAUNCH_KEYS.keys())}; "
                              "sbatch's other options go into launch.slurm.additional_parameters")
        if key == "additional_parameters" and not isinstance(value, dict):
            raise ConfigError("launch.slurm.additional_parameters: expected a mapping such as {reservation: deadline}, "
                              f"got {value!r}")
        for name in value if key == "additional_parameters" else ():
            if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", str(name)):  # sbatch would take the rest for more options
                raise ConfigError(f"launch.slurm.additional_parameters.{name}: expected the name of one of sbatch's "
                                  "options: letters, digits, '-' and '_'; its value comes after the colon")
        if key == "srun_args" and not (isinstance(value, (list, tuple)) and all(str(item).startswith("-")
                                                                               for item in value)):
            raise ConfigError(f"launch.slurm.srun_args: expected a list of options that begin with '-', such as "
                              f"[--mpi=pmix], got {value!r}: the first other word would be the program that srun runs")
        if launch.gpus_per_task and requests_gpus(key, value):
            raise ConfigError(f"launch.slurm.{key}: launch.gpus_per_task asks for GPUs already; set "
                              "launch.gpus_per_task to 0 to ask for them this way")


def requests_gpus(key: str, value) -> bool:
    """Return whether an option of launch.slurm or its additional_parameters asks for GPUs."""
    if key == "additional_parameters":
        return isinstance(value, dict) and any(requests_gpus(str(name).replace("-", "_"), inner)
                                               for name, inner in value.items())
    return key in ("gpus", "gpus_per_node", "gpus_per_socket", "gpus_per_task", "num_gpus") or (
        key in ("gres", "tres_per_task") and "gpu" in str(value))


def asks_for_gpus(launch: LaunchConfig) -> bool:
    """Return whether a job asks for GPUs.

    It does by launch.gpus_per_task and, on SLURM, by an option in launch.slurm that requests them, or by a line of
    launch.setup that names CUDA_VISIBLE_DEVICES. The last is for clusters whose nodes come with their GPUs, of which
    sbatch knows nothing.
    """
    return bool(launch.gpus_per_task) or (launch.cluster == "slurm" and (
        any(requests_gpus(key, value) for key, value in launch.slurm.items())
        or any("CUDA_VISIBLE_DEVICES" in line for line in launch.setup)))


def one_process(launch: LaunchConfig) -> LaunchConfig:
    """Return the launch config for a job of one process that needs no GPU.

    On SLURM no GPU is requested. On this machine none is hidden, because jobs that the process submits inherit what it
    sees.
    """
    slurm = {key: value for key, value in launch.slurm.items() if not requests_gpus(key, value)}
    return dataclasses.replace(launch, nodes=1, tasks_per_node=1, gpus_per_task=int(launch.cluster != "slurm"),
                               exclusive=False, slurm=slurm)


def options(launch: LaunchConfig, folder: Path, name: str, array: Sequence[Path] = ()) -> dict:
    """Return the parameters of submitit's SlurmExecutor.

    Args:
        launch: the config's section.
        folder: the job's folder, which holds its snapshot of egokit; of an array, its own.
        name: the job's name in SLURM.
        array: the folder of each of an array's jobs.

    Raises:
        ConfigError: see `check_options`.
    """
    check_options(launch)
    if not is_one_line([str(folder), name, *map(str, array)]):
        raise ConfigError(f"{str(folder)!r}, {name!r}: choose a folder and a job's name without line ends and other "
                          "control characters, which would become lines of the sbatch script")
    node_memory = f"{round(launch.mem_gb_per_task * launch.tasks_per_node * 1024)}MB" if launch.mem_gb_per_task else ""
    values = {
        "job_name": name, "nodes": launch.nodes, "ntasks_per_node": launch.tasks_per_node,
        "cpus_per_task": launch.cpus_per_task, "time": launch.timeout_minutes, "partition": launch.partition,
        "account": launch.account, "qos": launch.qos, "constraint": launch.constraint, "exclusive": launch.exclusive,
        # per node and not per task: each process sees all GPUs and takes its own, so that NCCL reaches all of them
        "gpus_per_node": launch.gpus_per_task * launch.tasks_per_node,
        "mem": node_memory or ("0" if launch.exclusive else "")}
    parameters = {key: value for key, value in values.items() if value}
    # SIGUSR2 leaves 120 s to save a checkpoint before the time limit; a rank that fails ends the others
    parameters |= {"signal_delay_s": 120, "srun_args": ["--kill-on-bad-exit=1"]} | launch.slurm
    place = '"$egokit_job"' if array else shlex.quote(str(folder.resolve()))
    requeue = f"{shlex.quote(sys.executable)} -m egokit.jobs.requeue {place}"
    # The user's lines come first, because modules may change PYTHONPATH. Since Slurm 22.05 srun doesn't inherit
    # cpus-per-task. The trap runs after srun, whose exit code decides whether requeue.py is asked
    parameters["setup"] = [
        *own_job(array),
        *([] if asks_for_gpus(launch) else ["export CUDA_VISIBLE_DEVICES="]),
        *launch.setup,
        # as starter.starter_environment
        f"export PYTHONPATH={place}/code${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        *(["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"] if launch.cpus_per_task else []),
        f"trap {shlex.quote(f'code=$?; [ $code = 0 ] || {requeue}; exit $code')} EXIT"]
    return parameters


def own_job(array: Sequence[Path]) -> list[str]:
    """Return the lines by which each of an array's jobs finds its folder, and writes its log there."""
    if not array:
        return []
    # a job's log has also what follows it, such as why it isn't queued again; sbatch's own file is the array's
    log = '"$egokit_job/submitit/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_0_log'
    return ["egokit_jobs=(", *(f"  {shlex.quote(str(job.resolve()))}" for job in array), ")",
            'egokit_job=${egokit_jobs[$SLURM_ARRAY_TASK_ID]}', f'exec >>{log}.out" 2>>{log}.err"']


def executor(launch: LaunchConfig, folder: Path, name: str):
    """Return submitit's executor for SLURM; pickles and logs go to folder/submitit."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            """Return a number above 0 even without SLURM, so that the script can be read there."""
            return 2

    slurm_executor = Executor(folder.resolve() / "submitit", max_num_timeout=launch.requeues)
    slurm_executor.update_parameters(**options(launch, folder, name))
    return slurm_executor


def script(launch: LaunchConfig, folder: Path, name: str) -> str:
    """Return the script that `executor` hands to sbatch. Nothing is submitted or written."""
    slurm_executor = executor(launch, folder, name)
    return slurm_executor._make_submission_file_text(slurm_executor._submitit_command_str, "")


def array_executor(launch: LaunchConfig, folder: Path, name: str, array: Sequence[Path]):
    """Return submitit's executor for an array whose jobs have folders of their own, and the command of each.

    submitit's own arrays have one folder. Here every job has its own copy of egokit, pickle and logs, as if it had been
    submitted alone, so that whatever follows a job needs not know of the array.
    """
    array_of = executor(launch, folder, name)
    own = options(launch, folder, name, array)
    srun_args, uses_srun = own.pop("srun_args"), own.pop("use_srun", True)
    array_of.parameters.clear()
    array_of.update_parameters(**own, use_srun=False)
    array_of.parameters["map_count"] = len(array)
    log = '"$egokit_job"/submitit/%A_%a_%t_log'
    srun = f"srun --unbuffered --output {log}.out --error {log}.err {shlex.join(srun_args)} "
    python = f'{array_of.python} -u -m submitit.core._submit "$egokit_job"/submitit'
    return array_of, (srun if uses_srun else "") + python


def array_script(launch: LaunchConfig, folder: Path, name: str, array: Sequence[Path]) -> str:
    """Return the script that `submit_array` hands to sbatch. Nothing is submitted or written."""
    array_of, command = array_executor(launch, folder, name, array)
    return array_of._make_submission_file_text(command, "")


def submit_array(launch: LaunchConfig, folder: Path, name: str, array: Sequence[Path],
                 work: Sequence[Callable]) -> list[str]:
    """Submit several jobs at once, as a job array.

    Args:
        launch: where the jobs run.
        folder: the array's own folder.
        name: the array's name in SLURM.
        array: the folder of each job.
        work: what each job calls.

    Returns:
        The id of each job, "<the array's id>_<its place>".
    """
    from submitit.core.utils import DelayedSubmission
    array_of, command = array_executor(launch, folder, name, array)
    for job, function in zip(array, work, strict=True):  # before sbatch: a job may start at once
        (job / "submitit").mkdir(parents=True, exist_ok=True)
        delayed = DelayedSubmission(function)
        delayed.set_timeout(launch.timeout_minutes, launch.requeues)
        delayed.dump(job / "submitit/submitted.pkl")
    (folder / "submitit").mkdir(parents=True, exist_ok=True)
    array_id = array_of._submit_command(command).job_id
    job_ids = [f"{array_id}_{place}" for place in range(len(array))]
    for job, job_id in zip(array, job_ids, strict=True):  # submitit waits a minute for the file of this name
        os.replace(job / "submitit/submitted.pkl", job / f"submitit/{job_id}_submitted.pkl")
    return job_ids
