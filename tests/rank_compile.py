"""One rank of test_compile.py: a training on several ranks, with compiled blocks.

Its last line is JSON: the losses, the number of compiled graphs and what the backend was given.
"""
import functools
import json
import os
import sys
from pathlib import Path

import torch

rank, world, folder, project = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
os.environ["EGOKIT_HOME"] = project
torch.set_num_threads(1)

import pytest  # noqa: E402
from compiling import breaks, graphs, recorder  # noqa: E402
from conftest import MODEL, SMALL  # noqa: E402

from egokit import tasks  # noqa: E402
from egokit.config.resolve import resolve  # noqa: E402
from egokit.runs.run_folder import Run  # noqa: E402
from egokit.train import distributed  # noqa: E402
from egokit.train.loop import train  # noqa: E402

given = []


def backend(graph, inputs):
    given.append(graph)
    return graph.forward


# buckets of 2 kB: each block fills several, where DDP's optimizer would split it
parallel = torch.nn.parallel.DistributedDataParallel
torch.nn.parallel.DistributedDataParallel = functools.partial(parallel, bucket_cap_mb=0.002)
with distributed.joined(rank, world, folder / "meeting", local=True), pytest.MonkeyPatch.context() as patch:
    made = recorder(patch, backend)
    config = resolve("toy/ek100_finetune", "tiny", f"{SMALL} {MODEL} {' '.join(sys.argv[5:])}")
    run = Run(folder / "run")
    train(config, tasks.make(config), run, "finetune", torch.device("cpu"))
losses = [event["loss"] for event in run.read_log() if event["kind"] == "step"]
counted = graphs(made[0]) if made else {}
# the first of what the backend was given is compile_blocks' own trial
print(json.dumps({"losses": losses, "given": len(given) - 1, "breaks": breaks(),
                  "graphs": {kind: sum(counts.values()) for kind, counts in counted.items()}}))
