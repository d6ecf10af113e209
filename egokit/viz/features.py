"""EgoMQ features over time, as a picture."""
from __future__ import annotations

import json

import numpy as np

from egokit.runs.run_folder import Run
from egokit.viz.style import WIDTH, finish, pyplot

MOMENTS = 1000  # of a clip in its picture of features, which has their square of points


def features(run: Run, count: int = 3):
    """EgoMQ features: cosine similarity of each moment of a clip with every other; of more than MOMENTS, of the means of stretches."""
    from egokit.tasks.mq import stored
    plt = pyplot()
    clips = json.loads((run.path / "features" / "manifest.json").read_text())
    picked = clips["clips"][:count]
    figure, axes = plt.subplots(1, len(picked), figsize=(min(WIDTH, 5 * len(picked)), 4), squeeze=False, layout="constrained")
    for axis, clip in zip(axes[0], picked, strict=True):
        x = stored(run.path / "features" / f"{clip['clip_uid']}.{clips['format']}")
        step, length = -(-len(x) // MOMENTS), clip["stop"] - clip["start"]
        means = np.add.reduceat(x, np.arange(0, len(x), step))  # their sums, as the cosine is the same; read from disk as it goes
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-8)
        image = axis.imshow(means @ means.T, extent=(0, length, length, 0), cmap="cividis", vmin=-0.2, vmax=1)
        said = f"\na point: the mean of {step}" if step > 1 else ""
        axis.set(xlabel="time (s)", ylabel="time (s)", title=f"{clip['split']}\n{len(x):,} features of {length:,.0f} s{said}")
        axis.locator_params(nbins=4)
    figure.colorbar(image, ax=axes[0].tolist(), label="cosine similarity")
    return finish(figure, run, "features")
