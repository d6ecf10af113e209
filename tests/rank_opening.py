"""One rank of test_opening.py: what it lists under the data root when a training begins, and what it raises."""
import json
import sys
from pathlib import Path

import torch

from egokit import tasks
from egokit.config.resolve import resolve
from egokit.runs.run_folder import Run
from egokit.train import distributed, loop

rank, world, folder, root = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
listed: list[str] = []
sys.addaudithook(lambda event, given: listed.append(str(given[0])) if event in ("os.listdir", "os.scandir") else None)
with distributed.joined(rank, world, folder / "meeting", local=True):
    config = resolve("toy/pretrain", "tiny", f"site.root={root} {sys.argv[5]}")
    try:
        loop.Trainer(config, tasks.make(config), Run(folder / "run"), "pretrain", torch.device("cpu"))
        raised = ""
    except FileNotFoundError as error:
        raised = str(error)
    whole = listed.count(f"{root}/Ego4D_Chunked")
    missing = next(Path(root, "Ego4D_Chunked").iterdir()) if rank == 0 else None
    if missing:
        missing.rename(Path(root, "elsewhere"))
    distributed.barrier()
    try:
        loop.Trainer(config, tasks.make(config), Run(folder / "run"), "pretrain", torch.device("cpu"))
    except FileNotFoundError as error:
        raised += str(error)
(folder / f"{rank}.json").write_text(json.dumps([whole, raised]))
