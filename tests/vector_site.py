"""A site of EgoTaskQA with a checkpoint, and with vectors that are extracted in this process."""
import json

import torch
from conftest import opened
from taskqa_site import make_site
from test_egotaskqa import SMALL

from egokit import tasks
from egokit.config.resolve import resolve
from egokit.jobs import run_job
from egokit.model import weights
from egokit.runs.run_folder import Run

CPU = torch.device("cpu")


class Site:
    """A root with clips and questions, a checkpoint, and what to make configs with."""

    def __init__(self, folder):
        self.root, self.folder, self.vectors = make_site(folder / "root"), folder, folder / "extracted"
        self.init = folder / "base.pt"
        weights.save(opened(self.config("init=")), self.init)

    def config(self, overrides="", root=None, recipe="egotaskqa_head"):
        return resolve(recipe, "tiny", f"{SMALL} init={self.init} site.root={root or self.root} "
                                       f"task.vectors={self.vectors} {overrides}")

    def extract(self, folder, overrides="", root=None):
        """Extract in this process; return (metrics, manifest)."""
        config = self.config(overrides, root)
        metrics = run_job.extract(config, tasks.make(config), Run(folder), "vectors", CPU)
        return metrics, json.loads((folder / "vectors/manifest.json").read_text())


def extracted_site(folder):
    """Return a site whose vectors are extracted: `metrics` of that, and its `manifest`."""
    torch.set_num_threads(1)
    made = Site(folder)
    made.metrics, made.manifest = made.extract(made.vectors)
    return made
