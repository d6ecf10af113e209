"""One rank of test_evaluate.py: scores of recipes for several batch sizes.

Rank 0 writes them to a file; each rank prints the samples that it has read.
"""
import json
import os
import sys
from pathlib import Path

import torch

rank, world, folder, project = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
recipes, sizes = sys.argv[5].split(","), sys.argv[6].split(",")
os.environ["EGOKIT_HOME"] = project
torch.set_num_threads(1)

from egokit import tasks  # noqa: E402
from egokit.config.resolve import resolve  # noqa: E402
from egokit.data.loader import Samples  # noqa: E402
from egokit.model import weights  # noqa: E402
from egokit.train import distributed, evaluate  # noqa: E402

results, read = {}, {}
original = Samples.__getitem__
with distributed.joined(rank, world, folder / "meeting", local=True):
    for case in (f"{recipe} {size}" for recipe in recipes for size in sizes):
        recipe, size = case.split()
        mine = read[case] = []
        Samples.__getitem__ = lambda self, key, mine=mine: (mine.append(key[1]), original(self, key))[1]
        config = resolve(f"toy/{recipe}", "tiny", f"evaluate.batch_size={size} data.limit=0", "random")
        metrics, rows, _ = evaluate.evaluate(weights.initial_model(config), tasks.make(config))
        del metrics["seconds"]
        results[case] = {"metrics": metrics, "rows": {key: torch.from_numpy(value) for key, value in rows.items()}}
if rank == 0:
    torch.save(results, folder / "results.pt")
print(json.dumps(read))
