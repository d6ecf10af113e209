"""One rank of test_dist.test_gradient_of_ranks_equals_one_process."""
import json
import os
import sys
from pathlib import Path

import torch

rank, world, folder, project = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
os.environ["EGOKIT_HOME"] = project
torch.set_num_threads(1)

from conftest import MODEL  # noqa: E402

from egokit import dist, loading, tasks  # noqa: E402
from egokit.resolve import resolve  # noqa: E402
from egokit.runs import Run  # noqa: E402
from egokit.train import Trainer  # noqa: E402

config = resolve("toy/pretrain", "tiny", f"{MODEL} model.dropout=0.0 train.batch_size=11 data.limit=11 train.precision=fp32")
with dist.joined(rank, world, folder / "meeting", local=True):
    task = tasks.make(config)
    trainer = Trainer(config, task, Run(folder / f"run{rank}"), "test", torch.device("cpu"))
    with torch.no_grad():  # gates open, so that the fusion encoder has gradients everywhere
        for name, parameter in trainer.model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    trainer.model.train()
    batch = next(iter(loading.loader(trainer.dataset, trainer.batches(0), task.collate, 0)))
    loss, terms = trainer.objective(batch, 0)
    loss.backward()
    values = dist.mean(torch.stack([*terms.values()]))
    if rank == 0:
        print(json.dumps({"terms": dict(zip(terms, values.tolist(), strict=True)),
                          "gradients": {n: p.grad.flatten().tolist() for n, p in trainer.model.named_parameters()}}))
    else:
        print("{}")
