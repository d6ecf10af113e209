"""What a job of a run does in each of its processes: train, evaluate or extract."""
import contextlib
import hashlib
import math
import os
import platform
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import submitit
import torch

from egokit import tasks
from egokit.config.build import comparable, marked
from egokit.config.registry import restore
from egokit.config.schema import Config, LaunchConfig
from egokit.jobs import devices, requeue, slurm
from egokit.jobs.code_snapshot import code_sha256
from egokit.jobs.progress import ProgressFile
from egokit.model import checkpoints
from egokit.model.own_modules import attach
from egokit.runs.files import write_text
from egokit.runs.run_folder import DEVICES, Run
from egokit.train import distributed, loop, nodes
from egokit.train.batch_plan import plan_batch
from egokit.train.evaluate import evaluate as evaluate_task

# a training depends on all keys of these sections, an evaluation on those that the schema marks "scored"
TRAINING_SECTIONS = ("data.", "optim.", "train.")


@contextlib.contextmanager
def started(folder: Path, spec: dict, config: Config) -> Iterator[tuple[Run, torch.device, list[str]]]:
    """Make this process a rank of the job for the duration of the block: its device, its group, its run.

    Args:
        folder: the job's folder.
        spec: the content of its spec.json.
        config: the job's config.

    Yields:
        The run, this rank's device, and the description of each rank's device.
    """
    attempt, environment = requeue.attempt_id(), submitit.JobEnvironment()
    expect_processes(config.launch, environment.num_tasks)
    cpus = max(1, min(config.launch.cpus_per_task, len(os.sched_getaffinity(0))))
    torch.set_num_threads(int(os.environ.get("SLURM_CPUS_PER_TASK", cpus)))
    device = devices.rank_device(environment.local_rank, spec.get("gpus", []))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif config.launch.cluster == "slurm" and slurm.asks_for_gpus(config.launch):
        raise RuntimeError(f"the job asks for GPUs, but rank {environment.global_rank} on {socket.gethostname()} "
                           f"sees none: {devices.why_no_gpu()}; or ask for none, with launch.gpus_per_task=0, to "
                           "compute on CPUs")
    trains = spec["action"] in ("train", "profile")
    description = devices.describe_device(device, config.train.precision if trains else config.evaluate.precision)
    with distributed.joined(environment.global_rank, environment.num_tasks, folder / f"meeting-{attempt}",
                            local=config.launch.nodes == 1, device=device):
        if device.type == "cuda":
            expect_own_gpus(distributed.gather_objects((socket.gethostname(), devices.gpu_uuid(device.index))))
        run, rank_devices = Run(spec["run"]), distributed.gather_objects(description)
        if distributed.rank() == 0:
            run.claim(folder / "owner", attempt)
            write_text(folder / DEVICES, "\n".join(rank_devices))
            plan = (plan_batch(config, distributed.world_size()) if trains
                    else f"{spec['action']} {config.evaluate.batch_size} clips at once")
            print(f"plan: {plan}, on {devices.devices_text(rank_devices)}", flush=True)
        yield run, device, rank_devices


def work(folder: Path, spec: dict) -> None:
    """Do one rank's part of the job.

    Args:
        folder: the job's folder.
        spec: the content of its spec.json.
    """
    config, trains = restore(spec["config"], folder / "code"), spec["action"] == "train"
    with started(folder, spec, config) as (run, device, rank_devices):
        task = tasks.make(config, code=folder / "code")
        perform = {"train": loop.train, "evaluate": evaluate, "extract": extract}[spec["action"]]
        result = perform(config, task, run, spec["section"], device)
        if distributed.rank() == 0:
            # made once, because pre-training's reads its annotations each time
            scored = task.held_out() or task.validation() if trains else task
            if spec["action"] != "extract" and (chance := scored.chance()):
                run.write_metrics("chance", chance)
            origin = provenance(scored, spec, distributed.world_size(), type(task))
            origin["score"] = scored.score_of(result)
            told = {"failed": result["failed"]} if "failed" in result else {}
            run.write_metrics(spec["section"], result | origin | told | {"devices": rank_devices})


