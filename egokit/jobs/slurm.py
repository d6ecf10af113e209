"""What a job asks of SLURM: sbatch's options from a LaunchConfig, and the script that submitit makes of them."""
from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

from egokit.config.build import ConfigError, did_you_mean
from egokit.config.schema import LaunchConfig

# options of submitit that have a key of their own under launch: said twice, one of them would be ignored
OWN = {"nodes": "nodes", "ntasks_per_node": "processes", "cpus_per_task": "cpus", "time": "timeout_minutes", "mem": "mem_gb_per_task",
       "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "exclusive": "exclusive", "setup": "setup"}


def check(launch: LaunchConfig) -> None:
    """Raises ConfigError for options in launch.slurm that submitit doesn't know, or that contradict launch's own keys."""
    import submitit
    known = submitit.SlurmExecutor._valid_parameters()
    for key, value in launch.slurm.items():
        if key in OWN:
            raise ConfigError(f"launch.slurm.{key}: set launch.{OWN[key]} instead")
        if key not in known:
            raise ConfigError(f"unknown key 'launch.slurm.{key}': {did_you_mean(key, known - OWN.keys())}; "
                              "sbatch's other options go into launch.slurm.additional_parameters")
        if key == "additional_parameters" and not isinstance(value, dict):
            raise ConfigError(f"launch.slurm.additional_parameters: expected a mapping such as {{reservation: deadline}}, got {value!r}")
        if launch.gpus_per_task and asks_for_gpus(key, value):
            raise ConfigError(f"launch.slurm.{key}: launch.gpus_per_task asks for GPUs already; set launch.gpus_per_task to 0 to ask for them this way")


def asks_for_gpus(key: str, value) -> bool:
    """Whether an option under launch.slurm, sbatch's own in additional_parameters included, requests GPUs."""
    if key == "additional_parameters":
        return isinstance(value, dict) and any(asks_for_gpus(str(one).replace("-", "_"), inner) for one, inner in value.items())
    return key in ("gpus", "gpus_per_node", "gpus_per_socket", "gpus_per_task", "num_gpus") or (
        key in ("gres", "tres_per_task") and "gpu" in str(value))


def own_gpus(launch: LaunchConfig) -> bool:
    """Whether a job has GPUs without launch.gpus_per_task: asked for by the user's options, or shown by a line of launch.setup.

    The second is for clusters whose nodes come with their GPUs, which sbatch doesn't know.
    """
    return (any(asks_for_gpus(key, value) for key, value in launch.slurm.items())
            or any("CUDA_VISIBLE_DEVICES" in line for line in launch.setup))


def one_process(launch: LaunchConfig) -> LaunchConfig:
    """The same for work of a single process that needs no GPU. On one machine none is requested: what it starts sees them."""
    slurm = {key: value for key, value in launch.slurm.items() if not asks_for_gpus(key, value)}
    return dataclasses.replace(launch, nodes=1, tasks_per_node=1, gpus_per_task=int(launch.cluster != "slurm"), exclusive=False,
                               slurm=slurm)


def options(launch: LaunchConfig, folder: Path, name: str) -> dict:
    """The parameters of submitit's SlurmExecutor for `launch`; `folder` holds the job's snapshot of egokit."""
    check(launch)
    wanted = {
        "job_name": name, "nodes": launch.nodes, "ntasks_per_node": launch.tasks_per_node, "cpus_per_task": launch.cpus_per_task,
        "time": launch.timeout_minutes, "partition": launch.partition, "account": launch.account, "qos": launch.qos,
        "constraint": launch.constraint, "exclusive": launch.exclusive,
        # of the node, not of the task: each process sees all and takes its own, so that they reach each other's memory
        "gpus_per_node": launch.gpus_per_task * launch.tasks_per_node,
        "mem": f"{round(launch.mem_gb_per_task * launch.tasks_per_node * 1024)}MB" if launch.mem_gb_per_task else "0" if launch.exclusive else ""}
    asked = {key: value for key, value in wanted.items() if value}
    # time to save before the limit; a rank that fails ends the others
    asked |= {"signal_delay_s": 120, "srun_args": ["--kill-on-bad-exit=1"]} | launch.slurm
    again = shlex.join([sys.executable, "-m", "egokit.jobs.requeue", str(folder.resolve())])
    # the user's lines first: modules like to change PYTHONPATH. srun forgets cpus-per-task since Slurm 22.05.
    # The trap runs after srun: what that ended with decides whether the job is worth another try
    asked["setup"] = [
        *([] if launch.gpus_per_task or own_gpus(launch) else ["export CUDA_VISIBLE_DEVICES="]), *launch.setup,
        f"export PYTHONPATH={shlex.quote(str(folder.resolve() / 'code'))} PYTHONSAFEPATH=1",
        *(["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"] if launch.cpus_per_task else []),
        f"trap {shlex.quote(f'code=$?; [ $code = 0 ] || {again}; exit $code')} EXIT"]
    return asked


def executor(launch: LaunchConfig, folder: Path, name: str):
    """submitit's executor; pickles and logs go to folder/submitit."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # its script can be read where there is no SLURM, too

    made = Executor(folder.resolve() / "submitit", max_num_timeout=launch.requeues)
    made.update_parameters(**options(launch, folder, name))
    return made


def script(launch: LaunchConfig, folder: Path, name: str) -> str:
    """The text that `executor` hands to sbatch. Nothing is submitted or written."""
    made = executor(launch, folder, name)
    return made._make_submission_file_text(made._submitit_command_str, "")
