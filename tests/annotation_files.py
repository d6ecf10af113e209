"""The toy's annotation files for tests that damage them: what a user does with each, and the check of its error."""
import csv
import dataclasses
import warnings

import pytest
from conftest import MODEL

from egokit import tasks
from egokit.data.annotation_tables import EK100_ANNOTATIONS

EK, CHARADES = str(EK100_ANNOTATIONS), "CharadesEgo/CharadesEgo"
RELEVANCY = f"{EK}/relevancy/caption_relevancy_EPIC_100_retrieval_train.safetensors"

# file -> (recipe, what a user does with a task of it)
FILES = {
    "egoclip.csv": ("pretrain", lambda task: task.dataset("train")),
    "egomcq.json": ("egomcq", lambda task: task.dataset("test")),
    f"{EK}/EPIC_100_retrieval_test.csv": ("ek100_finetune", lambda task: task.dataset("test")),
    f"{EK}/EPIC_100_retrieval_test_sentence.csv": ("ek100_finetune", lambda task: task.dataset("test")),
    f"{EK}/EPIC_100_retrieval_train.csv": ("ek100_finetune", lambda task: task.dataset("train")),
    f"{EK}/EPIC_100_retrieval_train_sentence.csv": ("ek100_finetune", lambda task: task.dataset("train")),
    RELEVANCY: ("ek100_finetune", lambda task: [task.dataset("train")[0, i] for i in range(8)]),
    f"{CHARADES}/CharadesEgo_v1_test_only1st.csv": ("charades_finetune", lambda task: task.dataset("test")),
    f"{CHARADES}/Charades_v1_classes.txt": ("charades_finetune", lambda task: task.dataset("test")),
    f"{CHARADES}/metadata_train.csv": ("charades_finetune", lambda task: task.dataset("train")),
    "moments_train.json": ("egomq", lambda task: task.clips()),
    "moments_val.json": ("egomq", lambda task: task.clips()),
    "moments_test_unannotated.json": ("egomq", lambda task: task.clips()),
}
SHORT = [name.rsplit("/", 1)[-1] for name in FILES]
EGOCLIP, EGOMCQ, CLIPS, SENTENCES, TRAIN_CLIPS, _, _, VIDEOS, CLASSES, METADATA, MOMENTS, *_ = FILES


def user(resolve, copied):
    """Return (use, root): use(name) does with a file's task what a user does."""
    on_copy, root = copied

    def do(name: str):
        recipe, action = FILES[name]
        config = dataclasses.replace(on_copy(resolve(f"toy/{recipe}", MODEL)), init="")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*malformed rows")
            return action(tasks.make(config))
    return do, root


def refused(action, path, *words) -> str:
    """Check that an action raises an error of ours that names the file; return its message."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        action()
    assert type(caught.value) in (ValueError, FileNotFoundError), repr(caught.value)
    message = str(caught.value)
    assert str(path) in message and all(word in message for word in words), message
    return message


def edited(path, row: int, delimiter: str = ",", **cells) -> None:
    """Change cells of a row, counted from 0 without the header; None removes a column."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    rows[row] |= {name: cell for name, cell in cells.items() if cell is not None}
    names = [name for name in rows[0] if cells.get(name, "") is not None]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter=delimiter, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def change(question: dict, key: str, value) -> None:
    """Set a field, "choices.2.video_uid" for one that is deeper; None removes it."""
    *way, last = key.split(".")
    for name in way:
        question = question[name]
    if value is None:
        del question[last]
    else:
        question[last] = value
