"""Where the fused state that answers a question looks: the attention of its token to the patches of the frames."""
import numpy as np

from egokit.runs.run_folder import Run
from egokit.runs.shown_text import shown
from egokit.viz.style import WIDTH, draw_frame, draw_heading, new_figure, save_figure

MAX_FRAMES = 6  # of the clip


def answer_attention(model, frames_TCHW, questions: list[str], run: Run | None = None):
    """Draw where the fusion encoder looks for some questions about one clip, and what it answers.

    Args:
        model: a model with fused layers and a head of classes with names.
        frames_TCHW: uint8 frames of the clip, before normalisation.
        questions: one row of pictures each.
        run: where to save figures/answer-attention.png; None saves nothing.
    """
    model.require_fusion("a picture of where it looks for an answer")
    frames = model.normalise(frames_TCHW)[None]
    times = np.linspace(0, len(frames_TCHW) - 1, min(MAX_FRAMES, len(frames_TCHW))).round().astype(int)
    pictures = np.asarray(frames_TCHW).transpose(0, 2, 3, 1)
    maps_QTNN, answers = zip(*(cls_map(model, frames, question) for question in questions), strict=True)
    figure = new_figure(figsize=(WIDTH, 0.4 + (0.6 + 0.9 * WIDTH / len(times)) * len(questions)))
    axes = figure.subplots(len(questions), len(times), squeeze=False)
    for line, question, map_TNN, answer in zip(axes, questions, maps_QTNN, answers, strict=True):
        for axis, t in zip(line, times.tolist(), strict=True):
            draw_frame(axis, pictures[t], f"frame {t + 1}: {100 * map_TNN[t].sum():.0f} %")
            shade = np.zeros((*map_TNN.shape[1:], 4))  # a spotlight: dark where it doesn't look
            shade[..., 3] = 0.7 * (1 - map_TNN[t] / map_TNN.max())
            axis.imshow(shade, interpolation="bilinear", extent=axis.images[0].get_extent())
        said = ", ".join(f"{shown(word, 30)} {chance:.2f}" for word, chance in answer)
        draw_heading(line[0], shown(f"{question} → {said}"))
    figure.suptitle("Bright: where the fused state looks in the last layer; shares of its attention to all patches",
                    fontsize=12)
    return save_figure(figure, run, "answer-attention")


def cls_map(model, frames_1TCHW, question: str) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """Return the attention of the fused CLS to every patch, and the best answers.

    Returns:
        ((T, side, side), the mean over heads, which sums to 1 over all patches; [(word, chance), …]).
    """
    import torch

    from egokit.model.layers import split_heads
    kept, space = [], model.video.blocks[-1].space

    def keep(module, inputs) -> None:
        width = inputs[0].shape[-1]
        query, key, _ = (split_heads(part, module.heads) for part in module.qkv(inputs[0]).split(width, dim=-1))
        kept.append((query[:, :, :1] @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)[0, 0])

    hook = space.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            answer = model.answer(frames_1TCHW, question, k=3)[0]
    finally:
        hook.remove()
    side = model.config.image_size // model.config.patch_size
    patches = kept[-1][1:]  # without CLS itself
    return (patches / patches.sum()).reshape(frames_1TCHW.shape[1], side, side).float().cpu().numpy(), answer
