"""One rank of test_dist.py: the gradient of a recipe's first step, in double precision.

It is computed for several train.micro_batch; rank 0 writes the results to a file.
"""
import os
import sys
from pathlib import Path

import torch

rank, world, folder, project = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
recipe, micro_batches, overrides = sys.argv[5], sys.argv[6].split(","), " ".join(sys.argv[7:])
os.environ["EGOKIT_HOME"] = project
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double  # in float32, rounding would hide an error as large as it

from conftest import MODEL  # noqa: E402

from egokit import tasks  # noqa: E402
from egokit.config.resolve import resolve  # noqa: E402
from egokit.data import loader  # noqa: E402
from egokit.runs.run_folder import Run  # noqa: E402
from egokit.train import distributed  # noqa: E402
from egokit.train.loop import Trainer  # noqa: E402

results = {}
with distributed.joined(rank, world, folder / "meeting", local=True):
    for micro_batch in micro_batches:
        config = resolve(recipe, "tiny", f"{MODEL} init= model.dropout=0.0 train.batch_size=11 data.limit=11 "
                                         f"train.precision=fp32 {overrides} train.micro_batch={micro_batch}")
        task = tasks.make(config)
        trainer = Trainer(config, task, Run(folder / f"run{rank}"), "test", torch.device("cpu"))
        torch.manual_seed(0)
        with torch.no_grad():  # gates and time attention open, so that there are gradients everywhere
            for name, parameter in trainer.model.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(0.5)
                elif ".time." in name:
                    parameter.normal_(std=0.1)
        trainer.model.train()
        batch = next(iter(loader.build_loader(trainer.dataset, trainer.batches(0), task.collate, 0)))
        terms = trainer.objective.gradient(batch, 0, trainer.scaler)
        values = distributed.mean(torch.stack([*terms.values()]))
        gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()
                     if parameter.requires_grad}
        results[int(micro_batch)] = {"terms": dict(zip(terms, values.tolist(), strict=True)), "gradients": gradients}
if rank == 0:
    torch.save(results, folder / "results.pt")
print("{}")
