"""What runs inside a job's processes, and the starter that hands it to submitit. The notebook's side is launch.py's.

`python -m egokit.jobs.worker SPEC` is run by launch.submit in a session of its own, with the snapshot of egokit on its path:
it submits the job and leaves, so neither closing JupyterLab nor Ctrl-C reaches the job.
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

from egokit.config.build import build, comparable, to_dict
from egokit.config.schema import Config, LaunchConfig
from egokit.jobs import devices, requeue, slurm
from egokit.runs.files import write_text
from egokit.runs.run_folder import DEVICES, Run
from egokit.train.batch_plan import plan_batch

# what an evaluation depends on, beside its checkpoint and its data; training on these and all of the sections after them
EVALUATED = ("model.image_size", "data.eval_frames", "data.eval_resize", "data.eval_max_tokens", "data.reader",
             "evaluate.precision", "evaluate.dual_softmax")
SECTIONS = ("data.", "optim.", "train.")


class RunJob:
    """A picklable description of one job; submitit calls it once in every process."""

    def __init__(self, spec: str):
        self.spec = spec

    def __call__(self) -> None:
        import submitit
        environment = submitit.JobEnvironment()
        with requeue.record_failure(Path(self.spec).parent, environment.global_rank):
            self.work(environment)

    def work(self, environment) -> None:
        """One rank's part, in submitit's environment."""
        import torch

        from egokit import tasks
        from egokit.train import distributed
        spec = json.loads(Path(self.spec).read_text())
        config, folder, attempt = build(Config, spec["config"]), Path(self.spec).parent, requeue.attempt()
        expect_processes(config.launch, environment.num_tasks)
        cpus = max(1, min(config.launch.cpus_per_task, len(os.sched_getaffinity(0))))
        torch.set_num_threads(int(os.environ.get("SLURM_CPUS_PER_TASK", cpus)))
        device = devices.of_rank(environment.local_rank, spec.get("gpus", []))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif config.launch.cluster == "slurm" and devices.asks_for_gpus(config.launch):
            raise RuntimeError(f"the job asks for GPUs, but rank {environment.global_rank} on {socket.gethostname()} sees none: "
                               f"{devices.why_no_gpu()}; or ask for none, with launch.gpus_per_task=0, to compute on CPUs")
        train = spec["action"] == "train"
        described = devices.describe(device, config.train.precision if train else config.evaluate.precision)
        with distributed.joined(environment.global_rank, environment.num_tasks, folder / f"meeting-{attempt}",
                         local=config.launch.nodes == 1, device=device):
            if device.type == "cuda":
                expect_own_gpus(distributed.gather_objects((socket.gethostname(), devices.uuid_of(device.index))))
            run, ranks = Run(spec["run"]), distributed.gather_objects(described)
            if distributed.rank() == 0:
                run.claim(folder / "owner", attempt)
                write_text(folder / DEVICES, "\n".join(ranks))
                work = plan_batch(config, distributed.world_size()) if train else f"{spec['action']} {config.evaluate.batch_size} clips at once"
                print(f"plan: {work}, on {devices.devices_text(ranks)}", flush=True)
            task = tasks.make(config, code=folder / "code")
            result = getattr(self, spec["action"])(config, task, run, spec["section"], device)
            if distributed.rank() == 0:
                scored = task.validation()  # pre-training's reads its annotations anew each time
                if chance := scored.chance():
                    run.write_metrics("chance", chance)
                run.write_metrics(spec["section"], result | provenance(scored, spec, distributed.world_size()) | {"devices": ranks})

    def checkpoint(self):
        """submitit's call at a time limit or preemption: the same job again; it resumes from its newest checkpoint."""
        import submitit
        return submitit.helpers.DelayedSubmission(RunJob(self.spec))

    @staticmethod
    def train(config, task, run, section, device) -> dict:
        from egokit.train.loop import train
        return train(config, task, run, section, device)

    @staticmethod
    def evaluate(config, task, run, section, device) -> dict:
        from egokit.jobs.progress import ProgressFile
        from egokit.train import distributed
        from egokit.train.evaluate import evaluate
        from egokit.train.loop import initial_model
        began = time.perf_counter()
        told = {"on_batch": ProgressFile(run.path / "jobs" / section)} if distributed.rank() == 0 else {}
        model = initial_model(config, frames=config.data.eval_frames)
        metrics, rows, prompts_KE = evaluate(model.to(device), task, **told)
        if distributed.rank() == 0:
            task.save_outputs(run, section, rows, prompts_KE)
        return metrics | {"evaluation_seconds": metrics["seconds"], "seconds": time.perf_counter() - began}

    @staticmethod
    def extract(config, task, run, section, device) -> dict:
        from egokit.train.loop import initial_model
        return task.extract(initial_model(config).to(device).eval(), run)


