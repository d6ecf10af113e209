"""One rank of test_slow.py: a few steps in which rank 1 computes slowly (DDP), or reads slowly (micro-batches).

Rank 0 prints the verdict on its log, and the log's steps.
"""
import itertools
import json
import os
import sys
import time
from pathlib import Path

import torch

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
os.environ["EGOKIT_HOME"] = sys.argv[4]
torch.set_num_threads(1)

from conftest import MODEL, SMALL  # noqa: E402

from egokit import tasks  # noqa: E402
from egokit.config.resolve import resolve  # noqa: E402
from egokit.runs.bottleneck import verdict  # noqa: E402
from egokit.runs.log import History  # noqa: E402
from egokit.runs.run_folder import Run  # noqa: E402
from egokit.train import distributed  # noqa: E402
from egokit.train.loop import Trainer  # noqa: E402

STEPS, PAUSE, results = 6, 0.6, {}


def slowly(function):
    return lambda *arguments: time.sleep(PAUSE) or function(*arguments)


with distributed.joined(rank, world, folder / "meeting", local=True):
    for name, micro_batch in (("computes", 0), ("reads", 1)):
        config = resolve("toy/pretrain", "tiny", f"{SMALL} {MODEL} launch.tasks_per_node=2 train.batch_size=4 "
                                                 f"train.micro_batch={micro_batch}")
        task, run = tasks.make(config), Run(folder / f"{name}{rank}")
        if rank == 1 and name == "computes":
            task.loss = slowly(task.loss)
        if rank == 1 and name == "reads":
            task.collate = slowly(task.collate)
        trainer = Trainer(config, task, run, "test", torch.device("cpu"))
        trainer.log_machine()
        with trainer.clock.running():
            trainer.epoch(0, itertools.islice(trainer.loader(), STEPS))
        history = History(run.path)
        history.update()
        results[name] = verdict(history), [event for event in run.read_log() if event["kind"] == "step"]
print(json.dumps(results))
