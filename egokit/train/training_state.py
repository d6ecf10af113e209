"""What a step's checkpoint holds beside the weights, and how a training goes on from it."""
import time

from egokit.model import checkpoints, weights
from egokit.model.own_modules import current
from egokit.train import distributed, nodes

STATE = {"state_dict": dict, "optimizer": dict, "scaler": dict, "step": int, "validated": int, "skipped": int,
         "recipe": dict, "best": (dict, type(None))}  # of a training, in its checkpoints; earlier versions had no more


class TrainingError(RuntimeError):
    """Training can't go on; the message says where and why."""


def content(trainer) -> dict:
    """Return what a step's checkpoint of a `Trainer` holds beside the weights."""
    return {"optimizer": trainer.optimizer.state_dict(), "scaler": trainer.scaler.state_dict(), "step": trainer.step,
            "ema": trainer.average.state_dict(),
            "validated": trainer.validated, "best": trainer.best, "skipped": trainer.skipped, "bad": trainer.bad,
            "bad_in_epoch": trainer.bad_in_epoch, "world_size": distributed.world_size(),
            "seconds": time.perf_counter() - trainer.began,
            "recipe": {"task": trainer.config.task.name, "steps": trainer.steps,
                       "batch_size": trainer.config.train.batch_size}}


def resume(trainer) -> None:
    """Let a `Trainer` go on from its run's newest whole checkpoint, if there is one; it must be of the same recipe.

    One rank of each node reads it. The events that were logged after it are dropped, as they will be logged again.

    Raises:
        TrainingError: it is of another recipe, or the ranks see different files.
        WeightsError: all checkpoints are damaged.
    """
    folder = trainer.run.checkpoints
    found = nodes.once_a_node(lambda: checkpoints.read_newest(folder, STATE))
    if distributed.rank() == 0:
        for part in folder.glob(".*.part.pt"):  # left by a kill in the middle of a write
            part.unlink()
    steps = set(distributed.gather_objects(found and found[1]["step"]))  # before any rank restores or begins
    if len(steps) > 1:
        raise TrainingError(f"{folder}: ranks read different files; is it one folder on all nodes?")
    if found is not None:
        _restore(trainer, *found)
    if distributed.rank() == 0:
        drop_later_events(trainer)


def drop_later_events(trainer) -> None:
    """Drop what was logged after a trainer's checkpoint, as it will be logged again; an event without a step stays."""
    trainer.run.truncate_log(lambda event: event.get("step", 0) <= (
        trainer.validated if event["kind"] == "validation" else trainer.step))


def _restore(trainer, path, saved: dict, damaged: list) -> None:
    """Give a trainer the state of a checkpoint, and set the damaged ones that are newer aside."""
    if saved["recipe"] != (recipe := content(trainer)["recipe"]):
        raise TrainingError(f"{path} belongs to another recipe ({saved['recipe']}, now {recipe}): "
                            "choose another run name, or delete the run's folder to start again")
    saved["state_dict"] = current(saved["state_dict"])
    weights.check(trainer.model, saved["state_dict"], [], path)
    with checkpoints.restoring(path):
        trainer.model.load_state_dict(saved["state_dict"])
        trainer.optimizer.load_state_dict(saved["optimizer"])
        trainer.scaler.load_state_dict(saved["scaler"])
        trainer.average.load_state_dict(current(saved.get("ema", {})))  # earlier versions had none
    trainer.step, trainer.best, trainer.skipped = saved["step"], saved["best"], saved["skipped"]
    trainer.validated = saved["validated"]
    trainer.bad, trainer.bad_in_epoch = saved.get("bad", 0), saved.get("bad_in_epoch", 0)
    trainer.began -= saved.get("seconds", 0)  # seconds are those of all starts together
    for newer in damaged if distributed.rank() == 0 else []:  # they must not count any more
        print(f"{newer} is damaged, and is {newer.name}.damaged now: the run goes on from {path.name}", flush=True)
        newer.rename(f"{newer}.damaged")