def expect_processes(launch: LaunchConfig, started: int) -> None:
    """The batch is spread over the processes that the config says: the job must have as many."""
    expected = launch.nodes * launch.tasks_per_node
    if started != expected:
        raise RuntimeError(f"{started} process{'es were' if started > 1 else ' was'} started, but launch.nodes={launch.nodes} x "
                           f"launch.tasks_per_node={launch.tasks_per_node} is {expected}: correct them in the site's file, and leave ntasks, "
                           "ntasks_per_node and nodes out of launch.slurm")


def expect_own_gpus(gpus: list[tuple[str, str]]) -> None:
    """gpus: (host, the GPU's UUID) of each rank. Two ranks on one GPU would wait for each other for ever."""
    ranks: dict[tuple[str, str], list[int]] = {}
    for rank, gpu in enumerate(gpus):
        ranks.setdefault(gpu, []).append(rank)
    shared = {gpu: together for gpu, together in ranks.items() if len(together) > 1}
    if shared:
        (host, _), together = next(iter(shared.items()))
        raise RuntimeError(f"ranks {', '.join(map(str, together))} share one GPU of {host}: set launch.tasks_per_node to the number of "
                           "GPUs of a node, and on SLURM request one for each (launch.gpus_per_task: 1)")


def provenance(task, spec: dict, world: int) -> dict:
    """What a figure needs to be made again. task: the one that was scored."""
    import torch

    from egokit.model import checkpoints
    config = task.config
    found = {"finished": True, "action": spec["action"], "task": spec["config"]["task"],
             "init": str(checkpoints.find(config.init)) if config.init else "",
             "init_sha256": spec["init_sha256"], "processes": world, "precision": config.evaluate.precision,
             "versions": {"egokit": spec["version"], "torch": torch.__version__, "python": platform.python_version()}}
    if spec["task_sha256"]:
        found |= {"task_sha256": spec["task_sha256"], "published": task.published}
    if spec["action"] != "extract":  # scoring ends at the first sample that can't be read, so in what is written none failed
        found |= {"expected": task.num_rows() // task.rows_per_sample, "failed": 0, "frames": config.data.eval_frames,
                  "toy": config.site.toy, "data": {path.name: checkpoints.fingerprint(path) for path in task.tables()},
                  "recipe": recipe(task, spec["action"] == "train")}
    return found


def recipe(task, trained: bool) -> dict:
    """What the figures of a task depend on, by the config's keys; of training also how its checkpoint was chosen."""
    config = comparable(to_dict(task.config))
    flat = {f"{section}.{key}": value for section, values in config.items() if isinstance(values, dict) for key, value in values.items()}
    if not trained:
        return {key: flat[key] for key in EVALUATED}
    shape = () if task.config.init else ("model.",)  # of a checkpoint's, the config says only the size of a frame
    train = task.config.train
    return {key: value for key, value in flat.items() if key in EVALUATED or key.startswith((*SECTIONS, *shape))} | {
        "seed": task.config.seed, "selection.metric": task.best, "selection.split": "test",  # Task.validation's only one
        "selection.validations": math.ceil(train.epochs / train.evaluate_epochs)}  # the one before training doesn't compete


def executor(launch: LaunchConfig, folder: Path, name: str):
    """submitit's executor for `launch`; pickles and logs go to folder/submitit."""
    import submitit
    if launch.cluster == "slurm":
        return slurm.executor(launch, folder, name)
    # submitit hides all GPUs from local processes that ask for none, and shows those from number 0 on to others: theirs are the
    # caller's instead. Not by submitit's `setup`: its shell lives on beside the job in some shells and not in others, and the job's
    # number is that of its process. This one becomes the process
    seen = os.environ.get(devices.VARIABLE)
    shown = f"unset {devices.VARIABLE}" if launch.gpus_per_task and seen is None else (
        f"export {devices.VARIABLE}={shlex.quote(seen if launch.gpus_per_task else '')}")
    executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=launch.cluster, local_max_num_timeout=launch.requeues,
                                     local_python=shlex.join(["sh", "-c", f'{shown}; exec "$0" "$@"', sys.executable]))
    executor.update_parameters(nodes=launch.nodes, tasks_per_node=launch.tasks_per_node, cpus_per_task=max(1, launch.cpus_per_task),
                               timeout_min=launch.timeout_minutes, name=name)
    return executor


def submit(launch: LaunchConfig, folder: Path, name: str, call) -> None:
    """Submit `call`, and write down in folder/job.json what it takes to find the job again."""
    job = executor(launch, folder, name).submit(call)
    write_text(folder / "job.json", json.dumps({"cluster": launch.cluster, "job_id": job.job_id, "host": socket.gethostname()}))


def start(spec_path: str) -> None:
    """Submit the job of a spec."""
    folder = Path(spec_path).parent
    submit(build(Config, json.loads(Path(spec_path).read_text())["config"]).launch, folder, f"egokit-{folder.name}", RunJob(spec_path))


if __name__ == "__main__":
    from egokit.jobs.worker import start as start_from_module  # pickled by the name egokit.jobs.worker, not __main__
    start_from_module(sys.argv[1])
