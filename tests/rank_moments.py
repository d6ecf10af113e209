"""One rank of test_moment_ranks.py and test_egotaskqa.py: gradients of first steps, evaluations of fresh heads."""
import json
import sys
from pathlib import Path

import torch

from egokit import tasks
from egokit.config.resolve import resolve
from egokit.data import loader
from egokit.runs.run_folder import Run
from egokit.train import distributed
from egokit.train.evaluate import evaluate
from egokit.train.loop import Trainer


def measure(recipe, overrides, folder, site="toy"):
    """Return one rank's first step and evaluation, as of all ranks; encoders have open gates and time attention."""
    config = resolve(recipe, site, f"init= train.batch_size=7 {overrides}")
    task = tasks.make(config)
    torch.manual_seed(0)
    trainer = Trainer(config, task, Run(folder), "test", torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name.startswith(("text.", "video.")) and (name.endswith("gate") or ".time." in name):
                parameter.normal_(0.5 if name.endswith("gate") else 0.0, 0.1)
    batch = next(iter(loader.build_loader(trainer.dataset, trainer.batches(0), task.collate, 0)))
    trainer.model.train()
    trainer.objective.warm_up_ddp(batch, 0, trainer.scaler)
    terms = trainer.objective.gradient(batch, 0, trainer.scaler)
    values = distributed.mean(torch.stack([*terms.values()]))
    metrics, rows, _ = evaluate(trainer.model, task)
    del metrics["seconds"]
    return {"terms": dict(zip(terms, values.tolist(), strict=True)), "metrics": metrics,
            "buffers": {name: buffer.clone() for name, buffer in trainer.model.named_buffers()},
            "gradients": {name: parameter.grad for name, parameter in trainer.model.named_parameters()
                          if parameter.requires_grad},
            "rows": {key: torch.from_numpy(value) for key, value in rows.items()}}


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    with distributed.joined(rank, world, folder / "meeting", local=True):
        results = [measure(*case[:2], folder / f"run{rank}", *case[2:]) for case in json.loads(sys.argv[4])]
    if rank == 0:
        torch.save(results, folder / "results.pt")
    print("{}")
