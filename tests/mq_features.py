"""Extracts EgoMQ features in this process, for the tests that compare them."""
import hashlib
import json

import numpy as np

from egokit import tasks
from egokit.model import weights
from egokit.runs.run_folder import Run
from egokit.tasks import clip_features

RECIPE = "toy/egomq_features"


def extracted(config, folder, model=None):
    """Extract in this process; return ({clip_uid: features}, manifest)."""
    task = tasks.make(config)
    metrics = task.extract((model or weights.initial_model(config)).eval(), Run(folder))
    manifest = json.loads((folder / "features/manifest.json").read_text())
    assert metrics["clips"] == metrics["samples"] == metrics["expected"] == len(manifest["clips"])
    assert metrics["failed"] == 0
    assert metrics["data"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12]
                               for path in task.lists().values()}
    files = {clip["clip_uid"]: folder / "features" / f"{clip['clip_uid']}.{manifest['format']}"
             for clip in manifest["clips"]}
    return {uid: np.array(clip_features.stored(path, task.axes)) for uid, path in files.items()}, manifest


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[uid], b[uid]) for uid in a)