def evaluate(config: Config, task, run: Run, section: str, device) -> dict:
    """Evaluate the checkpoint `init`, save the outputs, and return the metrics."""
    began = time.perf_counter()
    callbacks = {"on_batch": ProgressFile(run.path / "jobs" / section)} if distributed.rank() == 0 else {}
    with checkpoints.read_by(nodes.once_a_node):
        model = task.initial_model("evaluate")
    fresh = attach(model, task)
    metrics, rows, prompts_KE = evaluate_task(model.to(device), task, **callbacks)
    if distributed.rank() == 0:
        task.save_outputs(run, section, rows, prompts_KE)
    metrics |= {"fresh_modules": fresh} if fresh else {}
    metrics |= {} if getattr(model, "fuses", True) else of_peer(model, config.init)
    return metrics | {"evaluation_seconds": metrics["seconds"], "seconds": time.perf_counter() - began}


def of_peer(model, init: str) -> dict[str, str]:
    """Return the family of another model than EgoVLPv2, and its file's MD5 sum, by which released files are known."""
    path = Path(init)
    if not path.is_file():
        return {"family": model.family}
    with path.open("rb") as file:
        return {"family": model.family, "init_md5": hashlib.file_digest(file, "md5").hexdigest()}


def extract(config: Config, task, run: Run, section: str, device) -> dict:
    """Extract the task's features, and return how many there are."""
    with checkpoints.read_by(nodes.once_a_node):
        model = task.initial_model("extract")
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
    for gpu in gpus:
        sharers = [str(rank) for rank, other in enumerate(gpus) if other == gpu]
        if len(sharers) > 1:
            raise RuntimeError(f"ranks {', '.join(sharers)} share one GPU of {gpu[0]}: set launch.tasks_per_node "
                               "to the number of GPUs of a node, and on SLURM request one for each "
                               "(launch.gpus_per_task: 1)")


def provenance(task, spec: dict, world: int, owner: type | None = None) -> dict:
    """Return what it takes to reproduce a job's result, for its section of metrics.json.

    Args:
        task: the task that was scored.
        spec: the content of the job's spec.json.
        world: the number of processes.
        owner: the class of the job's task, whose published numbers are recorded; by default that of `task`.
    """
    config = task.config
    entry = {"finished": True, "action": spec["action"], "task": config.task.name, "score": task.best,
             "init": task.origin(spec["action"]),
             "init_sha256": spec["init_sha256"], "processes": world, "precision": config.evaluate.precision,
             "versions": {"egokit": spec["version"], "code": code_sha256(), "torch": torch.__version__,
                          "python": platform.python_version()}}
    if spec["task_sha256"]:
        owner = owner or type(task)
        section = owner.actions().get(spec["action"])
        entry |= {"task_sha256": spec["task_sha256"], "published": {
            result.metric: result.published for result in owner.results() if result.section == section}}
    if spec["action"] != "extract":
        # evaluation aborts at the first unreadable sample, unless the task's metrics say how many have "failed"
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
    flat, marks = comparable(task.config), marked("scored")
    scored = {key: value for key, value in flat.items() if key in marks or key.startswith("task.")}
    if not trained:
        return scored
    # with `init`, the checkpoint gives the model's shape; the config only gives the image size and how it computes
    prefixes = (*TRAINING_SECTIONS, "model.half_residual" if task.config.init else "model.")
    train = task.config.train
    return scored | {key: value for key, value in flat.items() if key.startswith(prefixes)} | {
        "seed": task.config.seed, "selection.metric": task.best,
        "selection.split": task.selection_split,
        # without the one before training
        "selection.validations": 1 if task.reports_last else math.ceil(train.epochs / train.evaluate_epochs)}
