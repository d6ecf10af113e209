"""Files of EgoTaskQA and QFVS that are mutated, and what a user does with them; see fuzz_readers.py."""
import json
from pathlib import Path

import numpy as np

from egokit.tasks.qfvs import score as qfvs_score
from egokit.tasks.taskqa import accuracy, vocabulary
from egokit.tasks.taskqa import annotations as taskqa
from egokit.tasks.taskqa.vectors import VectorFiles


def make_qfvs(folder: Path, checkpoint: Path) -> None:
    import qfvs_site
    qfvs_site.write(folder)
    (folder / "mine.json").write_text(json.dumps({"P01": {"Book_Street": {"scores": [0.1] * 10},
                                                          "Car_Hands": {"shots": [2, 9]}}}))


def read_qfvs(path: Path) -> None:
    root = next(folder for folder in path.parents if (folder / "mine.json").exists())
    qfvs_score.format_qfvs(qfvs_score.score_qfvs(root / "mine.json", root))


def make_vectors(folder: Path, checkpoint: Path) -> None:
    clips = [{"clip_uid": f"room|P1|{number}|{number + 9}", "questions": ["what?", "who?"]} for number in range(2)]
    (folder / "vectors").mkdir()
    for clip in clips:
        np.save(folder / f"vectors/{clip['clip_uid']}.npy", np.ones((2, 8), np.float32))
    (folder / "vectors/manifest.json").write_text(json.dumps({
        "init": "a.pth", "init_sha256": "0", "frames": 4, "dimension": 8, "clips": clips, "unlisted": [],
        "unreadable": {"room|P2|0|9": "lost"}}))


def read_vectors(path: Path) -> None:
    files = VectorFiles(path.parents[1])
    questions = [taskqa.Question(name, text, 2, (), "") for name, rows in files.row_of.items() for text in rows]
    files.expect(questions)
    for question in questions:
        files.vector(question)


def make_taskqa(folder: Path, checkpoint: Path) -> None:
    import taskqa_site
    taskqa_site.make_questions(folder, splits=("direct",))


def read_taskqa(path: Path) -> None:
    """Count the questions of all files of the folder, as the doctor and the evaluation do."""
    words = vocabulary.read(path.with_name(vocabulary.FILE))
    train, val, test = (taskqa.read_questions(path.with_name(taskqa.file_of(split)), len(words))
                        for split in taskqa.SPLITS)
    accuracy.report(accuracy.most_frequent(train, val + test, words), val + test, words, "direct")
