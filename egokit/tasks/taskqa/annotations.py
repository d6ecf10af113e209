"""EgoTaskQA's question files and the names of its clips.

A file lists a split's questions. Most of its bytes are encodings for other models, which are dropped while it is read.

Source: EgoTaskQA (arXiv 2210.03929).
"""
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from egokit.config.names import check_name, is_hidden
from egokit.data.annotation_json import field, name_of, read_document

SPLITS = ("train", "val", "test")
FPS = 24         # of the videos: frames of a clip's name are counted at this rate
OPEN, BINARY = "query", "verify"  # labels that say of what form an answer is
YES_NO = {"yes", "no"}
READ = {"interval", "question", "answer", "answer_encode", "reasoning_type", "question_id"}
MOST = 15_000_000  # lists and objects of a file: 55 a question, mostly of the letters of its words, which are dropped
LONGEST = 100    # characters of a label, which becomes the name of a metric
CLIP = re.compile(r"(?P<video>.+)\|P(?P<person>[1-9])\|(?P<start>\d{1,9})\|(?P<stop>\d{1,9})")
NAMED = "expected a clip's name, <video>|<P1 or P2>|<first frame>|<end frame> at 24 frames a second"


def file_of(split: str) -> str:
    """Return the name of the file that lists a split's questions."""
    return f"formatted_{split}_qas_encode.json"


class ClipName(NamedTuple):
    """What a clip's name says: a stretch of one person's view of a video."""
    video: str
    person: int  # 1 or 2
    start: int   # its first frame at FPS, from 0
    stop: int    # the frame after its last

    @classmethod
    def parse(cls, name: str) -> "ClipName":
        """Return the parts of a name.

        Raises:
            ValueError: it is no clip's name, or leads out of a folder; the message says what was expected.
        """
        match = CLIP.fullmatch(check_name(name))
        if not match or int(match["start"]) >= int(match["stop"]):
            raise ValueError(NAMED)
        return cls(check_name(match["video"]), *(int(match[key]) for key in ("person", "start", "stop")))

    @property
    def view(self) -> str:
        """The folder of the person's view in LEMMA: P1's is fpv1."""
        return f"fpv{self.person}"

    @property
    def seconds(self) -> float:
        """The clip's length."""
        return (self.stop - self.start) / FPS


class Question(NamedTuple):
    """One question about a clip."""
    clip: str                 # its name
    question: str             # as in the file
    answer: int               # class: number in the vocabulary
    labels: tuple[str, ...]   # kinds that it belongs to
    question_id: str          # the file's, or its number in it
    answer_text: str = ""     # as in the file, which capitals may keep out of the vocabulary; "" if it has none

    @property
    def text(self) -> str:
        """The question as the text encoder reads it."""
        return self.question.strip().lower()

    def is_binary(self, vocabulary: Sequence[str]) -> bool:
        """Return whether the answer is yes or no, by the labels if they say it."""
        if OPEN in self.labels or BINARY in self.labels:
            return BINARY in self.labels
        return (self.answer_text or vocabulary[self.answer]).strip().lower() in YES_NO


def read_questions(path: Path, size: int) -> list[Question]:
    """Read a split's questions, in the file's order.

    Args:
        path: a formatted_{train,val,test}_qas_encode.json.
        size: number of answers in the vocabulary.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or a question is damaged; the message names it.
    """
    path = Path(path)
    entries = read_document(path, most=MOST, hook=lambda fields: {key: fields[key] for key in READ & fields.keys()})
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of questions [{{\"interval\": …, \"question\": …, …}}, …], found "
                         f"{entries!r:.80}; download it again")
    known: dict[str, tuple[str, ...]] = {}
    questions, number = [], 0
    try:
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(f"{entry!r:.80}, expected its fields interval, question, answer_encode and "
                                 "reasoning_type")
            questions.append(_question(entry, number, size, known))
    except ValueError as error:
        named = entries[number].get("question_id") if isinstance(entries[number], dict) else None
        also = f" (question_id {named!r:.40})" if isinstance(named, int | str) else ""
        raise ValueError(f"{path}, question {number}{also}: {error}; download the file again, or remove the "
                         "question") from None
    return questions


def _question(entry: dict, number: int, size: int, known: dict[str, tuple[str, ...]]) -> Question:
    """Return one question, checked; `known` remembers the labels of those before."""
    clip = name_of(entry, "interval", NAMED, _clip_name)
    text = field(entry, "question", str, "the question")
    if not text.strip():
        raise ValueError("'question' is empty, expected the question")
    answer = field(entry, "answer_encode", int, "the answer's class")
    if isinstance(answer, bool) or not 0 <= answer < size:
        raise ValueError(f"'answer_encode' is {answer!r:.40}, expected a class of the vocabulary, 0 to {size - 1}: the "
                         "file and answer_set.txt must come from one folder")
    joined = field(entry, "reasoning_type", str, "labels with $ between them")
    if joined not in known:
        known[joined] = _labels(joined)
    given = entry.get("question_id")
    written = field(entry, "answer", str, "the answer") if "answer" in entry else ""
    return Question(clip, text, answer, known[joined],
                    str(given) if isinstance(given, int | str) and given != "" else str(number), written)


def _clip_name(name: str) -> str:
    """Return a clip's name, or raise the ValueError that says what was expected."""
    ClipName.parse(name)
    return name


def _labels(joined: str) -> tuple[str, ...]:
    """Return the labels that are joined by $, each once."""
    labels = tuple(dict.fromkeys(label.strip() for label in joined.split("$") if label.strip()))
    for label in labels:
        if len(label) > LONGEST or any(map(is_hidden, label)):
            raise ValueError(f"'reasoning_type' has the label {label!r:.60}, expected a word of at most {LONGEST} "
                             "characters that can be printed")
    return labels
