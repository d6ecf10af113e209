"""Inside the model: gates and cross-attention."""
from __future__ import annotations

import numpy as np

from egokit.runs.run_folder import Run
from egokit.viz.style import CYCLE, WIDTH, finish, frame, pyplot

PLAIN = {"the", "a", "to", "with", "of", "c"}  # words that nothing in a picture answers to
FRAMES = 4  # shown of a clip
WORDS = 4


def fusion(model, frames_TCHW, text: str, run: Run | None = None):
    """How fusion works on one pair: both encoders with the gates of the fused layers, and where each word looks in the frames.

    frames_TCHW: uint8, before normalisation. The maps are of the fused layer with the widest gate from video to text.
    """
    from egokit.data.video.transforms import normalise
    from egokit.model.text_encoder import load_tokenizer
    plt = pyplot()
    gates = ([block.text.gate.item() for block in model.video.blocks if block.text is not None],
             [one.gate.item() for one in model.text.layers if one.gate is not None])
    widest = int(np.abs(gates[1]).argmax())
    probability, maps_LTNN = word_maps(model, normalise(frames_TCHW)[None], text, model.num_unfused + widest)
    words = load_tokenizer(model.tokenizer_source).words(model.tokens([text])["input_ids"][0].cpu())
    shown = [i for i, word in enumerate(words) if word.isalpha() and word.lower() not in PLAIN][:WORDS]
    times = np.linspace(0, len(frames_TCHW) - 1, min(FRAMES, len(frames_TCHW))).round().astype(int)
    pictures = np.asarray(frames_TCHW).transpose(0, 2, 3, 1)
    figure = plt.figure(figsize=(WIDTH, 0.7 + 2.5 * (1 + len(shown))), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    grid = figure.add_gridspec(1 + len(shown), 1 + len(times), width_ratios=[2.1] + [1] * len(times))
    draw_gates(figure.add_subplot(grid[:, 0]), model.config.depth, *gates, model.num_unfused + widest)
    for line, i in enumerate([None, *shown]):
        for column, t in enumerate(times, 1):
            axis = figure.add_subplot(grid[line, column])
            share = "" if i is None else f"{100 * maps_LTNN[i, t].sum():.0f} % of its attention"
            frame(axis, pictures[t], f"frame {t + 1}" if i is None else share)
            if i is not None:  # a spotlight: dark where the word doesn't look
                dark = np.zeros((*maps_LTNN.shape[2:], 4))
                dark[..., 3] = 0.75 * (1 - maps_LTNN[i, t] / maps_LTNN[i].max())
                axis.imshow(dark, interpolation="bilinear", extent=(-0.5, pictures.shape[2] - 0.5, pictures.shape[1] - 0.5, -0.5))
            if column == 1:
                axis.set_title("the clip" if i is None else f"where “{words[i]}” looks, in text layer {model.num_unfused + widest + 1}",
                               loc="left", fontsize=12)
    figure.suptitle(f"“{text}”\nThe fusion encoder says: they match with probability {probability:.2f}")
    return finish(figure, run, "fusion")


def word_maps(model, frames_1TCHW, text: str, number: int) -> tuple[float, np.ndarray]:
    """(matching probability, the attention of each word to each patch: (L, T, side, side)) of text layer `number`, mean over heads."""
    import torch

    from egokit.model.layers import split_heads
    found = []

    def keep(module, inputs, output):
        query, key = split_heads(module.query(inputs[0]), module.heads), split_heads(module.key(inputs[1]), module.heads)
        found.append((query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)[0])

    with torch.no_grad():
        probability = model.match(frames_1TCHW, [text]).item()
        hook = model.text.layers[number].video.register_forward_hook(keep)
        try:
            model.mlm_logits(frames_1TCHW, [text])  # matching reads the last layer's first token alone; this reads every word
        finally:
            hook.remove()
    side = model.config.image_size // model.config.patch_size
    return probability, found[0][:, 1:].reshape(-1, frames_1TCHW.shape[1], side, side).cpu().numpy()  # without the video's CLS


def draw_gates(axis, depth: int, video_reads: list[float], text_reads: list[float], pictured: int) -> None:
    """Both encoders as towers, the input at the bottom; between fused layers an arrow each way, as wide as its gate is open."""
    fused, colours = depth - len(video_reads), {"video": CYCLE[0], "text": CYCLE[1]}
    most = max(map(abs, [*video_reads, *text_reads])) or 1
    for x, name in ((0, "video"), (1, "text")):
        for layer in range(depth):
            inside = layer >= fused
            axis.text(x, layer, f"{name} {layer + 1}", ha="center", va="center", fontsize=11, color="white" if inside else "black",
                      bbox={"boxstyle": "round,pad=0.45", "facecolor": colours[name] if inside else "white", "edgecolor": colours[name],
                            "linewidth": 3 if name == "text" and layer == pictured else 1})
        axis.annotate("", (x, depth - 0.3), (x, -0.8), arrowprops={"arrowstyle": "->", "color": "0.6"}, zorder=-1)
        source = {"video": "patches of\nthe frames", "text": "words of the\nnarration"}[name]
        axis.text(x, -0.95, source, ha="center", va="top", fontsize=11)
    for layer, (to_video, to_text) in enumerate(zip(video_reads, text_reads, strict=True), fused):
        for gate, source, target, up, side in ((to_text, 0.2, 0.8, 0.16, "bottom"), (to_video, 0.8, 0.2, -0.16, "top")):
            axis.annotate("", (target, layer + up), (source, layer + up), arrowprops={
                "arrowstyle": "-|>", "linewidth": 0.5 + 4.5 * abs(gate) / most, "shrinkA": 0, "shrinkB": 0,
                "color": colours["video" if target > source else "text"]})
            axis.text(0.5, layer + 1.3 * up, f"{gate:+.2f}".replace("-", "−"), ha="center", va=side, fontsize=11)
    axis.text(0.5, depth - 0.1, "does it match?", ha="center", va="bottom", fontsize=11, weight="bold")
    axis.set(xlim=(-0.4, 1.4), ylim=(-1.9, depth + 0.3))
    axis.set_title("White: each encoder by itself.\nFilled: each reads the other, through\na gate (0: shut, as training starts).",
                   fontsize=11)
    axis.axis("off")
