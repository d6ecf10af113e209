"""EgoMQ features over time, as a similarity matrix of each clip."""
import numpy as np

from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.style import WIDTH, new_figure, save_figure

MAX_POINTS = 1000  # side of a similarity matrix, whose memory grows with the square


def features(run: Run, count: int = 3):
    """Draw the cosine similarity of every moment of an EgoMQ clip with every other moment.

    A clip of more than MAX_POINTS features is drawn as the means of equal stretches.

    Args:
        run: A run with a features/ folder, as notebook 06 writes it; the figure is saved there.
        count: How many clips of the manifest to draw, from the first.
    """
    from egokit.tasks.clip_features import read_manifest, stored
    manifest = read_manifest(run.path / "features")
    clips = manifest["clips"][:count]
    figure = new_figure(figsize=(min(WIDTH, 5 * len(clips)), 4))
    axes = figure.subplots(1, len(clips), squeeze=False)
    for axis, clip in zip(axes[0], clips, strict=True):
        x = stored(run.path / "features" / f"{clip['clip_uid']}.{manifest['format']}")
        step, seconds = -(-len(x) // MAX_POINTS), clip["stop"] - clip["start"]
        # sums in place of means, which have the same cosine; x is read from disk piece by piece
        means = np.add.reduceat(x, np.arange(0, len(x), step))
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-8)
        image = axis.imshow(means @ means.T, extent=(0, seconds, seconds, 0), cmap="cividis", vmin=-0.2, vmax=1)
        note = f"\na point: the mean of {step}" if step > 1 else ""
        axis.set(xlabel="time (s)", ylabel="time (s)",
                 title=f"{shown(clip['split'], 30)}\n{len(x):,} features of {seconds:,.0f} s{note}")
        axis.locator_params(nbins=4)
    figure.colorbar(image, ax=axes[0].tolist(), label="cosine similarity")
    return save_figure(figure, run, "features")
