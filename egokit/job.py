"""What runs inside a job's processes, and the starter that hands it to submitit. The notebook's side is launch.py's.

`python -m egokit.job SPEC` is run by launch.submit in a session of its own, with the snapshot of egokit on its path:
it submits the job and leaves, so neither closing JupyterLab nor Ctrl-C reaches the job.
"""
from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path

from egokit.config import Config, LaunchConfig
from egokit.resolve import build
from egokit.runs import Run, write_text

ACTIONS = ("train", "evaluate", "extract")


class Job:
    """A picklable description of one job; submitit calls it once in every process."""

    def __init__(self, spec: str):
        self.spec = spec

    def __call__(self) -> None:
        import submitit
        import torch

        from egokit import dist, tasks
        spec = json.loads(Path(self.spec).read_text())
        config = build(Config, spec["config"])
        folder, environment = Path(self.spec).parent, submitit.JobEnvironment()
        torch.set_num_threads(int(os.environ.get("SLURM_CPUS_PER_TASK", config.launch.cpus)))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", environment.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
        attempt = f"{environment.job_id}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"
        with dist.joined(environment.global_rank, environment.num_tasks, folder / f"meeting-{attempt}",
                         local=config.launch.nodes == 1):
            run = Run(spec["run"])
            task = tasks.make(config)
            result = getattr(self, spec["action"])(config, task, run, spec["section"], device)
            if dist.rank() == 0:
                scored = task.validation()  # pre-training's reads its annotations anew each time
                if chance := scored.chance():
                    run.write_metrics("chance", chance)
                run.write_metrics(spec["section"], result | provenance(scored, spec, dist.world_size()))

    def checkpoint(self):
        """submitit's call at a time limit or preemption: the same job again; it resumes from its newest checkpoint."""
        import submitit
        return submitit.helpers.DelayedSubmission(Job(self.spec))

    @staticmethod
    def train(config, task, run, section, device) -> dict:
        from egokit.train import train
        return train(config, task, run, section, device)

    @staticmethod
    def evaluate(config, task, run, section, device) -> dict:
        from egokit import dist
        from egokit.evaluate import evaluate
        from egokit.train import initial_model
        model = initial_model(config, frames=config.data.evaluation_frames)
        metrics, rows, prompts_KE = evaluate(model.to(device), task)
        if dist.rank() == 0:
            task.keep(run, section, rows, prompts_KE)
        return metrics

    @staticmethod
    def extract(config, task, run, section, device) -> dict:
        from egokit.train import initial_model
        return task.extract(initial_model(config).to(device).eval(), run)


def provenance(task, spec: dict, world: int) -> dict:
    """What a figure needs to be made again. task: the one that was scored."""
    import torch

    from egokit import checkpoints
    config, tables = task.config, task.tables()
    found = {"finished": True, "action": spec["action"], "init": str(checkpoints.find(config.init)) if config.init else "",
             "init_sha256": spec["init_sha256"], "processes": world, "precision": config.evaluate.precision,
             "versions": {"egokit": spec["version"], "torch": torch.__version__, "python": platform.python_version()}}
    if tables:  # it has been scored; that ends at the first sample that can't be read, so in what is written none failed
        found |= {"expected": task.expected(), "failed": 0, "frames": config.data.evaluation_frames, "toy": config.site.toy,
                  "data": {path.name: checkpoints.fingerprint(path) for path in tables}} | task.recipe(spec["action"] == "train")
    return found


def executor(launch: LaunchConfig, folder: Path, name: str):
    """submitit's executor for `launch`; pickles and logs go to folder/submitit."""
    import submitit
    executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=launch.cluster)
    executor.update_parameters(nodes=launch.nodes, tasks_per_node=launch.processes, cpus_per_task=launch.cpus,
                               timeout_min=launch.timeout_minutes, name=name)
    if launch.cluster == "slurm":
        path = os.environ.get("PYTHONPATH", "")
        # srun forgets cpus-per-task since Slurm 22.05; a rank that fails ends the others; time to save before the limit
        options = {"signal_delay_s": 120, "srun_args": ["--kill-on-bad-exit=1"]} | launch.slurm
        executor.update_parameters(slurm_setup=[f"export PYTHONPATH={shlex.quote(path)} PYTHONSAFEPATH=1",
                                                "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"],
                                   **{f"slurm_{key}": value for key, value in options.items()})
    return executor


def start(spec_path: str) -> None:
    """Submit the job of a spec and write down what it takes to find it again."""
    spec_file = Path(spec_path)
    launch = build(Config, json.loads(spec_file.read_text())["config"]).launch
    job = executor(launch, spec_file.parent, f"egokit-{spec_file.parent.name}").submit(Job(str(spec_file)))
    write_text(spec_file.parent / "job.json", json.dumps({"cluster": launch.cluster, "job_id": job.job_id}))


if __name__ == "__main__":
    from egokit.job import start as start_from_module  # pickled by the name egokit.job, not __main__
    start_from_module(sys.argv[1])
