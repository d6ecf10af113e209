"""How a text that somebody else wrote is shown: with nothing hidden in it, and not for pages on end.

File names, narrations, run names and messages come from anywhere. HTML needs notebook/safe_html.py as well.
"""
import unicodedata

from egokit.config.names import printable

MAX_SHOWN = 1000  # characters
MAX_MARKS = 4     # accents on one letter; a pile of them covers the lines above it


def shown(value, limit: int = MAX_SHOWN) -> str:
    """Return a value as text on one line, in which every character can be seen, of at most `limit` characters.

    Line ends, control characters and other hidden ones are escapes, as in Python.
    """
    text = printable(str(value)[:limit + 1])
    if not text.isascii():
        text = _without_piles(text)
    return text if len(text) <= limit else f"{text[:limit - 2]} …"


def _without_piles(text: str) -> str:
    characters, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        characters.append(character if marks <= MAX_MARKS else character.encode("unicode_escape").decode())
    return "".join(characters)
