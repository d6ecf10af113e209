"""The head of a checkpoint's model: as the file records it, or as its tensors tell it; and the words of its classes."""
import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from egokit.config.access import file_exists
from egokit.config.names import shortened
from egokit.model import checkpoints
from egokit.model.checkpoints import WeightsError
from egokit.model.class_head import LARGEST, LONGEST, ClassHead, checked_names, difference
from egokit.model.recorded_shape import record_of_egokit, without_weights
from egokit.model.released_keys import HEAD

KINDS = {ClassHead.kind: ClassHead}  # heads that are built without their task


def record_of(model) -> dict:
    """Return what a checkpoint records of a model's head: nothing of one that only its task can make."""
    head = model.head
    return {HEAD: {"kind": head.kind, **head.settings()}} if type(head) in KINDS.values() else {}


def is_released_kind(model) -> bool:
    """Return whether the original's EgoTaskQA could have a model's head: two layers, both as wide as its answers."""
    head = model.head
    return (type(head) is ClassHead and head.fc1 is not None and head.reads == "fusion"
            and (head.fc1.in_features, head.fc1.out_features) == (model.config.width, head.num_classes))


def take(content: dict, state: dict[str, Tensor], own: dict[str, Tensor], unknown: list[str], width: int,
         path) -> ClassHead | None:
    """Return the head of a checkpoint, without its weights, if its kind is known; its tensors go into `state`.

    Args:
        content: of the file.
        state: the model's tensors; those of a released file's head are among them, as head.*.
        own: those of a task's modules; those of the head are taken out of it.
        unknown: keys without a place; those that name a weight for the second time are added.
        width: of the model's states, for a released file.

    Raises:
        WeightsError: the record is damaged or out of bounds, or weights are infinite.
    """
    settings = _recorded(content, path)
    prefix = f"{HEAD}."
    if settings is None and not any(key.startswith(prefix) for key in state):
        return None
    for key in [key for key in own if key.startswith(prefix)]:
        if key in state:
            unknown.append(f"{key} (a second one for {key})")
        else:
            state[key] = own[key]
        del own[key]
    if broken := [key for key, value in state.items() if key.startswith(prefix) and not checkpoints.is_finite(value)]:
        raise WeightsError(f"{path} has weights that are NaN or infinite, in its head: "
                           f"{checkpoints.named(broken, 6)}; use an earlier checkpoint")
    try:
        with without_weights():
            return ClassHead(**(settings or _told(state, width)))
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise WeightsError(f"{path}: its record of the head is damaged or out of bounds ({reason}); expected an egokit "
                           "or a released checkpoint") from error


def _recorded(content: dict, path) -> dict | None:
    """The settings of a head of a known kind that egokit recorded; None for other heads and files."""
    record = record_of_egokit(content)
    record = record.get(HEAD) if isinstance(record, dict) else None
    if record is None:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise WeightsError(f"{path}: its record of the head is damaged: expected its kind and settings")
    return {key: value for key, value in record.items() if key != "kind"} if record["kind"] in KINDS else None


def _told(state: dict[str, Tensor], width: int) -> dict:
    """The settings of a released file's head: its first layer says how many answers there are."""
    sizes = [state[key].shape[0] for key in ("head.fc1.weight", "head.fc2.weight", "head.fc1.bias", "head.fc2.bias")
             if key in state and state[key].ndim]
    return {"width": width, "classes": max(1, sizes[0]) if sizes else 1, "hidden": max(1, sizes[0]) if sizes else 1}


def name_classes(head, answers: str | Path | Sequence[str], path) -> None:
    """Give a head the words of its classes.

    Args:
        head: of a model that was loaded from `path`, or None.
        answers: a file with a class a line, such as EgoTaskQA's answer_set.txt, or the words.

    Raises:
        WeightsError: there is no such head, it has other words already or another number of classes, or the file can't
            be read.
    """
    if not isinstance(head, ClassHead):
        raise WeightsError(f"{path} has no head of classes that answers= could name: give a checkpoint with one, or "
                           "head=, a run that has trained one")
    where, words = _words(answers)
    if len(words) != head.num_classes:
        raise WeightsError(f"{where}: {len(words):,} answers, but the head of {path} has {head.num_classes:,} classes: "
                           "give the answer_set.txt of the questions with which it was trained")
    with without_weights():
        wanted = ClassHead(1, words, reads=head.reads)
    if head.classes and (problem := difference(head, wanted)):
        raise WeightsError(f"{where}: the head of {path} has words of its own, and {problem}: leave answers= out")
    head.classes = words


def _words(answers) -> tuple[str, tuple[str, ...]]:
    """What answers are called in a message, and the words."""
    if not isinstance(answers, str | Path):
        try:
            return "answers", checked_names(answers)
        except ValueError as error:
            raise WeightsError(f"answers: {error}; expected the path of an answer_set.txt, or its words") from None
    path = Path(answers)
    try:
        if not file_exists(path):
            raise WeightsError(f"answers: {path} does not exist; expected the answer_set.txt of the questions with "
                               "which the head was trained, or its words as a list")
        if (size := path.stat().st_size) > LARGEST * LONGEST:
            raise WeightsError(f"{path}: {size:,} bytes; expected a file with an answer a line")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        return str(path), checked_names([line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])])
    except WeightsError:
        raise
    except (ValueError, IsADirectoryError) as error:
        raise WeightsError(f"{path}: {shortened(error)}; expected a file with an answer a line") from None


def model_id(model) -> str:
    """Return 12 digits that tell models apart by their weights, whatever file they are in and for any frames.

    They are the hash of the last layers before the fused state and the clip's embedding, which every training moves.
    """
    digest = hashlib.sha256()
    for parameter in (*model.fusion_norm.parameters(), *model.video.norm.parameters(), model.fusion_cls_token):
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def check_fits(model, source) -> None:
    """Check that a model's head reads states of the model.

    Args:
        source: where the head is from, for the message.

    Raises:
        WeightsError: it reads states of another width, or was trained on those of another model.
    """
    head = model.head
    if head.in_features != (has := head.width_of(model)):
        raise WeightsError(f"{source}: its head reads {head.reads!r} states of width {head.in_features}, but the "
                           f"model's have {has}: give the model that made the vectors on which it was trained")
    if head.model_id and head.model_id != (own := model_id(model)):
        raise WeightsError(f"{source}: its head was trained on the vectors of another model ({head.model_id}, but this "
                           f"one is {own}): give the checkpoint that extracted them, or extract and train again")
