"""Inside the model: gates and cross-attention; features over time."""
from __future__ import annotations

import json

import numpy as np

from egokit.look.base import finish, frame, pyplot
from egokit.runs import Run

PLAIN = {"the", "a", "to", "with", "of", "c"}  # words that nothing in a picture answers to

def fusion(model, frames_TCHW, text: str, run: Run | None = None):
    """How fusion works on one pair: the gates of the fused layers, and where each word looks in the frames.

    frames_TCHW: uint8, before normalisation. The maps are the last fused text layer's attention to the video, mean over heads.
    """
    import torch

    from egokit.language import load_tokenizer
    from egokit.layers import heads_first
    from egokit.transforms import normalise
    plt = pyplot()
    layer, found = model.text.layers[-1].video, []

    def keep(module, inputs, output):
        query, key = heads_first(module.query(inputs[0]), module.heads), heads_first(module.key(inputs[1]), module.heads)
        found.append((query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)[0])

    frames_1TCHW = normalise(frames_TCHW)[None]
    with torch.no_grad():
        probability = model.match(frames_1TCHW, [text]).item()
        hook = layer.register_forward_hook(keep)
        try:
            model.mlm_logits(frames_1TCHW, [text])  # matching reads the last layer's first token alone; this reads every word
        finally:
            hook.remove()
    tokens = model.tokens([text])
    words = load_tokenizer(model.tokenizer_source).words(tokens["input_ids"][0].cpu())
    T, side = len(frames_TCHW), model.config.image_size // model.config.patch_size
    maps_LTNN = found[0][:, 1:].reshape(-1, T, side, side).cpu().numpy()
    shown = [i for i, word in enumerate(words) if word.isalpha() and word.lower() not in PLAIN][:4]
    figure, axes = plt.subplots(1 + len(shown), T + 1, figsize=(2.4 * (T + 1), 2.3 * (1 + len(shown))), squeeze=False,
                                layout="constrained", width_ratios=[1.6] + [1] * T)
    gates = ([block.text.gate.item() for block in model.video.blocks if block.text is not None],
             [one.gate.item() for one in model.text.layers if one.gate is not None])
    for offset, values, name in ((-0.2, gates[0], "video reads text"), (0.2, gates[1], "text reads video")):
        axes[0, 0].bar(np.arange(1, len(values) + 1) + offset, values, 0.4, label=name)
    axes[0, 0].set(xlabel="fused layer", ylabel="gate", xticks=range(1, len(gates[0]) + 1), title="gates (start at 0)")
    axes[0, 0].legend(fontsize=9)
    pictures = np.asarray(frames_TCHW).transpose(0, 2, 3, 1)
    for t in range(T):
        frame(axes[0, t + 1], pictures[t], f"frame {t + 1}")
    for line, i in zip(axes[1:], shown, strict=True):
        line[0].axis("off")
        line[0].text(1, 0.5, f"“{words[i]}” looks at", ha="right", va="center", fontsize=13, transform=line[0].transAxes)
        for t in range(T):
            frame(line[t + 1], pictures[t], "")
            glow = np.ones((side, side, 4)) * (0.95, 0.9, 0.15, 1)  # yellow, as strong as the attention
            glow[..., 3] = 0.75 * maps_LTNN[i, t] / maps_LTNN[i].max()
            line[t + 1].imshow(glow, interpolation="nearest", extent=(-0.5, pictures.shape[2] - 0.5, pictures.shape[1] - 0.5, -0.5))
    figure.suptitle(f"“{text}”   match {probability:.2f}")
    return finish(figure, run, "fusion")


def features(run: Run, count: int = 3):
    """EgoMQ features: cosine similarity of every moment of a clip with every other."""
    from egokit.tasks.mq import stored
    plt = pyplot()
    clips = json.loads((run.path / "features" / "manifest.json").read_text())
    picked = clips["clips"][:count]
    figure, axes = plt.subplots(1, len(picked), figsize=(5 * len(picked), 4.4), squeeze=False, layout="constrained")
    for axis, clip in zip(axes[0], picked, strict=True):
        x = stored(run.path / "features" / f"{clip['clip_uid']}.{clips['format']}")
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        length = clip["stop"] - clip["start"]
        image = axis.imshow(x @ x.T, extent=(0, length, length, 0), cmap="cividis", vmin=-0.2, vmax=1)
        axis.set(xlabel="time (s)", ylabel="time (s)", title=f"{clip['split']}: {len(x)} features of {length:.0f} s")
    figure.colorbar(image, ax=axes[0].tolist(), label="cosine similarity")
    return finish(figure, run, "features")
