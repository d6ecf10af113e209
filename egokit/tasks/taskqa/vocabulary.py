"""EgoTaskQA's vocabulary of answers, answer_set.txt: a line a class, in the order of the classes.

Source: EgoTaskQA (arXiv 2210.03929), whose scripts make the vocabulary of the training split's answers.
"""
import collections
from collections.abc import Iterable, Sequence
from pathlib import Path

from egokit.config.access import file_exists
from egokit.config.names import is_hidden
from egokit.runs.files import write_text

FILE = "answer_set.txt"
SPECIAL = ("<UNK0>", "<UNK1>")
UNKNOWN = 1     # class of a val or test answer that the vocabulary has not; no training sample has it
MOST = 4000     # training answers that are counted
LONGEST = 500   # characters of an answer
LARGEST = 100_000  # classes of a file that is read
FIX = "download it again with the questions: a question set that was made anew has another order of answers"


def build(train_answers: Iterable[str]) -> tuple[str, ...]:
    """Return the vocabulary of the training split's answers, in their order in the file.

    Answers are counted as they are written, so "Cup" and "cup" apart; those of equal counts stay in the order of their
    first appearance. The most frequent MOST are kept, in lower case.
    """
    counted = collections.Counter(train_answers).most_common(MOST)
    return tuple(dict.fromkeys([*SPECIAL, *(answer.lower() for answer, _ in counted)]))


def encode(answers: Iterable[str], vocabulary: Sequence[str], as_written: bool) -> list[int]:
    """Return the class of each answer, UNKNOWN for one that the vocabulary has not.

    Args:
        as_written: look answers up with their capitals, as those of val and test are; no word of the vocabulary has
            one. The training split's are looked up in lower case.
    """
    number = {word: place for place, word in enumerate(vocabulary)}
    return [number.get(answer if as_written else answer.lower(), UNKNOWN) for answer in answers]


def read(path: Path) -> tuple[str, ...]:
    """Return the words of an answer_set.txt, one for each class.

    Raises:
        FileNotFoundError, ValueError: the file is missing or damaged; the message names it and the line.
    """
    path = Path(path)
    if not file_exists(path):
        raise FileNotFoundError(f"{path} is missing; docs/data.md says where it comes from")
    if (size := path.stat().st_size) > LARGEST * LONGEST:
        raise ValueError(f"{path}: {size:,} bytes, expected a list of answers; {FIX}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); {FIX}") from None
    words = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    check(words, f"{path}, line {{}}")
    return tuple(words)


def check(words: Sequence[str], where: str) -> None:
    """Raise ValueError unless words are a vocabulary of answers.

    Args:
        where: names a word's place in a message, {} its number from 1.
    """
    first: dict[str, int] = {}
    for number, word in enumerate(words, 1):
        place = where.format(number)
        if not word.strip() or len(word) > LONGEST or any(map(is_hidden, word)):
            raise ValueError(f"{place}: {word!r:.80}, expected an answer; {FIX}")
        if first.setdefault(word, number) != number:
            raise ValueError(f"{place}: {word!r:.80} stands in line {first[word]}, too, expected each answer once; "
                             f"{FIX}")
    if not UNKNOWN < len(words) <= LARGEST:
        raise ValueError(f"{where.format(len(words))} is the last of {len(words):,} answers, expected {UNKNOWN + 1} to "
                         f"{LARGEST:,}; {FIX}")


def write(path: Path, vocabulary: Sequence[str]) -> None:
    """Write a vocabulary as an answer_set.txt."""
    check(vocabulary, "the vocabulary's answer {}")
    write_text(path, "".join(f"{word}\n" for word in vocabulary))
