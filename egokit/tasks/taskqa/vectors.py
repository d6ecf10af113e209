"""Stored fused vectors of EgoTaskQA's questions: what a head reads, one file a clip; and samples of them.

Shapes: K questions of a clip, D width.
"""
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from egokit.config.access import exists
from egokit.config.json_file import COUNT, LARGEST_LIST, read_json
from egokit.data.loader import Samples
from egokit.runs.array_file import read_array
from egokit.tasks.feature_files import FeatureError, finite
from egokit.tasks.taskqa.annotations import ClipName, Question

FOLDER = "vectors"
WIDEST = 1_000_000
MANIFEST = {"init": str, "init_sha256": str, "frames": COUNT, "dimension": range(1, WIDEST + 1),
            "model_id": (str, ...), "clips": [{"clip_uid": str, "questions": [str]}],
            "unreadable": ({...: str}, ...)}
AGAIN = "extract the vectors again (action extract), from the same questions"
DAMAGED = "delete it, and the same extraction makes it again"


class VectorFiles:
    """The vectors in a folder that an extraction has filled.

    Args:
        folder: holds the files and their manifest, or is a run's folder with vectors/ in it.

    Attributes:
        manifest: what the extraction wrote of them.
        dimension: D.
        unreadable: clip -> why it has no vectors.

    Raises:
        FileNotFoundError: there is no such folder, or no manifest in it.
        ValueError: the manifest is damaged; the message names it.
    """

    def __init__(self, folder: Path):
        own = folder / FOLDER
        self.folder = own if exists(own) else folder
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is no folder: task.vectors names the run that extracts the vectors "
                                    "(its action extract), or their folder")
        path, fix = self.folder / "manifest.json", f"delete it, and {AGAIN}"
        manifest = read_json(path, MANIFEST, fix, LARGEST_LIST)
        if manifest is None:
            raise FileNotFoundError(f"{path} is missing: not all vectors are there; let the extraction finish (action "
                                    "extract)")
        self.manifest, self.dimension = manifest, manifest["dimension"]
        self.unreadable: dict[str, str] = manifest.get("unreadable", {})
        self.row_of: dict[str, dict[str, int]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        for clip in manifest["clips"]:
            name, texts = clip["clip_uid"], clip["questions"]
            try:
                ClipName.parse(name)
            except ValueError as error:
                raise ValueError(f"{path}: clip {name!r:.80}: {error}; {fix}") from None
            if name in self.row_of or not texts or len(set(texts)) < len(texts):
                raise ValueError(f"{path}: clip {name!r:.80}: expected it once, with one question or more, each once; "
                                 f"{fix}")
            self.row_of[name] = {text: row for row, text in enumerate(texts)}

    @property
    def origin(self) -> str:
        """What made the vectors: a checkpoint, else their folder."""
        return self.manifest["init"] or str(self.folder)

    def expect(self, questions: Iterable[Question]) -> None:
        """Raise FeatureError if a question was not among those of the extraction; nothing else is read."""
        absent = [question for question in questions if question.clip not in self.unreadable
                  and question.text not in self.row_of.get(question.clip, ())]
        if absent:
            first = absent[0]
            raise FeatureError(f"{self.folder}/manifest.json lists no vector of {len(absent):,} questions, such as "
                               f"{first.text!r:.80} about clip {first.clip}: {AGAIN}")

    def open(self, clip: str) -> np.ndarray:
        """Return a clip's vectors, float32 (K, D), memory-mapped.

        Raises:
            FeatureError: the clip could not be read, or its file is absent, damaged, or of another dimension or number
                of questions.
        """
        if clip not in self._arrays:
            if clip in self.unreadable:
                raise FeatureError(f"clip {clip} has no vectors, as it could not be read: {self.unreadable[clip]}")
            self._arrays[clip] = read_vectors(self.folder / f"{clip}.npy", len(self.row_of[clip]), self.dimension)
        return self._arrays[clip]

    def problems(self, clips: Iterable[str]) -> dict[str, str]:
        """Return clip -> why its vectors can't be used; only the files' heads are read."""
        found = {}
        for clip in clips:
            try:
                self.open(clip)
            except FeatureError as error:
                found[clip] = str(error)
        return found

    def vector(self, question: Question) -> np.ndarray:
        """Return a question's vector, float32 (D,).

        Raises:
            FeatureError: as `open`; or it holds NaN or infinite numbers.
        """
        row = np.array(self.open(question.clip)[self.row_of[question.clip][question.text]])
        return finite(row, f"{self.folder / question.clip}.npy, question {question.text!r:.80}")


def read_vectors(path: Path, questions: int, dimension: int) -> np.ndarray:
    """Return the vectors of a file, float32 (K, D), memory-mapped.

    Args:
        questions: K, dimension: D, that it has to have.

    Raises:
        FeatureError: it is absent, damaged, or of another shape; the message names it.
    """
    if not exists(path):
        raise FeatureError(f"{path} is missing: {AGAIN}")
    try:
        vectors = read_array(path, DAMAGED)
    except (OSError, ValueError) as error:
        raise FeatureError(str(error)) from None
    if vectors.dtype != np.float32 or vectors.shape != (questions, dimension):
        raise FeatureError(f"{path}: {vectors.dtype} of shape {vectors.shape}, expected float32 of ({questions} "
                           f"questions, dimension {dimension}); {DAMAGED}")
    return vectors


class VectorSamples(Samples):
    """Questions with their stored vectors; in an evaluation a vector that can't be used is told as "unreadable"."""

    def __init__(self, task, questions: list[Question], train: bool):
        super().__init__(len(questions), task.config.seed, train)
        self.files, self.questions = task.vectors, questions
        self.may_lack = not train and task.config.data.max_bad_fraction > 0

    def read(self, index: int, rng: np.random.Generator | None) -> dict:
        question, unreadable = self.questions[index], ""
        try:
            vector = self.files.vector(question)
        except FeatureError as error:
            if not self.may_lack:
                raise
            vector, unreadable = np.zeros(self.files.dimension, np.float32), str(error)
        return {"video": vector, "answer": question.answer, "index": index, "unreadable": unreadable}
