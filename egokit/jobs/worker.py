"""What runs inside a job's processes, and the starter that hands it to submitit.

launch.submit runs `python -m egokit.jobs.worker SPEC` in a session of its own, with the snapshot of egokit on its path.
That starter submits the job and ends, so that neither closing JupyterLab nor Ctrl-C reaches the job.
"""
from __future__ import annotations

import json
import math
import os
import platform
import shlex
import socket
import sys
import time
from pathlib import Path

from egokit.config.build import comparable, marked
from egokit.config.registry import restore
from egokit.config.schema import LaunchConfig
from egokit.jobs import devices, requeue, slurm
from egokit.runs.files import write_text
from egokit.runs.run_folder import DEVICES, Run
from egokit.train.batch_plan import plan_batch

# a training depends on all keys of these sections, an evaluation on those that the schema marks "scored"
TRAINING_SECTIONS = ("data.", "optim.", "train.")


class RunJob:
    """A picklable description of one job; submitit calls it once in every process.

    Args:
        spec: the path of the job's spec.json.
    """

    def __init__(self, spec: str):
        self.spec = spec

    def __call__(self) -> None:
        import submitit
        environment = submitit.JobEnvironment()
        with requeue.record_failure(Path(self.spec).parent, environment.global_rank):
            self.work(environment)

    def work(self, environment) -> None:
        """Do one rank's part of the job, in submitit's JobEnvironment."""
        import torch

        from egokit import tasks
        from egokit.train import distributed
        spec = json.loads(Path(self.spec).read_text())
        folder, attempt = Path(self.spec).parent, requeue.attempt_id()
        config = restore(spec["config"], folder / "code")
        expect_processes(config.launch, environment.num_tasks)
        cpus = max(1, min(config.launch.cpus_per_task, len(os.sched_getaffinity(0))))
        torch.set_num_threads(int(os.environ.get("SLURM_CPUS_PER_TASK", cpus)))
        device = devices.rank_device(environment.local_rank, spec.get("gpus", []))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif config.launch.cluster == "slurm" and devices.asks_for_gpus(config.launch):
            raise RuntimeError(f"the job asks for GPUs, but rank {environment.global_rank} on {socket.gethostname()} "
                               f"sees none: {devices.why_no_gpu()}; or ask for none, with launch.gpus_per_task=0, to "
                               "compute on CPUs")
        train = spec["action"] == "train"
        description = devices.describe_device(device, config.train.precision if train else config.evaluate.precision)
        with distributed.joined(environment.global_rank, environment.num_tasks, folder / f"meeting-{attempt}",
                                local=config.launch.nodes == 1, device=device):
            if device.type == "cuda":
                expect_own_gpus(distributed.gather_objects((socket.gethostname(), devices.gpu_uuid(device.index))))
            run, rank_devices = Run(spec["run"]), distributed.gather_objects(description)
            if distributed.rank() == 0:
                run.claim(folder / "owner", attempt)
                write_text(folder / DEVICES, "\n".join(rank_devices))
                plan = (plan_batch(config, distributed.world_size()) if train
                        else f"{spec['action']} {config.evaluate.batch_size} clips at once")
                print(f"plan: {plan}, on {devices.devices_text(rank_devices)}", flush=True)
            task = tasks.make(config, code=folder / "code")
            result = getattr(self, spec["action"])(config, task, run, spec["section"], device)
            if distributed.rank() == 0:
                scored = task.validation()  # made once, because pre-training's reads its annotations each time
                if chance := scored.chance():
                    run.write_metrics("chance", chance)
                origin = provenance(scored, spec, distributed.world_size())
                run.write_metrics(spec["section"], result | origin | {"devices": rank_devices})

    def checkpoint(self):
        """Return the job that submitit queues at a time limit or a preemption: the same one again.

        submitit calls this on rank 0 after SIGUSR2. Nothing is saved here: in a training, train/preemption.py holds the
        signal back until the step is done and its checkpoint is on disk. The new start resumes from the newest
        checkpoint, or from the features that an extraction has written; an evaluation begins again.
        """
        import submitit
        return submitit.helpers.DelayedSubmission(RunJob(self.spec))

    @staticmethod
    def train(config, task, run, section, device) -> dict:
        """Train, and return the best validation metrics."""
        from egokit.train.loop import train
        return train(config, task, run, section, device)

    @staticmethod
    def evaluate(config, task, run, section, device) -> dict:
        """Evaluate the checkpoint `init`, save the outputs, and return the metrics."""
        from egokit.jobs.progress import ProgressFile
        from egokit.model.own_modules import attach
        from egokit.train import distributed
        from egokit.train.evaluate import evaluate
        from egokit.train.loop import initial_model
        began = time.perf_counter()
        callbacks = {"on_batch": ProgressFile(run.path / "jobs" / section)} if distributed.rank() == 0 else {}
        model = initial_model(config, frames=config.data.eval_frames)
        fresh = attach(model, task)
        metrics, rows, prompts_KE = evaluate(model.to(device), task, **callbacks)
        if distributed.rank() == 0:
            task.save_outputs(run, section, rows, prompts_KE)
        metrics |= {"fresh_modules": fresh} if fresh else {}
        return metrics | {"evaluation_seconds": metrics["seconds"], "seconds": time.perf_counter() - began}

    @staticmethod
    def extract(config, task, run, section, device) -> dict:
        """Extract the task's features, and return how many there are."""
        from egokit.model.own_modules import attach
        from egokit.train.loop import initial_model
        model = initial_model(config)
        attach(model, task)
        return task.extract(model.to(device).eval(), run)


