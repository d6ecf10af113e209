"""Names for the classes that annotations only number."""
import collections
import re


def most_frequent(classes_N: list[list[int]], words_N: list[list[str]]) -> list[list[str]]:
    """Name each class by the word that the annotators use most for it.

    Args:
        classes_N: the numbers of each sample's classes.
        words_N: the annotators' words for them, in the same order.

    Returns:
        The names of each sample's classes.
    """
    counts = collections.defaultdict(collections.Counter)
    for classes, words in zip(classes_N, words_N, strict=True):
        for number, word in zip(classes, words, strict=False):
            counts[number][word] += 1
    names = {number: counted.most_common(1)[0][0] for number, counted in counts.items()}
    return [[names.get(number, "?") for number in dict.fromkeys(classes)] for classes in classes_N]


def typical_words(classes_N: list[list[int]], texts: list[str]) -> list[list[str]]:
    """Name each class by up to three words that are typical of its texts and rare in all others.

    Args:
        classes_N: the numbers of each text's classes.
        texts: the texts.

    Returns:
        The names of each text's classes.
    """
    words_N = [dict.fromkeys(re.findall(r"[a-z][a-z-]+", text.lower())) for text in texts]
    total = collections.Counter(word for words in words_N for word in words)
    members = collections.defaultdict(list)
    for classes, words in zip(classes_N, words_N, strict=True):
        for number in dict.fromkeys(classes):
            members[number].append(words)
    names: dict[int, str] = {}
    for number, own in members.items():
        inside = collections.Counter(word for words in own for word in words)
        others = max(1, len(texts) - len(own))
        share = {word: count / len(own) - (total[word] - count) / others for word, count in inside.items()}
        least = 0.75 * max(share.values(), default=0)
        name = " ".join([word for word, value in share.items() if value >= least][:3]) or "?"
        names[number] = f"{name} (class {number})" if name in names.values() else name
    return [[names[number] for number in dict.fromkeys(classes)] for classes in classes_N]
