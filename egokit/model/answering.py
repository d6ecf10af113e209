"""Answers in words: the classes that a model's head gives a clip, with or without a question."""
import collections.abc

import torch
from torch import Tensor

from egokit.model.class_head import ClassHead
from egokit.model.input_checks import in_parts
from egokit.model.pairs import fused_outputs


def checked_head(model, question, k) -> ClassHead:
    """Return the head of a model that can answer.

    Raises:
        ValueError: there is none, its classes have no words, it takes no question or needs one, or `k` is no number of
            answers; the message says what to do.
    """
    head = model.head
    if not isinstance(head, ClassHead):
        raise ValueError("this model has no head of classes to answer with: load a checkpoint with one, such as "
                         "EgoTaskQA_finetune_direct.tar, or give it one: egokit.load(path, head=…)")
    if not head.classes:
        raise ValueError(f"the {head.num_classes} classes of this model's head have no words: name them by "
                         "egokit.load(path, answers=…), an answer_set.txt or a list")
    if head.reads == "video" and question is not None:
        raise ValueError("this model's head reads the clip alone: leave the question out, model.answer(frames)")
    if head.reads == "fusion" and question is None:
        raise ValueError("this model's head answers a question about the clip: give one, model.answer(frames, "
                         "question)")
    if head.in_features != (has := head.width_of(model)):
        raise ValueError(f"this model's head reads states of width {head.in_features}, but the model's {head.reads!r} "
                         f"states have {has}: ask the task that it belongs to")
    if type(k) is not int or k < 1:
        raise ValueError(f"k={k!r}: expected a whole number of at least 1, of the answers to return")
    return head


def answer(model, frames_BTCHW: Tensor, question, k: int) -> list[list[tuple[str, float]]]:
    """Return what `EgoVLP.answer` returns."""
    head = checked_head(model, question, k)
    with torch.no_grad():
        if question is None:
            def part(rows: slice) -> Tensor:
                return _logits(head, model.embed_video(model.prepared_frames(frames_BTCHW[rows])))
            logits_BK = in_parts(part, *model.clips_at_once(frames_BTCHW))
        else:
            logits_BK = fused_outputs(
                model, frames_BTCHW, as_asked(question), "video",
                lambda video_B1D, _: _logits(head, model.fusion_norm(video_B1D)[:, 0]))
        chances_Bk, classes_Bk = logits_BK.softmax(-1).topk(min(k, head.num_classes))
    return [[(head.classes[number], chance) for number, chance in zip(numbers, chances, strict=True)]
            for numbers, chances in zip(classes_Bk.tolist(), chances_Bk.tolist(), strict=True)]


def as_asked(question):
    """Return questions as the head was trained on them: stripped, in lower case; what is no text stays as it is."""
    if isinstance(question, str):
        return question.strip().lower()
    if isinstance(question, collections.abc.Sequence):
        return [each.strip().lower() if isinstance(each, str) else each for each in question]
    return question


def _logits(head: ClassHead, states_BD: Tensor) -> Tensor:
    return head(states_BD.to(head.fc2.weight)).float()
