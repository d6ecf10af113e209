"""What tests that train share: a run of their own, waiting, and what must be equal in two runs."""
import time
from pathlib import Path

from egokit.config.resolve import outputs_folder
from egokit.jobs import status
from egokit.model import checkpoints
from egokit.runs.run_folder import Run


def run_of(request):
    """Return a run of a test's own."""
    return Run(outputs_folder() / "tests" / request.node.name.replace("[", "-").replace("]", ""))


def wait_for(condition, seconds=120, pause=0.02):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(pause)


def weights_of(run):
    return checkpoints.read(checkpoints.latest(run.checkpoints))["state_dict"]


def rank_processes(handle, variable="SLURM_PROCID") -> dict[int, int]:
    """Return the process id of each rank of the job, of any attempt; the variable holds a process's rank."""
    ranks = {}
    for process in status.processes(handle.folder):
        settings = Path("/proc", str(process), "environ").read_text(errors="replace").split("\0")
        environment = dict(setting.partition("=")[::2] for setting in settings)
        if variable in environment:
            ranks[int(environment[variable])] = process
    return ranks


def essential(run):
    kept = ("step", "loss", "egonce", "mlm", "itm", "lr", "grad_norm", "ensemble_inter", "ensemble_intra",
            "predictions")
    return [{key: event[key] for key in kept if key in event} for event in run.read_log()]
