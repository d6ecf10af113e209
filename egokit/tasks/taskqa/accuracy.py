"""EgoTaskQA's accuracies: by label, of open and binary questions, and of all.

Source: EgoVLPv2's EgoTaskQA, which counts a question once for each of its labels.
"""
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from egokit.tasks.taskqa.annotations import Question


def overall(predicted: Sequence[int], answers: Sequence[int], chosen=None) -> tuple[float, int]:
    """Return the share of questions whose predicted class is the answer's, and how many questions there are.

    Args:
        chosen: bool, the questions that count; None counts all.

    Returns:
        (share of 1, number); the share is NaN if no question counts.
    """
    right = np.asarray(predicted) == np.asarray(answers)
    if chosen is not None:
        right = right[np.asarray(chosen, bool)]
    return float(right.mean()) if len(right) else float("nan"), len(right)


def by_label(predicted: Sequence[int], answers: Sequence[int],
             labels: Sequence[Sequence[str]]) -> dict[str, tuple[float, int]]:
    """Return the accuracy of each label's questions.

    Args:
        predicted, answers: classes (Q,).
        labels: those of each question.

    Returns:
        {label: (share of 1, number of questions)}, in the order in which labels first occur.
    """
    counts: dict[str, list[int]] = {}
    for own, is_right in zip(labels, np.asarray(predicted) == np.asarray(answers), strict=True):
        for label in dict.fromkeys(own):
            count = counts.setdefault(label, [0, 0])
            count[0] += int(is_right)
            count[1] += 1
    return {label: (right / asked, asked) for label, (right, asked) in counts.items()}


def report(predicted: Sequence[int], questions: Sequence[Question], vocabulary: Sequence[str],
           split: str) -> dict[str, float]:
    """Return an evaluation's accuracies in %, and how many questions each is of.

    Args:
        predicted: class of each question; -1 is right of none.
        split: "direct" or "indirect"; the published "all" is the accuracy of the label of this name.

    Returns:
        "<split>_all", "_open", "_binary" and "_as_published", the last three if there are such questions; their numbers
        "questions_open" and "questions_binary"; for each label "accuracy/<label>" and "questions/<label>".
    """
    answers = [question.answer for question in questions]
    binary = np.array([question.is_binary(vocabulary) for question in questions], bool)
    labels = by_label(predicted, answers, [question.labels for question in questions])
    out: dict[str, float] = {f"{split}_all": 100 * overall(predicted, answers)[0]}
    for name, chosen in (("open", ~binary), ("binary", binary)):
        share, count = overall(predicted, answers, chosen)
        out |= {f"{split}_{name}": 100 * share} if count else {}
        out[f"questions_{name}"] = count
    if split in labels:
        out[f"{split}_as_published"] = 100 * labels[split][0]
    out |= {f"accuracy/{label}": 100 * share for label, (share, _) in labels.items()}
    return out | {f"questions/{label}": count for label, (_, count) in labels.items()}


def per_question(predicted: Sequence[int], questions: Sequence[Question], vocabulary: Sequence[str],
                 split: str) -> dict[str, list[np.ndarray]]:
    """Return what each question contributes to accuracies in %, as `Task.per_query` does.

    Args:
        predicted, questions, vocabulary, split: as for `report`.

    Returns:
        "<split>_all", "_open", "_binary" and "_as_published", those that `report` has.
    """
    right = 100.0 * (np.asarray(predicted) == np.array([question.answer for question in questions]))
    binary = np.array([question.is_binary(vocabulary) for question in questions], bool)
    published = np.array([split in question.labels for question in questions], bool)
    groups = {"all": np.ones(len(right), bool), "open": ~binary, "binary": binary, "as_published": published}
    return {f"{split}_{name}": [right[chosen]] for name, chosen in groups.items() if chosen.any()}


def best_answers(logits_BK: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best answers to each question, best first.

    Args:
        logits_BK: scores of K answers.
        count: how many are kept.

    Returns:
        Classes (B, count), int64, and their probabilities, float32; -1 and 0 where there are fewer answers.
    """
    kept = min(count, logits_BK.shape[1])
    chances, classes = (x.numpy(force=True) for x in logits_BK.float().softmax(1).topk(kept, dim=1))
    padding = ((0, 0), (0, count - kept))
    return (np.pad(classes.astype(np.int64), padding, constant_values=-1),
            np.pad(chances.astype(np.float32), padding))


def most_frequent(train: Sequence[Question], questions: Sequence[Question], vocabulary: Sequence[str]) -> np.ndarray:
    """Return the answers, classes (Q,), of one who knows only whether a question is open or binary.

    Each question gets the training split's most frequent answer to questions of its form, the lowest class of several;
    -1 where the training split has no question of this form.
    """
    answer = {}
    for is_binary in (False, True):
        classes = [question.answer for question in train if question.is_binary(vocabulary) == is_binary]
        answer[is_binary] = int(np.bincount(classes).argmax()) if classes else -1
    return np.array([answer[question.is_binary(vocabulary)] for question in questions], int)
