"""What tests that train share: a run of their own, waiting, and what must be equal in two runs."""
import time

from egokit.config.resolve import outputs_folder
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


def essential(run):
    kept = ("step", "loss", "egonce", "mlm", "itm", "lr", "grad_norm", "ensemble_inter", "ensemble_intra",
            "predictions")
    return [{key: event[key] for key in kept if key in event} for event in run.read_log()]
