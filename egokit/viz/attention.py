"""Inside the model: the gates of the fused layers, and which frames each word attends to."""
import numpy as np

from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.style import CYCLE, WIDTH, draw_frame, new_figure, save_figure, wrapped

STOP_WORDS = {"the", "a", "to", "with", "of", "c"}  # nothing in a picture corresponds to these
MAX_FRAMES = 4  # of the clip
MAX_WORDS = 4


def fusion(model, frames_TCHW, text: str, run: Run | None = None):
    """Draw how the fusion encoder reads one pair: its gates, and where each word looks.

    The left part shows both encoders with the gates of their fused layers. The right part shows the attention maps of
    the fused text layer whose video-to-text gate is the largest.

    Args:
        model: An EgoVLPv2 model with fused layers.
        frames_TCHW: uint8 frames of one clip, before normalisation.
        text: The narration.
        run: Where to save figures/fusion.png; None saves nothing.
    """
    from egokit.model.text_encoder import load_tokenizer
    model.require_fusion("a picture of its gates and word maps")
    gates = ([block.text.gate.item() for block in model.video.blocks if block.text is not None],
             [layer.gate.item() for layer in model.text.layers if layer.gate is not None])
    widest = int(np.abs(gates[1]).argmax())
    probability, maps_LTNN = word_maps(model, model.normalise(frames_TCHW)[None], text, model.num_unfused + widest)
    words = load_tokenizer(model.tokenizer_source).words(model.prepared_tokens([text])["input_ids"][0].cpu())
    pictured = [i for i, word in enumerate(words) if word.isalpha() and word.lower() not in STOP_WORDS][:MAX_WORDS]
    times = np.linspace(0, len(frames_TCHW) - 1, min(MAX_FRAMES, len(frames_TCHW))).round().astype(int)
    pictures = np.asarray(frames_TCHW).transpose(0, 2, 3, 1)
    figure = new_figure(figsize=(WIDTH, 0.7 + 2.5 * (1 + len(pictured))))
    figure.get_layout_engine().set(h_pad=0.12)
    grid = figure.add_gridspec(1 + len(pictured), 1 + len(times), width_ratios=[2.1] + [1] * len(times))
    draw_gates(figure.add_subplot(grid[:, 0]), model.config.depth, *gates, model.num_unfused + widest)
    for row, i in enumerate([None, *pictured]):
        for column, t in enumerate(times, 1):
            axis = figure.add_subplot(grid[row, column])
            draw_frame(axis, pictures[t], f"frame {t + 1}" if i is None else
                       f"{100 * maps_LTNN[i, t].sum():.0f} % of its attention")
            if i is not None:  # a spotlight: dark where the word doesn't look
                shade = np.zeros((*maps_LTNN.shape[2:], 4))
                shade[..., 3] = 0.75 * (1 - maps_LTNN[i, t] / maps_LTNN[i].max())
                axis.imshow(shade, interpolation="bilinear", extent=axis.images[0].get_extent())
            if column == 1:
                axis.set_title("the clip" if i is None else
                               f"where “{shown(words[i], 30)}” looks, in text layer {model.num_unfused + widest + 1}",
                               loc="left", fontsize=12)
    figure.suptitle(f"“{wrapped(text, 110, 500)}”\n"
                    f"The fusion encoder says: they match with probability {probability:.2f}")
    return save_figure(figure, run, "fusion")


def word_maps(model, frames_1TCHW, text: str, number: int) -> tuple[float, np.ndarray]:
    """Return the matching probability and the attention of every word to every patch.

    Args:
        model: An EgoVLPv2 model with fused layers.
        frames_1TCHW: The normalised frames of one clip.
        text: The narration, of L tokens.
        number: Index of the fused text layer to read, counted over all text layers.

    Returns:
        (probability, maps (L, T, side, side)): the mean over heads. The video's CLS token is left out, so a word's map
        sums to less than 1.
    """
    import torch

    from egokit.model.layers import split_heads
    attention = []

    def keep_attention(module, inputs, output):
        query = split_heads(module.query(inputs[0]), module.heads)
        key = split_heads(module.key(inputs[1]), module.heads)
        attention.append((query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)[0])

    with torch.no_grad():
        probability = model.match(frames_1TCHW, [text]).item()
        hook = model.text.layers[number].video.register_forward_hook(keep_attention)
        try:
            model.mlm_logits(frames_1TCHW, [text])  # unlike matching, MLM needs every word of the last layer
        finally:
            hook.remove()
    side = model.config.image_size // model.config.patch_size
    patches = attention[0][:, 1:]  # without the video's CLS
    return probability, patches.reshape(-1, frames_1TCHW.shape[1], side, side).cpu().numpy()


def draw_gates(axis, depth: int, video_gates: list[float], text_gates: list[float], pictured: int) -> None:
    """Draw both encoders as towers, with an arrow in each direction between fused layers.

    Args:
        axis: The matplotlib axis to draw on; the input is at the bottom.
        depth: Layers of each encoder.
        video_gates: Gates of the fused video layers, which read the text. An arrow is as wide as its gate is large.
        text_gates: Gates of the fused text layers, which read the video.
        pictured: Index of the text layer whose attention is shown beside the towers; it gets a thick border.
    """
    first_fused, colours = depth - len(video_gates), {"video": CYCLE[0], "text": CYCLE[1]}
    largest = max(map(abs, [*video_gates, *text_gates])) or 1
    for x, name in ((0, "video"), (1, "text")):
        for layer in range(depth):
            fused = layer >= first_fused
            axis.text(x, layer, f"{name} {layer + 1}", ha="center", va="center", fontsize=11,
                      color="white" if fused else "black",
                      bbox={"boxstyle": "round,pad=0.45", "facecolor": colours[name] if fused else "white",
                            "edgecolor": colours[name], "linewidth": 3 if name == "text" and layer == pictured else 1})
        axis.annotate("", (x, depth - 0.3), (x, -0.8), arrowprops={"arrowstyle": "->", "color": "0.6"}, zorder=-1)
        source = {"video": "patches of\nthe frames", "text": "words of the\nnarration"}[name]
        axis.text(x, -0.95, source, ha="center", va="top", fontsize=11)
    for layer, (to_video, to_text) in enumerate(zip(video_gates, text_gates, strict=True), first_fused):
        for gate, source, target, up, side in ((to_text, 0.2, 0.8, 0.16, "bottom"), (to_video, 0.8, 0.2, -0.16, "top")):
            axis.annotate("", (target, layer + up), (source, layer + up), arrowprops={
                "arrowstyle": "-|>", "linewidth": 0.5 + 4.5 * abs(gate) / largest, "shrinkA": 0, "shrinkB": 0,
                "color": colours["video" if target > source else "text"]})
            axis.text(0.5, layer + 1.3 * up, f"{gate:+.2f}".replace("-", "−"), ha="center", va=side, fontsize=11)
    axis.text(0.5, depth - 0.1, "does it match?", ha="center", va="bottom", fontsize=11, weight="bold")
    axis.set(xlim=(-0.4, 1.4), ylim=(-1.9, depth + 0.3))
    axis.set_title("White: each encoder by itself.\nFilled: each reads the other, through\n"
                   "a gate (0: shut, as training starts).", fontsize=11)
    axis.axis("off")
