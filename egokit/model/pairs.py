"""Pairs of clips and texts through the fusion encoder, where a clip or a text may stand for all.

Shapes: B pairs, T frames, S video tokens, L text tokens, D width.
"""
from collections.abc import Callable

from torch import Tensor

from egokit.model.input_checks import in_parts


def fused_outputs(model, frames_BTCHW: Tensor, text, read: str, head: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return `head` of fused states, pair by pair; a clip or text for all is encoded once.

    Args:
        model: an EgoVLP.
        frames_BTCHW: B clips, or one; `text` is B texts, or one, as `EgoVLP.tokens` takes them.
        read: which states are read, as of `EgoVLP.fuse`.
        head: function of the states of videos and texts, of which it gives a row for each pair.

    Raises:
        ValueError: clips or texts do not fit the model, or differ in number, and neither is one.
    """
    tokens, (clips, size) = model.prepared_tokens(text), model.clips_at_once(frames_BTCHW)
    texts, T = len(tokens["input_ids"]), frames_BTCHW.shape[1]
    if clips != texts and 1 not in (clips, texts):
        raise ValueError(f"{clips} clips but {texts} texts: give one text for each clip, "
                         "or one clip or text for all")
    trunk = model.fusion_trunk(model.prepared_frames(frames_BTCHW)) if clips == 1 else None
    words = model.text_trunk(tokens) if texts == 1 else None

    def part(rows: slice) -> Tensor:
        n = rows.stop - rows.start
        part_tokens = {key: value.expand(n, -1) if texts == 1 else value[rows] for key, value in tokens.items()}
        video_BSD = (model.fusion_trunk(model.prepared_frames(frames_BTCHW[rows])) if trunk is None
                     else trunk.expand(n, -1, -1))
        text_BLD = model.text_trunk(part_tokens) if words is None else words.expand(n, -1, -1)
        return head(*model.fuse(video_BSD, text_BLD, part_tokens["attention_mask"], T, read))
    return in_parts(part, max(clips, texts) if clips and texts else 0, size)