def expect_processes(launch: LaunchConfig, started: int) -> None:
    """Raise RuntimeError unless as many processes were started as the batch is spread over."""
    expected = launch.nodes * launch.tasks_per_node
    if started != expected:
        raise RuntimeError(f"{started} process{'es were' if started > 1 else ' was'} started, but "
                           f"launch.nodes={launch.nodes} x launch.tasks_per_node={launch.tasks_per_node} is "
                           f"{expected}: correct them in the site's file, and leave ntasks, ntasks_per_node and nodes "
                           "out of launch.slurm")


def expect_own_gpus(gpus: list[tuple[str, str]]) -> None:
    """Raise RuntimeError if two ranks share a GPU, on which they would deadlock.

    Args:
        gpus: (host, the GPU's UUID) of each rank.
    """
    ranks: dict[tuple[str, str], list[int]] = {}
    for rank, gpu in enumerate(gpus):
        ranks.setdefault(gpu, []).append(rank)
    shared = {gpu: sharers for gpu, sharers in ranks.items() if len(sharers) > 1}
    if shared:
        (host, _), sharers = next(iter(shared.items()))
        raise RuntimeError(f"ranks {', '.join(map(str, sharers))} share one GPU of {host}: set launch.tasks_per_node "
                           "to the number of GPUs of a node, and on SLURM request one for each "
                           "(launch.gpus_per_task: 1)")


def provenance(task, spec: dict, world: int) -> dict:
    """Return what it takes to reproduce a job's result, for its section of metrics.json.

    Args:
        task: the task that was scored.
        spec: the content of the job's spec.json.
        world: the number of processes.
    """
    import torch

    from egokit.model import checkpoints
    config = task.config
    entry = {"finished": True, "action": spec["action"], "task": config.task.name,
             "init": str(checkpoints.find(config.init)) if config.init else "",
             "init_sha256": spec["init_sha256"], "processes": world, "precision": config.evaluate.precision,
             "versions": {"egokit": spec["version"], "torch": torch.__version__, "python": platform.python_version()}}
    if spec["task_sha256"]:
        entry |= {"task_sha256": spec["task_sha256"], "published": {
            result.metric: result.published for result in task.results() if result.section == spec["section"]}}
    if spec["action"] != "extract":
        # evaluation aborts at the first unreadable sample, so a written result has 0 failures
        entry |= {"expected": task.num_rows() // task.rows_per_sample, "failed": 0, "frames": config.data.eval_frames,
                  "toy": config.site.toy, "data": {path.name: checkpoints.fingerprint(path) for path in task.tables()},
                  "recipe": recipe(task, spec["action"] == "train")}
    return entry


def recipe(task, trained: bool) -> dict:
    """Return the config's keys that a result depends on, with their values.

    Args:
        task: the task that was scored.
        trained: whether the job trained; then the way its checkpoint was selected is included.
    """
    flat, own = comparable(task.config), ("task.",)
    scored = {key: value for key, value in flat.items() if key in marked("scored") or key.startswith(own)}
    if not trained:
        return scored
    # with `init`, the checkpoint gives the model's shape; the config only gives the image size
    prefixes = TRAINING_SECTIONS if task.config.init else (*TRAINING_SECTIONS, "model.")
    train = task.config.train
    return scored | {key: value for key, value in flat.items() if key.startswith(prefixes)} | {
        "seed": task.config.seed, "selection.metric": task.best,
        "selection.split": "test",  # Task.validation has no other
        "selection.validations": math.ceil(train.epochs / train.evaluate_epochs)}  # without the one before training


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


def submit(launch: LaunchConfig, folder: Path, name: str, call) -> None:
    """Submit a picklable callable, and record in folder/job.json how to find the job again."""
    job = executor(launch, folder, name).submit(call)
    record = {"cluster": launch.cluster, "job_id": job.job_id, "host": socket.gethostname()}
    write_text(folder / "job.json", json.dumps(record))


def start(spec_path: str) -> None:
    """Submit the job that a spec file describes."""
    folder = Path(spec_path).parent
    config = restore(json.loads(Path(spec_path).read_text())["config"], folder / "code")
    submit(config.launch, folder, f"egokit-{folder.name}", RunJob(spec_path))


if __name__ == "__main__":
    from egokit.jobs.worker import start as start_from_module  # pickled by the name egokit.jobs.worker, not __main__
    start_from_module(sys.argv[1])
