"""How a job starts: its spec.json, the starter that hands it to submitit, and the callable that submitit runs.

starter.start_work writes FOLDER/spec.json and runs `python -m egokit.jobs.worker FOLDER/spec.json` in a session of its
own, with the snapshot of egokit on its path. That starter submits the job and ends, so that neither closing JupyterLab
nor Ctrl-C reaches the job. What the job does is the function that its spec names: run_job.work, notebook.batch.work or
prep.array.work.
"""
import faulthandler
import importlib
import json
import os
import shlex
import socket
import sys
from pathlib import Path

from egokit.config.registry import restore
from egokit.config.schema import LaunchConfig
from egokit.jobs import devices, requeue, slurm
from egokit.runs.files import write_text


class Work:
    """A job as a picklable callable; submitit calls it once in every process.

    Args:
        spec_path: the path of the job's spec.json. Its "function", "module:name", is called with the job's folder, the
            spec, and the arguments.
    """

    def __init__(self, spec_path: str):
        self.spec_path = spec_path

    def __call__(self, *arguments) -> None:
        import submitit
        faulthandler.enable()  # without it a crash in native code would look like a kill -9: no word in the log
        path = Path(self.spec_path)
        spec = json.loads(path.read_text())
        module, _, name = spec["function"].partition(":")
        with requeue.record_failure(path.parent, submitit.JobEnvironment().global_rank):
            getattr(importlib.import_module(module), name)(path.parent, spec, *arguments)

    def checkpoint(self, *arguments):
        """Return the job that submitit queues at a time limit or a preemption: the same one again.

        submitit calls this on rank 0 after SIGUSR2. Nothing is saved here: in a training, train/preemption.py holds the
        signal back until the step is done and its checkpoint is on disk. The new start resumes from the newest
        checkpoint, or from what an extraction or a preparation has written, and notebooks find the jobs that they
        submitted; an evaluation begins again.
        """
        import submitit
        return submitit.helpers.DelayedSubmission(Work(self.spec_path), *arguments)


def executor(launch: LaunchConfig, folder: Path, name: str):
    """Return submitit's executor for a launch config; pickles and logs go to folder/submitit."""
    import submitit
    if launch.cluster == "slurm":
        return slurm.executor(launch, folder, name)
    # submitit hides all GPUs from local processes that ask for none, and shows the first ones to others. Here they see
    # the caller's GPUs instead, by a shell line before Python. submitit's `setup` won't do: some shells stay as the
    # job's parent and some don't, so that the job's id may be the shell's process id. This shell becomes the process
    visible = os.environ.get(devices.VISIBLE_DEVICES)
    set_visible = f"unset {devices.VISIBLE_DEVICES}" if launch.gpus_per_task and visible is None else (
        f"export {devices.VISIBLE_DEVICES}={shlex.quote(visible if launch.gpus_per_task else '')}")
    python = shlex.join(["sh", "-c", f'{set_visible}; exec "$0" "$@"', sys.executable])
    local_executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=launch.cluster,
                                           local_max_num_timeout=launch.requeues, local_python=python)
    local_executor.update_parameters(nodes=launch.nodes, tasks_per_node=launch.tasks_per_node,
                                     cpus_per_task=max(1, launch.cpus_per_task), timeout_min=launch.timeout_minutes,
                                     name=name)
    return local_executor


def start(spec_path: str) -> None:
    """Submit the job of a spec file, and record in job.json beside it how to find the job again.

    Args:
        spec_path: the path of spec.json: "name" (the job's in SLURM), "config" (only its `launch` is read here),
            "function" (see Work), and for an array of jobs "array", the argument of each. An array whose jobs have
            specs of their own has "jobs" instead, their folders; job.json is then written in each of these, too.
    """
    folder, spec = Path(spec_path).parent, json.loads(Path(spec_path).read_text())
    launch, work = restore(spec["config"], folder / "code").launch, Work(spec_path)
    if "jobs" in spec:
        array = [Path(job) for job in spec["jobs"]]
        job_ids = slurm.submit_array(launch, folder, spec["name"], array, [Work(f"{job}/spec.json") for job in array])
        for job, job_id in zip([*array, folder], [*job_ids, job_ids[0].split("_")[0]], strict=True):
            write_text(job / "job.json", json.dumps({"cluster": launch.cluster, "job_id": job_id,
                                                     "job_ids": [job_id], "host": socket.gethostname()}))
        return
    submitter = executor(launch, folder, spec["name"])
    jobs = submitter.map_array(work, spec["array"]) if "array" in spec else [submitter.submit(work)]
    job_ids = [job.job_id for job in jobs]
    # SLURM knows an array by the part before "_"
    write_text(folder / "job.json", json.dumps({"cluster": launch.cluster, "job_id": job_ids[0].split("_")[0],
                                                "job_ids": job_ids, "host": socket.gethostname()}))


if __name__ == "__main__":
    from egokit.jobs.worker import start as start_from_module  # pickled by the name egokit.jobs.worker, not __main__
    start_from_module(sys.argv[1])
